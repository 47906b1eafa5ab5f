"""A queue worker: `montage worker` carries out the steps of the queues that its type serves.

Belongs here: starting Celery's worker, keeping its leases and its place among the others, which queues it stands in
for, ending when there is nothing left to do. Does not belong here: which queue is whose (`queues`).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from montage_assets.cluster.broker import Broker, BrokerAwayError, LiveWorker, patiently, runs_on, waits_at
from montage_assets.cluster.queues import TYPE_FOR, app_args, queues_to_serve

if TYPE_CHECKING:
    from montage_assets.settings import Settings

_log = logging.getLogger(__name__)

IDLE_S = 60.0
"""How long the worker of a job waits for more work before it ends."""

_RENEWALS_PER_LEASE = 5
_PR_SET_PDEATHSIG = 1


def serve(settings: Settings, queue: str | None = None, until_idle_s: float | None = None) -> int:
    """Work on steps until told to end (SIGTERM or Ctrl-C: the steps at hand are finished first). Returns the exit code.

    `queue`: serve this one alone. `until_idle_s`: end after so long without work. Raises ClusterError with one line
    when Redis cannot be used.
    """
    queue = queue or settings.worker_task
    if until_idle_s is None and settings.worker_until_idle:
        until_idle_s = IDLE_S
    broker = Broker(settings)
    broker.require()
    name = worker_name(settings)
    presence = _Presence(settings, broker, name, queue, until_idle_s)
    app = worker_app(settings, broker, name)
    _load_what_steps_need()
    worker = app.Worker(
        hostname=name,
        pool="prefork",
        concurrency=settings.worker_concurrency,
        queues=list(presence.wanted_queues()),
        optimization="fair",
        loglevel="INFO",
        without_gossip=True,
        without_mingle=True,
    )
    presence.start(app)
    try:
        worker.start()
    finally:
        presence.stop()
    return int(worker.exitcode or 0)


def is_at_work(settings: Settings) -> bool:
    """Whether a worker of this host has shown a sign of life within a lease; for health checks."""
    host = f"@{socket.gethostname()}"
    try:
        return any(worker.name.endswith(host) for worker in Broker(settings).live_workers())
    except BrokerAwayError:
        return False


def worker_name(settings: Settings) -> str:
    """What a worker is called in logs and in the events of its steps."""
    return f"{settings.worker_name or settings.worker_type}-{os.getpid()}@{socket.gethostname()}"


def worker_app(settings: Settings, broker: Broker, name: str) -> Any:
    """The Celery app of a worker, with dagster-celery's task under our guard."""
    from celery.signals import task_postrun, worker_process_init
    from dagster_celery.config import dict_wrapper
    from dagster_celery.make_app import make_app
    from dagster_celery.tasks import create_task

    arguments = app_args(settings, is_worker=True)
    app = make_app({**arguments, "config_source": dict_wrapper(arguments["config_source"])})
    create_task(app, base=_guarded(broker, name))

    def finish(task_id: str, state: str | None = None, **_: object) -> None:
        if state in ("SUCCESS", "FAILURE"):
            patiently(lambda: broker.finish(task_id))

    task_postrun.connect(finish, weak=False)
    worker_process_init.connect(_die_with_the_worker, weak=False)
    return app


def _guarded(broker: Broker, name: str) -> type[Any]:
    """A base for the task: what no longer counts, and what somebody is at, is left alone."""
    from celery import Task
    from celery.exceptions import Ignore

    class GuardedTask(Task):  # type: ignore[misc]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            delivery = self.request.id
            if not patiently(lambda: broker.begin(delivery, name, os.getpid())):
                _log.warning("%s is left alone: it no longer counts, or another worker is at it", delivery)
                raise Ignore
            if not _is_wanted(kwargs["execute_step_args_packed"]):
                _log.warning("%s is left alone: its run is over", delivery)
                raise Ignore
            return super().__call__(*args, **kwargs)

    return GuardedTask


