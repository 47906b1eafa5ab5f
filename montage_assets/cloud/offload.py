"""Work that may go to the cloud: asked for, done there, or told why not, so that it is done here.

Belongs here: finding out the circumstances, one attempt per piece of work, its entry in the journal, and the line for
log and metadata. Does not belong here: the decision (`policy`), the work itself (`beat_detector`, `scene_detector`,
`encoder`, `upscaler`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from montage_assets.cloud.client import PROGRAM, CGPUClient
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.journal import Journal, last_sent, upload_rate
from montage_assets.cloud.policy import Circumstances, Work, WorkKind, decide
from montage_assets.cloud.session import config_folder, look_at_session
from montage_assets.cloud.workspace import OnSent
from montage_assets.data_root import DataRoot
from montage_assets.media.errors import MediaError
from montage_assets.settings import CloudUse, Settings

LIMIT_S: dict[WorkKind, float] = {
    "beats": 10 * 60.0,
    "scenes": 30 * 60.0,
    "neural scenes": 30 * 60.0,
    "encode": 2 * 3600.0,
    "upscale": 2 * 3600.0,
}
"""Seconds after which a piece of work is taken back, whatever it is at; transfers and second tries count."""

Result = TypeVar("Result")


class Log(Protocol):
    """What Dagster's and Python's loggers share."""

    def info(self, msg: str) -> None: ...

    def warning(self, msg: str) -> None: ...


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """`value` is None when the work is to be done here; `reason` says why it was, or was not, done in the cloud.
    `fell_back`: it was to go there, but the cloud cannot be had, or failed, now or earlier in the run."""

    value: Result | None
    reason: str
    fell_back: bool = False

    @property
    def told(self) -> str:
        """For metadata: where, and why."""
        return f"{'here' if self.value is None else 'in the cloud'}: {self.reason}"


@dataclass(frozen=True)
class Session:
    """What a piece of work is given: the client, within its time, and where to write down what it sends."""

    client: CGPUClient
    on_sent: OnSent


class Offload:
    """The cloud as one step of a run sees it."""

    def __init__(self, settings: Settings, root: DataRoot, run: str, log: Log) -> None:
        self._settings = settings
        self._root = root
        self._journal = Journal(root, run)
        self._log = log

    @property
    def is_wanted(self) -> bool:
        """Whether the user lets anything leave the machine; without it nothing need be told of the cloud."""
        return self._settings.cgpu_enabled

    def accepts(self, kind: WorkKind) -> bool:
        """Whether results of such work from the cloud are welcome."""
        return self.is_wanted and use_of(self._settings, kind) != "off"

    def metadata(self, told: str) -> dict[str, str]:
        """Where work was done, for an asset's metadata; nothing for those who never allowed the cloud."""
        return {"done": told} if self.is_wanted else {}

    def attempt(self, describe: Callable[[], Work], do: Callable[[Session], Result]) -> Outcome[Result]:
        """Do the work that `describe` tells of in the cloud, if that is decided and goes well.

        Raises no CloudFailure, and no MediaError for what cannot be prepared for sending: the work here says better
        what is wrong with a file. What went wrong is logged once in a run, and written down. Other errors are let
        through.
        """
        if not self.is_wanted:  # before anything is looked at, the disk included
            return Outcome(None, CloudFault.NO_CONSENT.line)
        work = describe()
        closed_by = self._journal.open_circuit(work.kind)
        circumstances = self._circumstances(work, closed_by)
        decision = decide(work, circumstances)
        if decision.unreachable:
            if decision.reason != closed_by:  # that was logged when it happened
                self._warn_once(work, decision.reason, decision.reason)
            reachable = decide(work, replace(circumstances, offline=False, bar=None))
            return Outcome(None, decision.reason, fell_back=reachable.cloud)
        if not decision.cloud:
            self._log.info(f"{work.kind}: done here; {decision.reason}")
            return Outcome(None, decision.reason)
        try:
            return Outcome(do(self._session(work)), decision.reason)
        except CloudFailure as failure:
            self._journal.failed(work.kind, failure)
            reason = str(failure)
            told_as = f"{work.kind}: {failure.fault.name}" if failure.fault.of_work else failure.fault.name
            self._warn_once(work, told_as, reason)
        except MediaError as error:
            reason = f"it cannot be prepared for the cloud: {error}"
            self._log.warning(f"{work.kind}: done here instead of in the cloud; {reason}")
        return Outcome(None, reason, fell_back=True)

    def _warn_once(self, work: Work, told_as: str, reason: str) -> None:
        if self._journal.is_first_to_tell(told_as):
            self._log.warning(f"{work.kind}: done here instead of in the cloud; {reason}")

    def _session(self, work: Work) -> Session:
        client = CGPUClient.from_settings(self._settings, deadline_s=LIMIT_S[work.kind])
        return Session(client, lambda what, size, seconds: self._journal.sent(work.kind, what, size, seconds))

    def _circumstances(self, work: Work, closed_by: str | None) -> Circumstances:
        settings = self._settings
        return Circumstances(
            consent=settings.cgpu_enabled,
            use=use_of(settings, work.kind),
            offline=is_offline(),
            bar=bar(settings) or closed_by,
            local_gpu=not settings.force_cpu and has_local_gpu(),
            cores=float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
            upload_bytes_per_s=upload_rate(last_sent(self._root)),
            encode_threshold_s=settings.cgpu_encode_threshold_s,
        )


def use_of(settings: Settings, kind: WorkKind) -> CloudUse:
    """The switch of a kind of work. Upscaling has none of its own: consent, and whether it pays, decide."""
    switches: dict[WorkKind, CloudUse] = {
        "beats": settings.cgpu_beat_detect,
        "scenes": settings.cgpu_scene_detect,
        "neural scenes": settings.cgpu_scene_detect,
        "encode": settings.cgpu_encode,
        "upscale": "auto",
    }
    return switches[kind]


def bar(settings: Settings) -> str | None:
    """What is missing here for asking the cloud, found out without asking it."""
    if shutil.which(PROGRAM) is None:
        return CloudFault.NOT_INSTALLED.line
    if not look_at_session(config_folder(settings.cgpu_config)).usable:
        return CloudFault.NO_SESSION.line
    return None


def is_offline(routes: Path = Path("/proc/net/route"), routes6: Path = Path("/proc/net/ipv6_route")) -> bool:
    """Whether this machine surely has no way out: Linux, and no default route. Nothing is tried."""
    try:
        lines = routes.read_text().splitlines()[1:]
        lines6 = routes6.read_text().splitlines() if routes6.exists() else []
    except OSError:  # not Linux
        return False
    out4 = any(len(fields) > 1 and fields[0] != "lo" and fields[1] == "00000000" for fields in map(str.split, lines))
    out6 = any(
        len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo"
        for fields in map(str.split, lines6)
    )
    return not (out4 or out6)


def has_local_gpu() -> bool:
    """Whether this machine has a GPU, by the cluster's own detection."""
    from montage_assets.cluster.hardware import Machine, find_gpus

    return bool(find_gpus(Machine()))
