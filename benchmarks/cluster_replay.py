"""A run on a cluster, replayed: which step runs where and when, given what steps cost and how fast nodes are.

Belongs here: a simulation of discrete events without a clock, a file or chance. Does not belong here: the costs
(`cluster_costs`), what a job consists of (`cluster_jobs`), and any decision. Where a step goes is decided by the
production's `Placer` and `k8s_config`; what Kubernetes makes of it, by kube-scheduler's rules as the tests' emulator
has them, on the whole pod. So a device is held by one pod at a time, and requests must fit.

What is left out: the network and the disks, pulling images, preemption, failures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from montage_assets.cluster.node import REFERENCE_CORES, NodeCapability
from montage_assets.cluster.placement import RENDERING, MeasuredSpeeds, Placement, Placer, Step, k8s_config
from montage_assets.cluster.pods import BESIDE_THE_RUN, LOOK_EVERY_S
from montage_assets.cluster.tasks import Resolution, TaskType
from montage_assets.cluster.tasks import Work as WorkKind
from tests.cluster.emulator.nodes import node_object
from tests.cluster.emulator.scheduler import schedule

POD_START_S = 10.0
"""Pods were measured to take 4 to 20 seconds from their creation to the first line of their step."""

NOTICE_S = LOOK_EVERY_S
"""The executor looks so often whether a step has ended."""

PARALLEL = 0.8
"""How much of a node's cores a step that uses all of them gets done."""

_RUN = "run"
_NAMESPACE = "montage"
_INSTANCE = Path(__file__).resolve().parent.parent / "deploy" / "dagster.yaml"


@dataclass(frozen=True)
class Work:
    """One step. Its work in CPU-seconds of an ordinary core: what one core must do alone, then what all cores share.

    `turn` counts the mapped steps of one op. `joins` are the steps whose segments this one joins, `frames` those that a
    step encodes: what another encoder made than that of most frames is made again at the join. `cost` is
    what the step tells of its node's speed, in the unit of production (pixels), 0 if nothing.
    """

    key: str
    stage: str
    task: TaskType
    after: tuple[str, ...] = ()
    one_core_s: float = 0.0
    all_cores_s: float = 0.0
    turn: int | None = None
    joins: tuple[str, ...] = ()
    frames: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Pace:
    """The times of the replay that are no step's own."""

    pod_start_s: float = POD_START_S
    notice_s: float = NOTICE_S
    parallel: float = PARALLEL


@dataclass(frozen=True)
class Done:
    """One step that ran: on which node, with which encoder, and when it was ready, placed, begun and over, seconds."""

    work: Work
    node: str
    encoder: str
    on_gpu: bool
    ready_s: float
    bound_s: float
    began_s: float
    ended_s: float


@dataclass
class _Running:
    """A step between its launch and its end."""

    work: Work
    ready_s: float
    placement: Placement | None = None
    pod: dict[str, Any] = field(default_factory=dict)
    node: str = ""
    bound_s: float = 0.0
    begins_s: float = 0.0
    one_core_left: float = 0.0
    all_cores_left: float = 0.0


@dataclass(frozen=True)
class Nodes:
    """The matrix as the placer wants it."""

    nodes: tuple[NodeCapability, ...]


def alone_s(works: Iterable[Work], parallel: float = PARALLEL) -> float:
    """How long one node of speed 1, without a GPU, takes for the steps one after another: `today`."""
    return sum(work.one_core_s + work.all_cores_s / (REFERENCE_CORES * parallel) for work in works)


def replay(
    nodes: Sequence[NodeCapability],
    works: Sequence[Work],
    film_size: Resolution,
    source_size: Resolution,
    *,
    pace: Pace | None = None,
    measured: MeasuredSpeeds | None = None,
    slowed: Mapping[str, float] | None = None,
) -> list[Done]:
    """Every step in the order of their ends. `slowed`: nodes that are only so much as fast as stated.

    Raises ValueError when steps wait for ever, on each other or for a node.
    """
    return _Replay(nodes, works, film_size, source_size, pace or Pace(), measured, slowed or {}).run()


