"""How a cost is taken: CPU-seconds and peak memory of a piece of work in a process of its own.

The machine may be shared, so wall time is never compared; contenders take turns, and each one's best and
median are kept. CPU-seconds are user and system time of the process and all its children.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """`peak_mb` is the peak resident memory of the Python process plus that of its largest child."""

    cpu_s: float
    peak_mb: float
    result: Any = None
    """What the work returned, as JSON carries it."""


@dataclass(frozen=True)
class Costs:
    """The rounds of one contender."""

    cpu_s: list[float]

    @property
    def best(self) -> float:
        return min(self.cpu_s)

    @property
    def median(self) -> float:
        return statistics.median(self.cpu_s)


def cost_of(work: Callable[[], object]) -> Cost:
    """Run `work` in a forked process, so that neither memory nor caches of another piece count."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(receiving)
            before = _cpu_s(resource.RUSAGE_SELF)
            result = work()
            cpu_s = _cpu_s(resource.RUSAGE_SELF) - before + _cpu_s(resource.RUSAGE_CHILDREN)
            peak_kb = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            with os.fdopen(sending, "wb") as pipe:
                pipe.write(json.dumps([cpu_s, peak_kb / 1024, result]).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise SystemExit("a benchmark failed; see above")
    return Cost(*json.loads(told))


def in_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Costs]:
    """Let every contender run once, then all again, `rounds` times."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            taken[name].append(cost_of(work).cpu_s)
    return {name: Costs(seconds) for name, seconds in taken.items()}


def paired_ratio(ours: Costs, theirs: Costs) -> float:
    """The median over the rounds of ours divided by theirs of the same round."""
    return statistics.median(mine / other for mine, other in zip(ours.cpu_s, theirs.cpu_s, strict=True))


def paired_difference(ours: Costs, theirs: Costs) -> float:
    """The median over the rounds of ours less theirs of the same round, in CPU-seconds."""
    return statistics.median(mine - other for mine, other in zip(ours.cpu_s, theirs.cpu_s, strict=True))


def children_cpu_s() -> float:
    """CPU-seconds of all finished children of this process."""
    return _cpu_s(resource.RUSAGE_CHILDREN)


def _cpu_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime
