"""The plan and the work that `proxies` and `scene_shards` share: ranges of clips, scored once each.

Belongs here: which ranges are still to do, their bundling into one shard per worker, and what a shard's step
does. Results are content-addressed, so a range is never done twice, whoever did it. Never imports Dagster: a
shard may also be a pod of a plain Kubernetes job (`scene_job`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from montage_assets import layout
from montage_assets.assets.decoding import ON_THE_CPU, decoded
from montage_assets.assets.shard_sizes import range_counts, workers_worth
from montage_assets.cluster.distribution import balance
from montage_assets.cluster.measured import Measurement, keep_measurements
from montage_assets.cluster.workers import analysis_workers
from montage_assets.data_root import DataRoot
from montage_assets.layout import clip_source
from montage_assets.media import frame_scores, proxies, small_frames
from montage_assets.media.clip import Clip, LeftOut
from montage_assets.media.errors import FfmpegFailed, UnusableClip
from montage_assets.media.ffmpeg import ffmpeg_version
from montage_assets.media.fingerprint import clip_key, refuse_changed, result_key
from montage_assets.media.frame_scores import FrameScores
from montage_assets.media.hardware_decode import HardwareDecoder
from montage_assets.media.keyframes import keyframe_finder
from montage_assets.media.neural_scenes import NEURAL_DETECTORS
from montage_assets.media.shards import (
    ClipRange,
    cut_into_ranges,
    decode_cost,
)
from montage_assets.media.small_frames import SmallFrameRecorder, SmallFrames
from montage_assets.progress import FrameCounter
from montage_assets.settings import Settings


@dataclass(frozen=True)
class RangeTask:
    """One range to decode, and whether a proxy, or the pictures for a neural detector, are made on the way."""

    clip: Clip
    part: ClipRange
    with_proxy: bool
    with_small_frames: bool = False


@dataclass(frozen=True)
class ShardTask:
    """One step's work."""

    folder: str
    index: int
    count: int
    tasks: list[RangeTask]


@dataclass(frozen=True)
class ShardPlan:
    """How the clips that are not done yet were cut; handed to the merge, which must not guess it anew."""

    clips: list[Clip]
    ranges: dict[str, list[ClipRange]]


@dataclass(frozen=True)
class RangeReport:
    """How one range went; `failure` is set when its clip cannot be used. `decoder`: what decoded it, in words."""

    clip: str
    part: int
    parts: int
    frames: int
    seconds: float
    cpu_seconds: float
    failure: str | None = None
    node: str = ""
    cost: float = 0.0
    decoder: str = ON_THE_CPU


@dataclass(frozen=True)
class ShardReport:
    """How one shard's step went."""

    index: int
    ranges: list[RangeReport]


def scores_key(clip: Clip) -> str:
    """Where the scores of a whole clip lie."""
    return layout.result("scores", _analysis_key(clip), ".npz")


def proxy_key(clip: Clip) -> str:
    """Where the proxy of a whole clip lies."""
    return layout.result("proxies", _proxy_result_key(clip), ".mp4")


def small_frames_key(clip: Clip) -> str:
    """Where the small pictures of a whole clip lie."""
    return layout.result("small_frames", _small_frames_result_key(clip), ".npz")


def range_small_frames_key(clip: Clip, part: ClipRange) -> str:
    """Where the small pictures of one range lie."""
    return layout.result("small_frame_parts", _range_key(_small_frames_result_key(clip), part), ".npz")


def is_analysed(root: DataRoot, clip: Clip, detector: str) -> bool:
    """Whether all that deciding a clip's scenes needs of its decoding is there."""
    pictures = detector not in NEURAL_DETECTORS or root.exists(small_frames_key(clip))
    return pictures and root.exists(scores_key(clip))


def range_scores_key(clip: Clip, part: ClipRange) -> str:
    """Where the scores of one range lie."""
    return layout.result("score_parts", _range_key(_analysis_key(clip), part), ".npz")


