"""The larger shape of a song: where its bars start, how loud it is, and its sections.

Belongs here: what is read from the song's curves once the beats are known. Does not belong here: finding the
beats (`beats`).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from montage_assets.media.beat_analysis import Section
from montage_assets.media.beat_grid import Floats
from montage_assets.media.onsets import (
    CHROMA_FRAMES_PER_S,
    FRAMES_PER_S,
    Curve,
    SongSignals,
    onset_envelope,
    running_mean,
)

CURVE_HOP_FRAMES = 5
CURVE_HOP_S = CURVE_HOP_FRAMES / FRAMES_PER_S

# Weights of what marks a bar's first beat: a new chord most of all (Goto, JNMR 2001), then bass and colour.
_BAR_MARKS = {"chord": 1.0, "harmony": 0.7, "bass": 0.6, "colour": 0.3}
_FEWEST_BEATS = 8  # to tell anything from
_CHORD_FLOOR = 0.002  # a chord change this small is none
_CHORD_WEIGHT = 1.5
_OFF_BEAT_CLEARER = 0.1
_EIGHTH_ONSET, _EIGHTH_BASS = 0.65, 0.5  # of a beat's
# In standard errors of the marks, as they are added to these.
_BACKBEAT_WEIGHT, _BACKBEAT_MOST = 1.5, 1.5
_OPENING_WEIGHT = 1.0
_OPENING_LEVEL = 0.1  # of the song's loud parts
_OPENING_NEAR_S = 0.06
_WALTZ_CLEARER = 1.5  # three beats must fit this much better than four
_WALTZ_LEAST = 1.5

_LOUDNESS_POWER = 0.6  # loudness in sones grows as sound pressure to the power 0.6 (Stevens)
_ENERGY_SMOOTHING_S = 0.3
_QUIET, _LOUD = 0.6, 0.85
_SHORTEST_SECTION_S = 7.0
_UNIT_S = 2.0  # of a song without bars
_SECTION_PENALTY = 6.0
_SILENCE_DB = -40.0


def stands_between_beats(signals: SongSignals, beats_s: Floats) -> bool:
    """Whether these are the off-beats of the song, half a beat beside its beats."""
    if len(beats_s) < _FEWEST_BEATS:
        return False
    between = (beats_s[:-1] + beats_s[1:]) / 2.0
    return _beat_evidence(signals, between) > _beat_evidence(signals, beats_s) + _OFF_BEAT_CLEARER


def stronger_half(signals: SongSignals, beats_s: Floats) -> int:
    """0 when the beats [0::2] are more like beats than the others, else 1."""
    return int(_beat_evidence(signals, beats_s[1::2]) > _beat_evidence(signals, beats_s[::2]))


def every_second_is_an_eighth(signals: SongSignals, beats_s: Floats) -> bool:
    """Whether the weaker half of the beats has cymbals at most: no kick, snare or bass note as beats have."""
    if len(beats_s) < _FEWEST_BEATS:
        return False
    onset = _accents(onset_envelope(signals.onsets), beats_s)
    bass = _accents(signals.onsets[:, 0], beats_s)
    strong = stronger_half(signals, beats_s)
    fewer_onsets = onset[1 - strong :: 2].mean() < _EIGHTH_ONSET * onset[strong::2].mean()
    less_bass = bass[1 - strong :: 2].mean() < _EIGHTH_BASS * bass[strong::2].mean()
    return bool(fewer_onsets and less_bass)


def find_downbeats(signals: SongSignals, beats_s: Floats) -> Floats:
    """The first beats of the bars: of 4/4, or of 3/4 where that fits clearly better.

    Bars start where chords change and the bass enters, one beat before the snares, and with the song.
    """
    if len(beats_s) < _FEWEST_BEATS:
        return beats_s[::4]
    marks = _bar_marks(signals, beats_s)
    in_fours, in_threes = _phase_scores(marks, 4), _phase_scores(marks, 3)
    waltz = in_threes.max() > max(_WALTZ_CLEARER * in_fours.max(), _WALTZ_LEAST)
    meter, scores = (3, in_threes) if waltz else (4, in_fours + _backbeat_scores(signals, beats_s))
    opening = _opening_beat(signals, beats_s)
    if opening is not None:
        scores[opening % meter] += _OPENING_WEIGHT
    return beats_s[int(scores.argmax()) :: meter]


def energy_curve(signals: SongSignals) -> Floats:
    """Loudness 0..1 every CURVE_HOP_S seconds, 1 where the song is at its loudest."""
    loudness = signals.rms.astype(np.float64) ** _LOUDNESS_POWER
    smooth = _curve_steps(running_mean(loudness, round(_ENERGY_SMOOTHING_S * FRAMES_PER_S))).mean(axis=1)
    loudest = float(smooth.max())
    return smooth / loudest if loudest > 1e-3 else np.zeros(len(smooth))


def onset_curve(envelope: Curve) -> Floats:
    """Onset strength 0..1 every CURVE_HOP_S seconds: the strongest onset within each step."""
    strongest: Floats = _curve_steps(envelope.astype(np.float64)).max(axis=1)
    full = float(np.quantile(strongest, 0.99))
    return np.minimum(strongest / full, 1.0) if full > 1e-3 else np.zeros(len(strongest))


def sound_end_s(signals: SongSignals) -> float:
    """Where the song's last sound ends: after it there is only what is 40 dB under the loud parts."""
    loud = float(np.quantile(signals.rms, 0.95))
    heard = np.flatnonzero(signals.rms > loud * 10.0 ** (_SILENCE_DB / 20.0))
    return min((int(heard[-1]) + 1) / FRAMES_PER_S, signals.duration_s) if len(heard) else signals.duration_s


