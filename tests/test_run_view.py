"""Following a run by its log: what is at work, how far, and what to tell."""

from __future__ import annotations

import io
import threading

import pytest

from montage_assets.progress import (
    FrameCounter,
    parse_planned,
    parse_progress,
    parse_still_working,
    planned_line,
    still_working,
)
from montage_assets.run_view import LiveDisplay, RunEntry, RunView, asset_of

SCORE = "scene_shards.score_shard[shard_{}]"


def told(*entries: RunEntry) -> tuple[RunView, list[str]]:
    view = RunView()
    lines = [view.add(entry) for entry in entries]
    return view, [line for line in lines if line is not None]


def test_progress_lines_tell_frames_speed_and_time_left() -> None:
    lines: list[str] = []
    clock = iter([0.0, 1.0, 10.0])
    counter = FrameCounter(lines.append, "clip: a of b.mp4", 1000, clock=lambda: next(clock))
    counter(50)
    counter(500)
    assert lines == ["clip: a of b.mp4: 500 of 1000 frames, 50 fps, 10 s left"]
    progress = parse_progress(lines[0])
    assert progress is not None
    assert (progress.title, progress.done, progress.total) == ("clip: a of b.mp4", 500, 1000)


def test_the_end_of_an_item_is_told_once_however_soon_it_comes() -> None:
    lines: list[str] = []
    counter = FrameCounter(lines.append, "a.mp4", 60, clock=iter([0.0, 0.5, 1.0, 1.1]).__next__)
    for done in (30, 60, 61):
        counter(done)
    assert lines == ["a.mp4: 60 of 60 frames, 60 fps, 0 s left"]


def test_an_item_without_frames_has_no_end_to_tell() -> None:
    lines: list[str] = []
    FrameCounter(lines.append, "a.mp4", 0, clock=iter([0.0, 0.5]).__next__)(0)
    assert lines == []


class Pauses(threading.Event):
    """An event whose `wait` returns at once, and says after some calls that the work is over."""

    def __init__(self, pauses: int) -> None:
        super().__init__()
        self.left = pauses
        self.told = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout == 5.0
        if self.left == 0:
            self.told.set()
            return super().wait(10)
        self.left -= 1
        return False


def test_work_that_cannot_count_says_every_five_seconds_that_it_goes_on() -> None:
    lines: list[str] = []
    pauses = Pauses(3)
    clock = iter([100.0, 105.0, 110.0, 115.2]).__next__
    with still_working(lines.append, "fingerprint of a: b.mp4", clock, pauses):
        assert pauses.told.wait(10)
    assert lines == [f"fingerprint of a: b.mp4: {seconds} s so far" for seconds in (5, 10, 15)]
    assert [parse_still_working(line) for line in lines] == ["fingerprint of a: b.mp4"] * 3


def test_still_working_ends_with_its_work_though_that_failed() -> None:
    pauses = Pauses(0)
    with pytest.raises(ZeroDivisionError), still_working(print, "work", stop=pauses):
        raise ZeroDivisionError
    assert pauses.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "still working"]


def test_the_plan_is_read_back_as_it_was_told() -> None:
    assert parse_planned(planned_line(12345)) == 12345
    assert parse_planned("5 parts are to do") is None


def test_other_log_lines_are_no_progress() -> None:
    assert parse_progress("1 of 3 segments are encoded already") is None


def test_an_asset_is_done_when_its_last_step_is() -> None:
    view, lines = told(
        RunEntry("STEP_START", "scene_shards.plan_scene_shards", "", 10.0),
        RunEntry("STEP_SUCCESS", "scene_shards.plan_scene_shards", "", 11.0),
        RunEntry("STEP_START", "scene_shards.score_shard[shard_1]", "", 11.0),
        RunEntry("LOG", "scene_shards.score_shard[shard_1]", "a.mp4: 30 of 60 frames, 30 fps, 1 s left", 12.0),
        RunEntry("STEP_SUCCESS", "scene_shards.score_shard[shard_1]", "", 13.0),
    )
    assert view.assets["scene_shards"].state == "working"
    view.add(RunEntry("STEP_SUCCESS", "scene_shards.merge_scenes", "", 14.0))
    assert (view.assets["scene_shards"].state, view.assets["scene_shards"].seconds) == ("done", 4.0)
    assert lines == ["scene_shards ...", "  a.mp4: 30 of 60 frames, 30 fps, 1 s left"]


def test_a_bar_stands_where_the_frames_are() -> None:
    view, _ = told(
        RunEntry("STEP_START", "rendered_segments.encode_segment[segment_1]", "", 0.0),
        RunEntry("LOG", "rendered_segments.encode_segment[segment_1]", "segment 1: 50 of 100 frames, 9 fps, 1 s", 1.0),
    )
    assert view.assets["rendered_segments"].share == 0.5


