"""The edit list: the montage as a list of shots on a frame grid, and the JSON file beside the film.

Belongs here: the record, its schema and its reading and writing. Does not belong here: how the edit is
decided (`pacing`, `selection`) or whether a film keeps to it (`film_check`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from montage_assets.media.clip import LeftOut

SCHEMA = 1


@dataclass(frozen=True)
class Shot:
    """One piece of one clip in the film.

    The film shows `frames` frames of it from film frame `first_frame` on, starting at the clip's frame
    `source_frame`, whose time is `source_start_s` seconds after the clip's first frame. `beat_s` is the
    beat (seconds of the film) that the shot's first frame is cut to; 0 for the first shot. `score` is
    0..1; `reasons` are its terms by plain names, each 0..1.
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
