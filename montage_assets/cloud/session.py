"""cgpu's login: where it lies, whether it is there, and how it is kept from harm.

Belongs here: cgpu's configuration folder. cgpu deletes its login when a refresh of it fails, be it for want of a
network. So it is only ever given a copy of the folder, and whatever happens to that, killed processes included, the
user's own stays as it was; it may even be mounted read-only. Nothing here reads the login's secrets.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SESSION_FILE = Path("state", "session.json")
_LARGEST_BYTES = 1 << 20
"""Of a file of cgpu's configuration; anything larger is none."""

SessionState = Literal["present", "missing", "damaged", "unreadable"]


@dataclass(frozen=True)
class Session:
    """What is known of the login without using it. `age_days` counts from when it was stored."""

    file: Path
    state: SessionState
    age_days: float | None

    @property
    def usable(self) -> bool:
        return self.state == "present"


def config_folder(chosen: Path | None) -> Path:
    """cgpu's configuration folder: the one chosen (CGPU_CONFIG_DIR), else its default."""
    return chosen if chosen is not None else Path.home() / ".config" / "cgpu"


def look_at_session(folder: Path, now: float | None = None) -> Session:
    """Whether a login is there and whole, without starting one. `now` is in seconds since the epoch."""
    file = folder / SESSION_FILE
    try:
        stored_at = file.stat().st_mtime
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Session(file, "missing", None)
    except (OSError, UnicodeDecodeError):
        return Session(file, "unreadable", None)
    age = ((time.time() if now is None else now) - stored_at) / 86400
    return Session(file, "present" if _is_whole(text) else "damaged", round(age, 1))


def _is_whole(text: str) -> bool:
    """Whether it has the fields that cgpu insists on; with others it fails before it does anything."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(value, dict)
        and isinstance(value.get("id"), str)
        and isinstance(value.get("refreshToken"), str)
        and bool(value["refreshToken"])
        and isinstance(value.get("scopes"), list)
        and isinstance(value.get("account"), dict)
        and {"id", "label"} <= value["account"].keys()
    )


@contextlib.contextmanager
def borrowed_config(folder: Path) -> Iterator[Path]:
    """A private copy of cgpu's configuration folder, for one call of cgpu; removed at the end.

    The login itself is put back in case a cgpu that does not know CGPU_CONFIG_DIR removed it.
    """
    original = folder / SESSION_FILE
    kept = original.read_bytes() if original.is_file() else None
    status = original.stat() if kept is not None else None
    with tempfile.TemporaryDirectory(prefix="montage-cgpu-", ignore_cleanup_errors=True) as place:
        copy = Path(place) / "config"
        _copy_small_files(folder, copy)
        try:
            yield copy
        finally:
            if kept is not None and status is not None and not original.exists():
                _put_back(original, kept, status.st_mode & 0o777, (status.st_atime_ns, status.st_mtime_ns))


def _copy_small_files(source: Path, target: Path) -> None:
    (target / SESSION_FILE.parent).mkdir(parents=True)
    if not source.is_dir():
        return
    for path in [*source.iterdir(), *_files_in(source / SESSION_FILE.parent)]:
        if path.is_file() and path.stat().st_size <= _LARGEST_BYTES:
            shutil.copy2(path, target / path.relative_to(source))


def _files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _put_back(file: Path, content: bytes, mode: int, times_ns: tuple[int, int]) -> None:
    import os

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.touch(mode=mode)
    temporary.write_bytes(content)
    temporary.chmod(mode)
    os.utime(temporary, ns=times_ns)
    temporary.replace(file)
