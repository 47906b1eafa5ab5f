"""Where a clip can be entered: its keyframes, found by seeking, without reading the whole file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from montage_assets.media.clip import Clip
from montage_assets.media.containers import open_media, picture_stream
from montage_assets.media.shards import KeyframeBefore

_PACKETS_AFTER_SEEK = 600


@contextlib.contextmanager
def keyframe_finder(path: Path, clip: Clip) -> Iterator[KeyframeBefore]:
    """A function that finds the keyframe at or before a time. None where seeking finds none."""
    from av.error import FFmpegError

    with open_media(path) as container:
        stream = picture_stream(container)

        def keyframe_before(target: int) -> int | None:
            if stream is None:
                return None
            try:
                container.seek(target, stream=stream, backward=True)
                best: int | None = None
                for count, packet in enumerate(container.demux(stream)):
                    time = packet.pts if packet.pts is not None else packet.dts
                    if time is None:
                        continue
                    if packet.is_keyframe and time <= target:
                        best = time
                    if time > target or count > _PACKETS_AFTER_SEEK:
                        break
                return best
            except FFmpegError:  # a container that cannot be entered there is scored in one shard
                return None

        yield keyframe_before
