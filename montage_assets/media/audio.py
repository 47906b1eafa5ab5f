"""The sound of a file as plain samples: one channel, one rate, decoded by the pipeline's ffmpeg.

Belongs here: decoding and refusing what cannot be used as a song. Does not belong here: what the samples
mean (`onsets`, `beats`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from montage_assets.media.errors import FfmpegFailed, MediaError
from montage_assets.media.ffmpeg import ffmpeg_output, input_args

Samples = NDArray[np.float32]

SHORTEST_S = 2.0
"""Less sound than this has no use: it holds no four beats of any tempo."""

_SAMPLE_BYTES = 4
_LOUDEST = 8.0  # float files may exceed full scale, broken ones by orders of magnitude


def mono_blocks(path: str | os.PathLike[str], rate: int, block_s: float = 5.0) -> Iterator[Samples]:
    """The first audio stream, mixed to mono at `rate` Hz, in blocks of `block_s` seconds.

    A file that breaks off is read as far as it goes. Raises MediaError, after the last block at the latest,
    when the file is missing, has no sound, cannot be decoded, or gives less than `SHORTEST_S` of sound.
    """
    name = Path(path).name
    _refuse_what_is_no_file(path)
    block_bytes = max(1, round(block_s * rate)) * _SAMPLE_BYTES
    samples = 0
    failure: FfmpegFailed | None = None
    # Large frames from the resampler on: handing small ones on costs ffmpeg more than resampling.
    shape = f"aformat=sample_fmts=flt:channel_layouts=mono:sample_rates={rate},asetnsamples=n={rate}:p=0"
    args = [*input_args(path), "-map", "0:a:0", "-af", shape, "-f", "f32le", "-c:a", "pcm_f32le", "pipe:1"]
    try:
        with ffmpeg_output(args, what=f"decoding the sound of {name}") as stream:
            while data := stream.read(block_bytes):
                block = np.frombuffer(data, np.dtype("<f4"), count=len(data) // _SAMPLE_BYTES).copy()
                samples += len(block)
                np.nan_to_num(block, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
                yield np.clip(block, -_LOUDEST, _LOUDEST, out=block)
    except FfmpegFailed as error:  # of a file cut short, the part before the damage is still a song
        failure = error
    if samples < SHORTEST_S * rate:
        raise MediaError(_why_unusable(name, samples, rate, failure)) from failure


def load_mono(path: str | os.PathLike[str], rate: int) -> Samples:
    """All samples of `mono_blocks`, shape (n,): four bytes a sample, so 100 MB for 20 minutes at 22050 Hz.

    Raises MediaError as `mono_blocks` does.
    """
    return np.concatenate(list(mono_blocks(path, rate)))


def _refuse_what_is_no_file(path: str | os.PathLike[str]) -> None:
    file = Path(path)
    if not file.is_file():
        raise MediaError(f"{file.name} is no file; check that the song is where the montage expects it: {file}")
    if file.stat().st_size == 0:
        raise MediaError(f"{file.name} is empty; copy the song again")


def _why_unusable(name: str, samples: int, rate: int, failure: FfmpegFailed | None) -> str:
    if failure is not None and "matches no streams" in failure.log:
        return f"{name} has no sound; choose a file with an audio track"
    if failure is not None and samples == 0:
        return f"{name} is not an audio or video file that can be read; convert it or choose another song"
    return (
        f"{name} gives only {samples / rate:.1f} s of sound, at least {SHORTEST_S:g} s are needed; choose another song"
    )
