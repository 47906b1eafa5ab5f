"""Which node does what, and why.

Belongs here: comparing nodes for a task, and sharing a list of items out among them. Does not belong here:
what a task needs (`tasks`), where nodes come from (`manager`), or starting anything on them.

How nodes are compared, the first difference decides:
1. for encoding and upscaling, a chip that can do it at this size comes before the CPU;
2. a node whose `optimal_for` names the task, by the strongest word it has for it;
3. a control-plane node comes last;
4. speed (memory for memory-bound work, video memory for upscaling), then cores and memory; for work that
   needs no GPU a node with a big one counts half, so that it stays free while others can do it;
5. what is stated comes before what is assumed, then the order of the nodes.
A node that is not ready, cordoned, tainted or too small is passed over, and the next best takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from montage_assets.cluster.distribution import ShardRange, balance, calibrate, shard_ranges
from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.node import NodeCapability
from montage_assets.cluster.tasks import (
    PROFILES,
    Resolution,
    TaskProfile,
    TaskType,
    Work,
    ram_needed_gb,
    size_asked,
    size_class,
    vram_needed_gb,
)

BIG_GPU_DISCOUNT = 0.5
"""What a node with a big GPU counts for in work that needs none."""

_MEASURED_FIELDS = {"cpu_cores", "ram_gb", "vram_gb", "speed"}


class HasNodes(Protocol):
    """Anything that knows the nodes, e.g. the cluster manager."""

    @property
    def nodes(self) -> Sequence[NodeCapability]: ...


@dataclass(frozen=True)
class Candidate:
    """A node considered for a task. `closed` says why it cannot be taken, empty if it can."""

    node: NodeCapability
    uses_gpu: bool
    speed: float
    reasons: tuple[str, ...]
    closed: str = ""

    @property
    def suitable(self) -> bool:
        """Whether the node can be taken."""
        return not self.closed

    @property
    def encoder(self) -> str | None:
        """The encoder to try first, if a chip is to encode."""
        return next(iter(self.node.hardware_encoders), None) if self.uses_gpu else None

    @property
    def why(self) -> str:
        """The reasons in one line."""
        return self.closed or ", ".join(self.reasons)


@dataclass(frozen=True)
class ParallelJob:
    """What one node gets of a list of items: the items, and where they stood in the list."""

    task: TaskType
    node: NodeCapability
    videos: tuple[str, ...]
    indexes: tuple[int, ...]
    cost: float


class TaskRouter:
    """Chooses nodes for tasks.

    `measured`: per kind of work the speeds that past runs had (`distribution.measured_speeds`), in units of their own;
    they take precedence over stated and estimated ones.
    """

    def __init__(self, cluster: HasNodes, measured: Mapping[Work, Mapping[str, float]] | None = None) -> None:
        self._cluster = cluster
        self._measured = measured or {}

    def route_task(self, task: TaskType | str, resolution: Resolution | None = None) -> NodeCapability:
        """The best node that takes the task.

        Raises ClusterError for an unknown task, or when no node takes any work.
        """
        return self.choose(task, resolution).node

    def choose(self, task: TaskType | str, resolution: Resolution | None = None) -> Candidate:
        """The candidate of `route_task`, with its reasons, those of better nodes passed over included."""
        kind = TaskType.parse(task)
        ranked = self._compared(kind, resolution)
        best = next((candidate for candidate in ranked if candidate.suitable), None)
        if best is None:
            best = _largest_of_the_too_small(kind, resolution, ranked)
        # A node left to GPU work was never meant for the rest; that it would be faster is no news.
        passed_over = [
            f"{candidate.node.name} ({candidate.closed})"
            for candidate in ranked[: ranked.index(best)]
            if candidate.closed and not _is_left_to_gpu_work(candidate.node, PROFILES[kind])
        ]
        instead = (f"instead of {' and '.join(passed_over)}",) if passed_over else ()
        too_small = (f"though it {best.closed}: no node has it",) if best.closed else ()
        return Candidate(best.node, best.uses_gpu, best.speed, (*best.reasons, *too_small, *instead))

    def rank(self, task: TaskType | str, resolution: Resolution | None = None) -> list[Candidate]:
        """All nodes, the best first, those that cannot be taken at the end with the reason."""
        ranked = self._compared(TaskType.parse(task), resolution)
        return sorted(ranked, key=lambda candidate: not candidate.suitable)

    def create_parallel_jobs(
        self,
        task: TaskType | str,
        videos: Sequence[str],
        *,
        costs: Sequence[float] | None = None,
        resolution: Resolution | None = None,
        parallelism: int | None = None,
    ) -> list[ParallelJob]:
        """Share `videos` out among the nodes, each item exactly once, so that all finish together.

        `costs` are the items' relative costs (equal without), `parallelism` the most nodes to use. One job per node
        that gets anything, the best node first. Raises ClusterError as `route_task`.
        """
        kind = TaskType.parse(task)
        weights = [1.0] * len(videos) if costs is None else [float(cost) for cost in costs]
        if len(weights) != len(videos):
            raise ClusterError(f"{len(videos)} videos were given with {len(weights)} costs; give each video one cost")
        workers = self._workers(kind, resolution)[: max(1, parallelism) if parallelism is not None else None]
        shares = balance(weights, [worker.speed for worker in workers])
        return [
            ParallelJob(
                task=kind,
                node=worker.node,
                videos=tuple(videos[index] for index in share),
                indexes=tuple(share),
                cost=sum(weights[index] for index in share),
            )
            for worker, share in zip(workers, shares, strict=True)
            if share
        ]

    def shard_ranges(
        self, task: TaskType | str = TaskType.CPU_SCENE_DETECTION, count: int = 4, resolution: Resolution | None = None
    ) -> list[ShardRange]:
        """`count` shards of one whole on the `count` best nodes, each as wide as its node is fast.

        With fewer nodes than shards, nodes take several in turn. Raises ClusterError as `route_task`.
        """
        if count < 1:
            raise ClusterError(f"{count} shards cannot be made; ask for at least one")
        workers = self._workers(TaskType.parse(task), resolution)
        turns = [workers[index % len(workers)] for index in range(count)]
        names = [worker.node.name for worker in turns]
        return shard_ranges(names, [worker.speed / names.count(worker.node.name) for worker in turns])

    def _workers(self, task: TaskType, resolution: Resolution | None) -> list[Candidate]:
        suitable = [candidate for candidate in self._compared(task, resolution) if candidate.suitable]
        return suitable or [self.choose(task, resolution)]

    def _compared(self, task: TaskType, resolution: Resolution | None) -> list[Candidate]:
        nodes = list(self._cluster.nodes)
        if not nodes:
            raise ClusterError("the cluster has no nodes; see `montage nodes`")
        profile = PROFILES[task]
        with_gpu = {node.name: _shortfall_of_gpu(node, task, resolution) == "" for node in nodes}
        stated = {node.name: node.speed_for(profile.work, with_gpu[node.name]) for node in nodes}
        measured = self._measured.get(profile.work, {})
        speeds = calibrate(stated, measured)
        wanted = profile.named[size_class(size_asked(task, resolution))]
        order = {node.name: place for place, node in enumerate(nodes)}

        def goodness(candidate: Candidate) -> tuple[float, ...]:
            node = candidate.node
            weight = BIG_GPU_DISCOUNT if node.has_big_gpu and not candidate.uses_gpu else 1.0
            measures = {
                "speed": (candidate.speed * weight, node.cpu_cores, node.ram_gb),
                "memory": (node.ram_gb * weight, candidate.speed, node.cpu_cores),
                "vram": (node.vram_gb or 0.0 if candidate.uses_gpu else 0.0, candidate.speed, node.ram_gb),
            }[profile.measure]
            return (
                not candidate.uses_gpu if profile.hardware != "none" else 0,
                _place_of_strongest(node, wanted),
                node.control_plane,
                *(-measure for measure in measures),
                not _MEASURED_FIELDS.isdisjoint(node.assumed),
                order[node.name],
            )

        candidates = [
            Candidate(
                node=node,
                uses_gpu=with_gpu[node.name] and profile.hardware != "none",
                speed=speeds[node.name],
                reasons=_reasons(node, task, resolution, wanted, speeds[node.name], node.name in measured),
                closed=_closed(node, task, resolution, profile),
            )
            for node in nodes
        ]
        return sorted(candidates, key=goodness)


def select_node_for_task(task_type: str, resolution: Resolution | None = None, cluster: HasNodes | None = None) -> str:
    """The name of the best node for a task. Without `cluster`, of the cluster that the environment names."""
    if cluster is None:
        from montage_assets.cluster.manager import get_cluster_manager

        cluster = get_cluster_manager()
    return TaskRouter(cluster).route_task(task_type, resolution).name


def _place_of_strongest(node: NodeCapability, wanted: Sequence[str]) -> int:
    return next((place for place, word in enumerate(wanted) if word in node.good_at), len(wanted))


def _shortfall_of_gpu(node: NodeCapability, task: TaskType, resolution: Resolution | None) -> str:
    """Why the node's GPU does not do this task, in words; empty if it does. Unknown video memory is given a try."""
    profile = PROFILES[task]
    if profile.hardware == "gpu":
        return "" if node.has_big_gpu else "has no GPU to compute on"
    if profile.hardware == "none":
        return "needs no GPU"
    if not node.hardware_encoders:
        return f"{node.gpu} has no video encoder" if node.gpu else "has no hardware encoder"
    needed = vram_needed_gb(task, resolution)
    if node.vram_gb is not None and node.vram_gb < needed:
        return f"{node.vram_gb:g} GB video memory of {needed:.0f} needed"
    return ""


