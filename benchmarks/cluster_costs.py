"""What one step of each kind costs on this machine, in CPU-seconds: the ground of the replay (`cluster_replay`).

Belongs here: the samples, and what a frame, a second or a step of them costs. Does not belong here: what follows from
it for a cluster.

Costs are of the production's own functions, each in a process of its own; imports belong to the start of a pod or
process. The 4K source has a camera's grain and bit rate; the film is 4K at standard quality by libx264, of shots of
1.5 s that start between keyframes.
"""

from __future__ import annotations

import json
import multiprocessing.forkserver
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench import X264_EASY, Bench, probed
from benchmarks.decode_cost import GRAIN
from benchmarks.measuring import cost_of, in_turns
from benchmarks.render import shots_from
from montage_assets.assets.clip_selections import select
from montage_assets.assets.footage import Footage, MusicFile
from montage_assets.assets.scene_shards import Scenes
from montage_assets.cloud.beat_detector import song_length_s
from montage_assets.media.beats import analyze_song
from montage_assets.media.clip import Clip
from montage_assets.media.edit_list import EditList, EditMusic, Shot
from montage_assets.media.encoders import on_cpu, read_encoded_stream
from montage_assets.media.ffmpeg import run_ffmpeg
from montage_assets.media.film_check import check_film
from montage_assets.media.fingerprint import fingerprint_of
from montage_assets.media.frame_scores import FrameScores, dump_scores, load_scores, score_range
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.join import join_segments
from montage_assets.media.proxies import join_proxy, make_proxy_part
from montage_assets.media.render import OutputFormat, RenderedSegment, RenderShot, render_segment, segment_args
from montage_assets.media.scenes import detect_scenes
from montage_assets.media.shards import cut_into_ranges
from montage_assets.media.soundtrack import mux_film
from montage_assets.spec import MontageSpec

if TYPE_CHECKING:
    from dagster import JobDefinition


SIZE = (3840, 2160)
FPS = Fraction(24)
SAMPLE_S = 4.0
CAMERA = ("-c:v", "libx264", "-preset", "veryfast", "-b:v", "60M", "-maxrate", "80M", "-bufsize", "80M", "-g", "48")
"""A phone's or camera's 4K: 50 to 100 Mbit/s, a keyframe every two seconds."""

LONGER = 3
"""A range of so many times the sample, beside one of the sample, tells what a range costs before its first frame."""

SHOTS, SHOT_FRAMES = 2, 36
COPIES = 4
"""Of the segment, which are joined and checked as one film; joined once more for a film LONGER times as long."""

SHORT_FILM_S, SHORT_FOOTAGE_MIN = 30.0, 20
LONG_FILM_S, LONG_FOOTAGE_MIN = 300.0, 60
STEPS = 6
ROUNDS = 2


@dataclass(frozen=True)
class StepCosts:
    """CPU-seconds on one ordinary core. Those ending in `_frame` and `_second` are per frame or second of what is
    worked on; `footage_mbit` is the source's bit rate."""

    analysis_frame: float
    """Decoding 4K, proxy and scores."""
    analysis_range: float
    """What a range costs besides its frames."""
    probe_clip: float
    """Footage: probing, fingerprinting and picturing one clip."""
    scenes_start: float
    scenes_frame: float
    """Deciding the scenes from the scores."""
    song_second: float
    short_selection: float
    """The edit of a 30 s film from 20 min of footage."""
    long_selection: float
    """The edit of a 300 s film from 60 min of footage."""
    segment_frame: float
    """Decoding, filtering and encoding 4K."""
    segment_picture_frame: float
    """The part of it that stays on the CPU whatever encodes: decoding and filters."""
    join_start: float
    join_frame: float
    """Joining segments, and the sound."""
    check_frame: float
    """Checking the film, which decodes it."""
    step_process: float
    """Starting a step as a process beside the run."""
    footage_mbit: float


def measured_costs(bench: Bench) -> StepCosts:
    """The costs that were measured with these media before, else new ones, kept in the work folder."""
    kept = bench.work / "cluster-step-costs.json"
    if kept.is_file():
        return StepCosts(**json.loads(kept.read_text()))
    costs = _measure(bench)
    kept.write_text(json.dumps(asdict(costs), indent=1))
    return costs


