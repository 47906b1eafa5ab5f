"""The environment: every variable the program reads, its default, and what is wrong with a bad value."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from montage_assets.cluster.mode import ClusterMode
from montage_assets.cluster.tasks import WORKS, Work
from montage_assets.data_root import DEFAULT_CACHE_BYTES, DataRoot
from montage_assets.media.errors import MediaError

ExecutorName = Literal["local", "celery", "k8s"]
WorkerType = Literal["cpu", "gpu", "cgpu"]
CloudUse = Literal["auto", "on", "off"]
GpuEncode = Literal["auto", "on", "off"]
GpuAnalysis = Literal["auto", "on", "off"]
HwAccel = Literal[
    "auto", "none", "cuda", "nvenc", "vaapi", "qsv", "amf", "videotoolbox", "v4l2m2m", "nvmpi", "vulkan"
]  # fmt: skip

DEFAULT_REDIS_URL = "redis://localhost:6379/0"
DEFAULT_COORDINATOR_URL = "http://localhost:8080"
DRIVER_VARIABLES = (
    "LIBVA_DRIVER_NAME", "LIBVA_DRIVERS_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES", "LD_LIBRARY_PATH",
)  # fmt: skip
"""Not ours, but what a graphics driver can do depends on them."""
DEFAULT_NAMESPACE = "montage-ai"
DEFAULT_ENCODE_THRESHOLD_S = 300


@dataclass(frozen=True)
class Settings:
    """Settings of this process.

    `data`: MONTAGE_DATA, a folder or an s3:// URL. `workers`: MONTAGE_WORKERS, how many steps may work at a
    time, None to decide by machine and footage. `cache`, `cache_bytes`: MONTAGE_CACHE and MONTAGE_CACHE_GB,
    where and how much of a remote data root is kept locally. `cluster_mode`, `cluster_config`:
    MONTAGE_CLUSTER_MODE and MONTAGE_CLUSTER_CONFIG, where the nodes are known from. `force_cpu`:
    MONTAGE_FORCE_CPU, leave GPUs unused. `executor`: MONTAGE_EXECUTOR, where the steps of a run are carried out
    (DISTRIBUTED_MODE is another way to say celery). `redis_url`: REDIS_URL, the broker of the queues.
    `worker_type`, `worker_concurrency`: WORKER_TYPE and WORKER_CONCURRENCY, which queues a worker serves and how
    many steps it takes at a time. `worker_lease_s`: WORKER_LEASE, seconds without a sign of life after which a worker
    counts as gone. `worker_until_idle`: WORKER_MODE=distributed, the worker of a job, which ends when there is no
    work left; `worker_task`, `worker_name`: its TASK_TYPE and TASK_ID, the one queue it serves and what it is called.
    `coordinator_url`: COORDINATOR_URL, the webserver that runs are launched on.
    `step_deadline_s`: MONTAGE_STEP_DEADLINE, seconds that the pod of a step may take, waiting for a node
    included, None for the task's own. `priority_class`: MONTAGE_PRIORITY_CLASS, the PriorityClass of the pods
    that render. `node`: MONTAGE_NODE, the node that this process works on, else the host's name.
    `image`, `namespace`: MONTAGE_IMAGE and MONTAGE_NAMESPACE, what Kubernetes runs and where.
    `shard_index`, `shard_count`: SHARD_INDEX (in an Indexed job JOB_COMPLETION_INDEX) and SHARD_COUNT, which part of a
    job this process is, counted from 0.
    `gpu_encode`: LOCAL_GPU_ENCODE, whether this machine's video encoders are used (`auto`: where they work and are
    not slower; `on`: before the CPU's; `off`). `hwaccel`: FFMPEG_HWACCEL, the one kind of them to use.
    `output_codec`: OUTPUT_CODEC, the film's codec where montage.yaml names none, or the ffmpeg encoder to try first.
    `gpu_analysis`: LOCAL_GPU_OPENCV, whether neural networks that look at pictures run on this machine's GPU (`auto`
    where there is one, `on` on Apple's too and with a warning where there is none, `off`). `gpu_memory_limit_mb`:
    GPU_MEMORY_LIMIT, megabytes of its memory that they may take, None for all that is free.
    `driver_variables`: those of DRIVER_VARIABLES that are set. `encoder_cache`: where the results of test encodes
    are kept, below XDG_CACHE_HOME or ~/.cache; None where no home folder is known.
    `cgpu_enabled`: CGPU_GPU_ENABLED, the consent without which nothing leaves this machine. `cgpu_beat_detect`,
    `cgpu_scene_detect`, `cgpu_encode`: CGPU_BEAT_DETECT, CGPU_SCENE_DETECT and CGPU_ENCODE, whether that work may
    go to the cloud GPU: `on` sends it wherever it can be sent, `auto` where that pays. `cgpu_encode_threshold_s`:
    CGPU_ENCODE_THRESHOLD, seconds of film above which encoding may go there. `cgpu_config`: CGPU_CONFIG_DIR, the
    folder of cgpu's own configuration and login, None for cgpu's own choice.
    """

    data: str = "data"
    workers: int | None = None
    cache: Path | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES
    cluster_mode: ClusterMode = ClusterMode.AUTO
    cluster_config: Path | None = None
    force_cpu: bool = False
    executor: ExecutorName = "local"
    redis_url: str = DEFAULT_REDIS_URL
    worker_type: WorkerType = "cpu"
    worker_concurrency: int = 1
    worker_lease_s: int = 20
    worker_until_idle: bool = False
    worker_task: Work | None = None
    worker_name: str | None = None
    coordinator_url: str = DEFAULT_COORDINATOR_URL
    step_deadline_s: int | None = None
    priority_class: str | None = None
    node: str = ""
    image: str | None = None
    namespace: str = DEFAULT_NAMESPACE
    shard_index: int | None = None
    shard_count: int | None = None
    gpu_encode: GpuEncode = "auto"
    hwaccel: HwAccel = "auto"
    output_codec: str | None = None
    gpu_analysis: GpuAnalysis = "auto"
    gpu_memory_limit_mb: int | None = None
    driver_variables: tuple[tuple[str, str], ...] = ()
    encoder_cache: Path | None = None

    cgpu_enabled: bool = False
    cgpu_beat_detect: CloudUse = "auto"
    cgpu_scene_detect: CloudUse = "auto"
    cgpu_encode: CloudUse = "off"
    cgpu_encode_threshold_s: int = DEFAULT_ENCODE_THRESHOLD_S
    cgpu_config: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables. Raises MediaError or ClusterError with one line for a value that cannot be used."""
        cache = environment.get("MONTAGE_CACHE")
        cluster_config = environment.get("MONTAGE_CLUSTER_CONFIG")
        cgpu_config = environment.get("CGPU_CONFIG_DIR")
        return cls(
            data=environment.get("MONTAGE_DATA") or "data",
            workers=_positive(environment, "MONTAGE_WORKERS"),
            cache=Path(cache).expanduser() if cache else None,
            cache_bytes=(_positive(environment, "MONTAGE_CACHE_GB") or (DEFAULT_CACHE_BYTES >> 30)) << 30,
            cluster_mode=ClusterMode.parse(environment.get("MONTAGE_CLUSTER_MODE") or "auto"),
            cluster_config=Path(cluster_config).expanduser() if cluster_config else None,
            force_cpu=_switch(environment, "MONTAGE_FORCE_CPU"),
            executor=_executor(environment),
            redis_url=environment.get("REDIS_URL") or DEFAULT_REDIS_URL,
            worker_type=_choice(environment, "WORKER_TYPE", get_args(WorkerType), "cpu"),
            worker_concurrency=_positive(environment, "WORKER_CONCURRENCY") or 1,
            worker_lease_s=_positive(environment, "WORKER_LEASE") or 20,
            worker_until_idle=_is_worker_of_a_job(environment),
            worker_task=_choice(environment, "TASK_TYPE", WORKS, WORKS[0]) if environment.get("TASK_TYPE") else None,
            worker_name=environment.get("TASK_ID") or None,
            coordinator_url=environment.get("COORDINATOR_URL") or DEFAULT_COORDINATOR_URL,
            step_deadline_s=_positive(environment, "MONTAGE_STEP_DEADLINE"),
            priority_class=environment.get("MONTAGE_PRIORITY_CLASS") or None,
            node=environment.get("MONTAGE_NODE") or socket.gethostname(),
            gpu_encode=_choice(environment, "LOCAL_GPU_ENCODE", get_args(GpuEncode), "auto"),
            hwaccel=_choice(environment, "FFMPEG_HWACCEL", get_args(HwAccel), "auto"),
            output_codec=_output_codec(environment),
            gpu_analysis=_choice(environment, "LOCAL_GPU_OPENCV", get_args(GpuAnalysis), "auto"),
            gpu_memory_limit_mb=_positive(environment, "GPU_MEMORY_LIMIT"),
            driver_variables=tuple((name, environment[name]) for name in DRIVER_VARIABLES if environment.get(name)),
            encoder_cache=_encoder_cache(environment),
            image=environment.get("MONTAGE_IMAGE") or None,
            namespace=environment.get("MONTAGE_NAMESPACE") or DEFAULT_NAMESPACE,
            shard_index=_counted(environment, "SHARD_INDEX", "JOB_COMPLETION_INDEX"),
            shard_count=_positive(environment, "SHARD_COUNT"),
            cgpu_enabled=_switch(environment, "CGPU_GPU_ENABLED"),
            cgpu_beat_detect=_cloud_use(environment, "CGPU_BEAT_DETECT", "auto"),
            cgpu_scene_detect=_cloud_use(environment, "CGPU_SCENE_DETECT", "auto"),
            cgpu_encode=_cloud_use(environment, "CGPU_ENCODE", "off"),
            cgpu_encode_threshold_s=_positive(environment, "CGPU_ENCODE_THRESHOLD") or DEFAULT_ENCODE_THRESHOLD_S,
            cgpu_config=Path(cgpu_config).expanduser() if cgpu_config else None,
        )

    def data_root(self) -> DataRoot:
        """The data root these settings name."""
        return DataRoot(self.data, self.cache, self.cache_bytes)


