"""What is known of one usable clip after ingest, and what its frames were measured to be.

Belongs here: the plain records that analysis, selection and rendering share. Does not belong here: how
they are obtained (`ingest`, `frame_scores`) or what is decided from them (`selection`, `render`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Transfer = Literal["sdr", "pq", "hlg"]
Matrix = Literal["bt709", "bt601", "bt2020"]


@dataclass(frozen=True)
class Clip:
    """One video file that the montage may use.

    `name` is the path relative to the montage folder, with forward slashes; it identifies the clip.
    `width` and `height` are coded pixels; `display_width` and `display_height` are what a viewer sees,
    after the sample aspect ratio and the rotation are applied.
    """

    name: str
    fingerprint: str
    size_bytes: int
    container: str
    codec: str
    pixel_format: str
    bit_depth: int
    width: int
    height: int
    display_width: int
    display_height: int
    sample_aspect: Fraction
    rotation: int
    """Degrees clockwise the decoded picture is turned for display: 0, 90, 180 or 270."""
    interlaced: bool
    fps: Fraction
    """Mean frame rate; the true timestamps are with the frame scores."""
    variable_rate: bool
    frames_estimate: int
    """Frames by the container's account; the true number is found when the clip is scored."""
    duration_s: float
    time_base: Fraction
    first_pts: int
    """Smallest presentation timestamp, in `time_base`; clip time 0 is here."""
    container_start_s: float
    """The container's own zero, which ffmpeg counts from: the earliest of all its streams."""
    transfer: Transfer
    matrix: Matrix
    full_range: bool
    audio_channels: int
    """0 when the clip has no sound."""
    audio_rate: int


@dataclass(frozen=True)
class LeftOut:
    """A file that is not used, and why, in words for the user."""

    clip: str
    reason: str


@dataclass(frozen=True)
class ClipSignals:
    """Per-frame measurements of one clip; every array has one entry per decoded frame, in display order.

    `times_s` are seconds from the clip's first frame. `sharpness` is the log10 of the variance of the
    Laplacian of the analysis frame. `motion` is the mean absolute luma difference to the previous frame
    (0..255, first frame 0). `brightness` and `contrast` are mean and standard deviation of luma (0..255).
    `clipped` is the share of pixels that are crushed black or blown white (0..1).
    `signatures` describe colour and layout of single frames (one row each, unit length) at
    `signature_frames`; the dot product of two rows says how alike two pictures are (1 = same).
    """

    clip: str
    times_s: NDArray[np.float64]
    scene_starts: list[int]
    """First frame of every scene; the first entry is 0."""
    sharpness: NDArray[np.float32]
    motion: NDArray[np.float32]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    clipped: NDArray[np.float32]
    signature_frames: NDArray[np.int64]
    signatures: NDArray[np.float32]
