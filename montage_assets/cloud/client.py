"""The `cgpu` command line, called so that it can neither hang, nor log in, nor hide how the work ended.

Belongs here: one call of cgpu after another: `run` and `copy`, their limits, the lock that keeps calls of all processes
apart, and the reading of what came out. Does not belong here: files that belong to a piece of work (`workspace`), or
whether the cloud may be asked at all (`policy`).

How cgpu 0.1.4 behaves, and what is made of it:
- without a login it waits for a browser for ever, even without a terminal, also when it was logged in and lost its
  login on the way: the login is looked at first, a line of output that tells of a login ends the call at once, as long
  as the work has not begun, and no browser can be opened from the call;
- it takes `-c` and other options of the work for its own: everything follows `--`, as one argument;
- it types the command into a remote terminal, where the typed text may be echoed, empty lines and lines that look like
  its own are dropped, and both outputs are one: the work's output stands between lines of our own with a nonce in them,
  and the last one says how the work ended, whatever cgpu's own exit code is;
- what the work does not read of its input, the terminal would take for commands: the work reads from /dev/null.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from montage_assets.cloud.failures import CloudFailure, CloudFault, fault_of, one_line, wants_login
from montage_assets.cloud.session import borrowed_config, config_folder, look_at_session
from montage_assets.settings import Settings

PROGRAM = "cgpu"
START_S = 90.0
"""Seconds that cgpu may take to log in, to get a machine and to begin, besides the work."""
LOCK_WAIT_S = 60.0
"""Seconds to wait for another process's call."""
_LONGEST_LINE = 3000
"""Characters; a terminal in canonical mode cuts a typed line at 4096."""
_MOST_OUTPUT = 64 << 20
_LONGEST_READ = 1 << 16
"""Bytes; an output without an end of line is read in pieces of so many, so that its size is noticed."""
_LOCK_POLL_S = 0.1
_END_GRACE_S = 5.0
_LOGGED_IN = "Authenticated as"
_BEGUN = b"MONTAGE"
"""In the work's first line, and in the echo of what was typed."""
_GPUS = "Eligible GPUs:"
_NO_BROWSER = {"BROWSER": "false", "NO_COLOR": "1", "CI": "1"}
_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")


@dataclass(frozen=True)
class RemoteOutput:
    """How a command on the cloud machine ended, and the lines it printed on both outputs."""

    code: int
    lines: list[str]
    seconds: float

    @property
    def last_line(self) -> str:
        return one_line("\n".join(self.lines))


@dataclass(frozen=True)
class _Reply:
    code: int
    out: str
    err: str
    seconds: float


