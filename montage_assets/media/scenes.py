"""Decide cuts: a stock PySceneDetect detector, run once over recorded scores.

Belongs here: the detectors and the scene lists they give. Does not belong here: decoding (`frame_scores`).
Since the scores are recorded, another threshold or detector needs no decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError
from montage_assets.media.frame_scores import HISTOGRAM_BINS, FrameScores

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scenedetect import FrameTimecode, SceneDetector

DetectorName = Literal["adaptive", "content", "hash", "histogram", "threshold"]
DETECTORS: tuple[DetectorName, ...] = get_args(DetectorName)


@dataclass(frozen=True)
class SceneList:
    """The scenes of one clip. `cuts` are the first frames of every new scene, without frame 0."""

    clip: str
    fps: Fraction
    frames: int
    first_pts: int
    """Time of the first decoded frame, in the clip's time base; `cuts_s` counts from it."""
    cuts: list[int]
    cuts_s: list[float]
    """Times of the cuts in seconds from the clip's first frame."""

    @property
    def starts(self) -> list[int]:
        """First frame of every scene, frame 0 included."""
        return [0, *self.cuts]


def detect_scenes(
    clip: Clip, scores: FrameScores, detector: DetectorName = "adaptive", threshold: float | None = None
) -> SceneList:
    """Cuts of a whole clip by PySceneDetect's detector of that name, with its own defaults.

    `threshold` is the detector's own main threshold; None takes PySceneDetect's default.
    Raises MediaError for an unknown detector.
    """
    return scene_list(clip, scores, _run(_recorded_detector(detector, threshold, scores), clip, scores))


def scene_list(clip: Clip, scores: FrameScores, cuts: list[int]) -> SceneList:
    """The scenes that such cuts (first frames of new scenes, in order) leave of a clip."""
    times = (scores.pts - scores.pts[0]).astype(np.float64) * float(clip.time_base)
    return SceneList(
        clip=clip.name,
        fps=clip.fps,
        frames=scores.frames,
        first_pts=int(scores.pts[0]),
        cuts=cuts,
        cuts_s=[round(float(times[cut]), 6) for cut in cuts],
    )


def _run(detector: SceneDetector, clip: Clip, scores: FrameScores) -> list[int]:
    positions = frame_positions(clip, scores.pts)
    found: list[FrameTimecode] = []
    for index, position in enumerate(positions):
        found += detector.process_frame(position, _stand_in(index, scores))
    found += detector.post_process(positions[-1])
    frames = {_frame_at(cut, clip, scores.pts) for cut in found}
    return sorted(frames - {0})


def frame_positions(clip: Clip, pts: NDArray[np.int64]) -> list[FrameTimecode]:
    """The positions PySceneDetect's own backends give to frames of these timestamps."""
    from scenedetect.common import FrameTimecode, Timecode

    first = int(pts[0])
    return [FrameTimecode(Timecode(pts=int(value) - first, time_base=clip.time_base), fps=clip.fps) for value in pts]


def _frame_at(cut: FrameTimecode, clip: Clip, pts: NDArray[np.int64]) -> int:
    """Index of the frame nearest to a cut; the threshold detector puts cuts between frames."""
    ticks = float(cut.seconds / clip.time_base) + int(pts[0])
    right = int(np.searchsorted(pts, ticks))
    near = [index for index in (right - 1, right) if 0 <= index < len(pts)]
    return min(near, key=lambda index: abs(int(pts[index]) - ticks))


def _stand_in(index: int, scores: FrameScores) -> NDArray[np.float64]:
    """What a recorded detector is given for a frame: its number, and its mean as the mean of the array.

    The recorded detectors look up their scores by counting; the threshold detector takes the array's mean.
    """
    return np.array([scores.brightness_sum[index] / (3.0 * scores.pixels)])


def _recorded_detector(name: str, threshold: float | None, scores: FrameScores) -> SceneDetector:
    from scenedetect import detectors as stock

    chosen: dict[str, Any] = {}
    if name == "adaptive":
        if threshold is not None:
            chosen["adaptive_threshold"] = threshold
        return _with_recorded_content(stock.AdaptiveDetector, scores)(**chosen)
    if threshold is not None:
        chosen["threshold"] = threshold
    if name == "content":
        return _with_recorded_content(stock.ContentDetector, scores)(**chosen)
    if name == "hash":
        return _with_recorded_hash(stock.HashDetector, scores)(**chosen)
    if name == "histogram":
        return _with_recorded_correlation(stock.HistogramDetector, scores)(**chosen)
    if name == "threshold":
        return stock.ThresholdDetector(**chosen)
    raise MediaError(f"there is no scene detector {name!r}; choose one of {', '.join(DETECTORS)}")


def _with_recorded_content(base: Any, scores: FrameScores) -> Any:
    class RecordedContent(base):  # type: ignore[misc]
        def __init__(self, **chosen: Any) -> None:
            super().__init__(**chosen)
            self._next = iter(range(scores.frames))

        def _calculate_frame_score(self, timecode: Any, frame_img: Any) -> float:
            index = next(self._next)
            components = (scores.delta_hue[index], scores.delta_sat[index], scores.delta_val[index], 0)
            weighted = sum(
                float(component) / scores.pixels * weight
                for component, weight in zip(components, self._weights, strict=True)
            )
            return float(weighted / sum(abs(weight) for weight in self._weights))

    return RecordedContent


def _with_recorded_hash(base: Any, scores: FrameScores) -> Any:
    class RecordedHash(base):  # type: ignore[misc]
        def __init__(self, **chosen: Any) -> None:
            super().__init__(**chosen)
            # The stock detector hashes its second frame first, then, once, the first one it kept.
            self._order = iter([1, 0, *range(2, scores.frames)])

        def hash_frame(self, frame_img: Any, hash_size: int, factor: int) -> NDArray[np.uint8]:
            value = int(scores.perceptual_hash[next(self._order)])
            return np.unpackbits(np.frombuffer(value.to_bytes(8, "big"), np.uint8))

    return RecordedHash


def _with_recorded_correlation(base: Any, scores: FrameScores) -> Any:
    class RecordedHistogram(base):  # type: ignore[misc]
        """The stock decision; only the correlation itself is looked up instead of computed."""

        def __init__(self, **chosen: Any) -> None:
            super().__init__(bins=HISTOGRAM_BINS, **chosen)
            self._next = iter(range(scores.frames))
            self._last_cut: Any = None

        def process_frame(self, timecode: Any, frame_img: Any) -> list[Any]:
            index = next(self._next)
            if not self._last_cut:
                self._last_cut = timecode
            long_enough = (timecode - self._last_cut) >= self._min_scene_len
            if index and scores.histogram_correlation[index] <= self._threshold and long_enough:
                self._last_cut = timecode
                return [timecode]
            return []

    return RecordedHistogram
