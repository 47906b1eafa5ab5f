"""What a cluster gains: the plan's two jobs, replayed on its nodes with the production's decisions and measured costs.

`python -m benchmarks.cluster [--media DIR] [--work DIR]` prints the section alone; with costs that were measured
before it takes seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.cluster_costs import SHORT_FOOTAGE_MIN, SIZE, StepCosts, measured_costs
from benchmarks.cluster_jobs import (
    ANALYSIS,
    CHECKS,
    FOOTAGE,
    IN_SEQUENCE,
    SONG,
    Job,
    Planned,
    long_job,
    on_cluster,
    on_one_node,
    short_job,
)
from benchmarks.cluster_replay import (
    NOTICE_S,
    PARALLEL,
    POD_START_S,
    Done,
    Pace,
    alone_s,
    replay,
)
from benchmarks.report import Line, Section, Table, at_least, section_text
from montage_assets.cluster.catalog import load_nodes
from montage_assets.cluster.distribution import measured_speeds
from montage_assets.cluster.node import NodeCapability
from montage_assets.cluster.placement import MeasuredSpeeds

LEAST_SPEEDUP = 4.5
LEAST_EFFICIENCY = 80.0
EQUAL_NODES = 4
SLOWED = 0.5
"""What a node that is slower than stated is of its stated speed."""

_REPOSITORY = Path(__file__).resolve().parent.parent
PLAN = _REPOSITORY / "deploy" / "cluster.yaml"


@dataclass(frozen=True)
class Outcome:
    """One job on one matrix: seconds of each stage on one node and on the cluster, and every step of the latter."""

    job: Job
    alone: dict[str, float]
    cluster: dict[str, float]
    steps: list[Done]

    def speedup(self, stages: Sequence[str] | None = None) -> float:
        """Of these stages; without any, from the start to the finished film, which its checks come after."""
        counted = stages or [stage for stage in IN_SEQUENCE if stage != CHECKS]
        once = 0.0 if stages else self.alone[SONG]
        return (once + sum(self.alone[stage] for stage in counted)) / sum(self.cluster[stage] for stage in counted)

    @property
    def nodes_used(self) -> int:
        return len({done.node for done in self.steps})


def measure(bench: Bench) -> Section:
    """The section, from measured costs."""
    return section_of(measured_costs(bench))


def section_of(costs: StepCosts) -> Section:
    """Both jobs on the plan's nodes, and on four equal ones."""
    plan = load_nodes(PLAN)
    short, long = (outcome(job, costs, plan) for job in (short_job(costs), long_job(costs)))
    small = outcome(short_job(costs, SHORT_FOOTAGE_MIN), costs, plan)
    equal = [outcome(job, costs, equal_nodes()) for job in (short.job, long.job)]
    lines = [
        *(at_least(f"speedup on the plan's nodes, {one.job.name}", one.speedup(), LEAST_SPEEDUP, " x", _why(one))
          for one in (short, long, small)),
        *(at_least(
            f"efficiency on {EQUAL_NODES} equal nodes, {one.job.name}",
            100 * one.speedup() / EQUAL_NODES, LEAST_EFFICIENCY, " %", _why(one),
          ) for one in equal),
        *(_nodes_line(one, plan) for one in (short, long)),
        *_slow_node_lines(costs, plan, long.job),
        Line(
            f"speedup, {long.job.name}, if GPUs wait for decoding and filters on their node's cores",
            f"{outcome(long.job, costs, held_up_by_cores(plan, costs)).speedup():.1f} x",
        ),
        Line("what the storage must deliver meanwhile", f"{_megabytes_per_s(long, costs):.0f} MB/s"),
    ]  # fmt: skip
    return Section(
        "Cluster",
        _method(costs),
        lines,
        [*(_stage_table(one) for one in (short, long)), _cost_table(costs)],
    )


def outcome(
    job: Job,
    costs: StepCosts,
    nodes: Sequence[NodeCapability],
    *,
    measured: MeasuredSpeeds | None = None,
    slowed: dict[str, float] | None = None,
    pace: Pace | None = None,
) -> Outcome:
    """One job replayed."""
    works = on_cluster(job, costs, nodes, measured)
    steps = replay(nodes, works, SIZE, SIZE, pace=pace, measured=measured, slowed=slowed)
    today = on_one_node(job, costs)
    alone = {stage: alone_s([work for work in today if work.stage == stage]) for stage in (*IN_SEQUENCE, SONG)}
    cluster, before = {}, 0.0
    for stage in IN_SEQUENCE:
        end = max((done.ended_s for done in steps if done.work.stage == stage), default=(pace or Pace()).pod_start_s)
        cluster[stage], before = end - before, end
    return Outcome(job, alone, cluster, steps)


