"""Montages made by real workers on a real Redis: the same film as a local one, whoever is killed on the way."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from montage_assets.cluster.broker import BrokerAwayError
from montage_assets.cluster.worker import is_at_work
from montage_assets.settings import Settings
from tests.assets.small_montage import write_montage
from tests.queues.farm import COMMAND, Farm, wait_until
from tests.queues.films import edit_list_of, frames_of
from tests.redis_server import RedisServer

_RUN_S = 240


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A Redis without workers."""
    folder = tmp_path_factory.mktemp("farm")
    (folder / "redis").mkdir()
    redis = RedisServer(folder / "redis")
    farm = Farm(redis, folder)
    yield farm
    farm.stop()
    redis.kill()


@pytest.fixture(scope="module")
def source(farm: Farm) -> Path:
    return write_montage(farm.data / "input" / "holiday")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root for montages made by one process."""
    return tmp_path_factory.mktemp("local")


def local_film(farm: Farm, source: Path, root: Path, *options: str) -> Path:
    """The film of the same folder, made by one process."""
    folder = root / "input" / source.name
    shutil.copytree(source, folder, dirs_exist_ok=True)
    environment = {**farm.environment, "MONTAGE_EXECUTOR": "local", "MONTAGE_DATA": str(root), "DAGSTER_HOME": ""}
    subprocess.run([*COMMAND, "make", str(folder), *options], env=environment, check=True, capture_output=True)
    return root / "output" / source.name / "montage.mp4"


def busy_workers(farm: Farm) -> dict[int, int]:
    """The process ids of the workers that are at a step, each with that of the process at the step."""
    try:
        found = [re.match(r"runs on \w+-(\d+)@\S+ \((\d+)\)$", lease) for lease in farm.broker.leases()]
    except BrokerAwayError:
        return {}
    return {int(match[1]): int(match[2]) for match in found if match}


def wait_for_a_step(farm: Farm, but_not_on: int | None = None) -> tuple[int, int]:
    """Worker and process of a step that is being worked on."""
    wait_until(lambda: bool(busy_workers(farm).keys() - {but_not_on}), "a step at work", farm.logs)
    return next(pair for pair in busy_workers(farm).items() if pair[0] != but_not_on)


def workers_by_step(farm: Farm) -> dict[str, set[str]]:
    """Which types of worker each asset's steps ran on in the latest run, by Dagster's log."""
    home = farm.environment["DAGSTER_HOME"]
    found: dict[str, set[str]] = {}
    with dg.DagsterInstance.from_config(home) as instance:
        run = instance.get_runs(limit=1)[0]
        for record in instance.all_logs(run.run_id):
            event = record.dagster_event
            if event is not None and event.is_engine_event and event.step_key and "in celery worker" in record.message:
                worker = event.engine_event_data.metadata["Celery worker"].value
                found.setdefault(event.step_key, set()).add(str(worker).partition("-")[0])
    return found


def test_workers_of_three_types_make_the_local_film_and_a_queue_without_workers_is_told(
    farm: Farm, source: Path, local: Path
) -> None:
    run = farm.make("holiday")
    assert run.stdout is not None
    first = run.stdout.readline()
    assert "no worker serves the queue analyze; start one with WORKER_TYPE=cpu montage worker" in first
    for kind in ("cgpu", "gpu", "cpu"):
        farm.start_worker(kind)
    expected = local_film(farm, source, local)
    output = run.communicate(timeout=_RUN_S)[0]
    assert run.returncode == 0, output + farm.logs()
    assert edit_list_of(farm.film("holiday")) == edit_list_of(expected)
    assert frames_of(farm.film("holiday")) == frames_of(expected)
    workers = workers_by_step(farm)
    assert len(workers) > 10
    rendering = [kinds for step, kinds in workers.items() if re.match(r"rendered_segments\..*\[", step)]
    assert rendering
    assert all(kinds <= {"gpu"} for kinds in rendering), workers
    assert "cgpu" not in set().union(*workers.values())


def test_a_killed_workers_step_is_given_to_another_one_and_the_film_is_the_same(
    farm: Farm, source: Path, local: Path
) -> None:
    run = farm.make("holiday", "--set", "seed=7")
    worker, _ = wait_for_a_step(farm)
    os.kill(worker, signal.SIGKILL)
    farm.start_worker("cpu")
    expected = local_film(farm, source, local, "--set", "seed=7")
    output = run.communicate(timeout=_RUN_S)[0]
    assert run.returncode == 0, output + farm.logs()
    assert len(re.findall("footage was lost: its worker is gone; it is given to another worker", output)) == 1
    assert edit_list_of(farm.film("holiday")) == edit_list_of(expected)
    assert frames_of(farm.film("holiday")) == frames_of(expected)


def test_a_restarted_redis_loses_no_step(farm: Farm, source: Path) -> None:
    before = frames_of(farm.film("holiday"))
    shutil.rmtree(farm.data / "output" / "holiday")
    run = farm.make("holiday", "--set", "seed=7")
    wait_for_a_step(farm)
    farm.redis.kill()
    farm.redis.start()
    output = run.communicate(timeout=_RUN_S)[0]
    assert run.returncode == 0, output + farm.logs()
    assert frames_of(farm.film("holiday")) == before


def test_a_step_that_takes_two_workers_with_it_fails_by_name(farm: Farm, source: Path) -> None:
    run = farm.make("holiday")
    while run.poll() is None:
        for process in busy_workers(farm).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    output = run.communicate(timeout=_RUN_S)[0]
    assert run.returncode == 1, output
    assert "footage was lost: its process on the worker died" in output
    assert output.splitlines()[-1].startswith("montage: footage was lost twice: its process on the worker died")


def test_a_run_is_stopped_by_ctrl_c_while_its_step_waits(farm: Farm, source: Path) -> None:
    farm.stop()
    wait_until(lambda: not farm.live_workers(), "the killed workers to be forgotten", farm.logs)
    run = farm.make("holiday")
    assert run.stdout is not None
    assert "no worker serves the queue analyze" in run.stdout.readline()
    run.send_signal(signal.SIGINT)
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 1
    assert "montage: stopped" in output


def test_the_worker_of_a_job_serves_its_queue_and_ends_when_idle(farm: Farm) -> None:
    job = {"WORKER_MODE": "distributed", "TASK_TYPE": "encode", "TASK_ID": "job7"}
    worker = farm.start_worker("cpu", "--until-idle", "2", more=job)
    wait_until(lambda: any(live.queues == ("encode",) for live in farm.live_workers()), "the worker", farm.logs)
    assert next(live.name for live in farm.live_workers()).startswith(f"job7-{worker.pid}@")
    assert is_at_work(Settings.from_environment(farm.environment))
    assert worker.wait(timeout=60) == 0
    assert farm.live_workers() == []
    assert subprocess.run([*COMMAND, "worker", "--alive"], env=farm.environment).returncode == 1
