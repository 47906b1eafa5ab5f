"""Shots whose source is smaller than the film, made larger by a neural network before they are rendered.

Belongs here: which shots, the steps of the queue `upscale`, and the one decision between cloud, GPU and CPU. They are
part of the asset rendered_segments: what they make is kept by the key of its content, like everything in work/, and
replaces a shot's source. Does not belong here: the network (`media.upscaling`) and the cloud's (`cloud.upscaler`).
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path, PurePosixPath

import dagster as dg

from montage_assets import layout
from montage_assets.assets import neural_steps
from montage_assets.assets.clip_selections import Selection
from montage_assets.assets.cloud_segments import near_lossless
from montage_assets.assets.common import RETRIES, by_name, clip_source, data_root, mapping_key, task_tags
from montage_assets.assets.footage import Footage
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.offload import Log, Offload, Session
from montage_assets.cloud.policy import Work
from montage_assets.cloud.upscaler import CGPUUpscaler
from montage_assets.data_root import DataRoot
from montage_assets.failures import plain_failures
from montage_assets.io import dump_record, read_record
from montage_assets.media import render, upscaling
from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import ffmpeg_version
from montage_assets.media.fingerprint import clip_key, result_key
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.picture import Framing
from montage_assets.media.render import OutputFormat, RenderShot
from montage_assets.media.upscaling import Enlargement
from montage_assets.progress import still_working
from montage_assets.settings import Settings

_BYTES_PER_PIXEL = 0.05
"""Of what is sent to the cloud and comes back, for a decision; as for segments."""


@dataclass(frozen=True)
class UpscaleTask:
    """One shot to enlarge: `frames` film frames of a clip from `in_time_s` on. `needed`: the user asked for it
    outright, so that it may not be left out."""

    shot: int
    source: str
    clip: Clip
    in_time_s: Fraction
    frames: int
    fps: Fraction
    framing: Framing
    enlargement: Enlargement
    key: str
    needed: bool


@dataclass(frozen=True)
class UpscaledShot:
    """A shot made larger; `clip` tells of the file at `key`. `done` says where, and why there."""

    shot: int
    key: str
    clip: Clip
    done: str


@dataclass(frozen=True)
class UpscaleReport:
    """How one step went; `left_out` says why its shot stays as it is."""

    shot: int
    done: str
    left_out: str | None = None


class NotUpscaled(MediaError):  # noqa: N818 -- it names the shot's state
    """A shot can be enlarged neither here, of which `not_here` tells, nor in the cloud, which was logged before."""

    def __init__(self, not_here: str, not_there: str | None) -> None:
        self.not_here = not_here
        super().__init__(not_here if not_there is None else f"{not_here}; not in the cloud: {not_there}")


@dg.op(out=dg.DynamicOut(UpscaleTask), tags=task_tags("metadata"), retry_policy=RETRIES)
def plan_upscaling(
    context: dg.OpExecutionContext, footage: Footage, clip_selections: Selection
) -> Iterator[dg.DynamicOutput[UpscaleTask]]:
    """Find the shots that are smaller than the film and not enlarged yet; none where nobody asked for it."""
    if footage.spec.upscale == "off":
        return
    with plain_failures():
        root, settings = data_root(), Settings.from_environment()
        offload = Offload(settings, root, context.run_id, context.log)
        reason = _reason_not_to(footage, settings, offload)
        tasks = [] if reason else [task for task in upscale_tasks(footage, clip_selections) if not _is_done(root, task)]
    if reason:
        context.log.info(f"no shot is upscaled: {reason}")
    for task in tasks:
        yield dg.DynamicOutput(task, mapping_key("shot", task.shot + 1))


@dg.op(tags=task_tags("upscaling"), retry_policy=RETRIES)
def upscale_shot(context: dg.OpExecutionContext, task: UpscaleTask) -> UpscaleReport:
    """Enlarge one shot: in the cloud where that is allowed and pays, else on a GPU here, else on the CPU."""
    with plain_failures(), still_working(context.log.info, f"upscaling shot {task.shot + 1}"):
        root, settings = data_root(), Settings.from_environment()
        offload = Offload(settings, root, context.run_id, context.log)
        try:
            upscaled = upscale(root, task, settings, offload, context.log)
            report = UpscaleReport(task.shot, upscaled.done)
        except MediaError as error:
            if task.needed:
                raise
            told = error.not_here if isinstance(error, NotUpscaled) else error
            context.log.warning(f"shot {task.shot + 1} stays as small as it is: {told}")
            report = UpscaleReport(task.shot, "nowhere", str(error))
    context.add_output_metadata({"done": report.done, "left out": report.left_out or "no"})
    return report


def upscale_tasks(footage: Footage, selection: Selection) -> list[UpscaleTask]:
    """The shots of the film whose source is smaller than it; none of a preview, which is meant to be quick."""
    spec, edit = footage.spec, selection.edit
    if spec.upscale == "off" or spec.quality == "preview":
        return []
    clips = by_name(selection.clips)
    tasks = []
    for number, shot in enumerate(edit.shots):
        clip = clips[shot.clip]
        ratio = upscaling.ratio_in_film(clip, edit.width, edit.height, spec.framing)
        enlargement = upscaling.enlargement_for(ratio, (edit.width, edit.height))
        if enlargement is None:
            continue
        in_time_s = round(Fraction(shot.source_start_s) / clip.time_base) * clip.time_base
        key = result_key(
            clip=clip_key(clip),
            start=str(in_time_s),
            frames=shot.frames,
            fps=str(edit.fps),
            size=[enlargement.width, enlargement.height, enlargement.factor],
            framing=spec.framing,
            model=[upscaling.MODEL, upscaling.WEIGHTS_PACKAGE, upscaling.ALGORITHM, render.ALGORITHM],
            ffmpeg=ffmpeg_version(),
        )
        source, kept_at = clip_source(footage.folder, shot.clip), layout.result("upscaled", key, ".mkv")
        tasks.append(
            UpscaleTask(
                number, source, clip, in_time_s, shot.frames, edit.fps, spec.framing, enlargement, kept_at,
                spec.upscale == "on",
            )
        )  # fmt: skip
    return tasks


def upscaled_shots(root: DataRoot, footage: Footage, selection: Selection) -> dict[int, UpscaledShot]:
    """The shots that are enlarged, by their number in the film."""
    done = [task for task in upscale_tasks(footage, selection) if _is_done(root, task)]
    return {task.shot: read_record(root, _record_key(task), UpscaledShot) for task in done}


def in_words(upscaled: Mapping[int, UpscaledShot], reports: Sequence[UpscaleReport]) -> list[str]:
    """For metadata: how many shots were made larger where, and which were not, and why."""
    where = Counter(shot.done for shot in upscaled.values())
    lost = [
        f"shot {report.shot + 1} stays as small as it is: {report.left_out}" for report in reports if report.left_out
    ]
    return [f"{count} {done}" for done, count in sorted(where.items())] + lost


def upscale(root: DataRoot, task: UpscaleTask, settings: Settings, offload: Offload, log: Log) -> UpscaledShot:
    """Enlarge one shot and keep it. Raises MediaError when it can be done nowhere."""
    with tempfile.TemporaryDirectory(prefix="montage-upscale-") as place, root.writing(task.key) as out:
        small = Path(place) / "shot.ts"
        _write_small(root, task, small)
        made = Path(place) / "upscaled.mkv"
        in_cloud = offload.attempt(lambda: _work(task, small), lambda session: _in_cloud(session, small, made, task))
        not_there = in_cloud.reason if offload.is_wanted and not in_cloud.value else None
        try:
            done = in_cloud.told if in_cloud.value else _enlarge_here(small, made, task, settings, log)
        except MediaError as error:
            raise NotUpscaled(str(error), not_there) from error
        if not_there is not None:
            done = f"{done}; not in the cloud: {not_there}"
        clip = _checked(made, task)
        shutil.copyfile(made, out)
    upscaled = UpscaledShot(task.shot, task.key, clip, done)
    # Written after the pictures: its presence says that they are whole.
    root.write_bytes(_record_key(task), dump_record(upscaled))
    return upscaled


def _reason_not_to(footage: Footage, settings: Settings, offload: Offload) -> str | None:
    """`auto` is for machines to which it costs little."""
    if footage.spec.quality == "preview":
        return "a preview is meant to be quick"
    if footage.spec.upscale == "on" or offload.accepts("upscale"):
        return None
    if upscaling.device_for(neural_steps.compute_of(settings)) == "gpu":
        return None
    return "upscale is auto, and there is neither a GPU for it here nor consent to use the cloud's"


def _write_small(root: DataRoot, task: UpscaleTask, out: Path) -> None:
    """The very film frames of the shot, at the size that its source has in the film's shape."""
    enlargement = task.enlargement
    fmt = OutputFormat(enlargement.width, enlargement.height, task.fps, "h264", "master", task.framing)
    shot = RenderShot(root.local_file(task.source), task.clip, task.in_time_s, task.frames)
    render.render_segment([shot], fmt, out, encoders=[near_lossless()], name=f"shot {task.shot + 1}")


