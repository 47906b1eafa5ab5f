"""Stabilisation: how much a shot shakes, and the filters that measure and smooth it (vid.stab, in two passes).

Belongs here: reading what vidstabdetect wrote, the decision whether and how strongly to smooth, the two filters. Does
not belong here: running them (`render`).

The second pass moves every picture back onto a smoothed camera path and enlarges it, so that no border shows. How much
it may be enlarged is its budget: the pinned ffmpeg's vid.stab calls its search L1 camera path optimisation and wants
one. It showed no border on any of seven shots of hand-held clips at 3, 5 and 10 %, where the Gaussian path at a zoom of
vid.stab's choice showed some. Paths of hand-held clips need up to 23 % to be followed whole; a tenth is enough for most
and costs little sharpness, and what moves more is only calmed.

Everything is counted in film frames' pixels, by single threads: the same on every node and for any number of threads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import filter_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shifts: TypeAlias = "NDArray[np.float64]"
"""(frames - 1, 2): how far the picture moved from each frame to the next, in pixels, right and down."""

ALGORITHM = 1
"""Part of a stabilised segment's key; raised whenever a change here changes a pixel."""

FEWEST_FRAMES = 8
"""Of the clip's own: of fewer no path can be told."""
LEAST_SHAKE = 0.0005
"""Of the picture's height; half a pixel of 1080. A shot that shakes less is left as it is, and as sharp."""
SMOOTHING_S = 0.5
"""The path is smoothed over so long to either side."""
MOST_ZOOM, LEAST_ZOOM = 10.0, 1.0
"""Per cent that the picture is enlarged by."""

_OUTLIER_PIXELS = 3.0
_FIELD = re.compile(r"\(LM (-?\d+) (-?\d+) ")
_FRAME = re.compile(r"^Frame \d+ ", re.MULTILINE)


@dataclass(frozen=True)
class Steadying:
    """How one shot is smoothed: over `smoothing` frames to either side, enlarged by `zoom` per cent."""

    smoothing: int
    zoom: float


def measuring_filter(result: Path) -> str:
    """The first pass, which writes what it finds to `result`."""
    return f"vidstabdetect=result={filter_value(result)}:fileformat=ascii:shakiness=5:accuracy=15"


def steadying_filter(result: Path, how: Steadying) -> str:
    """The second pass, for the very frames of the first."""
    return (
        f"vidstabtransform=input={filter_value(result)}:smoothing={how.smoothing}:optzoom=0:zoom={how.zoom:g}"
        ":interpol=bicubic:crop=keep"
    )


def read_shifts(result: Path) -> Shifts:
    """What the first pass found; nothing for a shot without a frame. Raises MediaError when there is no such file."""
    try:
        text = result.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"the movement of a shot could not be measured ({error}); set stabilize: off") from error
    # The first frame has none before it.
    frames = _FRAME.split(text)[2:]
    return np.array([_shift(frame) for frame in frames]).reshape(-1, 2)


def shake(shifts: Shifts) -> float:
    """By how many pixels the movement changes from frame to frame, on average; 0 for even pans."""
    if len(shifts) < 2:
        return 0.0
    return float(np.hypot(*np.diff(shifts, axis=0).T).mean())


def steadying(shifts: Shifts, size: tuple[int, int], fps: Fraction) -> Steadying | None:
    """How to smooth a shot of pictures of `size` (width, height); None for one that is too short or steady."""
    if len(shifts) + 1 < FEWEST_FRAMES or shake(shifts) < LEAST_SHAKE * size[1]:
        return None
    smoothing = max(FEWEST_FRAMES // 2, round(fps * Fraction(SMOOTHING_S)))
    path = np.cumsum(np.concatenate([np.zeros((1, 2)), shifts]), axis=0)
    off_path = np.abs(path - _smoothed(path, smoothing)).max(axis=0)
    needed = 100 * 2 * float((off_path / np.array(size)).max())
    return Steadying(smoothing, round(min(MOST_ZOOM, max(LEAST_ZOOM, needed)), 1))


def _shift(frame: str) -> tuple[float, float]:
    """The mean of its fields' shifts, of those that go with most: things that move by themselves do not count."""
    fields = np.array(_FIELD.findall(frame), np.float64)
    if len(fields) == 0:
        return 0.0, 0.0
    off = np.abs(fields - np.median(fields, axis=0)).max(axis=1)
    near = fields[off <= max(_OUTLIER_PIXELS, float(np.median(off)))]
    return float(near[:, 0].mean()), float(near[:, 1].mean())


def _smoothed(path: Shifts, reach: int) -> Shifts:
    """The path under a Gaussian window; beyond its ends it is taken to go on as it came."""
    reach = min(reach, len(path) - 1)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (reach / 2)) ** 2)
    longer = np.pad(path, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    columns = [np.convolve(longer[:, axis], window / window.sum(), mode="valid") for axis in (0, 1)]
    return np.stack(columns, axis=1)
