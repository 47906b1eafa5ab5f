"""When a folder is made: settled, complete, and of new content."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from montage_assets.arrivals import (
    Arrival,
    Decision,
    Memory,
    Seen,
    decide,
    dump_memory,
    load_memory,
    present_contents,
)
from montage_assets.data_root import StoredFile
from montage_assets.media.errors import MediaError

CLIP = StoredFile("clip.mp4", 100, "v1")
SONG = StoredFile("song.mp3", 50, "v1")


def content_of(montage: str, files: Sequence[StoredFile]) -> str:
    """Content by name and size alone, so that a version can change without it: a touched file."""
    return f"{montage}:" + ",".join(f"{file.name}={file.size}" for file in files)


def ticks(*listings: dict[str, list[StoredFile]]) -> Decision:
    """The last decision of ticks that saw these listings, each with what the one before remembered."""
    return all_ticks(*listings)[-1]


def all_ticks(*listings: dict[str, list[StoredFile]]) -> list[Decision]:
    decisions: list[Decision] = []
    memory = Memory()
    for listing in listings:
        decisions.append(decide(listing, load_memory(dump_memory(memory)), listing.__getitem__, content_of))
        memory = decisions[-1].memory
    return decisions


def test_a_folder_is_ready_at_the_tick_after_its_last_change() -> None:
    first = {"holiday": [CLIP]}
    assert ticks({"holiday": [CLIP, SONG]}).arrivals == []
    assert ticks(first, {"holiday": [CLIP, SONG]}).waiting == ["holiday: still changing"]
    made = ticks({"holiday": [CLIP, SONG]}, {"holiday": [CLIP, SONG]}).arrivals
    assert made == [Arrival("holiday", "holiday:clip.mp4=100,song.mp3=50", generation=1)]


def test_a_folder_still_being_copied_waits() -> None:
    growing = [{"holiday": [StoredFile("clip.mp4", size, f"v{size}"), SONG]} for size in (10, 20, 30)]
    assert ticks(*growing).arrivals == []
    assert ticks(*growing, growing[-1]).arrivals != []


def test_the_same_content_is_asked_for_once() -> None:
    listing = {"holiday": [CLIP, SONG]}
    assert ticks(listing, listing, listing).arrivals == []


def test_a_touched_file_does_not_run_again() -> None:
    before, touched = {"holiday": [CLIP, SONG]}, {"holiday": [StoredFile("clip.mp4", 100, "v2"), SONG]}
    assert ticks(before, before, touched, touched).arrivals == []


def test_a_changed_or_added_clip_runs_again() -> None:
    before = {"holiday": [CLIP, SONG]}
    changed = {"holiday": [StoredFile("clip.mp4", 101, "v2"), SONG]}
    added = {"holiday": [CLIP, SONG, StoredFile("more.mov", 7, "v1")]}
    assert [arrival.montage for arrival in ticks(before, before, changed, changed).arrivals] == ["holiday"]
    assert [arrival.montage for arrival in ticks(before, before, added, added).arrivals] == ["holiday"]


def test_a_changed_spec_runs_again_and_a_note_does_not() -> None:
    before = {"holiday": [CLIP, SONG]}
    spec = {"holiday": [CLIP, SONG, StoredFile("montage.yaml", 9, "v1")]}
    note = {"holiday": [CLIP, SONG, StoredFile("notes.txt", 9, "v1")]}
    assert ticks(before, before, spec, spec).arrivals != []
    assert ticks(before, before, note, note).arrivals == []


def test_a_changed_lut_runs_again_is_no_clip_and_its_name_does_not_matter() -> None:
    luts = [StoredFile("sunset.cube", 9, "v1"), StoredFile("caf\udce9.cube", 9, "v1")]
    before, changed = {"holiday": [CLIP, SONG, *luts]}, {"holiday": [CLIP, SONG, StoredFile("sunset.cube", 8, "v2")]}
    assert [arrival.montage for arrival in ticks(before, before).arrivals] == ["holiday"]
    assert [arrival.montage for arrival in ticks(before, before, changed, changed).arrivals] == ["holiday"]
    assert ticks({"a": [SONG, *luts]}, {"a": [SONG, *luts]}).waiting == ["a: no clip yet"]


def test_a_folder_without_clip_or_song_waits_for_it() -> None:
    assert ticks({"a": [SONG]}, {"a": [SONG]}).waiting == ["a: no clip yet"]
    assert ticks({"a": [CLIP]}, {"a": [CLIP]}).waiting == ["a: no song yet"]


def test_folders_do_not_wait_for_each_other() -> None:
    settled, growing = [CLIP, SONG], [StoredFile("clip.mp4", 1, "v1"), SONG]
    decision = ticks({"a": settled, "b": growing}, {"a": settled, "b": [StoredFile("clip.mp4", 2, "v2"), SONG]})
    assert [arrival.montage for arrival in decision.arrivals] == ["a"]
    assert decision.waiting == ["b: still changing"]


def test_content_that_comes_back_is_asked_for_again() -> None:
    before, more = {"holiday": [CLIP, SONG]}, {"holiday": [CLIP, SONG, StoredFile("more.mov", 7, "v1")]}
    decisions = all_ticks(before, before, more, more, before, before)
    first, second, third = [arrival for decision in decisions for arrival in decision.arrivals]
    assert first.fingerprint == third.fingerprint != second.fingerprint
    assert [arrival.generation for arrival in (first, second, third)] == [1, 2, 3]


def test_a_folder_that_comes_back_is_told_from_its_earlier_requests() -> None:
    before, more = {"holiday": [CLIP, SONG]}, {"holiday": [CLIP, SONG, StoredFile("more.mov", 7, "v1")]}
    decisions = all_ticks(before, before, more, more, {}, before, before)
    first, _, last = [arrival for decision in decisions for arrival in decision.arrivals]
    assert first.fingerprint == last.fingerprint
    assert first.generation < last.generation


def test_a_settled_montage_is_read_once() -> None:
    read: list[str] = []

    def reads(montage: str, files: Sequence[StoredFile]) -> str:
        read.append(montage)
        return content_of(montage, files)

    listing, memory = {"a": [CLIP, SONG], "b": [CLIP, SONG]}, Memory()
    for _ in range(5):
        memory = load_memory(dump_memory(decide(listing, memory, listing.__getitem__, reads).memory))
    assert read == ["a", "b"]
    listing["b"] = [StoredFile("clip.mp4", 100, "v2"), SONG]
    for _ in range(5):
        memory = load_memory(dump_memory(decide(listing, memory, listing.__getitem__, reads).memory))
    assert read == ["a", "b", "b"]


def test_a_montage_that_cannot_be_read_waits_alone_and_is_remembered() -> None:
    def refuse(montage: str, files: Sequence[StoredFile]) -> str:
        if montage == "b":
            raise MediaError("clip.mp4 cannot be read (Permission denied); check who may read it")
        return content_of(montage, files)

    def refuse_listing(montage: str) -> list[StoredFile]:
        if montage == "b":
            raise MediaError("its folder cannot be read")
        return listing[montage]

    listing = {"a": [CLIP, SONG], "b": [CLIP, SONG], "c": [CLIP, SONG]}
    first = decide(listing, Memory(), listing.__getitem__, content_of)
    second = decide(listing, first.memory, listing.__getitem__, refuse)
    assert [arrival.montage for arrival in second.arrivals] == ["a", "c"]
    assert second.waiting == ["b: clip.mp4 cannot be read (Permission denied); check who may read it"]
    third = decide(listing, second.memory, refuse_listing, content_of)
    assert (third.arrivals, third.waiting) == ([], ["b: its folder cannot be read"])
    fourth = decide(listing, third.memory, listing.__getitem__, content_of)
    assert [arrival.montage for arrival in fourth.arrivals] == ["b"]
    contents = present_contents(listing, listing.__getitem__, refuse)
    assert sorted(contents.fingerprints) == ["a", "c"]
    assert contents.waiting == second.waiting


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.mp4"), os.fsdecode(b"caf\xe9/clip.mp4")])
def test_a_clip_whose_name_is_not_utf8_is_named(name: str) -> None:
    listing = {"a": [CLIP, SONG], "b": [CLIP, SONG, StoredFile(name, 1, "v1")]}
    decision = ticks(listing, listing)
    assert [arrival.montage for arrival in decision.arrivals] == ["a"]
    (line,) = decision.waiting
    assert line.startswith("b: the name of 'caf\\udce9")
    assert line.endswith("rename the file")
    line.encode()
    assert list(present_contents(listing, listing.__getitem__, content_of).fingerprints) == ["a"]


def test_a_note_whose_name_is_not_utf8_is_left_alone() -> None:
    listing = {"a": [CLIP, SONG, StoredFile(os.fsdecode(b"caf\xe9.txt"), 1, "v1")]}
    assert ticks(listing, listing).arrivals != []


def test_an_older_cursor_still_counts() -> None:
    memory = load_memory('{"holiday": ["abc", "def"], "new": ["abc", null]}')
    assert memory == Memory(0, {"holiday": Seen("abc", "def"), "new": Seen("abc")})
    assert load_memory(None) == load_memory("") == Memory()


def test_the_cursor_stays_small() -> None:
    listing = {
        f"m{number}": [StoredFile(f"{clip}.mp4", 100, "v1") for clip in range(500)] + [SONG] for number in (1, 2)
    }

    def content(montage: str, files: Sequence[StoredFile]) -> str:
        return "0" * 24

    first = decide(listing, Memory(), listing.__getitem__, content)
    second = decide(listing, first.memory, listing.__getitem__, content)
    assert load_memory(dump_memory(second.memory)) == second.memory
    assert len(dump_memory(second.memory)) < 80 * len(listing)
    assert dump_memory(decide({}, second.memory, listing.__getitem__, content).memory) == "[1,{}]"
