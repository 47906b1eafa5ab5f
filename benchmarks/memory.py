"""Peak memory of analysis and render steps on 4K, and whether it grows with the length of the source."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from functools import partial
from pathlib import Path

from benchmarks.bench import X264_EASY, Bench, probed
from benchmarks.measuring import cost_of
from benchmarks.render import shots_from
from benchmarks.report import Section, Table, within
from montage_assets.media.encoders import on_cpu
from montage_assets.media.frame_scores import score_range
from montage_assets.media.proxies import make_proxy_part
from montage_assets.media.render import OutputFormat, render_segment
from montage_assets.media.shards import cut_into_ranges

MOST_FOR_ANALYSIS_MB = 700.0
MOST_FOR_RENDERING_MB = 2000.0
MOST_GROWTH = 5.0
SIZE = (3840, 2160)
PIECE_S = 15.0
SHOTS, SHOT_FRAMES, FPS = 4, 18, Fraction(24)


def measure(bench: Bench) -> Section:
    """Scoring, proxy making and rendering of 30 and of 120 seconds of 4K."""
    piece = bench.scaled(*SIZE, PIECE_S, X264_EASY)
    sources = {f"{seconds} s": bench.looped(piece, round(seconds / PIECE_S)) for seconds in (30, 120)}
    peaks = {
        name: {length: cost_of(partial(work, path)).peak_mb for length, path in sources.items()}
        for name, work in (("scoring", _score), ("proxy and scores", _make_proxy), ("rendering a segment", _render))
    }
    lines = []
    for name, by_length in peaks.items():
        most = MOST_FOR_RENDERING_MB if name.startswith("rendering") else MOST_FOR_ANALYSIS_MB
        lines.append(within(f"peak memory of {name}, 4K", max(by_length.values()), most, " MB", "see the table"))
    for name, by_length in peaks.items():
        short, long = by_length.values()
        growth = 100 * (long / short - 1)
        lines.append(within(f"growth of it for {name}, 4 times the length", growth, MOST_GROWTH, " %", "see the table"))
    rows = [[name, *(f"{peak:.0f}" for peak in by_length.values())] for name, by_length in peaks.items()]
    return Section(
        "Memory",
        f"Sources of {SIZE[0]}x{SIZE[1]} H.264, made longer by looping. Peak resident memory of the Python process "
        "plus that of its largest ffmpeg, each step in a process of its own. The segment is "
        f"{SHOTS} shots, {SHOTS * SHOT_FRAMES} frames, rendered in {SIZE[0]}x{SIZE[1]} by x264 at standard quality.",
        lines,
        [Table(["step", *(f"source of {length}, MB" for length in sources)], rows)],
    )


def _score(path: Path) -> int:
    clip = probed(path)
    (whole,) = cut_into_ranges(clip, 1, lambda _: None)
    return score_range(path, clip, whole).frames


def _make_proxy(path: Path) -> int:
    clip = probed(path)
    (whole,) = cut_into_ranges(clip, 1, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        return make_proxy_part(path, clip, whole, Path(folder) / "proxy.nut").frames


def _render(path: Path) -> int:
    fmt = OutputFormat(*SIZE, FPS)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"segment{on_cpu(fmt.codec).container.suffix}"
        return render_segment(shots_from([path], SHOTS, SHOT_FRAMES, FPS), fmt, out).frames