def equal_nodes(count: int = EQUAL_NODES) -> tuple[NodeCapability, ...]:
    """Nodes of speed 1 without a GPU."""
    return tuple(
        NodeCapability(name=f"node-{number}", cpu_cores=8, ram_gb=32, speed={"analyze": 1, "encode": 1})
        for number in range(1, count + 1)
    )


def held_up_by_cores(nodes: Sequence[NodeCapability], costs: StepCosts) -> tuple[NodeCapability, ...]:
    """The nodes with GPUs no faster than their cores can decode and filter for them."""
    found = []
    for node in nodes:
        if node.gpu is not None and node.hardware_encoders:
            most = node.speed_for("encode", with_gpu=False) * costs.segment_frame / costs.segment_picture_frame
            speed = {**node.speed, "encode": min(most, node.speed_for("encode"))}
            node = node.model_copy(update={"speed": speed})  # noqa: PLW2901 -- the same node, slower
        found.append(node)
    return tuple(found)


def speeds_told(steps: Sequence[Done]) -> MeasuredSpeeds:
    """What a run tells the next one of its nodes, as production keeps it."""
    rows = [
        {"node": done.node, "cost": done.work.cost, "seconds": done.ended_s - done.began_s}
        for done in steps
        if done.work.cost
    ]
    return {"analyze": measured_speeds(rows)}


def _slow_node_lines(costs: StepCosts, nodes: Sequence[NodeCapability], job: Job) -> list[Line]:
    slowed = {"codeai-esprimo-q958": SLOWED}
    first = outcome(job, costs, nodes, slowed=slowed)
    second = outcome(job, costs, nodes, slowed=slowed, measured=speeds_told(first.steps))
    what = f"{ANALYSIS} when a node is {SLOWED:g} times as fast as stated"
    return [
        Line(f"{what}, first run", f"{first.cluster[ANALYSIS]:.0f} s"),
        Line(
            f"{what}, next run, which knows",
            f"{second.cluster[ANALYSIS]:.0f} s",
            "less than the first",
            second.cluster[ANALYSIS] < first.cluster[ANALYSIS],
        ),
    ]


def _nodes_line(found: Outcome, nodes: Sequence[NodeCapability]) -> Line:
    everything = found.nodes_used == len(nodes)
    idle = ", ".join(sorted({node.name for node in nodes} - {done.node for done in found.steps}))
    return Line(
        f"nodes at work, {found.job.name}",
        f"{found.nodes_used} of {len(nodes)}",
        "all",
        everything,
        "" if everything else f"{idle} would be no gain",
    )


def _why(found: Outcome) -> str:
    starts = _starts_in_sequence(found.steps) + 1
    fixed = starts * POD_START_S
    total = sum(found.cluster[stage] for stage in IN_SEQUENCE if stage != CHECKS)
    return (
        f"of {total:.0f} s until the film is there, {fixed:.0f} s are {starts} pods starting one after another, and in "
        f"{found.cluster[FOOTAGE]:.0f} s the clips are probed in the run's own pod while all others wait; "
        f"one node takes {total * found.speedup():.0f} s for all of it"
    )


def _starts_in_sequence(steps: Sequence[Done]) -> int:
    """Pods on the way from the first step to the film that no other pod's work hides."""
    count, last_end = 0, 0.0
    for done in sorted((done for done in steps if done.began_s > done.bound_s), key=lambda done: done.bound_s):
        if done.bound_s >= last_end:
            count += 1
            last_end = done.ended_s
    return count


def _megabytes_per_s(found: Outcome, costs: StepCosts) -> float:
    return found.job.footage_min * 60 * costs.footage_mbit / 8 / found.cluster[ANALYSIS]


def _stage_table(found: Outcome) -> Table:
    rows = [_stage_row(found, planned) for planned in found.job.planned]
    named = {stage for planned in found.job.planned for stage in planned.stages}
    for stage in IN_SEQUENCE:
        if stage not in named:
            rows.append(
                ["", stage, _minutes(found.alone[stage]), _minutes(found.cluster[stage]), "", "", "not in the plan"]
            )
    whole = [stage for stage in IN_SEQUENCE if stage != CHECKS]
    rows.append(
        _row(found.job.total, "until the film is there", found.alone[SONG] + sum(found.alone[s] for s in whole),
             sum(found.cluster[s] for s in whole))
    )  # fmt: skip
    head = f"{found.job.name}: the plan's stage"
    return Table([head, "ours", "one node, min", "cluster, min", "speedup", "the plan's", ""], rows)


