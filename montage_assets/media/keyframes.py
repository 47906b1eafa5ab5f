"""Where a clip can be entered: its keyframes, found by seeking, without reading the whole file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from montage_assets.media.clip import Clip
from montage_assets.media.ffmpeg import READABLE_FORMATS
from montage_assets.media.shards import KeyframeBefore

_PACKETS_AFTER_SEEK = 600


@contextlib.contextmanager
def keyframe_finder(path: Path, clip: Clip) -> Iterator[KeyframeBefore]:
    """A function that finds the keyframe at or before a time. None where seeking finds none."""
    import av
    from av.error import FFmpegError
    from av.stream import Disposition

    options = {"protocol_whitelist": "file", "format_whitelist": READABLE_FORMATS}
    with av.open(f"file:{path}", options=options, metadata_errors="ignore") as container:
        stream = next(s for s in container.streams.video if not s.disposition & Disposition.attached_pic)

        def keyframe_before(target: int) -> int | None:
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
