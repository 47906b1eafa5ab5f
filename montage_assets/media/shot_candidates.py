"""Shot candidates: which windows of the footage could be a shot, and how good each is by itself.

Belongs here: what makes a frame unusable, how measurements of unlike clips are made comparable, and the
grid of in-points with their terms. Does not belong here: which candidate fills which slot (`selection`).

All clips are laid end to end on one time axis, in order of name, so that every question about windows is a
few array operations over prefix sums, however many clips there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from montage_assets.media.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from numpy.typing import NDArray

    from montage_assets.media.clip import ClipSignals

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

SAME_MOMENT_S = 1e-6

MARGIN_S = 0.15
MARGIN_FRAMES = 2
"""Kept from scene borders, the longer of the two: detected cuts err by a frame, and people's hands shake as
they start and stop a camera."""

MOST_IN_POINTS = 16_000
"""In-points lie as close as this number of them allows: every frame of little footage, a grid over much."""

DARK_BRIGHTNESS, DARK_CONTRAST = 24.0, 12.0
BLOWN_BRIGHTNESS, BLOWN_CLIPPED = 236.0, 0.85
FEATURELESS_CONTRAST = 4.0
"""Luma levels (0..255). A dark frame with contrast is a night scene; one without is black."""

FROZEN_MOTION = 0.05
FROZEN_S = 0.5
"""Mean luma change per frame over `FROZEN_S`, below which the picture stands still. Measured at 256 pixels'
width: a still, encoded, comes to 0.00-0.04 (its keyframes pulse), the quietest real or drawn scene to 0.11. A
mean and not a single frame, because frame rate conversion repeats single frames of moving pictures."""

JOLT_RATIO, JOLT_MOTION = 6.0, 15.0
"""A change this many times its surroundings and this many levels: a flash, or a cut that was not detected."""

HOLE_S, HOLE_INTERVALS = 0.25, 4.0
"""A frame that stays longer than this, and than so many usual intervals, is a hole in the recording."""

UNUSABLE_KINDS = ("black", "blown_out", "frozen", "recording_gap", "flash")
"""What can be wrong with a frame; a shot's reasons use these names."""

CLIP_GAP_S = 10.0
"""Between clips on the common time axis; more than any smoothing reaches."""

SHORTEST_USEFUL_S = 0.35
"""Pieces of footage shorter than this make no shot."""


