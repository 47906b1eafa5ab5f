"""Faults of disk, rights and settings reach the user as one line that says what to do."""

from __future__ import annotations

import errno
from collections import namedtuple
from pathlib import Path

import dagster as dg
import pytest

from montage_assets.data_root import DataRoot
from montage_assets.failures import describe_cause, plain_failures
from montage_assets.local_run import refuse_full_disk
from montage_assets.media.errors import FfmpegFailed, MediaError


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full at /data/x; free some space"),
        (errno.EACCES, "permission is denied at /data/x; check who may write there"),
        (errno.EROFS, "the file system is read-only at /data/x"),
    ],
)
def test_a_fault_of_disk_or_rights_names_the_file_and_the_cure(number: int, words: str) -> None:
    with pytest.raises(dg.Failure) as failed, plain_failures():
        raise OSError(number, "system text", "/data/x")
    assert failed.value.description is not None
    assert failed.value.description.startswith(words)
    assert not failed.value.allow_retries


def test_an_input_fault_is_marked_and_not_retried_while_a_failed_ffmpeg_may_be() -> None:
    with pytest.raises(dg.Failure) as wrong_input, plain_failures():
        raise MediaError("pace: must be calm")
    with pytest.raises(dg.Failure) as failed_work, plain_failures():
        raise FfmpegFailed("encoding failed", "all of the log", from_outside=True)
    assert "input" in wrong_input.value.metadata
    assert not wrong_input.value.allow_retries
    assert "input" not in failed_work.value.metadata
    assert failed_work.value.allow_retries


def test_a_programming_error_is_not_dressed_up() -> None:
    with pytest.raises(KeyError), plain_failures():
        raise KeyError("bug")


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    behind = RuntimeError("the log could not be written")
    behind.__cause__ = OSError(errno.ENOSPC, "no space", "/data/x")
    assert "the disk is full at /data/x" in str(describe_cause(behind))
    assert "the disk is full" in str(describe_cause(RuntimeError("(sqlite3) database or disk is full")))
    assert describe_cause(RuntimeError("something else")) is None


def test_a_run_does_not_start_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    root = DataRoot(str(tmp_path))
    refuse_full_disk(root)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match="too little space") as refused:
        refuse_full_disk(root)
    assert "the disk is full" in str(describe_cause(refused.value))
