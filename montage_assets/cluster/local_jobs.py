"""Jobs without a cluster: the same command lines as processes of this machine.

Belongs here: running the shards of a job, a few at a time, and their outcome. A job lives as long as this program;
what its shards have done stays on the data root.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.job_status import JobFailedError, JobState, JobStatus, JobTimeoutError, PodStatus

NODE = "this machine"
_TRIES = 3
_FOR_GOOD = 2
"""The exit code of wrong input, which no second try mends."""


@dataclass
class _Shard:
    index: int
    command: Sequence[str]
    output: IO[bytes] = field(default_factory=TemporaryFile)
    phase: str = "Pending"
    exit_code: int | None = None


@dataclass
class _LocalJob:
    name: str
    shards: list[_Shard]
    deleted: bool = False
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def state(self) -> JobState:
        if self.deleted or any(shard.phase == "Failed" for shard in self.shards):
            return "failed"
        if all(shard.phase == "Succeeded" for shard in self.shards):
            return "succeeded"
        return "pending" if all(shard.phase == "Pending" for shard in self.shards) else "running"


class LocalJobs:
    """Jobs of this program's own. `at_a_time` processes work at a time, half the cores unless said otherwise."""

    def __init__(self, environment: Mapping[str, str] | None = None, at_a_time: int | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}
        self._at_a_time = at_a_time or max(1, (os.cpu_count() or 1) // 2)
        self._jobs: dict[str, _LocalJob] = {}
        weakref.finalize(self, _stop_all, self._jobs)

    def submit(self, name: str, commands: Sequence[Sequence[str]]) -> None:
        """Start a job of one process for each command. One of its name that still runs is the job."""
        earlier = self._jobs.get(name)
        if earlier is not None and earlier.state in ("pending", "running"):
            return
        shards = [_Shard(index, command) for index, command in enumerate(commands)]
        job = self._jobs[name] = _LocalJob(name, shards)
        for lane in range(min(self._at_a_time, len(shards))):
            work = (job, shards[lane :: self._at_a_time])
            threading.Thread(target=self._work, args=work, name=f"{name}-{lane}", daemon=True).start()

    def status(self, name: str) -> JobStatus:
        """The job now. Raises ClusterError when this program has none of that name."""
        job = self._job(name)
        with job.changed:
            phases = [shard.phase for shard in job.shards]
            return JobStatus(
                name=name,
                state=job.state,
                active=phases.count("Pending") + phases.count("Running"),
                succeeded=phases.count("Succeeded"),
                failed=phases.count("Failed"),
                reason="Error" if "Failed" in phases else "",
                pods=tuple(_as_pod(job, shard) for shard in job.shards),
            )

    def wait(self, name: str, timeout_s: float | None = None) -> JobStatus:
        """The status once the job has succeeded. Raises JobFailedError, JobTimeoutError, ClusterError."""
        job = self._job(name)
        with job.changed:
            if not job.changed.wait_for(lambda: job.state in ("succeeded", "failed"), timeout_s):
                raise JobTimeoutError(f"job {name} has not ended within {timeout_s:g} s and goes on")
            if job.deleted:
                raise ClusterError(f"job {name} was deleted")
            dead = next((shard for shard in job.shards if shard.phase == "Failed"), None)
        if dead is not None:
            lines = _text(dead).strip().splitlines()
            what = f"shard {dead.index} ended with exit code {dead.exit_code}"
            raise JobFailedError(f"job {name} failed: {what}" + (f": {lines[-1]}" if lines else ""))
        return self.status(name)

    def log(self, name: str) -> str:
        """What the processes printed, each line after its shard where there are several."""
        shards = self._job(name).shards
        if len(shards) == 1:
            return _text(shards[0])
        return "".join(f"{shard.index}: {line}\n" for shard in shards for line in _text(shard).splitlines())

    def delete(self, name: str) -> None:
        """Stop a job and forget it. Raises ClusterError."""
        _stop(self._job(name))
        del self._jobs[name]

    def _job(self, name: str) -> _LocalJob:
        if name not in self._jobs:
            raise ClusterError(f"this program has started no job {name}; local jobs end with the program")
        return self._jobs[name]

    def _work(self, job: _LocalJob, shards: Sequence[_Shard]) -> None:
        for shard in shards:
            _set(job, shard, "Running")
            code = self._run(job, shard)
            _set(job, shard, "Succeeded" if code == 0 else "Failed", code)

    def _run(self, job: _LocalJob, shard: _Shard) -> int:
        code = 1
        for attempt in range(_TRIES):
            with job.changed:
                if job.deleted:
                    return code
                process = subprocess.Popen(
                    shard.command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=shard.output,
                    stderr=subprocess.STDOUT,
                )
                job.running.add(process)
            code = process.wait()
            with job.changed:
                job.running.discard(process)
            if code in (0, _FOR_GOOD):
                return code
            time.sleep(attempt)
        return code


def _set(job: _LocalJob, shard: _Shard, phase: str, code: int | None = None) -> None:
    with job.changed:
        shard.phase, shard.exit_code = phase, code
        job.changed.notify_all()


def _as_pod(job: _LocalJob, shard: _Shard) -> PodStatus:
    reason = {"Succeeded": "Completed", "Failed": "Error"}.get(shard.phase, "")
    return PodStatus(f"{job.name}-{shard.index}", shard.phase, NODE, shard.index, reason, shard.exit_code)


def _text(shard: _Shard) -> str:
    return os.pread(shard.output.fileno(), 1 << 24, 0).decode("utf-8", "replace")


def _stop(job: _LocalJob) -> None:
    with job.changed:
        job.deleted = True
        for process in job.running:
            process.terminate()
        job.changed.notify_all()


def _stop_all(jobs: dict[str, _LocalJob]) -> None:
    for job in jobs.values():
        _stop(job)