def _measure(bench: Bench) -> StepCosts:
    source, small, song = camera_source(bench), bench.film(), bench.songs()[0]
    frames, film_frames = probed(source).frames_estimate, SHOTS * SHOT_FRAMES
    clip, scores = probed(small), _scores_of(small)  # also loads here what the steps would count as theirs
    paths = {"short": source, "long": bench.looped(source, LONGER)}
    lengths = {name: partial(_analyse, path, probed(path)) for name, path in paths.items()}
    shots = shots_from([source], SHOTS, SHOT_FRAMES, FPS)
    analyses = in_turns(lengths, ROUNDS + 1)
    short, long = analyses["short"].best, analyses["long"].best
    analysis_frame = (long - short) / ((LONGER - 1) * frames)
    with tempfile.TemporaryDirectory() as made:
        segment, film = Path(made) / "segment.ts", Path(made) / "film.mp4"
        encoded = _best(partial(_encode, shots, segment))
        joined_long = _best(partial(_join, segment, song, film, LONGER * COPIES))
        joined = _best(partial(_join, segment, song, film, COPIES))
        checked = _best(partial(_check, film))
    few, many = (_best(partial(_scenes, clip, scores, times)) for times in (1, LONGER))
    join_frame = (joined_long - joined) / ((LONGER - 1) * COPIES * film_frames)
    scenes_frame = (many - few) / ((LONGER - 1) * scores.frames)
    song_s = _song_s(song)
    steps = _best(partial(_run_steps, STEPS)) - _best(partial(_run_steps, 1))
    return StepCosts(
        analysis_frame=analysis_frame,
        analysis_range=max(0.0, short - frames * analysis_frame),
        probe_clip=_best(partial(_probe, source)),
        scenes_start=max(0.0, few - scores.frames * scenes_frame),
        scenes_frame=scenes_frame,
        song_second=_best(partial(_hear, song)) / song_s,
        short_selection=_best(_selection(clip, scores, song, SHORT_FOOTAGE_MIN, SHORT_FILM_S)),
        long_selection=_best(_selection(clip, scores, song, LONG_FOOTAGE_MIN, LONG_FILM_S))
        * max(1.0, LONG_FILM_S / song_s),
        segment_frame=encoded / film_frames,
        segment_picture_frame=_best(partial(_filter, shots)) / film_frames,
        join_start=max(0.0, joined - COPIES * film_frames * join_frame),
        join_frame=join_frame,
        check_frame=checked / (COPIES * film_frames),
        step_process=steps / (STEPS - 1),
        footage_mbit=source.stat().st_size * 8 / SAMPLE_S / 1e6,
    )


def camera_source(bench: Bench) -> Path:
    """Four seconds of 4K with grain, a keyframe every two seconds."""
    clean = bench.scaled(*SIZE, SAMPLE_S, X264_EASY)
    return bench.encoded(f"{clean.stem}-camera", ".mp4", clean, (*GRAIN, *CAMERA))


def _best(work: Callable[[], object]) -> float:
    """Of a few rounds: other work on the machine only ever adds to a cost."""
    return min(cost_of(work).cpu_s for _ in range(ROUNDS))


