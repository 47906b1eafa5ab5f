"""A killed command's run does not stay marked as started."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import dagster as dg

from montage_assets.dead_runs import PROCESS_TAG, process_tag, report_dead_runs


def a_started_run(instance: dg.DagsterInstance, tags: dict[str, str]) -> str:
    run = dg.DagsterRun(job_name="montage", run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.STARTED, tags=tags)
    instance.add_run(run)
    return run.run_id


def test_only_runs_of_this_hosts_dead_processes_are_reported_failed() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    host, _, pid = process_tag()[PROCESS_TAG].partition(":")
    assert int(pid) == os.getpid()
    with dg.instance_for_test() as instance:
        dead = a_started_run(instance, {PROCESS_TAG: f"{host}:{ended.pid}"})
        alive = [
            a_started_run(instance, process_tag()),
            a_started_run(instance, {PROCESS_TAG: f"elsewhere:{ended.pid}"}),
            a_started_run(instance, {}),
        ]
        assert report_dead_runs(instance) == [dead]
        statuses = {run_id: instance.get_run_by_id(run_id).status for run_id in [dead, *alive]}  # type: ignore[union-attr]
    assert statuses[dead] == dg.DagsterRunStatus.FAILURE
    assert all(statuses[run_id] == dg.DagsterRunStatus.STARTED for run_id in alive)
