"""scene_shards: per-frame scores of every clip, one step per shard; then the scenes, decided once.

A neural detector has a second round of shards between: what it is to look at follows from the scores of whole clips.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import dagster as dg

from montage_assets import layout
from montage_assets.assets import cloud_scenes, neural_steps, shard_steps
from montage_assets.assets.common import GROUP, OWNERS, RETRIES, data_root, mapping_key, task_tags
from montage_assets.assets.footage import Footage
from montage_assets.assets.neural_steps import LookReport, LookShard
from montage_assets.assets.proxies import Proxies, report_table
from montage_assets.assets.shard_steps import ShardPlan, ShardReport, ShardTask
from montage_assets.cloud.offload import Offload
from montage_assets.cloud.scene_detector import RemoteScenes
from montage_assets.data_root import DataRoot
from montage_assets.failures import plain_failures
from montage_assets.io import dump_record, read_record
from montage_assets.media.clip import Clip, LeftOut
from montage_assets.media.errors import MediaError, UnusableClip
from montage_assets.media.fingerprint import result_key
from montage_assets.media.frame_scores import FrameScores
from montage_assets.media.neural_scenes import NEURAL_DETECTORS, NeuralName
from montage_assets.media.scenes import SceneList, detect_scenes
from montage_assets.media.shards import ClipRange
from montage_assets.metadata import table
from montage_assets.partitions import montage_partitions
from montage_assets.progress import planned_line, still_working
from montage_assets.settings import Settings

ALGORITHM = 1
"""Part of every scene list's key."""


_ROWS_SHOWN = 500


@dataclass(frozen=True)
class Scenes:
    """The scenes of every usable clip. `clips` start where their first decoded frame does."""

    clips: list[Clip]
    scenes: list[SceneList]
    left_out: list[LeftOut]
    reports: list[ShardReport]


@dg.op(
    out={"plan": dg.Out(ShardPlan), "shards": dg.DynamicOut(ShardTask)},
    tags=task_tags("metadata"),
    retry_policy=RETRIES,
)
def plan_scene_shards(
    context: dg.OpExecutionContext, footage: Footage, proxies: Proxies
) -> Iterator[dg.Output[ShardPlan] | dg.DynamicOutput[ShardTask]]:
    """Find the ranges without scores and share them among the workers."""
    with plain_failures():
        root = data_root()
        unusable = {entry.clip for entry in proxies.left_out}
        clips = [
            clip
            for clip in footage.clips
            if clip.name not in unusable and not shard_steps.is_analysed(root, clip, footage.spec.detector)
        ]
        settings = Settings.from_environment()
        plan, shards = shard_steps.plan_shards(
            root, footage.folder, footage.clips, clips, settings, with_proxy=False, detector=footage.spec.detector
        )
    todo = sum(len(shard.tasks) for shard in shards)
    context.log.info(f"{len(footage.clips) - len(clips)} clips are scored already; {todo} parts are to do")
    context.log.info(planned_line(sum(task.part.frames_estimate for shard in shards for task in shard.tasks)))
    yield dg.Output(plan, "plan")
    for shard in shards:
        yield dg.DynamicOutput(shard, mapping_key("shard", shard.index + 1), output_name="shards")


@dg.op(tags=task_tags("cpu_scene_detection"), retry_policy=RETRIES)
def score_shard(context: dg.OpExecutionContext, shard: ShardTask) -> ShardReport:
    """Decode the ranges of one shard once; write the scores of their frames."""
    with plain_failures():
        return shard_steps.do_shard(data_root(), shard, context.log)


@dg.op(out=dg.DynamicOut(LookShard), tags=task_tags("metadata"), retry_policy=RETRIES)
def plan_looks(
    context: dg.OpExecutionContext,
    footage: Footage,
    proxies: Proxies,
    plan: ShardPlan,
    reports: list[ShardReport],
) -> Iterator[dg.DynamicOutput[LookShard]]:
    """Share what a neural detector is to look at among the workers; nothing for the others."""
    detector = _neural(footage)
    if detector is None:
        return
    with plain_failures(), still_working(context.log.info, "finding what is to be looked at"):
        root, settings = data_root(), Settings.from_environment()
        done = _complete(root, footage, plan, reports, context.log)
        clips = list(_to_look_at(root, footage, proxies, plan, done, context.log))
        speeds = shard_steps.speeds_of_workers(root, footage.clips, settings)
        shards = neural_steps.plan_looks(root, detector, clips, speeds)
    for shard in shards:
        yield dg.DynamicOutput(shard, mapping_key("shard", shard.index + 1))


