"""The edit list as a file: what a reader of the JSON sees, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from montage_assets.media.clip import LeftOut
from montage_assets.media.edit_list import (
    UNKNOWN_FRAME,
    EditList,
    EditMusic,
    Shot,
    cut_errors_s,
    from_json,
    to_json,
)
from montage_assets.media.errors import MediaError


def an_edit() -> EditList:
    return EditList(
        fps=Fraction(24000, 1001),
        width=1920,
        height=1080,
        frames=60,
        seed=7,
        music=EditMusic("song [ 1, 2 ].ogg", 12.5, [0.0, 0.5005, 1.001], [0.0], 119.88),
        shots=[
            Shot(0, "day/ä.mp4", 1 / 3, 8, 0, 24, 0.0, 0.75, {"motion": 0.5, "sharpness": 1.0}),
            Shot(1, "b [\n 1\n].mp4", 0.0, 0, 24, 36, 1.001, 0.5, {"reused": 1.0}),
        ],
        left_out=[LeftOut("c.mp4", "It has no picture.")],
    )


def changed(**values: Any) -> str:
    document = json.loads(to_json(an_edit()))
    document.update(values)
    return json.dumps(document)


def test_a_loudness_of_its_own_is_kept() -> None:
    edit = replace(an_edit(), loudness_lufs=-20.0)
    assert from_json(to_json(edit)).loudness_lufs == -20.0
    assert from_json(to_json(an_edit())).loudness_lufs == -14.0


def test_the_file_has_exactly_the_documented_keys() -> None:
    document = json.loads(to_json(an_edit()))
    assert list(document) == ["schema", "fps", "size", "frames", "seed", "music", "shots", "left_out"]
    assert document["schema"] == 1
    assert document["fps"] == [24000, 1001]
    assert document["size"] == [1920, 1080]
    assert set(document["music"]) == {"file", "start_s", "beats_s", "downbeats_s", "tempo_bpm"}
    assert set(document["shots"][0]) == {
        *(
            "id",
            "clip",
            "source_start_s",
            "source_frame",
            "first_frame",
            "frames",
            "beat_s",
            "score",
            "reasons",
        )
    }
    assert document["left_out"] == [{"clip": "c.mp4", "reason": "It has no picture."}]


def test_what_is_written_is_read_back_to_the_microsecond() -> None:
    edit = an_edit()
    back = from_json(to_json(edit))
    assert back.shots[0].source_start_s == pytest.approx(1 / 3, abs=1e-6)
    assert replace(back, shots=edit.shots) == edit
    assert [replace(shot, source_start_s=0) for shot in back.shots] == [
        replace(shot, source_start_s=0) for shot in edit.shots
    ]
    assert to_json(back) == to_json(edit)


def test_lists_of_numbers_take_one_line_and_names_that_look_like_lists_stay_whole() -> None:
    text = to_json(an_edit())
    assert '"beats_s": [ 0.0, 0.5005, 1.001 ]' in text
    assert json.loads(text)["music"]["file"] == "song [ 1, 2 ].ogg"
    assert json.loads(text)["shots"][1]["clip"] == "b [\n 1\n].mp4"


def test_a_list_written_without_source_frames_is_read_all_the_same() -> None:
    document = json.loads(to_json(an_edit()))
    for shot in document["shots"]:
        del shot["source_frame"]
    assert {shot.source_frame for shot in from_json(json.dumps(document)).shots} == {UNKNOWN_FRAME}


@pytest.mark.parametrize("key", ["schema", "fps", "size", "frames", "seed", "music", "shots", "left_out"])
def test_a_missing_key_is_named(key: str) -> None:
    document = json.loads(to_json(an_edit()))
    del document[key]
    with pytest.raises(MediaError, match=f"'{key}' is missing"):
        from_json(json.dumps(document))


def test_a_missing_key_of_a_shot_is_named_with_its_place() -> None:
    document = json.loads(to_json(an_edit()))
    del document["shots"][1]["clip"]
    with pytest.raises(MediaError, match=r"'clip' is missing in shots\[1\]"):
        from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        (changed(schema=2), "has schema 2"),
        (changed(schema="1"), "whole number"),
        (changed(fps=[25]), "'fps'"),
        (changed(fps=[25, 0]), "'fps'"),
        (changed(size=[1920.5, 1080]), "'size'"),
        (changed(frames=True), "'frames'"),
        (changed(frames=61), "end at frame 60"),
        (changed(shots={}), "'shots'"),
        (changed(shots=[3]), r"shots\[0\]"),
        (changed(shots=[]), "end at frame 0"),
        (changed(music={"file": "a", "start_s": "0"}), "'start_s'"),
        (to_json(an_edit()).replace("119.88", "NaN"), "'tempo_bpm'"),
        (to_json(an_edit()).replace("0.5005", "null"), "'beats_s'"),
    ],
)
def test_a_malformed_list_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(MediaError, match=complaint) as refused:
        from_json(text)
    assert "\n" not in str(refused.value)


def test_gaps_overlaps_and_repeated_ids_are_refused() -> None:
    edit = an_edit()
    for first_frame in (23, 25):
        shots = [edit.shots[0], replace(edit.shots[1], first_frame=first_frame)]
        with pytest.raises(MediaError, match=f"begins at frame {first_frame}"):
            from_json(to_json(replace(edit, shots=shots)))
    with pytest.raises(MediaError, match="id 0"):
        from_json(to_json(replace(edit, shots=[edit.shots[0], replace(edit.shots[1], id=0)])))


def test_cut_errors_are_distances_to_the_nearest_beat() -> None:
    edit = an_edit()
    assert cut_errors_s(edit) == pytest.approx([0.0], abs=1e-9)
    early = replace(edit, shots=[replace(edit.shots[0], frames=22), replace(edit.shots[1], first_frame=22, frames=38)])
    assert cut_errors_s(early) == pytest.approx([2 * 1001 / 24000])
    without = replace(edit, music=replace(edit.music, beats_s=[]))
    assert cut_errors_s(without) == [math.inf]
    assert cut_errors_s(replace(edit, shots=edit.shots[:1])) == []