@dataclass(frozen=True)
class Footage:
    """All frames of all clips on one axis. Arrays are per frame, per scene or per clip, as grouped here.

    `scene_*` and `clip_*` first/end are frame indexes, end exclusive; times are seconds on the common axis.
    `good_runs` are (start, end) times of stretches within scene margins whose every frame is usable.
    """

    names: list[str]
    clip_first: Ints
    clip_end_s: Floats

    scene_first: Ints
    scene_clip: Ints
    scene_start_s: Floats
    scene_end_s: Floats
    scene_margin_s: Floats

    time_s: Floats
    own_time_s: Floats
    frame_clip: Ints
    frame_scene: Ints
    interval_s: Floats
    unusable: dict[str, Bools]
    quality: dict[str, Floats]

    signature_frame: Ints
    signatures: NDArray[np.float32]

    run_start_s: Floats
    run_end_s: Floats

    def total(self, values: Floats | Bools) -> Floats:
        """Prefix sums over frames, with a leading 0."""
        return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def lay_out(clips: Sequence[ClipSignals]) -> Footage:
    """The footage of all clips, independent of their order. Raises MediaError when there is no frame."""
    ordered = sorted((clip for clip in clips if len(clip.times_s)), key=lambda clip: clip.clip)
    if not ordered:
        raise MediaError("There is no usable clip to choose shots from; add clips to the montage folder.")
    names = [clip.clip for clip in ordered]
    if len(set(names)) < len(names):
        raise ValueError("every clip may be given once only")

    lengths = np.array([len(clip.times_s) for clip in ordered], dtype=np.int64)
    clip_first = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    frame_clip = np.repeat(np.arange(len(ordered)), lengths)
    own = np.concatenate([np.maximum.accumulate(np.asarray(c.times_s, np.float64)) for c in ordered])
    usual = np.array([_usual_interval(clip) for clip in ordered])
    ends = np.array([own[first + n - 1] for first, n in zip(clip_first, lengths, strict=True)]) + usual
    offsets = np.concatenate([[0.0], np.cumsum(ends + CLIP_GAP_S)[:-1]])
    time = own + offsets[frame_clip]
    clip_end = ends + offsets

    interval = np.diff(time, append=clip_end[-1])
    last_frames = clip_first + lengths - 1
    interval[last_frames] = usual

    scene_first = np.concatenate([first + _scene_starts(clip) for first, clip in zip(clip_first, ordered, strict=True)])
    scene_clip = frame_clip[scene_first]
    frame_scene = np.searchsorted(scene_first, np.arange(len(time)), "right") - 1
    scene_start = time[scene_first]
    following = np.append(scene_first[1:], len(time) - 1)
    ends_clip = np.append(scene_clip[1:] != scene_clip[:-1], True)
    scene_end = np.where(ends_clip, clip_end[scene_clip], time[following])
    margin = np.maximum(MARGIN_S, MARGIN_FRAMES * usual[scene_clip])

    motion = _joined(ordered, "motion")
    # The change at a cut is not motion; nor is the 0 that a first frame has.
    after_first = np.minimum(scene_first + 1, len(time) - 1)
    motion[scene_first] = motion[after_first]
    unusable = _unusable(ordered, time, motion, interval, usual[frame_clip], frame_scene, scene_end)
    runs = _good_runs(time, interval, frame_scene, scene_start, scene_end, margin, unusable)
    return Footage(
        names=names,
        clip_first=clip_first,
        clip_end_s=clip_end,
        scene_first=scene_first,
        scene_clip=scene_clip,
        scene_start_s=scene_start,
        scene_end_s=scene_end,
        scene_margin_s=margin,
        time_s=time,
        own_time_s=own,
        frame_clip=frame_clip,
        frame_scene=frame_scene,
        interval_s=interval,
        unusable=unusable,
        quality=_quality(ordered, time, motion, usual[frame_clip], clip_first, lengths),
        signature_frame=_signature_frames(ordered, clip_first),
        signatures=_signatures(ordered),
        run_start_s=runs[0],
        run_end_s=runs[1],
    )


def in_points(footage: Footage) -> Ints:
    """Frames that a shot may start on: each scene's first, and a grid from its margin on."""
    total = float((footage.scene_end_s - footage.scene_start_s).sum())
    step = total / MOST_IN_POINTS
    start = (footage.scene_start_s + footage.scene_margin_s)[footage.frame_scene]
    cell = np.floor((footage.time_s - start + SAME_MOMENT_S) / max(step, SAME_MOMENT_S))
    new_cell = np.diff(cell, prepend=-np.inf) != 0
    new_scene = np.diff(footage.frame_scene, prepend=-1) != 0
    return np.flatnonzero(new_cell | new_scene)


@dataclass(frozen=True)
class Windows:
    """Every window of one length that can be a shot; one entry per window.

    It shows the frames `first` up to, not including, `end`. `terms` are 0..1. `margin` is the part that is
    kept of the margin to the scene's borders (1 = all); `unusable` the shares of frames that should not be
    shown, by kind; `signature` the row that describes it, -1 for none.
    """

    length_s: float
    first: Ints
    end: Ints
    start_s: Floats
    clip: Ints
    scene: Ints
    margin: Floats
    unusable: dict[str, Floats]
    crosses_cut: bool
    terms: dict[str, Floats]
    signature: Ints


