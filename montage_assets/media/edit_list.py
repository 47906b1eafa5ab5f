"""The edit list: the montage as a list of shots on a frame grid, and the JSON file beside the film.

Belongs here: the record, its schema and its reading and writing. Does not belong here: how the edit is
decided (`pacing`, `selection`) or whether a film keeps to it (`film_check`).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NoReturn

from montage_assets.media.clip import LeftOut
from montage_assets.media.errors import MediaError

SCHEMA = 1
DEFAULT_LOUDNESS_LUFS = -14.0
"""What the large streaming services play music at."""

DIGITS = 6
"""Decimals of every number in the file: a microsecond is finer than any frame."""

UNKNOWN_FRAME = -1
"""`Shot.source_frame` of an edit list that was written without it; `source_start_s` tells the frame."""


@dataclass(frozen=True)
class Shot:
    """One piece of one clip in the film.

    The film shows `frames` frames of it from film frame `first_frame` on, starting at the clip's frame
    `source_frame`, whose time is `source_start_s` seconds after the clip's first frame. `beat_s` is the
    beat (seconds of the film) that the shot's first frame is cut to; 0 for the first shot. `score` is
    0..1; `reasons` are its terms by plain names, each 0..1. `id` counts from 0 in the order of the film.
    """

    id: int
    clip: str
    source_start_s: float
    source_frame: int
    first_frame: int
    frames: int
    beat_s: float
    score: float
    reasons: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EditMusic:
    """The song of the film. Beats are in seconds of the film, from 0 to its end."""

    file: str
    start_s: float
    beats_s: list[float]
    downbeats_s: list[float]
    tempo_bpm: float


@dataclass(frozen=True)
class EditList:
    """A whole film. `fps` is exact; `frames` is the sum of the shots' frames."""

    fps: Fraction
    width: int
    height: int
    frames: int
    seed: int
    music: EditMusic
    shots: list[Shot]
    left_out: list[LeftOut]
    loudness_lufs: float = DEFAULT_LOUDNESS_LUFS
    """The integrated loudness that the film is to have."""


def cut_errors_s(edit: EditList) -> list[float]:
    """For every cut, in order, its distance in seconds to the nearest beat; infinite where there is no beat.

    A cut is where a shot other than the first begins.
    """
    return [
        min((abs(float(shot.first_frame / edit.fps) - beat) for beat in edit.music.beats_s), default=math.inf)
        for shot in edit.shots[1:]
    ]


def to_json(edit: EditList) -> str:
    """The edit list as its JSON file: the same text for the same edit, every list of numbers on one line."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "fps": [edit.fps.numerator, edit.fps.denominator],
        "size": [edit.width, edit.height],
        "frames": edit.frames,
        "seed": edit.seed,
        "music": {
            "file": edit.music.file,
            "start_s": _rounded(edit.music.start_s),
            "beats_s": [_rounded(beat) for beat in edit.music.beats_s],
            "downbeats_s": [_rounded(beat) for beat in edit.music.downbeats_s],
            "tempo_bpm": _rounded(edit.music.tempo_bpm),
        },
        "shots": [
            {
                "id": shot.id,
                "clip": shot.clip,
                "source_start_s": _rounded(shot.source_start_s),
                "source_frame": shot.source_frame,
                "first_frame": shot.first_frame,
                "frames": shot.frames,
                "beat_s": _rounded(shot.beat_s),
                "score": _rounded(shot.score),
                "reasons": {name: _rounded(value) for name, value in shot.reasons.items()},
            }
            for shot in edit.shots
        ],
        "left_out": [{"clip": left.clip, "reason": left.reason} for left in edit.left_out],
    }
    if edit.loudness_lufs != DEFAULT_LOUDNESS_LUFS:
        document["loudness_lufs"] = _rounded(edit.loudness_lufs)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # Strings cannot hold a raw line break, so this only ever matches lists of numbers.
    return re.sub(r"\[\n[-+\d.eE,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n"


def from_json(text: str) -> EditList:
    """The edit list that `to_json` wrote, or that a person changed.

    Raises MediaError, naming the place, when the text is no edit list, lacks a value, or its shots leave
    gaps in the film or overlap. Keys it does not know are passed over.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise MediaError(
            f"The edit list is not JSON: {error.msg} in line {error.lineno}; restore or rebuild it."
        ) from error
    whole = _Place(document, "the file")
    schema = whole.integer("schema")
    if schema != SCHEMA:
        raise MediaError(f"The edit list has schema {schema}, this version reads {SCHEMA}; rebuild it.")
    numerator, denominator = whole.pair("fps")
    width, height = whole.pair("size")
    music = whole.inner("music")
    edit = EditList(
        fps=Fraction(numerator, denominator),
        width=width,
        height=height,
        frames=whole.integer("frames", at_least=1),
        seed=whole.integer("seed"),
        music=EditMusic(
            file=music.text("file"),
            start_s=music.number("start_s"),
            beats_s=music.numbers("beats_s"),
            downbeats_s=music.numbers("downbeats_s"),
            tempo_bpm=music.number("tempo_bpm"),
        ),
        shots=[_shot(place) for place in whole.each("shots")],
        left_out=[LeftOut(place.text("clip"), place.text("reason")) for place in whole.each("left_out")],
        loudness_lufs=whole.number("loudness_lufs") if "loudness_lufs" in whole.names() else DEFAULT_LOUDNESS_LUFS,
    )
    _refuse_gaps(edit)
    return edit


