"""Runs whose process died without a word: found, and reported as failed.

A killed `montage make` leaves its run marked as started, which would hold up the queue of the UI for ever.
"""

from __future__ import annotations

import os
import socket

import dagster as dg

from montage_assets.jobs import JOB_NAME

PROCESS_TAG = "montage/process"
"""On runs that a command runs itself: host and process id."""


def process_tag() -> dict[str, str]:
    """The tag of a run that this process carries out."""
    return {PROCESS_TAG: f"{socket.gethostname()}:{os.getpid()}"}


def report_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark the started runs of this host's dead processes as failed. Returns their ids."""
    started = dg.RunsFilter(job_name=JOB_NAME, statuses=[dg.DagsterRunStatus.STARTED])
    dead = [run for run in instance.get_runs(started) if _is_dead(run.tags.get(PROCESS_TAG, ""))]
    for run in dead:
        instance.report_run_failed(run, message="The command that carried out this run was killed; run it again.")
    return [run.run_id for run in dead]


def _is_dead(process: str) -> bool:
    host, _, pid = process.partition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is alive, and somebody else's
        return False
    return False
