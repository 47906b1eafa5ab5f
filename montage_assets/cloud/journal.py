"""What was sent to the cloud and what failed there, written down on the data root.

Belongs here: the ledger that `montage cloud status` shows, and the circuit breaker that reads it: all processes of a
run, on whatever node, find there that the cloud is not to be asked again. One small file per entry, since a bucket
cannot append and several processes write.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from montage_assets import layout
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.data_root import DataRoot

FOLDER = f"{layout.WORK}/cloud"
FAILURES_ENDURED = 2
"""Of a run, none of them lasting; after so many the cloud is not asked again."""
_RATE_FROM_BYTES = 1 << 18
"""Uploads that are smaller tell of cgpu's start, not of the line."""
_RATE_OF_LAST = 8


@dataclass(frozen=True)
class Sent:
    """One upload: when (seconds since the epoch), for what work, what it was, its bytes and seconds."""

    at: float
    run: str
    work: str
    what: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Failed:
    """One piece of work that came back undone."""

    at: float
    run: str
    work: str
    fault: str
    line: str

    @property
    def kind(self) -> CloudFault:
        """The class of the failure; one that a newer version wrote down counts as cgpu's own."""
        return CloudFault.__members__.get(self.fault, CloudFault.CRASHED)


class Journal:
    """The entries of one run. `run` is Dagster's run id, or a name for work without a run."""

    def __init__(self, root: DataRoot, run: str) -> None:
        self._root = root
        self.run = re.sub(r"[^A-Za-z0-9_-]", "_", run)[:80] or "none"

    def sent(self, work: str, what: str, size: int, seconds: float) -> None:
        """Write down a finished upload."""
        self._write("sent", Sent(time.time(), self.run, work, what, size, round(seconds, 3)))

    def failed(self, work: str, failure: CloudFailure) -> None:
        """Write down work that came back undone."""
        self._write("failed", Failed(time.time(), self.run, work, failure.fault.name, str(failure)))

    def is_first_to_tell(self, what: str) -> bool:
        """Whether no step of the run has told this before: what befalls a hundred steps is one line of its log."""
        mark = f"{FOLDER}/{self.run}/{hashlib.sha256(what.encode()).hexdigest()[:16]}.told"
        if self._root.exists(mark):
            return False
        self._root.write_bytes(mark, what.encode())
        return True

    def open_circuit(self, work: str) -> str | None:
        """Why the cloud is not to be asked for such work again in this run; None while it may be."""
        return open_circuit(failed_in(self._root, self.run), work)

    def _write(self, kind: str, entry: Sent | Failed) -> None:
        name = f"{entry.at:017.6f}-{uuid.uuid4().hex[:8]}.{kind}.json"
        self._root.write_bytes(f"{FOLDER}/{self.run}/{name}", json.dumps(asdict(entry)).encode())


def open_circuit(failures: Sequence[Failed], work: str) -> str | None:
    """Why a run with these failures does not ask the cloud for such work any more: one that lasts, or too many that
    need not. What befell another kind of work and says nothing of this one does not count."""
    counted = [failure for failure in failures if failure.work == work or not failure.kind.of_work]
    for failure in counted:
        if failure.kind.lasting:
            return failure.line
    return counted[-1].line if len(counted) >= FAILURES_ENDURED else None


def failed_in(root: DataRoot, run: str) -> list[Failed]:
    """The failures of one run, oldest first."""
    return [entry for entry in _read(root, f"{FOLDER}/{run}", "failed") if isinstance(entry, Failed)]


def all_sent(root: DataRoot) -> list[Sent]:
    """Every upload so far, oldest first."""
    return [entry for entry in _read(root, FOLDER, "sent") if isinstance(entry, Sent)]


def last_sent(root: DataRoot, count: int = 16) -> list[Sent]:
    """The last uploads, oldest first; no others are read."""
    return [entry for entry in _read(root, FOLDER, "sent", count) if isinstance(entry, Sent)]


def all_failed(root: DataRoot) -> list[Failed]:
    """Every failure so far, oldest first."""
    return [entry for entry in _read(root, FOLDER, "failed") if isinstance(entry, Failed)]


def upload_rate(sent: Sequence[Sent]) -> float | None:
    """Bytes a second of the last uploads that were large enough to tell; None without one."""
    rates = [entry.bytes / entry.seconds for entry in sent if entry.bytes >= _RATE_FROM_BYTES and entry.seconds > 0]
    return statistics.median(rates[-_RATE_OF_LAST:]) if rates else None


def _read(root: DataRoot, folder: str, kind: str, last: int | None = None) -> list[Sent | Failed]:
    """The entries of a kind below a folder, oldest first, which their names tell."""
    names = [file.name for file in root.list_files(folder) if file.name.endswith(f".{kind}.json")]
    names.sort(key=lambda name: name.rpartition("/")[2])
    record = Sent if kind == "sent" else Failed
    return [
        record(**json.loads(root.read_bytes(f"{folder}/{name}"))) for name in (names if last is None else names[-last:])
    ]
