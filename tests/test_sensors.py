"""The sensor and the nightly sweep, on a real instance and real folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from montage_assets.definitions import defs
from montage_assets.sensors import CONTENT_TAG, input_folders, nightly_sweep


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as real:
        yield real


def put_montage(data: Path, name: str) -> Path:
    folder = data / "input" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clip.mp4").write_bytes(b"clip of " + name.encode())
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


def test_a_settled_folder_is_registered_and_requested_in_one_tick(data: Path, instance: dg.DagsterInstance) -> None:
    put_montage(data, "holiday")
    first, second, third = ticks(instance, 3)
    assert not first.run_requests
    assert first.skip_reason is not None
    assert "holiday: still changing" in str(first.skip_reason.skip_message)
    (request,) = second.run_requests or []
    assert request.partition_key == "holiday"
    assert request.run_key == f"holiday-{request.tags[CONTENT_TAG]}"
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


def test_the_sweep_requests_what_was_never_made_or_failed(data: Path, instance: dg.DagsterInstance) -> None:
    for name in ("made", "failed", "never"):
        put_montage(data, name)
    content = {request.partition_key: request.tags[CONTENT_TAG] for request in sweep(instance)}
    assert set(content) == {"made", "failed", "never"}
    statuses = {"made": dg.DagsterRunStatus.SUCCESS, "failed": dg.DagsterRunStatus.FAILURE}
    for name, status in statuses.items():
        instance.add_run(
            dg.DagsterRun(
                job_name="montage",
                run_id=dg._core.utils.make_new_run_id(),
                status=status,
                tags={CONTENT_TAG: str(content[name]), "dagster/partition": name},
            )
        )
    assert [request.partition_key for request in sweep(instance)] == ["failed", "never"]
    assert instance.has_dynamic_partition("montage", "never")
