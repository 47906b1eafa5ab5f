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

_USUAL_BPM, _USUAL_OCTAVES = 120.0, 1.0  # log-normal prior: half weight at 50 and 290 BPM
_HARMONICS = 10
_PHASES = 96
_BEAT_WIDTH_S = 0.012  # standard deviation of the pulse that is laid over the onsets
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
    spectrum = _PulseSpectrum(envelope.astype(np.float64)[None, :])
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
    spectrum = _PulseSpectrum(windows)
    rivals = spectrum.best(tempo_axis()).max(axis=1)
    profiles = spectrum.profiles(np.array([grid.bpm]))[:, 0] * np.sqrt(spectrum.length_s * grid.bpm / 60.0)
    shift = (grid.first_s - starts_s - spectrum.origin_s) * grid.bpm / 60.0 * _PHASES
    aligned = np.stack([np.roll(row, -round(by)) for row, by in zip(profiles, shift, strict=True)])
    near = max(1, round(_NEAR_S * grid.bpm / 60.0 * _PHASES))
    places = [(half + lag) % _PHASES for half in (0, _PHASES // 2) for lag in range(-near, near + 1)]
    on_grid = aligned[:, places].max(axis=1)
    own = profiles.max(axis=1)
    rhythmic = rivals >= RHYTHMIC_Z
    agrees = rhythmic & (on_grid >= _DRIFTED * own) & (own >= _OTHER_TEMPO * rivals)
    return GridFit(grid, int(rhythmic.sum()), int(agrees.sum()))


def envelope_windows(envelope: Curve) -> tuple[Floats, Floats]:
    """The envelope in windows of WINDOW_S seconds, (w, frames), and the start of each, (w,) seconds.

    They start every WINDOW_STEP_S; a shorter song is one window.
    """
    length = min(round(WINDOW_S * FRAMES_PER_S), len(envelope))
    step = round(WINDOW_STEP_S * FRAMES_PER_S)
    every = np.lib.stride_tricks.sliding_window_view(envelope, length)[::step]
    return every.astype(np.float64), np.arange(len(every)) * np.float64(WINDOW_STEP_S)


def tempo_axis() -> Floats:
    """Tempos in steps of 1.2 %, as fine as windows of WINDOW_S tell apart."""
    steps = round(np.log(FASTEST_BPM / SLOWEST_BPM) / np.log(1.012))
    axis: Floats = SLOWEST_BPM * 1.012 ** np.arange(steps + 1)
    return axis


def window_evidence(windows: Floats, bpm: Floats) -> Floats:
    """Evidence (w, tempos) of the best pulse of each tempo in each window of `envelope_windows`."""
    return _PulseSpectrum(windows).best(bpm)


class _PulseSpectrum:
    """Mean standardised onset at the beats of any pulse, for a batch of envelopes of equal length (b, n)."""

    def __init__(self, envelopes: Floats) -> None:
        import scipy.fft

        count = envelopes.shape[1]
        middle = count // 2
        self.length_s = count / FRAMES_PER_S
        self.origin_s = middle / FRAMES_PER_S
        standard = envelopes - envelopes.mean(axis=1, keepdims=True)
        standard /= np.maximum(standard.std(axis=1, keepdims=True), 1e-3)
        padded = scipy.fft.next_fast_len(8 * count, real=True)
        # With time zero in the middle the spectrum is smooth, and can be read between its bins.
        centred = np.zeros((len(envelopes), padded), np.float32)
        centred[:, : count - middle] = standard[:, middle:]
        centred[:, padded - middle :] = standard[:, :middle]
        self._spectrum = scipy.fft.rfft(centred, axis=1)
        self._bin_hz = FRAMES_PER_S / padded
        self._count = count

    def profiles(self, bpm: Floats) -> Floats:
        """(b, tempos, _PHASES): mean onset at beats at `origin_s` + phase * period + any whole periods."""
        hz = bpm / 60.0
        total = np.zeros((len(self._spectrum), len(bpm), _PHASES))
        phase = np.arange(_PHASES) / _PHASES
        for harmonic in range(1, _HARMONICS + 1):
            position = np.minimum(harmonic * hz / self._bin_hz, self._spectrum.shape[1] - 2)
            below = position.astype(np.int64)
            part = position - below
            value = self._spectrum[:, below] * (1.0 - part) + self._spectrum[:, below + 1] * part
            value = value * np.exp(-0.5 * (2.0 * np.pi * harmonic * hz * _BEAT_WIDTH_S) ** 2)
            turn = np.exp(2j * np.pi * harmonic * phase)
            total += value.real[:, :, None] * turn.real - value.imag[:, :, None] * turn.imag
        total *= 2.0 / self._count
        return total

    def best(self, bpm: Floats) -> Floats:
        """Evidence (b, tempos) of the best phase at every tempo."""
        z = np.zeros((len(self._spectrum), len(bpm)))
        for first in range(0, len(bpm), self._tempos_at_once()):
            some = slice(first, first + self._tempos_at_once())
            profiles = self.profiles(bpm[some])
            z[:, some] = profiles.max(axis=2) * np.sqrt(self.length_s * bpm[some] / 60.0)
        return z

    def _tempos_at_once(self) -> int:
        return max(1, 20_000 // len(self._spectrum))


def _best_tempo(spectrum: _PulseSpectrum, bpm: Floats) -> float:
    weighted = spectrum.best(bpm)[0] * tempo_prior(bpm)
    return float(bpm[weighted.argmax()])


def _peak(profile: Floats) -> float:
    """Place of a circular curve's highest point, between its samples."""
    top = int(profile.argmax())
    before, at, after = profile[top - 1], profile[top], profile[(top + 1) % len(profile)]
    bend = before - 2.0 * at + after
    return top + (0.5 * (before - after) / bend if bend < 0 else 0.0)
