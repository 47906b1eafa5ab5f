"""How fast an encoder is and how good its pictures are here, and the quality number that makes them as good as x264's.

Belongs here: the test film, measuring one encoder at one level, finding its number for a wanted VMAF, and keeping
measurements of this machine. Does not belong here: whether an encoder works (`encoder_probe`), what is done with the
figures (`encoder_router`, `machine_encoders`, `benchmarks/encoders.py`).

Quality is VMAF (model vmaf_v0.6.1, mean over frames), by the libvmaf in the pinned ffmpeg. x264's levels are the
measure: a level means the same VMAF on every encoder, within `CLOSE_ENOUGH`. Above 99 VMAF tells little; there, two
encoders alike in the mean may differ in size.

Only hardware is calibrated per machine. The CPU's numbers stand in the table: they must be the same everywhere, or
segments from different machines would not look alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from montage_assets.media.encoder_probe import ffmpeg_identity, write_atomically
from montage_assets.media.encoders import Quality, ReadyEncoder, encode_output, encoder_filters
from montage_assets.media.errors import FfmpegFailed
from montage_assets.media.ffmpeg import run_ffmpeg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLOSE_ENOUGH = 0.5
"""VMAF points. Viewers notice about 6; other seconds of the same clips move the difference by as much as this."""

_STEPS = 7
"""Halvings when a number is sought: the coarsest scale, 255 steps, is then known to 2."""
_SPEED_LOOPS = 3
_SLOW_S = 4.0
_TIME_LIMIT_S = 300.0
_SCORE = re.compile(r"VMAF score: ([0-9.]+)")


@dataclass(frozen=True)
class TestFilm:
    """Raw 4:2:0 video: what is encoded, and what the result is compared with."""

    path: Path
    width: int
    height: int
    fps: Fraction
    frames: int

    __test__ = False


@dataclass(frozen=True)
class Measurement:
    """One encoder on one device at one level: its quality `number`, frames a second, VMAF (None: no libvmaf), size."""

    encoder: str
    device: str
    quality: Quality
    number: float
    fps: float
    vmaf: float | None
    kilobits_per_s: float


class MeasuredStore:
    """This machine's measurements in a folder; `folder` None keeps them in this process only."""

    def __init__(self, folder: Path | None, driver: str) -> None:
        self._folder = folder
        machine = f"{platform.node()} {platform.machine()} {os.cpu_count()} {driver}"
        self._machine = hashlib.sha256(machine.encode()).hexdigest()[:8]
        self._known: dict[str, Measurement] = {}

    def get(self, encoder: str, device: str, quality: Quality) -> Measurement | None:
        """What was measured for it, None if nothing was with this ffmpeg and these drivers."""
        key = self._key(encoder, device, quality)
        if key not in self._known and self._folder is not None:
            with contextlib.suppress(OSError, ValueError, TypeError):
                self._known[key] = Measurement(**json.loads((self._folder / f"{key}.json").read_text()))
        return self._known.get(key)

    def put(self, found: Measurement) -> None:
        """Keep a measurement; where the folder cannot be written to, for this process only."""
        key = self._key(found.encoder, found.device, found.quality)
        self._known[key] = found
        if self._folder is not None:
            with contextlib.suppress(OSError):
                write_atomically(self._folder / f"{key}.json", json.dumps(asdict(found)))

    def _key(self, encoder: str, device: str, quality: Quality) -> str:
        where = re.sub(r"\W+", "-", device)
        return f"measured-{self._machine}-{ffmpeg_identity()[:8]}-{encoder}{where}-{quality}"