def _work(task: UpscaleTask, small: Path) -> Work:
    enlargement = task.enlargement
    large = enlargement.width * enlargement.height * enlargement.factor**2
    return Work(
        "upscale",
        float(task.frames / task.fps),
        width=enlargement.width * enlargement.factor,
        height=enlargement.height * enlargement.factor,
        upload_bytes=small.stat().st_size,
        download_bytes=round(task.frames * large * _BYTES_PER_PIXEL),
    )


def _in_cloud(session: Session, small: Path, made: Path, task: UpscaleTask) -> bool:
    CGPUUpscaler(session.client, session.on_sent).upscale_remote(small, made, task.enlargement.factor)
    try:
        _checked(made, task)
    except MediaError as error:
        raise CloudFailure(CloudFault.WRONG_RESULT, str(error)) from None
    return True


def _enlarge_here(small: Path, made: Path, task: UpscaleTask, settings: Settings, log: Log) -> str:
    compute = neural_steps.compute_of(settings)
    device = upscaling.device_for(compute)
    if device == "gpu":
        try:
            upscaling.enlarge(small, made, task.enlargement.factor, "gpu", compute.memory_mb)
        except MediaError as error:
            log.warning(f"shot {task.shot + 1} is upscaled on the CPU: {error}")
            upscaling.enlarge(small, made, task.enlargement.factor, "cpu")
            return f"here, on the CPU: {error}"
        return "here, on the GPU"
    upscaling.enlarge(small, made, task.enlargement.factor, "cpu")
    return "here, on the CPU"