def _is_wanted(packed: Any) -> bool:
    """Whether the run of a step still goes on."""
    import dagster as dg
    from dagster._grpc.types import ExecuteStepArgs
    from dagster._serdes import unpack_value

    arguments = unpack_value(packed, as_type=ExecuteStepArgs)
    assert arguments.instance_ref is not None
    with dg.DagsterInstance.from_ref(arguments.instance_ref) as instance:
        run = instance.get_run_by_id(arguments.run_id)
    return run is not None and not run.is_finished


def _load_what_steps_need() -> None:
    """Before the first step, and once for all processes: they are forks of this one."""
    from montage_assets.definitions import defs
    from montage_assets.jobs import JOB_NAME

    defs.resolve_job_def(JOB_NAME)


def _die_with_the_worker(**_: object) -> None:
    """A process that outlives its killed worker would go on with a step that is given to another worker."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Presence:
    """Shows in Redis that this worker lives and what it has, and takes its place among the others.

    A thread of the worker's main process, where no step can hold it up.
    """

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        name: str,
        queue: str | None,
        until_idle_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker, self._kind, self._clock = broker, settings.worker_type, clock
        self._only, self._until_idle_s = queue, until_idle_s
        # What serves one queue alone counts as the type that this queue is for.
        kind = next((kind for work, kind in TYPE_FOR.items() if work == queue), settings.worker_type)
        self._me = LiveWorker(name, kind, (), settings.worker_concurrency)
        self._idle_since = clock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="presence", daemon=True)

    def wanted_queues(self) -> tuple[str, ...]:
        """The queues to serve now, by who else is there."""
        if self._only is not None:
            return (self._only,)
        others = [worker.kind for worker in self._broker.live_workers() if worker.name != self._me.name]
        return queues_to_serve(self._kind, [*others, self._kind])

    def start(self, app: Any) -> None:
        """Begin to show signs of life; the worker starts right after."""
        self._app = app
        self._thread.start()

    def stop(self) -> None:
        """The worker has ended."""
        self._is_over.set()
        self._thread.join()
        try:
            self._broker.sign_off(self._me.name)
        except BrokerAwayError:
            _log.warning("Redis is away; that this worker has ended shows when its lease runs out")

    def _loop(self) -> None:
        while not self._is_over.wait(self._broker.lease_s / _RENEWALS_PER_LEASE):
            try:
                self._show()
            except BrokerAwayError as error:
                _log.warning("Redis is away: %s", error)
            except Exception:  # without signs of life the worker's steps would be given away
                _log.exception("a sign of life failed")

    def _show(self) -> None:
        from celery.worker import state

        held = {request.id: request for request in (*_copied(state.reserved_requests), *_copied(state.active_requests))}
        self._broker.renew(
            (id_, runs_on(self._me.name, request.worker_pid) if request.worker_pid else waits_at(self._me.name))
            for id_, request in held.items()
        )
        served = tuple(self._app.amqp.queues.consume_from)
        self._broker.announce(replace(self._me, queues=served))
        if not state.should_stop:
            self._take_place(served)
            self._end_when_idle(bool(held))

    def _take_place(self, served: tuple[str, ...]) -> None:
        wanted = self.wanted_queues()
        mine = [self._me.name]
        for queue in wanted:
            if queue not in served:
                _log.info("serving %s as well: no %s worker is there", queue, TYPE_FOR.get(queue))
                self._app.control.add_consumer(queue, destination=mine)
        for queue in served:
            if queue not in wanted:
                _log.info("leaving %s to the %s worker", queue, TYPE_FOR.get(queue))
                self._app.control.cancel_consumer(queue, destination=mine)

    def _end_when_idle(self, is_busy: bool) -> None:
        if self._until_idle_s is None:
            return
        now = self._clock()
        if is_busy or any(self._broker.steps_in(queue) for queue in self.wanted_queues()):
            self._idle_since = now
        elif now - self._idle_since > self._until_idle_s:
            _log.info("no work for %.0f s: this worker ends", self._until_idle_s)
            self._idle_since = now
            self._app.control.shutdown(destination=[self._me.name])


def _copied(requests: Any) -> tuple[Any, ...]:
    """The members of a set that another thread changes."""
    while True:
        try:
            return tuple(requests)
        except RuntimeError:
            continue