def windows(footage: Footage, starts: Ints, frames: int, fps: Fraction) -> Windows:
    """The windows that fill `frames` film frames; within one scene, or if there is none, across cuts.

    Empty when no clip is long enough.
    """
    length = float(frames / fps)
    begin = footage.time_s[starts]
    scene = footage.frame_scene[starts]
    clip = footage.frame_clip[starts]
    # The frame after the last may be sampled when rates are converted; at a clip's end there is none to fear.
    at_clip_end = footage.scene_end_s[scene] >= footage.clip_end_s[clip] - SAME_MOMENT_S
    tail = np.where(at_clip_end, 0.0, float(1 / fps))
    fits = begin + length + tail <= footage.scene_end_s[scene] + SAME_MOMENT_S
    crosses = not fits.any()
    if crosses:
        fits = begin + length <= footage.clip_end_s[clip] + SAME_MOMENT_S
    first, begin, scene, clip = starts[fits], begin[fits], scene[fits], clip[fits]
    end = np.searchsorted(footage.time_s, begin + length - SAME_MOMENT_S, "left").astype(np.int64)
    end = np.maximum(end, first + 1)

    room_before = begin - footage.scene_start_s[scene]
    room_after = footage.scene_end_s[scene] - begin - length
    margin = np.clip(np.minimum(room_before, room_after) / footage.scene_margin_s[scene], 0.0, 1.0)
    margin = np.where(margin > 1 - 1e-3, 1.0, margin)
    return Windows(
        length_s=length,
        first=first,
        end=end,
        start_s=begin,
        clip=clip,
        scene=scene,
        margin=margin,
        unusable={name: _share(footage, bad, first, end) for name, bad in footage.unusable.items()},
        crosses_cut=crosses,
        terms={name: _share(footage, value, first, end) for name, value in footage.quality.items()},
        signature=_nearest_signature(footage, first, end),
    )


def _share(footage: Footage, values: Floats | Bools, first: Ints, end: Ints) -> Floats:
    """Mean of `values` over each window; frames count for as long as they are shown."""
    weighted = footage.total(values * footage.interval_s)
    shown = footage.total(footage.interval_s)
    mean: Floats = (weighted[end] - weighted[first]) / np.maximum(shown[end] - shown[first], 1e-9)
    return np.clip(mean, 0.0, 1.0)


# --- from clips to arrays -----------------------------------------------------------------------------


def _joined(clips: Sequence[ClipSignals], name: str) -> Floats:
    parts = []
    for clip in clips:
        values = np.asarray(getattr(clip, name), dtype=np.float64)
        if len(values) != len(clip.times_s):
            raise ValueError(f"{clip.clip}: {len(values)} values of {name} for {len(clip.times_s)} frames")
        parts.append(np.nan_to_num(values))
    return np.concatenate(parts)


def _usual_interval(clip: ClipSignals) -> float:
    gaps = np.diff(np.asarray(clip.times_s, np.float64))
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if len(gaps) else 0.04


def _scene_starts(clip: ClipSignals) -> Ints:
    starts = np.unique(np.asarray([0, *clip.scene_starts], dtype=np.int64))
    inside: Ints = starts[(starts >= 0) & (starts < len(clip.times_s))]
    return inside


def _signature_frames(clips: Sequence[ClipSignals], clip_first: Ints) -> Ints:
    parts = [np.asarray(clip.signature_frames, np.int64) + first for clip, first in zip(clips, clip_first, strict=True)]
    return np.concatenate(parts)


def _signatures(clips: Sequence[ClipSignals]) -> NDArray[np.float32]:
    rows = [np.asarray(clip.signatures, np.float32) for clip in clips if len(clip.signature_frames)]
    return np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)


# --- what is not to be shown --------------------------------------------------------------------------


