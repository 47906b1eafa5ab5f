"""The checks pass a sound film and find each fault that a viewer would."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.media.edit_list import EditList, EditMusic, Shot, to_json
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import ffmpeg_program
from montage_assets.media.film_check import CheckResult, check_film, check_film_file
from tests.media.synth_video import make_video

FPS = Fraction(24)
SIZE = (96, 54)
CUTS = (0, 12, 24, 36, 48)
CHECKS = [
    "frame_count", "even_timestamps", "decodes_cleanly", "sound_ends_with_picture", "cuts_on_beats",
    "cuts_visible", "loudness", "no_black_shot", "no_duplicate_shot",
]  # fmt: skip
Picture = NDArray[np.uint8]


def moving_shot(seed: int, frames: int, level: float = 1.0) -> list[Picture]:
    """Coarse random patches that drift sideways: every seed looks different, and moves."""
    patches = np.random.default_rng(seed).integers(40, 220, (6, 40)).astype(np.float64) * level
    wide = np.kron(patches, np.ones((9, 9)))
    return [wide[:, 2 * k : 2 * k + SIZE[0]].astype(np.uint8) for k in range(frames)]


def film_of(
    path: Path, shots: Sequence[list[Picture]], *, sound: str = "0.195*(random(0)*2-1)", seconds: float | None = None
) -> Path:
    pictures = [picture for shot in shots for picture in shot]
    length = seconds if seconds is not None else len(pictures) / float(FPS)
    noise = ["-f", "lavfi", "-i", f"aevalsrc='{sound}|{sound}':s=48000:d={length}"]
    encode = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "16", "-bf", "2", "-c:a", "aac", "-b:a", "192k")
    return make_video(path, pictures=pictures, fps=FPS, inputs=noise, encode=encode)


def edit_of(cuts: Sequence[int] = CUTS) -> EditList:
    starts = list(cuts[:-1])
    shots = [
        Shot(
            id=number,
            clip=f"clip {number}.mp4",
            source_start_s=float(number),
            source_frame=0,
            first_frame=start,
            frames=end - start,
            beat_s=start / float(FPS),
            score=1.0,
        )
        for number, (start, end) in enumerate(zip(starts, cuts[1:], strict=True))
    ]
    beats = [start / float(FPS) for start in starts]
    music = EditMusic("song.mp3", 0.0, beats, beats[:1], 120.0)
    return EditList(FPS, *SIZE, cuts[-1], 1, music, shots, [])


def failed(results: Sequence[CheckResult]) -> list[str]:
    return [result.name for result in results if not result.passed]


def sound_shots() -> list[list[Picture]]:
    return [moving_shot(seed, 12) for seed in range(4)]


def test_a_sound_film_passes_every_check_and_says_so_in_words(tmp_path: Path) -> None:
    results = check_film(film_of(tmp_path / "film.mp4", sound_shots()), edit_of())
    assert [result.name for result in results] == CHECKS
    assert failed(results) == []
    said = {result.name: result.detail for result in results}
    assert said["frame_count"] == "all 48 planned frames are there"
    assert said["cuts_visible"].startswith("at 3 of 3 cuts the picture clearly changes")
    assert "LUFS" in said["loudness"]
    assert all("\n" not in detail for detail in said.values())


@pytest.mark.parametrize(
    ("fault", "make"),
    [
        ("frame_count", lambda path: film_of(path, [*sound_shots()[:3], moving_shot(3, 11)])),
        ("loudness", lambda path: film_of(path, sound_shots(), sound="0.05*(random(0)*2-1)")),
        ("loudness", lambda path: film_of(path, sound_shots(), sound="0")),
        ("sound_ends_with_picture", lambda path: film_of(path, sound_shots(), seconds=1.9)),
        ("sound_ends_with_picture", lambda path: film_of(path, sound_shots(), seconds=2.1)),
        ("no_black_shot", lambda path: film_of(path, [*sound_shots()[:3], moving_shot(3, 12, level=0.0)])),
        ("no_duplicate_shot", lambda path: film_of(path, [*sound_shots()[:3], moving_shot(0, 12)])),
        ("cuts_visible", lambda path: film_of(path, [moving_shot(0, 13), *sound_shots()[1:3], moving_shot(3, 11)])),
    ],
    ids=["frame missing", "quiet", "silent", "sound short", "sound long", "black", "duplicate", "cuts a frame late"],
)  # fmt: skip
def test_each_fault_is_found_by_its_own_check(fault: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    found = failed(check_film(make(tmp_path / "film.mp4"), edit_of()))
    assert fault in found
    # A shorter film also ends before its sound; nothing else may be blamed.
    assert set(found) <= {fault, "sound_ends_with_picture"}


def test_uneven_timestamps_are_found(tmp_path: Path) -> None:
    film = film_of(tmp_path / "film.mp4", sound_shots())
    uneven = tmp_path / "uneven.mp4"
    jolt = "setts=pts='PTS+if(eq(mod(N,10),9),60,0)'"
    subprocess.run(
        [ffmpeg_program(), "-v", "error", "-i", str(film), "-c", "copy", "-bsf:v", jolt, str(uneven)], check=True
    )
    assert "even_timestamps" in failed(check_film(uneven, edit_of()))


def test_damaged_data_is_found(tmp_path: Path) -> None:
    film = film_of(tmp_path / "film.mp4", sound_shots())
    data = bytearray(film.read_bytes())
    middle = data.index(b"mdat") + 6000
    data[middle : middle + 400] = bytes(400)
    film.write_bytes(data)
    results = {result.name: result for result in check_film(film, edit_of())}
    assert not results["decodes_cleanly"].passed
    assert "complains" in results["decodes_cleanly"].detail


def test_a_cut_off_its_beat_is_found_and_half_a_frame_is_none(tmp_path: Path) -> None:
    film = film_of(tmp_path / "film.mp4", sound_shots())
    edit = edit_of()
    half_frame = 0.5 / float(FPS)
    just_on = replace(edit, shots=[replace(shot, beat_s=shot.beat_s + half_frame) for shot in edit.shots])
    off = replace(edit, shots=[*edit.shots[:2], replace(edit.shots[2], beat_s=1.03), edit.shots[3]])
    assert failed(check_film(film, just_on)) == []
    results = {result.name: result for result in check_film(film, off)}
    assert failed(list(results.values())) == ["cuts_on_beats"]
    assert results["cuts_on_beats"].detail.endswith("first: shot 2")


def test_like_neighbours_are_no_fault(tmp_path: Path) -> None:
    pictures = moving_shot(5, 48)
    film = film_of(tmp_path / "film.mp4", [pictures])
    results = {result.name: result for result in check_film(film, edit_of())}
    assert results["cuts_visible"].passed
    assert results["cuts_visible"].values["visible"] == 0
    assert "look alike" in results["cuts_visible"].detail


def test_the_same_stretch_of_a_clip_twice_is_a_duplicate_even_when_it_cannot_be_seen(tmp_path: Path) -> None:
    still = [np.full((SIZE[1], SIZE[0]), 90 + 30 * number, np.uint8) for number in range(4)]
    film = film_of(tmp_path / "film.mp4", [[picture] * 12 for picture in still])
    assert failed(check_film(film, edit_of())) == []
    shots = edit_of().shots
    twice = [*shots[:3], replace(shots[3], clip=shots[1].clip, source_start_s=shots[1].source_start_s + 0.2)]
    results = {result.name: result for result in check_film(film, replace(edit_of(), shots=twice))}
    assert failed(list(results.values())) == ["no_duplicate_shot"]
    assert "shots 1 and 3" in results["no_duplicate_shot"].detail


def test_the_edit_list_is_found_beside_the_film_or_missed_in_words(tmp_path: Path) -> None:
    film = film_of(tmp_path / "montage.mp4", sound_shots())
    with pytest.raises(MediaError, match=r"its edit list montage\.json cannot be read"):
        check_film_file(film)
    (tmp_path / "montage.json").write_text(to_json(edit_of()))
    assert failed(check_film_file(film)) == []


def test_what_is_no_film_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"film\.mp4 is not there"):
        check_film(tmp_path / "film.mp4", edit_of())
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(MediaError, match=r"film\.mp4 is no film that can be read"):
        check_film(tmp_path / "film.mp4", edit_of())