def range_proxy_key(clip: Clip, part: ClipRange) -> str:
    """Where the proxy of one range lies."""
    return layout.result("proxy_parts", _range_key(_proxy_result_key(clip), part), ".nut")


def speeds_of_workers(root: DataRoot, clips: Sequence[Clip], settings: Settings) -> list[float]:
    """One relative speed per shard: as many as set, else one for every 11 minutes of 1080p, at most one per worker."""
    largest = max(((clip.width, clip.height) for clip in clips), key=lambda size: size[0] * size[1])
    return analysis_workers(settings, root, largest, workers_worth(clips))


def plan_shards(
    root: DataRoot,
    folder: str,
    footage: Sequence[Clip],
    missing: Sequence[Clip],
    settings: Settings,
    *,
    with_proxy: bool,
    detector: str,
) -> tuple[ShardPlan, list[ShardTask]]:
    """Cut the missing clips into ranges and bundle those still to do into one shard per worker, as large as it is
    fast. A shard's index is its worker's, also where another worker gets none: by it the shard finds its node.

    The borders depend on all the footage, not on what is missing: a run that goes on where another stopped must
    find its ranges again.
    """
    speeds = speeds_of_workers(root, footage, settings)
    counts = range_counts(footage, speeds)
    ranges = {clip.name: ranges_of(root, folder, clip, counts[clip.name]) for clip in missing}
    pictures = detector in NEURAL_DETECTORS
    tasks = [RangeTask(clip, part, with_proxy, pictures) for clip in missing for part in ranges[clip.name]]
    undone = [task for task in tasks if not is_done(root, task)]
    shares = balance([task.part.cost for task in undone], speeds)
    shards = [
        ShardTask(folder, worker, len(speeds), [undone[item] for item in share])
        for worker, share in enumerate(shares)
        if share
    ]
    return ShardPlan(list(missing), ranges), shards


def is_done(root: DataRoot, task: RangeTask) -> bool:
    """Whether an earlier run finished this range."""
    if not root.exists(range_scores_key(task.clip, task.part)):
        return False
    if task.with_small_frames and not root.exists(range_small_frames_key(task.clip, task.part)):
        return False
    return not task.with_proxy or root.exists(range_proxy_key(task.clip, task.part))


def do_shard(root: DataRoot, shard: ShardTask, log: Any) -> ShardReport:
    """Decode every range of a shard and store what it gives. A broken clip is reported, not raised."""
    return ShardReport(shard.index, [_do_range(root, shard.folder, task, log) for task in shard.tasks])


def complete(
    root: DataRoot,
    folder: str,
    plan: ShardPlan,
    reports: Sequence[ShardReport],
    log: Any,
    *,
    with_proxy: bool,
    detector: str,
) -> list[ShardReport]:
    """The reports of the shards, after doing here what the plan wants and no shard has done.

    That is nothing, unless a run was carried on by two processes that planned differently: then shards of the one plan
    meet the merge of the other.
    """
    failed = {entry.clip for entry in failures_in(reports)}
    pictures = detector in NEURAL_DETECTORS
    undone = [
        task
        for clip in plan.clips
        if clip.name not in failed and not _is_merged(root, clip, with_proxy, detector)
        for task in (RangeTask(clip, part, with_proxy, pictures) for part in plan.ranges[clip.name])
        if not is_done(root, task)
    ]
    if not undone:
        return list(reports)
    log.warning(f"{len(undone)} parts of the plan were done by no shard; they are done now")
    return [*reports, do_shard(root, ShardTask(folder, len(reports), len(reports) + 1, undone), log)]


def remove_parts(root: DataRoot, clip: Clip, parts: Sequence[ClipRange]) -> None:
    """Remove what was put together and is as large again; the scores of the parts are small and stay."""
    has_proxy, has_pictures = root.exists(proxy_key(clip)), root.exists(small_frames_key(clip))
    for part in parts:
        if has_proxy:
            root.remove(range_proxy_key(clip, part))
        if has_pictures:
            root.remove(range_small_frames_key(clip, part))


