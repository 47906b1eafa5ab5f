"""Decide cuts with TransNet V2: which windows of a clip it is shown, and what its answers mean.

Belongs here: the detectors `transnetv2` and `hybrid` as pure functions of recorded scores and answers. Does not belong
here: the network (`transnet`) and PySceneDetect's detectors (`scenes`).

`transnetv2` shows the network every frame. `hybrid` goes by the change of picture between a frame and the one before
it (PySceneDetect's content score) and by how far that stands out from its neighbours' (the idea of its adaptive
detector): what stands out far and stays changed is a cut, what hardly does is none, and of what lies between the
network is shown a short window. The borders of that middle are wide: see the constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from montage_assets.media.clip import Clip
from montage_assets.media.frame_scores import FrameScores
from montage_assets.media.scenes import SceneList, scene_list
from montage_assets.media.transnet import Window, windows_of_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

NeuralName = Literal["transnetv2", "hybrid"]
NEURAL_DETECTORS: tuple[NeuralName, ...] = get_args(NeuralName)

ALGORITHM = 1
"""Part of every answer's key; raised whenever a change here moves a window."""

DEFAULT_THRESHOLD = 0.3
"""Of the network's probability. On 97 cuts that were viewed F1 was 0.995 at 0.3, 0.979 at 0.5 and 0.946 at 0.7."""

# Chosen on film made of pieces of single shots, of 5 to 60 frames, a third of it darkened, with flashes of one and two
# frames (benchmarks/neural.py makes it), not by what gave the most on the clips whose cuts were viewed.
LOOSE_SCORE, LOOSE_RATIO = 8.0, 2.3
"""What has less of either is no cut. PySceneDetect's own thresholds are 15 and 3."""
CLEAR_SCORE, CLEAR_RATIO = 20.0, 5.0
"""What has this much of both is a cut without asking, if nothing near it does as well. A flash of one or two frames
cannot have the ratio: its end is one of its beginning's neighbours."""
NEAR_FRAMES = 4
NEIGHBOURS = 2
"""Frames on each side that a score is compared with, as in PySceneDetect's adaptive detector."""
_LEAST_NEIGHBOUR = 1.0
"""Still pictures differ by nothing; without this the smallest change would stand out endlessly."""

LOOK_FRAMES = 32
"""Length of the window around a proposal."""
LOOKED_SHARE = 0.12
"""At most so many frames are shown, as a share of the clip's: the strongest proposals count. It bounds the cost at
about that of the scores, whatever flickers in a clip."""
_LEAST_LOOKS = 4


@dataclass(frozen=True)
class Proposal:
    """A frame that may begin a shot; `clear` when it does without asking the network."""

    frame: int
    score: float
    ratio: float
    clear: bool


def windows_for(detector: NeuralName, scores: FrameScores) -> list[Window]:
    """What the network is to be shown of a clip; nothing for a hybrid that has no doubt."""
    if detector == "transnetv2":
        return windows_of_all(scores.frames)
    return [_window_around(proposal) for proposal in proposals(scores) if not proposal.clear]


def scenes_of_answers(
    detector: NeuralName,
    clip: Clip,
    scores: FrameScores,
    answers: Sequence[NDArray[np.float32]],
    threshold: float | None = None,
) -> SceneList:
    """The cuts of a clip, given the network's answers to the windows of `windows_for`, in their order.

    `threshold` is the network's probability, 0 to 1.
    """
    least = DEFAULT_THRESHOLD if threshold is None else threshold
    if detector == "transnetv2":
        return scene_list(clip, scores, cuts_of_probabilities(np.concatenate(answers), least))
    found = proposals(scores)
    doubtful = [proposal for proposal in found if not proposal.clear]
    confirmed = {
        proposal.frame for proposal, answer in zip(doubtful, answers, strict=True) if float(answer.max()) > least
    }
    cuts = [proposal.frame for proposal in found if proposal.clear or proposal.frame in confirmed]
    return scene_list(clip, scores, cuts)


def cuts_of_probabilities(probabilities: NDArray[np.float32], threshold: float) -> list[int]:
    """First frames of new scenes: those after a run of frames above the threshold, as the network's authors have it."""
    above = (probabilities > threshold).astype(np.int8)
    ends = np.flatnonzero(np.diff(above) == -1) + 1
    return [int(frame) for frame in ends if frame < len(probabilities)]


def proposals(scores: FrameScores) -> list[Proposal]:
    """The frames of a clip that may begin a shot, in order. O(frames)."""
    change = _content_scores(scores)
    ratio = change / np.maximum(_mean_of_neighbours(change), _LEAST_NEIGHBOUR)
    standing_out = np.flatnonzero((change >= LOOSE_SCORE) & (ratio >= LOOSE_RATIO))
    peaks = [int(frame) for frame in standing_out if frame > 0 and _is_peak(change, int(frame))]
    found = []
    for frame in peaks:
        alone = not any(
            other != frame and abs(other - frame) <= NEAR_FRAMES and change[other] > change[frame] / 2
            for other in peaks
        )
        clear = alone and change[frame] >= CLEAR_SCORE and ratio[frame] >= CLEAR_RATIO
        found.append(Proposal(frame, float(change[frame]), float(ratio[frame]), bool(clear)))
    return _within_bounds(found, scores.frames)


def _within_bounds(found: Sequence[Proposal], frames: int) -> list[Proposal]:
    most = max(_LEAST_LOOKS, int(LOOKED_SHARE * frames) // LOOK_FRAMES)
    doubtful = sorted(
        (each for each in found if not each.clear), key=lambda each: (-each.score * each.ratio, each.frame)
    )
    dropped = {each.frame for each in doubtful[most:]}
    return [each for each in found if each.frame not in dropped]


def _window_around(proposal: Proposal) -> Window:
    start = proposal.frame - LOOK_FRAMES // 2
    # The network marks the last frame of the shot before, or the first of the next.
    return Window(start, LOOK_FRAMES, proposal.frame - 2, proposal.frame + 1)


def _content_scores(scores: FrameScores) -> NDArray[np.float64]:
    """PySceneDetect's content score with its own weights: hue, saturation and value alike."""
    total = scores.delta_hue.astype(np.float64) + scores.delta_sat + scores.delta_val
    return total / (3.0 * scores.pixels)


def _mean_of_neighbours(change: NDArray[np.float64]) -> NDArray[np.float64]:
    # The first frame is compared with none; its score of 0 says nothing.
    known = np.concatenate([np.zeros(NEIGHBOURS), np.arange(len(change)) > 0, np.zeros(NEIGHBOURS)])
    padded = np.concatenate([np.zeros(NEIGHBOURS), change, np.zeros(NEIGHBOURS)])
    offsets = [offset for offset in range(2 * NEIGHBOURS + 1) if offset != NEIGHBOURS]
    total = sum((padded[offset : offset + len(change)] for offset in offsets), np.zeros(len(change)))
    count = sum((known[offset : offset + len(change)] for offset in offsets), np.zeros(len(change)))
    return total / np.maximum(count, 1)


def _is_peak(change: NDArray[np.float64], frame: int) -> bool:
    """Whether no frame beside has a higher score; of equal ones the first counts."""
    before = change[max(0, frame - NEIGHBOURS) : frame]
    after = change[frame + 1 : frame + 1 + NEIGHBOURS]
    return bool((before < change[frame]).all() and (after <= change[frame]).all())
