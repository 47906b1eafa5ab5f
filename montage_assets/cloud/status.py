"""What `montage cloud status` shows: consent, cgpu, its login, what would be sent, what was, and what failed.

Belongs here: the document and its lines. Nothing of it asks the cloud, except the account's GPUs where that is wanted.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from montage_assets.cloud.client import PROGRAM, CGPUClient
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.journal import Failed, Sent, all_failed, all_sent, failed_in, open_circuit, upload_rate
from montage_assets.cloud.offload import bar, use_of
from montage_assets.cloud.policy import COSTS, WorkKind
from montage_assets.cloud.session import config_folder, look_at_session
from montage_assets.data_root import DataRoot
from montage_assets.settings import Settings

_SENT_FOR: dict[WorkKind, tuple[str, str]] = {
    "beats": ("the song's sound as mono FLAC of 24 kHz", "CGPU_BEAT_DETECT"),
    "scenes": ("copies of the clips of 256 pixels, without sound and names", "CGPU_SCENE_DETECT"),
    "neural scenes": ("pictures of 48x27 of what TransNet V2 is to look at", "CGPU_SCENE_DETECT"),
    "encode": ("the film to encode, whole", "CGPU_ENCODE"),
    "upscale": ("single shots that are smaller than the film, without sound", "CGPU_GPU_ENABLED alone"),
}
_LAST_SHOWN = 5


@dataclass(frozen=True)
class WouldSend:
    """What one kind of work would send, and when."""

    work: str
    sends: str
    switch: str
    when: str


def status_document(settings: Settings, root: DataRoot, *, ask: bool = False) -> dict[str, Any]:
    """All of it, for JSON. `ask` asks the service for the account's GPUs, if there is consent."""
    session = look_at_session(config_folder(settings.cgpu_config))
    sent, failed = all_sent(root), all_failed(root)
    stored_at = session.file.stat().st_mtime if session.usable else 0.0
    refused = any(failure.kind is CloudFault.SESSION_LOST and failure.at > stored_at for failure in failed)
    rate = upload_rate(sent)
    return {
        "consent": settings.cgpu_enabled,
        "program": shutil.which(PROGRAM),
        "session": {
            "file": str(session.file),
            "state": session.state,
            "age_days": session.age_days,
            "refused": refused,
            "fresh": session.usable and not refused,
        },
        "ready": settings.cgpu_enabled and bar(settings) is None,
        "would_send": [asdict(row) for row in would_send(settings)],
        "sent": {
            "uploads": len(sent),
            "bytes": sum(entry.bytes for entry in sent),
            "bytes_per_s": None if rate is None else round(rate),
            "last": [_told(entry) for entry in sent[-_LAST_SHOWN:]],
        },
        "failed": {"times": len(failed), "last": [_told(entry) for entry in failed[-_LAST_SHOWN:]]},
        "circuit": _circuit(root, failed),
        "left": _left(settings, failed) if not ask else _asked(settings),
    }


def would_send(settings: Settings) -> list[WouldSend]:
    """What each kind of work would send with these settings, and when."""
    return [WouldSend(kind, sends, switch, _when(settings, kind)) for kind, (sends, switch) in _SENT_FOR.items()]


def status_lines(document: dict[str, Any]) -> list[str]:
    """The document for people."""
    session, sent, failed = document["session"], document["sent"], document["failed"]
    age = "" if session["age_days"] is None else f", {session['age_days']:g} days old"
    refused = ", refused since it was stored: run `cgpu connect`" if session["refused"] else ""
    rate = sent["bytes_per_s"]
    return [
        f"consent:  {'given' if document['consent'] else 'not given: CGPU_GPU_ENABLED is not true, nothing leaves'}",
        f"cgpu:     {document['program'] or 'not on PATH'}",
        f"login:    {session['state']}{age}{refused} ({session['file']})",
        "would be sent:",
        *(f"  {row['work']:13} {row['sends']}; {row['when']} ({row['switch']})" for row in document["would_send"]),
        f"was sent: {sent['uploads']} uploads, {sent['bytes'] / 1e6:.2f} MB"
        + ("" if rate is None else f", at {rate / 1e6:.2f} MB/s"),
        *(f"  {row['at']} {row['work']}: {row['what']}, {row['bytes'] / 1e6:.2f} MB" for row in sent["last"]),
        f"failed:   {failed['times']} times",
        *(f"  {row['at']} {row['work']}: {row['line']}" for row in failed["last"]),
        f"circuit:  {document['circuit'] or 'closed: the cloud is asked'}",
        f"left:     {document['left']}",
    ]


def _when(settings: Settings, kind: WorkKind) -> str:
    if not settings.cgpu_enabled:
        return "never, without consent"
    use = use_of(settings, kind)
    if use == "off":
        return "never, it is switched off"
    longer = f" for films over {settings.cgpu_encode_threshold_s} s" if kind == "encode" else ""
    if use == "on":
        return f"always{longer}"
    here = "; with the figures known, never: nothing is saved" if COSTS[kind].local == 0 else ""
    return f"where it pays{longer}{here}"


def _circuit(root: DataRoot, failed: Sequence[Failed]) -> str | None:
    """Of the last run that met a failure: what it does not ask the cloud for any more."""
    if not failed:
        return None
    run = failed[-1].run
    failures = failed_in(root, run)
    shut = [kind for kind in _SENT_FOR if open_circuit(failures, kind)]
    return f"open in run {run} for {', '.join(shut)}" if shut else None


def _left(settings: Settings, failed: Sequence[Failed]) -> str:
    told = [entry for entry in failed if entry.kind in (CloudFault.QUOTA, CloudFault.NO_CAPACITY)]
    refusal = f"; last refusal {_time(told[-1].at)}: {told[-1].line}" if told else ""
    how = "`montage cloud status --ask` asks for the account's GPUs" if settings.cgpu_enabled else "not asked"
    return f"cgpu does not tell the GPU time that is left; {how}{refusal}"


def _asked(settings: Settings) -> str:
    try:
        return CGPUClient.from_settings(settings).ask_status()
    except CloudFailure as failure:
        return str(failure)


def _told(entry: Sent | Failed) -> dict[str, Any]:
    return {**asdict(entry), "at": _time(entry.at)}


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