class _Replay:
    def __init__(
        self,
        nodes: Sequence[NodeCapability],
        works: Sequence[Work],
        film_size: Resolution,
        source_size: Resolution,
        pace: Pace,
        measured: MeasuredSpeeds | None,
        slowed: Mapping[str, float],
    ) -> None:
        self._cluster = Nodes(tuple(nodes))
        self._by_name = {node.name: node for node in nodes}
        self._objects = [node_object(node) for node in nodes]
        self._film_size, self._source_size = film_size, source_size
        self._pace, self._slowed = pace, slowed
        self._placer = Placer(measured=measured)
        self._waiting = list(works)
        self._pending: list[_Running] = []
        self._running: list[_Running] = []
        self._done: list[Done] = []
        self._now = 0.0
        self._run_pod = _run_pod()
        self._run_node = self._bound(self._run_pod) or ""
        self._launched_from_s = pace.pod_start_s

    def run(self) -> list[Done]:
        self._now = self._launched_from_s
        while self._waiting or self._pending or self._running:
            self._launch()
            self._bind()
            self._advance()
        return self._done

    def _launch(self) -> None:
        seen = {done.work.key for done in self._done if done.ended_s + self._pace.notice_s <= self._now + 1e-9}
        for work in [work for work in self._waiting if seen.issuperset(work.after)]:
            self._waiting.remove(work)
            step = _Running(work, self._now, one_core_left=work.one_core_s, all_cores_left=self._all_cores_s(work))
            if work.task in BESIDE_THE_RUN:
                step.node, step.bound_s, step.begins_s = self._run_node, self._now, self._now
                self._running.append(step)
                continue
            step.placement = self._placer.place(
                Step(work.key, work.task, self._film_size, self._source_size, work.turn), self._cluster
            )
            step.pod = _pod(work.key, k8s_config(step.placement, _RUN))
            self._pending.append(step)

    def _bind(self) -> None:
        for step in list(self._pending):
            node = self._bound(step.pod)
            if node is not None:
                step.node, step.bound_s, step.begins_s = node, self._now, self._now + self._pace.pod_start_s
                self._pending.remove(step)
                self._running.append(step)

    def _bound(self, pod: dict[str, Any]) -> str | None:
        others = [self._run_pod, *(step.pod for step in self._running if step.pod)]
        node = schedule(pod, self._objects, others).node
        if node is not None:
            pod["spec"]["nodeName"] = node
        return node

    def _advance(self) -> None:
        rates = self._rates()
        moments = [done.ended_s + self._pace.notice_s for done in self._done]
        moments += [step.begins_s for step in self._running]
        moments = [moment for moment in moments if moment > self._now + 1e-9]
        moments += [self._now + _left(step) / rate for step, rate in rates]
        if not moments:
            if self._waiting or self._pending:
                stuck = [*self._pending, *(work for work in self._waiting)]
                raise ValueError(f"these steps wait for ever: {stuck}")
            return
        until = min(moments)
        for step, rate in rates:
            _work_off(step, rate * (until - self._now))
        self._now = until
        for step in [step for step in self._running if step.begins_s <= until + 1e-9 and _is_over(step)]:
            self._running.remove(step)
            self._done.append(self._ended(step))

    def _ended(self, step: _Running) -> Done:
        on_gpu = self._on_gpu(step)
        encoder = self._by_name[step.node].hardware_encoders[0] if on_gpu else "libx264"
        return Done(
            step.work, step.node, encoder if step.work.task in RENDERING else "", on_gpu,
            step.ready_s, step.bound_s, step.begins_s, self._now,
        )  # fmt: skip

    def _rates(self) -> list[tuple[_Running, float]]:
        """CPU-seconds of an ordinary core that each step gets done in a second."""
        found: list[tuple[_Running, float]] = []
        for node in self._cluster.nodes:
            active = [
                step
                for step in self._running
                if step.node == node.name and step.begins_s <= self._now + 1e-9 and not _is_over(step)
            ]
            slowed = self._slowed.get(node.name, 1.0)
            on_chip = [step for step in active if self._on_gpu(step) and step.one_core_left <= 0]
            for step in on_chip:
                found.append((step, REFERENCE_CORES * node.speed_for("encode") * self._pace.parallel * slowed))
            on_cores = [step for step in active if step not in on_chip]
            wishes = [1.0 if step.one_core_left > 0 else node.cpu_cores for step in on_cores]
            for step, cores in zip(on_cores, shared_out(node.cpu_cores, wishes), strict=True):
                together = 1.0 if step.one_core_left > 0 else self._pace.parallel
                found.append((step, cores * _core_speed(node, step.work) * together * slowed))
        return found

    def _on_gpu(self, step: _Running) -> bool:
        return step.placement is not None and step.placement.gpu_resource is not None

    def _all_cores_s(self, work: Work) -> float:
        """The step's own, and for the film's that of the segments which fit no others and are made again."""
        joined = [done for done in self._done if done.work.key in work.joins]
        return work.all_cores_s + sum(done.work.all_cores_s for done in made_again(joined))


