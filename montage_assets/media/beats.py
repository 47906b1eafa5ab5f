"""The beats of a song: which way of finding them fits it, how sure they are, and everything that follows.

Belongs here: the decision between one even grid, beats tracked one by one, and a calm pace without any beat;
and `analyze_song`, which puts the song's whole record together. Does not belong here: how evidence is
measured (`onsets`, `beat_grid`, `local_beats`) or bars and sections (`song_structure`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from montage_assets.media.audio import mono_blocks
from montage_assets.media.beat_analysis import BeatAnalysis, BeatSource, TempoPoint
from montage_assets.media.beat_grid import WINDOW_S, Floats, Grid, GridFit, check_grid, fit_grid
from montage_assets.media.local_beats import LocalBeats, track_local_beats
from montage_assets.media.onsets import RATE, SongSignals, onset_envelope, song_signals
from montage_assets.media.song_structure import (
    CURVE_HOP_S,
    energy_curve,
    every_second_is_an_eighth,
    find_downbeats,
    find_sections,
    onset_curve,
    sound_end_s,
    stands_between_beats,
    stronger_half,
)

ALGORITHM = "grid-local-2"
"""Changes when the same song may get other beats; part of the cache key."""

PACE_S = 0.8
"""Beat of a song without one. Four make 3.2 s, a calm shot; one is still long enough to see a picture."""

_GRID_LEAST_Z = 6.0  # the best of all grids over chance onsets reaches 4
_GRID_LEAST_SHARE = 0.9
_HALVED_FROM_BPM = 120.0
_FASTEST_FELT_BPM = 200.0  # music that is counted faster is rare; what looks so is counted in double time
_STRETCH_LEAST_BEATS = 16  # to tell its beats from its off-beats
_LOCAL_LEAST_SHARE = 0.3  # of windows with a pulse; speech and noise have it in one of sixteen at most


@dataclass(frozen=True)
class TrackedBeats:
    """What a tracker says of a song. Times in seconds, rising. `downbeats_s` is None if it knows no bars."""

    beats_s: Floats
    downbeats_s: Floats | None
    tempo_bpm: float
    tempo_curve: list[TempoPoint]
    source: BeatSource
    confidence: float
    explanation: str


class BeatTracker(Protocol):
    """A way to find beats. `path` is the song, `signals` its curves at the rates `onsets` names."""

    def track(self, path: Path, signals: SongSignals) -> TrackedBeats:
        """The song's beats. Raises MediaError when the tracker cannot work on this song."""


class OnsetTracker:
    """The built-in tracker: one grid where it explains the song, else local beats, else a calm pace."""

    def track(self, path: Path, signals: SongSignals) -> TrackedBeats:
        """Beats from the song's onsets alone; `path` is not read again."""
        envelope = onset_envelope(signals.onsets)
        end_s = sound_end_s(signals)
        fit = check_grid(envelope, fit_grid(envelope))
        if _grid_explains(fit):
            return _on_grid(replace(fit, grid=_grid_of_beats(fit.grid, signals, end_s)), end_s)
        local = track_local_beats(envelope)
        if local.rhythmic_share >= _LOCAL_LEAST_SHARE:
            return _on_local_beats(_local_of_beats(local, signals, end_s), fit)
        return _at_a_pace(signals)


def analyze_song(path: str | os.PathLike[str], tracker: BeatTracker | None = None) -> BeatAnalysis:
    """Beats, bars, tempo, energy and sections of an audio file, by `tracker` or the built-in one.

    Beats run from the file's start (a silent or free intro included) to the end of its sound. Raises
    MediaError when the file is missing, has no sound, cannot be decoded, or is under two seconds long.
    """
    signals = song_signals(mono_blocks(path, RATE))
    tracked = (tracker or OnsetTracker()).track(Path(path), signals)
    downbeats = tracked.downbeats_s
    if downbeats is None:
        downbeats = find_downbeats(signals, tracked.beats_s)
    downbeats_s = [float(beat) for beat in downbeats]
    energy = energy_curve(signals)
    return BeatAnalysis(
        duration_s=signals.duration_s,
        beats_s=[float(beat) for beat in tracked.beats_s],
        downbeats_s=downbeats_s,
        tempo_bpm=tracked.tempo_bpm,
        tempo_curve=tracked.tempo_curve,
        source=tracked.source,
        confidence=tracked.confidence,
        explanation=tracked.explanation,
        hop_s=CURVE_HOP_S,
        energy=[float(value) for value in energy],
        onset_strength=[float(value) for value in onset_curve(onset_envelope(signals.onsets))],
        sections=find_sections(signals, energy, downbeats_s if tracked.source != "pace" else []),
    )


def _grid_explains(fit: GridFit) -> bool:
    return fit.grid.z >= _GRID_LEAST_Z and fit.share >= _GRID_LEAST_SHARE