def find_sections(signals: SongSignals, energy: Floats, downbeats_s: list[float]) -> list[Section]:
    """Sections from 0 to the song's end, at least 7 s long, with boundaries on downbeats where there are any.

    The partition of the bars into stretches that differ least within themselves, in colour and loudness,
    with a price for every stretch (least squares, solved exactly by dynamic programming).
    """
    starts = _unit_starts(signals.duration_s, downbeats_s)
    edges = [*starts, signals.duration_s]
    bars = _bar_features(signals, energy, edges)
    first_units = _partition(bars, np.array(edges))
    bounds = [starts[unit] for unit in first_units] + [signals.duration_s]
    levels = [_mean_between(energy, start, end, 1 / CURVE_HOP_S) for start, end in pairwise(bounds)]
    loudest = max(*levels, 1e-6)
    return [
        Section(start, end, level / loudest, _label(level / loudest))
        for start, end, level in zip(bounds, bounds[1:], levels, strict=False)
    ]


def _beat_evidence(signals: SongSignals, times_s: Floats) -> float:
    """How much like beats these times are; only differences of it mean something.

    Loud cymbals or guitars between the beats mislead an onset envelope, so three things vote, each by the
    logarithm of its mean: all onsets, the bass, and the chords, which change on beats.
    """
    chords = _change(np.sqrt(signals.chroma.astype(np.float64)), times_s, 1)
    onset = float(_accents(onset_envelope(signals.onsets), times_s).mean()) + 0.01
    bass = float(_accents(signals.onsets[:, 0], times_s).mean()) + 0.01
    chord = max(float(chords[phase::4].mean()) for phase in range(4)) + _CHORD_FLOOR
    return float(np.log(onset) + np.log(bass) + _CHORD_WEIGHT * np.log(chord))


def _bar_marks(signals: SongSignals, beats_s: Floats) -> Floats:
    """How much every beat looks like the start of a bar, (beats,), mean 0."""
    chroma = np.sqrt(signals.chroma.astype(np.float64))
    marks = {
        "chord": _change(chroma, beats_s, 1),
        "harmony": _change(chroma, beats_s, 2),
        "colour": _change(signals.timbre.astype(np.float64), beats_s, 1),
        "bass": _accents(signals.onsets[:, 0], beats_s),
    }
    total = np.zeros(len(beats_s))
    for name, weight in _BAR_MARKS.items():
        spread = float(marks[name].std())
        if spread > 1e-9:
            total += weight * np.clip((marks[name] - marks[name].mean()) / spread, -2.0, 3.0)
    return total / sum(_BAR_MARKS.values())


def _phase_scores(marks: Floats, meter: int) -> Floats:
    """Mean mark of the beats of every phase, in its standard error."""
    return np.array([marks[phase::meter].mean() * np.sqrt(len(marks[phase::meter])) for phase in range(meter)])


def _backbeat_scores(signals: SongSignals, beats_s: Floats) -> Floats:
    """What snares on the second and fourth beat say for each phase of a 4/4 bar, mean 0."""
    snares = _accents(signals.onsets[:, 1], beats_s) + _accents(signals.onsets[:, 2], beats_s)
    spread = float(snares.std())
    if spread < 1e-9:
        return np.zeros(4)
    phases = _phase_scores((snares - snares.mean()) / spread, 4)
    lead = float(phases[1] + phases[3] - phases[0] - phases[2]) / 4.0
    capped = float(np.clip(_BACKBEAT_WEIGHT * lead, -_BACKBEAT_MOST, _BACKBEAT_MOST))
    return capped * np.array([1.0, -1.0, 1.0, -1.0])


def _opening_beat(signals: SongSignals, beats_s: Floats) -> int | None:
    """The beat that the song starts with, if it starts on one: songs mostly start at the start of a bar."""
    heard = np.flatnonzero(signals.rms > _OPENING_LEVEL * float(np.quantile(signals.rms, 0.95)))
    if not len(heard):
        return None
    start_s = heard[0] / FRAMES_PER_S
    nearest = int(np.abs(beats_s - start_s).argmin())
    return nearest if abs(beats_s[nearest] - start_s) < _OPENING_NEAR_S else None


