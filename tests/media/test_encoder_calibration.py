"""Speed and quality are measured, and a number is found at which an encoder's pictures are as good as wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.encoders import Row, document
from montage_assets.media import calibration
from montage_assets.media.calibration import (
    MeasuredStore,
    Measurement,
    TestFilm,
    calibrated,
    made_film,
    measure,
    vmaf_of,
    with_number,
)
from montage_assets.media.encoders import ReadyEncoder, encoder_named, on_cpu
from montage_assets.media.errors import FfmpegFailed
from tests.media.stand_in_ffmpeg import stand_in


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> TestFilm:
    return made_film(tmp_path_factory.mktemp("film"), (320, 192), 8)


def test_the_test_film_is_the_same_every_time_and_as_long_as_it_says(film: TestFilm, tmp_path: Path) -> None:
    again = made_film(tmp_path, (320, 192), 8)
    assert again.path.read_bytes() == film.path.read_bytes()
    assert film.path.stat().st_size == 8 * 320 * 192 * 3 // 2


def test_a_better_level_measures_better_and_larger(film: TestFilm) -> None:
    found = [measure(on_cpu("h264"), quality, film) for quality in ("preview", "high")]
    assert [one.number for one in found] == [28, 18]
    assert (found[0].vmaf or 0) + 3 < (found[1].vmaf or 0) <= 100
    assert found[0].kilobits_per_s < found[1].kilobits_per_s
    assert all(one.fps > 0 for one in found)


def test_vmaf_compares_every_frame_with_its_own(film: TestFilm, tmp_path: Path) -> None:
    ready = with_number(on_cpu("h264"), "master", 1)
    out = tmp_path / "out.ts"
    calibration._encode(ready, "master", film, out)
    same = vmaf_of(ready, out, film)
    shifted = tmp_path / "shifted.yuv"
    frame = 320 * 192 * 3 // 2
    raw = film.path.read_bytes()
    shifted.write_bytes(raw[frame:] + raw[:frame])
    other = vmaf_of(ready, out, replace(film, path=shifted))
    assert same is not None
    assert other is not None
    assert same > 95
    assert other < same - 5


@pytest.mark.parametrize(("codec", "first"), [("h264", 45.0), ("av1", 10.0)])
def test_calibration_finds_the_number_for_a_wanted_vmaf(codec: str, first: float, film: TestFilm) -> None:
    wanted = with_number(on_cpu(codec), "preview", 33)  # type: ignore[arg-type]
    target = calibration._mean_vmaf(wanted, "preview", [film])
    found = calibrated(with_number(wanted, "preview", first), "preview", [target], [film])
    assert abs(calibration._mean_vmaf(found, "preview", [film]) - target) <= 1.0
    assert found.number("standard") == wanted.number("standard")


def test_calibration_goes_the_other_way_where_larger_numbers_are_better(film: TestFilm) -> None:
    upside_down = replace(
        encoder_named("libx264"),
        quality={"preview": ("-preset", "superfast", "-b:v", "{bitrate}")},
        numbers={"preview": 0.05},
        scale=(0.01, 2),
    )
    found = calibrated(ReadyEncoder(upside_down), "preview", [85.0], [film])
    assert found.number("preview") > 0.05
    assert abs(calibration._mean_vmaf(found, "preview", [film]) - 85.0) < 4


def test_an_encode_that_fails_is_no_measurement(
    film: TestFilm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in(tmp_path / "bin", monkeypatch, {"h264_amf": "broken"}), pytest.raises(FfmpegFailed, match="h264_amf"):
        measure(ReadyEncoder(encoder_named("h264_amf")), "standard", film)


def test_measurements_are_kept_for_the_machine_and_its_drivers(tmp_path: Path) -> None:
    found = Measurement("h264_vaapi", "/dev/dri/renderD128", "high", 21.0, 130.0, 96.5, 4000.0)
    MeasuredStore(tmp_path, "driver 1").put(found)
    assert MeasuredStore(tmp_path, "driver 1").get("h264_vaapi", "/dev/dri/renderD128", "high") == found
    assert MeasuredStore(tmp_path, "driver 1").get("h264_vaapi", "/dev/dri/renderD129", "high") is None
    assert MeasuredStore(tmp_path, "driver 2").get("h264_vaapi", "/dev/dri/renderD128", "high") is None


def test_the_benchmarks_page_shows_how_far_each_encoder_is_from_x264() -> None:
    found = Measurement("h264_vaapi", "/dev/dri/renderD128", "high", 21.0, 130.4, 96.5, 4000.0)
    page = document([Row(found, 97.25, 19.0)], 3, "Machine: one.", [("h264_amf", "no runtime")])
    assert "| high | h264_vaapi on /dev/dri/renderD128 | 21 | 96.50 | -0.75 | 4000 | 130 | 19 |" in page
    assert "- h264_amf: no runtime" in page
