"""How the cloud fails: every class of failure by name, its one line for the user, and what is done about it.

Belongs here: the classes, and reading one out of what the `cgpu` program printed. Does not belong here: trying again
(`workspace`), or no longer asking (`circuit`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class _Kind:
    """What is done about a class of failure.

    `lasting`: it will not go away within a run, so that the cloud is no longer asked. `passing`: another attempt may
    well succeed. `of_work`: it says nothing of other kinds of work.
    """

    line: str
    lasting: bool = False
    passing: bool = False
    of_work: bool = False


class CloudFault(Enum):
    """Every way in which work for the cloud comes back undone."""

    NO_CONSENT = _Kind("CGPU_GPU_ENABLED is not true, so nothing leaves this machine", lasting=True)
    NOT_INSTALLED = _Kind("there is no cgpu program on PATH; install it with npm, or set CGPU_GPU_ENABLED=false", True)
    NOT_SET_UP = _Kind("cgpu lacks its OAuth client; run `cgpu connect` once and follow it", lasting=True)
    NO_SESSION = _Kind("cgpu is not logged in; run `cgpu connect` once at a desk with a browser", lasting=True)
    SESSION_LOST = _Kind("Google no longer takes cgpu's login; run `cgpu connect` to log in again", lasting=True)
    OFFLINE = _Kind("the cloud cannot be reached; check the network", lasting=True)
    NO_CAPACITY = _Kind("the cloud has no GPU free now; try again later", lasting=True)
    QUOTA = _Kind("the account's GPU time is used up; try again tomorrow", lasting=True)
    BLOCKED = _Kind("the cloud has blocked this account; see the account's mail", lasting=True)
    NOT_OFFERED = _Kind("the cloud offers this account no GPU", lasting=True)
    TOO_MANY_RUNTIMES = _Kind("the account has too many runtimes; disconnect some at colab.research.google.com", True)
    CONNECTION_LOST = _Kind("the connection to the cloud machine broke off", passing=True)
    RUNTIME_CHANGED = _Kind("the cloud machine was exchanged for another in the middle of the work", passing=True)
    UPLOAD_FAILED = _Kind("the cloud machine did not take the upload", passing=True)
    UPLOAD_DAMAGED = _Kind("the upload arrived damaged", passing=True)
    DOWNLOAD_DAMAGED = _Kind("the download arrived damaged", passing=True)
    OUTPUT_UNREADABLE = _Kind("the end of the work could not be read from what cgpu printed", passing=True)
    TIMED_OUT = _Kind("the cloud took longer than its limit", lasting=True)
    BUSY = _Kind("another process has been using the cloud for too long")
    CRASHED = _Kind("cgpu itself failed", lasting=True)
    WORK_FAILED = _Kind("the work failed on the cloud machine", of_work=True)
    TOOL_MISSING = _Kind("the cloud machine lacks a program that the work needs", lasting=True, of_work=True)
    NO_ENCODER = _Kind("the GPU of the cloud machine has no video encoder that works", lasting=True, of_work=True)
    WRONG_RESULT = _Kind("what came back from the cloud is not what was asked for", of_work=True)
    TOO_LARGE = _Kind("it is too large to send", of_work=True)

    @property
    def line(self) -> str:
        """One line for the user: what happened and what to do next."""
        return self.value.line

    @property
    def lasting(self) -> bool:
        """Whether asking again in the same run is pointless."""
        return self.value.lasting

    @property
    def of_work(self) -> bool:
        """Whether it concerns only the kind of work that it happened to."""
        return self.value.of_work

    @property
    def passing(self) -> bool:
        """Whether trying the same again at once makes sense."""
        return self.value.passing


class CloudFailure(Exception):  # noqa: N818 -- it names the class of a failure that is expected and handled
    """Work for the cloud came back undone; it is to be done here instead. The message is one line."""

    def __init__(self, fault: CloudFault, detail: str = "") -> None:
        self.fault = fault
        self.detail = one_line(detail)
        super().__init__(f"{fault.line} ({self.detail})" if self.detail else fault.line)


_DETAIL_LENGTH = 160
_SECRET = re.compile(r"(?i)\b(bearer|token|code|secret|key)([=: ]+)[^\s&]{8,}|https?://\S*[?&]\S*|\b1//\S+|\bya29\.\S+")
_WORD = re.compile(r"\w\w")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def one_line(text: str) -> str:
    """The last line of a program's output that says something, without colours and anything like a secret."""
    lines = [line.strip() for line in _ESCAPES.sub("", text).splitlines() if _WORD.search(line)]
    if not lines:
        return ""
    last = _SECRET.sub("…", lines[-1])
    printable = "".join(char if char.isprintable() else " " for char in last)
    return printable if len(printable) <= _DETAIL_LENGTH else printable[: _DETAIL_LENGTH - 1] + "…"


_LOGIN = re.compile(r"Starting OAuth login|Opened browser for Google login|No cached session found")
_SAID: tuple[tuple[CloudFault, re.Pattern[str]], ...] = tuple(
    (fault, re.compile(pattern, re.IGNORECASE))
    for fault, pattern in (
        (CloudFault.SESSION_LOST, r"Stored session invalid|invalid_grant|Missing refreshed credentials"),
        (CloudFault.NO_SESSION, _LOGIN.pattern),
        (CloudFault.NOT_SET_UP, r"Missing Colab OAuth credentials|Failed to read config|COLAB_CLIENT_ID"),
        (CloudFault.BLOCKED, r"Account has been blocked"),
        (CloudFault.QUOTA, r"Insufficient quota|Too Many Requests|quota exceeded"),
        (CloudFault.TOO_MANY_RUNTIMES, r"maximum number of|Precondition Failed|Disconnect other runtimes"),
        (CloudFault.NOT_OFFERED, r"No eligible .* accelerators"),
        (CloudFault.NO_CAPACITY, r"temporarily out of .* capacity|Service Unavailable"),
        # With these, cgpu itself tries the next GPU, and says in the end that there is none.
        (CloudFault.NO_CAPACITY, r"Failed request .*: (Internal Server Error|Bad Gateway|Gateway Time-?out)"),
        (CloudFault.CONNECTION_LOST, r"without reporting an exit code|Failed to create remote terminal|socket hang up"),
        (CloudFault.CONNECTION_LOST, r"Unexpected server response|WebSocket was closed|ECONNRESET"),
        (CloudFault.UPLOAD_FAILED, r"Upload failed|Cannot upload"),
        (
            CloudFault.OFFLINE,
            r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|fetch failed|network",
        ),
        (CloudFault.SESSION_LOST, r"Unauthorized|Forbidden"),
    )
)


def wants_login(line: str) -> bool:
    """Whether this line of cgpu's output says that it now waits for somebody at a browser."""
    return _LOGIN.search(line) is not None


def fault_of(code: int, out: str, err: str) -> CloudFault:
    """What went wrong in a cgpu call that ended with `code` (not 0) and without the work's own end line.

    `out` and `err` are what it printed. cgpu says nothing at all when all GPUs are taken, unless told to be verbose.
    """
    said = f"{err}\n{out}"
    for fault, pattern in _SAID:
        if pattern.search(said):
            return fault
    lines = [line for line in _ESCAPES.sub("", out).splitlines() if line.strip()]
    silent = not err.strip() and bool(lines) and all(line.startswith("Authenticated") for line in lines)
    return CloudFault.NO_CAPACITY if code == 1 and silent else CloudFault.CRASHED
