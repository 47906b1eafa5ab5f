"""rendered_segments: groups of consecutive shots, encoded.

One step per segment where starting a step costs nothing. Where it is a pod, which takes longer to start than a GPU to
encode a segment, one step per node, with as many segments as the node is fast.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path, PurePosixPath

import dagster as dg

from montage_assets import layout
from montage_assets.assets import cloud_segments
from montage_assets.assets.clip_selections import Selection
from montage_assets.assets.common import GROUP, OWNERS, RETRIES, by_name, clip_source, data_root, mapping_key, task_tags
from montage_assets.assets.footage import Footage
from montage_assets.assets.proxies import Proxies
from montage_assets.assets.upscaled_shots import (
    UpscaledShot,
    UpscaleReport,
    in_words,
    plan_upscaling,
    upscale_shot,
    upscaled_shots,
)
from montage_assets.cloud.offload import Offload
from montage_assets.cluster.distribution import balance
from montage_assets.cluster.measured import Measurement, keep_measurements
from montage_assets.cluster.workers import encoding_workers
from montage_assets.data_root import DataRoot
from montage_assets.failures import plain_failures
from montage_assets.io import dump_record, read_record
from montage_assets.media import grading, render, stabilisation
from montage_assets.media.clip import Clip
from montage_assets.media.edit_list import EditList, Shot
from montage_assets.media.encoder_router import Need, Wish, encoder_asked, wish_of, with_plan
from montage_assets.media.encoders import ReadyEncoder, encode_flags, on_cpu
from montage_assets.media.errors import ClipChanged, FfmpegFailed, MediaError
from montage_assets.media.ffmpeg import Progress, ffmpeg_version
from montage_assets.media.fingerprint import clip_key, refuse_changed, result_key
from montage_assets.media.machine_encoders import MachineEncoders, Routing, RunMemory
from montage_assets.media.proxies import proxy_clip
from montage_assets.media.render import OutputFormat, RenderShot
from montage_assets.metadata import table
from montage_assets.partitions import montage_partitions
from montage_assets.progress import FrameCounter, planned_line
from montage_assets.settings import Settings
from montage_assets.spec import MontageSpec


@dataclass(frozen=True)
class ShotSource:
    """One shot to render: where its pixels come from (the clip, or its proxy for a preview)."""

    source: str
    """Data-root key or absolute path."""
    made_of: str
    """Key of the content, wherever it lies."""
    clip: Clip
    in_time_s: Fraction
    frames: int


@dataclass(frozen=True)
class SegmentTask:
    """One segment to encode."""

    index: int
    count: int
    key: str
    """Data-root key of the finished segment."""
    shots: list[ShotSource]
    format: OutputFormat
    encoder: str | None = None
    """The encoder that the user asked for where the run was planned; None leaves it to the worker."""
    film_s: float = 0.0
    """Length of the whole film in seconds."""
    lut: str | None = None
    """Data-root key of the LUT that its colours go through."""


@dataclass(frozen=True)
class SegmentBatch:
    """One step's work: segments that are encoded one after another."""

    tasks: list[SegmentTask]


@dataclass(frozen=True)
class SegmentPlan:
    """All segments of the film in order, encoded or not. `upscaling`: what was made larger where, and what was not.
    `grade`: the look or LUT that the user named."""

    segments: list[SegmentTask]
    upscaling: list[str] = field(default_factory=list)
    grade: str | None = None


@dataclass(frozen=True)
class SegmentReport:
    """One finished segment. `fallback`: which encoders failed before the one that made it, and why. `node`: where it
    was encoded, empty for the cloud. `stabilised`: how much each shot shook that was smoothed, as a share of its
    picture's height."""

    index: int
    key: str
    frames: int
    encoder: str
    codec_hash: str
    size_bytes: int
    seconds: float
    cpu_seconds: float
    fallback: str = ""
    node: str = ""
    stabilised: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SegmentReports:
    """The segments of one batch."""

    segments: list[SegmentReport]


@dataclass(frozen=True)
class Segments:
    """The finished segments of the film, in order."""

    segments: list[SegmentReport]
    encoded_now: int


