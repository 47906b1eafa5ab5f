"""One attempt in the cloud: its entries, its circuit breaker, and what is told."""

from __future__ import annotations

import logging
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.journal import (
    Failed,
    Journal,
    Sent,
    all_failed,
    all_sent,
    last_sent,
    open_circuit,
    upload_rate,
)
from montage_assets.cloud.offload import LIMIT_S, Offload, Session
from montage_assets.cloud.policy import COSTS, Work, WorkKind
from montage_assets.data_root import DataRoot
from montage_assets.media.errors import MediaError
from montage_assets.settings import Settings
from tests.cloud.conftest import Cloud

SHOT = Work("upscale", 100.0)


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot(str(tmp_path / "data"))


@pytest.fixture
def settings(cloud: Cloud) -> Settings:
    return Settings.from_environment()


def offload(settings: Settings, root: DataRoot, run: str = "run") -> Offload:
    return Offload(settings, root, run, logging.getLogger("test"))


def failing(fault: CloudFault) -> object:
    def do(session: Session) -> int:
        raise CloudFailure(fault, "just so")

    return do


def failed(fault: CloudFault, work: str = "upscale") -> Failed:
    return Failed(0.0, "run", work, fault.name, fault.line)


def test_work_that_goes_well_tells_so_and_writes_down_what_was_sent(settings: Settings, root: DataRoot) -> None:
    def do(session: Session) -> int:
        session.on_sent("a shot", 1_000_000, 2.0)
        return 7

    outcome = offload(settings, root).attempt(lambda: SHOT, do)
    assert outcome.value == 7
    assert outcome.told.startswith("in the cloud: ")
    (sent,) = all_sent(root)
    assert (sent.run, sent.work, sent.what, sent.bytes, sent.seconds) == ("run", "upscale", "a shot", 1_000_000, 2.0)
    assert upload_rate([sent]) == 500_000


@pytest.mark.parametrize("fault", [fault for fault in CloudFault if fault is not CloudFault.NO_CONSENT])
def test_every_class_of_failure_falls_back_and_is_logged_once(
    fault: CloudFault, settings: Settings, root: DataRoot, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        outcome = offload(settings, root).attempt(lambda: SHOT, failing(fault))  # type: ignore[arg-type]
        again = offload(settings, root).attempt(lambda: SHOT, lambda session: 1)
    assert outcome.value is None
    assert outcome.told == f"here: {fault.line} (just so)"
    assert len([each for each in caplog.records if fault.line in each.getMessage()]) == 1
    assert (again.value is None) is fault.lasting
    if fault.lasting:
        assert again.told == outcome.told
    assert [entry.fault for entry in all_failed(root)] == [fault.name]


def test_another_run_asks_again(settings: Settings, root: DataRoot) -> None:
    offload(settings, root).attempt(lambda: SHOT, failing(CloudFault.QUOTA))  # type: ignore[arg-type]
    assert offload(settings, root).attempt(lambda: SHOT, lambda session: 1).value is None
    assert offload(settings, root, "next").attempt(lambda: SHOT, lambda session: 1).value == 1


def test_two_passing_failures_open_the_circuit_and_one_does_not() -> None:
    lost = failed(CloudFault.CONNECTION_LOST)
    assert open_circuit([], "beats") is None
    assert open_circuit([lost], "beats") is None
    assert open_circuit([lost, lost], "beats") == CloudFault.CONNECTION_LOST.line


def test_a_gpu_without_an_encoder_may_still_upscale() -> None:
    without = [failed(CloudFault.NO_ENCODER, "encode")]
    assert open_circuit(without, "encode") == CloudFault.NO_ENCODER.line
    assert open_circuit(without, "upscale") is None
    assert open_circuit([failed(CloudFault.WRONG_RESULT, "beats")] * 9, "scenes") is None


def test_the_circuit_is_open_for_the_other_processes_of_the_run(settings: Settings, root: DataRoot) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(_fail_elsewhere, (root.url,))
    assert Journal(root, "run").open_circuit("upscale") == CloudFault.OFFLINE.line


def _fail_elsewhere(url: str) -> None:
    Journal(DataRoot(url), "run").failed("beats", CloudFailure(CloudFault.OFFLINE))


def test_a_failure_that_a_newer_version_wrote_down_is_taken_seriously() -> None:
    assert open_circuit([replace(failed(CloudFault.BUSY), fault="NEWER")], "beats") is not None


def test_what_cannot_be_prepared_is_done_here_and_does_not_count_against_the_cloud(
    settings: Settings, root: DataRoot
) -> None:
    def do(session: Session) -> int:
        raise MediaError("song.mp3 has no sound")

    outcome = offload(settings, root).attempt(lambda: SHOT, do)
    assert outcome.told == "here: it cannot be prepared for the cloud: song.mp3 has no sound"
    assert all_failed(root) == []


def test_a_fault_of_the_programs_own_is_not_hidden(settings: Settings, root: DataRoot) -> None:
    with pytest.raises(ZeroDivisionError):
        offload(settings, root).attempt(lambda: SHOT, lambda session: 1 // 0)


def test_a_run_with_an_odd_name_keeps_to_its_folder(root: DataRoot) -> None:
    Journal(root, "../../etc").failed("beats", CloudFailure(CloudFault.BUSY))
    (entry,) = all_failed(root)
    assert entry.run == "______etc"


def test_entries_come_in_the_order_of_time_whatever_their_runs_are_called(root: DataRoot) -> None:
    for number, run in enumerate(("z", "a", "m")):
        Journal(root, run).sent("beats", str(number), 1, 1.0)
    assert [entry.what for entry in all_sent(root)] == ["0", "1", "2"]
    assert [entry.what for entry in last_sent(root, 2)] == ["1", "2"]


def test_small_uploads_tell_nothing_of_the_line() -> None:
    assert upload_rate([Sent(0.0, "run", "beats", "x", 1000, 3.0)]) is None


def test_every_kind_of_work_has_a_limit(settings: Settings) -> None:
    kinds: list[WorkKind] = list(COSTS)
    assert set(LIMIT_S) == set(kinds)
    assert all(limit > 0 for limit in LIMIT_S.values())
