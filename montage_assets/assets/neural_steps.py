"""The plan and the work of the neural detectors: windows of clips, looked at once each.

Belongs here: which windows are still to look at, their bundling into one shard per worker, what a shard's step does,
and the decision from all answers. Windows come from the whole clip's scores and are stored in parts of a fixed size,
so that any number of shards gives the same answers, and a part is never looked at twice. Never imports Dagster.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from montage_assets import layout
from montage_assets.assets import shard_steps
from montage_assets.cluster.distribution import balance
from montage_assets.data_root import DataRoot
from montage_assets.media import neural_scenes, small_frames, transnet
from montage_assets.media.clip import Clip
from montage_assets.media.fingerprint import result_key
from montage_assets.media.frame_scores import FrameScores
from montage_assets.media.neural_scenes import NeuralName
from montage_assets.media.scenes import SceneList
from montage_assets.media.small_frames import PackedPictures
from montage_assets.media.transnet import Compute, Window
from montage_assets.settings import Settings

PART_WINDOWS = 20
"""Windows that are looked at and stored together: about 20 CPU-seconds of those of 100 frames."""


@dataclass(frozen=True)
class LookTask:
    """Windows of one clip, and where the answers to them are kept."""

    clip: Clip
    windows: list[Window]
    key: str


@dataclass(frozen=True)
class LookShard:
    """One step's work."""

    index: int
    count: int
    detector: NeuralName
    tasks: list[LookTask]


@dataclass(frozen=True)
class LookReport:
    """How one shard's step went: frames shown, where, and what did not go as wished."""

    index: int
    windows: int
    frames: int
    device: str
    seconds: float
    cpu_seconds: float
    notes: list[str] = field(default_factory=list)


def answers_version() -> dict[str, Any]:
    """What the answers depend on besides the clip: part of every key."""
    return {
        "network": transnet.network_version(),
        "pictures": small_frames.ALGORITHM,
        "windows": neural_scenes.ALGORITHM,
    }


def plan_looks(
    root: DataRoot, detector: NeuralName, clips: Sequence[tuple[Clip, FrameScores]], speeds: Sequence[float]
) -> list[LookShard]:
    """The parts without answers, bundled into one shard per worker. Raises MediaError where the network is lacking."""
    transnet.refuse_without_network(detector)
    tasks = [task for clip, scores in clips for task in _tasks_of(detector, clip, scores)]
    undone = [task for task in tasks if not root.exists(task.key)]
    shares = balance([float(_frames_shown(task)) for task in undone], speeds)
    bundles = [[undone[number] for number in share] for share in shares if share]
    return [LookShard(index, len(bundles), detector, bundle) for index, bundle in enumerate(bundles)]


def do_looks(root: DataRoot, shard: LookShard, compute: Compute, log: Any) -> LookReport:
    """Show the network the windows of a shard and store its answers. Raises MediaError where it is not installed."""
    transnet.refuse_without_network(shard.detector)
    began, cpu_before = time.monotonic(), time.process_time()
    devices: list[str] = []
    notes: list[str] = []
    clip, pictures = "", PackedPictures([], [])
    for task in sorted(shard.tasks, key=lambda task: task.clip.name):
        if task.clip.name != clip:  # parts of a clip share its pictures
            clip, pictures = task.clip.name, pictures_of(root, task)
        looks = transnet.look(pictures, task.windows, compute)
        devices += [looks.device] if looks.device not in devices else []
        for note in looks.notes:
            if note not in notes:
                notes.append(note)
                log.warning(note)
        keep_answers(root, task, looks.answers)
    windows = sum(len(task.windows) for task in shard.tasks)
    frames = frames_shown(shard)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_before
    log.info(f"{windows} windows, {frames} frames shown to TransNet V2 on {', '.join(devices)} in {seconds:.1f} s")
    return LookReport(shard.index, windows, frames, ", ".join(devices), round(seconds, 3), round(cpu_seconds, 3), notes)


def pictures_of(root: DataRoot, task: LookTask) -> PackedPictures:
    """The small pictures of the task's clip."""
    return small_frames.load_small_frames(root.read_bytes(shard_steps.small_frames_key(task.clip))).pictures


def keep_answers(root: DataRoot, task: LookTask, answers: Sequence[NDArray[np.float32]]) -> None:
    """Store the answers to a task's windows, whoever gave them."""
    root.write_bytes(task.key, _dump(answers))


def frames_shown(shard: LookShard) -> int:
    """Frames that the network is shown for a shard."""
    return sum(_frames_shown(task) for task in shard.tasks)


def compute_of(settings: Settings) -> Compute:
    """What the environment lets neural networks compute on."""
    return Compute("off" if settings.force_cpu else settings.gpu_analysis, settings.gpu_memory_limit_mb)


def decided_scenes(
    root: DataRoot, detector: NeuralName, clip: Clip, scores: FrameScores, threshold: float | None
) -> SceneList:
    """The scenes of a clip whose windows were all looked at."""
    answers: list[Any] = []
    for task in _tasks_of(detector, clip, scores):
        answers += _load(root.read_bytes(task.key), task.windows)
    return neural_scenes.scenes_of_answers(detector, clip, scores, answers, threshold)


def look_and_decide(
    root: DataRoot, detector: NeuralName, clip: Clip, scores: FrameScores, threshold: float | None, log: Any
) -> SceneList:
    """The scenes of one clip, looked at here and now; for jobs without Dagster."""
    for shard in plan_looks(root, detector, [(clip, scores)], [1.0]):
        do_looks(root, shard, compute_of(Settings.from_environment()), log)
    return decided_scenes(root, detector, clip, scores, threshold)


def _tasks_of(detector: NeuralName, clip: Clip, scores: FrameScores) -> list[LookTask]:
    windows = neural_scenes.windows_for(detector, scores)
    parts = [windows[first : first + PART_WINDOWS] for first in range(0, len(windows), PART_WINDOWS)]
    return [LookTask(clip, part, _answers_key(clip, part)) for part in parts]


def _answers_key(clip: Clip, windows: Sequence[Window]) -> str:
    shown = [[window.start, window.length, window.keep_from, window.keep_until] for window in windows]
    key = result_key(clip=shard_steps.small_frames_key(clip), shown=shown, **answers_version())
    return layout.result("answers", key, ".npy")


def _frames_shown(task: LookTask) -> int:
    return sum(window.length for window in task.windows)


def _dump(answers: Sequence[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, np.concatenate(answers).astype(np.float32))
    return out.getvalue()


def _load(data: bytes, windows: Sequence[Window]) -> list[Any]:
    stored = np.load(io.BytesIO(data), allow_pickle=False)
    borders = np.cumsum([window.keep_until - window.keep_from for window in windows])[:-1]
    return list(np.split(stored, borders))