class CGPUClient:
    """Calls of cgpu, one at a time on this machine.

    `consent` is CGPU_GPU_ENABLED: without it every call raises NO_CONSENT before anything else happens. `config` is
    cgpu's configuration folder, None for its default. `deadline_s` limits all the calls of this client together.
    Every method raises CloudFailure.
    """

    def __init__(
        self,
        *,
        consent: bool,
        config: Path | None = None,
        lock: Path | None = None,
        lock_wait_s: float = LOCK_WAIT_S,
        start_s: float = START_S,
        deadline_s: float | None = None,
    ) -> None:
        self._consent = consent
        self._config = config_folder(config)
        self._lock = lock or default_lock()
        self._lock_wait_s = lock_wait_s
        self._start_s = start_s
        self._ends_at = None if deadline_s is None else time.monotonic() + deadline_s

    @classmethod
    def from_settings(cls, settings: Settings, deadline_s: float | None = None) -> CGPUClient:
        """The client that the environment allows."""
        return cls(consent=settings.cgpu_enabled, config=settings.cgpu_config, deadline_s=deadline_s)

    def run(self, argv: Sequence[str], *, timeout_s: float, guard: str = "") -> RemoteOutput:
        """Run a command on the cloud machine, to its end, within `timeout_s` seconds of its own.

        A command that fails is no failure of the call: see `code`. `guard` is a shell condition, of our own making,
        without which the machine is not the one that is meant: raises RUNTIME_CHANGED.
        """
        nonce = secrets.token_hex(8)
        reply = self._call(["run", "--", remote_line(argv, nonce, guard)], timeout_s)
        ended = parse_output(reply.out, nonce)
        if ended is None:
            if reply.code == 0:
                raise CloudFailure(CloudFault.OUTPUT_UNREADABLE, reply.out)
            raise _failure_of(reply)
        code, lines = ended
        if code is None:
            raise CloudFailure(CloudFault.RUNTIME_CHANGED)
        return RemoteOutput(code, lines, reply.seconds)

    def copy(self, source: Path, destination: str, *, timeout_s: float) -> None:
        """Upload one file, of at most some hundred megabytes.

        `source` must bear a name of ours: cgpu prints it and sends it.
        """
        reply = self._call(["copy", "--", str(source), destination], timeout_s)
        if reply.code != 0:
            raise _failure_of(reply)
        if "Uploaded" not in reply.out:
            raise CloudFailure(CloudFault.UPLOAD_FAILED, reply.out)

    def ask_status(self, *, timeout_s: float = START_S) -> str:
        """What `cgpu status` says of the account's GPUs, without the account's name."""
        reply = self._call(["status"], timeout_s)
        if reply.code != 0:
            raise _failure_of(reply)
        told = one_line(reply.out)
        return told[max(0, told.find(_GPUS)) :]

    def _call(self, arguments: Sequence[str], timeout_s: float) -> _Reply:
        program = self._program()
        limit_s = timeout_s + self._start_s
        if self._ends_at is not None:
            limit_s = min(limit_s, self._ends_at - time.monotonic())
        if limit_s <= 0:
            raise CloudFailure(CloudFault.TIMED_OUT)
        with _held(self._lock, min(self._lock_wait_s, limit_s)), borrowed_config(self._config) as config:
            return _run(program, arguments, config, limit_s)

    def _program(self) -> str:
        """The program, once it is known that calling it can lead to something."""
        if not self._consent:
            raise CloudFailure(CloudFault.NO_CONSENT)
        program = shutil.which(PROGRAM)
        if program is None:
            raise CloudFailure(CloudFault.NOT_INSTALLED)
        session = look_at_session(self._config)
        if not session.usable:
            state = "" if session.state == "missing" else f"{session.file} is {session.state}"
            raise CloudFailure(CloudFault.NO_SESSION, state)
        return program


def run_cgpu_command(argv: Sequence[str], *, timeout_s: float = 600.0, client: CGPUClient | None = None) -> str:
    """Run a command on the cloud machine and return what it printed, lines joined by newlines.

    Raises CloudFailure, WORK_FAILED among them when the command ends with an error.
    """
    client = client or CGPUClient.from_settings(Settings.from_environment())
    output = client.run(argv, timeout_s=timeout_s)
    if output.code != 0:
        raise CloudFailure(CloudFault.WORK_FAILED, output.last_line or f"exit code {output.code}")
    return "\n".join(output.lines)


def remote_line(argv: Sequence[str], nonce: str, guard: str = "") -> str:
    """The one shell line that runs a command and says how it ended. Raises ValueError for what a terminal garbles."""
    command = shlex.join(argv)
    if not command.isprintable():
        raise ValueError("a command for the cloud machine has characters that its terminal would act on")
    work = f"( {command} ) </dev/null 2>&1; r=$?"
    if guard:
        work = f"if {guard}; then {work}; else r=gone; fi"
    # The nonce is joined to its word only by printf, so that the echo of this line is no such line itself.
    say = "printf '\\n%s:%s:%s\\n'"
    line = f'{say} MONTAGE BEGIN {nonce}; {work}; {say} MONTAGE END-{nonce} $r; [ "$r" = 0 ]'
    if len(line) > _LONGEST_LINE:
        raise ValueError(f"a command for the cloud machine is longer than {_LONGEST_LINE} characters")
    return line


def parse_output(out: str, nonce: str) -> tuple[int | None, list[str]] | None:
    """Exit code and lines of a command run by `remote_line`; None when the end, or the begin, is not there.

    The exit code is None when the guard did not hold.
    """
    lines: list[str] | None = None
    end = re.compile(rf"MONTAGE:END-{nonce}:(\d+|gone)$")
    for raw in out.splitlines():
        line = raw.rstrip()
        if line.endswith(f"MONTAGE:BEGIN:{nonce}"):
            lines = []
            continue
        found = end.search(line)
        if found is not None and lines is not None:
            return (None if found[1] == "gone" else int(found[1])), lines
        if lines is not None:
            lines.append(line)
    return None


