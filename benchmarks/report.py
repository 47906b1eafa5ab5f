"""The document: sections of measured lines and tables, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """One figure. `target` is empty and `met` None where there is nothing to reach."""

    what: str
    figure: str
    target: str = ""
    met: bool | None = None
    why: str = ""
    """For a miss, the reason that profiling found."""


@dataclass(frozen=True)
class Table:
    """Rows under a head, all text."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """The answer to one question."""

    title: str
    method: str
    lines: list[Line] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def within(what: str, value: float, most: float, unit: str, why: str) -> Line:
    """A figure that is to be at most `most`. `why` is told only where it is missed."""
    met = value <= most
    figure = f"{value:.0f}" if most >= 100 else f"{value:.2f}"
    return Line(what, f"{figure}{unit}", f"at most {most:g}{unit}", met, "" if met else why)


def at_least(what: str, value: float, least: float, unit: str, why: str) -> Line:
    """A figure that is to be at least `least`. `why` is told only where it is missed."""
    met = value >= least
    return Line(what, f"{value:.1f}{unit}", f"at least {least:g}{unit}", met, "" if met else why)


def document(sections: Sequence[Section], machine: str) -> str:
    """The whole of docs/benchmarks.md."""
    parts = [
        "# Benchmarks\n\nWritten by `python -m benchmarks` (`make bench`); do not edit.\n\n" + machine,
        _summary(sections),
        *(_section(section) for section in sections),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(sections: Sequence[Section]) -> str:
    judged = [line for section in sections for line in section.lines if line.met is not None]
    rows = [[line.what, line.figure, line.target, "met" if line.met else "**missed**"] for line in judged]
    return "## Targets\n\n" + _table(Table(["what", "figure", "target", ""], rows))


def _section(section: Section) -> str:
    parts = [f"## {section.title}", section.method]
    if section.lines:
        rows = [[line.what, line.figure, line.target] for line in section.lines]
        parts.append(_table(Table(["what", "figure", "target"], rows)))
    parts += [f"Missed, {line.what}: {line.why}" for line in section.lines if line.why]
    parts += [_table(table) for table in section.tables]
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
