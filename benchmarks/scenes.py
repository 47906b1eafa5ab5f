"""How right the scenes are on clips whose cuts were viewed, beside stock PySceneDetect on the same files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scenedetect
from scenedetect import detectors as stock

from benchmarks.bench import Bench, probed
from benchmarks.report import Line, Section, Table, at_least
from benchmarks.scoring import SHARDS, score_in
from montage_assets.media.scenes import DetectorName, detect_scenes

STOCK = {
    "adaptive": stock.AdaptiveDetector,
    "content": stock.ContentDetector,
    "hash": stock.HashDetector,
    "histogram": stock.HistogramDetector,
}
DETECTORS: tuple[DetectorName, ...] = ("adaptive", "content", "hash", "histogram")
"""PySceneDetect's threshold detector finds fades, which do not count here."""

MOST_FRAMES_OFF = 1.5
"""One frame, and the half that rounding of times in text takes."""


@dataclass
class Tally:
    """Cuts found and right, found and wrong, and missed."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        return self.right / max(self.right + self.wrong, 1)

    @property
    def recall(self) -> float:
        return self.right / max(self.right + self.missed, 1)

    @property
    def f1(self) -> float:
        return 2 * self.right / max(2 * self.right + self.wrong + self.missed, 1)


@dataclass(frozen=True)
class Truth:
    """Viewed cuts and the spans that do not count, in seconds from the first frame."""

    cuts_s: list[float]
    ignored_s: list[tuple[float, float]]


def measure(bench: Bench) -> Section:
    """Precision, recall and F1 of every detector over all clips with truth."""
    clips = [path for path in bench.clips() if _beside(path, ".cuts.txt").is_file()]
    if not clips:
        return Section("Scenes", "Not measured: no clip has a `<clip>.cuts.txt` beside it.")
    tallies = {name: {way: Tally() for way in ("one shard", f"{SHARDS} shards", "stock")} for name in DETECTORS}
    same = True
    for path in clips:
        clip, truth = probed(path), truth_of(path)
        whole, sharded = score_in(path, clip, 1), score_in(path, clip, SHARDS)
        for name in DETECTORS:
            one, four = (detect_scenes(clip, scores, name).cuts_s for scores in (whole, sharded))
            same = same and one == four
            for way, cuts_s in {
                "one shard": one,
                f"{SHARDS} shards": four,
                "stock": stock_cuts_s(path, name),
            }.items():
                count(tallies[name][way], cuts_s, truth, float(clip.fps))
    rows = [
        [
            name,
            way,
            *(f"{value:.3f}" for value in (tally.precision, tally.recall, tally.f1)),
            str(tally.wrong),
            str(tally.missed),
        ]
        for name, ways in tallies.items()
        for way, tally in ways.items()
    ]
    ours, theirs = tallies["adaptive"]["one shard"], tallies["adaptive"]["stock"]
    cuts = ours.right + ours.missed
    return Section(
        "Scenes",
        f"{len(clips)} clips with {cuts} hard cuts, each viewed; right is within one frame. Fades and spans that are "
        "marked do not count. Every detector has PySceneDetect's defaults; stock decodes the source at its own pace.",
        [
            Line("cuts of one shard and of four are the same", "yes" if same else "no", "yes", same),
            at_least(
                "F1 of the default detector beside stock PySceneDetect",
                100 * ours.f1 / max(theirs.f1, 1e-9),
                100.0,
                " %",
                "the frames are scaled by another filter than PySceneDetect's; see the table",
            ),
        ],
        [Table(["detector", "way", "precision", "recall", "F1", "wrong", "missed"], rows)],
    )


def truth_of(path: Path) -> Truth:
    """The truth files beside a clip."""
    spans = [line.split()[:2] for line in _lines(_beside(path, ".gradual.txt"))]
    return Truth(
        [float(line.split()[0]) for line in _lines(_beside(path, ".cuts.txt"))],
        [(float(start), float(end)) for start, end in spans],
    )


def count(tally: Tally, found_s: Sequence[float], truth: Truth, fps: float) -> None:
    """Match found cuts one to one with true ones, nearest first; add what came of it."""
    most_s = MOST_FRAMES_OFF / fps
    pairs = sorted(
        (abs(found - true), i, j)
        for i, found in enumerate(found_s)
        for j, true in enumerate(truth.cuts_s)
        if abs(found - true) <= most_s
    )
    matched: set[int] = set()
    hit: set[int] = set()
    for _, i, j in pairs:
        if i not in matched and j not in hit:
            matched.add(i)
            hit.add(j)
    tally.right += len(hit)
    tally.missed += len(truth.cuts_s) - len(hit)
    tally.wrong += sum(
        1
        for i, found in enumerate(found_s)
        if i not in matched and not any(start - most_s <= found <= end + most_s for start, end in truth.ignored_s)
    )


def stock_cuts_s(path: Path, detector: DetectorName) -> list[float]:
    """Seconds of the cuts that PySceneDetect finds in the file, from its first frame."""
    video = scenedetect.open_video(str(path))
    manager = scenedetect.SceneManager()
    manager.add_detector(STOCK[detector]())
    manager.detect_scenes(video)
    scenes = manager.get_scene_list()
    starts = np.array([start.seconds for start, _ in scenes])
    return [float(second) for second in starts[1:] - starts[0]] if len(scenes) else []


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in map(str.strip, path.read_text().splitlines()) if line and not line.startswith("#")]