def default_lock() -> Path:
    """The lock file that all processes of this user on this machine share."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"montage-cgpu-{user}.lock"


@contextlib.contextmanager
def _held(lock: Path, wait_s: float) -> Iterator[None]:
    """The lock, for the length of the block; it ends with the process that holds it, however that ends."""
    import fcntl

    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise CloudFailure(CloudFault.BUSY) from None
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(handle)


def _failure_of(reply: _Reply) -> CloudFailure:
    before_the_work = reply.out.partition("MONTAGE")[0]
    fault = fault_of(reply.code, before_the_work, reply.err)
    explains_itself = fault in (CloudFault.CRASHED, CloudFault.UPLOAD_FAILED, CloudFault.OFFLINE)
    return CloudFailure(fault, (reply.err.strip() or reply.out) if explains_itself else "")


def _environment(config: Path) -> Mapping[str, str]:
    """cgpu's environment: ours, its configuration copied, and no way to a browser."""
    inherited = {name: value for name, value in os.environ.items() if name not in _SCREENS}
    return {**inherited, **_NO_BROWSER, "CGPU_CONFIG_DIR": str(config)}


def _run(program: str, arguments: Sequence[str], config: Path, limit_s: float) -> _Reply:
    """Run cgpu to its end; raise TIMED_OUT at the limit, and NO_SESSION or SESSION_LOST when it starts a login.

    It works in the folder of the copied configuration: cgpu reads a `.env` and a configuration from where it is.
    """
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(config),
            cwd=config.parent,
            start_new_session=True,
        )
    except OSError as error:
        raise CloudFailure(CloudFault.CRASHED, str(error)) from None
    assert process.stdout is not None
    assert process.stderr is not None
    waits_for_login = threading.Event()
    ended = threading.Event()
    streams = [_Listener(stream, waits_for_login, ended) for stream in (process.stdout, process.stderr)]
    try:
        _wait(process, streams, ended, started + limit_s)
        stopped = process.poll() is None
    finally:
        _end(process)
    out, err = (stream.text() for stream in streams)
    if waits_for_login.is_set():
        raise _unwanted_login(out, err)
    if stopped and any(stream.seen_enough for stream in streams):
        raise CloudFailure(CloudFault.CRASHED, f"it printed more than {_MOST_OUTPUT >> 20} MB")
    if stopped:
        raise CloudFailure(CloudFault.TIMED_OUT, f"{limit_s:.0f} s")
    return _Reply(process.returncode, out, err, time.monotonic() - started)


def _unwanted_login(out: str, err: str) -> CloudFailure:
    """cgpu asks for a new access token before each of its requests. Where one of those gets lost, it throws its copy of
    the login away, and wants another with the next, though the login is good."""
    if "Stored session invalid" in out + err:
        return CloudFailure(CloudFault.SESSION_LOST)
    if _LOGGED_IN in out:
        return CloudFailure(CloudFault.CONNECTION_LOST, "cgpu threw its login away on the way")
    return CloudFailure(CloudFault.NO_SESSION)


def _wait(process: subprocess.Popen[bytes], streams: Sequence[_Listener], ended: threading.Event, until: float) -> None:
    """Until the program is done, a listener has seen enough, or the time is up."""
    while time.monotonic() < until:
        # Both outputs end when the program does; a child of its own that keeps one open must not hold us up.
        ended.wait(min(1.0, max(0.0, until - time.monotonic())))
        ended.clear()
        if process.poll() is not None or any(stream.seen_enough for stream in streams):
            return
        if all(stream.is_done for stream in streams):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the program and whatever it started; wait until it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Listener:
    """Reads one output as it comes, so that it never blocks, and watches for a login that begins."""

    def __init__(self, stream: IO[bytes], waits_for_login: threading.Event, ended: threading.Event) -> None:
        self._stream = stream
        self._parts: list[bytes] = []
        self._bytes = 0
        self._waits_for_login = waits_for_login
        self._ended = ended
        self.seen_enough = False
        self._thread = threading.Thread(target=self._listen, name="cgpu output", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def text(self) -> str:
        self._thread.join(_END_GRACE_S)
        return b"".join(self._parts).decode("utf-8", "replace")

    def _listen(self) -> None:
        at_work = False
        with contextlib.suppress(ValueError, OSError):  # closed under our feet when the program is stopped
            for line in iter(functools.partial(self._stream.readline, _LONGEST_READ), b""):
                self._parts.append(line)
                self._bytes += len(line)
                if self._bytes > _MOST_OUTPUT:
                    self.seen_enough = True
                # Once it began, cgpu begins no login; the work, and the echo of it, may print what they like.
                at_work = at_work or _BEGUN in line
                if not at_work and wants_login(line.decode("utf-8", "replace")):
                    self._waits_for_login.set()
                    self.seen_enough = True
                if self.seen_enough:
                    break
        self._ended.set()
