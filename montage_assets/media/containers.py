"""Opening a source file with PyAV: the guards against hostile media, and which of its streams is the picture.

Belongs here: what every reader of a container shares. Decoding is done by the pinned ffmpeg (`ffmpeg`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from montage_assets.media.ffmpeg import READABLE_FORMATS, input_path

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


def open_media(path: Path) -> InputContainer:
    """Open a file for reading packets. Raises av.FFmpegError or OSError when it is no readable container."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": READABLE_FORMATS}
    return av.open(input_path(path), options=options, metadata_errors="ignore")


def picture_stream(container: InputContainer) -> VideoStream | None:
    """The first stream of moving pictures, cover art left aside; the one that ffmpeg calls `0:V:0`."""
    from av.stream import Disposition

    moving = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(moving, None)
