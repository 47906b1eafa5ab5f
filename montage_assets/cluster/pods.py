"""Steps as pods: Dagster's k8s_job_executor, with each step placed by the capability matrix.

Belongs here: which steps become pods and which stay beside the run, and handing a placement to Dagster's own step
handler. Does not belong here: the decision itself (`placement`), or finding nodes (`manager`).
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.events import EngineEventData
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.manager import ClusterManager, discover_cluster
from montage_assets.cluster.measured import speeds_on
from montage_assets.cluster.mode import ClusterMode
from montage_assets.cluster.placement import RENDERING, Placement, Placer, Step, k8s_config
from montage_assets.cluster.tasks import FILM_SIZE_TAG, QUALITY_TAG, SOURCE_SIZE_TAG, TASK_TAG, Resolution, TaskType

if TYPE_CHECKING:
    from montage_assets.settings import Settings

BESIDE_THE_RUN = (TaskType.METADATA, TaskType.CLIP_SELECTION)
"""Planning, merging and deciding the edit take seconds; a pod takes four to twenty to start."""

UNKNOWN_SIZE = (3840, 2160)
"""A run of a part of the graph may not know how large its footage is: too much memory is better than too little."""

LOOK_EVERY_S = 0.2
"""A run has a dozen steps one after another, and each ends in between two looks at its log."""

HEALTH_CHECK_EVERY_S = 5
NODES_KNOWN_FOR_S = 30
_STOPPING_TAKES_S = 10
_NUMBER_OF_MAPPED_STEP = re.compile(r"\[\w*?_(\d+)\]$")
_DAGSTER_CONFIG_TAG = "dagster-k8s/config"
_NODE_VARIABLE = {"name": "MONTAGE_NODE", "value_from": {"field_ref": {"field_path": "spec.nodeName"}}}
"""Not in the step's tag, where it would replace the variables that the launcher hands on."""


def pod_executor(init_context: dg.InitExecutorContext, settings: Settings) -> dg.Executor:
    """The executor of runs whose steps are pods. Raises ClusterError with the reason when pods cannot be made here."""
    try:
        from dagster_k8s import K8sRunLauncher, k8s_job_executor
    except ImportError:
        raise ClusterError("dagster-k8s is not installed; `pip install 'montage-assets[cluster]'`") from None
    launcher = init_context.instance.run_launcher
    if not isinstance(launcher, K8sRunLauncher):
        raise ClusterError(
            f"this Dagster instance launches runs by {type(launcher).__name__}, and step pods need K8sRunLauncher; "
            "start the run on the cluster, e.g. by `montage launch`"
        )
    assert k8s_job_executor.executor_creation_fn is not None
    config: dict[str, Any] = {
        "retries": {"enabled": {}},
        "per_step_k8s_config": {},
        "step_k8s_config": {"container_config": {"env": [_NODE_VARIABLE]}},
    }
    try:
        pods: Any = k8s_job_executor.executor_creation_fn(init_context._replace(executor_config=config))
        _refuse_without_jobs(pods._step_handler._api_client, launcher.job_namespace)
    except ClusterError:
        raise
    except Exception as error:  # the client raises whatever a missing or malformed access makes it stumble over
        raise ClusterError(f"Kubernetes cannot be used: {' '.join(str(error).split())[:200]}") from None
    return StepDelegatingExecutor(
        PlacedSteps(pods._step_handler, settings),
        retries=RetryMode.ENABLED,
        sleep_seconds=LOOK_EVERY_S,
        check_step_health_interval_seconds=HEALTH_CHECK_EVERY_S,
        # Dagster's check refuses to start a step again that has begun, which a run that is taken up by a new pod
        # must do. Steps of ours may be done twice: what they make is found by its content.
        should_verify_step=False,
    )


def _refuse_without_jobs(api: Any, namespace: str) -> None:
    """Find out now, not at the first step, whether this account may work with jobs."""
    from kubernetes.client.exceptions import ApiException

    try:
        api.batch_api.list_namespaced_job(namespace, limit=1, _request_timeout=(3, 10))
    except ApiException as error:
        if error.status == 403:
            reason = f"this account may not list jobs in namespace {namespace}; apply deploy/k3s/base"
        else:
            reason = f"the Kubernetes API answered with HTTP {error.status}"
        raise ClusterError(reason) from None
    except Exception as error:
        reason = str(getattr(error, "reason", None) or error)
        raise ClusterError(f"the Kubernetes API is not reachable: {' '.join(reason.split())[-160:]}") from None


