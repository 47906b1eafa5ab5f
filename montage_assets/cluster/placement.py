"""Where the pod of one step goes and what it asks for, as the value of the step's `dagster-k8s/config` tag.

Belongs here: pure decisions from the capability matrix, and their form in Kubernetes' words. All affinity of a step
comes from here and from no other layer: Dagster's deep merge would append the terms of two layers, and terms are ORed.
Does not belong here: starting pods (`pods`) or comparing nodes (`routing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.gpus import GPUType
from montage_assets.cluster.node import GPU_VENDOR_DOMAINS, NodeCapability
from montage_assets.cluster.routing import Candidate, HasNodes, TaskRouter
from montage_assets.cluster.tasks import PROFILES, Resolution, TaskType, Work, ram_needed_gb

MeasuredSpeeds = Mapping[Work, Mapping[str, float]]
"""Per kind of work the speeds of nodes as past runs found them (`measured.speeds_on`)."""

RENDERING = (TaskType.GPU_ENCODING, TaskType.FINAL_RENDER, TaskType.PREVIEW_RENDER)

SHARE_OF_A_NODE = 0.85
"""The most of a node's memory and cores that one step asks for: the system and its daemons need the rest."""

WEIGHT_OF_BEST = 100
WEIGHT_OF_SECOND = 30
"""Kubernetes adds up to 400 points for spread and free resources to twice these: the gap outweighs most of them, while
a full node still gives way."""

_HOUR_S = 3600
_CPUS: Mapping[str, int] = MappingProxyType({"analyze": 2, "encode": 4, "upscale": 4})
_LIGHT = (TaskType.AUDIO_ANALYSIS, TaskType.CLIP_SELECTION, TaskType.METADATA)
_VENDOR_RESOURCES = {GPUType.NVIDIA: "nvidia.com/gpu", GPUType.AMD: "amd.com/gpu"}
"""What the vendors' own device plugins offer, assumed where a matrix does not say which resources a node has. Those for
Intel and plain VAAPI know several names, so they count only where the node lists one."""


@dataclass(frozen=True)
class Step:
    """One step as far as its pod depends on it.

    `turn`: 0, 1, 2, ... among the mapped steps of its op in the run, None for a step that is alone. `film_size`,
    `source_size`: of the film and of the largest clip, None when unknown. `lost_on`: the nodes where earlier attempts
    of this step died.
    """

    key: str
    task: TaskType
    film_size: Resolution | None = None
    source_size: Resolution | None = None
    turn: int | None = None
    attempt: int = 0
    lost_on: tuple[str, ...] = ()

    @property
    def resolution(self) -> Resolution | None:
        """The size that the work is done at: decoding at the sources', encoding at the film's."""
        return self.source_size if PROFILES[self.task].work == "analyze" else self.film_size


@dataclass(frozen=True)
class Placement:
    """The decision for one step. `nodes` are names, the best first, empty when no matrix is known.

    `required` are the only nodes that have what the step needs, empty if any node will do. `gpu_resource` is the device
    plugin's resource, None on the CPU. Memory in GiB.
    """

    step: Step
    nodes: tuple[str, ...]
    why: str
    memory_gb: float
    memory_limit_gb: float
    cpus: float
    deadline_s: int
    required: tuple[str, ...] = ()
    gpu_resource: str | None = None
    encoder: str | None = None
    tolerations: tuple[str, ...] = ()
    host_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line for the log of the run."""
        what = f"{self.cpus:g} CPUs, {self.memory_gb:g} GiB" + (f", {self.gpu_resource}" if self.gpu_resource else "")
        where = f"to {self.nodes[0]}" if self.nodes else "to any node"
        return f"{where} ({self.why}); asks for {what}"


class Placer:
    """Chooses for one run. Shards and batches of segments were cut to the nodes' speeds, so number i goes to node i."""

    def __init__(self, deadline_s: int | None = None, measured: MeasuredSpeeds | None = None) -> None:
        self._deadline_s, self._measured = deadline_s, measured

    def place(self, step: Step, cluster: HasNodes | None) -> Placement:
        """The placement of one step. Without a matrix (or with no node that takes work) only resources are asked."""
        try:
            ranked = [] if cluster is None else _ranked(step, cluster, self._measured)
        except ClusterError as error:
            ranked, reason = [], str(error)
        else:
            reason = "no capability matrix is known"
        if not ranked:
            memory = ram_needed_gb(step.task, step.resolution)
            return Placement(step, (), reason, memory, 2 * memory, _cpus(step.task), self._deadline(step.task))
        return _placement(step, _in_order(step, ranked), self._deadline(step.task))

    def _deadline(self, task: TaskType) -> int:
        return self._deadline_s or (2 * _HOUR_S if task in _LIGHT else 12 * _HOUR_S)


