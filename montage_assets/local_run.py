"""Run the job here and now, on the configured instance, and tell how it goes.

Belongs here: the instance of the command line, the run's config, following its log, telling why it failed. Does not
belong here: argument parsing and printing (`cli`).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import signal
import sys
import threading
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from montage_assets import layout
from montage_assets.assets.footage import Footage
from montage_assets.cluster.executors import execution_config, processes_for
from montage_assets.data_root import DataRoot
from montage_assets.dead_runs import process_tag, report_dead_runs
from montage_assets.failures import describe_cause
from montage_assets.io import read_record
from montage_assets.jobs import JOB_NAME
from montage_assets.media.errors import MediaError
from montage_assets.media.fingerprint import result_key
from montage_assets.partitions import unfit_as_key
from montage_assets.run_view import RunDisplay, RunEntry, RunView
from montage_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

LEAST_FREE_BYTES = 32 << 20
INSTANCE_CONFIG = "dagster.yaml"
"""The one configuration of a Dagster instance, part of this package; `make dev` copies the same file."""

_POLL_S = 0.5
_INPUT_STEPS = {"footage", "beats", "clip_selections", "scene_shards.merge_scenes", "scene_shards.plan_looks"}
"""The steps whose unusable files are the user's; later ones read what the program itself has written."""

_INSIST_EVERY_S = 2.0
_CHECK_FAILED = "DagsterAssetCheckFailedError"
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
    config = home / INSTANCE_CONFIG
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(
            f"{home} cannot be made ({error.strerror}); set MONTAGE_DATA to a place for the data"
        ) from error
    if not config.exists():
        config.write_bytes(resources.files("montage_assets").joinpath(INSTANCE_CONFIG).read_bytes())
    os.environ["DAGSTER_HOME"] = str(home)


def folder_in_input(root: DataRoot, folder: Path) -> str | None:
    """The montage whose folder of the data root's input/ this is, by whatever links; None for a folder elsewhere."""
    if not root.is_local:
        return None
    source = Path(root.where(layout.INPUT)).resolve()
    if folder.resolve() == source:
        return layout.DEFAULT_MONTAGE
    for path in (folder.absolute(), folder.resolve()):
        if path.parent.resolve() == source and not path.name.startswith("."):
            return path.name
    return None


def montage_name(root: DataRoot, folder: Path) -> str:
    """The partition key of a folder: its name, made unique where another folder has that name already.

    Raises MediaError for a folder in input/ whose name cannot be one, as the sensor refuses it too.
    """
    in_input = folder_in_input(root, folder)
    if in_input is not None:
        unfit = unfit_as_key(in_input)
        if unfit is not None:
            raise MediaError(f"{folder} cannot be a montage: {unfit}")
        return in_input
    source = folder.resolve()
    name = re.sub(r"[^\w .,()+=@-]|\.\.\.", "_", source.name).strip(". ") or "montage"
    taken_by = _folder_of(root, name)
    if (taken_by is None and not root.folder_exists(layout.input_folder(name))) or taken_by == source:
        return name
    return f"{name}-{result_key(folder=str(source))[:6]}"


@contextlib.contextmanager
def stderr_for_the_display() -> Iterator[TextIO]:
    """The terminal's error stream for the display alone, while this process's own goes to a file in DAGSTER_HOME.

    Dagster, its step processes and native libraries write to stderr as they please, and no setting silences all
    of them; the file keeps what they said in the last run.
    """
    sys.stderr.flush()
    own = os.dup(2)
    log = os.open(Path(os.environ["DAGSTER_HOME"]) / "montage-make.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 2)
    os.close(log)
    try:
        with os.fdopen(os.dup(own), "w") as terminal:
            yield terminal
    finally:
        sys.stderr.flush()
        os.dup2(own, 2)
        os.close(own)


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
        report_dead_runs(instance)
        instance.add_dynamic_partitions("montage", [montage])
        interrupts = _Interrupts()
        with _Follower(instance, launch, view, display), interrupts:
            result = dg.execute_job(
                dg.reconstructable(montage_job),
                instance=instance,
                run_config=run_config,
                tags={"dagster/partition": montage, _LAUNCH_TAG: launch, **process_tag()},
                raise_on_error=False,
            )
        if interrupts.seen and not result.success:
            raise KeyboardInterrupt
        faults = [] if result.success else faults_of(result.all_events)
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


class _Interrupts:
    """Notes whether Ctrl-C or a termination arrived, whoever handles it, and insists until the run has ended.

    Dagster handles them in ways that differ by executor and loses one that arrives while native code calls back;
    an ffmpeg that the same Ctrl-C reaches looks like one that failed.
    """

    seen = False

    def __enter__(self) -> _Interrupts:
        self._over = threading.Event()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._insist, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._write_end)
        self._thread.join()
        os.close(self._read_end)

    def _insist(self) -> None:
        while not self.seen:
            arrived = os.read(self._read_end, 64)
            if not arrived:
                return
            self.seen = bool({signal.SIGINT, signal.SIGTERM} & set(arrived))
        while not self._over.wait(_INSIST_EVERY_S):
            os.kill(os.getpid(), signal.SIGINT)


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


def faults_of(events: Sequence[Any]) -> list[Fault]:
    """Why a run failed, by its Dagster events: one fault for each failed step, or for each check that it failed."""
    found: list[Fault] = []
    for event in events:
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        given = data.user_failure_data
        found += faults_of_step(
            event.step_key,
            description=None if given is None else given.description or "failed",
            labels=() if given is None else given.metadata or (),
            error_class=None if data.error is None else data.error.cls_name,
            error_message="failed" if data.error is None else _innermost(data.error).message,
            failed_checks=_failed_checks(events, event.step_key),
        )
    return found or [Fault("run", "the run did not start; see its log in the Dagster UI", False)]


def faults_of_step(
    step: str,
    *,
    description: str | None,
    labels: Collection[str],
    error_class: str | None,
    error_message: str,
    failed_checks: Sequence[str],
) -> list[Fault]:
    """The faults behind one failed step: what it said itself (`description`, `labels` of its metadata), else the
    blocking checks that it failed, else the innermost error."""
    if description is not None:
        return [Fault(step, description, "input" in labels and step in _INPUT_STEPS)]
    if error_class == _CHECK_FAILED:
        return [Fault(step, line, False) for line in failed_checks]
    return [Fault(step, describe_cause(OSError(error_message)) or error_message.strip().splitlines()[0], False)]


def failed_check_line(name: str, description: str | None) -> str:
    """What a user is told of a blocking check that did not pass."""
    return f"check {name} failed: {description}"


def _failed_checks(events: Sequence[Any], step: str) -> list[str]:
    evaluations = [
        event.asset_check_evaluation_data
        for event in events
        if event.event_type_value == "ASSET_CHECK_EVALUATION" and event.step_key == step
    ]
    return [
        failed_check_line(check.check_name, check.description)
        for check in evaluations
        if check.blocking and not check.passed
    ]


def _innermost(error: Any) -> Any:
    while error.cause is not None:
        error = error.cause
    return error


def _folder_of(root: DataRoot, montage: str) -> Path | None:
    key = layout.record(montage, "footage")
    if not root.exists(key):
        return None
    try:
        return Path(root.where(read_record(root, key, Footage).folder)).resolve()
    except ValueError:  # an older version's record says nothing about its folder
        return None
