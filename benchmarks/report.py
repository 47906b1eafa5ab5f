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
    return _put_together(_head(machine), [_written(section) for section in sections])


def updated(before: str, sections: Sequence[Section], machine: str) -> str:
    """The document with these sections in the place of those of the same title, else at the end.

    All else stays as it was written, the head included. Where there is no such document yet, a new one.
    """
    head, *parts = before.rstrip("\n").split(_NEW_PART)
    if not head.startswith(_TITLE) or not parts:
        return document(sections, machine)
    targets = parts[0].splitlines()
    written = {part.title: part for part in (_read(text, targets) for text in parts[1:])}
    written.update({section.title: _written(section) for section in sections})
    return _put_together(head, list(written.values()))


def section_text(section: Section) -> str:
    """One section as Markdown."""
    parts = [f"## {section.title}", section.method]
    if section.lines:
        parts.append(_table(Table(_FIGURES_HEAD, [[line.what, line.figure, line.target] for line in section.lines])))
    parts += [f"Missed, {line.what}: {line.why}" for line in section.lines if line.why]
    parts += [_table(table) for table in section.tables]
    return "\n\n".join(parts)


_TITLE = "# Benchmarks\n"
_NEW_PART = "\n\n## "
_FIGURES_HEAD = ["what", "figure", "target"]
_TARGETS_HEAD = [*_FIGURES_HEAD, ""]


@dataclass(frozen=True)
class _Part:
    """A section as it stands in the document, and its rows of the table of targets."""

    title: str
    text: str
    judged: list[str]


def _head(machine: str) -> str:
    return f"{_TITLE}\nWritten by `python -m benchmarks` (`make bench`); do not edit.\n\n{machine}"


def _written(section: Section) -> _Part:
    judged = [
        _row([line.what, line.figure, line.target, "met" if line.met else "**missed**"])
        for line in section.lines
        if line.met is not None
    ]
    return _Part(section.title, section_text(section), judged)


def _read(text: str, targets: Sequence[str]) -> _Part:
    """A section of the document, without its two signs at the beginning."""
    figures = {line for line in text.splitlines() if line.startswith("| ") and line != _row(["---"] * 3)}
    judged = [row for row in targets if _row(_cells(row)[:3]) in figures and row != _row(_TARGETS_HEAD)]
    return _Part(text.partition("\n")[0], f"## {text}", judged)


def _put_together(head: str, parts: Sequence[_Part]) -> str:
    rows = [row for part in parts for row in part.judged]
    targets = "\n".join([_row(_TARGETS_HEAD), _row(["---"] * 4), *rows])
    return "\n\n".join([head, f"## Targets\n\n{targets}", *(part.text for part in parts)]) + "\n"


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().removeprefix("|").removesuffix("|").split("|")]


def _table(table: Table) -> str:
    return "\n".join(_row(cells) for cells in (table.head, ["---"] * len(table.head), *table.rows))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
