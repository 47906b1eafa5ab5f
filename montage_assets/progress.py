"""Progress of long steps: one line in the step's log at least every few seconds.

Belongs here: the line's form, written by steps and read back by whatever displays a run's progress, so
that a display needs nothing but the run's log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from montage_assets.media.ffmpeg import Progress

EVERY_S = 2.0
_LINE = re.compile(r"^(?P<title>.+): (?P<done>\d+) of (?P<total>\d+) frames, ")


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


class FrameCounter:
    """Logs frames done, frames a second and the time left, at most every two seconds and at the end."""

    def __init__(
        self, log: Callable[[str], None], title: str, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._title = title
        self._total = total
        self._clock = clock
        self._started = clock()
        self._logged = self._started

    def __call__(self, done: int) -> None:
        """Tell that `done` frames of this item are done."""
        now = self._clock()
        if now - self._logged >= EVERY_S:
            self._logged = now
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
