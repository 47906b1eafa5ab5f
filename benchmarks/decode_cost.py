"""What decoding one megapixel costs per codec: the ground of DECODE_MS_PER_MEGAPIXEL in `media/proxies.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks.bench import X264_MEDIUM, Bench, probed
from benchmarks.measuring import in_turns
from benchmarks.report import Section, Table
from montage_assets.media.ffmpeg import input_args, run_ffmpeg
from montage_assets.media.proxies import decode_ms_per_frame

SECONDS = 4.0
REPEATS = 4
GRAIN = ("-vf", "noise=alls=7:allf=t+u:all_seed=1")
"""Sensor noise as of a camera indoors: without it, upscaled or animated film decodes at half the cost of raw clips."""
ROUNDS = 3
TEN_BIT = ("-pix_fmt", "yuv420p10le")


@dataclass(frozen=True)
class Kind:
    """One codec as cameras and the web use it: container and encoder settings."""

    name: str
    suffix: str
    settings: tuple[str, ...]


KINDS = (
    Kind("h264", ".mp4", ("-c:v", "libx264", "-preset", "medium", "-crf", "20")),
    Kind("h264 10 bit", ".mp4", ("-c:v", "libx264", "-preset", "medium", "-crf", "20", *TEN_BIT)),
    Kind("hevc", ".mp4", ("-c:v", "libx265", "-preset", "fast", "-crf", "20", "-x265-params", "log-level=error")),
    Kind(
        "hevc 10 bit",
        ".mp4",
        ("-c:v", "libx265", "-preset", "fast", "-crf", "20", "-x265-params", "log-level=error", *TEN_BIT),
    ),
    Kind("av1", ".mp4", ("-c:v", "libsvtav1", "-preset", "9", "-crf", "16")),
    Kind("av1 10 bit", ".mp4", ("-c:v", "libsvtav1", "-preset", "9", "-crf", "16", *TEN_BIT)),
    Kind("vp9", ".webm", ("-c:v", "libvpx-vp9", "-crf", "20", "-b:v", "0", "-deadline", "realtime", "-cpu-used", "7")),
    Kind("vp8", ".webm", ("-c:v", "libvpx", "-crf", "8", "-b:v", "8M", "-deadline", "realtime", "-cpu-used", "8")),
    Kind("mpeg2video", ".mpg", ("-c:v", "mpeg2video", "-q:v", "3", "-g", "15", "-bf", "2")),
    Kind("mpeg4", ".avi", ("-c:v", "mpeg4", "-q:v", "3")),
    Kind("prores 10 bit", ".mov", ("-c:v", "prores_ks", "-profile:v", "standard")),
    Kind("dnxhd", ".mov", ("-c:v", "dnxhd", "-profile:v", "dnxhr_sq", "-pix_fmt", "yuv422p")),
    Kind("mjpeg", ".mov", ("-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj420p")),
)


def measure(bench: Bench) -> Section:
    """Milliseconds of CPU for a megapixel, without and with grain, and what the table in use says."""
    clean = bench.scaled(1920, 1080, SECONDS, X264_MEDIUM)
    grainy = bench.encoded(f"{clean.stem}-grain", ".mkv", clean, (*GRAIN, "-c:v", "ffv1"))
    files = {
        (kind.name, source): bench.encoded(
            f"{source.stem}-{kind.name.replace(' ', '_')}", kind.suffix, source, kind.settings
        )
        for kind in KINDS
        for source in (clean, grainy)
    }
    costs = in_turns({str(path): partial(_decode, str(path)) for path in files.values()}, ROUNDS)
    frames = REPEATS * probed(clean).frames_estimate
    rows = []
    for kind in KINDS:
        row = [kind.name]
        for source in (clean, grainy):
            path = files[kind.name, source]
            clip, cost = probed(path), costs[str(path)]
            megapixels = clip.width * clip.height / 1e6
            row += [
                f"{clip.size_bytes * 8 / clip.duration_s / 1e6:.1f}",
                *(f"{1000 * seconds / frames / megapixels:.2f}" for seconds in (cost.best, cost.median)),
            ]
        rows.append([*row, f"{decode_ms_per_frame(clip) / megapixels:.1f}"])
    return Section(
        "Decoding cost per codec",
        f"CPU-milliseconds per megapixel: {SECONDS:g} s of film in 1920x1080, {REPEATS} times over, by "
        f"`ffmpeg -f null` with its own choice of threads; best and median of {ROUNDS} rounds in turns. The film is "
        "animated and clean, or has a camera's grain laid over it, at settings where the grain survives; content "
        "moves the figures by a factor of two and more. `DECODE_MS_PER_MEGAPIXEL` in "
        "`montage_assets/media/proxies.py`, which decides what gets a proxy, is the best of a run with grain, "
        "since raw clips have it. Encoder settings "
        "are in `benchmarks/decode_cost.py`.",
        tables=[
            Table(
                [
                    "codec",
                    "clean, Mbit/s",
                    "best",
                    "median",
                    "grain, Mbit/s",
                    "best",
                    "median",
                    "table in use",
                ],
                rows,
            )
        ],
    )


def _decode(path: str) -> None:
    looping = ("-stream_loop", str(REPEATS - 1), "-an", "-sn", "-dn")
    run_ffmpeg([*input_args(path, *looping), "-map", "0:V:0", "-f", "null", "-"], what=f"decoding {path}")