def _is_merged(root: DataRoot, clip: Clip, with_proxy: bool, detector: str) -> bool:
    return is_analysed(root, clip, detector) and (not with_proxy or root.exists(proxy_key(clip)))


def tell_fallbacks(reports: Sequence[ShardReport], log: Any) -> None:
    """Log, once for each GPU, which clips the CPU decoded in its place, and the reason for the first of them."""
    fell_back: dict[str, list[RangeReport]] = {}
    for part in (part for report in reports for part in report.ranges):
        if part.decoder.startswith(f"{ON_THE_CPU}, "):
            fell_back.setdefault(part.decoder.partition(" failed: ")[0], []).append(part)
    for parts in fell_back.values():
        clips = ", ".join(sorted({part.clip for part in parts}))
        log.warning(f"{clips}: decoded by the {parts[0].decoder}")


def keep_speeds(root: DataRoot, run_id: str, reports: Sequence[ShardReport]) -> None:
    """Keep what the shards of a run tell about the nodes' speeds."""
    rows = [
        Measurement(part.node, part.cost, part.seconds)
        for report in reports
        for part in report.ranges
        if part.failure is None
    ]
    keep_measurements(root, "analyze", run_id, rows)


def merged_scores(root: DataRoot, folder: str, clip: Clip, parts: Sequence[ClipRange], log: Any) -> FrameScores:
    """The scores of a whole clip: stored ones, else those of its ranges put together.

    Where ranges do not fit together (a file whose keyframes are none), the clip is scored again in one piece.
    Raises UnusableClip.
    """
    key = scores_key(clip)
    if root.exists(key):
        return frame_scores.load_scores(root.read_bytes(key))
    pieces = [frame_scores.load_scores(root.read_bytes(range_scores_key(clip, part))) for part in parts]
    try:
        scores = frame_scores.merge_scores(pieces)
    except frame_scores.ShardsDoNotFit as error:
        log.warning(f"{clip.name}: scored again in one piece, since its parts do not fit together: {error}")
        whole = whole_range(clip)
        path = root.local_file(clip_source(folder, clip.name))
        scores = frame_scores.score_range(path, clip, whole, FrameCounter(log.info, clip.name, clip.frames_estimate))
    root.write_bytes(key, frame_scores.dump_scores(scores))
    return scores


def merged_small_frames(
    root: DataRoot, folder: str, clip: Clip, parts: Sequence[ClipRange], scores: FrameScores, log: Any
) -> SmallFrames:
    """The small pictures of the very frames that were scored: stored ones, else those of the clip's ranges."""
    key = small_frames_key(clip)
    if root.exists(key):
        return small_frames.load_small_frames(root.read_bytes(key))
    keys = [range_small_frames_key(clip, part) for part in parts]
    pieces = [small_frames.load_small_frames(root.read_bytes(part)) for part in keys if root.exists(part)]
    pictures = small_frames.merge_small_frames(pieces) if pieces else None
    if pictures is None or not np.array_equal(pictures.pts, scores.pts):
        log.warning(f"{clip.name}: decoded once more for the neural detector, since its parts do not fit together")
        recorder = SmallFrameRecorder(whole_range(clip))
        path = root.local_file(clip_source(folder, clip.name))
        frame_scores.score_range(path, clip, whole_range(clip), watch=recorder.add)
        pictures = recorder.recorded()
    root.write_bytes(key, small_frames.dump_small_frames(pictures))
    return pictures


def refuse_mostly_lost(clip: Clip, scores: FrameScores) -> None:
    """A clip that loses a tenth of its frames in decoding is damaged in more places than those. Raises UnusableClip."""
    length_s = clip.duration_s - float((int(scores.pts[0]) - clip.first_pts) * clip.time_base)
    expected = min(clip.frames_estimate, round(length_s * clip.fps))
    if scores.frames < 0.9 * expected - 2:
        raise UnusableClip(f"is damaged: only {scores.frames} of its {expected} frames can be decoded; copy it again")


