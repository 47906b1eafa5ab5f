"""The film's frame size and rate, when the user leaves them to the footage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

from montage_assets.media.clip import Clip

MOST_LINES = 1080
"""Without being asked for more, the short side of the film is at most this: 4K costs four times the work."""

MOST_FPS = 60
STANDARD_RATES = [
    Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(48),
    Fraction(50), Fraction(60000, 1001), Fraction(60),
]  # fmt: skip


def film_size(clips: Sequence[Clip], asked: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height: as asked, else the shape of most of the footage (by seconds), at most 1080 lines."""
    if asked is not None:
        return asked
    seconds: dict[tuple[int, int], float] = defaultdict(float)
    for clip in clips:
        seconds[(clip.display_width, clip.display_height)] += clip.duration_s
    width, height = max(seconds, key=lambda size: (seconds[size], size))
    factor = min(Fraction(1), Fraction(MOST_LINES, min(width, height)))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def film_rate(clips: Sequence[Clip], asked: Fraction | None) -> Fraction:
    """Frame rate: as asked, else the standard rate nearest to that of most of the footage (by seconds)."""
    if asked is not None:
        return asked
    seconds: dict[Fraction, float] = defaultdict(float)
    for clip in clips:
        seconds[nearest_standard_rate(clip.fps)] += clip.duration_s
    return max(seconds, key=lambda rate: (seconds[rate], rate))


def nearest_standard_rate(rate: Fraction) -> Fraction:
    """The standard rate nearest to a clip's; faster clips (slow-motion sources) come down to 60."""
    return min(STANDARD_RATES, key=lambda standard: abs(standard - min(rate, Fraction(MOST_FPS))))