def _unusable(
    clips: Sequence[ClipSignals],
    time: Floats,
    motion: Floats,
    interval: Floats,
    usual: Floats,
    scene: Ints,
    scene_end: Floats,
) -> dict[str, Bools]:
    brightness, contrast = _joined(clips, "brightness"), _joined(clips, "contrast")
    clipped = _joined(clips, "clipped")
    featureless = contrast < FEATURELESS_CONTRAST
    dark = (brightness < DARK_BRIGHTNESS) & (contrast < DARK_CONTRAST)
    blown = (brightness > BLOWN_BRIGHTNESS) | ((clipped > BLOWN_CLIPPED) & (brightness > 190))
    masks = (
        dark | (featureless & (brightness < 128)),
        blown | (featureless & (brightness >= 128)),
        _frozen(time, motion, scene, scene_end),
        interval > np.maximum(HOLE_S, HOLE_INTERVALS * usual),
        _jolts(time, motion, scene),
    )
    return dict(zip(UNUSABLE_KINDS, masks, strict=True))


def _frozen(time: Floats, motion: Floats, scene: Ints, scene_end: Floats) -> Bools:
    """Frames that lie in some stretch of `FROZEN_S` whose mean motion is next to nothing."""
    total = np.concatenate([[0.0], np.cumsum(motion)])
    end = np.searchsorted(time, time + FROZEN_S - SAME_MOMENT_S, "left")
    end = np.minimum(end, np.searchsorted(scene, scene, "right"))
    start = np.arange(len(time))
    still = (total[end] - total[start]) / (end - start) < FROZEN_MOTION
    # A scene shorter than the stretch is judged as a whole.
    whole = (time + FROZEN_S <= scene_end[scene] + SAME_MOMENT_S) | (np.diff(scene, prepend=-1) != 0)
    marks = np.zeros(len(time) + 1)
    opening = np.flatnonzero(still & whole)
    np.add.at(marks, opening, 1)
    np.add.at(marks, end[opening], -1)
    covered: Bools = np.cumsum(marks)[:-1] > 0
    return covered


def _jolts(time: Floats, motion: Floats, scene: Ints) -> Bools:
    total = np.concatenate([[0.0], np.cumsum(motion)])
    low = np.maximum(np.searchsorted(time, time - 0.5), np.searchsorted(scene, scene, "left"))
    high = np.minimum(np.searchsorted(time, time + 0.5, "right"), np.searchsorted(scene, scene, "right"))
    around = (total[high] - total[low] - motion) / np.maximum(high - low - 1, 1)
    jolts: Bools = (motion > JOLT_MOTION) & (motion > JOLT_RATIO * around) & (high - low > 4)
    return jolts


def _good_runs(
    time: Floats,
    interval: Floats,
    scene: Ints,
    scene_start: Floats,
    scene_end: Floats,
    margin: Floats,
    unusable: dict[str, Bools],
) -> tuple[Floats, Floats]:
    bad = np.zeros(len(time), dtype=bool)
    for mask in unusable.values():
        bad |= mask
    earliest, latest = scene_start + margin, scene_end - margin
    inside = (time >= earliest[scene] - SAME_MOMENT_S) & (time < latest[scene] - SAME_MOMENT_S)
    good = inside & ~bad
    breaks = np.diff(scene, prepend=-1) != 0
    opens = good & (np.concatenate([[True], ~good[:-1]]) | breaks)
    closes = good & np.concatenate([~good[1:] | breaks[1:], [True]])
    start = time[opens]
    end = np.minimum((time + interval)[closes], latest[scene[closes]])
    return start, end


# --- measurements made comparable ---------------------------------------------------------------------

SHARPNESS_SPREAD, MOTION_SPREAD = 0.1, 0.35
"""Least spread (log10 and natural log) that counts as a difference, so that noise among equals does not."""


