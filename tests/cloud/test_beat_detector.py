"""The beats of a song from the cloud are those found here."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from montage_assets.cloud.beat_detector import CGPUBeatDetector, read_analysis, song_length_s, write_song
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.shipped import SCRIPTS, packed_modules
from montage_assets.media.beat_analysis import BeatAnalysis
from montage_assets.media.beats import analyze_song
from montage_assets.media.errors import MediaError
from tests.cloud import cgpu_program
from tests.cloud.conftest import Cloud
from tests.media.synth_footage import write_clip
from tests.media.synth_footage import write_song as synthesise


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("song") / "it's a song.wav"
    synthesise(path, bpm=120, duration_s=20)
    return path


@pytest.fixture(scope="module")
def here(song: Path) -> BeatAnalysis:
    return analyze_song(song)


def test_the_clouds_beats_are_within_20_ms_of_those_found_here(cloud: Cloud, song: Path, here: BeatAnalysis) -> None:
    remote = CGPUBeatDetector(cloud.client()).analyze_remote(song)
    assert len(remote.beats_s) == len(here.beats_s)
    assert max(abs(np.subtract(remote.beats_s, here.beats_s))) <= 0.02
    assert remote.tempo_bpm == pytest.approx(here.tempo_bpm, abs=0.05)
    assert np.allclose(remote.energy, here.energy, atol=0.02)
    assert np.allclose(remote.onset_strength, here.onset_strength, atol=0.05)
    assert (remote.source, remote.hop_s) == (here.source, here.hop_s)


def test_the_four_things_asked_for_come_back_by_their_names(cloud: Cloud, song: Path, here: BeatAnalysis) -> None:
    found = CGPUBeatDetector(cloud.client()).detect_beats_remote(song)
    assert set(found) == {"beats", "tempo", "energy", "onset_strength"}
    assert found["tempo"] == pytest.approx(120, abs=0.1)
    assert len(found["energy"]) == len(here.energy)


def test_what_is_sent_is_small_and_is_the_sound_alone(cloud: Cloud, song: Path, tmp_path: Path) -> None:
    sent: list[int] = []
    CGPUBeatDetector(cloud.client(), lambda what, size, seconds: sent.append(size)).analyze_remote(song)
    assert sum(sent) < 0.5 * song.stat().st_size
    write_song(song, tmp_path / "song.flac")
    with av.open(str(tmp_path / "song.flac")) as flac:
        stream = flac.streams.audio[0]
        assert (stream.rate, stream.channels, len(flac.streams)) == (24000, 1, 1)
        assert set(flac.metadata) <= {"encoder"}


def test_the_script_runs_where_nothing_of_ours_is_installed(song: Path, tmp_path: Path) -> None:
    (tmp_path / "modules.zip").write_bytes(packed_modules(["montage_assets.media.beats"]))
    check = (
        "import runpy, sys; sys.argv = ['x', 'modules.zip', sys.argv[1], 'beats.json'];"
        f"runpy.run_path({str(SCRIPTS / 'find_beats.py')!r}, run_name='__main__');"
        "m = sys.modules['montage_assets.media.beats']; print(m.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", check, str(song)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=_with_ffmpeg(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "modules.zip" in done.stdout
    assert read_analysis((tmp_path / "beats.json").read_bytes()).tempo_bpm == pytest.approx(120, abs=0.1)


def _with_ffmpeg(folder: Path) -> dict[str, str]:
    from montage_assets.media.ffmpeg import ffmpeg_program

    programs = folder / "programs"
    programs.mkdir()
    (programs / "ffmpeg").symlink_to(ffmpeg_program())
    return {"PATH": str(programs)}


def test_the_modules_that_go_along_are_few_and_always_the_same() -> None:
    first = packed_modules(["montage_assets.media.beats"])
    assert first == packed_modules(["montage_assets.media.beats"])
    names = zipfile.ZipFile(BytesIO(first)).namelist()
    assert "montage_assets/media/beats.py" in names
    assert not [name for name in names if "dagster" in name or "/assets/" in name or "/cloud/" in name]
    assert len(first) < 60_000


def test_a_cloud_machine_without_ffmpeg_says_so(cloud: Cloud, song: Path) -> None:
    (cloud.state / "bin" / "ffmpeg").unlink()
    cgpu_program.give_program(cloud.state, "python3", f'PATH="{cloud.state}/bin" exec "{sys.executable}" "$@"')
    with pytest.raises(CloudFailure) as failure:
        CGPUBeatDetector(cloud.client()).analyze_remote(song)
    assert (failure.value.fault, failure.value.detail) == (CloudFault.TOOL_MISSING, "ffmpeg")


def test_a_song_without_sound_is_refused_before_anything_is_sent(cloud: Cloud, tmp_path: Path) -> None:
    write_clip(tmp_path / "silent.mp4", (20,), seed=1)
    with pytest.raises(MediaError):
        CGPUBeatDetector(cloud.client()).analyze_remote(tmp_path / "silent.mp4")
    assert cloud.calls() == []


@pytest.mark.parametrize(
    "change",
    [
        {"beats_s": []},
        {"beats_s": [1.0, 0.5]},
        {"beats_s": [1.0, 9e9]},
        {"beats_s": [-1.0, 2.0]},
        {"tempo_bpm": 0.0},
        {"tempo_bpm": "fast"},
        {"source": "magic"},
        {"energy": [float("nan")]},
        {"sections": None},
    ],
)
def test_a_result_that_is_no_analysis_is_refused(change: dict[str, Any], here: BeatAnalysis) -> None:
    value = {**dataclasses.asdict(here), **change}
    with pytest.raises(CloudFailure) as failure:
        read_analysis(json.dumps(value).encode())
    assert failure.value.fault is CloudFault.WRONG_RESULT


def test_a_result_that_is_whole_is_taken(here: BeatAnalysis) -> None:
    assert read_analysis(json.dumps(dataclasses.asdict(here)).encode()) == here
    with pytest.raises(CloudFailure):
        read_analysis(b"not json")


def test_a_songs_length_is_read_from_its_container(song: Path, tmp_path: Path) -> None:
    assert song_length_s(song) == pytest.approx(20, abs=0.1)
    (tmp_path / "no.wav").write_bytes(b"nothing")
    assert song_length_s(tmp_path / "no.wav") == 0.0
