"""A `cgpu` of the tests' own: it behaves as version 0.1.4 was seen to, and fails in whatever way it is told to.

Belongs here: the program, and `install`, which puts it on a PATH. `run` types the command into a real terminal with a
real bash in it, as the true one's remote does, in a folder that stands for the cloud machine's /content; the scripts
that arrive there run for real. `CGPU_TEST_STATE` names the folder with:

    behaviour       how to fail: one line `<mode> [<from call>] [<to call>]`, calls counted from 1; empty for not at all
    calls.jsonl     every call with its arguments
    ended           a line for every call that ended by itself, not by force
    content/        the cloud machine's disk
    bin/            programs that the cloud machine has

It is one file without imports of ours, since it is run by its own path.
"""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import secrets
import select
import shutil
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path

CONTENT = "/content"
SENTINEL = "__COLAB_CLI_EXIT__"
SESSION = {
    "id": "5c7d",
    "refreshToken": "1//never-shown-anywhere",
    "scopes": ["email"],
    "account": {"id": "someone@example.org", "label": "Someone"},
}
MODES = (
    "no-session",
    "session-lost",
    "login-thrown-away",
    "session-lost-late",
    "no-network",
    "own-login",
    "no-capacity",
    "quota",
    "blocked",
    "too-many",
    "not-offered",
    "refused",
    "not-set-up",
    "lost-socket",
    "no-terminal",
    "new-machine",
    "upload-refused",
    "upload-damaged",
    "download-damaged",
    "no-end-line",
    "hangs",
    "crashes",
    "floods",
    "theft",
)


def install(folder: Path) -> Path:
    """A folder for PATH with `cgpu` in it; its state, a login included, lies beside it. Returns the state's folder."""
    programs, state = folder / "path", folder / "state"
    for path in (programs, state / "content", state / "bin", folder / "config" / "state"):
        path.mkdir(parents=True)
    _program(
        programs / "cgpu", f'CGPU_TEST_STATE="{state}" exec "{sys.executable}" -I "{Path(__file__).resolve()}" "$@"'
    )
    _program(state / "bin" / "python3", f'exec "{sys.executable}" "$@"')
    (state / "behaviour").write_text("")
    session = folder / "config" / "state" / "session.json"
    session.write_text(json.dumps(SESSION, indent=2))
    session.chmod(0o600)
    return state


def give_program(state: Path, name: str, command: str) -> None:
    """A program on the cloud machine: a line of shell."""
    _program(state / "bin" / name, command)


def calls(state: Path) -> list[list[str]]:
    """The arguments of every call so far."""
    file = state / "calls.jsonl"
    return [json.loads(line)["args"] for line in file.read_text().splitlines()] if file.exists() else []


def times_of_calls(state: Path) -> list[float]:
    """When each call began, in seconds since the epoch."""
    file = state / "calls.jsonl"
    return [json.loads(line)["at"] for line in file.read_text().splitlines()] if file.exists() else []


def stopped_calls(state: Path) -> int:
    """How many calls did not end by themselves."""
    ended = state / "ended"
    return len(calls(state)) - (len(ended.read_text().splitlines()) if ended.exists() else 0)


