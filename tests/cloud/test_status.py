"""`montage cloud`: what it shows, and that it asks nobody without being told to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from montage_assets.cli import commands
from montage_assets.cloud import proof
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.journal import Journal
from montage_assets.cloud.proof import SHOT_FRAMES
from montage_assets.doctor import cloud_findings
from montage_assets.media import transnet, upscaling
from montage_assets.media.transnet import Compute, Looks, Window
from montage_assets.settings import Settings
from tests.cloud.cgpu_program import SESSION
from tests.cloud.conftest import Cloud
from tests.media.synth_footage import write_clip, write_song


def run(*args: str) -> Result:
    return CliRunner().invoke(commands, ["cloud", *args], catch_exceptions=False, standalone_mode=False)


def document(*args: str) -> dict[str, object]:
    return dict(json.loads(run("status", "--json", *args).output))


def journal() -> Journal:
    return Journal(Settings.from_environment().data_root(), "run-1")


def test_all_that_is_known_shows_and_nobody_is_asked(data: Path, cloud: Cloud) -> None:
    journal().sent("beats", "the sound of the song", 1_500_000, 3.0)
    journal().failed("beats", CloudFailure(CloudFault.QUOTA))
    shown = document()
    assert shown["consent"] is True
    assert shown["program"] == str(cloud.folder / "path" / "cgpu")
    assert shown["session"] == {
        "file": str(cloud.session), "state": "present", "age_days": 0.0, "refused": False, "fresh": True,
    }  # fmt: skip
    assert shown["ready"] is True
    assert {row["work"] for row in shown["would_send"]} == {"beats", "scenes", "neural scenes", "encode", "upscale"}  # type: ignore[attr-defined]
    assert (shown["sent"]["uploads"], shown["sent"]["bytes"], shown["sent"]["bytes_per_s"]) == (1, 1_500_000, 500_000)  # type: ignore[index]
    assert shown["failed"]["times"] == 1  # type: ignore[index]
    assert shown["circuit"] == "open in run run-1 for beats, scenes, neural scenes, encode, upscale"
    assert "used up" in str(shown["left"])
    assert cloud.calls() == []


def test_the_same_for_people(data: Path, cloud: Cloud) -> None:
    journal().sent("beats", "the sound of the song", 1_500_000, 3.0)
    text = run("status").output
    for line in (
        "consent:  given",
        "login:    present",
        "was sent: 1 uploads, 1.50 MB, at 0.50 MB/s",
        "circuit:  closed",
    ):
        assert line in text
    assert SESSION["refreshToken"] not in text  # type: ignore[operator]


def test_without_consent_it_says_that_nothing_leaves(data: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CGPU_GPU_ENABLED")
    text = run("status", "--ask").output
    assert "not given" in text
    assert text.count("never, without consent") == 5
    assert cloud.calls() == []


def test_switches_show_in_what_would_be_sent(data: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGPU_BEAT_DETECT", "true")
    monkeypatch.setenv("CGPU_SCENE_DETECT", "false")
    monkeypatch.setenv("CGPU_ENCODE", "true")
    when = {row["work"]: row["when"] for row in document()["would_send"]}  # type: ignore[attr-defined]
    assert when["beats"] == "always"
    assert when["scenes"] == "never, it is switched off"
    assert when["encode"] == "always for films over 300 s"


def test_a_login_that_google_refused_is_not_fresh_until_it_is_renewed(data: Path, cloud: Cloud) -> None:
    journal().failed("beats", CloudFailure(CloudFault.SESSION_LOST))
    assert document()["session"]["fresh"] is False  # type: ignore[index]
    cloud.session.write_text(json.dumps(SESSION))
    assert document()["session"]["fresh"] is True  # type: ignore[index]


def test_a_machine_without_cgpu_or_login_is_not_ready(
    data: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.session.unlink()
    assert (document()["ready"], document()["session"]["state"]) == (False, "missing")  # type: ignore[index]
    monkeypatch.setenv("PATH", "")
    assert document()["program"] is None


def test_the_doctor_tells_of_the_cloud_only_where_it_is_allowed(
    data: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ready,) = cloud_findings(Settings.from_environment())
    assert ready.state == "ok"
    assert "beats: where it pays" in ready.what
    cloud.session.unlink()
    (missing,) = cloud_findings(Settings.from_environment())
    assert (missing.state, missing.what) == ("warn", CloudFault.NO_SESSION.line)
    monkeypatch.setenv("CGPU_GPU_ENABLED", "false")
    assert cloud_findings(Settings.from_environment()) == []
    assert cloud.calls() == []


def test_the_account_is_asked_only_when_that_is_wanted(data: Path, cloud: Cloud) -> None:
    assert document("--ask")["left"] == "Eligible GPUs: T4, L4"
    assert cloud.calls() == [["status"]]
    cloud.behave("quota")
    assert document("--ask")["left"] == CloudFault.QUOTA.line


def test_the_proof_does_every_kind_of_work_and_says_what_failed(data: Path, cloud: Cloud, tmp_path: Path) -> None:
    write_song(tmp_path / "song.wav", bpm=120, duration_s=14)
    write_clip(tmp_path / "clip.mp4", (60, 70), seed=1)
    cloud.give_networks()
    result = run("prove", str(tmp_path / "song.wav"), str(tmp_path / "clip.mp4"))
    lines = result.output.splitlines()
    assert result.return_value == 1
    assert [line.split(",")[0] for line in lines] == [
        "ok   login and account", "FAIL GPU", "ok   beats", "ok   scenes", "ok   scenes by TransNet V2", "FAIL encode",
        "ok   upscale",
    ]  # fmt: skip
    assert "the same beats as here" in lines[2]
    assert "the same 2 scenes, within a frame, as here" in lines[3]
    assert "130 frames looked at on cuda" in lines[4]
    assert "25 frames of 640x360" in lines[6]


def test_the_proof_says_when_the_cloud_gives_something_else(
    data: Path, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_song(tmp_path / "song.wav", bpm=120, duration_s=6)
    write_clip(tmp_path / "clip.mp4", (20, 20), seed=1)
    cloud.give_networks()

    def bright(pictures: np.ndarray, windows: Sequence[Window], compute: Compute) -> Looks:
        return Looks([np.full(window.keep_until - window.keep_from, 0.9, np.float32) for window in windows], "cpu")

    def black(source: Path, output: Path, factor: int, device: str) -> None:
        write_clip(output, (SHOT_FRAMES,), size=(640, 360), filters="drawbox=t=fill:color=black")

    for module in (transnet, upscaling):
        monkeypatch.setattr(module, "is_installed", lambda: True)
    monkeypatch.setattr(transnet, "look", bright)
    monkeypatch.setattr(upscaling, "enlarge", black)
    monkeypatch.setattr(upscaling, "device_for", lambda compute: "cpu")
    monkeypatch.setattr(proof, "furthest_beat_s", lambda remote, here: math.inf)
    settings = Settings.from_environment()
    tried = proof.prove(settings, settings.data_root(), tmp_path / "song.wav", tmp_path / "clip.mp4")
    told = {each.what: each for each in tried}
    for what, said in {"beats": "beats", "scenes by TransNet V2": "answers", "upscale": "pictures"}.items():
        assert not told[what].worked
        assert f"other {said} than here" in told[what].told


def test_the_proof_needs_consent_and_files(data: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    from montage_assets.media.errors import MediaError

    with pytest.raises(MediaError, match="spelling"):
        run("prove", "no.wav", "no.mp4")
    monkeypatch.setenv("CGPU_GPU_ENABLED", "false")
    with pytest.raises(MediaError, match="CGPU_GPU_ENABLED"):
        run("prove", str(cloud.session), str(cloud.session))
    assert cloud.calls() == []
