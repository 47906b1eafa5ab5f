"""Which montages are ready to be made: pure decisions on listings of the input folder.

Belongs here: when a folder is settled, and whether its content is new. `sensors` only calls this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from montage_assets.data_root import StoredFile
from montage_assets.media.fingerprint import result_key
from montage_assets.media.ingest import media_kind
from montage_assets.spec import SPEC_FILE


@dataclass(frozen=True)
class Seen:
    """What an earlier tick saw of one montage: its listing, and the content that a run was asked for."""

    listing: str
    requested: str | None = None


@dataclass(frozen=True)
class Arrival:
    """A montage to make now. `fingerprint` identifies its content."""

    montage: str
    fingerprint: str


@dataclass(frozen=True)
class Decision:
    """What one tick decided: the montages to make, what to remember, and what is waited for."""

    arrivals: list[Arrival]
    seen: dict[str, Seen]
    waiting: list[str]


Fingerprint = Callable[[str, Sequence[StoredFile]], str]
"""Fingerprint of the content of a montage's files; reads them, so it is asked only for settled folders."""


def decide(
    listings: Mapping[str, Sequence[StoredFile]], before: Mapping[str, Seen], fingerprint: Fingerprint
) -> Decision:
    """Compare what is there now with what the last tick saw.

    A montage is ready when no file was added, changed or removed since the last tick. Its content is new
    when it differs from the content that a run was asked for last; a touched file does not count.
    """
    arrivals: list[Arrival] = []
    seen: dict[str, Seen] = {}
    waiting: list[str] = []
    for montage, files in sorted(listings.items()):
        relevant = [file for file in files if concerns_the_film(file.name)]
        listing = result_key(files=[[file.name, file.size, file.version] for file in relevant])
        last = before.get(montage)
        requested = last.requested if last else None
        lack = _what_is_missing(relevant)
        if lack:
            waiting.append(f"{montage}: {lack}")
        elif last is None or last.listing != listing:
            waiting.append(f"{montage}: still changing")
        else:
            content = fingerprint(montage, relevant)
            if content != requested:
                arrivals.append(Arrival(montage, content))
            requested = content
        seen[montage] = Seen(listing, requested)
    return Decision(arrivals, seen, waiting)


def concerns_the_film(name: str) -> bool:
    """Whether a file can change the film."""
    return name == SPEC_FILE or media_kind(name) != "other"


def dump_seen(seen: Mapping[str, Seen]) -> str:
    """The sensor's cursor."""
    return json.dumps({montage: [entry.listing, entry.requested] for montage, entry in sorted(seen.items())})


def load_seen(cursor: str | None) -> dict[str, Seen]:
    """What `dump_seen` wrote; nothing for a first tick."""
    return {montage: Seen(*entry) for montage, entry in json.loads(cursor or "{}").items()}


def _what_is_missing(files: Sequence[StoredFile]) -> str | None:
    kinds = {media_kind(file.name) for file in files}
    if "video" not in kinds:
        return "no clip yet"
    if "audio" not in kinds and not any(file.name == SPEC_FILE for file in files):
        return "no song yet"
    return None
