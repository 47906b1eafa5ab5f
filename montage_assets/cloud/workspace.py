"""A folder on the cloud machine for one piece of work: files go in and come back whole, or not at all.

Belongs here: chunked, hashed transfer in both directions, and noticing that the machine is not the same any more. Does
not belong here: calling cgpu (`client`).

No name of the user's files is ever sent: what is uploaded bears the names given here.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import io
import re
import secrets
import shlex
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from montage_assets.cloud.client import CGPUClient, RemoteOutput
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.data_root import unfinished_beside

HOME = "/content"
"""Where the cloud machine keeps files."""
UPLOAD_CHUNK_BYTES = 64 << 20
"""cgpu sends a file as one JSON text of base64, which Node limits to some 384 MiB of file; smaller pieces are also less
to send again."""
DOWNLOAD_CHUNK_BYTES = 8 << 20
LARGEST_BYTES = 4 << 30
"""Of one transfer, in either direction."""
SLOWEST_BYTES_PER_S = 64 << 10
"""A transfer that is slower is given up."""
DISK_BYTES_PER_S = 50 << 20
_STEP_S = 60.0
_DAMAGED = 65
_BLOCK_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_ABOUT = re.compile(r"([0-9a-f]{64}) ([0-9a-f]{64}|-) (\d+)")
_HASH_THERE = "sha256sum | cut -c1-64"

OnSent = Callable[[str, int, float], None]
"""Told of every upload, failed ones included: what it was, its bytes and seconds."""
Result = TypeVar("Result")


class Workspace:
    """Files and commands of one piece of work on one cloud machine. Every method raises CloudFailure."""

    def __init__(
        self, client: CGPUClient, on_sent: OnSent | None = None, chunk_bytes: int = UPLOAD_CHUNK_BYTES
    ) -> None:
        self._client = client
        self._on_sent = on_sent
        self._chunk_bytes = chunk_bytes
        self._mark = secrets.token_hex(8)
        self.folder = f"{HOME}/montage-{self._mark}"
        self._guard = f'[ "$(cat {self.folder}/mark 2>/dev/null)" = {self._mark} ]'

    def open(self) -> None:
        """Make the folder, with a mark that another machine does not have."""
        made = self._client.run(
            ["sh", "-c", f"mkdir -p {self.folder} && echo {self._mark} > {self.folder}/mark"], timeout_s=_STEP_S
        )
        if made.code != 0:
            raise CloudFailure(CloudFault.WORK_FAILED, made.last_line)

    def close(self) -> None:
        """Remove the folder; a cloud machine that is gone has done so itself."""
        with contextlib.suppress(CloudFailure):
            self._client.run(["rm", "-rf", self.folder], timeout_s=_STEP_S, guard=self._guard)

    def path(self, name: str) -> str:
        """Where a file of that name lies on the cloud machine. Raises ValueError for a name that is not plain."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no plain name for a file on the cloud machine")
        return f"{self.folder}/{name}"

    def run(self, *argv: str, timeout_s: float) -> RemoteOutput:
        """Run a command in the folder, on the machine that the folder was made on. See `CGPUClient.run`."""
        return self._client.run(argv, timeout_s=timeout_s, guard=f"{self._guard} && cd {self.folder}")

    def put(self, files: Sequence[Path], what: str) -> None:
        """Upload files under their own names, which are plain and ours, as one archive in chunks.

        Its hash is compared where it arrived, and chunks that arrived damaged are sent once more. `what` says for
        people what it is.
        """
        size = sum(file.stat().st_size for file in files)
        if size > LARGEST_BYTES:
            raise CloudFailure(CloudFault.TOO_LARGE, f"{size / 1e9:.1f} GB")
        with tempfile.TemporaryDirectory(prefix="montage-upload-") as place:
            chunks = _Chunks(Path(place), self._chunk_bytes)
            with tarfile.open(fileobj=chunks, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
                for file in files:
                    self.path(file.name)
                    entry = tarfile.TarInfo(file.name)  # its size alone: no owner, no times
                    entry.size = file.stat().st_size
                    with file.open("rb") as stream:
                        archive.addfile(entry, stream)
            parts = chunks.finished()
            tally = _Tally()
            try:
                self._send(parts, tally)
                if not self._unpack(chunks.sha256, size):
                    self._send(self._damaged(parts), tally)
                    if not self._unpack(chunks.sha256, size):
                        raise CloudFailure(CloudFault.UPLOAD_DAMAGED)
            finally:  # what a failed upload has sent has left this machine too
                if self._on_sent is not None and tally.size:
                    self._on_sent(what, tally.size, tally.seconds)

    def _send(self, parts: Sequence[Path], tally: _Tally) -> None:
        for part in parts:
            _tried_twice(functools.partial(self._send_part, part, tally))

    def _send_part(self, part: Path, tally: _Tally) -> None:
        size = part.stat().st_size
        tally.size += size
        started = time.monotonic()
        try:
            self._client.copy(part, self.path(part.name), timeout_s=_STEP_S + size / SLOWEST_BYTES_PER_S)
        except CloudFailure as failure:
            if failure.fault is CloudFault.UPLOAD_FAILED:
                self.run("true", timeout_s=_STEP_S)  # a folder that is gone says why it failed
            raise
        finally:
            tally.seconds += time.monotonic() - started

    def _unpack(self, sha256: str, size: int) -> bool:
        """Put the files where they belong; False when what arrived is not what was sent."""
        whole = f'[ "$(cat part-* | sha256sum | cut -c1-64)" = {sha256} ]'
        unpack = f"{whole} || exit {_DAMAGED}; cat part-* | tar -xf - && rm -f part-*"
        output = self.run("sh", "-c", unpack, timeout_s=_STEP_S + size / DISK_BYTES_PER_S)
        if output.code not in (0, _DAMAGED):
            raise CloudFailure(CloudFault.WORK_FAILED, output.last_line or f"exit code {output.code}")
        return output.code == 0

    def _damaged(self, parts: Sequence[Path]) -> list[Path]:
        limit_s = _STEP_S + sum(part.stat().st_size for part in parts) / DISK_BYTES_PER_S
        lines = self.run("sh", "-c", "sha256sum part-* || true", timeout_s=limit_s).lines
        there = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
        return [part for part in parts if there.get(part.name) != hashlib.sha256(part.read_bytes()).hexdigest()]

    def get(self, name: str, target: Path) -> None:
        """Download a file in chunks; it appears at `target` only when its length and hash are right.

        A chunk that arrives damaged is asked for once more.
        """
        source = shlex.quote(self.path(name))
        temporary = unfinished_beside(target)
        whole = hashlib.sha256()
        sha256 = ""
        done = 0
        try:
            with temporary.open("wb") as stream:
                while True:
                    number = done // DOWNLOAD_CHUNK_BYTES
                    piece = _tried_twice(functools.partial(self._piece, source, number))
                    sha256 = sha256 or piece.sha256
                    whole.update(piece.content)
                    stream.write(piece.content)
                    done += len(piece.content)
                    if done >= piece.size or not piece.content:
                        break
            if done != piece.size or whole.hexdigest() != sha256:
                raise CloudFailure(CloudFault.DOWNLOAD_DAMAGED, f"{done} of {piece.size} bytes")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _piece(self, source: str, number: int) -> _Piece:
        """One chunk of a file on the cloud machine: its hash, with the first one the whole file's, the file's size, and
        then the chunk in base64."""
        read = f"dd if={source} bs={DOWNLOAD_CHUNK_BYTES} skip={number} count=1 2>/dev/null"
        of_all = f"$(cat {source} | {_HASH_THERE})" if number == 0 else "-"
        sums = f"$({read} | {_HASH_THERE}) {of_all} $(wc -c < {source})"
        limit_s = 2 * _STEP_S + DOWNLOAD_CHUNK_BYTES / SLOWEST_BYTES_PER_S
        command = f"test -f {source} && echo {sums} && {read} | base64 -w 76"
        return _read_piece(self._checked("sh", "-c", command, timeout_s=limit_s).lines)

    def _checked(self, *argv: str, timeout_s: float) -> RemoteOutput:
        output = self.run(*argv, timeout_s=timeout_s)
        if output.code != 0:
            raise CloudFailure(CloudFault.WORK_FAILED, output.last_line or f"exit code {output.code}")
        return output


@dataclass
class _Tally:
    """Bytes given to cgpu for sending, and the seconds it took over them."""

    size: int = 0
    seconds: float = 0.0


class _Chunks(io.RawIOBase):
    """Writes a stream into files of equal size, the last one excepted, and hashes all of it."""

    def __init__(self, folder: Path, chunk_bytes: int) -> None:
        self._folder = folder
        self._left = self._chunk_bytes = chunk_bytes
        self._hash = hashlib.sha256()
        self._parts: list[Path] = []
        self._stream: IO[bytes] | None = None

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._hash.update(view)
        for first in range(0, len(view), _BLOCK_BYTES):
            self._spread(view[first : first + _BLOCK_BYTES])
        return len(view)

    def finished(self) -> list[Path]:
        """The files, in order."""
        if self._stream is not None:
            self._stream.close()
        return self._parts

    def _spread(self, view: memoryview) -> None:
        while view:
            if self._stream is None or not self._left:
                self.finished()
                self._parts.append(self._folder / f"part-{len(self._parts):05d}")
                self._stream = self._parts[-1].open("wb")
                self._left = self._chunk_bytes
            self._stream.write(view[: self._left])
            view, self._left = view[self._left :], self._left - min(self._left, len(view))


@dataclass(frozen=True)
class _Piece:
    """A chunk of a file, and the whole file's hash (with the first chunk only) and size."""

    content: bytes
    sha256: str
    size: int


def _read_piece(lines: Sequence[str]) -> _Piece:
    found = _ABOUT.fullmatch(lines[0]) if lines else None
    if found is None:
        raise CloudFailure(CloudFault.OUTPUT_UNREADABLE, "\n".join(lines[:1]))
    size = int(found[3])
    if size > LARGEST_BYTES:
        raise CloudFailure(CloudFault.TOO_LARGE, f"{size / 1e9:.1f} GB")
    try:
        content = base64.b64decode("".join(lines[1:]), validate=True)
    except (binascii.Error, ValueError):
        raise CloudFailure(CloudFault.DOWNLOAD_DAMAGED) from None
    if hashlib.sha256(content).hexdigest() != found[1]:
        raise CloudFailure(CloudFault.DOWNLOAD_DAMAGED)
    return _Piece(content, found[2], size)


def _tried_twice(step: Callable[[], Result]) -> Result:
    """A step of a transfer, once more when it failed in a way that passes on the same machine."""
    try:
        return step()
    except CloudFailure as failure:
        if not failure.fault.passing or failure.fault is CloudFault.RUNTIME_CHANGED:
            raise
    return step()


@contextlib.contextmanager
def opened(client: CGPUClient, on_sent: OnSent | None = None) -> Iterator[Workspace]:
    """A workspace that is removed at the end of the block, unless the cloud no longer answers."""
    workspace = Workspace(client, on_sent)
    workspace.open()
    try:
        yield workspace
    except CloudFailure as failure:
        if not failure.fault.lasting or failure.fault.of_work:
            workspace.close()
        raise
    except BaseException:
        workspace.close()
        raise
    workspace.close()


_WORTH_ANOTHER_MACHINE = {CloudFault.RUNTIME_CHANGED, CloudFault.CONNECTION_LOST, CloudFault.OUTPUT_UNREADABLE}
"""What may go well from the start. Transfers that arrive damaged were tried twice already."""


def in_workspace(client: CGPUClient, work: Callable[[Workspace], Result], on_sent: OnSent | None = None) -> Result:
    """Do a piece of work in a workspace; once more from the start, on whatever machine there is then, when the
    connection or the machine was lost. Raises CloudFailure."""
    try:
        with opened(client, on_sent) as workspace:
            return work(workspace)
    except CloudFailure as failure:
        if failure.fault not in _WORTH_ANOTHER_MACHINE:
            raise
    with opened(client, on_sent) as workspace:
        return work(workspace)