def _accents(flux: Curve, beats_s: Floats) -> Floats:
    frames = np.round(beats_s * FRAMES_PER_S).astype(np.int64)
    around = [np.clip(frames + shift, 0, len(flux) - 1) for shift in range(-4, 5)]
    strongest: Floats = np.max([flux[index] for index in around], axis=0).astype(np.float64)
    return strongest


def _change(values: Floats, beats_s: Floats, reach: int) -> Floats:
    """Distance (cosine) of the mean over `reach` beats before each beat to the mean over as many after it.

    The beats at both ends, which have too little around them, get the mean of the others.
    """
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    frames = np.clip(np.round(beats_s * CHROMA_FRAMES_PER_S).astype(np.int64), 0, len(values))
    change = np.full(len(beats_s), np.nan)
    for beat in range(reach, len(beats_s) - reach):
        start, middle, end = frames[beat - reach], frames[beat], frames[beat + reach]
        if start < middle < end:
            before = sums[middle] - sums[start]
            after = sums[end] - sums[middle]
            lengths = float(np.linalg.norm(before) * np.linalg.norm(after))
            change[beat] = 1.0 - float(before @ after) / lengths if lengths > 1e-9 else 0.0
    known = change[~np.isnan(change)]
    return np.where(np.isnan(change), known.mean() if len(known) else 0.0, change)


def _curve_steps(values: Floats) -> Floats:
    """(steps, frames of one step)."""
    count = -(-len(values) // CURVE_HOP_FRAMES)
    filled = np.pad(values, (0, count * CURVE_HOP_FRAMES - len(values)), mode="edge")
    return filled.reshape(count, CURVE_HOP_FRAMES)


def _unit_starts(duration_s: float, downbeats_s: list[float]) -> list[float]:
    inner = [time for time in downbeats_s if 0.5 < time < duration_s - 0.5]
    if len(inner) < 4:
        inner = [float(time) for time in np.arange(_UNIT_S, duration_s - 0.5, _UNIT_S)]
    return [0.0, *inner]


def _bar_features(signals: SongSignals, energy: Floats, edges: list[float]) -> Floats:
    """(units, features): colour and loudness of each unit, each feature with spread 1 over the song."""
    rows = []
    for start, end in pairwise(edges):
        colour = _rows_between(signals.timbre, start, end, CHROMA_FRAMES_PER_S).mean(axis=0)
        rows.append([*colour, _mean_between(energy, start, end, 1 / CURVE_HOP_S)])
    features = np.array(rows)
    colour_spread = float(np.sqrt(np.mean(features[:, :-1].var(axis=0))))
    loudness_spread = float(features[:, -1].std())
    weights = np.full(features.shape[1], 1.0 / max(colour_spread, 1e-2) / np.sqrt(features.shape[1] - 1))
    weights[-1] = 1.0 / max(loudness_spread, 2e-2)
    weighted: Floats = (features - features.mean(axis=0)) * weights
    return weighted


def _partition(units: Floats, edges_s: Floats) -> list[int]:
    """First unit of every stretch of the cheapest partition."""
    count = len(units)
    sums = np.concatenate([np.zeros((1, units.shape[1])), np.cumsum(units, axis=0)])
    squares = np.concatenate([[0.0], np.cumsum((units * units).sum(axis=1))])
    cost = np.full(count + 1, np.inf)
    cost[0] = 0.0
    came_from = np.zeros(count + 1, np.int64)
    for end in range(1, count + 1):
        starts = np.arange(end)
        total = sums[end] - sums[:end]
        within = squares[end] - squares[:end] - (total * total).sum(axis=1) / (end - starts)
        long_enough = edges_s[end] - edges_s[:end] >= min(_SHORTEST_SECTION_S, edges_s[-1])
        reached = np.where(long_enough, cost[:end] + within + _SECTION_PENALTY, np.inf)
        came_from[end] = int(reached.argmin())
        cost[end] = reached[came_from[end]]
    firsts = []
    end = count
    while end > 0:
        end = int(came_from[end])
        firsts.append(end)
    return firsts[::-1]


def _rows_between(values: Curve, start_s: float, end_s: float, per_s: float) -> Curve:
    first = min(int(start_s * per_s), len(values) - 1)
    return values[first : max(first + 1, int(end_s * per_s))]


def _mean_between(values: Floats, start_s: float, end_s: float, per_s: float) -> float:
    first = min(round(start_s * per_s), len(values) - 1)
    return float(values[first : max(first + 1, round(end_s * per_s))].mean())


def _label(energy: float) -> str:
    if energy < _QUIET:
        return "quiet"
    return "medium" if energy < _LOUD else "loud"