def k8s_config(placement: Placement, run_id: str, priority_class: str | None = None) -> dict[str, Any]:
    """The `dagster-k8s/config` of a step: resources, affinity, tolerations, spread, deadline, labels."""
    task = placement.step.task
    limits: dict[str, str] = {"memory": _gibibytes(placement.memory_limit_gb)}
    requests = {"cpu": f"{placement.cpus:g}", "memory": _gibibytes(placement.memory_gb)}
    if placement.gpu_resource:
        limits[placement.gpu_resource] = requests[placement.gpu_resource] = "1"
    labels = {"montage/task": task.value}
    pod_spec: dict[str, Any] = {
        "restart_policy": "Never",
        "topology_spread_constraints": [
            {
                "max_skew": 1,
                "topology_key": "kubernetes.io/hostname",
                "when_unsatisfiable": "ScheduleAnyway",
                "label_selector": {"match_labels": {**labels, "dagster/run-id": run_id}},
            }
        ],
    }
    if affinity := _affinity(placement):
        pod_spec["affinity"] = affinity
    if placement.tolerations:
        pod_spec["tolerations"] = [{"key": key, "operator": "Exists"} for key in placement.tolerations]
    if priority_class and task in RENDERING:
        pod_spec["priority_class_name"] = priority_class
    return {
        "container_config": {"resources": {"requests": requests, "limits": limits}},
        "pod_template_spec_metadata": {"labels": labels, "annotations": {"montage/placement": placement.summary}},
        "pod_spec_config": pod_spec,
        "job_spec_config": {"active_deadline_seconds": placement.deadline_s, "backoff_limit": 0},
        # What this step asks for replaces what the layers below say, key by key.
        "merge_behavior": "SHALLOW",
    }


def analysis_speeds(
    cluster: HasNodes, source_size: Resolution | None, shards: int | None = None, measured: MeasuredSpeeds | None = None
) -> list[float]:
    """The relative speeds of the nodes that shards go to, in the order of the shards: one shard per node, or as many as
    asked, where nodes take several in turn. Raises ClusterError when no node takes work."""
    ranked = _ranked(Step("", TaskType.CPU_SCENE_DETECTION, source_size=source_size), cluster, measured)
    turns = [ranked[turn % len(ranked)] for turn in range(shards or len(ranked))]
    times = {candidate.node.name: turns.count(candidate) for candidate in ranked}
    return [candidate.speed / times[candidate.node.name] for candidate in turns]


def encoding_speeds(
    cluster: HasNodes, task: TaskType, film_size: Resolution | None, measured: MeasuredSpeeds | None = None
) -> list[float]:
    """The relative speeds of the places that segments of a film are encoded at, in the order of the batches: each GPU
    that pods can have, and each other node. Raises ClusterError when no node takes work."""
    step = Step("", task, film_size=film_size)
    return [candidate.speed for candidate in _places(step, _ranked(step, cluster, measured))]


@dataclass(frozen=True)
class _AsPodsSeeIt:
    """The matrix without the GPUs that no device plugin hands to pods."""

    nodes: tuple[NodeCapability, ...]


def _ranked(step: Step, cluster: HasNodes, measured: MeasuredSpeeds | None) -> list[Candidate]:
    nodes = tuple(node if node.gpu is None or gpu_resource(node) else node.without_gpu() for node in cluster.nodes)
    router = TaskRouter(_AsPodsSeeIt(nodes), measured)
    # All shards of the footage were cut for one order of the nodes, those that proxies are made of too.
    is_shard = step.turn is not None and step.task is TaskType.PROXY_GENERATION
    task = TaskType.CPU_SCENE_DETECTION if is_shard else step.task
    best = router.choose(task, step.resolution)
    others = [candidate for candidate in router.rank(task, step.resolution) if candidate.suitable]
    return [best, *(candidate for candidate in others if candidate.node.name != best.node.name)]


