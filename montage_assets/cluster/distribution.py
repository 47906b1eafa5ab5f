"""Sharing out work among nodes of different speed.

Belongs here: pure functions on costs, speeds and names. Does not belong here: which nodes are fit for a task
(`routing`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


def balance(costs: Sequence[float], speeds: Sequence[float]) -> list[list[int]]:
    """For each worker the indexes of its items, ascending: longest item first, to whoever would finish it first.

    A worker of speed 2 gets twice the cost (list scheduling for uniform machines, Gonzalez, Ibarra and Sahni 1977).
    Ties go to the first worker and the first item, so the order of the workers is the order of preference.
    Raises ValueError without workers, or for a speed that is not positive.
    """
    if not speeds or not all(math.isfinite(speed) and speed > 0 for speed in speeds):
        raise ValueError(f"speeds must be positive: {list(speeds)}")
    loads = [0.0] * len(speeds)
    assigned: list[list[int]] = [[] for _ in speeds]
    for item in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        best = min(range(len(speeds)), key=lambda worker: ((loads[worker] + costs[item]) / speeds[worker], worker))
        loads[best] += costs[item]
        assigned[best].append(item)
    return [sorted(items) for items in assigned]


def measured_speeds(reports: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Cost per second of each node, from rows of {node, cost, seconds} of past runs.

    All of a node's work is added up before dividing, so long steps, which tell most, count most. Rows without a
    node, or whose cost or seconds are not positive numbers, say nothing and are passed over. The rows must be of
    one kind of work: pixels decoded and pixels encoded do not compare.
    """
    costs: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for row in reports:
        node, cost, took = row.get("node"), _positive(row.get("cost")), _positive(row.get("seconds"))
        if isinstance(node, str) and node and cost and took:
            costs[node] = costs.get(node, 0.0) + cost
            seconds[node] = seconds.get(node, 0.0) + took
    return {node: costs[node] / seconds[node] for node in costs}


def calibrate(stated: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Speeds of all nodes of `stated`, those measured in their measured proportions.

    Measured speeds come in units of their own. They are scaled so that the measured nodes together are as fast as
    stated, which leaves nodes never measured comparable. A single measured node therefore keeps its stated speed.
    """
    known = [node for node in stated if measured.get(node, 0.0) > 0]
    if not known:
        return dict(stated)
    scale = sum(stated[node] for node in known) / sum(measured[node] for node in known)
    return {node: measured[node] * scale if node in known else speed for node, speed in stated.items()}


@dataclass(frozen=True)
class ShardRange:
    """The part of a whole that one node gets: from `start` until before `end`, as exact shares of 1."""

    index: int
    count: int
    node: str
    start: Fraction
    end: Fraction

    @property
    def percent(self) -> str:
        """E.g. `25-50%`."""
        return f"{float(100 * self.start):.4g}-{float(100 * self.end):.4g}%"


def shard_ranges(nodes: Sequence[str], speeds: Sequence[float] | None = None) -> list[ShardRange]:
    """One range per entry of `nodes`, in their order, as wide as its speed; equal without speeds.

    The ranges cover the whole once: each starts exactly where the one before ends. Raises ValueError as `balance`.
    """
    rates = [1.0] * len(nodes) if speeds is None else list(speeds)
    if len(rates) != len(nodes) or not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise ValueError(f"{len(nodes)} nodes need as many positive speeds, not {rates}")
    exact = [Fraction(rate) for rate in rates]
    total = sum(exact, Fraction(0))
    edges = [sum(exact[:index], Fraction(0)) / total for index in range(len(exact) + 1)]
    return [ShardRange(index, len(nodes), node, edges[index], edges[index + 1]) for index, node in enumerate(nodes)]


def _positive(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value > 0 else None
