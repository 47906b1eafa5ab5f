"""Progress of long steps: one line in the step's log every few seconds.

Belongs here: the lines' forms (what is planned, how far an item is, that a step is still at work), written by steps
and read back by whatever displays a run's progress, so that a display needs nothing but the run's log.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from montage_assets.media.ffmpeg import Progress

EVERY_S = 2.0
STILL_WORKING_EVERY_S = 5.0
_LINE = re.compile(r"^(?P<title>.+): (?P<done>\d+) of (?P<total>\d+) frames, ")
_PLANNED = re.compile(r"^(?P<frames>\d+) frames are to do$")
_STILL_WORKING = re.compile(r"^(?P<what>.+): (?P<seconds>\d+) s so far$")


@dataclass(frozen=True)
class FrameProgress:
    """How far one step is with one item."""

    title: str
    done: int
    total: int


def parse_progress(message: str) -> FrameProgress | None:
    """The progress in a log line, None when it holds none."""
    found = _LINE.match(message)
    if found is None:
        return None
    return FrameProgress(found["title"], int(found["done"]), int(found["total"]))


def planned_line(frames: int) -> str:
    """The line in which a plan step tells how many frames its asset's mapped steps will do in all."""
    return f"{frames} frames are to do"


def parse_planned(message: str) -> int | None:
    """The frames in a `planned_line`, None for any other line."""
    found = _PLANNED.match(message)
    return None if found is None else int(found["frames"])


def parse_still_working(message: str) -> str | None:
    """What a line of `still_working` tells of, None for any other line."""
    found = _STILL_WORKING.match(message)
    return None if found is None else found["what"]


@contextlib.contextmanager
def still_working(
    log: Callable[[str], None],
    what: str,
    clock: Callable[[], float] = time.monotonic,
    stop: threading.Event | None = None,
) -> Iterator[None]:
    """Log `<what>: N s so far` every five seconds until the block ends; for work that cannot count itself.

    `stop` ends the lines early; its `wait` is the pause between two of them.
    """
    started = clock()
    stopped = stop or threading.Event()

    def tell() -> None:
        while not stopped.wait(STILL_WORKING_EVERY_S):
            log(f"{what}: {clock() - started:.0f} s so far")

    thread = threading.Thread(target=tell, name="still working", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


class FrameCounter:
    """Logs frames done, frames a second and the time left, at most every two seconds, and once when all are done."""

    def __init__(
        self, log: Callable[[str], None], title: str, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._title = title
        self._total = total
        self._clock = clock
        self._started = clock()
        self._logged = self._started
        self._ended = False

    def __call__(self, done: int) -> None:
        """Tell that `done` frames of this item are done."""
        now = self._clock()
        ends = done >= self._total > 0 and not self._ended
        if ends or now - self._logged >= EVERY_S:
            self._logged, self._ended = now, self._ended or ends
            self._log(self._line(done, now))

    def at_time(self, fps: float) -> Callable[[Progress], None]:
        """A callback for an ffmpeg that reports time, not frames, for a film of `fps` frames a second."""
        return lambda progress: self(round(progress.out_time_s * fps))

    @property
    def seconds(self) -> float:
        """Wall seconds since the start."""
        return max(self._clock() - self._started, 1e-6)

    def _line(self, done: int, now: float) -> str:
        total = max(self._total, done)
        rate = done / max(now - self._started, 1e-6)
        left = (total - done) / rate if rate > 0 else 0.0
        return f"{self._title}: {done} of {total} frames, {rate:.0f} fps, {left:.0f} s left"