def _stage_row(found: Outcome, planned: Planned) -> list[str]:
    return _row(
        planned,
        " + ".join(planned.stages),
        sum(found.alone[stage] for stage in planned.stages),
        sum(found.cluster[stage] for stage in planned.stages),
    )


def _row(planned: Planned, ours: str, alone: float, cluster: float) -> list[str]:
    speedup = alone / cluster
    if speedup >= planned.speedup - 0.05:
        verdict = "met"
    else:
        verdict = f"**missed**, though faster than the {planned.cluster_min:g} min planned" if (
            cluster < 60 * planned.cluster_min
        ) else "**missed**"  # fmt: skip
    return [
        planned.name,
        ours,
        _minutes(alone),
        _minutes(cluster),
        f"{speedup:.1f} x",
        f"{planned.today_min:g} to {planned.cluster_min:g} min, {planned.speedup:.1f} x",
        verdict,
    ]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.2f}"


def _cost_table(costs: StepCosts) -> Table:
    rows = [
        ["decoding a frame of the footage, its proxy and scores", f"{1000 * costs.analysis_frame:.1f} ms"],
        ["a range of it, besides its frames", f"{costs.analysis_range:.2f} s"],
        ["probing a clip", f"{costs.probe_clip:.2f} s"],
        ["deciding scenes, an hour of footage", f"{costs.scenes_start + 108_000 * costs.scenes_frame:.1f} s"],
        ["analysing a song, a minute", f"{60 * costs.song_second:.2f} s"],
        ["the edit, 30 s film from 20 min", f"{costs.short_selection:.2f} s"],
        ["the edit, 300 s film from 60 min", f"{costs.long_selection:.2f} s"],
        ["a frame of a segment: decoding, filters, libx264", f"{1000 * costs.segment_frame:.0f} ms"],
        ["its decoding and filters alone", f"{1000 * costs.segment_picture_frame:.0f} ms"],
        ["joining and sound", f"{costs.join_start:.2f} s and {1000 * costs.join_frame:.2f} ms a frame"],
        ["checking, a frame of the film", f"{1000 * costs.check_frame:.1f} ms"],
        ["a step as a process beside the run", f"{costs.step_process:.2f} s"],
    ]
    return Table(["measured here, CPU", "cost"], rows)


def _method(costs: StepCosts) -> str:
    return (
        "A replay, not a run: no cluster was at hand. Costs of steps were measured on this machine in CPU-seconds "
        f"({SIZE[0]}x{SIZE[1]} H.264 with grain at {costs.footage_mbit:.0f} Mbit/s; the film in 4K at standard "
        "quality) and are scaled by nothing but the speeds that `deploy/cluster.yaml` states, 1 being eight ordinary "
        f"cores. Steps that use all cores are taken to get {100 * PARALLEL:.0f} % out of them, on one node as on all, "
        "so the ratios hardly depend on it. Shards, batches, nodes, resources and affinities are the production's own "
        "decisions, and each pod is bound by kube-scheduler's rules as the tests' emulator has them: a GPU is held by "
        f"one pod at a time, requests must fit. Every pod takes {POD_START_S:g} s to start (4 to 20 were measured), "
        f"the end of a step is noticed {NOTICE_S:g} s later, planning and merging run beside the run. Segments of "
        "another encoder than most are encoded once more at the join. Today is one node of speed 1 without a GPU that "
        "does the same steps one after another in one process, without pods. Left out: network, disks, pulling "
        "images.\n\n"
        "The plan's Proxy Generation and Scene Detection are one decoding of ours, its Clip Enhancement is part of a "
        "segment's one filter graph. The plan does not say how much footage the first job has: it is as much as "
        "keeps one node busy for the 20 min that the plan's scene detection takes today; by the pace of the second "
        f"table (an hour for an hour) it would be {SHORT_FOOTAGE_MIN} min, which is reported as well."
    )  # fmt: skip


def main() -> None:
    """Print the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--media", type=Path, default=_REPOSITORY / "examples" / "demo", help="clips and songs")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "montage-benchmarks")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(section_text(measure(Bench(options.media.resolve(), options.work.resolve()))) + "\n")


if __name__ == "__main__":
    main()