def made_again(segments: Sequence[Done]) -> list[Done]:
    """The segments of another encoder than most frames have: they do not join without a re-encode."""
    frames: dict[str, int] = {}
    for segment in segments:
        frames[segment.encoder] = frames.get(segment.encoder, 0) + segment.work.frames
    kept = max(frames, key=lambda encoder: frames[encoder], default="")
    return [segment for segment in segments if segment.encoder != kept]


def shared_out(cores: float, wishes: Sequence[float]) -> list[float]:
    """What each of several processes gets of a node's cores: all the same, but none more than it can use."""
    given = [0.0] * len(wishes)
    left = cores
    for place, index in enumerate(sorted(range(len(wishes)), key=lambda index: wishes[index])):
        given[index] = min(wishes[index], left / (len(wishes) - place))
        left -= given[index]
    return given


def _core_speed(node: NodeCapability, work: Work) -> float:
    """How fast one of the node's cores is beside an ordinary one."""
    kind: WorkKind = "encode" if work.task in RENDERING and work.all_cores_s > 0 else "analyze"
    return REFERENCE_CORES * node.speed_for(kind, with_gpu=False) / node.cpu_cores


def _left(step: _Running) -> float:
    return step.one_core_left if step.one_core_left > 0 else step.all_cores_left


def _work_off(step: _Running, cpu_s: float) -> None:
    if step.one_core_left > 0:
        step.one_core_left = max(0.0, step.one_core_left - cpu_s)
        if step.one_core_left < 1e-9:
            step.one_core_left = 0.0
    else:
        step.all_cores_left = max(0.0, step.all_cores_left - cpu_s)


def _is_over(step: _Running) -> bool:
    return step.one_core_left <= 0 and step.all_cores_left <= 1e-9


def _run_pod() -> dict[str, Any]:
    """The run's own pod, as the deployment's launcher makes it."""
    launcher = yaml.safe_load(_INSTANCE.read_text())["run_launcher"]["config"]
    pod_spec = launcher["run_k8s_config"]["pod_spec_config"]
    config = {
        "container_config": {"resources": launcher["resources"]},
        "pod_template_spec_metadata": {"labels": {}},
        "pod_spec_config": {"affinity": pod_spec["affinity"]},
    }
    return _pod(_RUN, config)


def _pod(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    labels = {**config["pod_template_spec_metadata"]["labels"], "dagster/run-id": _RUN}
    return {
        "metadata": {"name": name, "namespace": _NAMESPACE, "labels": labels},
        "spec": {"containers": [config["container_config"]], **_in_api_words(config["pod_spec_config"])},
        "status": {"phase": "Pending"},
    }


def _in_api_words(value: Any) -> Any:
    """Names of fields as the API writes them; keys of labels have a slash and stay."""
    if isinstance(value, list):
        return [_in_api_words(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key if "/" in key else re.sub("_([a-z])", lambda match: match[1].upper(), key): _in_api_words(entry)
        for key, entry in value.items()
    }
