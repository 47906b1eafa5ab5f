"""One tempo for a whole song: how strong the evidence for every pulse is, and the even grid that fits best.

Belongs here: pulse evidence from an onset envelope (for the whole song and for windows of it), the fit of
tempo and phase, and whether the fitted grid holds along the song. Does not belong here: following a tempo
that moves (`local_beats`), or which of the two is used (`beats`).

Evidence of a pulse is the mean of the onset envelope at its beats, in standard deviations, times the square
root of the number of beats: the z-score that a pulse laid over chance onsets would reach by accident. It
prefers neither slow pulses (few beats) nor fast ones (beats without onsets). The means for all tempos and
phases come from the envelope's spectrum at the tempo and its harmonics: a pulse train is their sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from montage_assets.media.onsets import FRAMES_PER_S, Curve

Floats = NDArray[np.float64]

SLOWEST_BPM, FASTEST_BPM = 45.0, 240.0
WINDOW_S = 8.0
WINDOW_STEP_S = 1.0

_USUAL_BPM, _USUAL_OCTAVES = 120.0, 1.0  # log-normal prior: half weight at 53 and 271 BPM
_HARMONICS = 10
_PHASES = 96
_BEAT_WIDTH_S = 0.012  # standard deviation of the pulse that is laid over the onsets
_LEAST_SPREAD = 0.08  # of the envelope (music: 0.3), so that a steady sound's ripple is no rhythm
_WINDOWS_AT_ONCE, _TEMPOS_AT_ONCE = 256, 8000  # bound the memory for long songs
_NEAR_S = 0.02
_DRIFTED = 0.75  # of the window's own best phase, what the grid must reach
_OTHER_TEMPO = 0.5  # of the window's best tempo, what the grid's tempo must reach
RHYTHMIC_Z = 4.5
"""Evidence of the best pulse in a window that chance onsets do not reach (they reach 4)."""


@dataclass(frozen=True)
class Grid:
    """An even pulse: beat k is at `first_s + 60 k / bpm`. `z` is its evidence over the whole song."""

    bpm: float
    first_s: float
    z: float

    def beats(self, duration_s: float) -> Floats:
        """Every beat in [0, duration_s)."""
        period = 60.0 / self.bpm
        beats: Floats = np.arange(self.first_s % period, duration_s, period)
        return beats


@dataclass(frozen=True)
class GridFit:
    """How a grid holds along the song: of `rhythmic` windows, `agreeing` have their own best pulse on it."""

    grid: Grid
    rhythmic: int
    agreeing: int

    @property
    def share(self) -> float:
        return self.agreeing / self.rhythmic if self.rhythmic else 0.0


def tempo_prior(bpm: Floats) -> Floats:
    """Weight of a tempo before anything is heard, 1 at 120 BPM."""
    weight: Floats = np.exp(-0.5 * (np.log2(bpm / _USUAL_BPM) / _USUAL_OCTAVES) ** 2)
    return weight


def fit_grid(envelope: Curve) -> Grid:
    """The even grid with the most evidence, weighted by `tempo_prior`; tempo and phase well under a frame."""
    spectrum = _PulseSpectrum(envelope[None, :])
    duration_s = len(envelope) / FRAMES_PER_S
    coarse = np.arange(SLOWEST_BPM, FASTEST_BPM, 15.0 / duration_s)
    best = _best_tempo(spectrum, coarse)
    step = coarse[1] - coarse[0]
    fine = np.linspace(best - step, best + step, 81)
    best = _best_tempo(spectrum, fine[(fine >= SLOWEST_BPM) & (fine <= FASTEST_BPM)])
    profile = spectrum.profiles(np.array([best]))[0, 0]
    period = 60.0 / best
    first_s = float((spectrum.origin_s + _peak(profile) / _PHASES * period) % period)
    beats = duration_s / period
    return Grid(best, first_s, float(profile.max()) * float(np.sqrt(beats)))


def check_grid(envelope: Curve, grid: Grid) -> GridFit:
    """Compares the grid with each window's own best pulse: of its tempo (drift) and of any (another tempo).

    Half a beat off counts as agreeing: the loudest onsets of a chorus often stand between the beats.
    """
    windows, starts_s = envelope_windows(envelope)
    rhythmic = agreeing = 0
    for some in _batches(len(windows)):
        clear, agrees = _compare(_PulseSpectrum(windows[some]), starts_s[some], grid)
        rhythmic += clear
        agreeing += agrees
    return GridFit(grid, rhythmic, agreeing)


def _compare(spectrum: _PulseSpectrum, starts_s: Floats, grid: Grid) -> tuple[int, int]:
    """Of these windows, how many have a clear pulse, and how many of those agree with the grid."""
    rivals = spectrum.best(tempo_axis()).max(axis=1)
    profiles = spectrum.profiles(np.array([grid.bpm]))[:, 0] * np.sqrt(spectrum.length_s * grid.bpm / 60.0)
    shift = (grid.first_s - starts_s - spectrum.origin_s) * grid.bpm / 60.0 * _PHASES
    aligned = np.stack([np.roll(row, -round(by)) for row, by in zip(profiles, shift, strict=True)])
    near = max(1, round(_NEAR_S * grid.bpm / 60.0 * _PHASES))
    places = [(half + lag) % _PHASES for half in (0, _PHASES // 2) for lag in range(-near, near + 1)]
    on_grid = aligned[:, places].max(axis=1)
    own = profiles.max(axis=1)
    clear = rivals >= RHYTHMIC_Z
    agrees = clear & (on_grid >= _DRIFTED * own) & (own >= _OTHER_TEMPO * rivals)
    return int(clear.sum()), int(agrees.sum())


def envelope_windows(envelope: Curve) -> tuple[Curve, Floats]:
    """The envelope in windows of WINDOW_S seconds, (w, frames), and the start of each, (w,) seconds.

    They start every WINDOW_STEP_S; a shorter song is one window. The windows are views of the envelope.
    """
    length = min(round(WINDOW_S * FRAMES_PER_S), len(envelope))
    step = round(WINDOW_STEP_S * FRAMES_PER_S)
    every = np.lib.stride_tricks.sliding_window_view(envelope, length)[::step]
    return every, np.arange(len(every)) * np.float64(WINDOW_STEP_S)


def tempo_axis() -> Floats:
    """Tempos in steps of 1.2 %, as fine as windows of WINDOW_S tell apart."""
    steps = round(np.log(FASTEST_BPM / SLOWEST_BPM) / np.log(1.012))
    axis: Floats = SLOWEST_BPM * 1.012 ** np.arange(steps + 1)
    return axis


def window_evidence(windows: Curve, bpm: Floats) -> Floats:
    """Evidence (w, tempos) of the best pulse of each tempo in each window of `envelope_windows`."""
    return np.concatenate([_PulseSpectrum(windows[some]).best(bpm) for some in _batches(len(windows))])


def _batches(count: int) -> list[slice]:
    return [slice(first, first + _WINDOWS_AT_ONCE) for first in range(0, count, _WINDOWS_AT_ONCE)]


class _PulseSpectrum:
    """Mean standardised onset at the beats of any pulse, for a batch of envelopes of equal length (b, n)."""

    def __init__(self, envelopes: Curve) -> None:
        import scipy.fft

        count = envelopes.shape[1]
        middle = count // 2
        self.length_s = count / FRAMES_PER_S
        self.origin_s = middle / FRAMES_PER_S
        standard = envelopes - envelopes.mean(axis=1, keepdims=True)
        standard /= np.maximum(standard.std(axis=1, keepdims=True), _LEAST_SPREAD)
        padded = scipy.fft.next_fast_len(8 * count, real=True)
        # With time zero in the middle the spectrum is smooth, and can be read between its bins.
        centred = np.zeros((len(envelopes), padded), np.float32)
        centred[:, : count - middle] = standard[:, middle:]
        centred[:, padded - middle :] = standard[:, :middle]
        self._spectrum = scipy.fft.rfft(centred, axis=1)
        self._bin_hz = FRAMES_PER_S / padded
        self._count = count

    def profiles(self, bpm: Floats) -> Curve:
        """(b, tempos, _PHASES): mean onset at beats at `origin_s` + phase * period + any whole periods."""
        hz = bpm[:, None] / 60.0 * np.arange(1, _HARMONICS + 1)
        position = np.minimum(hz / self._bin_hz, self._spectrum.shape[1] - 2)
        below = position.astype(np.int64)
        part = (position - below).astype(np.float32)
        softened = np.exp(-0.5 * (2.0 * np.pi * hz * _BEAT_WIDTH_S) ** 2).astype(np.float32)
        value = self._spectrum[:, below] * (softened * (1.0 - part))
        value += self._spectrum[:, below + 1] * (softened * part)
        turn = 2.0 * np.pi * np.outer(np.arange(1, _HARMONICS + 1), np.arange(_PHASES)) / _PHASES
        waves = np.concatenate([np.cos(turn), -np.sin(turn)]).astype(np.float32) * np.float32(2.0 / self._count)
        profiles: Curve = np.concatenate([value.real, value.imag], axis=2) @ waves
        return profiles

    def best(self, bpm: Floats) -> Floats:
        """Evidence (b, tempos) of the best phase at every tempo."""
        at_once = max(1, _TEMPOS_AT_ONCE // len(self._spectrum))
        parts = [self.profiles(bpm[first : first + at_once]).max(axis=2) for first in range(0, len(bpm), at_once)]
        evidence: Floats = np.concatenate(parts, axis=1) * np.sqrt(self.length_s * bpm / 60.0)
        return evidence


def vertex(before: float, at: float, after: float) -> float:
    """Where the parabola through three samples is highest: -0.5..0.5 samples beside the middle one."""
    bend = before - 2.0 * at + after
    return min(max(0.5 * (before - after) / bend, -0.5), 0.5) if bend < 0.0 else 0.0


def _best_tempo(spectrum: _PulseSpectrum, bpm: Floats) -> float:
    weighted = spectrum.best(bpm)[0] * tempo_prior(bpm)
    top = int(weighted.argmax())
    if not 0 < top < len(bpm) - 1:
        return float(bpm[top])
    return float(bpm[top] + vertex(*weighted[top - 1 : top + 2]) * (bpm[1] - bpm[0]))


def _peak(profile: Curve) -> float:
    """Place of a circular curve's highest point, between its samples."""
    top = int(profile.argmax())
    return top + vertex(*(float(profile[(top + step) % len(profile)]) for step in (-1, 0, 1)))