def test_a_failed_step_fails_its_asset_and_warnings_are_kept() -> None:
    view, lines = told(
        RunEntry("STEP_START", "footage", "", 0.0),
        RunEntry("LOG", "footage", "x.mp4 is left out: it is empty (0 bytes)", 0.5, "WARNING"),
        RunEntry("STEP_FAILURE", "footage", "", 1.0),
    )
    assert view.assets["footage"].state == "failed"
    assert view.warnings == ["x.mp4 is left out: it is empty (0 bytes)"]
    assert lines[-1] == "  x.mp4 is left out: it is empty (0 bytes)"


def test_steps_are_known_by_their_asset() -> None:
    names = ["footage", "scene_shards.score_shard[shard_2]", "make_montage", "film_checks"]
    assert [asset_of(step) for step in names] == ["footage", "scene_shards", "montage", "film_checks"]


def progress(shard: int, title: str, done: int, total: int, at: float) -> RunEntry:
    return RunEntry("LOG", SCORE.format(shard), f"{title}: {done} of {total} frames, 30 fps, 1 s left", at)


def started(*shards: int) -> list[RunEntry]:
    return [RunEntry("STEP_START", SCORE.format(shard), "", 10.0) for shard in shards]


def planned(frames: int) -> RunEntry:
    return RunEntry("LOG", "scene_shards.plan_scene_shards", planned_line(frames), 10.0)


def test_a_finished_mapped_step_closes_its_own_items_only() -> None:
    view, _ = told(
        planned(400),
        *started(1, 2),
        progress(1, "a.mp4", 60, 100, 12.0),
        progress(2, "b.mp4", 20, 200, 12.0),
        RunEntry("STEP_SUCCESS", SCORE.format(1), "", 13.0),
    )
    assert view.assets["scene_shards"].share == (100 + 20) / 400


def test_the_bar_and_the_time_left_are_those_of_the_whole_asset_when_the_plan_told_its_frames() -> None:
    view, lines = told(
        RunEntry("STEP_START", "scene_shards.plan_scene_shards", "", 9.0),
        planned(1000),
        *started(1),
        progress(1, "a.mp4", 90, 100, 20.0),
        progress(1, "a.mp4", 100, 100, 20.5),
    )
    asset = view.assets["scene_shards"]
    assert asset.share == 0.1
    assert asset.seconds_left(20.0) == 90.0
    assert len(lines) == 3, "the plan itself is for the bar alone"


def test_without_a_plan_the_bar_is_that_of_the_items_and_no_time_is_guessed() -> None:
    view, _ = told(*started(1, 2), progress(1, "a.mp4", 50, 100, 20.0))
    assert view.assets["scene_shards"].share == 0.5
    assert view.assets["scene_shards"].seconds_left(20.0) is None


def test_an_asset_of_one_step_needs_no_plan_for_its_time_left() -> None:
    view, _ = told(
        RunEntry("STEP_START", "make_montage", "", 0.0),
        RunEntry("LOG", "make_montage", "mixing the sound: 100 of 400 frames, 50 fps, 6 s left", 5.0),
    )
    assert view.assets["montage"].seconds_left(5.0) == 15.0


def test_items_that_turn_out_larger_than_planned_never_fill_the_bar() -> None:
    view, _ = told(planned(100), *started(1), progress(1, "a.mp4", 120, 120, 12.0))
    assert view.assets["scene_shards"].share == 0.99


def test_an_item_that_is_over_at_once_moves_the_bar_but_is_no_line() -> None:
    view, lines = told(planned(100), *started(1), progress(1, "a.mp4", 30, 30, 12.0))
    assert lines == ["scene_shards ..."]
    assert view.assets["scene_shards"].share == 0.3


def test_the_live_bars_name_what_is_at_work_and_when_it_will_be_done() -> None:
    terminal = io.StringIO()
    view, _ = told(
        RunEntry("STEP_START", "footage", "", 0.0),
        RunEntry("LOG", "footage", "fingerprint of [a].mp4: 5 s so far", 5.0),
        planned(100),
        *started(1),
        progress(1, "b.mp4", 30, 60, 12.0),
        progress(1, "c.mp4", 0, 40, 12.0),
    )
    with LiveDisplay(terminal) as display:
        display.show(view, None)
    shown = terminal.getvalue()
    assert "fingerprint of [a].mp4" in shown
    assert "c.mp4 0/40 (+1 more)" in shown
    assert "s left in all" in shown
