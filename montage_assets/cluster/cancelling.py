"""A run that is to be cancelled is cancelled.

Dagster tells the process of a run once, by a signal. A step that may be tried again is then tried again, and a signal
that arrives while native code calls back is lost. The run's status stays: it is looked at here, and the signal sent
again and again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator

import dagster as dg

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0


@contextlib.contextmanager
def insisting_on_cancellation(
    instance: dg.DagsterInstance,
    run_id: str,
    interrupt: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGINT),
    every_s: float = _LOOK_EVERY_S,
) -> Iterator[None]:
    """Interrupt this process every two seconds from when the run's status says that it is to be cancelled."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(every_s):
            try:
                run = instance.get_run_by_id(run_id)
            except Exception as error:  # the database may be away for a while; the run itself will tell
                _log.warning("whether the run is to be cancelled cannot be told: %s", error)
                continue
            if run is not None and run.status is dg.DagsterRunStatus.CANCELING and not is_over.is_set():
                interrupt()

    thread = threading.Thread(target=watch, name="cancellation", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
