"""What is known of a song: its beats, how sure they are, and how its energy moves.

Belongs here: the record that trackers produce and that pacing, reports and checks read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BeatSource = Literal["grid", "local", "pace"]
"""`grid`: one tempo explains the song. `local`: tracked beat by beat. `pace`: no beat, a calm fixed pace."""


@dataclass(frozen=True)
class Section:
    """A stretch of the song of one character. `energy` is 0..1, relative to the song's loudest section."""

    start_s: float
    end_s: float
    energy: float
    label: str
    """For people: "quiet", "medium" or "loud"."""


@dataclass(frozen=True)
class TempoPoint:
    """Tempo around one moment of the song."""

    time_s: float
    bpm: float


@dataclass(frozen=True)
class BeatAnalysis:
    """Beats of one audio file, in seconds from its start.

    `energy` and `onset_strength` are curves of 0..1, one value every `hop_s` seconds.
    `confidence` is 0..1: how well the beats explain the onsets; `explanation` says it in a sentence.
    With `source == "pace"` the beats are an even pace and `tempo_bpm` is that pace.
    """

    duration_s: float
    beats_s: list[float]
    downbeats_s: list[float]
    tempo_bpm: float
    tempo_curve: list[TempoPoint]
    source: BeatSource
    confidence: float
    explanation: str
    hop_s: float
    energy: list[float]
    onset_strength: list[float]
    sections: list[Section]
