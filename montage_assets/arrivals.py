"""Which montages are ready to be made: pure decisions on listings of the input folder.

Belongs here: when a folder is settled, whether its content is new, and what is remembered of it. `sensors` only
calls this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from montage_assets.data_root import StoredFile, is_utf8
from montage_assets.media.errors import MediaError
from montage_assets.media.fingerprint import result_key
from montage_assets.media.grading import SUFFIX as LUT_SUFFIX
from montage_assets.media.ingest import media_kind
from montage_assets.spec import SPEC_FILE


@dataclass(frozen=True)
class Seen:
    """What an earlier tick saw of one montage: its listing, and the content that a run was asked for."""

    listing: str
    requested: str | None = None
    checked: bool = False
    """Whether the files of that listing were read, and found to be, or made to be, the content requested."""


@dataclass(frozen=True)
class Memory:
    """What the sensor's cursor keeps. `generation` counts the ticks that asked for runs."""

    generation: int = 0
    montages: Mapping[str, Seen] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrival:
    """A montage to make now. `fingerprint` identifies its content; `generation` tells this request from an
    earlier one of the same content, which another content may have followed."""

    montage: str
    fingerprint: str
    generation: int = 0


@dataclass(frozen=True)
class Decision:
    """What one tick decided: the montages to make, what to remember, and what is waited for, one line each."""

    arrivals: list[Arrival]
    memory: Memory
    waiting: list[str]


@dataclass(frozen=True)
class Contents:
    """The content of every montage that could be made now, and why the others could not, one line each."""

    fingerprints: dict[str, str]
    waiting: list[str]


ListFiles = Callable[[str], Sequence[StoredFile]]
"""The files of a montage. Raises MediaError with one line where they cannot be listed."""

Fingerprint = Callable[[str, Sequence[StoredFile]], str]
"""Fingerprint of the content of a montage's files; reads them, so it is asked once for each settled listing. Raises
MediaError with one line where they cannot be read."""


def decide(montages: Iterable[str], before: Memory, list_files: ListFiles, fingerprint: Fingerprint) -> Decision:
    """Compare what is there now with what the last tick saw.

    A montage is ready when no file was added, changed or removed since the last tick. Its content is new
    when it differs from the content that a run was asked for last; a touched file does not count. A montage
    whose files cannot be read waits and is remembered as it was; the others do not wait for it.
    """
    arrivals: list[Arrival] = []
    seen: dict[str, Seen] = {}
    waiting: list[str] = []
    for montage in sorted(montages):
        last = before.montages.get(montage)
        if last is not None:
            seen[montage] = last
        try:
            relevant = _relevant(list_files(montage))
            listing = result_key(files=[[file.name, file.size, file.version] for file in relevant])
            if last is None or last.listing != listing:
                seen[montage] = Seen(listing, last.requested if last else None)
            if lack := _what_is_missing(relevant):
                waiting.append(_line(montage, lack))
            elif last is None or last.listing != listing:
                waiting.append(_line(montage, "still changing"))
            elif not last.checked:
                content = fingerprint(montage, relevant)
                if content != last.requested:
                    arrivals.append(Arrival(montage, content, before.generation + 1))
                seen[montage] = Seen(listing, content, checked=True)
        except MediaError as error:
            waiting.append(_line(montage, str(error)))
    return Decision(arrivals, Memory(before.generation + bool(arrivals), seen), waiting)


def present_contents(montages: Iterable[str], list_files: ListFiles, fingerprint: Fingerprint) -> Contents:
    """Read every montage's files as they are now, settled or not."""
    contents = Contents({}, [])
    for montage in sorted(montages):
        try:
            relevant = _relevant(list_files(montage))
            if lack := _what_is_missing(relevant):
                contents.waiting.append(_line(montage, lack))
            else:
                contents.fingerprints[montage] = fingerprint(montage, relevant)
        except MediaError as error:
            contents.waiting.append(_line(montage, str(error)))
    return contents


def dump_memory(memory: Memory) -> str:
    """The sensor's cursor."""
    montages = {
        montage: [seen.listing, seen.requested, int(seen.checked)] for montage, seen in sorted(memory.montages.items())
    }
    return json.dumps([memory.generation, montages], separators=(",", ":"))


def load_memory(cursor: str | None) -> Memory:
    """What `dump_memory` wrote; nothing for a first tick. Older cursors are the montages alone, unchecked."""
    loaded = json.loads(cursor or "{}")
    generation, montages = (0, loaded) if isinstance(loaded, dict) else loaded
    return Memory(
        generation,
        {montage: Seen(listing, requested, rest == [1]) for montage, (listing, requested, *rest) in montages.items()},
    )


def _relevant(files: Sequence[StoredFile]) -> list[StoredFile]:
    """The files that can change the film."""
    return [file for file in files if _can_change_the_film(file.name)]


def _can_change_the_film(name: str) -> bool:
    # No montage.yaml can name a LUT whose name is not UTF-8.
    is_lut = name.lower().endswith(LUT_SUFFIX) and is_utf8(name)
    return name == SPEC_FILE or is_lut or media_kind(name) != "other"


def _what_is_missing(files: Sequence[StoredFile]) -> str | None:
    misnamed = next((file.name for file in files if not is_utf8(file.name)), None)
    if misnamed is not None:
        return f"the name of {misnamed!r} is not UTF-8; rename the file"
    kinds = {media_kind(file.name) for file in files}
    if "video" not in kinds:
        return "no clip yet"
    if "audio" not in kinds and not any(file.name == SPEC_FILE for file in files):
        return "no song yet"
    return None


def _line(montage: str, text: str) -> str:
    return f"{montage if montage.isprintable() else repr(montage)}: {text}"
