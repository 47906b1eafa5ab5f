"""The one ffmpeg of the pipeline: which build, how it is run, how it fails.

Belongs here: finding the program, its version (part of every cache key), running it with progress,
and the protection every call needs against hostile media. Does not belong here: what to ask of it;
each module builds its own arguments.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from montage_assets.media.errors import FfmpegFailed, MediaError

# A media file may name other files or hosts (playlists, data references). Only the file itself is read.
INPUT_PROTOCOLS = "file,pipe,fd"

# The containers that are read. An allow-list, since some demuxers (playlists, image sequences, lavfi)
# open whatever the file's text names.
READABLE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,mpegtsraw,flv,asf,ogg,nut,mxf,dv,ivf,rm,"
    "m4v,h264,hevc,av1,obu,yuv4mpegpipe,wav,w64,mp3,flac,aac,ac3,eac3,aiff,caf,amr,au,ape,wv,tta"
)
MAX_SIDE = 16384
MAX_PIXELS = MAX_SIDE * MAX_SIDE

_ERROR_LINES_KEPT = 200
_KILLING_TAKES_S = 5.0
DISK_FULL = "No space left on device"
"""In ffmpeg's log when the disk is full."""


@functools.cache
def ffmpeg_program() -> str:
    """Path of the ffmpeg that every step uses: `MONTAGE_FFMPEG`, else the pinned wheel's.

    Raises MediaError when `MONTAGE_FFMPEG` names no program.
    """
    named = os.environ.get("MONTAGE_FFMPEG")
    if named:
        if not Path(named).is_file() or not os.access(named, os.X_OK):
            raise MediaError(f"MONTAGE_FFMPEG is {named!r}, which is no program; unset it to use the built-in ffmpeg")
        _version_of(named)
        return named
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


@functools.cache
def ffmpeg_version() -> str:
    """The build's own name, e.g. `n9.0.2-17-g2a571b6068-20260930`. Part of every cache key."""
    return _version_of(ffmpeg_program())


def _version_of(program: str) -> str:
    command = [program, "-hide_banner", "-version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.match(r"ffmpeg version (\S+)", result.stdout)
    if result.returncode != 0 or found is None:
        said = result.stderr.strip().splitlines()
        raise MediaError(f"{program} does not run as ffmpeg{f' ({said[-1][:200]})' if said else ''}; name another one")
    return found.group(1)


def input_path(path: str | os.PathLike[str]) -> str:
    """`path` as ffmpeg is to be given it: a leading dash or a `scheme:` in a file name stays a file name."""
    return f"file:{os.fspath(path)}"


def filter_value(path: str | os.PathLike[str]) -> str:
    """`path` as the value of a filter's option in a graph: escaped for the option, then for the graph."""
    of_option = re.sub(r"([\\':])", r"\\\1", os.fspath(path))
    return re.sub(r"([\\'\[\],;])", r"\\\1", of_option)


def input_args(path: str | os.PathLike[str], *before: str) -> list[str]:
    """Arguments that open one source: the guards against hostile media, options for it, then the file."""
    guards = ["-protocol_whitelist", INPUT_PROTOCOLS, "-format_whitelist", READABLE_FORMATS]
    return [*guards, "-max_pixels", str(MAX_PIXELS), *before, "-i", input_path(path)]


@dataclass(frozen=True)
class Progress:
    """How far a running ffmpeg is."""

    frames: int
    fps: float
    out_time_s: float


OnProgress = Callable[[Progress], None]


def run_ffmpeg(
    args: Sequence[str],
    *,
    what: str,
    on_progress: OnProgress | None = None,
    timeout_s: float | None = None,
    stall_s: float | None = None,
    level: str = "error",
) -> str:
    """Run ffmpeg to its end and return its log (lines at `level` and above).

    `what` names the work in an error, e.g. "encoding segment 3". Progress arrives about once a second.
    Raises FfmpegFailed when ffmpeg returns an error, `timeout_s` passes, or no frame comes for `stall_s`.
    """
    if stall_s is not None and on_progress is None:
        on_progress = _ignore
    command = [ffmpeg_program(), "-hide_banner", "-nostdin", "-loglevel", level, "-y"]
    if on_progress is not None:
        command += ["-progress", "pipe:1", "-stats_period", "1"]
    command += list(args)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=stall_s is not None,  # so that all of it can be killed
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        log = _LogTail(process.stderr)
        timer = _kill_after(process, timeout_s)
        stall = None if stall_s is None else _StallWatch(process, stall_s)
        try:
            _follow_progress(process.stdout, stall.seen_by(on_progress) if stall and on_progress else on_progress)
            code = process.wait()
        except BaseException:
            _kill(process, with_children=stall_s is not None)
            raise
        finally:
            timed_out = timer is not None and not timer.is_alive() and process.poll() not in (0, None)
            if timer is not None:
                timer.cancel()
            if stall is not None:
                stall.end()
        text = log.text()
    if stall is not None and stall.struck and code != 0:
        raise FfmpegFailed(f"{what} gave no frame for {stall_s:g} s and was stopped", text, hung=True)
    if code != 0:
        raise _failure(what, code, text, timeout_s if timed_out else None)
    return text


@contextlib.contextmanager
def ffmpeg_output(
    args: Sequence[str], *, what: str, level: str = "error", stall_s: float | None = None
) -> Iterator[IO[bytes]]:
    """Run ffmpeg and read what it writes to `pipe:1`. The program is stopped when the block is left early.

    Raises FfmpegFailed at the end of the block when ffmpeg returned an error, or wrote nothing for `stall_s` though it
    was waited for, unless the block was left by an exception or before the end of the output was read.
    """
    command = [ffmpeg_program(), "-hide_banner", "-nostdin", "-loglevel", level, *args]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=1 << 20
    )
    assert process.stdout is not None
    assert process.stderr is not None
    log = _LogTail(process.stderr)
    watched = None if stall_s is None else _WatchedPipe(process.stdout, stall_s)
    output: Any = watched or process.stdout
    try:
        yield output
        read_to_end = not output.read(1)
        if watched is not None and watched.struck:
            process.kill()
    except BaseException:
        process.kill()
        raise
    finally:
        process.stdout.close()
        is_stuck = watched is not None and watched.struck
        code = _wait_a_while(process) if is_stuck else process.wait()
        text = log.text()
    if is_stuck:
        raise FfmpegFailed(f"{what} gave no frame for {stall_s:g} s and was stopped", text, hung=True)
    if read_to_end and code:
        raise _failure(what, code, text, None)


