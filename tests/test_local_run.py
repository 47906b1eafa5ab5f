"""Which montage a folder is, and why a run failed."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from montage_assets.data_root import DataRoot
from montage_assets.failures import plain_failures
from montage_assets.local_run import Fault, faults_of, folder_in_input, montage_name
from montage_assets.media.errors import FfmpegFailed, MediaError


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    """A data root that is reached by a link."""
    (tmp_path / "real" / "input" / "holiday").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    return DataRoot(str(tmp_path / "link"))


def test_a_folder_of_the_input_is_one_montage_by_whatever_path(root: DataRoot, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "raw"
    elsewhere.mkdir(parents=True)
    (tmp_path / "real" / "input" / "linked").symlink_to(elsewhere)
    for base in ("real", "link"):
        source = tmp_path / base / "input"
        assert montage_name(root, source / "holiday") == "holiday"
        assert montage_name(root, source / "linked") == "linked"
        assert montage_name(root, source) == "default"
        assert folder_in_input(root, source) == "default"


def test_a_folder_elsewhere_gets_a_name_that_no_other_folder_has(root: DataRoot, tmp_path: Path) -> None:
    for name in ("holiday", "trip"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
    assert folder_in_input(root, tmp_path / "elsewhere" / "trip") is None
    assert montage_name(root, tmp_path / "elsewhere" / "trip") == "trip"
    assert montage_name(root, tmp_path / "elsewhere" / "holiday").startswith("holiday-")
    assert folder_in_input(root, tmp_path / "real" / "input" / "..") is None


def test_a_folder_of_the_input_that_can_be_no_key_is_refused(root: DataRoot, tmp_path: Path) -> None:
    folder = tmp_path / "real" / "input" / "a...b"
    folder.mkdir()
    with pytest.raises(MediaError, match=r"a\.\.\.b cannot be a montage: its name has .* rename the folder"):
        montage_name(root, folder)


def faults_when(error: Exception, step: str) -> list[Fault]:
    @dg.op(name=step)
    def fail() -> None:
        with plain_failures():
            raise error

    @dg.job
    def run() -> None:
        fail()

    return faults_of(run.execute_in_process(raise_on_error=False).all_events)


def test_only_what_is_wrong_with_the_users_files_is_a_fault_of_input() -> None:
    wrong = MediaError("a.mp4 cannot be used")
    for step, is_input in (("footage", True), ("beats", True), ("clip_selections", True), ("make_montage", False)):
        assert faults_when(wrong, step) == [Fault(step, "a.mp4 cannot be used", is_input)]
    assert faults_when(FfmpegFailed("decoding failed"), "footage") == [Fault("footage", "decoding failed", False)]


def test_an_unexpected_error_is_told_by_its_first_line() -> None:
    assert faults_when(KeyError("bug"), "footage") == [Fault("footage", "KeyError: 'bug'", False)]


def test_failed_checks_are_told_by_name_and_detail_and_advice_is_not() -> None:
    @dg.asset
    def film() -> None: ...

    names = {"frame_count": True, "decodes_cleanly": True, "cuts_visible": False, "even_timestamps": True}

    @dg.multi_asset_check(
        specs=[dg.AssetCheckSpec(name, asset="film", blocking=blocking) for name, blocking in names.items()]
    )
    def film_checks():  # type: ignore[no-untyped-def]
        for name, blocking in names.items():
            yield dg.AssetCheckResult(
                check_name=name,
                passed=name == "even_timestamps",
                severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN,
                description="224 of 225 planned frames are there",
            )

    job = dg.Definitions([film], asset_checks=[film_checks], jobs=[dg.define_asset_job("run")])
    result = job.resolve_job_def("run").execute_in_process(raise_on_error=False)
    assert [fault.message for fault in faults_of(result.all_events)] == [
        "check frame_count failed: 224 of 225 planned frames are there",
        "check decodes_cleanly failed: 224 of 225 planned frames are there",
    ]
    assert not any(fault.is_input for fault in faults_of(result.all_events))