def _analyse(source: Path, clip: Clip) -> None:
    (whole,) = cut_into_ranges(clip, 1, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "proxy.nut"
        dump_scores(make_proxy_part(source, clip, whole, part))
        join_proxy([part], clip, part.with_suffix(".mp4"))


def _probe(source: Path) -> None:

    with source.open("rb") as stream:
        fingerprint = fingerprint_of(stream, source.stat().st_size)
    ingest_clip(source, source.name, fingerprint)


def _encode(shots: list[RenderShot], out: Path) -> None:

    render_segment(shots, OutputFormat(*SIZE, FPS), out)


def _filter(shots: list[RenderShot]) -> None:
    """The segment's command with its encoder replaced by none."""

    command = segment_args(shots, OutputFormat(*SIZE, FPS), on_cpu("h264"), Path("none.ts"))
    until_encoder = command[: command.index("[film]", command.index("-map")) + 1]
    run_ffmpeg([*until_encoder, "-f", "null", "-"], what="filtering a segment")


def _join(segment: Path, song: Path, out: Path, copies: int) -> None:

    stream = read_encoded_stream(segment, on_cpu("h264").container)
    one = RenderedSegment(segment, stream.frames, "libx264", stream.parameters, segment.stat().st_size, 0.0)
    joined = join_segments([one] * copies, OutputFormat(*SIZE, FPS), out.with_name("joined.mp4"))
    mux_film(joined.path, song, out, music_start_s=0.0, frames=copies * one.frames, fps=FPS)


def _check(film: Path) -> None:

    starts = range(0, COPIES * SHOTS * SHOT_FRAMES, SHOT_FRAMES)
    beats = [float(start / FPS) for start in starts]
    shots = [
        Shot(number, "a.mp4", beat, round(beat * FPS), start, SHOT_FRAMES, beat, 1.0)
        for number, (start, beat) in enumerate(zip(starts, beats, strict=True), start=1)
    ]
    music = EditMusic("song.ogg", 0.0, beats, beats[::4], 90.0)
    check_film(film, EditList(FPS, *SIZE, len(starts) * SHOT_FRAMES, 0, music, shots, []))


def _hear(song: Path) -> None:

    analyze_song(song)


def _song_s(song: Path) -> float:

    return song_length_s(song)


def _scores_of(source: Path) -> FrameScores:
    """The scores of the film as it is: what is decided from them does not depend on the picture's size."""

    clip = probed(source)
    (whole,) = cut_into_ranges(clip, 1, lambda _: None)
    return score_range(source, clip, whole)


def _scenes(clip: Clip, scores: FrameScores, times: int) -> None:

    for _ in range(times):
        detect_scenes(clip, scores)


def _selection(clip: Clip, scores: FrameScores, song: Path, minutes: int, film_s: float) -> Callable[[], None]:
    """The edit from so many minutes of footage, which is the same minute under other names."""

    beats = analyze_song(song)
    clips = [replace(clip, name=f"{number}.mp4") for number in range(round(60 * minutes / clip.duration_s))]
    found = detect_scenes(clip, scores)
    scenes = Scenes(clips, [replace(found, clip=one.name) for one in clips], [], [])
    spec = MontageSpec(duration=min(film_s, beats.duration_s), resolution=f"{SIZE[0]}x{SIZE[1]}")
    footage = Footage("montage", "", spec, clips, [], MusicFile(str(song), ""), [])
    stored = dump_scores(scores)

    def work() -> None:
        select(footage, scenes, beats, {one.name: load_scores(stored) for one in clips})

    return work


def _run_steps(count: int) -> None:
    """A run whose steps are processes forked from a server that has the definitions loaded."""
    import dagster as dg

    with tempfile.TemporaryDirectory() as home, dg.DagsterInstance.local_temp(home) as instance:
        job = dg.build_reconstructable_job("benchmarks.cluster_costs", "_job_of_steps", (count,))
        config = {"execution": {"config": _FORKED}, "loggers": {"console": {"config": {"log_level": "ERROR"}}}}
        result = dg.execute_job(job, instance, run_config=config)
        # Only what was waited for counts: the server first, which has waited for the steps.
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
        if not result.success:
            raise SystemExit("the run of empty steps failed")


_FORKED = {
    "max_concurrent": 1,
    "start_method": {"forkserver": {"preload_modules": ["montage_assets.definitions", "benchmarks.cluster_costs"]}},
}


def _job_of_steps(count: int) -> JobDefinition:
    import dagster as dg

    @dg.op(ins={"before": dg.In(dg.Nothing)})
    def nothing() -> None:
        pass

    @dg.job(executor_def=dg.multiprocess_executor)
    def steps() -> None:
        last = nothing.alias("step_1")()
        for number in range(2, count + 1):
            last = nothing.alias(f"step_{number}")(before=last)

    return steps
