"""Small clips with known cuts: panned random textures, one per scene."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from montage_assets.media.ffmpeg import ffmpeg_program

SIZE = (192, 108)
X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "20", "-g", "12", "-pix_fmt", "yuv420p")
OPEN_GOP = (
    "-c:v", "libx264", "-preset", "medium", "-crf", "23", "-g", "15", "-bf", "3", "-pix_fmt", "yuv420p",
    "-x264-params", "open-gop=1:scenecut=0:keyint=15:min-keyint=15",
)  # fmt: skip
HEVC_OPEN_GOP = (
    "-c:v", "libx265", "-preset", "ultrafast", "-crf", "26", "-pix_fmt", "yuv420p", "-tag:v", "hvc1",
    "-x265-params", "open-gop=1:keyint=15:min-keyint=15:scenecut=0:bframes=3:log-level=none",
)  # fmt: skip
VP8 = (
    "-c:v",
    "libvpx",
    "-b:v",
    "600k",
    "-g",
    "15",
    "-deadline",
    "realtime",
    "-auto-alt-ref",
    "1",
    "-lag-in-frames",
    "8",
)
MPEG2 = ("-c:v", "mpeg2video", "-b:v", "2M", "-g", "12", "-bf", "2")


def scene_frames(lengths: Sequence[int], seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """(frames, height, width, 3) RGB: a texture per scene, panned one pixel a frame."""
    random = np.random.default_rng(seed)
    width, height = size
    frames = []
    for length in lengths:
        tint = random.integers(40, 255, 3)
        coarse = random.integers(0, 256, (height // 12 + 2, (width + length) // 12 + 2))
        texture = np.kron(coarse, np.ones((12, 12)))[:, :, None] * tint / 255
        for step in range(length):
            frames.append(texture[:height, step : step + width].astype(np.uint8))
    return np.stack(frames)


def write_clip(
    path: Path,
    lengths: Sequence[int] = (40, 35, 45),
    *,
    seed: int = 1,
    fps: int = 25,
    size: tuple[int, int] = SIZE,
    encoder: Sequence[str] = X264,
    extra: Sequence[str] = (),
    inputs: Sequence[str] = (),
    filters: str = "null",
) -> list[int]:
    """Write a clip of scenes of these lengths (frames). Returns the first frames of its later scenes."""
    frames = scene_frames(lengths, seed, size)
    command = [
        ffmpeg_program(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}",
        "-r", str(fps), "-i", "pipe:0", *inputs, "-vf", filters, *encoder, *extra, f"file:{path}",
    ]  # fmt: skip
    subprocess.run(command, input=frames.tobytes(), check=True)
    return [int(start) for start in np.cumsum(lengths)[:-1]]


def write_song(path: Path, bpm: float = 120.0, duration_s: float = 14.0, rate: int = 22_050) -> None:
    """A drum pattern as WAV: kick on every beat, louder on every fourth, hats between."""
    import wave

    random = np.random.default_rng(3)
    samples = np.zeros(int(duration_s * rate), np.float32)
    beat_s = 60.0 / bpm
    for number in range(int(duration_s / beat_s)):
        kick = _hit(rate, 60, 0.12) * (1.0 if number % 4 == 0 else 0.7)
        _add(samples, int(number * beat_s * rate), kick)
        hat = random.normal(0, 0.2, int(0.02 * rate)) * np.linspace(1, 0, int(0.02 * rate))
        _add(samples, int((number + 0.5) * beat_s * rate), hat.astype(np.float32))
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.clip(samples, -1, 1) * 20_000).astype("<i2").tobytes())


def _hit(rate: int, hertz: float, seconds: float) -> NDArray[np.float32]:
    time = np.arange(int(seconds * rate)) / rate
    return (np.sin(2 * np.pi * hertz * time) * np.exp(-time * 30)).astype(np.float32)


def _add(samples: NDArray[np.float32], at: int, sound: NDArray[np.float32]) -> None:
    end = min(len(samples), at + len(sound))
    if at < end:
        samples[at:end] += sound[: end - at]
