"""What scoring every frame costs: beside decoding alone, beside stock PySceneDetect, and in four shards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import av  # noqa: F401 -- loaded here, so that no contender pays for an import
import cv2  # noqa: F401
import scenedetect

from benchmarks.bench import X264_MEDIUM, Bench, probed
from benchmarks.measuring import Costs, in_turns, paired_difference, paired_ratio
from benchmarks.report import Section, Table, at_least, within
from montage_assets.media.clip import Clip
from montage_assets.media.ffmpeg import input_args, run_ffmpeg
from montage_assets.media.frame_scores import SCALE_FLAGS, FrameScores, analysis_size, merge_scores, score_range
from montage_assets.media.keyframes import keyframe_finder
from montage_assets.media.shards import cut_into_ranges

LEAST_OF_DECODING = 88.0
MOST_FOR_SHARDS = 5.0
SHARDS = 4
ROUNDS = 7


def measure(bench: Bench) -> Section:
    """Scoring 1080p against decoding and PySceneDetect, then one shard against four on two minutes."""
    source = bench.scaled(1920, 1080, 60.0, X264_MEDIUM)
    clip = probed(source)
    contenders: dict[str, Callable[[], object]] = {
        "decoding alone, `ffmpeg -f null`": partial(decode, source),
        "decoding and scaling to the analysis frame": partial(decode, source, _analysis_scaling(clip)),
        "all scores, `score_range`": partial(_frames_scored, source, clip, 1),
        "PySceneDetect, AdaptiveDetector, opencv": partial(stock_scenes, source, "opencv"),
        "PySceneDetect, AdaptiveDetector, pyav": partial(stock_scenes, source, "pyav"),
    }
    costs = in_turns(contenders, ROUNDS)
    decoding, scaling, ours, stock, _ = costs.values()
    long = bench.looped(bench.film(), max(1, round(120 / probed(bench.film()).duration_s)))
    long_clip = probed(long)
    shards = in_turns(
        {
            "one shard": partial(_frames_scored, long, long_clip, 1),
            f"{SHARDS} shards": partial(_frames_scored, long, long_clip, SHARDS),
        },
        ROUNDS,
    )
    one, several = shards.values()
    more = 100 * (paired_ratio(several, one) - 1)
    frames = clip.frames_estimate
    reason = (
        f"of {_ms(ours, decoding, frames)} ms a frame beyond decoding, {_ms(scaling, decoding, frames)} ms came with "
        "ffmpeg's scaling to 256 pixels in this run (0.3 to 0.9 in others). Scaling one frame over and over costs "
        "0.13 ms; why it costs more beside decoding is not known: another filter, fewer threads and a larger pipe "
        "changed nothing beyond the noise. OpenCV's work on the small frame took 0.19 to 0.22 ms by itself."
    )
    return Section(
        "Scoring",
        f"Source: {frames} frames of 1920x1080 H.264 (x264 medium, crf 20), decoded with ffmpeg's own choice of "
        "threads. Scores are those of five scene detectors, sharpness, motion, exposure, signatures and thumbnails. "
        f"Imports are not counted. {ROUNDS} rounds in turns; a ratio is the median of the rounds' ratios. The shards' "
        f"source: {long_clip.duration_s:.0f} s, {long_clip.width}x{long_clip.height}.",
        [
            at_least(
                "scoring 1080p, share of the throughput of decoding alone",
                100 * paired_ratio(decoding, ours),
                LEAST_OF_DECODING,
                " %",
                reason,
            ),
            at_least("scoring 1080p, speed beside stock PySceneDetect", paired_ratio(stock, ours), 1.0, " x", ""),
            within(f"more CPU for {SHARDS} shards than for one", more, MOST_FOR_SHARDS, " %", "see the table"),
        ],
        [_table("60 s of 1080p", costs, frames), _table("shards", shards, long_clip.frames_estimate)],
    )


def decode(path: Path, filters: str = "null") -> None:
    """Decode a whole file with the pinned ffmpeg and throw the frames away."""
    arguments = [*input_args(path, "-an", "-sn", "-dn"), "-map", "0:V:0", "-vf", filters, "-f", "null", "-"]
    run_ffmpeg(arguments, what=f"decoding {path.name}")


def score_in(path: Path, clip: Clip, shards: int) -> FrameScores:
    """The scores of a clip, made in so many shards one after the other."""
    with keyframe_finder(path, clip) as keyframe_before:
        ranges = cut_into_ranges(clip, shards, keyframe_before)
    return merge_scores([score_range(path, clip, part) for part in ranges])


def _frames_scored(path: Path, clip: Clip, shards: int) -> int:
    return score_in(path, clip, shards).frames


def stock_scenes(path: Path, backend: str) -> int:
    """The number of scenes that PySceneDetect finds with its defaults."""
    manager = scenedetect.SceneManager()
    manager.add_detector(scenedetect.AdaptiveDetector())
    manager.detect_scenes(scenedetect.open_video(str(path), backend=backend))
    return len(manager.get_scene_list())


def _analysis_scaling(clip: Clip) -> str:
    width, height = analysis_size(clip)
    return f"scale={width}:{height}:flags={SCALE_FLAGS},format=bgr24"


def _ms(cost: Costs, beside: Costs, frames: int) -> str:
    return f"{1000 * paired_difference(cost, beside) / frames:.2f}"


def _table(title: str, costs: dict[str, Costs], frames: int) -> Table:
    first = next(iter(costs.values()))
    rows = [
        [
            name,
            f"{cost.best:.2f}",
            f"{cost.median:.2f}",
            f"{frames / cost.median:.0f}",
            f"{100 * paired_ratio(first, cost):.1f} %",
        ]
        for name, cost in costs.items()
    ]
    return Table([title, "CPU-s, best", "CPU-s, median", "frames per CPU-s", "throughput of the first"], rows)
