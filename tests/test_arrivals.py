"""When a folder is made: settled, complete, and of new content."""

from __future__ import annotations

from collections.abc import Sequence

from montage_assets.arrivals import Arrival, Decision, Seen, decide, dump_seen, load_seen
from montage_assets.data_root import StoredFile

CLIP = StoredFile("clip.mp4", 100, "v1")
SONG = StoredFile("song.mp3", 50, "v1")


def content_of(montage: str, files: Sequence[StoredFile]) -> str:
    """Content by name and size alone, so that a version can change without it: a touched file."""
    return f"{montage}:" + ",".join(f"{file.name}={file.size}" for file in files)


def ticks(*listings: dict[str, list[StoredFile]]) -> Decision:
    """The last decision of ticks that saw these listings, each with what the one before remembered."""
    seen: dict[str, Seen] = {}
    for listing in listings:
        decision = decide(listing, load_seen(dump_seen(seen)), content_of)
        seen = decision.seen
    return decision


def test_a_folder_is_ready_at_the_tick_after_its_last_change() -> None:
    first = {"holiday": [CLIP]}
    assert ticks({"holiday": [CLIP, SONG]}).arrivals == []
    assert ticks(first, {"holiday": [CLIP, SONG]}).waiting == ["holiday: still changing"]
    made = ticks({"holiday": [CLIP, SONG]}, {"holiday": [CLIP, SONG]}).arrivals
    assert made == [Arrival("holiday", "holiday:clip.mp4=100,song.mp3=50")]


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


def test_a_folder_without_clip_or_song_waits_for_it() -> None:
    assert ticks({"a": [SONG]}, {"a": [SONG]}).waiting == ["a: no clip yet"]
    assert ticks({"a": [CLIP]}, {"a": [CLIP]}).waiting == ["a: no song yet"]


def test_folders_do_not_wait_for_each_other() -> None:
    settled, growing = [CLIP, SONG], [StoredFile("clip.mp4", 1, "v1"), SONG]
    decision = ticks({"a": settled, "b": growing}, {"a": settled, "b": [StoredFile("clip.mp4", 2, "v2"), SONG]})
    assert [arrival.montage for arrival in decision.arrivals] == ["a"]
    assert decision.waiting == ["b: still changing"]
