"""Every way in which cgpu fails, in a whole montage: it is made, the reason shows, the login is as it was.

One of each class befalls a run here, from its first call on. `python -m tests.cloud.whole_runs` has all of them befall
every kind of work, also in its middle.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from montage_assets.cloud.failures import CloudFault
from montage_assets.cloud.journal import all_sent
from montage_assets.data_root import DataRoot
from tests.cloud.cgpu_program import MODES
from tests.cloud.whole_runs import (
    MISHAPS,
    Prepared,
    prepare,
    refuse_what_failed,
    refuse_what_is_wrong,
    run_with,
)

ONE_OF_EACH_CLASS = {mishap.fault: name for name, mishap in reversed(MISHAPS.items())}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return prepare(tmp_path_factory.mktemp("prepared"), monkeypatch)


def test_every_mode_of_the_program_and_every_class_is_met() -> None:
    assert set(MODES) <= set(MISHAPS)
    assert set(ONE_OF_EACH_CLASS) == set(CloudFault) - {CloudFault.NO_CONSENT}


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH_CLASS.values()))
def test_the_montage_is_made_here_when_cgpu_fails(
    name: str, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mishap = MISHAPS[name]
    behaviour = name if name in MODES else ""
    run = run_with(
        prepared, tmp_path, monkeypatch, behaviour=behaviour, arrange=mishap.arrange, first=mishap.befalls[0]
    )
    refuse_what_is_wrong(mishap, run, prepared)
    assert len(run.cloud.calls()) == mishap.calls


def test_all_is_done_in_the_cloud_even_when_its_machine_changes_under_the_work(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(prepared, tmp_path, monkeypatch, behaviour="new-machine 3 3")
    refuse_what_failed(run, prepared)
    assert run.film.edit["music"]["tempo_bpm"] == pytest.approx(120, abs=0.1)
    sent = all_sent(DataRoot(str(tmp_path / "data")))
    assert {entry.work for entry in sent} == {"beats", "scenes", "upscale", "encode"}
    assert sum(entry.bytes for entry in sent) < 3e6
    reports = [json.loads(path.read_text()) for path in (tmp_path / "data" / "work" / "segments").rglob("*.json")]
    assert {report["encoder"] for report in reports} == {"h264_nvenc (Tesla T4, cloud)"}


def test_a_run_that_asked_for_an_encoder_by_name_sends_no_film(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the CPU was asked for is found again under the CPU's name: hardware must not have made it.
    run = run_with(prepared, tmp_path, monkeypatch, first="encode", encoders_here="off")
    assert run.cloud.calls() == []
    assert run.film.edit == prepared.film.edit