def _quality(
    clips: Sequence[ClipSignals],
    time: Floats,
    motion: Floats,
    usual: Floats,
    clip_first: Ints,
    lengths: Ints,
) -> dict[str, Floats]:
    sharp = _joined(clips, "sharpness")
    brightness, contrast = _joined(clips, "brightness"), _joined(clips, "contrast")
    clipped = _joined(clips, "clipped")
    # Half against all footage, half against its own clip: resolution and compression move a whole clip's
    # sharpness, focus and motion blur move it within the clip.
    own = np.concatenate(
        [_unit(sharp[f : f + n], SHARPNESS_SPREAD) for f, n in zip(clip_first.tolist(), lengths.tolist(), strict=True)]
    )
    smooth = _rolling_mean(time, motion, 0.25)
    # Per thirtieth of a second, so that a clip at 60 frames a second does not seem half as lively.
    lively = np.log(smooth / np.maximum(usual * 30, 0.1) + 0.05)
    dark_fade = np.clip((brightness - 20) / 60, 0, 1)
    light_fade = np.clip((240 - brightness) / 60, 0, 1)
    return {
        "sharpness": 0.5 * own + 0.5 * _unit(sharp, 3 * SHARPNESS_SPREAD),
        "liveliness": _unit(lively, MOTION_SPREAD),
        "exposure": np.minimum(dark_fade, light_fade) * (1 - np.clip(clipped, 0, 1)),
        "contrast": np.clip((contrast - 8) / 47, 0, 1),
        "steadiness": _steadiness(time, motion),
    }


def _unit(values: Floats, least_spread: float) -> Floats:
    """0..1 by robust z-score: the median is 0.5, two usual deviations about 0.05 and 0.95."""
    middle = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), least_spread)
    mapped: Floats = 1 / (1 + np.exp(-1.5 * np.clip((values - middle) / spread, -20, 20)))
    return mapped


def _steadiness(time: Floats, motion: Floats) -> Floats:
    """1 where motion is even (still, or a smooth move), towards 0 where it comes and goes: a shaking hand."""
    short = _rolling_mean(time, motion, 0.1)
    mean = _rolling_mean(time, short, 0.5)
    variance = np.maximum(_rolling_mean(time, short**2, 0.5) - mean**2, 0)
    uneven = np.sqrt(variance) / (mean + 0.5)
    steady: Floats = 1 / (1 + (uneven / 0.5) ** 2)
    return steady


def _rolling_mean(time: Floats, values: Floats, reach_s: float) -> Floats:
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.searchsorted(time, time - reach_s)
    high = np.searchsorted(time, time + reach_s, "right")
    mean: Floats = (total[high] - total[low]) / (high - low)
    return mean


def _nearest_signature(footage: Footage, first: Ints, end: Ints) -> Ints:
    """The signature nearest to each window's middle, of the same scene if there is one, else the clip's."""
    frames = footage.signature_frame
    if not len(frames):
        return np.full(len(first), -1, dtype=np.int64)
    middle = (first + end) // 2
    after = np.searchsorted(frames, middle)
    both = np.stack([np.maximum(after - 1, 0), np.minimum(after, len(frames) - 1)])
    distance = np.abs(frames[both] - middle).astype(np.float64)
    distance += np.where(footage.frame_scene[frames[both]] != footage.frame_scene[middle], 1e9, 0)
    distance += np.where(footage.frame_clip[frames[both]] != footage.frame_clip[middle], np.inf, 0)
    nearer = np.argmin(distance, axis=0)
    columns = np.arange(len(first))
    found: Ints = np.where(np.isfinite(distance[nearer, columns]), both[nearer, columns], -1)
    return found


# --- how much there is --------------------------------------------------------------------------------


def good_stretches_s(footage: Footage) -> Floats:
    """Lengths of the stretches to choose from: good ones, or where none is, the scenes as they are."""
    good = footage.run_end_s - footage.run_start_s
    useful = good[good >= SHORTEST_USEFUL_S]
    if len(useful):
        return useful
    scenes = footage.scene_end_s - footage.scene_start_s
    usable: Floats = scenes[scenes > SAME_MOMENT_S]
    return usable


def whole_seconds(stretches_s: Floats) -> float:
    """Seconds that shots can be cut from: the remainder of a long stretch rarely fits one."""
    return math.fsum(length if length < 1 else math.floor(length + SAME_MOMENT_S) for length in stretches_s)
