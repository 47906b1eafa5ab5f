"""JobSubmitter: work as Kubernetes jobs, without Dagster.

    submitter = JobSubmitter()
    job = submitter.submit_scene_detection(["/data/input/v1.mp4", "/data/input/v2.mp4"], parallelism=4)
    submitter.wait_for_job(job.name)
    scenes = submitter.get_scene_results(job.name)

Where there is no Kubernetes, scene detection and encoding run as processes of this machine, with the same results.
Belongs here: which work becomes which job, and where it runs. Does not belong here: the objects sent
(`job_manifests`), the requests (`kubernetes_jobs`), the work (`scene_job`, `encode_job`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.job_manifests import (
    ENCODING,
    SCENE_DETECTION,
    Resources,
    SceneJob,
    Spread,
    Where,
    job_manifest,
    placed_manifest,
    scene_detection_manifest,
)
from montage_assets.cluster.job_status import JobStatus
from montage_assets.cluster.kubernetes_api import KubernetesUnavailableError
from montage_assets.cluster.kubernetes_jobs import KubernetesJobs
from montage_assets.cluster.local_jobs import LocalJobs
from montage_assets.cluster.manager import ClusterManager, discover_cluster
from montage_assets.cluster.measured import speeds_on
from montage_assets.cluster.mode import ClusterMode
from montage_assets.cluster.placement import Placer, Step
from montage_assets.cluster.routing import TaskRouter
from montage_assets.cluster.tasks import Resolution, TaskType

if TYPE_CHECKING:
    from montage_assets.data_root import DataRoot
    from montage_assets.settings import Settings

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

Codec = Literal["h264", "hevc", "av1"]
Scenes = dict[str, list[tuple[float, float]]]
"""Per video its scenes, as (start, end) in seconds."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was started. `where` is kubernetes or local; `node` is the one it is meant for, None for any."""

    name: str
    where: Literal["kubernetes", "local"]
    node: str | None = None