def _positive(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise MediaError(f"{name} is {text!r}; set it to a whole number from 1 on, or unset it")
    return int(text)


def _counted(environment: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that is set, a whole number from 0 on."""
    for name in names:
        text = environment.get(name, "").strip()
        if text:
            if not text.isdecimal():
                raise MediaError(f"{name} is {text!r}; set it to a whole number from 0 on, or unset it")
            return int(text)
    return None


def _switch(environment: Mapping[str, str], name: str) -> bool:
    text = environment.get(name, "").strip().lower()
    if text not in _ON | _OFF:
        raise MediaError(f"{name} is {text!r}; set it to 1 or 0, or unset it")
    return text in _ON


def _cloud_use(environment: Mapping[str, str], name: str, default: CloudUse) -> CloudUse:
    """true, false, or auto."""
    text = environment.get(name, "").strip().lower()
    if text == "auto" or not text:
        return "auto" if text else default
    if text not in _ON | _OFF:
        raise MediaError(f"{name} is {environment[name]!r}; set it to true, false or auto, or unset it")
    return "on" if text in _ON else "off"


Name = TypeVar("Name", bound=str)


def _choice(environment: Mapping[str, str], variable: str, names: tuple[Name, ...], default: Name) -> Name:
    text = environment.get(variable, "").strip().lower()
    if not text:
        return default
    for name in names:
        if name == text:
            return name
    raise MediaError(f"{variable} is {environment[variable]!r}; set it to one of {', '.join(names)}, or unset it")


def _is_worker_of_a_job(environment: Mapping[str, str]) -> bool:
    """WORKER_MODE=distributed; 1 and 0 only say whether the image's entrypoint starts a worker."""
    mode = environment.get("WORKER_MODE", "").strip().lower()
    if mode not in {"distributed", *_ON, *_OFF}:
        raise MediaError(f"WORKER_MODE is {environment['WORKER_MODE']!r}; set it to true, false or distributed")
    return mode == "distributed"


def _executor(environment: Mapping[str, str]) -> ExecutorName:
    """MONTAGE_EXECUTOR decides; without it DISTRIBUTED_MODE does."""
    distributed: ExecutorName = "celery" if _switch(environment, "DISTRIBUTED_MODE") else "local"
    return _choice(environment, "MONTAGE_EXECUTOR", get_args(ExecutorName), distributed)


def _output_codec(environment: Mapping[str, str]) -> str | None:
    """A codec or an encoder of the table; the table is read only when the variable is set."""
    text = environment.get("OUTPUT_CODEC", "").strip().lower()
    if not text:
        return None
    from montage_assets.media.encoders import CODECS, ENCODERS

    names = (*CODECS, *(encoder.name for encoder in ENCODERS))
    return _choice(environment, "OUTPUT_CODEC", names, text)


def _encoder_cache(environment: Mapping[str, str]) -> Path | None:
    home = environment.get("HOME") or environment.get("USERPROFILE")
    caches = environment.get("XDG_CACHE_HOME") or (Path(home) / ".cache" if home else None)
    return Path(caches) / "montage-assets" / "encoders" if caches else None


_ON = {"1", "true", "yes", "on"}
_OFF = {"", "0", "false", "no", "off"}
