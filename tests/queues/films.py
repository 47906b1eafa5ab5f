"""What a film shows, by independent means."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import av


def frames_of(film: Path) -> tuple[int, str]:
    """How many frames PyAV decodes, and a digest of all their pixels."""
    digest = hashlib.sha256()
    count = 0
    with av.open(str(film)) as container:
        for frame in container.decode(video=0):
            digest.update(frame.to_ndarray().tobytes())
            count += 1
    return count, digest.hexdigest()


def edit_list_of(film: Path) -> object:
    """The edit list beside it."""
    return json.loads(film.with_suffix(".json").read_text())