def _is_left_to_gpu_work(node: NodeCapability, profile: TaskProfile) -> bool:
    return node.gpu_taint is not None and profile.hardware == "none"


def _closed(node: NodeCapability, task: TaskType, resolution: Resolution | None, profile: TaskProfile) -> str:
    if node.closed_to_all:
        return node.closed_to_all
    if _is_left_to_gpu_work(node, profile):
        return f"left to GPU work by taint {node.gpu_taint}"
    needed = ram_needed_gb(task, resolution)
    return f"has {node.ram_gb:g} GB RAM of {needed:g} needed" if node.ram_gb < needed else ""


def _reasons(
    node: NodeCapability,
    task: TaskType,
    resolution: Resolution | None,
    wanted: Sequence[str],
    speed: float,
    is_measured: bool,
) -> tuple[str, ...]:
    profile = PROFILES[task]
    place = _place_of_strongest(node, wanted)
    reasons = [f"optimal for {wanted[place]}"] if place < len(wanted) else []
    shortfall = _shortfall_of_gpu(node, task, resolution)
    if profile.hardware == "encoder":
        reasons.append(f"on the CPU: {shortfall}" if shortfall else node.hardware_encoders[0])
    elif profile.hardware == "gpu":
        reasons.append(shortfall or str(node.gpu))
    if profile.measure == "memory":
        reasons.append(f"{node.ram_gb:g} GB RAM")
    elif profile.measure == "vram" and node.vram_gb:
        reasons.append(f"{node.vram_gb:g} GB video memory")
    else:
        reasons.append(f"{'measured speed' if is_measured else 'speed'} {speed:.3g}")
        reasons.extend([] if profile.hardware != "none" and not shortfall else [f"{node.cpu_cores:g} cores"])
    if node.control_plane:
        reasons.append("control plane")
    return tuple(reasons)


def _largest_of_the_too_small(task: TaskType, resolution: Resolution | None, ranked: list[Candidate]) -> Candidate:
    """Where every open node has too little memory, the one with the most: slow is better than never."""
    needed = ram_needed_gb(task, resolution)
    open_nodes = [
        candidate
        for candidate in ranked
        if not candidate.node.closed_to_all and candidate.closed and candidate.node.ram_gb < needed
    ]
    if not open_nodes:
        states = "; ".join(f"{candidate.node.name} is {candidate.closed}" for candidate in ranked)
        raise ClusterError(f"no node takes {task.value}: {states}")
    return max(open_nodes, key=lambda candidate: candidate.node.ram_gb)