class JobSubmitter:
    """Starts jobs and follows them. Every method raises ClusterError, with one line on what to do."""

    def __init__(self, settings: Settings | None = None) -> None:
        if settings is None:
            from montage_assets.settings import Settings

            settings = Settings.from_environment()
        self._settings = settings
        self._jobs: KubernetesJobs | LocalJobs | None = None
        self._why_local = ""
        self._asked: dict[str, dict[str, str]] = {}

    def submit_scene_detection(
        self,
        videos: Sequence[str],
        parallelism: int = 4,
        *,
        detector: str = "adaptive",
        threshold: float | None = None,
        resources: Resources | None = None,
        spread: Spread = "required",
    ) -> SubmittedJob:
        """Find the scenes of videos in shards: of one video by time, of several by file.

        `videos` are full paths, or keys of the data root. `spread`: whether each shard must have a host of its own.
        A job of the same videos and settings that still runs is not started again.
        """
        if not videos or parallelism < 1:
            raise ClusterError("name at least one video, and a parallelism of at least 1")
        root = self._settings.data_root()
        keys = {_key_of(root, video): video for video in videos}
        count = parallelism if len(keys) == 1 else min(parallelism, len(keys))
        job = SceneJob(tuple(keys), count, detector, threshold)
        self._asked[job.name] = keys
        jobs = self._backend()
        if isinstance(jobs, LocalJobs):
            shards = [
                _here([*SCENE_DETECTION, *job.arguments(job.name), f"--shard-index={index}", f"--shard-count={count}"])
                for index in range(count)
            ]
            jobs.submit(job.name, shards)
            return SubmittedJob(job.name, "local")
        nodes = self._best_for_analysis(count)
        manifest = scene_detection_manifest(job, self._where(), resources or Resources(), spread=spread, nodes=nodes)
        jobs.submit(manifest)
        return SubmittedJob(job.name, "kubernetes")

    def submit_generic_job(
        self,
        name: str,
        command: Sequence[str],
        image: str | None = None,
        *,
        resources: Resources | None = None,
        env: Mapping[str, str] | None = None,
    ) -> SubmittedJob:
        """Run any command of an image (the program's own unless another is named) in one pod."""
        if not _NAME.fullmatch(name):
            raise ClusterError(f"{name!r} is no name of a job; use up to 63 small letters, digits and dashes")
        jobs = self._backend()
        if isinstance(jobs, LocalJobs):
            raise ClusterError(f"job {name} needs Kubernetes to run its image, and {self._why_local}")
        jobs.submit(job_manifest(name, command, self._where(image), resources or Resources(), env=env))
        return SubmittedJob(name, "kubernetes")

    def submit_gpu_encoding(
        self,
        source: str,
        output: str,
        codec: Codec = "h264",
        *,
        resolution: Resolution | None = None,
        quality: Literal["preview", "standard", "high"] = "standard",
    ) -> SubmittedJob:
        """Encode a video anew on the node that does it best: one with a video encoder, else by CPU.

        `source` and `output` are as `videos` of `submit_scene_detection`; the sound is kept as it is. `resolution` is
        that of the video, for choosing a node with enough memory.
        """
        root = self._settings.data_root()
        arguments = [
            f"--input={_key_of(root, source)}", f"--output={_key_of(root, output)}", f"--codec={codec}",
            f"--quality={quality}",
        ]  # fmt: skip
        name = f"encode-{hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:12]}"
        jobs = self._backend()
        if isinstance(jobs, LocalJobs):
            jobs.submit(name, [_here([*ENCODING, *arguments])])
            return SubmittedJob(name, "local")
        placer = Placer(self._settings.step_deadline_s, speeds_on(root))
        placement = placer.place(Step(name, TaskType.GPU_ENCODING, film_size=resolution), self._cluster())
        _log.info("%s goes %s", name, placement.summary)
        jobs.submit(placed_manifest(name, [*ENCODING, *arguments], self._where(), placement))
        return SubmittedJob(name, "kubernetes", placement.nodes[0] if placement.nodes else None)

    def wait_for_job(self, name: str, timeout: float | None = None) -> JobStatus:
        """The job's status once it has succeeded. `timeout` in seconds, None for ever.

        Raises JobFailedError with the reason of its last failed pod, and JobTimeoutError when the time is over.
        """
        return self._backend().wait(name, timeout)

    def get_job_status(self, name: str) -> JobStatus:
        """The job and its pods as they are now."""
        return self._backend().status(name)

    def get_pod_logs(self, name: str) -> str:
        """What the pods of a job have printed so far; each line after the pod's name where there are several."""
        return self._backend().log(name)

    def delete_job(self, name: str) -> None:
        """Stop a job and remove it with its pods. What it has finished stays on the data root."""
        self._backend().delete(name)

    def get_scene_results(self, name: str) -> Scenes:
        """The scenes of every video of a scene-detection job that has succeeded.

        Videos are named as they were submitted, those of another program's job by their full paths. One that cannot
        be decoded is left out, with a warning.
        """
        from montage_assets import scene_job

        root = self._settings.data_root()
        found = scene_job.scenes_of_job(root, name)
        asked = self._asked.get(name, {})
        for video, reason in found.left_out.items():
            _log.warning("%s is left out: it %s", asked.get(video) or root.where(video), reason)
        return {asked.get(video) or root.where(video): each.scenes for video, each in found.videos.items()}

    def _backend(self) -> KubernetesJobs | LocalJobs:
        if self._jobs is None:
            self._jobs = self._find_backend()
        return self._jobs

    def _find_backend(self) -> KubernetesJobs | LocalJobs:
        if self._settings.cluster_mode is ClusterMode.LOCAL:
            self._why_local = "MONTAGE_CLUSTER_MODE is local"
        else:
            try:
                return KubernetesJobs(self._settings.namespace)
            except KubernetesUnavailableError as error:
                self._why_local = f"Kubernetes cannot be used: {error}"
                _log.warning("%s; jobs run on this machine", self._why_local)
        return LocalJobs({"MONTAGE_DATA": self._settings.data})

    def _where(self, image: str | None = None) -> Where:
        chosen = image or self._settings.image
        if chosen is None:
            raise ClusterError("set MONTAGE_IMAGE to the image that jobs are to run, e.g. registry:5000/montage-ai:1")
        data = self._settings.data
        is_ours = image is None or image == self._settings.image
        return Where(chosen, self._settings.namespace, data if "://" in data else None, is_ours)

    def _cluster(self) -> ClusterManager | None:
        """The nodes, None where only Kubernetes itself can choose."""
        try:
            found = discover_cluster(self._settings)
        except ClusterError as error:
            _log.warning("jobs are placed without the capability matrix: %s", error)
            return None
        return None if found.mode is ClusterMode.LOCAL else found

    def _best_for_analysis(self, count: int) -> list[str]:
        cluster = self._cluster()
        if cluster is None:
            return []
        router = TaskRouter(cluster, speeds_on(self._settings.data_root()))
        ranked = [each.node for each in router.rank(TaskType.CPU_SCENE_DETECTION) if each.suitable]
        return [node.labels.get("kubernetes.io/hostname", node.name) for node in ranked[:count]]


def _key_of(root: DataRoot, path: str) -> str:
    """What every node finds the file by: its key where it lies on the data root, else its full path."""
    is_from_here = not path.startswith("/") and "://" not in path and Path(path).exists() and not root.exists(path)
    return root.key_of(str(Path(path).absolute()) if is_from_here else path)


def _here(command: Sequence[str]) -> list[str]:
    return [sys.executable, *command[1:]]
