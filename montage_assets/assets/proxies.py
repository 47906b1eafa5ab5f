"""proxies: small, frame-exact copies of the clips that are costly to decode, one step per shard.

Making a proxy decodes its clip, so the same step writes the clip's frame scores too, and `scene_shards`
finds them done.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from montage_assets.assets import shard_steps
from montage_assets.assets.common import GROUP, OWNERS, TASK_TAG, data_root, mapping_key
from montage_assets.assets.footage import Footage
from montage_assets.assets.shard_steps import ShardPlan, ShardReport, ShardTask
from montage_assets.failures import plain_failures
from montage_assets.media import proxies as proxy_media
from montage_assets.media.clip import Clip, LeftOut
from montage_assets.partitions import montage_partitions
from montage_assets.settings import Settings


@dataclass(frozen=True)
class Proxy:
    """The proxy of one clip: its data-root key, and the clip as the proxy shows it."""

    name: str
    key: str
    clip: Clip


@dataclass(frozen=True)
class Proxies:
    """The proxies of one montage; clips without one are cheap enough to decode."""

    proxies: list[Proxy]
    left_out: list[LeftOut]
    reports: list[ShardReport]


@dg.op(
    out={"plan": dg.Out(ShardPlan), "shards": dg.DynamicOut(ShardTask)},
    tags={TASK_TAG: "metadata"},
)
def plan_proxies(
    context: dg.OpExecutionContext, footage: Footage
) -> Iterator[dg.Output[ShardPlan] | dg.DynamicOutput[ShardTask]]:
    """Choose the clips that want a proxy and have none, and share their ranges among the workers."""
    with plain_failures():
        root = data_root()
        clips = [
            clip
            for clip in footage.clips
            if proxy_media.wants_proxy(clip)
            and not (root.exists(shard_steps.proxy_key(clip)) and root.exists(shard_steps.scores_key(clip)))
        ]
        workers = shard_steps.workers_for(clips, Settings.from_environment())
        plan, shards = shard_steps.plan_shards(root, footage.folder, clips, workers, with_proxy=True)
    yield dg.Output(plan, "plan")
    for shard in shards:
        yield dg.DynamicOutput(shard, mapping_key("shard", shard.index + 1), output_name="shards")


@dg.op(tags={TASK_TAG: "proxy_generation"})
def make_proxies(context: dg.OpExecutionContext, shard: ShardTask) -> ShardReport:
    """Decode the ranges of one shard once; write their proxies and scores."""
    with plain_failures():
        return shard_steps.do_shard(data_root(), shard, context.log)


@dg.op(tags={TASK_TAG: "metadata"})
def join_proxies(
    context: dg.OpExecutionContext, footage: Footage, plan: ShardPlan, reports: list[ShardReport]
) -> Proxies:
    """Put the ranges of each proxy, and of its scores, together."""
    with plain_failures():
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


def report_table(reports: list[ShardReport]) -> dg.MetadataValue:
    """Frames, seconds and speed of every range, for the UI."""
    rows = [
        dg.TableRecord(
            {
                "shard": report.index + 1,
                "clip": f"{part.clip} ({part.part + 1}/{part.parts})",
                "frames": part.frames,
                "seconds": round(part.seconds, 2),
                "frames per second": round(part.frames / max(part.seconds, 1e-3), 1),
                "CPU-seconds": round(part.cpu_seconds, 2),
            }
        )
        for report in reports
        for part in report.ranges
    ]
    columns = [
        dg.TableColumn("shard", "int"),
        dg.TableColumn("clip"),
        dg.TableColumn("frames", "int"),
        dg.TableColumn("seconds", "float"),
        dg.TableColumn("frames per second", "float"),
        dg.TableColumn("CPU-seconds", "float"),
    ]
    return dg.MetadataValue.table(rows, schema=dg.TableSchema(columns))


def _join(context: dg.OpExecutionContext, footage: Footage, plan: ShardPlan, reports: list[ShardReport]) -> Proxies:
    root = data_root()
    left_out = shard_steps.failures_in(reports)
    unusable = {entry.clip for entry in left_out}
    for clip in plan.clips:
        if clip.name in unusable:
            continue
        ranges = plan.ranges[clip.name]
        parts = [root.local_file(shard_steps.range_proxy_key(clip, part)) for part in ranges]
        with root.writing(shard_steps.proxy_key(clip)) as out:
            proxy_media.join_proxy(parts, clip, out)
        shard_steps.merged_scores(root, footage.folder, clip, ranges, context.log)
    made = [clip for clip in footage.clips if proxy_media.wants_proxy(clip) and clip.name not in unusable]
    return Proxies(
        proxies=[Proxy(clip.name, shard_steps.proxy_key(clip), proxy_media.proxy_clip(clip)) for clip in made],
        left_out=left_out,
        reports=reports,
    )
