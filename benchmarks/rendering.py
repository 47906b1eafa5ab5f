"""What rendering in segments costs beside one ffmpeg command for the same shots."""

from __future__ import annotations

import statistics
from fractions import Fraction
from typing import Any

from benchmarks.bench import X264_MEDIUM, Bench
from benchmarks.render import TARGET_RATIO, compare, shots_from
from benchmarks.report import Section, Table, within
from montage_assets.media.render import OutputFormat

SHOTS, SHOT_FRAMES, FPS = 18, 30, Fraction(24)
ROUNDS = 3


def measure(bench: Bench) -> Section:
    """The same shots of 1080p as one command, and as checked segments that are joined."""
    source = bench.scaled(1920, 1080, 60.0, X264_MEDIUM)
    shots = shots_from([source], SHOTS, SHOT_FRAMES, FPS)
    rounds: list[dict[str, Any]] = [compare(shots, OutputFormat(1920, 1080, FPS)) for _ in range(ROUNDS)]
    rows = [
        [
            str(number),
            f"{found['one_command']['cpu_s']:.1f}",
            f"{found['segments']['cpu_s']:.1f}",
            f"{found['cpu_ratio']:.3f}",
        ]
        for number, found in enumerate(rounds, start=1)
    ]
    film = rounds[0]["film"]
    ratio = statistics.median(found["cpu_ratio"] for found in rounds)
    return Section(
        "Rendering",
        f"{film['shots']} shots, {film['frames']} frames of 1920x1080, x264 at standard quality: encoded by one ffmpeg "
        f"command, then in {film['segments']} segments, each checked, and joined. Median of {ROUNDS} rounds in turns.",
        [within("rendering in segments, CPU of one command", ratio, TARGET_RATIO, " x", "see the table")],
        [Table(["round", "one command, CPU-s", "segments, CPU-s", "ratio"], rows)],
    )
