"""proxies: small, frame-exact copies of the clips that are costly to decode, one step per shard.

Making a proxy decodes its clip, so the same step writes the clip's frame scores too, and `scene_shards`
finds them done.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from montage_assets.assets import shard_steps
from montage_assets.assets.common import GROUP, OWNERS, RETRIES, clip_source, data_root, mapping_key, task_tags
from montage_assets.assets.footage import Footage
from montage_assets.assets.shard_steps import ShardPlan, ShardReport, ShardTask
from montage_assets.data_root import DataRoot
from montage_assets.failures import plain_failures
from montage_assets.media import proxies as proxy_media
from montage_assets.media.clip import Clip, LeftOut
from montage_assets.media.errors import MediaError, UnusableClip
from montage_assets.media.neural_scenes import NEURAL_DETECTORS
from montage_assets.media.shards import ClipRange
from montage_assets.metadata import table
from montage_assets.partitions import montage_partitions
from montage_assets.progress import planned_line, still_working
from montage_assets.settings import Settings


@dataclass(frozen=True)
class Proxy:
    """The proxy of one clip and its data-root key."""

    name: str
    key: str


@dataclass(frozen=True)
class Proxies:
    """The proxies of one montage; clips without one are cheap enough to decode."""

    proxies: list[Proxy]
    left_out: list[LeftOut]
    reports: list[ShardReport]


@dg.op(
    out={"plan": dg.Out(ShardPlan), "shards": dg.DynamicOut(ShardTask)},
    tags=task_tags("metadata"),
    retry_policy=RETRIES,
)
def plan_proxies(
    context: dg.OpExecutionContext, footage: Footage
) -> Iterator[dg.Output[ShardPlan] | dg.DynamicOutput[ShardTask]]:
    """Choose the clips that want a proxy and have none, and share their ranges among the workers."""
    with plain_failures():
        root, detector = data_root(), footage.spec.detector
        clips = [
            clip
            for clip in footage.clips
            if proxy_media.wants_proxy(clip)
            and not (root.exists(shard_steps.proxy_key(clip)) and root.exists(shard_steps.scores_key(clip)))
        ]
        settings = Settings.from_environment()
        plan, shards = shard_steps.plan_shards(
            root, footage.folder, footage.clips, clips, settings, with_proxy=True, detector=detector
        )
    context.log.info(planned_line(sum(task.part.frames_estimate for shard in shards for task in shard.tasks)))
    yield dg.Output(plan, "plan")
    for shard in shards:
        yield dg.DynamicOutput(shard, mapping_key("shard", shard.index + 1), output_name="shards")


@dg.op(tags=task_tags("proxy_generation"), retry_policy=RETRIES)
def make_proxies(context: dg.OpExecutionContext, shard: ShardTask) -> ShardReport:
    """Decode the ranges of one shard once; write their proxies and scores."""
    with plain_failures():
        return shard_steps.do_shard(data_root(), shard, context.log)


@dg.op(tags=task_tags("metadata"), retry_policy=RETRIES)
def join_proxies(
    context: dg.OpExecutionContext, footage: Footage, plan: ShardPlan, reports: list[ShardReport]
) -> Proxies:
    """Put the ranges of each proxy, and of its scores, together."""
    with plain_failures(), still_working(context.log.info, "joining the proxies"):
        result = _join(context, footage, plan, reports)
    made = sum(part.frames for report in reports for part in report.ranges)
    context.add_output_metadata(
        {
            "proxies": len(result.proxies),
            "frames made now": made,
            "clips cheap enough without": len(footage.clips) - len(result.proxies) - len(result.left_out),
            "shards": report_table(reports),
        }
    )
    return result


@dg.graph_asset(
    partitions_def=montage_partitions,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"ffmpeg"},
    description="Small, frame-exact copies of clips that are costly to decode; their frame scores come with them.",
)
def proxies(footage: Footage) -> Proxies:
    """Plan, make and join the proxies of one montage."""
    plan, shards = plan_proxies(footage)
    return join_proxies(footage, plan, shards.map(make_proxies).collect())  # type: ignore[no-any-return]


def report_table(reports: list[ShardReport]) -> dg.TableMetadataValue:
    """Frames, seconds and speed of every range, for the UI."""
    return table(
        [
            {
                "shard": report.index + 1,
                "clip": f"{part.clip} ({part.part + 1}/{part.parts})",
                "frames": part.frames,
                "decoder": part.decoder,
                "seconds": round(part.seconds, 2),
                "frames per second": round(part.frames / max(part.seconds, 1e-3), 1),
                "CPU-seconds": round(part.cpu_seconds, 2),
            }
            for report in reports
            for part in report.ranges
        ]
    )


def _join(context: dg.OpExecutionContext, footage: Footage, plan: ShardPlan, reports: list[ShardReport]) -> Proxies:
    root = data_root()
    detector = footage.spec.detector
    reports = shard_steps.complete(root, footage.folder, plan, reports, context.log, with_proxy=True, detector=detector)
    shard_steps.tell_fallbacks(reports, context.log)
    left_out = {entry.clip: entry for entry in shard_steps.failures_in(reports)}
    for clip in plan.clips:
        if clip.name in left_out:
            continue
        try:
            ranges = plan.ranges[clip.name]
            scores = shard_steps.merged_scores(root, footage.folder, clip, ranges, context.log)
            if detector in NEURAL_DETECTORS:
                shard_steps.merged_small_frames(root, footage.folder, clip, ranges, scores, context.log)
        except UnusableClip as error:
            context.log.warning(f"{clip.name} is left out: it {error}")
            left_out[clip.name] = LeftOut(clip.name, str(error))
        else:
            if not root.exists(shard_steps.proxy_key(clip)):
                _join_one(root, footage.folder, clip, ranges, scores.frames, context.log)
            shard_steps.remove_parts(root, clip, ranges)
    made = [clip for clip in footage.clips if proxy_media.wants_proxy(clip) and clip.name not in left_out]
    return Proxies(
        proxies=[Proxy(clip.name, shard_steps.proxy_key(clip)) for clip in made],
        left_out=sorted(left_out.values(), key=lambda entry: entry.clip),
        reports=reports,
    )


def _join_one(root: DataRoot, folder: str, clip: Clip, ranges: Sequence[ClipRange], frames: int, log: Any) -> None:
    """Put the parts of one proxy together; where they do not give the clip's frames, make it in one piece."""
    with root.writing(shard_steps.proxy_key(clip)) as out:
        parts = [root.local_file(shard_steps.range_proxy_key(clip, part)) for part in ranges]
        if proxy_media.join_proxy(parts, clip, out) == frames:
            return
        log.warning(f"{clip.name}: its proxy is made again in one piece, since its parts do not fit together")
        whole = out.with_suffix(".nut")
        try:
            source = root.local_file(clip_source(folder, clip.name))
            proxy_media.make_proxy_part(source, clip, shard_steps.whole_range(clip), whole)
            if proxy_media.join_proxy([whole], clip, out) != frames:
                raise MediaError(f"the proxy of {clip.name} lacks frames of its clip; take the clip out and run again")
        finally:
            whole.unlink(missing_ok=True)
