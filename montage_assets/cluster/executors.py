"""The executor: where the steps of one run are carried out, as MONTAGE_EXECUTOR says.

Belongs here: choosing among local processes, queue workers (`queues`) and pods (`pods`), and falling back to local
processes where the others cannot be had. Does not belong here: what a step does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg
from dagster._core.execution.retries import RetryMode

from montage_assets.cluster.cancelling import insisting_on_cancellation
from montage_assets.cluster.errors import ClusterError
from montage_assets.settings import ExecutorName, Settings

PROCESSES = "processes"
FALLBACK_TAG = "montage/fallback"
"""On runs that were carried out otherwise than asked: why."""

_PRELOADED = ["montage_assets.definitions"]
_LONGEST_TAG = 250

ENOUGH_BYTES_FOR_PROCESSES = 8 << 30
"""From about here on, hours of analysis outweigh the two CPU-seconds that each step process costs."""


def processes_for(input_bytes: int, cpus: int, asked: int | None) -> int:
    """How many step processes a local run gets: as asked, else one, or half the cores for much footage.

    ffmpeg decodes and encodes in threads of its own, so one step at a time keeps a small machine busy.
    """
    if asked is not None:
        return asked
    return max(1, cpus // 2) if input_bytes >= ENOUGH_BYTES_FOR_PROCESSES else 1


def execution_config(processes: int) -> dict[str, Any]:
    """Run config that gives a local run so many step processes."""
    return {"execution": {"config": {PROCESSES: processes}}}


def step_executor(default_processes: int) -> dg.ExecutorDefinition:
    """The executor of the job. Which one it is shows only when a run starts, in the process that carries it out."""

    @dg.executor(
        name="montage_steps",
        config_schema={
            PROCESSES: dg.Field(
                int,
                default_value=default_processes,
                is_required=False,
                description="Step processes at a time of a local run; 1 runs every step in the run's own process.",
            )
        },
        requirements=dg.multiple_process_executor_requirements(),
    )
    def montage_steps(init_context: dg.InitExecutorContext) -> dg.Executor:
        settings = Settings.from_environment()
        chosen = _EXECUTORS[settings.executor]
        try:
            return chosen(init_context, settings)
        except ClusterError as error:
            reason = f"MONTAGE_EXECUTOR is {settings.executor}, but the steps are run on this machine: {error}"
            return _InsteadOf(reason, _local(init_context, settings))

    return montage_steps


def _local(init_context: dg.InitExecutorContext, settings: Settings) -> dg.Executor:
    """Steps one after another in the run's own process, or, for more processes, in forked workers."""
    processes = init_context.executor_config[PROCESSES]
    config: dict[str, Any]
    if processes == 1:
        chosen, config = dg.in_process_executor, {"retries": {"enabled": {}}}
    else:
        chosen = dg.multiprocess_executor
        config = {
            "max_concurrent": processes,
            "start_method": {"forkserver": {"preload_modules": _PRELOADED}},
            "retries": {"enabled": {}},
        }
    assert chosen.executor_creation_fn is not None
    return _Cancellable(chosen.executor_creation_fn(init_context._replace(executor_config=config)))


def _on_queues(init_context: dg.InitExecutorContext, settings: Settings) -> dg.Executor:
    from montage_assets.cluster.queues import celery_executor

    return celery_executor(init_context, settings)


def _in_pods(init_context: dg.InitExecutorContext, settings: Settings) -> dg.Executor:
    from montage_assets.cluster.pods import pod_executor

    return pod_executor(init_context, settings)


_EXECUTORS: Mapping[ExecutorName, Callable[[dg.InitExecutorContext, Settings], dg.Executor]] = {
    "local": _local,
    "celery": _on_queues,
    "k8s": _in_pods,
}


class _Cancellable(dg.Executor):
    """An executor whose run ends when it is cancelled in the UI or by `montage launch`."""

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> RetryMode:
        return self._executor.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        with insisting_on_cancellation(plan_context.instance, plan_context.run_id):
            yield from self._executor.execute(plan_context, execution_plan)


class _InsteadOf(dg.Executor):
    """An executor in another's place. It says why, once: in the log of the run and in a tag of it."""

    def __init__(self, reason: str, executor: dg.Executor) -> None:
        self._reason, self._executor = reason, executor

    @property
    def retries(self) -> RetryMode:
        return self._executor.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        plan_context.instance.add_run_tags(plan_context.run_id, {FALLBACK_TAG: self._reason[:_LONGEST_TAG]})
        plan_context.log.warning(self._reason)
        yield from self._executor.execute(plan_context, execution_plan)