def _program(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


class _Failed(Exception):  # noqa: N818 -- it names the end of a call
    """Ends the call as cgpu's own error handler does: one line on stderr, exit code 1."""


def main(args: list[str]) -> int:
    state = Path(os.environ["CGPU_TEST_STATE"])
    mode = _mode(state, args)
    try:
        return _act(state, mode, args)
    except _Failed as failure:
        if str(failure):
            print(failure, file=sys.stderr)
        return 1
    finally:
        with (state / "ended").open("a") as ends:
            ends.write("ended\n")


def _mode(state: Path, args: list[str]) -> str:
    """This call's way to fail; the call is counted."""
    with (state / "calls.jsonl").open("a") as log:
        log.write(json.dumps({"args": args, "cwd": str(Path.cwd()), "at": time.time()}) + "\n")
    number = len((state / "calls.jsonl").read_text().splitlines())
    mode, first, last = _told((state / "behaviour").read_text().split())
    return mode if int(first) <= number <= int(last) else ""


def _told(words: list[str]) -> tuple[str, str, str]:
    mode, first, last = [*words, *("", "1", str(10**9))[len(words) :]]
    return mode, first, last


def _act(state: Path, mode: str, args: list[str]) -> int:
    if mode == "crashes":
        print("node:internal/process/promises:391\nTypeError: Cannot read properties of undefined", file=sys.stderr)
        return 7
    if mode == "own-login":  # an older one, that knows only one place for its login
        (state.parent / "config" / "state" / "session.json").unlink()
        raise _Failed("request to https://oauth2.googleapis.com/token failed, reason: getaddrinfo ENOTFOUND")
    config = _take_own_options(args, mode)
    if mode == "not-set-up":
        raise _Failed("Missing Colab OAuth credentials.\nProvide COLAB_CLIENT_ID and COLAB_CLIENT_SECRET via:")
    _log_in(config, mode)
    command, *rest = [arg for arg in args if arg != "--"]
    asked = command == "status"
    print(
        f"Authenticated as Someone{'.' if asked else ' <someone@example.org>'}", end=" " if asked else "\n", flush=True
    )
    if mode in ("login-thrown-away", "session-lost-late"):  # at a later request than the first
        _log_in(config, "no-session" if mode == "login-thrown-away" else "session-lost")
    if mode == "hangs":
        subprocess.Popen(["/bin/sleep", "600"])  # a child of its own that keeps the outputs open
        time.sleep(600)
    while mode == "floods":
        print("x" * 9999, end="", flush=True)
    if mode == "no-capacity":
        raise _Failed("")
    if mode == "quota":
        raise _Failed("Insufficient quota to assign server")
    if mode == "blocked":
        raise _Failed("Account has been blocked from accessing Colab servers.")
    if mode == "too-many":
        raise _Failed("Disconnect other runtimes from https://colab.research.google.com/ and try again.")
    if mode == "not-offered":
        raise _Failed("No eligible GPU accelerators reported by Colab for this account.")
    if mode == "refused":
        raise _Failed("Failed request GET https://colab.research.google.com/tun/m/assign: Unauthorized")
    if mode == "no-terminal":
        raise _Failed("Failed to create remote terminal: Bad Gateway")
    if mode == "new-machine":
        shutil.rmtree(state / "content")
        (state / "content").mkdir()
    if asked:
        print("Eligible GPUs: T4, L4")
        return 0
    if command == "copy":
        return _copy(state, mode, *rest)
    if command == "run":
        return _run(state, mode, _as_one_line(rest))
    raise _Failed(f"error: unknown command '{command}'")


def _take_own_options(args: list[str], mode: str) -> Path:
    """Before `--`, `-c` is cgpu's own, wherever it stands."""
    before = args[: args.index("--")] if "--" in args else args
    if "-c" in before or mode == "theft":
        raise _Failed("Failed to read config at print(1): ENOENT: no such file or directory")
    return Path(os.environ.get("CGPU_CONFIG_DIR") or Path.home() / ".config" / "cgpu")


def _log_in(config: Path, mode: str) -> None:
    session = config / "state" / "session.json"
    if mode == "no-network":
        session.unlink()
        raise _Failed("request to https://oauth2.googleapis.com/token failed, reason: getaddrinfo ENOTFOUND")
    if mode == "session-lost":
        session.unlink()
        print("Stored session invalid, forcing login.", file=sys.stderr, flush=True)
    if mode == "no-session" or not session.exists():
        print("No cached session found. Starting OAuth login...", flush=True)
        print(
            "Opened browser for Google login. If it did not open, visit:\nhttps://accounts.google.com/o?x=y", flush=True
        )
        time.sleep(600)
    json.loads(session.read_text())


def _copy(state: Path, mode: str, source: str, destination: str = "") -> int:
    target = state / "content" / (destination or Path(source).name).removeprefix("/").removeprefix("content/")
    data = Path(source).read_bytes()
    if len(data) > 384 << 20:
        raise _Failed("RangeError [ERR_STRING_TOO_LONG]: Cannot create a string longer than 0x1fffffe8 characters")
    if mode == "upload-refused" or not target.parent.is_dir():
        raise _Failed("Upload failed (500 Internal Server Error): No such file or directory")
    target.write_bytes(data[: len(data) // 2] if mode == "upload-damaged" else data)
    print(f"Uploaded: {Path(source).name} → {destination} ({len(data)} B)")
    return 0


def _as_one_line(args: list[str]) -> str:
    plain = re.compile(r"[A-Za-z0-9_/:=.,@%+-]+")
    quoted = [arg if plain.fullmatch(arg) else "'" + arg.replace("'", "'\"'\"'") + "'" for arg in args[1:]]
    return " ".join([args[0], *quoted])


def _run(state: Path, mode: str, line: str) -> int:
    marker = SENTINEL + secrets.token_hex(8)
    typed = ["stty -echo", "PS1=", line.replace(CONTENT, str(state / "content")), "__COLAB_CLI_STATUS=$?", "stty echo"]
    payload = "\n".join([*typed, f"printf '{marker}:%s\\n' \"$__COLAB_CLI_STATUS\"", "exit", ""])
    if mode == "lost-socket":
        print("Command finished without reporting an exit code; assuming failure (exit code 1).", file=sys.stderr)
        return 1
    code = None
    for raw in _terminal(state, payload).decode("utf-8", "replace").split("\n"):
        shown = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", raw.replace("\r", "")).removeprefix("/# ")
        if shown.strip().startswith(f"{marker}:"):
            code = int(shown.strip()[len(marker) + 1 :])
            continue
        hidden = shown.strip() in ("PS1=", "stty -echo", "stty echo", "exit", "logout", "")
        if hidden or shown.startswith("printf '" + SENTINEL):
            continue
        print(_spoiled(shown, mode))
    if code is None:
        print("Command finished without reporting an exit code; assuming failure (exit code 1).", file=sys.stderr)
        return 1
    return 0 if mode == "no-end-line" else code


def _spoiled(line: str, mode: str) -> str:
    if mode == "no-end-line" and "END-" in line:
        return "~"
    if mode == "download-damaged" and re.fullmatch(r"[A-Za-z0-9+/=]{8,76}", line):
        return line[::-1]
    return line


def _terminal(state: Path, payload: str) -> bytes:
    """What a real terminal with a bash in it shows when the payload is typed into it at once."""
    ours, theirs = pty.openpty()
    path = f"{state / 'bin'}:/usr/bin:/bin"
    environment = {"PATH": path, "TERM": "xterm", "HOME": str(state), "PS1": "/# ", "LC_ALL": "C.UTF-8"}
    shell = subprocess.Popen(
        ["/bin/bash", "--norc", "--noprofile", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        cwd=state / "content",
        preexec_fn=_own_terminal,  # noqa: PLW1509 -- there are no threads here
    )
    os.close(theirs)
    shown: list[bytes] = []
    pending = payload.encode()
    while True:
        readable, writable, _ = select.select([ours], [ours] if pending else [], [])
        if writable:
            pending = pending[os.write(ours, pending[:1024]) :]
        if not readable:
            continue
        try:
            shown.append(os.read(ours, 1 << 16))
        except OSError as error:  # how a terminal says that its last program is gone
            if error.errno != errno.EIO:
                raise
            break
    shell.wait()
    os.close(ours)
    return b"".join(shown)


def _own_terminal() -> None:
    import fcntl

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
