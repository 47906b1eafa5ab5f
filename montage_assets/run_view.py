"""A run as a person follows it: which asset is at work, how far it is, what went wrong.

Belongs here: turning a run's log entries into a picture of the run (pure), and the two ways to show it, live
bars on a terminal and plain lines elsewhere. Does not belong here: where the entries come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from montage_assets.progress import FrameProgress, parse_planned, parse_progress, parse_still_working

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

ASSETS = (
    "footage",
    "proxies",
    "scene_shards",
    "beats",
    "clip_selections",
    "rendered_segments",
    "montage",
    "film_checks",
)
"""The steps of the flow in order, as bars."""

_ENOUGH_TO_GUESS_S = 2.0
"""The speed of the first moments, while files are opened, says nothing about the rest."""


@dataclass(frozen=True)
class RunEntry:
    """One entry of a run's log. `kind` is Dagster's event type, or LOG for a line that a step logged."""

    kind: str
    step: str | None
    message: str
    at: float
    """Seconds since the epoch."""
    level: str = "INFO"


@dataclass
class AssetView:
    """How far one asset is."""

    state: str = "waiting"
    """waiting, working, done or failed."""
    started: float | None = None
    ended: float | None = None
    planned: int | None = None
    """Frames that all mapped steps together will do, as the plan step told."""
    counting_since: float | None = None
    """When the frames of `items` began to be done: at the plan, else at the first item's first step."""
    is_mapped: bool = False
    items: dict[tuple[str, str], FrameProgress] = field(default_factory=dict)
    """Progress by step and title."""
    busy_with: str = ""
    """What a step that cannot count is at."""

    @property
    def seconds(self) -> float | None:
        """Wall seconds from its first step's start to its last step's end."""
        return None if self.started is None or self.ended is None else self.ended - self.started

    @property
    def total(self) -> int:
        """Frames of the whole asset: as planned, and never fewer than its items have, whose sizes are estimates."""
        return max(self.planned or 0, sum(item.total for item in self.items.values()))

    @property
    def share(self) -> float:
        """0..1: frames done of all, below 1 until done; without a plan only of the items that have told."""
        if self.state == "done":
            return 1.0
        return min(0.99, self._done / self.total) if self.total else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the whole asset is done, at the speed so far; None where that cannot be told yet.

        What other steps of the asset have to do is known by the plan alone.
        """
        if self.state != "working" or self.counting_since is None or (self.is_mapped and self.planned is None):
            return None
        elapsed = now - self.counting_since
        if elapsed < _ENOUGH_TO_GUESS_S or self._done == 0:
            return None
        return elapsed * (self.total - self._done) / self._done

    def close_items_of(self, step: str) -> None:
        """A step has ended: what it was at is done, however many frames were told last."""
        for (of_step, title), item in self.items.items():
            if of_step == step:
                self.items[of_step, title] = FrameProgress(title, item.total, item.total)

    @property
    def _done(self) -> int:
        return sum(item.done for item in self.items.values())


class RunView:
    """The state of a run, fed entry by entry."""

    def __init__(self) -> None:
        self.assets = {name: AssetView() for name in ASSETS}
        self.warnings: list[str] = []

    def add(self, entry: RunEntry) -> str | None:
        """Take in one entry. Returns a line worth telling, if it is one."""
        if entry.step is None:
            return None
        name = asset_of(entry.step)
        asset = self.assets.get(name)
        if asset is None:
            return None
        if entry.kind == "LOG":
            return self._log(asset, entry)
        if entry.kind == "STEP_START":
            return self._start(name, asset, entry)
        if entry.kind == "STEP_SUCCESS":
            return self._success(name, asset, entry)
        if entry.kind == "STEP_FAILURE":
            asset.state, asset.ended = "failed", entry.at
        return None

    def _log(self, asset: AssetView, entry: RunEntry) -> str | None:
        planned = parse_planned(entry.message)
        if planned is not None:
            asset.planned, asset.counting_since = planned, entry.at
            return None
        progress = parse_progress(entry.message)
        if progress is not None:
            return self._progress(asset, entry, progress)
        busy_with = parse_still_working(entry.message)
        if busy_with is not None:
            asset.busy_with = busy_with
            return f"  {entry.message}"
        if entry.level == "WARNING":
            self.warnings.append(entry.message)
            return f"  {entry.message}"
        return None

    def _progress(self, asset: AssetView, entry: RunEntry, progress: FrameProgress) -> str | None:
        key = (entry.step or "", progress.title)
        is_over_at_once = key not in asset.items and progress.done >= progress.total
        asset.items[key] = progress
        return None if is_over_at_once else f"  {entry.message}"

    def _start(self, name: str, asset: AssetView, entry: RunEntry) -> str | None:
        if "[" in (entry.step or ""):
            asset.is_mapped = True
        if asset.counting_since is None and (asset.is_mapped or "." not in (entry.step or "")):
            asset.counting_since = entry.at
        if asset.started is not None:
            return None
        asset.state, asset.started = "working", entry.at
        return f"{name} ..."

    def _success(self, name: str, asset: AssetView, entry: RunEntry) -> str | None:
        asset.ended = entry.at
        asset.busy_with = ""
        step = entry.step or ""
        asset.close_items_of(step)
        if not _is_last_step(step):
            return None
        asset.state = "done"
        return f"{name}: done in {asset.seconds or 0.0:.1f} s"


def asset_of(step: str) -> str:
    """The asset a step belongs to: `scene_shards.score_shard[shard_1]` is of `scene_shards`."""
    name = step.partition(".")[0].partition("[")[0]
    return "montage" if name == "make_montage" else name


def _is_last_step(step: str) -> bool:
    inner = step.partition(".")[2]
    return not inner or inner.startswith(("join_", "merge_", "collect_"))


class RunDisplay(Protocol):
    """Shows a run while it goes on."""

    def __enter__(self) -> RunDisplay: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, view: RunView, line: str | None) -> None:
        """Show the view; `line` is what was just told, if anything."""


class PlainDisplay:
    """One line for every thing worth telling; for logs and pipes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, view: RunView, line: str | None) -> None:
        """Write the line."""
        if line is not None:
            self._write(line)


class LiveDisplay:
    """A bar per asset with what it is busy with; for terminals."""

    def __init__(self, terminal: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress: Progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=Console(file=terminal),
            refresh_per_second=4,
        )
        self._tasks: dict[str, TaskID] = {
            name: self._progress.add_task(name, total=1.0, start=False, detail="") for name in ASSETS
        }

    def __enter__(self) -> LiveDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, view: RunView, line: str | None) -> None:
        """Move the bars."""
        for name, asset in view.assets.items():
            task = self._tasks[name]
            if asset.started is not None and not self._progress.tasks[task].started:
                self._progress.start_task(task)
            self._progress.update(task, completed=asset.share, detail=_detail(asset, time.time()))
            if asset.state in ("done", "failed"):
                self._progress.stop_task(task)


def _detail(asset: AssetView, now: float) -> str:
    if asset.state == "failed":
        return "[red]failed[/red]"
    if asset.state == "done":
        return "[green]done[/green]"
    if asset.state == "waiting":
        return ""
    going = [item for item in asset.items.values() if item.done < item.total]
    if going:
        more = f" (+{len(going) - 1} more)" if len(going) > 1 else ""
        doing = f"{_plain(going[-1].title)} {going[-1].done}/{going[-1].total}{more}"
    else:
        doing = _plain(asset.busy_with) or "working"
    left = asset.seconds_left(now)
    return doing if left is None else f"{doing}, {left:.0f} s left in all"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
