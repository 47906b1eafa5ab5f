"""A run as a person follows it: which asset is at work, how far it is, what went wrong.

Belongs here: turning a run's log entries into a picture of the run (pure), and the two ways to show it, live
bars on a terminal and plain lines elsewhere. Does not belong here: where the entries come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from montage_assets.progress import FrameProgress, parse_progress

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
    items: dict[str, FrameProgress] = field(default_factory=dict)
    mapped_done: int = 0
    mapped_started: int = 0

    @property
    def seconds(self) -> float | None:
        """Wall seconds from its first step's start to its last step's end."""
        return None if self.started is None or self.ended is None else self.ended - self.started

    @property
    def share(self) -> float:
        """0..1: frames done of the items that tell, else 0 until done."""
        if self.state == "done":
            return 1.0
        total = sum(item.total for item in self.items.values())
        return min(0.99, sum(item.done for item in self.items.values()) / total) if total else 0.0


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
        progress = parse_progress(entry.message)
        if progress is not None:
            asset.items[progress.title] = progress
            return f"  {entry.message}"
        if entry.level == "WARNING":
            self.warnings.append(entry.message)
            return f"  {entry.message}"
        return None

    def _start(self, name: str, asset: AssetView, entry: RunEntry) -> str | None:
        if "[" in (entry.step or ""):
            asset.mapped_started += 1
        if asset.started is not None:
            return None
        asset.state, asset.started = "working", entry.at
        return f"{name} ..."

    def _success(self, name: str, asset: AssetView, entry: RunEntry) -> str | None:
        asset.ended = entry.at
        step = entry.step or ""
        if "[" in step:
            asset.mapped_done += 1
            for title, item in asset.items.items():
                asset.items[title] = FrameProgress(title, item.total, item.total)
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

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress: Progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
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
            self._progress.update(task, completed=asset.share, detail=_detail(asset))
            if asset.state in ("done", "failed"):
                self._progress.stop_task(task)


def _detail(asset: AssetView) -> str:
    if asset.state == "failed":
        return "[red]failed[/red]"
    if asset.state == "done":
        return "[green]done[/green]"
    going = [item for item in asset.items.values() if item.done < item.total]
    if not going:
        return "working" if asset.state == "working" else ""
    item = going[-1]
    elapsed = time.time() - (asset.started or time.time())
    share = max(asset.share, 1e-3)
    left = f", {elapsed * (1 - share) / share:.0f} s left" if asset.share > 0.02 else ""
    more = f" (+{len(going) - 1} more)" if len(going) > 1 else ""
    return f"{_plain(item.title)} {item.done}/{item.total}{more}{left}"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
