"""The data root: one folder or bucket with input/, work/ and output/, behind fsspec.

Belongs here: reading, writing and listing by key, for a local folder and for s3:// alike. ffmpeg needs
files, so remote inputs are fetched into a bounded cache and outputs are written locally, then uploaded.
Does not belong here: what the keys mean (`layout`), how records look in JSON (`io`), what the cache keeps
(`file_cache`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from montage_assets.file_cache import FileCache

DEFAULT_CACHE_BYTES = 20 << 30
ABANDONED_AFTER_S = 24 * 3600.0
_UNFINISHED = re.compile(r"\.+[0-9a-f]{12}\.partial.*|\.(joined|join|sound)-\w+")
"""Files that `unfinished_beside` named, or what was named by those; folders in which films are joined."""


@dataclass(frozen=True)
class StoredFile:
    """One file below a folder of the data root. `version` changes when the content may have changed."""

    name: str
    """Path relative to the listed folder, with forward slashes."""
    size: int
    version: str


class DataRoot:
    """Files by key (`work/scores/ab12.npz`) below a root, or by absolute path outside of it.

    Every write is atomic: readers see the old file, the new file or none.
    """

    def __init__(self, url: str, cache: Path | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.url = url.rstrip("/") or "/"
        self._remote: Any = None
        self._base = self.url
        if "://" in url and not url.startswith("file://"):
            import fsspec

            # Other nodes write to the same bucket: a cached listing would hide their results.
            self._remote, self._base = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        else:
            self._base = str(Path(url.removeprefix("file://")).expanduser().absolute())
        self._cache = FileCache(cache or Path(tempfile.gettempdir()) / f"montage-cache-{_user()}", cache_bytes)

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine (a network mount counts)."""
        return self._remote is None

    def free_bytes(self) -> int | None:
        """Space left where the root lies; None for a bucket, or before the folder is there."""
        folder = Path(self._base)
        return shutil.disk_usage(folder).free if self.is_local and folder.is_dir() else None

    def where(self, key: str) -> str:
        """The full path or URL of a key, for people."""
        if self._remote is not None and not key.startswith("/"):
            return f"{self.url}/{key}"
        return str(self._path(key))

    def key_of(self, path: str) -> str:
        """The key of a full path or URL below the root. Any other path is returned as it is: it is a key of its own."""
        return path.removeprefix(f"{self._base if self.is_local else self.url}/")

    def exists(self, key: str) -> bool:
        """Whether there is a finished file of that key."""
        if self._is_here(key):
            return self._path(key).is_file()
        return bool(self._remote.isfile(self._remote_path(key)))

    def folder_exists(self, key: str) -> bool:
        """Whether there is a folder of that key (in a bucket: any file below it)."""
        if self._is_here(key):
            return self._path(key).is_dir()
        return bool(self._remote.isdir(self._remote_path(key)))

    def read_bytes(self, key: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""
        if self._is_here(key):
            return self._path(key).read_bytes()
        return bytes(self._remote.cat_file(self._remote_path(key)))

    def open(self, key: str) -> IO[bytes]:
        """A file opened for reading; of a remote one only what is read is fetched."""
        if self._is_here(key):
            return self._path(key).open("rb")
        opened: IO[bytes] = self._remote.open(self._remote_path(key), "rb", block_size=1 << 18)
        return opened

    def write_bytes(self, key: str, data: bytes) -> None:
        """Write a whole file at once."""
        with self.writing(key) as path:
            path.write_bytes(data)

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A temporary path to write; it becomes the file of that key when the block ends well.

        The temporary file keeps the key's suffix, since ffmpeg chooses the container by it.
        """
        if self._is_here(key):
            target = self._path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = unfinished_beside(target)
            try:
                yield temporary
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="montage-upload-") as folder:
            path = Path(folder) / PurePosixPath(key).name
            yield path
            # An object appears in a bucket only when its upload is complete.
            self._remote.put_file(str(path), self._remote_path(key))

    def local_file(self, key: str) -> Path:
        """A local path with the content of a key; a remote file is fetched once into the cache.

        There it stays at least until this object has given out `KEPT_IN_USE` others, or is gone.
        """
        if self._is_here(key):
            return self._path(key)
        remote = self._remote_path(key)
        info = self._remote.info(remote)
        identity = hashlib.blake2b(f"{self.url}/{key} {_version(info)}".encode(), digest_size=12).hexdigest()
        return self._cache.get(
            f"{identity}{PurePosixPath(key).suffix}",
            int(info.get("size") or 0),
            lambda path: self._remote.get_file(remote, str(path)),
        )

    def list_files(self, folder: str, recursive: bool = True) -> list[StoredFile]:
        """The files below a folder, sorted by name; hidden and half-written ones are left out."""
        found = self._list_here(folder, recursive) if self._is_here(folder) else self._list_remote(folder, recursive)
        return sorted(found, key=lambda file: file.name)

    def list_folders(self, folder: str) -> list[str]:
        """The names of the folders directly in a folder, sorted; hidden ones are left out."""
        if self._is_here(folder):
            path = self._path(folder)
            names = [entry.name for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []
        else:
            listed = self._remote.ls(self._remote_path(folder), detail=True) if self.folder_exists(folder) else []
            names = [PurePosixPath(entry["name"]).name for entry in listed if entry["type"] == "directory"]
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, key: str) -> None:
        """Remove a file if it is there."""
        if self._is_here(key):
            self._path(key).unlink(missing_ok=True)
        elif self.exists(key):
            self._remote.rm_file(self._remote_path(key))

    def remove_unfinished(self, folder: str) -> int:
        """Remove what killed writers left below a folder, and say how many files and folders that were.

        Whoever still writes has touched its file within the last day.
        """
        if not self._is_here(folder):
            return 0  # an unfinished upload is no object
        oldest = time.time() - ABANDONED_AFTER_S
        left = [path for path in self._path(folder).rglob(".*") if _UNFINISHED.fullmatch(path.name)]
        gone = [path for path in left if (status := _status(path)) is not None and status.st_mtime < oldest]
        for path in gone:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(gone)

    def _is_here(self, key: str) -> bool:
        return self._remote is None or Path(key).is_absolute()

    def _path(self, key: str) -> Path:
        return Path(key) if Path(key).is_absolute() else Path(self._base) / key

    def _remote_path(self, key: str) -> str:
        return f"{self._base}/{key}".rstrip("/")

    def _list_here(self, folder: str, recursive: bool) -> Iterator[StoredFile]:
        root = self._path(folder)
        for parent, folders, names in os.walk(root, onerror=_unless_gone):
            folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
            for name in names:
                path = Path(parent) / name
                status = None if name.startswith(".") else _status(path)
                if status is not None and stat.S_ISREG(status.st_mode):
                    version = f"{status.st_size}-{status.st_mtime_ns}"
                    yield StoredFile(path.relative_to(root).as_posix(), status.st_size, version)

    def _list_remote(self, folder: str, recursive: bool) -> Iterator[StoredFile]:
        base = self._remote_path(folder)
        listed = self._remote.find(base, maxdepth=None if recursive else 1, detail=True)
        for path, info in listed.items():
            name = str(PurePosixPath(path).relative_to(PurePosixPath(base)))
            if not any(part.startswith(".") for part in PurePosixPath(name).parts):
                yield StoredFile(name, int(info.get("size") or 0), _version(info))


def unfinished_beside(target: Path) -> Path:
    """A hidden temporary name in the target's folder, with its suffix."""
    return target.with_name(f".{uuid.uuid4().hex[:12]}.partial{target.suffix}")


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file so that the target is never seen half-written."""
    temporary = unfinished_beside(target)
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def is_utf8(name: str) -> bool:
    """Whether a file's or folder's name can be written down; Linux allows any bytes, Dagster's storage does not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _status(path: Path) -> os.stat_result | None:
    """Of a file that was listed just now; None where it is gone meanwhile or a link that leads nowhere."""
    try:
        return path.stat()
    except OSError as error:
        _unless_gone(error)
        return None


def _unless_gone(error: OSError) -> None:
    """Raise an error of listing, but not that of what was removed meanwhile. Rights that lack must not look
    like files that lack."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE):
        raise error


def _version(info: dict[str, Any]) -> str:
    tag = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or ""
    return f"{info.get('size')}-{tag}"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"