@dg.op(
    out={"plan": dg.Out(SegmentPlan), "segments": dg.DynamicOut(SegmentBatch)},
    tags=task_tags("metadata"),
    retry_policy=RETRIES,
)
def plan_segments(
    context: dg.OpExecutionContext,
    footage: Footage,
    proxies: Proxies,
    clip_selections: Selection,
    upscaling: list[UpscaleReport],
) -> Iterator[dg.Output[SegmentPlan] | dg.DynamicOutput[SegmentBatch]]:
    """Group the shots; ask for the segments that are not encoded yet."""
    with plain_failures():
        root, settings = data_root(), Settings.from_environment()
        larger = upscaled_shots(root, footage, clip_selections)
        plan = segment_plan(footage, proxies, clip_selections, encoder_wish(settings), larger)
        plan = replace(plan, upscaling=in_words(larger, upscaling))
        missing = [task for task in plan.segments if not _is_done(root, task)]
        size = (clip_selections.edit.width, clip_selections.edit.height)
        batches = batches_of(missing, encoding_workers(settings, root, size, footage.spec.quality == "preview"))
    context.log.info(f"{len(plan.segments) - len(missing)} of {len(plan.segments)} segments are encoded already")
    context.log.info(planned_line(sum(_frames(task) for task in missing)))
    yield dg.Output(plan, "plan")
    for name, batch in batches.items():
        yield dg.DynamicOutput(batch, name, output_name="segments")


def batches_of(tasks: Sequence[SegmentTask], speeds: Sequence[float]) -> dict[str, SegmentBatch]:
    """The steps that encode, by their mapping keys: one for each worker, as much as it is fast; one for each segment
    when the workers' speeds are not known.

    The number in a batch's key is that of its worker, by which it finds its node, also where another gets nothing.
    """
    if not speeds:
        return {mapping_key("segment", task.index + 1): SegmentBatch([task]) for task in tasks}
    shares = balance([_frames(task) for task in tasks], speeds)
    return {
        mapping_key("batch", worker): SegmentBatch([tasks[item] for item in share])
        for worker, share in enumerate(shares, start=1)
        if share
    }


@dg.op(tags=task_tags("gpu_encoding"), retry_policy=RETRIES, pool="gpu_encoding")
def encode_segment(context: dg.OpExecutionContext, batch: SegmentBatch) -> SegmentReports:
    """Encode the segments of one batch, most often a single one; those that an attempt before finished stay."""
    with plain_failures():
        root = data_root()
        reports = [
            read_record(root, _report_key(task), SegmentReport)
            if _is_done(root, task)
            else _encode(root, task, context)
            for task in batch.tasks
        ]
    context.add_output_metadata(
        {
            "encoder": ", ".join(sorted({report.encoder for report in reports})),
            "fallback": "; ".join(report.fallback for report in reports if report.fallback) or "none",
            "frames": sum(report.frames for report in reports),
            "bytes": sum(report.size_bytes for report in reports),
        }
    )
    return SegmentReports(reports)


@dg.op(tags=task_tags("metadata"), retry_policy=RETRIES)
def collect_segments(context: dg.OpExecutionContext, plan: SegmentPlan, encoded: list[SegmentReports]) -> Segments:
    """All segments of the film in order, whoever encoded them and when."""
    with plain_failures():
        root = data_root()
        reports = [read_record(root, _report_key(task), SegmentReport) for task in plan.segments]
        done_now = [report for batch in encoded for report in batch.segments]
        keep_measurements(root, "encode", context.run_id, encoding_measured(done_now))
    context.add_output_metadata(
        {
            "segments": len(reports),
            "encoded now": len(done_now),
            "size (MB)": round(sum(report.size_bytes for report in reports) / 1e6, 2),
            "encoders": ", ".join(sorted({report.encoder for report in reports})),
            **({"upscaled shots": "; ".join(plan.upscaling)} if plan.upscaling else {}),
            **({"grade": plan.grade} if plan.grade else {}),
            **_stabilised(plan, reports),
            "segments that fell back to another encoder": sum(1 for report in reports if report.fallback),
            "segment table": _table(reports),
        }
    )
    return Segments(reports, len(done_now))


@dg.graph_asset(
    partitions_def=montage_partitions,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"ffmpeg"},
    description="Groups of consecutive shots, encoded as video-only segments that join without a re-encode.",
)
def rendered_segments(footage: Footage, proxies: Proxies, clip_selections: Selection) -> Segments:
    """Plan, encode and collect the segments of one montage."""
    larger = plan_upscaling(footage, clip_selections).map(upscale_shot).collect()
    plan, segments = plan_segments(footage, proxies, clip_selections, larger)
    return collect_segments(plan, segments.map(encode_segment).collect())  # type: ignore[no-any-return]


def output_format(edit: EditList, spec: MontageSpec) -> OutputFormat:
    """What every segment of this film is."""
    return OutputFormat(
        edit.width, edit.height, edit.fps, spec.codec, spec.quality, spec.framing, stabilize=spec.stabilize == "on"
    )


