"""Nothing leaves the machine without consent."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from montage_assets.cloud import offload
from montage_assets.cloud.client import CGPUClient, run_cgpu_command
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.offload import Offload
from montage_assets.cloud.policy import Work
from montage_assets.media.errors import MediaError
from montage_assets.settings import Settings
from tests.assets.small_montage import write_montage
from tests.cloud.conftest import Cloud

ROOT = Path(__file__).parents[2]
NO_NETWORK = ["unshare", "--map-root-user", "--net"]


def can_be_cut_off() -> bool:
    """Whether this machine lets a process have a network of its own, with nothing in it."""
    if shutil.which(NO_NETWORK[0]) is None:
        return False
    return subprocess.run([*NO_NETWORK, "true"], capture_output=True).returncode == 0


def test_a_montage_without_consent_calls_no_cgpu_and_connects_to_nothing(
    data: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CGPU_GPU_ENABLED")
    for switch in ("CGPU_BEAT_DETECT", "CGPU_SCENE_DETECT", "CGPU_ENCODE"):
        monkeypatch.setenv(switch, "true")
    write_montage(data / "input" / "holiday")
    cut_off = NO_NETWORK if can_be_cut_off() else []
    command = [*cut_off, sys.executable, "-m", "tests.cloud.sandboxed_run", "holiday"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["made"]
    assert report["connections"] == []
    assert "cgpu" not in report["programs"]
    assert report["programs"], "the audit sees programs at all"
    assert cloud.calls() == []
    assert not (data / "work" / "cloud").exists()


def test_without_consent_a_client_refuses_before_it_does_anything(cloud: Cloud) -> None:
    client = CGPUClient(consent=False, config=cloud.folder / "config", lock=cloud.folder / "lock")
    for call in (
        lambda: client.run(["true"], timeout_s=5),
        lambda: client.copy(cloud.session, "/content/x", timeout_s=5),
        client.ask_status,
    ):
        with pytest.raises(CloudFailure) as failure:
            call()
        assert failure.value.fault is CloudFault.NO_CONSENT
    assert cloud.calls() == []
    assert not (cloud.folder / "lock").exists()


def test_a_command_by_itself_needs_consent_too(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGPU_GPU_ENABLED", "no")
    with pytest.raises(CloudFailure):
        run_cgpu_command(["true"])
    assert cloud.calls() == []


def test_without_consent_not_even_the_work_is_looked_at(cloud: Cloud, data: Path) -> None:
    def never() -> Work:
        raise AssertionError("looked at")

    without = Offload(Settings(), Settings.from_environment().data_root(), "run", logging.getLogger("test"))
    outcome = without.attempt(never, lambda session: 1)
    assert outcome.value is None
    assert without.metadata(outcome.told) == {}


def test_a_machine_without_a_way_out_is_offline_and_asks_nobody(
    cloud: Cloud, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CGPU_BEAT_DETECT", "true")
    monkeypatch.setattr(offload, "is_offline", lambda: True)
    settings = Settings.from_environment()
    here = Offload(settings, settings.data_root(), "run", logging.getLogger("test"))
    outcome = here.attempt(lambda: Work("beats", 100.0), lambda session: 1)
    assert outcome.told == "here: this machine is offline"
    assert cloud.calls() == []


ROUTES = "Iface\tDestination\tGateway\tFlags\neth0\t000200C0\t00000000\t0001\n"
DEFAULT = "eth0\t00000000\t010200C0\t0003\n"
ROUTE6 = f"{'0' * 32} 00 {'0' * 32} 00 {'fe80' + '0' * 28} 00000400 00000001 00000000 00000003     eth0\n"


@pytest.mark.parametrize(
    ("routes", "routes6", "offline"),
    [
        (ROUTES + DEFAULT, "", False),
        (ROUTES, "", True),
        (ROUTES, ROUTE6, False),
        (ROUTES, ROUTE6.replace("eth0", "  lo"), True),
    ],
)
def test_a_default_route_is_a_way_out(tmp_path: Path, routes: str, routes6: str, offline: bool) -> None:
    (tmp_path / "route").write_text(routes)
    (tmp_path / "route6").write_text(routes6)
    found = offload.is_offline(tmp_path / "route", tmp_path / "route6")
    assert found is offline


def test_a_machine_that_tells_no_routes_is_taken_to_be_online(tmp_path: Path) -> None:
    assert not offload.is_offline(tmp_path / "none", tmp_path / "none6")


@pytest.mark.parametrize("variable", ["CGPU_GPU_ENABLED", "CGPU_BEAT_DETECT", "CGPU_SCENE_DETECT", "CGPU_ENCODE"])
def test_a_switch_with_a_mistake_in_it_is_named(variable: str) -> None:
    with pytest.raises(MediaError, match=variable):
        Settings.from_environment({variable: "maybe"})


def test_switches_are_read_as_they_are_written() -> None:
    settings = Settings.from_environment({})
    assert not settings.cgpu_enabled
    assert (settings.cgpu_beat_detect, settings.cgpu_scene_detect, settings.cgpu_encode) == ("auto", "auto", "off")
    assert settings.cgpu_encode_threshold_s == 300
    chosen = Settings.from_environment(
        {
            "CGPU_GPU_ENABLED": "true",
            "CGPU_BEAT_DETECT": "true",
            "CGPU_SCENE_DETECT": "false",
            "CGPU_ENCODE": "auto",
            "CGPU_ENCODE_THRESHOLD": "60",
        }
    )
    assert chosen.cgpu_enabled
    assert (chosen.cgpu_beat_detect, chosen.cgpu_scene_detect, chosen.cgpu_encode) == ("on", "off", "auto")
    assert chosen.cgpu_encode_threshold_s == 60
