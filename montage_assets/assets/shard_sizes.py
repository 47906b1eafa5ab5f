"""How many workers a montage's footage is worth, and how finely it is cut for them.

Belongs here: pure decisions on clips and speeds. Does not belong here: where the borders of the pieces fall
(`media.shards`) and what a shard's step does (`shard_steps`).
"""

from collections.abc import Mapping, Sequence

from montage_assets.cluster.distribution import balance
from montage_assets.media.clip import Clip
from montage_assets.media.shards import decode_cost, ranges_per_clip

_WORTH_A_WORKER = 4e10
"""Pixels to decode (about 11 minutes of 1080p at 30 fps) from which another process pays for itself."""

EVEN_ENOUGH = 0.95
"""Footage is cut finer until the workers are busy so much of the time until the last of them is done."""

WORTH_A_CUT = 0.005
"""What cutting one more clip must gain of the workers' time: each piece begins with a search for its keyframe."""

MOST_PIECES_PER_WORKER = 8


def workers_worth(clips: Sequence[Clip]) -> int:
    """How many workers pay for themselves on so much footage."""
    return max(1, int(sum(decode_cost(clip) for clip in clips) / _WORTH_A_WORKER))


def range_counts(clips: Sequence[Clip], speeds: Sequence[float]) -> dict[str, int]:
    """How many ranges each clip is cut into so that workers of such speeds finish together.

    Pieces as many as workers do where all are equally fast. A slow worker would hold up the rest with such a piece, or
    be left without one, so there the pieces are halved until they share out evenly enough. Halved, and not fitted to
    the speeds: those are measured anew in every run, and a run that goes on where another stopped must find its ranges.
    """
    best: dict[str, int] = {}
    busiest = 0.0
    finest = MOST_PIECES_PER_WORKER if len(speeds) > 1 else 1
    pieces_per_worker = 1
    while pieces_per_worker <= finest and busiest < EVEN_ENOUGH:
        counts = ranges_per_clip(clips, pieces_per_worker * len(speeds))
        busy = _share_of_time_busy(clips, counts, speeds)
        if busy > busiest:
            best, busiest = counts, busy
        pieces_per_worker *= 2
    return _finer_at_the_end(clips, best or ranges_per_clip(clips, len(speeds)), speeds)


def _finer_at_the_end(clips: Sequence[Clip], counts: Mapping[str, int], speeds: Sequence[float]) -> dict[str, int]:
    """The same, with those clips cut into a piece for each worker that one worker would be busy with when all others
    are done: 73 like clips on four nodes are 18 for each, and a quarter of the last one."""
    best, busiest = dict(counts), _share_of_time_busy(clips, counts, speeds)
    uncut = sorted((clip for clip in clips if counts[clip.name] == 1), key=decode_cost)
    for clip in uncut[: len(speeds) - 1]:
        finer = {**best, clip.name: ranges_per_clip([clip], len(speeds))[clip.name]}
        busy = _share_of_time_busy(clips, finer, speeds)
        if busy < busiest + WORTH_A_CUT:
            break
        best, busiest = finer, busy
    return best


def _share_of_time_busy(clips: Sequence[Clip], counts: Mapping[str, int], speeds: Sequence[float]) -> float:
    costs = [decode_cost(clip) / counts[clip.name] for clip in clips for _ in range(counts[clip.name])]
    shares = balance(costs, speeds)
    last = max(sum(costs[item] for item in share) / speed for share, speed in zip(shares, speeds, strict=True))
    return sum(costs) / sum(speeds) / last if last > 0 else 1.0