def _rounded(value: float) -> float:
    rounded = round(float(value), DIGITS)
    return rounded if rounded else 0.0  # never -0.0


def _shot(place: _Place) -> Shot:
    reasons = place.inner("reasons")
    return Shot(
        id=place.integer("id"),
        clip=place.text("clip"),
        source_start_s=place.number("source_start_s"),
        source_frame=place.integer("source_frame") if "source_frame" in place.names() else UNKNOWN_FRAME,
        first_frame=place.integer("first_frame", at_least=0),
        frames=place.integer("frames", at_least=1),
        beat_s=place.number("beat_s"),
        score=place.number("score"),
        reasons={name: reasons.number(name) for name in reasons.names()},
    )


def _refuse_gaps(edit: EditList) -> None:
    following = 0
    for shot in edit.shots:
        if shot.first_frame != following:
            raise MediaError(
                f"The edit list's shot {shot.id} begins at frame {shot.first_frame} but the film has got to "
                f"frame {following}; shots must follow each other without gap or overlap."
            )
        following += shot.frames
    if following != edit.frames:
        raise MediaError(
            f"The edit list's shots end at frame {following} but the film has {edit.frames}; correct either."
        )
    ids = [shot.id for shot in edit.shots]
    twice = next((number for place, number in enumerate(ids) if number in ids[:place]), None)
    if twice is not None:
        raise MediaError(f"The edit list has two shots with the id {twice}; give every shot its own.")


class _Place:
    """One JSON object and where it is, so that every complaint can name the place."""

    def __init__(self, value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise MediaError(f"The edit list is malformed: {name} must be an object, with named values.")
        self._values: dict[str, Any] = value
        self._name = name

    def names(self) -> list[str]:
        return list(self._values)

    def text(self, key: str) -> str:
        value = self._get(key)
        return value if isinstance(value, str) else self._refuse(key, "text")

    def integer(self, key: str, at_least: int | None = None) -> int:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(key, "a whole number")
        if at_least is not None and value < at_least:
            self._refuse(key, f"{at_least} or more")
        return int(value)

    def number(self, key: str) -> float:
        value = self._get(key)
        return float(value) if _is_number(value) else self._refuse(key, "a number")

    def numbers(self, key: str) -> list[float]:
        value = self._get(key)
        if not isinstance(value, list) or not all(_is_number(one) for one in value):
            self._refuse(key, "a list of numbers")
        return [float(one) for one in value]

    def pair(self, key: str) -> tuple[int, int]:
        value = self._get(key)
        if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
            self._refuse(key, "a list of two whole numbers above 0")
        return value[0], value[1]

    def inner(self, key: str) -> _Place:
        return _Place(self._get(key), f"'{key}' of {self._name}")

    def each(self, key: str) -> list[_Place]:
        value = self._get(key)
        if not isinstance(value, list):
            self._refuse(key, "a list")
        return [_Place(one, f"{key}[{index}]") for index, one in enumerate(value)]

    def _get(self, key: str) -> Any:
        if key not in self._values:
            raise MediaError(f"The edit list is malformed: '{key}' is missing in {self._name}.")
        return self._values[key]

    def _refuse(self, key: str, wanted: str) -> NoReturn:
        raise MediaError(f"The edit list is malformed: '{key}' in {self._name} must be {wanted}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