def encoder_wish(settings: Settings) -> Wish:
    """What this process's environment says about video encoders."""
    return wish_of(settings.gpu_encode, settings.hwaccel, settings.force_cpu, settings.output_codec)


def encoders_here(settings: Settings, fmt: OutputFormat, wish: Wish, turn: int = 0, run: str = "") -> Routing:
    """The encoders of this machine to try for a segment of that format, those that failed in this run left out."""
    need = Need(fmt.codec, fmt.width, fmt.height, fmt.quality)
    left_alone = RunMemory(settings.encoder_cache, run).left_alone()
    return _machine_encoders(settings).routing(need, wish, turn, left_alone)


def _machine_encoders(settings: Settings) -> MachineEncoders:
    return _machine_encoders_of(settings.encoder_cache, settings.driver_variables)


@functools.cache
def _machine_encoders_of(folder: Path | None, variables: tuple[tuple[str, str], ...]) -> MachineEncoders:
    """One for a process: where the folder cannot be written to, test encodes are remembered at least here."""
    return MachineEncoders(folder, variables)


def segment_plan(
    footage: Footage,
    proxies: Proxies,
    selection: Selection,
    wish: Wish,
    upscaled: Mapping[int, UpscaledShot] | None = None,
) -> SegmentPlan:
    """The film's segments. Depends on the edit and on the encoder asked for, if any; never on who renders it."""
    edit = selection.edit
    fmt = output_format(edit, footage.spec)
    encoder = encoder_asked(wish, fmt.codec)
    lut = footage.grade.lut if footage.grade else None
    clips = by_name(selection.clips)
    small = {proxy.name: proxy for proxy in proxies.proxies} if footage.spec.quality == "preview" else {}
    sources = []
    for number, shot in enumerate(edit.shots):
        clip = clips[shot.clip]
        larger = (upscaled or {}).get(number)
        if larger is not None:
            sources.append(ShotSource(larger.key, larger.key, larger.clip, Fraction(0), shot.frames))
        elif shot.clip in small:
            sources.append(_source(small[shot.clip].key, small[shot.clip].key, proxy_clip(clip), shot))
        else:
            sources.append(_source(clip_source(footage.folder, shot.clip), clip_key(clip), clip, shot))
    groups = render.plan_segments([_render_shot(source, "") for source in sources], edit.fps)
    tasks = []
    for index, group in enumerate(groups):
        shots = [sources[position] for position in group]
        key = _segment_key(shots, fmt, encoder, lut)
        tasks.append(SegmentTask(index, len(groups), key, shots, fmt, encoder, float(edit.frames / edit.fps), lut))
    return SegmentPlan(tasks, grade=footage.grade.name if footage.grade else None)


def _frames(task: SegmentTask) -> int:
    return sum(shot.frames for shot in task.shots)


def _source(source: str, made_of: str, clip: Clip, shot: Shot) -> ShotSource:
    # The shot's seconds are the rounded form of a whole number of the clip's ticks.
    ticks = round(Fraction(shot.source_start_s) / clip.time_base)
    return ShotSource(source, made_of, clip, ticks * clip.time_base, shot.frames)


def _render_shot(source: ShotSource, path: str) -> RenderShot:
    return RenderShot(Path(path), source.clip, source.in_time_s, source.frames)


def _segment_key(shots: Sequence[ShotSource], fmt: OutputFormat, encoder: str | None, lut: str | None) -> str:
    """Names codec and level by what the software encoder is told, and the encoder only if one was asked for.

    So segments are found again whichever machine encodes, and a run that asked for the CPU takes none that
    hardware made. Grade and smoothing count only where the user asked for them.
    """
    software = on_cpu(fmt.codec)
    asked: dict[str, object] = {} if encoder is None else {"encoder": encoder}
    if lut is not None:
        asked["grade"] = [lut, grading.ALGORITHM]
    if fmt.stabilize:
        asked["stabilize"] = stabilisation.ALGORITHM
    key = result_key(
        shots=[[shot.made_of, str(shot.in_time_s), shot.frames] for shot in shots],
        format=[fmt.width, fmt.height, str(fmt.fps), fmt.framing],
        flags=encode_flags(software, fmt.quality, fmt.fps, (fmt.width, fmt.height)),
        algorithm=render.ALGORITHM,
        ffmpeg=ffmpeg_version(),
        **asked,
    )
    return layout.result("segments", key, software.container.suffix)


def _report_key(task: SegmentTask) -> str:
    return str(PurePosixPath(task.key).with_suffix(".json"))


