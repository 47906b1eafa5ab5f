"""Every way in which cgpu fails: the work is done here, the reason shows, the login is as it was."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from montage_assets.assets.beats import analysis_of
from montage_assets.assets.footage import Footage, MusicFile
from montage_assets.cloud.failures import CloudFault
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
