"""Following a run by its log: what is at work, how far, and what to tell."""

from __future__ import annotations

from montage_assets.progress import FrameCounter, parse_progress
from montage_assets.run_view import RunEntry, RunView, asset_of


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
