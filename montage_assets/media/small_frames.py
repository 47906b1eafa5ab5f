"""The pictures that the neural scene detectors look at: every frame of a clip as 48x27 RGB.

Belongs here: recording them while the frames are scored, putting the shards' together, and their file. Does not
belong here: looking at them (`transnet`). A frame takes 3888 bytes, 600 to 2300 in the file; so no detector has to
decode the clip a second time.

TransNet V2 was trained on frames that ffmpeg had scaled to 48x27 whatever their shape. These are scaled from the
analysis frame (256 pixels on the long side) by averaging areas, which gave the same cuts.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from montage_assets.media.shards import ClipRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALGORITHM = 1
"""Part of every key; raised whenever a change here changes a pixel."""

WIDTH, HEIGHT = 48, 27


@dataclass(frozen=True)
class SmallFrames:
    """`pts` in the clip's time base; `pictures` has shape (frames, 27, 48, 3), RGB, uint8."""

    pts: NDArray[np.int64]
    pictures: NDArray[np.uint8]


class SmallFrameRecorder:
    """Keeps the small pictures of a range's own frames; give `add` to `frame_scores.score_range` as its watcher."""

    def __init__(self, part: ClipRange) -> None:
        self._after = part.after_pts
        self._pts: list[int] = []
        self._pictures: list[NDArray[np.uint8]] = []

    def add(self, pts: int, frame: NDArray[np.uint8]) -> None:
        """A decoded analysis frame, BGR; those before the range are left out."""
        import cv2

        if self._after is None or pts > self._after:
            self._pts.append(pts)
            self._pictures.append(cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[..., ::-1])

    def recorded(self) -> SmallFrames:
        """All that was added."""
        pictures = np.stack(self._pictures) if self._pictures else np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)
        return SmallFrames(np.array(self._pts, np.int64), pictures)


def merge_small_frames(shards: Sequence[SmallFrames]) -> SmallFrames:
    """The pictures of a whole clip from those of its shards, in order."""
    return SmallFrames(
        np.concatenate([shard.pts for shard in shards]), np.concatenate([shard.pictures for shard in shards])
    )


def dump_small_frames(frames: SmallFrames) -> bytes:
    """The pictures as a file: each as its difference to the one before, deflated."""
    import zlib

    changes = frames.pictures.copy()
    changes[1:] -= frames.pictures[:-1]
    out = io.BytesIO()
    np.savez(out, pts=frames.pts, deflated=np.frombuffer(zlib.compress(changes.tobytes(), 1), np.uint8))
    return out.getvalue()


def load_small_frames(data: bytes) -> SmallFrames:
    """Pictures from `dump_small_frames`' bytes."""
    import zlib

    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        pts, deflated = stored["pts"], stored["deflated"]
    changes = np.frombuffer(zlib.decompress(deflated.tobytes()), np.uint8).reshape(len(pts), HEIGHT, WIDTH, 3)
    return SmallFrames(pts, np.cumsum(changes, axis=0, dtype=np.uint8))
