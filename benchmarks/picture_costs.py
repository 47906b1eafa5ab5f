"""What grading and stabilisation cost for a frame, beside encoding it: `python -m benchmarks.picture_costs [CLIP]`.

Two seconds of a hand-held clip (default: the example's) at 1920x1080, as raw pictures, go through each filter as films
do, and through x264. CPU-milliseconds a frame, without those of reading the pictures; best and median of the rounds, in
turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from benchmarks.measuring import in_turns
from montage_assets.media.encoders import encode_flags, on_cpu
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import ffmpeg_version, input_args, run_ffmpeg
from montage_assets.media.grading import cube_text, grade_filters, look_lut
from montage_assets.media.picture import SDR_TAGS
from montage_assets.media.render import FILTER_THREADS
from montage_assets.media.stabilisation import measuring_filter, read_shifts, steadying, steadying_filter

_REPOSITORY = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, FPS, FRAMES = 1920, 1080, Fraction(24), 48
ROUNDS = 3
READING = "reading the pictures"


def costs_of(clip: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """Best and median of every step, in CPU-milliseconds a frame. Raises MediaError for a clip that does not shake."""
    pictures, measured, lut = folder / "pictures.nut", folder / "measured.trf", folder / "look.cube"
    scaled = f"fps={FPS},scale={WIDTH}:{HEIGHT}:flags=bicubic,setsar=1,format=yuv420p,{SDR_TAGS}"
    made = ["-map", "0:V:0", "-vf", scaled, "-frames:v", str(FRAMES), "-c:v", "rawvideo", str(pictures)]
    run_ffmpeg([*input_args(clip, "-an"), *made], what="preparing the pictures")
    lut.write_bytes(cube_text(look_lut("cinema")))
    _run(pictures, measuring_filter(measured))
    how = steadying(read_shifts(measured), (WIDTH, HEIGHT), FPS)
    if how is None:
        raise MediaError(f"{clip.name} does not shake in its first {FRAMES / FPS} s; name a hand-held clip")
    again = folder / "again.trf"
    steps: dict[str, Callable[[], None]] = {
        READING: partial(_run, pictures, "null"),
        "grade: to RGB, lut3d, and back": partial(_run, pictures, ",".join(grade_filters(lut))),
        "stabilize, first pass: vidstabdetect": partial(_run, pictures, measuring_filter(again)),
        "stabilize, second pass: vidstabtransform": partial(_run, pictures, steadying_filter(measured, how)),
    }
    for quality in ("standard", "high"):
        flags = encode_flags(on_cpu("h264"), quality, FPS, (WIDTH, HEIGHT))
        steps[f"libx264, quality {quality}"] = partial(_run, pictures, "null", flags)
    found = in_turns(steps, ROUNDS)
    idle = found.pop(READING)
    per_frame = 1000 / FRAMES
    return {
        name: ((cost.best - idle.best) * per_frame, (cost.median - idle.median) * per_frame)
        for name, cost in found.items()
    }


def _run(pictures: Path, filters: str, encode: Sequence[str] = ()) -> None:
    graph = ["-filter_complex_threads", str(FILTER_THREADS), "-filter_complex", f"[0:V:0]{filters}[out]"]
    reading = input_args(pictures)
    run_ffmpeg([*graph[:2], *reading, *graph[2:], "-map", "[out]", *encode, "-f", "null", "-"], what="measuring")


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.picture_costs", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("clip", nargs="?", type=Path, default=_REPOSITORY / "examples" / "demo" / "rooftop.mp4")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = costs_of(options.clip, Path(folder))
    lines = [f"{WIDTH}x{HEIGHT}, ffmpeg {ffmpeg_version()}", "", "| step | best | median |", "|-|-|-|"]
    lines += [f"| {name} | {best:.0f} ms | {median:.0f} ms |" for name, (best, median) in found.items()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
