"""Every way in which cgpu fails: the work is done here, the reason shows, the login is as it was."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import dagster as dg
import pytest

from montage_assets.assets.beats import analysis_of
from montage_assets.assets.footage import Footage, MusicFile
from montage_assets.cloud.failures import CloudFault
from montage_assets.cloud.journal import all_sent
from montage_assets.cloud.offload import LIMIT_S, Offload
from montage_assets.media.beat_analysis import BeatAnalysis
from montage_assets.media.beats import analyze_song
from montage_assets.settings import Settings
from montage_assets.spec import MontageSpec
from tests.assets.small_montage import run_job, write_montage
from tests.cloud.cgpu_program import MODES
from tests.cloud.conftest import Cloud

FAULTS = {
    "no-session": CloudFault.NO_SESSION,
    "session-lost": CloudFault.SESSION_LOST,
    "no-network": CloudFault.OFFLINE,
    "no-capacity": CloudFault.NO_CAPACITY,
    "quota": CloudFault.QUOTA,
    "blocked": CloudFault.BLOCKED,
    "too-many": CloudFault.TOO_MANY_RUNTIMES,
    "not-set-up": CloudFault.NOT_SET_UP,
    "lost-socket": CloudFault.CONNECTION_LOST,
    "new-machine": CloudFault.RUNTIME_CHANGED,
    "upload-refused": CloudFault.UPLOAD_FAILED,
    "upload-damaged": CloudFault.UPLOAD_DAMAGED,
    "download-damaged": CloudFault.DOWNLOAD_DAMAGED,
    "no-end-line": CloudFault.OUTPUT_UNREADABLE,
    "hangs": CloudFault.TIMED_OUT,
    "crashes": CloudFault.CRASHED,
    "theft": CloudFault.NOT_SET_UP,
}
"""What each way of the program to fail is told as; `echoes` is none."""


@pytest.fixture(scope="module")
def footage_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_montage(tmp_path_factory.mktemp("footage") / "holiday")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def test_every_mode_of_the_program_has_its_class() -> None:
    assert set(FAULTS) == set(MODES) - {"echoes"}


@pytest.fixture(scope="module")
def found_here(footage_folder: Path) -> BeatAnalysis:
    return analyze_song(footage_folder / "song.wav")


def footage_of(folder: Path) -> Footage:
    """Footage whose song alone matters."""
    music = MusicFile(str(folder / "song.wav"), "0123")
    return Footage("holiday", str(folder), MontageSpec(), [], [], music, [])


@pytest.mark.parametrize("mode", FAULTS)
def test_the_beats_are_found_here_when_cgpu_fails(
    mode: str,
    data: Path,
    cloud: Cloud,
    footage_folder: Path,
    found_here: BeatAnalysis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CGPU_BEAT_DETECT", "true")
    if mode == "hangs":
        monkeypatch.setitem(LIMIT_S, "beats", 1.5)
    # What is damaged or exchanged is so only after the workspace was made: its first call is let through.
    cloud.behave(
        f"{mode} 2" if mode in ("new-machine", "upload-refused", "upload-damaged", "download-damaged") else mode
    )
    before = (cloud.session.read_bytes(), cloud.session.stat().st_mtime_ns, cloud.session.stat().st_mode)
    settings = Settings.from_environment()
    root = settings.data_root()
    offload = Offload(settings, root, "run", logging.getLogger("test"))
    with caplog.at_level(logging.INFO, "test"):
        analysis, told = analysis_of(root, footage_of(footage_folder), offload)
    assert analysis == found_here
    line = FAULTS[mode].line
    assert told.startswith(f"here: {line}")
    assert len([record for record in caplog.records if line in record.getMessage()]) == 1
    assert (cloud.session.read_bytes(), cloud.session.stat().st_mtime_ns, cloud.session.stat().st_mode) == before
    assert "never-shown" not in caplog.text + told


def test_a_cloud_that_failed_for_good_is_not_asked_again_in_the_run(
    data: Path, cloud: Cloud, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = film_made(data, cloud, footage_folder, instance, monkeypatch, "no-capacity")
    assert told["beats"] == told["scene_shards"] == f"here: {CloudFault.NO_CAPACITY.line}"
    assert len(cloud.calls()) == 1


def test_a_cloud_that_hangs_is_given_up_at_its_limit_and_the_film_is_made(
    data: Path, cloud: Cloud, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("beats", "scenes"):
        monkeypatch.setitem(LIMIT_S, kind, 1.5)
    told = film_made(data, cloud, footage_folder, instance, monkeypatch, "hangs")
    assert CloudFault.TIMED_OUT.line in told["beats"]
    assert CloudFault.TIMED_OUT.line in told["scene_shards"]


def test_beats_and_scenes_come_from_the_cloud_even_when_its_machine_changes_under_the_work(
    data: Path, cloud: Cloud, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = film_made(data, cloud, footage_folder, instance, monkeypatch, "new-machine 3 3")
    assert told["beats"] == told["scene_shards"] == "in the cloud: it was asked for"
    edit = json.loads((data / "output" / "holiday" / "montage.json").read_text())
    assert edit["music"]["tempo_bpm"] == pytest.approx(120, abs=0.1)
    assert list(cloud.content.iterdir()) == [], "nothing is left lying on the cloud machine"
    sent = all_sent(Settings.from_environment().data_root())
    assert {entry.work for entry in sent} == {"beats", "scenes"}
    assert sum(entry.bytes for entry in sent) < 1e6


def test_segments_of_a_long_film_are_encoded_in_the_cloud(
    data: Path, cloud: Cloud, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_GPU_ENCODE", "auto")
    monkeypatch.setenv("CGPU_ENCODE", "true")
    monkeypatch.setenv("CGPU_ENCODE_THRESHOLD", "8")
    cloud.give_gpu("Tesla T4")
    film_made(data, cloud, footage_folder, instance, monkeypatch, "", beats_and_scenes="false")
    assert {report["encoder"] for report in segment_reports(data)} == {"h264_nvenc (Tesla T4, cloud)"}
    assert {report["fallback"] for report in segment_reports(data)} == {""}


def test_segments_are_encoded_here_when_the_gpu_cannot(
    data: Path, cloud: Cloud, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_GPU_ENCODE", "auto")
    monkeypatch.setenv("CGPU_ENCODE", "true")
    monkeypatch.setenv("CGPU_ENCODE_THRESHOLD", "8")
    cloud.give_gpu("NVIDIA A100-SXM4-40GB")
    film_made(data, cloud, footage_folder, instance, monkeypatch, "", beats_and_scenes="false")
    reason = f"cloud GPU: {CloudFault.NO_ENCODER.line} (NVIDIA A100-SXM4-40GB has none)"
    for report in segment_reports(data):
        assert "cloud" not in report["encoder"]
        assert report["fallback"].startswith(reason)


def test_a_run_that_asked_for_an_encoder_by_name_sends_no_film(
    data: Path, cloud: Cloud, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the CPU was asked for is found again under the CPU's name: hardware must not have made it.
    monkeypatch.setenv("LOCAL_GPU_ENCODE", "off")
    monkeypatch.setenv("CGPU_ENCODE", "true")
    monkeypatch.setenv("CGPU_ENCODE_THRESHOLD", "8")
    cloud.give_gpu("Tesla T4")
    film_made(data, cloud, footage_folder, instance, monkeypatch, "", beats_and_scenes="false")
    assert {report["encoder"] for report in segment_reports(data)} == {"libx264"}
    assert cloud.calls() == []


def segment_reports(data: Path) -> list[dict[str, str]]:
    reports = [json.loads(path.read_text()) for path in (data / "work" / "segments").rglob("*.json")]
    assert reports
    return reports


def film_made(
    data: Path,
    cloud: Cloud,
    footage_folder: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    beats_and_scenes: str = "true",
) -> dict[str, str]:
    """Make the montage with a cloud that behaves so; where each asset says that its work was done."""
    monkeypatch.setenv("CGPU_BEAT_DETECT", beats_and_scenes)
    monkeypatch.setenv("CGPU_SCENE_DETECT", beats_and_scenes)
    shutil.copytree(footage_folder, data / "input" / "holiday")
    cloud.behave(behaviour)
    before = (cloud.session.read_bytes(), cloud.session.stat().st_mtime_ns)
    result = run_job("holiday", instance)
    assert result.success
    assert (cloud.session.read_bytes(), cloud.session.stat().st_mtime_ns) == before
    with av.open(str(data / "output" / "holiday" / "montage.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 225
    made = [event.materialization for event in result.all_events if event.is_step_materialization]
    return {each.asset_key.path[-1]: str(each.metadata["done"].value) for each in made if "done" in each.metadata}