def _checked(made: Path, task: UpscaleTask) -> Clip:
    """What the enlarged shot is. Raises MediaError unless it has all its frames at their size."""
    clip = ingest_clip(made, f"shot {task.shot + 1}.mkv", "").clip
    enlargement = task.enlargement
    wanted = (task.frames, enlargement.width * enlargement.factor, enlargement.height * enlargement.factor)
    frames = sum(1 for _ in _packets(made))
    if (frames, clip.width, clip.height) != wanted:
        told = f"{frames} frames of {clip.width}x{clip.height}"
        raise MediaError(f"upscaling gave {told} instead of {wanted[0]} of {wanted[1]}x{wanted[2]}")
    # Matroska counts in milliseconds: the rate is the film's, whatever the mean of rounded times says.
    return replace(clip, fingerprint=task.key, fps=task.fps, variable_rate=False)


def _packets(path: Path) -> Iterator[object]:
    import av

    with av.open(str(path)) as container:
        yield from (packet for packet in container.demux(container.streams.video[0]) if packet.size)


def _record_key(task: UpscaleTask) -> str:
    return str(PurePosixPath(task.key).with_suffix(".json"))


def _is_done(root: DataRoot, task: UpscaleTask) -> bool:
    return root.exists(_record_key(task)) and root.exists(task.key)
