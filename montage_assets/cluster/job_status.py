"""What is known of a submitted job, wherever it runs, and the ways in which waiting for one can end badly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from montage_assets.cluster.errors import ClusterError

JobState = Literal["pending", "running", "succeeded", "failed"]


class JobFailedError(ClusterError):
    """The job has ended without success; the message says why, in the words of its last failed pod."""


class JobTimeoutError(ClusterError):
    """The job has not ended in the time given; it goes on."""


@dataclass(frozen=True)
class PodStatus:
    """One pod of a job, or one process of a local one. `index`: which shard, None in a job without shards.

    `reason` says why it waits or how it ended, e.g. Unschedulable, OOMKilled. `exit_code` is None until it has ended.
    """

    name: str
    phase: str
    node: str | None = None
    index: int | None = None
    reason: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class JobStatus:
    """A job as it is now. `active`, `succeeded`, `failed` count its pods; `reason` is why it failed, in one word."""

    name: str
    state: JobState
    active: int = 0
    succeeded: int = 0
    failed: int = 0
    reason: str = ""
    pods: tuple[PodStatus, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("succeeded", "failed")
