"""What a song sounds like over time: how much is new at each moment, how loud it is, and its harmony.

Belongs here: turning samples into these curves, in bounded memory. Does not belong here: any idea of beat,
bar or section (`beats`, `local_beats`, `song_structure`).

The onset envelope is the spectral flux of log magnitudes with the maximum filter of Böck and Widmer ("Maximum
filter vibrato suppression for onset detection", DAFx 2013), kept apart in three bands and added after each is
scaled to like strength, so that neither a loud bass nor dense cymbals drown the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float32]

RATE = 24000
"""Hz. Up to 12 kHz is heard; it makes a frame exactly 10 ms."""
FRAME = 240
FRAMES_PER_S = RATE // FRAME

_WINDOW = 1024
_BANDS = 30
_LOWEST_HZ, _HIGHEST_HZ = 30.0, 11000.0
_BAND_EDGES_HZ = (220.0, 2200.0)  # kick and bass | snare, voice, guitars | hats and cymbals
_FLUX_FRAMES = 2
_FRAMES_AT_ONCE = 400
# The flux is highest in the frame whose middle is this long after the attack: measured, the mean of clicks
# (2.5 ms before), drums (0 to 2.5 ms after) and plucked strings.
_ATTACK_LEAD_S = 0.0015
_COMPRESSION = 30.0  # log(1 + 30 m): sounds 30 dB under the song's loud parts still count
_AUDIBLE_FLUX = 0.02  # an envelope whose onsets are weaker than this is a steady sound and its ripple

_CHROMA_WINDOW = 4096
_CHROMA_FRAME = 2400
CHROMA_FRAMES_PER_S = RATE // _CHROMA_FRAME
_LOWEST_CHROMA_HZ, _SEMITONES = 65.4, 60  # the lowest are narrower than a bin, and share bins


@dataclass(frozen=True)
class SongSignals:
    """The curves of one song of `duration_s` seconds.

    `onsets`: float32 (n, 3), flux in the low, middle and high band, frame i at i / FRAMES_PER_S seconds, the
    attack itself at that time. `rms`: float32 (n,). `timbre`: float32 (m, 30), log magnitudes in mel bands;
    `chroma`: float32 (m, 12), both at CHROMA_FRAMES_PER_S.
    """

    duration_s: float
    onsets: Curve
    rms: Curve
    timbre: Curve
    chroma: Curve


def song_signals(blocks: Iterable[NDArray[np.float32]]) -> SongSignals:
    """The curves of a song whose samples come at `RATE` Hz, in blocks of any length.

    Needs about 20 MB, and 13 kB more for every second of song.
    """
    mel = _half_mel_bands()
    fine = _Frames(_WINDOW, FRAME)
    coarse = _Frames(_CHROMA_WINDOW, _CHROMA_FRAME)
    semitones = _semitone_bands()
    bands: list[Curve] = []
    rms: list[Curve] = []
    chroma: list[Curve] = []
    samples = 0

    def take(block: NDArray[np.float32], *, last: bool) -> None:
        for windows in fine.windows(block, last=last):
            bands.append(_mel_bands(mel.of(windows)))
            middle = windows[:, (_WINDOW - FRAME) // 2 : (_WINDOW + FRAME) // 2]
            rms.append(np.sqrt(np.mean(middle * middle, axis=1)))
        for windows in coarse.windows(block, last=last):
            chroma.append(semitones.of(windows).reshape(-1, _SEMITONES // 12, 12).sum(axis=1))

    for block in blocks:
        samples += len(block)
        take(block, last=False)
    take(np.zeros(0, np.float32), last=True)
    levels = _to_log_levels(np.concatenate(bands))
    bands.clear()
    return SongSignals(
        duration_s=samples / RATE,
        onsets=_flux(levels),
        rms=np.concatenate(rms),
        timbre=_thinned(levels, FRAMES_PER_S // CHROMA_FRAMES_PER_S),
        chroma=np.concatenate(chroma),
    )


def onset_envelope(onsets: Curve) -> Curve:
    """One curve (n,) out of the three bands: each over its running mean, scaled to like strength, then added.

    About 1 at a typical onset and 0 between them. Loudness changes over some ten seconds are evened out. A
    sound that has no audible onsets gives values near 0.
    """
    total = np.zeros(len(onsets), np.float64)
    for band in onsets.T.astype(np.float64):
        excess = np.maximum(band - running_mean(band, FRAMES_PER_S), 0.0)
        around = np.sqrt(running_mean(excess * excess, 12 * FRAMES_PER_S))
        overall = float(np.sqrt(np.mean(excess * excess)))
        total += excess / np.maximum(np.maximum(around, 0.4 * overall), _AUDIBLE_FLUX)
    return np.minimum(total / 6.0, 2.0).astype(np.float32)


def running_mean(values: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    """Mean over `frames` values around each one; over fewer at both ends."""
    half = max(1, frames // 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first = np.maximum(index - half, 0)
    last = np.minimum(index + half + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean


class _Frames:
    """Cuts a stream of samples into overlapping windows; window i shows attacks at i * `hop` best."""

    def __init__(self, window: int, hop: int) -> None:
        self._window, self._hop = window, hop
        lead = window // 2 + round(_ATTACK_LEAD_S * RATE)
        self._rest = np.zeros(lead, np.float32)
        self._lead = lead

    def windows(self, block: NDArray[np.float32], *, last: bool) -> Iterable[NDArray[np.float32]]:
        ending = np.zeros(self._window - self._lead if last else 0, np.float32)
        samples = np.concatenate([self._rest, block, ending])
        count = max(0, (len(samples) - self._window) // self._hop + 1)
        if count:
            every = np.lib.stride_tricks.sliding_window_view(samples, self._window)[:: self._hop]
            for first in range(0, count, _FRAMES_AT_ONCE):
                yield every[first : first + _FRAMES_AT_ONCE]
        self._rest = samples[count * self._hop :]


class _Bands:
    """Sums over runs of neighbouring bins. (A matrix product would do, but its threads cost more than it.)"""

    def __init__(self, first_bins: NDArray[np.int64], weights: Curve) -> None:
        self._first_bins = first_bins
        self._weights = weights

    def of(self, windows: Curve) -> Curve:
        """(windows, bands) from samples (windows, length)."""
        weighted = _magnitudes(windows, len(self._weights)) * self._weights
        sums: Curve = np.add.reduceat(weighted, self._first_bins, axis=1)
        return sums


def _mel_steps_hz() -> NDArray[np.float64]:
    """2 * _BANDS + 3 frequencies, even in mel (O'Shaughnessy's 2595 log10(1 + f/700)): half bands apart."""
    mel = np.linspace(_mel(_LOWEST_HZ), _mel(_HIGHEST_HZ), 2 * _BANDS + 3)
    steps: NDArray[np.float64] = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return steps


def _half_mel_bands() -> _Bands:
    bins = np.round(_mel_steps_hz() * _WINDOW / RATE).astype(np.int64)
    return _Bands(bins[:-1], np.ones(bins[-1], np.float32))


def _mel_bands(halves: Curve) -> Curve:
    """(n, _BANDS) bands that overlap like triangles, from (n, 2 * _BANDS + 2) half bands."""
    inner = halves[:, 1:-2:2] + halves[:, 2:-1:2]
    outer = halves[:, :-3:2] + halves[:, 3::2]
    return np.float32(0.75) * inner + np.float32(0.25) * outer


def _mel(hz: float) -> float:
    return float(2595.0 * np.log10(1.0 + hz / 700.0))


def _magnitudes(windows: Curve, bins: int) -> Curve:
    import scipy.fft

    length = windows.shape[1]
    hann = np.hanning(length + 1)[:-1].astype(np.float32) * np.float32(4.0 / length)
    magnitudes: Curve = np.abs(scipy.fft.rfft(windows * hann, axis=1)[:, :bins])
    return magnitudes


def _semitone_bands() -> _Bands:
    """One band for every semitone; high ones count less, as overtones crowd there."""
    hz = _LOWEST_CHROMA_HZ * 2.0 ** (np.arange(_SEMITONES + 1) / 12.0)
    bins = np.round(hz / 2.0 ** (1.0 / 24.0) * _CHROMA_WINDOW / RATE).astype(np.int64)
    weights = np.zeros(bins[-1], np.float32)
    weights[bins[0] :] = 1.0 / np.sqrt(np.arange(bins[0], bins[-1]) * RATE / _CHROMA_WINDOW)
    return _Bands(bins[:-1], weights)


def _to_log_levels(bands: Curve) -> Curve:
    """`bands`, made logarithmic in place, relative to the song's loud parts: a quiet copy reads the same."""
    loud = float(np.quantile(bands.max(axis=1), 0.98)) if len(bands) else 0.0
    bands *= np.float32(_COMPRESSION / max(loud, 1e-5))
    return np.log1p(bands, out=bands)


def _flux(levels: Curve) -> Curve:
    groups = np.searchsorted(np.array(_BAND_EDGES_HZ), _mel_steps_hz()[2:-1:2])
    flux = np.zeros((len(levels), len(_BAND_EDGES_HZ) + 1), np.float32)
    for first in range(_FLUX_FRAMES, len(levels), _FRAMES_AT_ONCE):
        now = levels[first : first + _FRAMES_AT_ONCE]
        before = levels[first - _FLUX_FRAMES : first - _FLUX_FRAMES + len(now)]
        padded = np.pad(before, ((0, 0), (1, 1)), mode="edge")
        loudest_neighbour = np.maximum(np.maximum(padded[:, :-2], padded[:, 2:]), before)
        rise = np.maximum(now - loudest_neighbour, 0.0)
        for group in range(flux.shape[1]):
            flux[first : first + len(now), group] = rise[:, groups == group].mean(axis=1)
    return flux


def _thinned(values: Curve, step: int) -> Curve:
    whole = len(values) // step * step
    thinned: Curve = values[:whole].reshape(-1, step, values.shape[1]).mean(axis=1)
    return thinned
