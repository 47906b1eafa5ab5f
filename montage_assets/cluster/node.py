"""One node of the capability matrix: what it has, what it is good for, and whether it takes work.

Belongs here: the record and what follows from one node alone. Does not belong here: where it was read from
(`catalog`, `kubernetes_nodes`, `hardware`) and how nodes compare (`routing`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, field_validator, model_validator

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.gpus import GPUType, gpu_type, is_jetson
from montage_assets.cluster.tasks import OTHER_NAMES, WORKS, TaskType, Work

REFERENCE_CORES = 8
"""A node of speed 1 analyses and encodes like so many ordinary CPU cores."""

_ENCODER_FAMILIES = ("amf", "nvenc", "nvmpi", "v4l2m2m", "vaapi", "qsv", "videotoolbox", "vulkan", "rkmpp")
_SOFTWARE_ENCODERS = ("libx264", "libx265", "libsvtav1")
_ARCHITECTURES = {"x86_64": "amd64", "x64": "amd64", "aarch64": "arm64", "armv8": "arm64"}

GPU_VENDOR_DOMAINS = ("nvidia.com/", "amd.com/", "gpu.intel.com/", "squat.ai/")
"""Prefixes of the device plugins' resources, and of the taints that keep other work off GPU nodes."""


def normal_arch(text: str) -> str:
    """The architecture in Kubernetes' and Docker's words: amd64, arm64."""
    return _ARCHITECTURES.get(text.strip().lower(), text.strip().lower())


def _number_for_all(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return dict.fromkeys(WORKS, value) if is_number else value


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _plain(value: float | None) -> float | int | None:
    return int(value) if value is not None and float(value).is_integer() else value


Words = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]
Speed = Annotated[float, Field(gt=0, le=10_000)]