class _LogTail:
    """Drains a program's error stream so that it never blocks, and keeps the last lines."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: list[str] = []
        self._stream = stream
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        for line in self._stream:
            self._lines.append(line.decode("utf-8", "replace").rstrip())
            del self._lines[:-_ERROR_LINES_KEPT]

    def text(self) -> str:
        self._thread.join(timeout=10)
        return "\n".join(self._lines)


class _StallWatch:
    """Kills a program when its count of frames stands still for `limit_s`: a driver may hang for ever."""

    def __init__(self, process: subprocess.Popen[bytes], limit_s: float) -> None:
        self.struck = False
        self._process, self._limit_s = process, limit_s
        self._frames, self._since = 0, time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def seen_by(self, on_progress: OnProgress) -> OnProgress:
        def look(progress: Progress) -> None:
            if progress.frames != self._frames:
                self._frames, self._since = progress.frames, time.monotonic()
            on_progress(progress)

        return look

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._limit_s / 4)):
            if time.monotonic() - self._since > self._limit_s:
                self.struck = True
                _kill(self._process, with_children=True)
                return


class _WatchedPipe:
    """A program's output, which ends when a reader has waited for more of it for `limit_s`. POSIX only."""

    def __init__(self, pipe: IO[bytes], limit_s: float) -> None:
        self.struck = False
        self._file, self._limit_s = pipe.fileno(), limit_s

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, those that are there; empty at the end."""
        if not self.struck and select.select([self._file], [], [], self._limit_s)[0]:
            return os.read(self._file, size if size > 0 else 1 << 20)
        self.struck = True
        return b""


def _wait_a_while(process: subprocess.Popen[bytes]) -> int | None:
    """A program that is stuck in a driver cannot be killed, and is left behind."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_KILLING_TAKES_S)
    return None


def _kill(process: subprocess.Popen[bytes], with_children: bool) -> None:
    """Kill a program; with its children where it has a session of its own, as they may hold its pipes open."""
    if not with_children:
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _ignore(progress: Progress) -> None:
    """Progress that is only watched for standing still."""


def _kill_after(process: subprocess.Popen[bytes], timeout_s: float | None) -> threading.Timer | None:
    if timeout_s is None:
        return None
    timer = threading.Timer(timeout_s, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def _follow_progress(stream: IO[bytes], on_progress: OnProgress | None) -> None:
    values: dict[str, str] = {}
    for raw in stream:
        key, _, value = raw.decode("ascii", "replace").strip().partition("=")
        values[key] = value.strip()
        if key == "progress" and on_progress is not None:
            on_progress(
                Progress(
                    frames=int(values.get("frame", "0") or 0),
                    fps=_number(values.get("fps", "0")),
                    out_time_s=_number(values.get("out_time_us", "0")) / 1e6,
                )
            )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # ffmpeg prints N/A before the first frame
        return 0.0


def _failure(what: str, code: int, log: str, timeout_s: float | None) -> FfmpegFailed:
    if timeout_s is not None:
        return FfmpegFailed(f"{what} took longer than {timeout_s:g} s and was stopped", log)
    if DISK_FULL in log:
        full = f"{what} failed: the disk is full; free some space and run again: finished work is kept"
        return FfmpegFailed(full, log, from_outside=True)
    if code < 0:
        killed = f"{what} failed: ffmpeg was killed (signal {-code}), perhaps for want of memory; run again"
        return FfmpegFailed(killed, log, from_outside=True)
    if lacking := re.search(r"No such filter: '(\w+)'", log):
        said = f"{what} failed: this ffmpeg has no filter {lacking[1]}; unset MONTAGE_FFMPEG to use the built-in one"
        return FfmpegFailed(said, log)
    last = [line for line in log.splitlines() if line.strip()]
    return FfmpegFailed(f"{what} failed: {last[-1].strip() if last else f'ffmpeg ended with code {code}'}", log)
