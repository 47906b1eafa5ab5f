"""What makes two files the same, and what makes two results the same.

Belongs here: fingerprints of sources and keys of results. A result's key is made from all that could
change it: source fingerprint, parameters, algorithm version and the ffmpeg build.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import IO

from montage_assets.media.clip import Clip
from montage_assets.media.errors import ClipChanged

WHOLE_FILE_BYTES = 64 << 20
_SAMPLES = 64
_SAMPLE_BYTES = 256 << 10
_BLOCK_BYTES = 1 << 20
_QUICK_SAMPLES = 8
_QUICK_BYTES = 64 << 10


def fingerprint_of(stream: IO[bytes], size_bytes: int) -> str:
    """Fingerprint of a file's content, 24 hex digits; name and modification time do not count.

    Files up to 64 MiB are read whole. Of larger ones the size and 64 blocks spread from the first to the last
    byte are read (16 MiB): any new encode or edit of a video moves bytes everywhere, and reading
    terabytes twice to notice a flipped bit would cost more than the analysis.
    """
    digest = hashlib.blake2b(size_bytes.to_bytes(8, "big"), digest_size=12)
    if size_bytes <= WHOLE_FILE_BYTES:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
        return digest.hexdigest()
    last_start = size_bytes - _SAMPLE_BYTES
    for sample in range(_SAMPLES):
        stream.seek(last_start * sample // (_SAMPLES - 1))
        digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def refuse_changed(path: Path, clip: Clip) -> None:
    """Raises ClipChanged unless a file still has the content that its clip was probed for."""
    with path.open("rb") as stream:
        now = fingerprint_of(stream, path.stat().st_size)
    if now != clip.fingerprint:
        raise ClipChanged("changed while the montage was made; run again once it is whole")


def quick_fingerprint_of(stream: IO[bytes], size_bytes: int) -> str:
    """Fingerprint of at most 0.5 MiB of a file: enough to see that a folder's content changed, and cheap enough
    to do for thousands of files in one tick of a sensor."""
    digest = hashlib.blake2b(size_bytes.to_bytes(8, "big"), digest_size=12)
    last_start = max(0, size_bytes - _QUICK_BYTES)
    for sample in range(_QUICK_SAMPLES):
        stream.seek(last_start * sample // (_QUICK_SAMPLES - 1))
        digest.update(stream.read(_QUICK_BYTES))
    return digest.hexdigest()


def result_key(**ingredients: object) -> str:
    """Key of a result, 24 hex digits, from everything that could change it."""
    return hashlib.blake2b(_canonical(ingredients).encode(), digest_size=12).hexdigest()


def clip_key(clip: Clip) -> str:
    """Key of all that a result takes from a clip: its content and what ingest made of it, but not its name."""
    known = asdict(clip)
    del known["name"]
    return result_key(**known)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