class NodeCapability(BaseModel):
    """A node. Memory is in GiB (what `free -h` and Kubernetes' Gi show), speeds are relative.

    `speed`: how fast the node is per kind of work; 1 is eight ordinary CPU cores. One number counts for all kinds; what
    is not given is estimated from cores and GPU. `encoders`: ffmpeg's names, in the order to try them. `assumed`: the
    fields that nobody has measured or stated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=253)]
    arch: Annotated[str, BeforeValidator(lambda text: normal_arch(text) if isinstance(text, str) else text)] = "amd64"
    cpu_cores: Annotated[float, Field(gt=0, le=4096)]
    ram_gb: Annotated[float, Field(gt=0, le=1 << 17)]
    gpu: Annotated[str, Field(min_length=1)] | None = None
    vram_gb: Annotated[float, Field(ge=0, le=1 << 17)] | None = None
    encoders: Words = ()
    optimal_for: Words = ()
    speed: Annotated[dict[Work, Speed], BeforeValidator(_number_for_all)] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    address: str | None = None
    control_plane: bool = False
    ready: bool = True
    schedulable: bool = True
    taints: Words = ()
    resources: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    assumed: Words = ()
    note: str = ""

    @field_validator("encoders")
    @classmethod
    def _known_encoders(cls, encoders: tuple[str, ...]) -> tuple[str, ...]:
        for encoder in encoders:
            codec, _, family = encoder.partition("_")
            if encoder not in _SOFTWARE_ENCODERS and not (
                codec in ("h264", "hevc", "av1") and family in _ENCODER_FAMILIES
            ):
                raise ValueError(
                    f"{encoder!r} is no encoder of ffmpeg's; write h264_, hevc_ or av1_ and one of "
                    f"{', '.join(_ENCODER_FAMILIES)}"
                )
        return encoders

    @field_validator("optimal_for")
    @classmethod
    def _known_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            try:
                TaskType.parse(task)
            except ClusterError as error:
                raise ValueError(str(error)) from None
        return tasks

    @field_validator("taints")
    @classmethod
    def _written_as_kubectl_does(cls, taints: tuple[str, ...]) -> tuple[str, ...]:
        for taint in taints:
            if not re.fullmatch(r"[^\s:=]+(=[^\s:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)", taint):
                raise ValueError(f"{taint!r} is no taint; write it as key=value:NoSchedule")
        return taints

    @field_validator("assumed")
    @classmethod
    def _names_of_fields(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in cls.model_fields:
                raise ValueError(f"{name!r} is no key of a node")
        return names

    @model_validator(mode="after")
    def _memory_of_a_gpu(self) -> NodeCapability:
        if self.vram_gb is not None and self.gpu is None:
            raise ValueError(f"vram_gb is {self.vram_gb:g}, but there is no gpu; name the gpu or leave vram_gb out")
        return self

    @field_serializer("cpu_cores", "ram_gb", "vram_gb")
    def _without_needless_decimals(self, value: float | None) -> float | int | None:
        return _plain(value)

    @field_serializer("speed")
    def _speeds_without_needless_decimals(self, speeds: dict[Work, float]) -> dict[Work, float | int | None]:
        return {work: _plain(value) for work, value in speeds.items()}

    @property
    def gpu_type(self) -> GPUType:
        """The vendor of the GPU; NONE without one."""
        return gpu_type(self.gpu)

    @property
    def hardware_encoders(self) -> tuple[str, ...]:
        """The encoders that run on a chip, in the order to try them."""
        return tuple(encoder for encoder in self.encoders if encoder not in _SOFTWARE_ENCODERS)

    @property
    def is_jetson(self) -> bool:
        """Whether this is an NVIDIA Jetson module."""
        return is_jetson(self.gpu)

    @property
    def has_big_gpu(self) -> bool:
        """Whether the GPU is worth keeping the node free for: a card or a Jetson, not the graphics in a CPU."""
        if self.gpu is None:
            return False
        if self.vram_gb is None:
            return self.gpu_type is GPUType.NVIDIA or "amd.com/gpu" in self.resources
        return self.vram_gb >= 2

    @property
    def good_at(self) -> tuple[str, ...]:
        """`optimal_for` in TaskType's values."""
        return tuple(OTHER_NAMES.get(task, task) for task in self.optimal_for)

    @property
    def closed_to_all(self) -> str:
        """Why the node takes no work at all, in words; empty if it does."""
        if not self.ready:
            return "not ready"
        if not self.schedulable:
            return "cordoned"
        taint = next((taint for taint in self._barring_taints() if not taint.startswith(GPU_VENDOR_DOMAINS)), None)
        return f"tainted {taint}" if taint else ""

    @property
    def gpu_taint(self) -> str | None:
        """The taint that leaves the node to work that asks for its GPU, if it has one."""
        return next((taint for taint in self._barring_taints() if taint.startswith(GPU_VENDOR_DOMAINS)), None)

    def _barring_taints(self) -> list[str]:
        return [taint for taint in self.taints if taint.endswith((":NoSchedule", ":NoExecute"))]

    def speed_for(self, work: Work, with_gpu: bool = True) -> float:
        """The stated speed at this work, else an estimate. Without the GPU only the cores count.

        The estimates for encoding are the middle of the planned ranges: a card 10 to 20 times a CPU, a Jetson 5 to 10,
        VAAPI 3 to 5; a GPU upscales 10 times as fast as a CPU.
        """
        uses_gpu = with_gpu and work != "analyze" and self.gpu is not None
        if work in self.speed and (uses_gpu or work == "analyze" or self.gpu is None):
            return self.speed[work]
        by_cores = self.cpu_cores / REFERENCE_CORES
        if not uses_gpu:
            return by_cores
        if work == "upscale":
            return 10 * (self.vram_gb or 8) / 8 if self.has_big_gpu else max(by_cores, 2.0)
        if not self.hardware_encoders:
            return by_cores
        if self.is_jetson or self.gpu_type is GPUType.APPLE:
            return 7.5
        return 15.0 if self.has_big_gpu else 4.0

    def without_gpu(self) -> NodeCapability:
        """The same node with its GPU hidden."""
        kept = {name: count for name, count in self.resources.items() if not name.startswith(GPU_VENDOR_DOMAINS)}
        software = tuple(encoder for encoder in self.encoders if encoder in _SOFTWARE_ENCODERS)
        speed = {work: value for work, value in self.speed.items() if work == "analyze" or self.gpu is None}
        changes = {"gpu": None, "vram_gb": None, "encoders": software, "resources": kept, "speed": speed}
        return self.model_copy(update=changes)
