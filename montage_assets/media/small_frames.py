"""The pictures that the neural scene detectors look at: every frame of a clip as 48x27 RGB.

Belongs here: recording them while the frames are scored, putting the shards' together, and their file. Does not
belong here: looking at them (`transnet`). A frame takes 600 to 2300 bytes, deflated in blocks, of which only those
are inflated that are looked at: hours of footage fit into memory. So no detector has to decode the clip a second time.

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

ALGORITHM = 2
"""Part of every key; raised whenever a change here changes a pixel or the file."""

WIDTH, HEIGHT = 48, 27
_BLOCK_FRAMES = 128
_SHAPE = (HEIGHT, WIDTH, 3)


class PackedPictures:
    """Many pictures, deflated in blocks. Indexing by an array of numbers gives (numbers, 27, 48, 3), RGB, uint8."""

    def __init__(self, blocks: Sequence[bytes], frames: Sequence[int]) -> None:
        self.blocks, self.frames = list(blocks), list(frames)
        self._starts = np.cumsum([0, *self.frames])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        found = np.empty((len(numbers), *_SHAPE), np.uint8)
        homes = np.searchsorted(self._starts, numbers, side="right") - 1
        for block in np.unique(homes):
            of_it = homes == block
            found[of_it] = _inflated(self.blocks[block])[numbers[of_it] - self._starts[block]]
        return found

    def all(self) -> NDArray[np.uint8]:
        """Every picture, (frames, 27, 48, 3)."""
        return self[np.arange(len(self))]


@dataclass(frozen=True)
class SmallFrames:
    """The small pictures of consecutive frames; `pts` in the clip's time base."""

    pts: NDArray[np.int64]
    pictures: PackedPictures


class SmallFrameRecorder:
    """Keeps the small pictures of a range's own frames; give `add` to `frame_scores.score_range` as its watcher."""

    def __init__(self, part: ClipRange) -> None:
        self._after = part.after_pts
        self._pts: list[int] = []
        self._pictures: list[NDArray[np.uint8]] = []
        self._blocks: list[bytes] = []
        self._frames: list[int] = []

    def add(self, pts: int, frame: NDArray[np.uint8]) -> None:
        """A decoded analysis frame, BGR; those before the range are left out."""
        import cv2

        if self._after is not None and pts <= self._after:
            return
        self._pts.append(pts)
        self._pictures.append(cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[..., ::-1])
        if len(self._pictures) == _BLOCK_FRAMES:
            self._pack()

    def recorded(self) -> SmallFrames:
        """All that was added."""
        self._pack()
        return SmallFrames(np.array(self._pts, np.int64), PackedPictures(self._blocks, self._frames))

    def _pack(self) -> None:
        if self._pictures:
            self._blocks.append(_deflated(np.stack(self._pictures)))
            self._frames.append(len(self._pictures))
            self._pictures = []


def packed(pictures: NDArray[np.uint8]) -> PackedPictures:
    """Pictures (frames, 27, 48, 3) in blocks."""
    blocks = [pictures[start : start + _BLOCK_FRAMES] for start in range(0, len(pictures), _BLOCK_FRAMES)]
    return PackedPictures([_deflated(block) for block in blocks], [len(block) for block in blocks])


def merge_small_frames(shards: Sequence[SmallFrames]) -> SmallFrames:
    """The pictures of a whole clip from those of its shards, in order."""
    return SmallFrames(
        np.concatenate([shard.pts for shard in shards]),
        PackedPictures(
            [block for shard in shards for block in shard.pictures.blocks],
            [frames for shard in shards for frames in shard.pictures.frames],
        ),
    )


def dump_small_frames(small: SmallFrames) -> bytes:
    """The pictures as a file."""
    out = io.BytesIO()
    np.savez(
        out,
        pts=small.pts,
        frames=np.array(small.pictures.frames, np.int64),
        sizes=np.array([len(block) for block in small.pictures.blocks], np.int64),
        deflated=np.frombuffer(b"".join(small.pictures.blocks), np.uint8),
    )
    return out.getvalue()


def load_small_frames(data: bytes) -> SmallFrames:
    """Pictures from `dump_small_frames`' bytes."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        pts, frames, sizes, deflated = (stored[name] for name in ("pts", "frames", "sizes", "deflated"))
    ends = np.cumsum(sizes)
    blocks = [deflated[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]
    return SmallFrames(pts, PackedPictures(blocks, frames.tolist()))


def _deflated(pictures: NDArray[np.uint8]) -> bytes:
    """Each as its difference to the one before."""
    import zlib

    changes = pictures.copy()
    changes[1:] -= pictures[:-1]
    return zlib.compress(changes.tobytes(), 1)


def _inflated(block: bytes) -> NDArray[np.uint8]:
    import zlib

    changes = np.frombuffer(zlib.decompress(block), np.uint8).reshape(-1, *_SHAPE)
    return np.cumsum(changes, axis=0, dtype=np.uint8)