def _grid_of_beats(grid: Grid, signals: SongSignals, end_s: float) -> Grid:
    """The grid on the beats, where its pulse was the off-beats or the eighths."""
    if stands_between_beats(signals, grid.beats(end_s)):
        grid = replace(grid, first_s=grid.first_s + 30.0 / grid.bpm)
    beats_s = grid.beats(end_s)
    if not _is_double_time(signals, beats_s, grid.bpm):
        return grid
    return replace(grid, bpm=grid.bpm / 2.0, first_s=float(beats_s[stronger_half(signals, beats_s)]))


def _is_double_time(signals: SongSignals, beats_s: Floats, bpm: float) -> bool:
    if bpm < _HALVED_FROM_BPM:
        return False
    return bpm > _FASTEST_FELT_BPM or every_second_is_an_eighth(signals, beats_s)


def _local_of_beats(local: LocalBeats, signals: SongSignals, end_s: float) -> LocalBeats:
    """The same for beats tracked one by one, which also run from 0 to `end_s` then."""
    stretches = np.split(local.beats_s, np.searchsorted(local.beats_s, local.jumps_s()))
    on_beat = [
        (stretch[:-1] + stretch[1:]) / 2.0
        if len(stretch) >= _STRETCH_LEAST_BEATS and stands_between_beats(signals, stretch)
        else stretch
        for stretch in stretches
    ]
    beats_s = _to_both_ends(np.concatenate(on_beat), end_s)
    if not _is_double_time(signals, beats_s, float(np.median(local.path_bpm))):
        return replace(local, beats_s=beats_s)
    return replace(local, beats_s=beats_s[stronger_half(signals, beats_s) :: 2], path_bpm=local.path_bpm / 2.0)


def _on_grid(fit: GridFit, end_s: float) -> TrackedBeats:
    grid = fit.grid
    beats_s = grid.beats(end_s)
    contrast = grid.z / float(np.sqrt(len(beats_s)))
    return TrackedBeats(
        beats_s=beats_s,
        downbeats_s=None,
        tempo_bpm=grid.bpm,
        tempo_curve=[TempoPoint(0.0, grid.bpm), TempoPoint(end_s, grid.bpm)],
        source="grid",
        confidence=fit.share * (1.0 - float(np.exp(-contrast / 0.6))),
        explanation=(
            f"One tempo of {grid.bpm:.2f} BPM explains the song: {fit.agreeing} of its {fit.rhythmic} "
            f"stretches of {WINDOW_S:g} s with a clear pulse keep to it."
        ),
    )


def _on_local_beats(local: LocalBeats, fit: GridFit) -> TrackedBeats:
    slowest, fastest = float(local.path_bpm.min()), float(local.path_bpm.max())
    return TrackedBeats(
        beats_s=local.beats_s,
        downbeats_s=None,
        tempo_bpm=float(np.median(local.path_bpm)),
        tempo_curve=[
            TempoPoint(float(time), float(bpm)) for time, bpm in zip(local.path_times_s, local.path_bpm, strict=True)
        ],
        source="local",
        confidence=local.rhythmic_share * (1.0 - float(np.exp(-local.evidence / 5.0))),
        explanation=(
            f"The tempo moves between {slowest:.0f} and {fastest:.0f} BPM, so the beats were followed one by "
            f"one (the best even grid holds in {fit.agreeing} of {fit.rhythmic} stretches); a pulse is clear "
            f"in {100 * local.rhythmic_share:.0f} % of the song."
        ),
    )


def _to_both_ends(beats_s: Floats, end_s: float) -> Floats:
    """The beats, gone on at the first and last tempo to time 0 and to `end_s`."""
    if len(beats_s) < 3:
        return beats_s
    opening = float(np.median(np.diff(beats_s[:6])))
    closing = float(np.median(np.diff(beats_s[-6:])))
    before = np.arange(beats_s[0] - opening, 0.0, -opening)[::-1]
    after = np.arange(beats_s[-1] + closing, end_s, closing)
    beats: Floats = np.concatenate([before, beats_s[(beats_s >= 0.0) & (beats_s < end_s)], after])
    return beats


def _at_a_pace(signals: SongSignals) -> TrackedBeats:
    bpm = 60.0 / PACE_S
    beats_s = np.arange(0.0, signals.duration_s, PACE_S)
    heard = "The song is silent" if not np.any(signals.rms > 1e-4) else "No beat was found in the song"
    return TrackedBeats(
        beats_s=beats_s,
        downbeats_s=beats_s[::4],
        tempo_bpm=bpm,
        tempo_curve=[TempoPoint(0.0, bpm), TempoPoint(signals.duration_s, bpm)],
        source="pace",
        confidence=0.0,
        explanation=(
            f"{heard}, so the beats are a calm even pace, one every {PACE_S:g} s, that follows nothing heard."
        ),
    )
