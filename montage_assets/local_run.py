"""Run the job here and now, on the configured instance, and tell how it goes.

Belongs here: the instance of the command line, the run's config, following its log. Does not belong here:
argument parsing and printing (`cli`).
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import threading
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from montage_assets import layout
from montage_assets.assets.footage import Footage
from montage_assets.cluster.executors import execution_config, processes_for
from montage_assets.data_root import DataRoot
from montage_assets.failures import describe_cause
from montage_assets.io import read_record
from montage_assets.jobs import JOB_NAME
from montage_assets.media.errors import MediaError
from montage_assets.media.fingerprint import result_key
from montage_assets.run_view import RunDisplay, RunEntry, RunView
from montage_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

LEAST_FREE_BYTES = 32 << 20
_POLL_S = 0.5
_LAUNCH_TAG = "montage/launch"
"""Tells the run of this command from others, since Dagster names it only once it has started."""


@dataclass(frozen=True)
class Fault:
    """Why a run failed: the step and one line for the user. `is_input`: the user's files or settings."""

    step: str
    message: str
    is_input: bool


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    montage: str
    run_id: str
    faults: list[Fault]
    view: RunView


def montage_job() -> dg.JobDefinition:
    """The job, for Dagster to load in this process and in step processes."""
    from montage_assets.definitions import defs

    return defs.resolve_job_def(JOB_NAME)


def use_default_dagster_home(settings: Settings) -> None:
    """Without DAGSTER_HOME the instance lives beside the data, where `make dev` looks for it too."""
    if os.environ.get("DAGSTER_HOME"):
        return
    root = settings.data_root()
    home = Path(root.where("dagster")) if root.is_local else Path.home() / ".montage" / "dagster"
    config = home / "dagster.yaml"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(
            f"{home} cannot be made ({error.strerror}); set MONTAGE_DATA to a place for the data"
        ) from error
    if not config.exists():
        config.write_text("telemetry:\n  enabled: false\n")
    os.environ["DAGSTER_HOME"] = str(home)


def montage_name(root: DataRoot, folder: str) -> str:
    """The partition key of a folder: its name, made unique where another folder has that name already."""
    path = Path(folder)
    if root.is_local and path.parent == Path(root.where(layout.INPUT)):
        return path.name
    if root.is_local and path == Path(root.where(layout.INPUT)):
        return layout.DEFAULT_MONTAGE
    name = re.sub(r"[^\w .,()+=@-]|\.\.\.", "_", path.name).strip(". ") or "montage"
    taken_by = _folder_of(root, name)
    if (taken_by is None and not root.folder_exists(layout.input_folder(name))) or taken_by == folder:
        return name
    return f"{name}-{result_key(folder=folder)[:6]}"


def run_montage(
    settings: Settings, montage: str, footage_config: Mapping[str, Any], input_bytes: int, display: RunDisplay
) -> RunOutcome:
    """Run the job for one montage in this process and follow it on `display`."""
    import dagster as dg

    _collect_garbage_seldom()
    warnings.filterwarnings("ignore", module="dagster")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    processes = processes_for(input_bytes, os.cpu_count() or 1, settings.workers)
    run_config = {
        **execution_config(processes),
        "ops": {"footage": {"config": dict(footage_config)}},
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    launch = uuid.uuid4().hex
    view = RunView()
    with dg.DagsterInstance.get() as instance, display:
        instance.add_dynamic_partitions("montage", [montage])
        follower = _Follower(instance, launch, view, display)
        with follower:
            result = dg.execute_job(
                dg.reconstructable(montage_job),
                instance=instance,
                run_config=run_config,
                tags={"dagster/partition": montage, _LAUNCH_TAG: launch},
                raise_on_error=False,
            )
        faults = [] if result.success else _faults(result)
    return RunOutcome(montage, result.run_id, faults, view)


def refuse_full_disk(root: DataRoot) -> None:
    """Raise OSError before a run that could not even write its log. What a film needs is found out on the way."""
    free = root.free_bytes()
    if free is not None and free < LEAST_FREE_BYTES:
        raise OSError(errno.ENOSPC, "too little space", root.where(""))


def _collect_garbage_seldom() -> None:
    """Look no more through the half million objects of Dagster that live as long as this process does.

    That is a tenth of the cost of a run that finds everything done.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


class _Follower:
    """Reads the run's log from the instance while the run goes on, in a thread."""

    def __init__(self, instance: dg.DagsterInstance, launch: str, view: RunView, display: RunDisplay) -> None:
        self._instance, self._launch, self._view, self._display = instance, launch, view, display
        self._run_id: str | None = None
        self._cursor: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> _Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()

    def _loop(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._read()

    def _read(self) -> None:
        import dagster as dg

        if self._run_id is None:
            runs = self._instance.get_runs(dg.RunsFilter(tags={_LAUNCH_TAG: self._launch}), limit=1)
            if not runs:
                return
            self._run_id = runs[0].run_id
        while True:
            connection = self._instance.get_records_for_run(self._run_id, cursor=self._cursor)
            self._cursor = connection.cursor
            for record in connection.records:
                self._display.show(self._view, self._view.add(_as_entry(record.event_log_entry)))
            if not connection.has_more:
                return


def _as_entry(log: Any) -> RunEntry:
    event = log.dagster_event
    return RunEntry(
        kind="LOG" if event is None else event.event_type_value,
        step=log.step_key if event is None else event.step_key,
        message=log.user_message,
        at=log.timestamp,
        level=logging.getLevelName(log.level),
    )


def _faults(result: Any) -> list[Fault]:
    found = []
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        given = data.user_failure_data
        if given is not None:
            is_input = "input" in (given.metadata or {})
            found.append(Fault(event.step_key, given.description or "failed", is_input))
        else:
            cause = data.error
            while cause.cause is not None:
                cause = cause.cause
            if cause.cls_name == "DagsterExecutionInterruptedError":
                raise KeyboardInterrupt
            message = describe_cause(OSError(cause.message)) or cause.message.strip().splitlines()[0]
            found.append(Fault(event.step_key, message, False))
    return found or [Fault("run", "the run did not start; see its log in the Dagster UI", False)]


def _folder_of(root: DataRoot, montage: str) -> str | None:
    key = layout.record(montage, "footage")
    if not root.exists(key):
        return None
    try:
        return read_record(root, key, Footage).folder
    except ValueError:  # an older version's record says nothing about its folder
        return None
