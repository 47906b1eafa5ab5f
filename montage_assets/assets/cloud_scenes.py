"""Scenes of a montage's clips from the cloud: what is sent of them, and whether what comes back fits them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from montage_assets.assets import neural_steps
from montage_assets.assets.footage import Footage
from montage_assets.assets.neural_steps import LookReport, LookShard
from montage_assets.assets.proxies import Proxies
from montage_assets.cloud.neural_looks import BYTES_PER_FRAME, CGPUNeuralLooks
from montage_assets.cloud.offload import Offload, Outcome, Session
from montage_assets.cloud.policy import Work
from montage_assets.cloud.scene_detector import COPY_BYTES_PER_S, CGPUSceneDetector, RemoteScenes, Video
from montage_assets.data_root import DataRoot
from montage_assets.layout import clip_source
from montage_assets.media.clip import Clip
from montage_assets.media.frame_scores import FrameScores
from montage_assets.media.proxies import proxy_clip
from montage_assets.media.scenes import SceneList

STOCK = ("adaptive", "content", "hash", "histogram", "threshold")
"""The detectors that find scenes in small copies. Neural ones are asked by `cloud.neural_looks`."""


NOMINAL_FPS = 30.0
"""Of what is shown; the costs that decisions reckon with are per second of film."""


@dataclass(frozen=True)
class InCloud:
    """What the cloud found, by clip, and where the scenes were decided, for people."""

    scenes: dict[str, RemoteScenes]
    told: str


def find(offload: Offload, root: DataRoot, footage: Footage, proxies: Proxies, clips: Sequence[Clip]) -> InCloud:
    """The scenes of these clips, all in one session, if the cloud is to find them and does."""
    if footage.spec.detector not in STOCK:
        return InCloud({}, "here: by the network's answers")
    if not clips:
        return InCloud({}, "earlier")
    small = {proxy.name: proxy.key for proxy in proxies.proxies}

    def work() -> Work:
        seconds = sum(clip.duration_s for clip in clips)
        return Work(
            "scenes",
            seconds,
            items=len(clips),
            upload_bytes=round(seconds * COPY_BYTES_PER_S),
            latency_first=footage.spec.quality == "preview",
        )

    def detect(session: Session) -> list[RemoteScenes]:
        videos = [_video(root, footage.folder, clip, small.get(clip.name)) for clip in clips]
        detector = CGPUSceneDetector(session.client, on_sent=session.on_sent)
        return detector.detect_many(videos, footage.spec.detector, footage.spec.threshold)

    outcome = offload.attempt(work, detect)
    found = {} if outcome.value is None else dict(zip([clip.name for clip in clips], outcome.value, strict=True))
    return InCloud(found, outcome.told)


def look(offload: Offload, root: DataRoot, shard: LookShard) -> Outcome[LookReport]:
    """Let the cloud show TransNet V2 all windows of a shard, in one session, and store its answers; no value when
    that is to be done here."""
    frames = neural_steps.frames_shown(shard)

    def work() -> Work:
        seconds = frames / NOMINAL_FPS
        return Work("neural scenes", seconds, items=len(shard.tasks), upload_bytes=frames * BYTES_PER_FRAME)

    def show(session: Session) -> LookReport:
        began, cpu_before = time.monotonic(), time.process_time()
        clips = [(neural_steps.pictures_of(root, task), task.windows) for task in shard.tasks]
        found = CGPUNeuralLooks(session.client, session.on_sent).look_remote(clips)
        answers = iter(found.answers)
        for task in shard.tasks:
            neural_steps.keep_answers(root, task, [next(answers) for _ in task.windows])
        return LookReport(
            shard.index,
            len(found.answers),
            frames,
            f"{found.device} in the cloud",
            round(time.monotonic() - began, 3),
            round(time.process_time() - cpu_before, 3),
        )

    return offload.attempt(work, show)


def fitting(remote: RemoteScenes | None, scores: FrameScores, clip: Clip, log: Any) -> SceneList | None:
    """The cloud's scenes, if it saw the very frames that were scored here; None to decide them here."""
    if remote is None:
        return None
    if remote.scenes is None:
        log.warning(f"{clip.name}: its scenes are decided here, since the cloud could not: {remote.failure}")
        return None
    if not np.array_equal(scores.pts, np.array(remote.pts, np.int64)):
        log.warning(f"{clip.name}: its scenes are decided here, since the cloud saw other frames")
        return None
    return remote.scenes


def _video(root: DataRoot, folder: str, clip: Clip, proxy: str | None) -> Video:
    if proxy is not None:
        return Video(root.local_file(proxy), proxy_clip(clip))
    return Video(root.local_file(clip_source(folder, clip.name)), clip)