@dg.op(tags=task_tags("cpu_scene_detection"), retry_policy=RETRIES)
def look_at_windows(context: dg.OpExecutionContext, shard: LookShard) -> LookReport:
    """Show the neural network the windows of one shard; write its answers."""
    with plain_failures(), still_working(context.log.info, "looking for cuts"):
        root, settings = data_root(), Settings.from_environment()
        in_cloud = cloud_scenes.look(Offload(settings, root, context.run_id, context.log), root, shard)
        if in_cloud.value is not None:
            return in_cloud.value
        report = neural_steps.do_looks(root, shard, neural_steps.compute_of(settings), context.log)
        return replace(report, notes=[*report.notes, f"cloud GPU: {in_cloud.reason}"]) if in_cloud.fell_back else report


@dg.op(tags=task_tags("metadata"), retry_policy=RETRIES)
def merge_scenes(
    context: dg.OpExecutionContext,
    footage: Footage,
    proxies: Proxies,
    plan: ShardPlan,
    reports: list[ShardReport],
    looks: list[LookReport],
) -> Scenes:
    """Put the scores of every clip together and run the detector once over them."""
    with plain_failures(), still_working(context.log.info, "deciding the scenes"):
        offload = Offload(Settings.from_environment(), data_root(), context.run_id, context.log)
        reports = _complete(data_root(), footage, plan, reports, context.log)
        result, where = _merge(context, footage, proxies, plan, reports, offload)
        shard_steps.tell_fallbacks(reports, context.log)
        shard_steps.keep_speeds(data_root(), context.run_id, [*proxies.reports, *reports])
    context.add_output_metadata(
        {
            "scenes": sum(len(scenes.starts) for scenes in result.scenes),
            "cuts": sum(len(scenes.cuts) for scenes in result.scenes),
            "detector": footage.spec.detector,
            "left out": len(result.left_out),
            "shards": report_table(reports),
            **_looks_metadata(looks),
            "scene table": _scene_table(result.scenes),
            **offload.metadata(where),
        }
    )
    return result


@dg.graph_asset(
    partitions_def=montage_partitions,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"ffmpeg", "opencv"},
    description="Every frame of every clip scored in shards; scenes decided once by PySceneDetect over all scores.",
)
def scene_shards(footage: Footage, proxies: Proxies) -> Scenes:
    """Plan, score and merge the scene shards of one montage."""
    plan, shards = plan_scene_shards(footage, proxies)
    reports = shards.map(score_shard).collect()
    looks = plan_looks(footage, proxies, plan, reports).map(look_at_windows).collect()
    return merge_scenes(footage, proxies, plan, reports, looks)  # type: ignore[no-any-return]


def _complete(
    root: DataRoot, footage: Footage, plan: ShardPlan, reports: list[ShardReport], log: Any
) -> list[ShardReport]:
    detector = footage.spec.detector
    return shard_steps.complete(root, footage.folder, plan, reports, log, with_proxy=False, detector=detector)


def _neural(footage: Footage) -> NeuralName | None:
    return next((name for name in NEURAL_DETECTORS if name == footage.spec.detector), None)


def _to_look_at(
    root: DataRoot,
    footage: Footage,
    proxies: Proxies,
    plan: ShardPlan,
    reports: Sequence[ShardReport],
    log: Any,
) -> Iterator[tuple[Clip, FrameScores]]:
    """The clips whose scenes are not decided, with their scores; their small pictures are put together as well."""
    left_out = {entry.clip for entry in [*proxies.left_out, *shard_steps.failures_in(reports)]}
    for clip in footage.clips:
        if clip.name in left_out or _scenes_are_stored(root, footage, clip):
            continue
        ranges = plan.ranges.get(clip.name, [])
        try:
            scores = shard_steps.merged_scores(root, footage.folder, clip, ranges, log)
        except UnusableClip:
            continue  # the merge says so
        shard_steps.merged_small_frames(root, footage.folder, clip, ranges, scores, log)
        shard_steps.remove_parts(root, clip, ranges)
        yield clip, scores


def _scenes_are_stored(root: DataRoot, footage: Footage, clip: Clip) -> bool:
    return root.exists(shard_steps.scores_key(clip)) and root.exists(_scenes_key(footage, clip, "here"))


def _looks_metadata(looks: Sequence[LookReport]) -> dict[str, Any]:
    if not looks:
        return {}
    return {
        "frames shown to the network": sum(look.frames for look in looks),
        "network ran on": ", ".join(sorted({look.device for look in looks})),
        "network's fallbacks": "; ".join(sorted({note for look in looks for note in look.notes})) or "none",
    }


