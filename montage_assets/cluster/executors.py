"""The executors: how the steps of one run are carried out.

Belongs here: choosing and configuring Dagster's executors. Does not belong here: what a step does.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

PROCESSES = "processes"
_PRELOADED = ["montage_assets.definitions"]

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
    """Run config that gives a run so many step processes."""
    return {"execution": {"config": {PROCESSES: processes}}}


def local_executor(default_processes: int) -> dg.ExecutorDefinition:
    """Steps one after another in the run's own process, or, for more processes, in forked workers."""

    @dg.executor(
        name="local",
        config_schema={
            PROCESSES: dg.Field(
                int,
                default_value=default_processes,
                is_required=False,
                description="Step processes at a time; 1 runs every step in the run's own process.",
            )
        },
        requirements=dg.multiple_process_executor_requirements(),
    )
    def local(init_context: dg.InitExecutorContext) -> dg.Executor:
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
        return chosen.executor_creation_fn(init_context._replace(executor_config=config))

    return local
