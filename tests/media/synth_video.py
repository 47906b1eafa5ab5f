"""Small videos whose every frame says which clip and which frame it is, and the reading of that from a film.

A frame is a grid of ten columns and three rows of light and dark cells: the first row is its number
in binary, the second the clip's, the third the complement of that.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from montage_assets.media.clip import Clip
from montage_assets.media.ffmpeg import ffmpeg_program
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.render import RenderShot

COLUMNS, ROWS = 10, 3
DARK, LIGHT = 50, 205


def numbered_frame(number: int, clip: int, width: int = 160, height: int = 96) -> NDArray[np.uint8]:
    """Luma of one frame, shape (height, width)."""
    bits = [[(value >> (COLUMNS - 1 - column)) & 1 for column in range(COLUMNS)] for value in (number, clip, ~clip)]
    cells = np.where(np.array(bits), LIGHT, DARK).astype(np.uint8)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return cells[rows][:, columns]


def read_number(luma: NDArray[np.uint8]) -> tuple[int, int]:
    """(frame number, clip number) of a picture that shows a whole numbered frame."""
    height, width = luma.shape
    values = []
    for row in (0, 1):
        value = 0
        for column in range(COLUMNS):
            y, x = (2 * row + 1) * height // (2 * ROWS), (2 * column + 1) * width // (2 * COLUMNS)
            value = value * 2 + int(luma[y - 1 : y + 2, x - 1 : x + 2].mean() > (DARK + LIGHT) / 2)
        values.append(value)
    return values[0], values[1]


def numbers_in(path: Path) -> list[tuple[int, int]]:
    """(frame number, clip number) of every frame of a film, decoded by PyAV."""
    return [read_number(luma) for luma in lumas_in(path)]


def lumas_in(path: Path) -> list[NDArray[np.uint8]]:
    """Luma of every decoded frame, as coded (black is 16)."""
    return [luma_of(frame) for frame in frames_in(path)]


def luma_of(frame: av.VideoFrame) -> NDArray[np.uint8]:
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def frames_in(path: Path) -> list[av.VideoFrame]:
    """Every frame, decoded by PyAV. MPEG-TS is named, since that of a few packets is not recognised."""
    with av.open(str(path), format="mpegts" if path.suffix == ".ts" else None) as opened:
        return list(opened.decode(video=0))


def frame_times(path: Path, clip: Clip) -> list[Fraction]:
    """Exact seconds of every frame after the clip's first, in order of presentation."""
    return [
        Fraction(frame.pts or 0) * (frame.time_base or 1) - clip.first_pts * clip.time_base for frame in frames_in(path)
    ]


def make_video(
    path: Path,
    *,
    frames: int = 60,
    clip: int = 1,
    fps: Fraction | int = 25,
    size: tuple[int, int] = (160, 96),
    encode: Sequence[str] = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "12", "-bf", "2", "-qp", "12"),
    filters: str = "null",
    inputs: Sequence[str] = (),
    output: Sequence[str] = (),
    pictures: Sequence[NDArray[np.uint8]] | None = None,
) -> Path:
    """Write a numbered video (or `pictures`, luma each) with the pinned ffmpeg.

    `inputs` and `output` are further ffmpeg arguments, e.g. a tone to go with it.
    """
    if pictures is None:
        pictures = [numbered_frame(number, clip, *size) for number in range(frames)]
    height, width = pictures[0].shape
    command = [
        ffmpeg_program(), "-v", "error", "-y", *inputs,
        "-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0",
        "-vf", f"scale=out_range=tv,format=yuv420p,{filters}", *encode, *output, f"file:{path}",
    ]  # fmt: skip
    done = subprocess.run(command, input=b"".join(p.tobytes() for p in pictures), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return path


def tone(frequency: int, seconds: float, channels: int = 2, rate: int = 44100) -> list[str]:
    """Arguments of an input that is a sine tone."""
    layout = {1: "mono", 2: "stereo"}[channels]
    source = f"sine=f={frequency}:r={rate}:d={seconds},aformat=channel_layouts={layout}"
    return ["-f", "lavfi", "-i", source]


def clip_of(path: Path) -> Clip:
    return ingest_clip(path, path.name, path.name).clip


def shot_of(path: Path, clip: Clip, frame: int, frames: int, times: Sequence[Fraction]) -> RenderShot:
    """A shot that starts at the clip's frame number `frame`."""
    return RenderShot(path, clip, times[frame], frames)