def _merge(
    context: dg.OpExecutionContext,
    footage: Footage,
    proxies: Proxies,
    plan: ShardPlan,
    reports: Sequence[ShardReport],
    offload: Offload,
) -> tuple[Scenes, str]:
    """The scenes, and where they were decided."""
    root = data_root()
    left_out = {entry.clip: entry for entry in [*proxies.left_out, *shard_steps.failures_in(reports)]}
    clips: list[Clip] = []
    found: list[SceneList] = []
    usable = [clip for clip in footage.clips if clip.name not in left_out]
    # The cloud's detectors are PySceneDetect's.
    for_cloud = _undecided(root, footage, usable, offload) if _neural(footage) is None else []
    in_cloud = cloud_scenes.find(offload, root, footage, proxies, for_cloud)
    for clip in usable:
        try:
            ranges, remote = plan.ranges.get(clip.name, []), in_cloud.scenes.get(clip.name)
            scenes = _scenes_of(root, footage, clip, ranges, context.log, remote, offload)
        except UnusableClip as error:
            context.log.warning(f"{clip.name} is left out: it {error}")
            left_out[clip.name] = LeftOut(clip.name, str(error))
        else:
            clips.append(_as_decoded(clip, scenes))
            found.append(scenes)
    if not found:
        raise MediaError(f"no clip of {footage.montage} can be decoded: " + _reasons(left_out.values()))
    all_left_out = sorted(left_out.values(), key=lambda entry: entry.clip)
    return Scenes(clips, found, all_left_out, list(reports)), in_cloud.told


def _undecided(root: DataRoot, footage: Footage, clips: Sequence[Clip], offload: Offload) -> list[Clip]:
    return [clip for clip in clips if _stored_scenes(root, footage, clip, offload) is None]


def _scenes_of(
    root: DataRoot,
    footage: Footage,
    clip: Clip,
    parts: Sequence[ClipRange],
    log: Any,
    remote: RemoteScenes | None,
    offload: Offload,
) -> SceneList:
    """The stored scenes of the clip's content, else the cloud's or new ones of its scores. Raises UnusableClip.

    Stored because the detector is the one part of a run without new footage that loads OpenCV and PySceneDetect.
    """
    stored = _stored_scenes(root, footage, clip, offload)
    if stored is not None:
        return replace(read_record(root, stored, SceneList), clip=clip.name)
    scores = shard_steps.merged_scores(root, footage.folder, clip, parts, log)
    shard_steps.refuse_mostly_lost(clip, scores)
    scenes = cloud_scenes.fitting(remote, scores, clip, log)
    place = "here" if scenes is None else "cloud"
    if scenes is None:
        scenes = _decided_here(root, footage, clip, scores)
    root.write_bytes(_scenes_key(footage, clip, place), dump_record(scenes))
    return scenes


def _decided_here(root: DataRoot, footage: Footage, clip: Clip, scores: FrameScores) -> SceneList:
    neural, threshold = _neural(footage), footage.spec.threshold
    if neural is not None:
        return neural_steps.decided_scenes(root, neural, clip, scores, threshold)
    return detect_scenes(clip, scores, footage.spec.detector, threshold)  # type: ignore[arg-type]


def _stored_scenes(root: DataRoot, footage: Footage, clip: Clip, offload: Offload) -> str | None:
    """The key of scenes that an earlier run decided; the cloud's count only where the cloud is welcome."""
    if not root.exists(shard_steps.scores_key(clip)):
        return None
    places = ("here", "cloud") if offload.accepts("scenes") else ("here",)
    keys = (_scenes_key(footage, clip, place) for place in places)
    return next((key for key in keys if root.exists(key)), None)


def _scenes_key(footage: Footage, clip: Clip, place: str) -> str:
    # The cloud sees a compressed copy: a cut of its may fall a frame beside.
    elsewhere: dict[str, Any] = {} if place == "here" else {"place": place}
    if _neural(footage) is not None:
        elsewhere |= neural_steps.answers_version()
    key = result_key(
        scores=shard_steps.scores_key(clip),
        detector=footage.spec.detector,
        threshold=footage.spec.threshold,
        algorithm=ALGORITHM,
        pyscenedetect=version("scenedetect-headless"),
        **elsewhere,
    )
    return layout.result("scenes", key, ".json")


def _as_decoded(clip: Clip, scenes: SceneList) -> Clip:
    """The clip with its zero at the first frame that really comes out of the decoder, and all its frames counted.

    Selection counts from that frame, so rendering must: what a container announces before it (frames of an open
    GOP whose start was cut off, say) never becomes a picture.
    """
    late_s = float((scenes.first_pts - clip.first_pts) * clip.time_base)
    return replace(clip, first_pts=scenes.first_pts, duration_s=clip.duration_s - late_s, frames_estimate=scenes.frames)


def _reasons(left_out: Iterable[LeftOut]) -> str:
    return "; ".join(f"{entry.clip} {entry.reason}" for entry in left_out)


def _scene_table(scenes: Sequence[SceneList]) -> dg.TableMetadataValue:
    rows = [
        {"clip": found.clip, "scene": number, "first frame": frame, "start (s)": start_s}
        for found in scenes
        for number, (frame, start_s) in enumerate(zip(found.starts, [0.0, *found.cuts_s], strict=True), start=1)
    ]
    return table(rows[:_ROWS_SHOWN])