def _in_order(step: Step, ranked: Sequence[Candidate]) -> list[Candidate]:
    """The best node first; for mapped steps the one whose turn it is."""
    if step.turn is not None:
        places = _places(step, ranked)
        first = ranked.index(places[step.turn % len(places)])
        ranked = [*ranked[first:], *ranked[:first]]
    return sorted(ranked, key=lambda candidate: candidate.node.name in step.lost_on)


def _places(step: Step, ranked: Sequence[Candidate]) -> list[Candidate]:
    """A node for each mapped step that it takes at a time: as many as it has GPUs, where GPUs do the work."""
    if step.task not in RENDERING:
        return list(ranked)
    return [candidate for candidate in ranked for _ in range(_devices(candidate))]


def _devices(candidate: Candidate) -> int:
    resource = gpu_resource(candidate.node) if candidate.uses_gpu else None
    return candidate.node.resources.get(resource, 1) if resource else 1


def _placement(step: Step, ordered: Sequence[Candidate], deadline_s: int) -> Placement:
    chosen = ordered[0]
    resource = gpu_resource(chosen.node) if chosen.uses_gpu else None
    equipped = [c for c in ordered if resource and c.uses_gpu and gpu_resource(c.node) == resource]
    wanted = ram_needed_gb(step.task, step.resolution)
    room = SHARE_OF_A_NODE * chosen.node.ram_gb
    memory = min(wanted, room)
    passed_over = f", after {' and '.join(step.lost_on)} lost it" if step.lost_on else ""
    return Placement(
        step=step,
        nodes=tuple(candidate.node.name for candidate in equipped or ordered),
        why=f"{chosen.why}{passed_over}",
        memory_gb=_rounded(memory),
        memory_limit_gb=_rounded(max(memory, min(2 * wanted, room))),
        cpus=_rounded(min(_cpus(step.task), SHARE_OF_A_NODE * chosen.node.cpu_cores)),
        deadline_s=deadline_s,
        required=tuple(candidate.node.name for candidate in equipped),
        gpu_resource=resource,
        encoder=chosen.encoder if resource else None,
        tolerations=tuple(sorted({_key_of(c.node.gpu_taint) for c in equipped if c.node.gpu_taint})),
        host_names={c.node.name: c.node.labels.get("kubernetes.io/hostname", c.node.name) for c in ordered},
    )


def gpu_resource(node: NodeCapability) -> str | None:
    """The resource by which a pod gets the node's GPU; None when it cannot have it, for want of a device plugin."""
    listed = next((name for name in node.resources if name.startswith(GPU_VENDOR_DOMAINS)), None)
    if listed or node.resources:
        return listed
    return _VENDOR_RESOURCES.get(node.gpu_type)


def _affinity(placement: Placement) -> dict[str, Any] | None:
    if not placement.nodes:
        return None
    weights = [WEIGHT_OF_BEST, *(max(1, WEIGHT_OF_SECOND - 3 * rank) for rank in range(len(placement.nodes) - 1))]
    node_affinity: dict[str, Any] = {
        "preferred_during_scheduling_ignored_during_execution": [
            {"weight": weight, "preference": {"match_expressions": [_on([placement.host_names[name]])]}}
            for weight, name in zip(weights, placement.nodes, strict=True)
        ]
    }
    if placement.required:
        hosts = sorted(placement.host_names[name] for name in placement.required)
        node_affinity["required_during_scheduling_ignored_during_execution"] = {
            "node_selector_terms": [{"match_expressions": [_on(hosts)]}]
        }
    return {"node_affinity": node_affinity}


def _on(hosts: Sequence[str]) -> dict[str, Any]:
    return {"key": "kubernetes.io/hostname", "operator": "In", "values": list(hosts)}


def _cpus(task: TaskType) -> int:
    return 1 if task in _LIGHT else _CPUS[PROFILES[task].work]


def _key_of(taint: str) -> str:
    return taint.partition(":")[0].partition("=")[0]


def _gibibytes(memory_gb: float) -> str:
    return f"{memory_gb:g}Gi" if float(memory_gb).is_integer() else f"{round(memory_gb * 1024)}Mi"


def _rounded(value: float) -> float:
    """Down to two decimals: what is asked for must fit."""
    return int(value * 100) / 100