def made_film(folder: Path, size: tuple[int, int] = (1280, 720), frames: int = 24) -> TestFilm:
    """A film with the statistics of pictures (amplitudes fall with frequency), a pan, moving things and grain.

    Tuned so that x264's levels are told apart as they are on real films: VMAF 89, 93, 96 from preview to high.
    """
    import numpy as np

    width, height = size
    dice = np.random.default_rng(7)
    wide = _texture(dice, height, 2 * width)
    things = [(_texture(dice, height // 4, width // 5), speed) for speed in (5, -9, 13)]
    path = folder / "film.yuv"
    with path.open("wb") as film:
        for number in range(frames):
            luma = wide[:, number : number + width].copy()
            for row, (thing, speed) in enumerate(things):
                left = (speed * number + row * width // 3) % (width - thing.shape[1])
                top = row * height // 3
                luma[top : top + thing.shape[0], left : left + thing.shape[1]] = thing
            luma += dice.normal(0, 0.5, luma.shape)
            film.write(np.clip(luma, 16, 235).astype(np.uint8).tobytes())
            small = luma[::2, ::2]
            for tint in (0.25, -0.2):
                film.write(np.clip(128 + tint * (small - 126), 16, 240).astype(np.uint8).tobytes())
    return TestFilm(path, width, height, Fraction(24), frames)


def _texture(dice: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Luma of shape (height, width) whose spectrum falls as a soft photograph's."""
    import numpy as np

    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(down, across)
    frequency[0, 0] = 1.0
    spectrum = np.exp(2j * np.pi * dice.random(frequency.shape)) / frequency**1.6
    spectrum[0, 0] = 0
    picture = np.fft.irfft2(spectrum, (height, width))
    return np.asarray(126 + 38 * picture / picture.std())


def measure(ready: ReadyEncoder, quality: Quality, film: TestFilm) -> Measurement:
    """Encode `film` at `quality`, for its speed and its VMAF. Raises FfmpegFailed when the encode fails."""
    with tempfile.TemporaryDirectory(prefix="montage-measure-") as folder:
        out = Path(folder) / f"film{ready.container.suffix}"
        seconds = _encode(ready, quality, film, out)
        size_bytes = out.stat().st_size
        vmaf = vmaf_of(ready, out, film)
        fps = film.frames / seconds
        if seconds < _SLOW_S:
            # Starting ffmpeg and a driver takes as long as encoding these few frames; more frames tell them apart.
            longer = _encode(ready, quality, film, out, _SPEED_LOOPS)
            more = longer - seconds
            # A busy machine may make the short run the slower one; then the long run alone tells the speed.
            fps = _SPEED_LOOPS * film.frames / more if more > longer / 4 else (_SPEED_LOOPS + 1) * film.frames / longer
    return Measurement(
        encoder=ready.name,
        device=ready.device,
        quality=quality,
        number=ready.number(quality),
        fps=round(fps, 1),
        vmaf=None if vmaf is None else round(vmaf, 2),
        kilobits_per_s=round(size_bytes * 8 / 1000 / float(film.frames / film.fps), 1),
    )


def vmaf_of(ready: ReadyEncoder, encoded: Path, film: TestFilm) -> float | None:
    """Mean VMAF of an encoded film, None where this ffmpeg has no libvmaf. Raises FfmpegFailed for other failures."""
    threads = os.cpu_count() or 1
    graph = f"[0:v]settb=AVTB,setpts=N[a];[1:v]settb=AVTB,setpts=N[b];[a][b]libvmaf=n_threads={threads}"
    try:
        log = run_ffmpeg(
            [
                "-f",
                ready.container.format,
                "-i",
                f"file:{encoded}",
                *_film_input(film),
                "-lavfi",
                graph,
                "-f",
                "null",
                "-",
            ],
            what=f"comparing {ready.name}'s film",
            timeout_s=_TIME_LIMIT_S,
            level="info",
        )
    except FfmpegFailed as failure:
        if "No such filter: 'libvmaf'" in failure.log:
            return None
        raise
    scores = _SCORE.findall(log)
    return float(scores[-1]) if scores else None


def calibrated(
    ready: ReadyEncoder, quality: Quality, targets: Sequence[float], films: Sequence[TestFilm]
) -> ReadyEncoder:
    """The encoder with the number at which the films' mean VMAF comes closest to that of `targets` at this level.

    Raises FfmpegFailed when an encode fails or VMAF cannot be had.
    """
    target = sum(targets) / len(targets)
    worst, best = ready.encoder.scale
    whole = abs(best - worst) > 10
    found, closest = ready, float("inf")
    for _ in range(_STEPS):
        number = (worst + best) / 2
        trial = with_number(ready, quality, float(round(number)) if whole else round(number, 3))
        score = _mean_vmaf(trial, quality, films)
        if abs(score - target) < closest:
            found, closest = trial, abs(score - target)
        if closest <= CLOSE_ENOUGH / 3:
            break
        worst, best = (number, best) if score < target else (worst, number)
    return found


def with_number(ready: ReadyEncoder, quality: Quality, number: float) -> ReadyEncoder:
    """The encoder with another quality number at one level."""
    return replace(ready, numbers={**(ready.numbers or ready.encoder.numbers), quality: number})


def _mean_vmaf(ready: ReadyEncoder, quality: Quality, films: Sequence[TestFilm]) -> float:
    scores = []
    with tempfile.TemporaryDirectory(prefix="montage-measure-") as folder:
        for film in films:
            out = Path(folder) / f"film{ready.container.suffix}"
            _encode(ready, quality, film, out)
            score = vmaf_of(ready, out, film)
            if score is None:
                raise FfmpegFailed(
                    "This ffmpeg has no libvmaf; unset MONTAGE_FFMPEG to calibrate with the built-in one"
                )
            scores.append(score)
    return sum(scores) / len(scores)


def _encode(ready: ReadyEncoder, quality: Quality, film: TestFilm, out: Path, loops: int = 0) -> float:
    """Encode as production does; seconds of wall time."""
    begin = time.monotonic()
    run_ffmpeg(
        [
            *ready.device_flags,
            "-stream_loop", str(loops), *_film_input(film),
            "-vf", ",".join([_TAGGED, *encoder_filters(ready)]),
            *encode_output(ready, quality, film.fps, (film.width, film.height), film.frames * (loops + 1), out),
        ],
        what=f"encoding the test film with {ready.name}",
        timeout_s=_TIME_LIMIT_S,
    )  # fmt: skip
    return time.monotonic() - begin


_TAGGED = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv,setsar=1"


def _film_input(film: TestFilm) -> list[str]:
    size = f"{film.width}x{film.height}"
    raw = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", size, "-r", str(film.fps), "-color_range", "tv"]
    return [*raw, "-i", f"file:{film.path}"]
