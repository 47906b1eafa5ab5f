"""Local copies of a bucket's files, within a bound of bytes, shared by all processes of the machine.

Belongs here: what is kept, what is in use, what has to go. Does not belong here: where the files come from
(`data_root`).

A copy is in use while it is among the last `KEPT_IN_USE` that a living `FileCache` gave out: steps go through
their sources one by one, or collect those of one segment before ffmpeg starts. What each gave out stands in a
file of its own, locked for as long as it lives; the kernel ends the lock of a killed process, too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

KEPT_IN_USE = 32
"""At least the sources that one step needs at the same time."""

_COPY = re.compile(r"[0-9a-f]{24}(\..*)?")
"""Names of copies. Whatever else lies in the folder that a user named is left alone."""
_LOCK = ".lock"
_USE = ".in-use"
_PARTIAL = ".partial"


class FileCache:
    """Copies by name in a folder. Other processes may have a `FileCache` of the same folder."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._identity = uuid.uuid4().hex[:12]
        self._in_use: deque[str] = deque(maxlen=KEPT_IN_USE)
        self._use_file: int | None = None

    def get(self, name: str, size_bytes: int, fetch: Callable[[Path], object]) -> Path:
        """The copy of that name (24 hex digits and a suffix); `fetch` writes what is not there to a path it is given.

        The bound is exceeded where all that is kept is in use.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        copy = self._folder / name
        with self._alone():
            self._note_use(name)
            if copy.is_file():
                os.utime(copy)
                return copy
            self._make_room(size_bytes)
        partial = self._folder / f".{self._identity}.{uuid.uuid4().hex[:12]}{_PARTIAL}"
        try:
            fetch(partial)
            partial.replace(copy)
        finally:
            partial.unlink(missing_ok=True)
        return copy

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process, thread or cache of this folder looks, notes or removes meanwhile."""
        lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(lock)
            yield
        finally:
            os.close(lock)

    def _note_use(self, name: str) -> None:
        if self._use_file is None:
            path = self._folder / f".{self._identity}{_USE}"
            self._use_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            _lock(self._use_file)
            weakref.finalize(self, _end_use, path, self._use_file, os.getpid())
        if name in self._in_use:
            self._in_use.remove(name)
        self._in_use.append(name)
        os.write(self._use_file, f"{name}\n".encode())

    def _make_room(self, size_bytes: int) -> None:
        users, in_use = self._living()
        idle, used = [], 0
        for path, status in _files(self._folder):
            is_partial = path.name.startswith(".") and path.name.endswith(_PARTIAL)
            if is_partial and path.name.split(".")[1] not in users:
                path.unlink(missing_ok=True)
            elif is_partial or _COPY.fullmatch(path.name):
                used += status.st_size
                if not is_partial and path.name not in in_use:
                    idle.append((status.st_mtime_ns, status.st_size, path))
        for _, size, path in sorted(idle):
            if used + size_bytes <= self._most_bytes:
                return
            path.unlink(missing_ok=True)
            used -= size

    def _living(self) -> tuple[set[str], set[str]]:
        """Identities of the caches that live, and the names of what they have in use."""
        users, in_use = {self._identity}, set(self._in_use)
        for path, _ in _files(self._folder):
            identity = path.name.removeprefix(".").removesuffix(_USE)
            if not path.name.endswith(_USE) or identity == self._identity:
                continue
            with contextlib.suppress(FileNotFoundError), path.open("rb+") as stream:
                if _lock_at_once(stream.fileno()):
                    path.unlink(missing_ok=True)
                else:
                    users.add(identity)
                    latest_first = dict.fromkeys(reversed(stream.read().decode().splitlines()))
                    in_use.update(itertools.islice(latest_first, KEPT_IN_USE))
        return users, in_use


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files that are there, with their status; another process may remove some meanwhile."""
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield path, status


def _end_use(path: Path, descriptor: int, owner: int) -> None:
    os.close(descriptor)
    if os.getpid() == owner:  # not in a child that was forked off
        path.unlink(missing_ok=True)


def _lock(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _lock_at_once(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
