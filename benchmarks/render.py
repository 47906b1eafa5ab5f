"""What rendering in segments costs: CPU-seconds against one ffmpeg for the whole film, and peak memory.

    python benchmarks/render.py CLIP... [--shots 24] [--shot-frames 30] [--size 1920x1080] [--json FILE]

The same shots, taken from the clips in turn and evenly over their length, are encoded twice with the same
settings: by one ffmpeg command, and as the pipeline does, in planned segments (every one checked) that are then
joined. Wall time is not compared: segments exist to be rendered side by side. Peak memory is the largest
of all ffmpeg processes of each kind.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from montage_assets.media.encoders import CODECS, QUALITIES, on_cpu
from montage_assets.media.ffmpeg import ffmpeg_version
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.join import join_segments
from montage_assets.media.render import OutputFormat, RenderShot, plan_segments, render_segment

TARGET_RATIO = 1.15


@dataclass(frozen=True)
class Cost:
    """CPU-seconds of user and system time, and the largest process's resident memory in MB."""

    cpu_s: float
    peak_mb: float


def cost_of(work: Callable[[], object]) -> Cost:
    """Run `work` in a forked process of its own, so that its children's peak memory is not another's."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            own = resource.getrusage(resource.RUSAGE_SELF)
            children = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = sum(usage.ru_utime + usage.ru_stime for usage in (own, children))
            os.write(sending, json.dumps([cpu, children.ru_maxrss / 1024]).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise SystemExit("the render failed")
    cpu_s, peak_mb = json.loads(told)
    return Cost(round(cpu_s, 2), round(peak_mb))


def shots_from(paths: list[Path], count: int, frames: int, fps: Fraction) -> list[RenderShot]:
    clips = [ingest_clip(path, path.name, path.name).clip for path in paths]
    shots = []
    for index in range(count):
        place = index % len(paths)
        clip, turn = clips[place], index // len(paths)
        turns = -(-count // len(paths))
        room_s = max(0.0, clip.duration_s - float(frames / fps))
        in_frame = int(room_s * turn / turns * clip.fps)
        shots.append(RenderShot(paths[place], clip, in_frame / clip.fps, frames))
    return shots


def compare(shots: list[RenderShot], fmt: OutputFormat) -> dict[str, object]:
    suffix = on_cpu(fmt.codec).container.suffix
    groups = plan_segments(shots, fmt.fps)
    with tempfile.TemporaryDirectory() as folder:

        def as_one() -> None:
            render_segment(shots, fmt, Path(folder) / f"whole{suffix}")

        def in_segments() -> None:
            segments = [
                render_segment([shots[index] for index in group], fmt, Path(folder) / f"{number}{suffix}")
                for number, group in enumerate(groups)
            ]
            join_segments(segments, fmt, Path(folder) / "film.mp4")

        whole, split = cost_of(as_one), cost_of(in_segments)
    ratio = split.cpu_s / whole.cpu_s
    return {
        "ffmpeg": ffmpeg_version(),
        "film": {"frames": sum(shot.frames for shot in shots), "shots": len(shots), "segments": len(groups)},
        "format": f"{fmt.width}x{fmt.height} {fmt.codec} {fmt.quality}",
        "one_command": asdict(whole),
        "segments": asdict(split),
        "cpu_ratio": round(ratio, 3),
        "within_target": ratio <= TARGET_RATIO,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--shots", type=int, default=24)
    parser.add_argument("--shot-frames", type=int, default=30)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--fps", type=Fraction, default=Fraction(30))
    parser.add_argument("--codec", choices=CODECS, default="h264")
    parser.add_argument("--quality", choices=QUALITIES, default="standard")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    fmt = OutputFormat(width, height, options.fps, options.codec, options.quality)
    result = compare(shots_from(options.clips, options.shots, options.shot_frames, options.fps), fmt)
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