def _is_done(root: DataRoot, task: SegmentTask) -> bool:
    """Whether an earlier run finished this segment, and nobody deleted it since."""
    return root.exists(_report_key(task)) and root.exists(task.key)


def _encode(root: DataRoot, task: SegmentTask, context: dg.OpExecutionContext) -> SegmentReport:
    title = f"segment {task.index + 1} of {task.count}"
    shots = [_render_shot(shot, str(root.local_file(shot.source))) for shot in task.shots]
    fmt = replace(task.format, lut=root.local_file(task.lut)) if task.lut else task.format

    settings = Settings.from_environment()
    wish = with_plan(encoder_wish(settings), task.encoder)
    routing = encoders_here(settings, task.format, wish, task.index, context.run_id)
    memory = RunMemory(settings.encoder_cache, context.run_id)
    if routing.note:
        memory.tell_once("choice of encoders", routing.note, context.log.warning)

    def on_fallback(failed: ReadyEncoder, failure: FfmpegFailed) -> None:
        memory.note_failure(failed, failure, context.log.warning)

    offload = Offload(settings, root, context.run_id, context.log)
    counter = FrameCounter(context.log.info, title, _frames(task))

    def on_progress(progress: Progress) -> None:
        counter(progress.frames)

    with root.writing(task.key) as path:
        # An encoder that was asked for is not replaced by the cloud's.
        in_cloud = None if task.encoder else cloud_segments.encode(offload, shots, fmt, path, task.film_s)
        done = (in_cloud.value if in_cloud else None) or render.render_segment(
            shots,
            fmt,
            path,
            encoders=routing.encoders,
            name=title,
            on_progress=on_progress,
            on_fallback=on_fallback,
        )
        _refuse_changed(root, task)
    fallbacks = [f"cloud GPU: {in_cloud.reason}"] if in_cloud and in_cloud.fell_back else []
    report = SegmentReport(
        index=task.index,
        key=task.key,
        frames=done.frames,
        encoder=done.encoder,
        codec_hash=done.codec_hash,
        size_bytes=done.size_bytes,
        seconds=round(counter.seconds, 3),
        cpu_seconds=round(done.cpu_s, 3),
        fallback="; ".join(filter(None, [*fallbacks, done.fallback])),
        node="" if in_cloud and in_cloud.value else settings.node,
        stabilised=[round(shake, 6) for shake in done.stabilised],
    )
    # Written after the segment itself: its presence says that the segment is whole.
    root.write_bytes(_report_key(task), dump_record(report))
    return report


def _refuse_changed(root: DataRoot, task: SegmentTask) -> None:
    """Raises MediaError, with its name, for a clip that was replaced since it was analysed."""
    for clip, source in {shot.clip: shot.source for shot in task.shots if shot.made_of == clip_key(shot.clip)}.items():
        try:
            refuse_changed(root.local_file(source), clip)
        except ClipChanged as error:
            raise MediaError(f"{clip.name} {error}") from None


def encoding_measured(segments: Sequence[SegmentReport]) -> list[Measurement]:
    """How fast nodes encode, compared with each other within one run: formats and codecs differ between runs. What
    fell back tells of more than its encoder."""
    told = [done for done in segments if done.node and not done.fallback and done.seconds > 0]
    if len({done.node for done in told}) < 2:
        return []
    usual = sum(done.frames for done in told) / sum(done.seconds for done in told)
    return [Measurement(done.node, done.frames / usual, done.seconds) for done in told]


def _stabilised(plan: SegmentPlan, reports: Sequence[SegmentReport]) -> dict[str, str | float]:
    """How many shots were smoothed, and how much they shook."""
    if not any(task.format.stabilize for task in plan.segments):
        return {}
    shakes = [shake for report in reports for shake in report.stabilised]
    told: dict[str, str | float] = {
        "stabilised shots": f"{len(shakes)} of {sum(len(task.shots) for task in plan.segments)}"
    }
    if shakes:
        told["shake before (% of the height)"] = round(100 * sum(shakes) / len(shakes), 3)
    return told


def _table(reports: Sequence[SegmentReport]) -> dg.TableMetadataValue:
    return table(
        [
            {
                "segment": report.index + 1,
                "frames": report.frames,
                "node": report.node or "cloud",
                "encoder": report.encoder,
                "fallback": report.fallback,
                "seconds": report.seconds,
                "frames per second": round(report.frames / max(report.seconds, 1e-3), 1),
                "size (MB)": round(report.size_bytes / 1e6, 2),
            }
            for report in reports
        ]
    )