class PlacedSteps(StepHandler):
    """Starts light steps as processes beside the run, and the others as pods where the matrix wants them."""

    def __init__(self, pods: StepHandler, settings: Settings, processes: StepProcesses | None = None) -> None:
        super().__init__()
        self._pods = pods
        self._settings = settings
        self._processes = processes or StepProcesses()
        self._placer = Placer(settings.step_deadline_s, speeds_on(settings.data_root()))
        self._nodes = KnownNodes(settings)
        self._placed: dict[str, list[Placement]] = {}

    @property
    def name(self) -> str:
        """For Dagster's log."""
        return "PlacedSteps"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Start one attempt of one step."""
        key = _step_key(step_handler_context)
        step_context: Any = step_handler_context.get_step_context(key)
        task, complaint = _task_of(step_handler_context.step_tags[key])
        if complaint:
            yield dg.DagsterEvent.engine_event(step_context, complaint, EngineEventData())
        if task in BESIDE_THE_RUN:
            yield dg.DagsterEvent.step_worker_starting(
                step_context, message=f"Step {key} is started as a process beside the run.", metadata={}
            )
            self._processes.start(step_handler_context)
            return
        placement = self._place(step_handler_context, key, task)
        for warning in self._nodes.new_warnings():
            yield dg.DagsterEvent.engine_event(step_context, warning, EngineEventData())
        yield dg.DagsterEvent.engine_event(
            step_context, f"Step {key} goes {placement.summary}", EngineEventData(metadata=_as_metadata(placement))
        )
        yield from self._pods.launch_step(self._with_placement(step_handler_context, placement))

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Whether the process or pod of a step that has not ended is alive."""
        key = _step_key(step_handler_context)
        if _task_of(step_handler_context.step_tags[key])[0] in BESIDE_THE_RUN:
            health = self._processes.check(step_handler_context)
        else:
            health = self._pods.check_step_health(step_handler_context)
        # A step that has told its end is what it says, whatever became of its job since.
        return health if health.is_healthy or not _has_ended(step_handler_context, key) else _HEALTHY

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Stop a step."""
        key = _step_key(step_handler_context)
        if _task_of(step_handler_context.step_tags[key])[0] in BESIDE_THE_RUN:
            self._processes.stop(step_handler_context)
        else:
            yield from self._pods.terminate_step(step_handler_context)

    def _place(self, context: StepHandlerContext, key: str, task: TaskType) -> Placement:
        run = context.instance.get_run_by_id(context.execute_step_args.run_id) or context.dagster_run
        number = _NUMBER_OF_MAPPED_STEP.search(key)
        earlier = self._placed.setdefault(key, [])
        step = Step(
            key=key,
            task=TaskType.PREVIEW_RENDER if task in RENDERING and run.tags.get(QUALITY_TAG) == "preview" else task,
            film_size=_size_in(run.tags, FILM_SIZE_TAG),
            source_size=_size_in(run.tags, SOURCE_SIZE_TAG),
            turn=int(number[1]) - 1 if number else None,
            attempt=_attempt(context, key),
            lost_on=tuple(dict.fromkeys(placement.nodes[0] for placement in earlier if placement.nodes)),
        )
        placement = self._placer.place(step, self._nodes.cluster())
        earlier.append(placement)
        return placement

    def _with_placement(self, context: StepHandlerContext, placement: Placement) -> StepHandlerContext:
        config = k8s_config(placement, context.execute_step_args.run_id, self._settings.priority_class)
        return _PlacedContext(context, placement.step.key, json.dumps(config))


class _PlacedContext(StepHandlerContext):
    """The context of a step whose tags say where it goes. Dagster's handler reads nothing else of the placement."""

    def __init__(self, context: StepHandlerContext, step_key: str, config: str) -> None:
        self.__dict__.update(context.__dict__)
        self._step_key_placed, self._config = step_key, config

    @property
    def step_tags(self) -> Mapping[str, Mapping[str, str]]:
        tags = super().step_tags
        return {**tags, self._step_key_placed: {**tags[self._step_key_placed], _DAGSTER_CONFIG_TAG: self._config}}