def ranges_of(root: DataRoot, folder: str, clip: Clip, count: int) -> list[ClipRange]:
    """At most `count` ranges of like length that cover the clip once; see `media.shards`."""
    if count == 1:
        return [whole_range(clip)]
    with keyframe_finder(root.local_file(clip_source(folder, clip.name)), clip) as keyframe_before:
        return cut_into_ranges(clip, count, keyframe_before)


def whole_range(clip: Clip) -> ClipRange:
    """A clip as one range."""
    return ClipRange(clip.name, 0, 1, None, None, decode_cost(clip), clip.frames_estimate)


def failures_in(reports: Sequence[ShardReport]) -> list[LeftOut]:
    """The clips that could not be decoded, one entry each."""
    found = {part.clip: part.failure for report in reports for part in report.ranges if part.failure}
    return [LeftOut(clip, reason) for clip, reason in sorted(found.items()) if reason]


def _analysis_key(clip: Clip) -> str:
    return result_key(clip=clip_key(clip), algorithm=frame_scores.ALGORITHM, ffmpeg=ffmpeg_version())


def _proxy_result_key(clip: Clip) -> str:
    return result_key(clip=clip_key(clip), algorithm=proxies.ALGORITHM, ffmpeg=ffmpeg_version())


def _small_frames_result_key(clip: Clip) -> str:
    return result_key(analysis=_analysis_key(clip), algorithm=small_frames.ALGORITHM)


def _range_key(whole: str, part: ClipRange) -> str:
    return result_key(whole=whole, after=part.after_pts, until=part.until_pts)


def _do_range(root: DataRoot, folder: str, task: RangeTask, log: Any) -> RangeReport:
    counters: list[FrameCounter] = []
    cpu_before = _cpu_seconds()
    settings = Settings.from_environment()
    failure = None
    frames = 0
    decoder = ON_THE_CPU
    try:
        path = root.local_file(clip_source(folder, task.clip.name))

        def work(hardware: HardwareDecoder | None) -> FrameScores:
            counters.append(FrameCounter(log.info, task.part.title, task.part.frames_estimate))
            return _score(root, path, task, counters[-1], hardware)

        scores, decoder = decoded(path, task.clip, settings, work)
        frames = scores.frames
    except UnusableClip as error:
        failure = str(error)
    except FfmpegFailed as error:
        if error.from_outside:
            raise
        failure = f"cannot be decoded ({error})"
    if failure:
        log.warning(f"{task.clip.name} is left out: it {failure}")
    return RangeReport(
        clip=task.clip.name,
        part=task.part.index,
        parts=task.part.count,
        frames=frames,
        seconds=round(counters[-1].seconds, 3) if counters else 0.0,
        cpu_seconds=round(_cpu_seconds() - cpu_before, 3),
        failure=failure,
        node=settings.node,
        cost=task.part.cost,
        decoder=decoder,
    )


def _score(
    root: DataRoot, path: Path, task: RangeTask, counter: FrameCounter, decoder: HardwareDecoder | None
) -> FrameScores:
    recorder = SmallFrameRecorder(task.part) if task.with_small_frames else None
    watch = recorder.add if recorder else None
    if task.with_proxy:
        with root.writing(range_proxy_key(task.clip, task.part)) as out:
            scores = proxies.make_proxy_part(path, task.clip, task.part, out, counter, watch, decoder)
            refuse_changed(path, task.clip)
    else:
        scores = frame_scores.score_range(path, task.clip, task.part, counter, watch, decoder)
        refuse_changed(path, task.clip)
    if recorder is not None:
        pictures = small_frames.dump_small_frames(recorder.recorded())
        root.write_bytes(range_small_frames_key(task.clip, task.part), pictures)
    root.write_bytes(range_scores_key(task.clip, task.part), frame_scores.dump_scores(scores))
    return scores


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
