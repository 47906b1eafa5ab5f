"""The sensor and the nightly sweep, on a real instance and real folders."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import dagster as dg
import pytest

from montage_assets.data_root import DataRoot
from montage_assets.definitions import defs
from montage_assets.sensors import CONTENT_TAG, input_folders, nightly_sweep


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as real:
        yield real


def put_montage(data: Path, name: str) -> Path:
    folder = data / "input" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clip.mp4").write_bytes(b"clip of " + os.fsencode(name))
    (folder / "song.mp3").write_bytes(b"song")
    return folder


def tick(instance: dg.DagsterInstance, cursor: str | None) -> dg.SensorResult:
    context = dg.build_sensor_context(instance=instance, cursor=cursor, definitions=defs)
    result = input_folders(context)
    assert isinstance(result, dg.SensorResult)
    return result


def ticks(instance: dg.DagsterInstance, count: int, cursor: str | None = None) -> list[dg.SensorResult]:
    results = []
    for _ in range(count):
        results.append(tick(instance, cursor))
        cursor = results[-1].cursor
    return results


def why_skipped(result: dg.SensorResult) -> str:
    assert result.skip_reason is not None
    return str(result.skip_reason.skip_message)


def test_a_settled_folder_is_registered_and_requested_in_one_tick(data: Path, instance: dg.DagsterInstance) -> None:
    put_montage(data, "holiday")
    first, second, third = ticks(instance, 3)
    assert not first.run_requests
    assert first.skip_reason is not None
    assert "holiday: still changing" in str(first.skip_reason.skip_message)
    (request,) = second.run_requests or []
    assert request.partition_key == "holiday"
    assert request.run_key == f"holiday-{request.tags[CONTENT_TAG]}-1"
    (added,) = second.dynamic_partitions_requests or []
    assert list(added.partition_keys) == ["holiday"]
    assert not third.run_requests


def test_a_touched_file_runs_nothing_and_a_changed_one_runs_again(data: Path, instance: dg.DagsterInstance) -> None:
    folder = put_montage(data, "holiday")
    made = ticks(instance, 2)[-1]
    os.utime(folder / "clip.mp4", (1, 1))
    touched = ticks(instance, 2, made.cursor)
    assert not [request for result in touched for request in result.run_requests or []]
    (folder / "clip.mp4").write_bytes(b"another clip")
    changed = ticks(instance, 2, touched[-1].cursor)
    (request,) = [request for result in changed for request in result.run_requests or []]
    assert request.run_key != (made.run_requests or [])[0].run_key


def test_a_clip_added_and_removed_again_makes_a_request_of_its_own(data: Path, instance: dg.DagsterInstance) -> None:
    folder = put_montage(data, "holiday")
    results = ticks(instance, 2)
    (folder / "more.mp4").write_bytes(b"more")
    results += ticks(instance, 2, results[-1].cursor)
    (folder / "more.mp4").unlink()
    results += ticks(instance, 2, results[-1].cursor)
    first, second, third = [request for result in results for request in result.run_requests or []]
    assert first.tags[CONTENT_TAG] == third.tags[CONTENT_TAG] != second.tags[CONTENT_TAG]
    assert len({request.run_key for request in (first, second, third)}) == 3


def test_a_settled_folder_is_not_read_again(
    data: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_montage(data, "holiday")
    made = ticks(instance, 2)[-1]
    monkeypatch.setattr(DataRoot, "open", lambda *_: pytest.fail("read again"))
    assert not [request for result in ticks(instance, 3, made.cursor) for request in result.run_requests or []]


def test_one_bad_folder_holds_up_no_other(
    data: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "locked", "vanishing", "two...dots", "new\nline", os.fsdecode(b"caf\xe9"), "misnamed"):
        put_montage(data, name)
    (data / "input" / "misnamed" / os.fsdecode(b"\xff.mp4")).write_bytes(b"1")
    (data / "input" / "default").mkdir()
    (data / "input" / "loose.mp4").write_bytes(b"1")
    open_file = DataRoot.open

    def open_what_may_be_read(root: DataRoot, key: str) -> IO[bytes]:
        if key == "input/locked/clip.mp4":  # rights hold nobody back who tests as root
            raise PermissionError(errno.EACCES, "Permission denied", key)
        if key == "input/vanishing/clip.mp4":
            (data / key).unlink(missing_ok=True)
        return open_file(root, key)

    monkeypatch.setattr(DataRoot, "open", open_what_may_be_read)
    second = ticks(instance, 2)[-1]
    assert [request.partition_key for request in second.run_requests or []] == ["good"]
    assert list((second.dynamic_partitions_requests or [])[0].partition_keys) == ["good"]
    told = why_skipped(tick(instance, second.cursor))
    told.encode()
    assert "\n" not in told
    for line in (
        "locked: clip.mp4 cannot be read (Permission denied)",
        "vanishing: no clip yet",
        "two...dots: its name has '...'",
        r"'new\nline': its name has",
        r"'caf\udce9': its name is not UTF-8",
        "misnamed: the name of",
        "default: the montage 'default' could be the folder",
    ):
        assert line in told
    (data / "input" / "vanishing" / "clip.mp4").write_bytes(b"1")
    assert [request.partition_key for request in sweep(instance)] == ["good"]


def test_a_file_that_vanishes_while_it_is_read_is_named(data: Path, instance: dg.DagsterInstance) -> None:
    folder = put_montage(data, "holiday")
    first = tick(instance, None)
    files = DataRoot(str(data)).list_files("input/holiday")
    (folder / "clip.mp4").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataRoot, "list_files", lambda root, key, recursive=True: files if "holiday" in key else [])
        second = tick(instance, first.cursor)
    assert "holiday: clip.mp4 vanished while it was read" in why_skipped(second)


def test_a_folder_named_default_is_made_where_no_media_lies_loose(data: Path, instance: dg.DagsterInstance) -> None:
    put_montage(data, "default")
    result = ticks(instance, 2)[-1]
    assert [request.partition_key for request in result.run_requests or []] == ["default"]


def test_loose_files_are_the_montage_default(data: Path, instance: dg.DagsterInstance) -> None:
    folder = put_montage(data, "x")
    for path in folder.iterdir():
        shutil.move(path, data / "input" / path.name)
    folder.rmdir()
    result = ticks(instance, 2)[-1]
    assert [request.partition_key for request in result.run_requests or []] == ["default"]


def test_an_empty_input_folder_says_so(data: Path, instance: dg.DagsterInstance) -> None:
    result = tick(instance, None)
    assert result.skip_reason is not None
    assert "nothing new in the input folder" in str(result.skip_reason.skip_message)


def sweep(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    result = nightly_sweep(dg.build_schedule_context(instance=instance))
    return result if isinstance(result, list) else []


def add_run(instance: dg.DagsterInstance, montage: str, content: str | None, status: dg.DagsterRunStatus) -> None:
    tags = {"dagster/partition": montage} | ({CONTENT_TAG: content} if content else {})
    instance.add_run(dg.DagsterRun(job_name="montage", status=status, tags=tags))


def test_the_sweep_requests_what_was_never_made_or_failed(data: Path, instance: dg.DagsterInstance) -> None:
    for name in ("made", "failed", "never"):
        put_montage(data, name)
    content = {request.partition_key: request.tags[CONTENT_TAG] for request in sweep(instance)}
    assert set(content) == {"made", "failed", "never"}
    add_run(instance, "made", content["made"], dg.DagsterRunStatus.SUCCESS)
    add_run(instance, "failed", content["failed"], dg.DagsterRunStatus.FAILURE)
    assert [request.partition_key for request in sweep(instance)] == ["failed", "never"]
    assert instance.has_dynamic_partition("montage", "never")


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.STARTED])
def test_the_sweep_asks_the_newest_run_what_the_film_is_of(
    data: Path, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    put_montage(data, "holiday")
    (request,) = sweep(instance)
    content = str(request.tags[CONTENT_TAG])
    add_run(instance, "holiday", content, dg.DagsterRunStatus.SUCCESS)
    add_run(instance, "holiday", "another", status)
    assert [request.partition_key for request in sweep(instance)] == ["holiday"]
    add_run(instance, "holiday", content, status)
    assert sweep(instance) == []


def test_the_sweep_leaves_a_film_alone_that_a_user_made_by_hand(data: Path, instance: dg.DagsterInstance) -> None:
    put_montage(data, "holiday")
    (request,) = sweep(instance)
    add_run(instance, "holiday", str(request.tags[CONTENT_TAG]), dg.DagsterRunStatus.SUCCESS)
    for _ in range(25):
        add_run(instance, "holiday", None, dg.DagsterRunStatus.SUCCESS)
    assert sweep(instance) == []


def test_the_sweep_asks_for_no_montage_without_song(data: Path, instance: dg.DagsterInstance) -> None:
    (put_montage(data, "holiday") / "song.mp3").unlink()
    result = nightly_sweep(dg.build_schedule_context(instance=instance))
    assert "holiday: no song yet" in str(result)
