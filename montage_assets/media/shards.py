"""Cut a montage's footage into shards of like cost, on real frame timestamps.

Belongs here: the plan. Does not belong here: what is done with a shard (`frame_scores`, `proxies`).

A shard is one worker's part of the montage's total footage: ranges of clips. A range owns the frames with
`after_pts < pts <= until_pts`. Borders are put on keyframes: the range before owns the keyframe, the range
after starts decoding at it, only to have the frame before its own first one, and discards what else it
decodes. So a border costs one frame, and leading pictures of an open GOP belong to the range that can
decode them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from montage_assets.media.clip import Clip


@dataclass(frozen=True)
class ClipRange:
    """One range of one clip, in the clip's time base; None is an open end."""

    clip: str
    index: int
    count: int
    after_pts: int | None
    until_pts: int | None
    cost: float
    """Estimated pixels to decode; only ratios count."""
    frames_estimate: int

    @property
    def title(self) -> str:
        """For logs: which part of which clip this is."""
        return self.clip if self.count == 1 else f"{self.clip} (part {self.index + 1} of {self.count})"


KeyframeBefore = Callable[[int], "int | None"]
"""Time of the keyframe at or before a time, both in the clip's time base; None when there is none."""

SHORTEST_RANGE_S = 20.0
"""A range costs a process and its borders; shorter pieces are not worth it."""

LONGEST_RANGE_S = 600.0
"""A finished range is never done again, so a killed run loses at most this much of a clip."""


def decode_cost(clip: Clip) -> float:
    """Estimated decoding cost of a whole clip: its pixels."""
    return float(clip.width) * clip.height * max(clip.frames_estimate, 1)


def ranges_per_clip(clips: Sequence[Clip], workers: int, shortest_s: float = SHORTEST_RANGE_S) -> dict[str, int]:
    """How many ranges each clip is cut into so that `workers` workers finish together.

    The montage's TOTAL footage is balanced, not each clip: with many clips and few workers nobody cuts
    anything. A clip is cut only where it alone is more than one worker's share.
    """
    total = sum(decode_cost(clip) for clip in clips)
    if total <= 0:
        return {clip.name: 1 for clip in clips}
    share = total / max(workers, 1)
    counts = {}
    for clip in clips:
        by_share = round(decode_cost(clip) / share)
        by_length = int(clip.duration_s // shortest_s)
        counts[clip.name] = max(1, min(by_share, by_length), math.ceil(clip.duration_s / LONGEST_RANGE_S))
    return counts


def cut_into_ranges(clip: Clip, count: int, keyframe_before: KeyframeBefore) -> list[ClipRange]:
    """At most `count` ranges of like length that cover the clip once, with borders on keyframes.

    Fewer come out where the clip has too few keyframes.
    """
    ticks = int(clip.duration_s / clip.time_base)
    borders: list[int] = []
    for part in range(1, count):
        key = keyframe_before(clip.first_pts + ticks * part // count)
        if key is not None and key > (borders[-1] if borders else clip.first_pts):
            borders.append(key)
    edges: list[int | None] = [None, *borders, None]
    ranges = list(pairwise(edges))
    return [
        ClipRange(
            clip=clip.name,
            index=index,
            count=len(ranges),
            after_pts=after,
            until_pts=until,
            cost=decode_cost(clip) * _share_of(clip, after, until, ticks),
            frames_estimate=round(clip.frames_estimate * _share_of(clip, after, until, ticks)),
        )
        for index, (after, until) in enumerate(ranges)
    ]


def _share_of(clip: Clip, after: int | None, until: int | None, ticks: int) -> float:
    start = clip.first_pts if after is None else after
    end = clip.first_pts + ticks if until is None else until
    return max(0.0, (end - start) / max(ticks, 1))
