"""montage: the segments joined, the song under them at the right loudness, the film and its edit list."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import dagster as dg

from montage_assets import layout
from montage_assets.assets.clip_selections import Selection
from montage_assets.assets.common import GROUP, OWNERS, RETRIES, by_name, clip_source, data_root, montage_of, task_tags
from montage_assets.assets.footage import Footage
from montage_assets.assets.rendered_segments import Segments, encoder_wish, encoders_here, output_format
from montage_assets.data_root import DataRoot
from montage_assets.failures import plain_failures
from montage_assets.io import read_record
from montage_assets.media import edit_list as edit_lists
from montage_assets.media import join, soundtrack
from montage_assets.media.beat_analysis import BeatAnalysis
from montage_assets.media.edit_list import EditList
from montage_assets.media.encoders import ReadyEncoder
from montage_assets.media.ffmpeg import ffmpeg_version
from montage_assets.media.fingerprint import result_key
from montage_assets.media.pictures import beat_chart
from montage_assets.media.render import OutputFormat, RenderedSegment, RenderShot
from montage_assets.media.soundtrack import FilmSound
from montage_assets.metadata import picture
from montage_assets.partitions import montage_partitions
from montage_assets.progress import FrameCounter, still_working
from montage_assets.settings import Settings

STEP = "make_montage"
"""The name of the step that makes this asset."""


@dataclass(frozen=True)
class Film:
    """The finished film. `made_of` is the key of everything that went into it."""

    film: str
    edit_list: str
    made_of: str
    frames: int
    duration_s: float
    size_bytes: int
    sound: FilmSound
    reencoded: list[int]


# The asset shares its name with the job, so its op needs another one: Dagster wants op and job names unique.
@dg.multi_asset(
    name=STEP,
    outs={
        "montage": dg.AssetOut(
            dagster_type=Film,
            group_name=GROUP,
            owners=OWNERS,
            kinds={"ffmpeg"},
            description="The film: segments joined without loss, the song at its loudness and faded, "
            "the edit list beside it.",
        )
    },
    partitions_def=montage_partitions,
    op_tags=task_tags("final_render"),
    pool="final_render",
    retry_policy=RETRIES,
)
def montage(
    context: dg.AssetExecutionContext,
    footage: Footage,
    beats: BeatAnalysis,
    clip_selections: Selection,
    rendered_segments: Segments,
) -> dg.MaterializeResult[Film]:
    """Join, score and publish one montage."""
    root = data_root()
    name = montage_of(context)
    made_of = _made_of(footage, clip_selections.edit, rendered_segments)
    with plain_failures():
        film = _film_before(root, name, clip_selections.edit, made_of)
        if film is None:
            film = make_film(root, name, footage, clip_selections, rendered_segments, made_of, context.log.info)
        else:
            context.log.info("nothing has changed; the film is as it was")
    context.log.info(f"the film is at {root.where(film.film)}")
    return dg.MaterializeResult(
        value=film,
        metadata={
            "film": dg.MetadataValue.path(root.where(film.film)),
            "edit list": dg.MetadataValue.path(root.where(film.edit_list)),
            "length (s)": dg.MetadataValue.float(round(film.duration_s, 3)),
            "frames": dg.MetadataValue.int(film.frames),
            "size (MB)": dg.MetadataValue.float(round(film.size_bytes / 1e6, 2)),
            "loudness (LUFS)": dg.MetadataValue.float(round(film.sound.after.integrated_lufs, 2)),
            "true peak (dBTP)": dg.MetadataValue.float(round(film.sound.after.true_peak_dbtp, 2)),
            "segments re-encoded to join": dg.MetadataValue.int(len(film.reencoded)),
            "song, beats and cuts": picture(beat_chart(beats, clip_selections.edit), "song, beats and cuts", "png"),
        },
    )


def make_film(
    root: DataRoot,
    name: str,
    footage: Footage,
    selection: Selection,
    segments: Segments,
    made_of: str,
    log: Callable[[str], None],
) -> Film:
    """Join the segments, put the song under them, publish film and edit list. Raises MediaError."""
    edit = selection.edit
    fmt = output_format(edit, footage.spec)
    rendered = [
        RenderedSegment(
            path=root.local_file(segment.key),
            frames=segment.frames,
            encoder=segment.encoder,
            codec_hash=segment.codec_hash,
            size_bytes=segment.size_bytes,
            cpu_s=segment.cpu_seconds,
        )
        for segment in segments.segments
    ]
    with (
        root.writing(layout.film(name)) as out,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".joined-") as folder,
    ):
        with still_working(log, "joining the segments"):
            joined = join.join_segments(rendered, fmt, Path(folder) / "joined.mp4", _encoders_for(fmt))
        sound = soundtrack.mux_film(
            joined.path,
            root.local_file(footage.music.source),
            out,
            music_start_s=edit.music.start_s,
            frames=edit.frames,
            fps=edit.fps,
            codec=fmt.codec,
            shots=_shots_with_sound(root, footage, selection),
            original_audio=footage.spec.original_audio,
            target_lufs=edit.loudness_lufs,
            on_progress=FrameCounter(log, "mixing the sound", edit.frames).at_time(float(edit.fps)),
        )
        size = out.stat().st_size
        root.write_bytes(layout.edit_list(name), edit_lists.to_json(edit).encode())
    return Film(
        film=layout.film(name),
        edit_list=layout.edit_list(name),
        made_of=made_of,
        frames=edit.frames,
        duration_s=float(Fraction(edit.frames) / edit.fps),
        size_bytes=size,
        sound=sound,
        reencoded=joined.reencoded,
    )


def _encoders_for(fmt: OutputFormat) -> Callable[[], Sequence[ReadyEncoder]]:
    """What this machine could encode foreign segments again with; asked only when there are any."""
    settings = Settings.from_environment()
    return lambda: encoders_here(settings, fmt, encoder_wish(settings)).encoders


def _made_of(footage: Footage, edit: EditList, segments: Segments) -> str:
    return result_key(
        segments=[segment.key for segment in segments.segments],
        music=footage.music.fingerprint,
        edit=edit_lists.to_json(edit),
        original_audio=footage.spec.original_audio,
        algorithms=[join.ALGORITHM, soundtrack.ALGORITHM],
        ffmpeg=ffmpeg_version(),
    )


def _film_before(root: DataRoot, name: str, edit: EditList, made_of: str) -> Film | None:
    """The film as it stands, when it was made of the same things and is still there whole, with its edit list."""
    record = layout.record(name, "montage")
    if not root.exists(record):
        return None
    try:
        film = read_record(root, record, Film)
    except ValueError:  # an older version's record; the film is made again
        return None
    if film.made_of != made_of or not root.exists(film.edit_list):
        return None
    # A run that was killed between the two may have put another film's edit list beside this one.
    if root.read_bytes(film.edit_list) != edit_lists.to_json(edit).encode():
        return None
    sizes = {file.name: file.size for file in root.list_files(film.film.rpartition("/")[0], recursive=False)}
    return film if sizes.get(layout.FILM) == film.size_bytes else None


def _shots_with_sound(root: DataRoot, footage: Footage, selection: Selection) -> list[RenderShot]:
    if footage.spec.original_audio == 0:
        return []
    clips = by_name(selection.clips)
    shots = []
    for shot in selection.edit.shots:
        clip = clips[shot.clip]
        ticks = round(Fraction(shot.source_start_s) / clip.time_base)
        path = root.local_file(clip_source(footage.folder, shot.clip))
        shots.append(RenderShot(path, clip, ticks * clip.time_base, shot.frames))
    return shots
