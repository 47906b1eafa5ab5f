"""Beats of a song whose tempo moves: live playing, ramps, a change half way.

Belongs here: the path of the tempo through the song and the beats along it. Does not belong here: songs
of one tempo (`beat_grid`), or the decision between the two (`beats`).

First the tempo: the pulse evidence of overlapping windows, and the path through it that has the most evidence
while tempo moves little from window to window (Viterbi). Then the beats: the chain of frames with the most
onset whose distances keep to that tempo (dynamic programming after Ellis, "Beat tracking by dynamic
programming", JNMR 2007, with a period that follows the path).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from montage_assets.media.beat_grid import (
    RHYTHMIC_Z,
    WINDOW_STEP_S,
    Floats,
    envelope_windows,
    tempo_axis,
    tempo_prior,
    vertex,
    window_evidence,
)
from montage_assets.media.onsets import FRAMES_PER_S, Curve

_MOVE_COST = 60.0  # of evidence, for a doubled tempo; a ramp of 1 BPM a second costs little
_JUMP_COST = 6.0  # a new tempo at once must win this much evidence over the windows after it
_JUMP = 0.05  # relative tempo change between windows that no player makes in passing
_PERIOD_COST = 150.0  # of onset strength, for a beat distance e times the period; 0.4 to move it by 5 %
_SMOOTHING_S = 0.015


@dataclass(frozen=True)
class LocalBeats:
    """Beats with their tempo path. `evidence` is the mean z-score of the path's pulse over the windows."""

    beats_s: Floats
    path_times_s: Floats
    path_bpm: Floats
    evidence: float
    rhythmic_share: float
    """Of the windows, how many have a pulse that chance onsets do not reach."""

    def jumps_s(self) -> list[float]:
        """When the tempo changes at once, where the chain may come to stand on the other half beat."""
        moved = np.abs(np.diff(np.log(self.path_bpm))) > _JUMP
        return [float(time) + WINDOW_STEP_S / 2.0 for time in self.path_times_s[:-1][moved]]


def track_local_beats(envelope: Curve) -> LocalBeats:
    """Beats from the first to the last onset the song has; `envelope` as `onsets.onset_envelope` gives it."""
    windows, starts_s = envelope_windows(envelope)
    bpm = tempo_axis()
    evidence = window_evidence(windows, bpm)
    path = _tempo_path(evidence * tempo_prior(bpm), bpm)
    along = evidence[np.arange(len(path)), path]
    middles_s = starts_s + windows.shape[1] / FRAMES_PER_S / 2.0
    path_bpm = _between_steps(evidence, path, bpm)
    frames_s = np.arange(len(envelope)) / FRAMES_PER_S
    period = 60.0 / np.interp(frames_s, middles_s, path_bpm) * FRAMES_PER_S
    return LocalBeats(
        beats_s=_beat_chain(_with_half_beats(_smoothed(envelope), period), period) / FRAMES_PER_S,
        path_times_s=middles_s,
        path_bpm=path_bpm,
        evidence=float(along.mean()),
        rhythmic_share=float(np.mean(along >= RHYTHMIC_Z)),
    )


def _tempo_path(evidence: Floats, bpm: Floats) -> NDArray[np.int64]:
    """Index of the tempo in every window."""
    octaves = np.log2(bpm)
    cost = np.minimum(_MOVE_COST * np.abs(octaves[:, None] - octaves[None, :]), _JUMP_COST)
    score = evidence[0]
    came_from = np.zeros(evidence.shape, np.int64)
    for window in range(1, len(evidence)):
        reached = score[None, :] - cost
        came_from[window] = reached.argmax(axis=1)
        score = reached.max(axis=1) + evidence[window]
    path = np.zeros(len(evidence), np.int64)
    path[-1] = int(score.argmax())
    for window in range(len(evidence) - 1, 0, -1):
        path[window - 1] = came_from[window, path[window]]
    return path


def _between_steps(evidence: Floats, path: NDArray[np.int64], bpm: Floats) -> Floats:
    """The path's tempo with the parabola through each maximum and its neighbours."""
    found = np.empty(len(path))
    for window, at in enumerate(path):
        step = vertex(*evidence[window, at - 1 : at + 2]) if 0 < at < len(bpm) - 1 else 0.0
        found[window] = np.exp(np.interp(at + step, np.arange(len(bpm)), np.log(bpm)))
    return found


def _smoothed(envelope: Curve) -> Floats:
    reach = round(4 * _SMOOTHING_S * FRAMES_PER_S)
    offsets = np.arange(-reach, reach + 1) / FRAMES_PER_S
    kernel = np.exp(-0.5 * (offsets / _SMOOTHING_S) ** 2)
    smooth: Floats = np.convolve(envelope.astype(np.float64), kernel / kernel.sum(), mode="same")
    spread = float(smooth.std())
    return smooth / spread if spread > 1e-6 else smooth


def _with_half_beats(onset: Floats, period: Floats) -> Floats:
    """The onset here, and the mean of those half a beat before and after.

    Without it the chain would change to the off-beats wherever these are louder for a while. With it, which
    of the two it is on is the same for the whole song, and is decided once, afterwards.
    """
    frames = np.arange(len(onset))
    around = np.interp(frames - period / 2.0, frames, onset) + np.interp(frames + period / 2.0, frames, onset)
    both: Floats = onset + around / 2.0
    return both


def _beat_chain(onset: Floats, period: Floats) -> Floats:
    """Frames of the beats, between frames where the onset's peak lies there."""
    shortest, longest = int(period.min() * 0.6), int(period.max() * 1.7) + 1
    distances = np.arange(longest, shortest - 1, -1)
    log_distance = np.log(distances)
    log_period = np.log(period)
    count = len(onset)
    score = np.zeros(count + longest)  # the first `longest` entries are the time before the song
    came_from = np.full(count, -1, np.int64)
    for frame in range(count):
        before = score[frame : frame + len(distances)] - _PERIOD_COST * (log_distance - log_period[frame]) ** 2
        best = int(before.argmax())
        score[frame + longest] = onset[frame] + before[best]
        came_from[frame] = frame - distances[best]
    last = count - 1 - int(period[-1])
    frame = last + 1 + int(score[longest + last + 1 :].argmax()) if last > 0 else int(score[longest:].argmax())
    chain = []
    while frame >= 0:
        chain.append(frame)
        frame = int(came_from[frame])
    return np.array([_peak_near(onset, beat) for beat in reversed(chain)])


def _peak_near(onset: Floats, frame: int) -> float:
    inside = 0 < frame < len(onset) - 1
    return frame + (vertex(*onset[frame - 1 : frame + 2]) if inside else 0.0)
