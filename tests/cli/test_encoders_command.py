"""`montage encoders` tells the truth of the machine it runs on, also where ffmpeg pretends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from montage_assets import encoder_report
from montage_assets.cli import commands
from montage_assets.media import machine_encoders
from montage_assets.media.calibration import TestFilm, made_film
from montage_assets.media.encoder_table import ENCODERS
from montage_assets.media.encoders import encoder_named
from montage_assets.media.errors import MediaError
from montage_assets.media.machine_encoders import MachineEncoders
from montage_assets.settings import Settings
from tests.media.stand_in_ffmpeg import stand_in


@pytest.fixture(autouse=True)
def small_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and a test film that takes no time."""

    def small_film(folder: Path) -> TestFilm:
        return made_film(folder, (192, 128), 4)

    monkeypatch.setattr(encoder_report, "made_film", small_film)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(commands, ["encoders", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_encoder_of_the_table_is_measured_or_has_a_reason() -> None:
    document = json.loads(printed("--json"))
    assert [row["encoder"] for row in document["encoders"]] == [encoder.name for encoder in ENCODERS]
    for row in document["encoders"]:
        assert row["available"] == (row["reason"] == "")
        if row["family"] == "cpu":
            assert row["available"]
            assert row["bit_depths"] == [8, 10]
        assert (row["fps"] is not None and 20 < row["vmaf"] <= 100) == row["available"]
    assert [one["encoder"] for one in document["choices"]["h264"]["order"]][-1] == "libx264"


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leave the other encoders untested, which takes a while through a stand-in."""
    monkeypatch.setattr(machine_encoders, "ENCODERS", [encoder_named(name) for name in names])


def test_the_table_is_readable_and_names_reasons_and_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFMPEG_HWACCEL", "cuda")
    only(monkeypatch, "libx264", "h264_nvenc", "hevc_nvenc")
    with stand_in(tmp_path / "bin", monkeypatch, {"h264_nvenc": "works", "hevc_nvenc": "crash"}) as program:
        text = printed()
        assert "test h264_nvenc" in program.calls()
    assert text.splitlines()[2].split() == ["encoder", "device", "bits", "number", "fps", "VMAF", "kbit/s"]
    (choice,) = [line for line in text.splitlines() if line.startswith("h264 films of 1920x1080: ")]
    assert "libx264" in choice  # whether after the stand-in or before it is a matter of the speed measured
    assert "listed by ffmpeg, but the test encode crashed (SIGSEGV)" in text
    assert "FFMPEG_HWACCEL=cuda, but it cannot be used (hevc_nvenc on 0: listed by ffmpeg, but the test" in text


def test_what_works_is_neither_tested_nor_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "h264_amf")
    with stand_in(tmp_path / "bin", monkeypatch, {"h264_amf": "works"}) as program:
        for expected in (1, 1, 2):
            machine = MachineEncoders(tmp_path / "kept")
            (amf,) = machine.states("standard", fresh=expected == 2)
            assert amf.works
            assert len(program.calls()) == expected


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(MediaError, match="quality 'best'; choose one of preview"):
        printed("--quality", "best")


@pytest.mark.parametrize(
    ("variable", "value", "known"),
    [
        ("LOCAL_GPU_ENCODE", "maybe", "auto, on, off"),
        ("FFMPEG_HWACCEL", "dxva", "auto, none, cuda, nvenc, vaapi, qsv, amf, videotoolbox, v4l2m2m, nvmpi, vulkan"),
        ("OUTPUT_CODEC", "h264_omx", "h264, hevc, av1, libx264"),
    ],
)
def test_an_unknown_value_in_the_environment_is_refused_with_the_known_ones(
    variable: str, value: str, known: str
) -> None:
    with pytest.raises(MediaError, match=f"{variable} is '{value}'; set it to one of {known}"):
        Settings.from_environment({variable: value})


def test_results_are_kept_below_the_users_cache() -> None:
    assert Settings.from_environment({"HOME": "/home/a"}).encoder_cache == Path(
        "/home/a/.cache/montage-assets/encoders"
    )
    assert Settings.from_environment({"XDG_CACHE_HOME": "/c"}).encoder_cache == Path("/c/montage-assets/encoders")
    assert Settings.from_environment({}).encoder_cache is None