class KnownNodes:
    """The capability matrix, read anew every now and then: nodes come and go during a long run."""

    def __init__(
        self,
        settings: Settings,
        discover: Callable[[Settings], ClusterManager] = discover_cluster,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        asks_kubernetes = settings.cluster_mode is ClusterMode.AUTO  # it is there: this run's steps are its pods
        self._settings = dataclasses.replace(settings, cluster_mode=ClusterMode.K8S) if asks_kubernetes else settings
        self._discover, self._clock = discover, clock
        self._cluster: ClusterManager | None = None
        self._read_at: float | None = None
        self._said: set[str] = set()
        self._to_say: list[str] = []

    def cluster(self) -> ClusterManager | None:
        """The nodes as they are now, or as they last were; None when they cannot be known."""
        if self._read_at is None or self._clock() - self._read_at > NODES_KNOWN_FOR_S:
            self._read_at = self._clock()
            found = self._read()
            self._cluster = found or self._cluster
        return self._cluster

    def new_warnings(self) -> list[str]:
        """What went wrong since the last call, each thing once in a run."""
        said, self._to_say = self._to_say, []
        return said

    def _read(self) -> ClusterManager | None:
        try:
            found = self._discover(self._settings)
        except Exception as error:  # steps can run unplaced, whatever is wrong with the description of the nodes
            self._warn(f"Steps are placed without the capability matrix: {' '.join(str(error).split())}")
            return None
        for warning in found.warnings:
            self._warn(warning)
        return None if found.mode is ClusterMode.LOCAL else found

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._to_say.append(text)


class StepProcesses:
    """Steps as processes beside the run, forked from a server that has the definitions loaded."""

    def __init__(self) -> None:
        self._server = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(["montage_assets.definitions", "dagster._cli"])
        self._processes: dict[tuple[str, int], BaseProcess] = {}

    def start(self, context: StepHandlerContext) -> None:
        """Start the step's own command line in a process."""
        arguments = context.execute_step_args.get_command_args()[1:]
        process = self._server.Process(target=_run_dagster, args=(arguments,), daemon=True)
        process.start()
        self._processes[_attempt_of(context)] = process

    def check(self, context: StepHandlerContext) -> CheckStepHealthResult:
        """Unhealthy when the process was killed, or is not one of ours (the run was taken up by another process)."""
        process = self._processes.get(_attempt_of(context))
        if process is None:
            return CheckStepHealthResult.unhealthy("the process of this step ended with the run's earlier process")
        if process.is_alive() or process.exitcode == 0:
            return CheckStepHealthResult.healthy()
        return CheckStepHealthResult.unhealthy(f"the process of this step ended with exit code {process.exitcode}")

    def stop(self, context: StepHandlerContext) -> None:
        """Ask the process to end, and see to it."""
        process = self._processes.get(_attempt_of(context))
        if process is None:
            return
        process.terminate()
        process.join(_STOPPING_TAKES_S)
        if process.is_alive():
            process.kill()


def _run_dagster(arguments: list[str]) -> None:
    from dagster._cli import cli

    cli(arguments)


_HEALTHY = CheckStepHealthResult.healthy()
_ENDS = {dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_UP_FOR_RETRY}


def _has_ended(context: StepHandlerContext, key: str) -> bool:
    """Whether this attempt of a step has logged its end, be it that the executor has not read it yet."""
    log = context.instance.get_records_for_run(context.execute_step_args.run_id, of_type=_ENDS).records
    ends = [record for record in log if record.event_log_entry.step_key == key]
    return len(ends) > _attempt(context, key)


def _step_key(context: StepHandlerContext) -> str:
    keys = context.execute_step_args.step_keys_to_execute
    assert keys is not None
    assert len(keys) == 1
    return keys[0]


def _attempt(context: StepHandlerContext, key: str) -> int:
    state = context.execute_step_args.known_state
    return int(state.get_retry_state().get_attempt_count(key)) if state else 0


def _attempt_of(context: StepHandlerContext) -> tuple[str, int]:
    key = _step_key(context)
    return key, _attempt(context, key)


def _task_of(tags: Mapping[str, str]) -> tuple[TaskType, str | None]:
    """The task that a step is tagged with, and what is wrong with the tag, if anything is."""
    name = tags.get(TASK_TAG)
    if name is None:
        return TaskType.CPU_INTENSIVE, None
    try:
        return TaskType.parse(name), None
    except ClusterError as error:
        return TaskType.CPU_INTENSIVE, f"Tag {TASK_TAG}: {error}; the step is placed as {TaskType.CPU_INTENSIVE.value}"


def _size_in(tags: Mapping[str, str], tag: str) -> Resolution:
    match = re.fullmatch(r"(\d+)x(\d+)", tags.get(tag, ""))
    return (int(match[1]), int(match[2])) if match else UNKNOWN_SIZE


def _as_metadata(placement: Placement) -> dict[str, Any]:
    size = placement.step.resolution
    return {
        "task": placement.step.task.value,
        "node": placement.nodes[0] if placement.nodes else "any",
        "next best": ", ".join(placement.nodes[1:4]) or "none",
        "why": placement.why,
        "resolution": f"{size[0]}x{size[1]}" if size else "unknown",
        "memory (GiB)": placement.memory_gb,
        "CPUs": placement.cpus,
        "GPU": placement.gpu_resource or "none",
        "encoder": placement.encoder or "on the CPU",
        "deadline (s)": placement.deadline_s,
    }
