"""The media functions of one montage called in a loop, with nothing around them: `bare_run FOLDER` prints CPU-seconds.

The same work as a run of the job: probing, scores in four shards, scenes, beats, edit, pictures, segments, film,
checks. Importing this module is not counted; what the functions themselves load is.
"""

from __future__ import annotations

import json
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

from benchmarks.measuring import cost_of
from benchmarks.scoring import SHARDS
from montage_assets.assets.clip_selections import select
from montage_assets.assets.footage import Footage, MusicFile
from montage_assets.assets.scene_shards import Scenes
from montage_assets.media.beats import analyze_song
from montage_assets.media.clip import Clip
from montage_assets.media.film_check import check_film
from montage_assets.media.fingerprint import fingerprint_of
from montage_assets.media.frame_scores import FrameScores, merge_scores, score_range
from montage_assets.media.ingest import AUDIO_SUFFIXES, ingest_clip, media_kind
from montage_assets.media.join import join_segments
from montage_assets.media.keyframes import keyframe_finder
from montage_assets.media.pictures import beat_chart, contact_sheet
from montage_assets.media.render import OutputFormat, RenderShot, plan_segments, render_segment
from montage_assets.media.scenes import detect_scenes
from montage_assets.media.shards import cut_into_ranges, ranges_per_clip
from montage_assets.media.soundtrack import mux_film
from montage_assets.spec import SPEC_FILE, parse_spec


def make_film(folder: Path, out: Path) -> int:
    """Make the film of a folder. Returns the number of its segments."""
    spec = parse_spec((folder / SPEC_FILE).read_text(), SPEC_FILE)
    song = next(path for path in sorted(folder.iterdir()) if path.suffix.lower() in AUDIO_SUFFIXES)
    ingested = [
        ingest_clip(path, path.name, _fingerprint(path))
        for path in sorted(folder.iterdir())
        if media_kind(path.name) == "video"
    ]
    clips = [entry.clip for entry in ingested]
    contact_sheet([entry.thumbnail for entry in ingested], [clip.name for clip in clips])
    counts = ranges_per_clip(clips, SHARDS)
    scores = {clip.name: _scores(folder / clip.name, clip, counts[clip.name]) for clip in clips}
    scenes = [detect_scenes(clip, scores[clip.name], "adaptive", spec.threshold) for clip in clips]
    beats = analyze_song(song)
    footage = Footage("bare", str(folder), spec, clips, [], MusicFile(str(song), _fingerprint(song)), [])
    edit = select(footage, Scenes(clips=clips, scenes=scenes, left_out=[], reports=[]), beats, scores).edit
    pictures = [scores[shot.clip].thumbnail_near(int(scores[shot.clip].pts[0])) for shot in edit.shots]
    contact_sheet(pictures, [shot.clip for shot in edit.shots])
    fmt = OutputFormat(edit.width, edit.height, edit.fps, spec.codec, spec.quality, spec.framing)
    known = {clip.name: clip for clip in clips}
    shots = []
    for shot in edit.shots:
        tick = known[shot.clip].time_base
        in_time_s = round(Fraction(shot.source_start_s) / tick) * tick
        shots.append(RenderShot(folder / shot.clip, known[shot.clip], in_time_s, shot.frames))
    groups = plan_segments(shots, edit.fps)
    segments = [
        render_segment([shots[index] for index in group], fmt, out.with_name(f"{number}.ts"))
        for number, group in enumerate(groups)
    ]
    joined = join_segments(segments, fmt, out.with_name("joined.mp4"))
    mux_film(
        joined.path,
        song,
        out,
        music_start_s=edit.music.start_s,
        frames=edit.frames,
        fps=edit.fps,
        codec=fmt.codec,
        shots=[],
        original_audio=0.0,
        target_lufs=spec.loudness,
    )
    beat_chart(beats, edit)
    check_film(out, edit)
    return len(segments)


def _scores(path: Path, clip: Clip, count: int) -> FrameScores:
    with keyframe_finder(path, clip) as keyframe_before:
        ranges = cut_into_ranges(clip, count, keyframe_before)
    return merge_scores([score_range(path, clip, part) for part in ranges])


def _fingerprint(path: Path) -> str:
    with path.open("rb") as stream:
        return fingerprint_of(stream, path.stat().st_size)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        cost = cost_of(lambda: make_film(Path(sys.argv[1]), Path(made) / "film.mp4"))
    sys.stdout.write(json.dumps({"cpu_s": cost.cpu_s, "segments": cost.result}) + "\n")
