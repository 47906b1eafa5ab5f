"""The kinds of work that a node can be chosen for, and what each of them asks of a node.

Belongs here: TaskType, whose values are the `montage/task` tags of the ops, and per task the memory it
needs, what makes a node good at it, and which words of a node's `optimal_for` speak for it. Does not belong
here: comparing nodes (`routing`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Literal, get_args

from montage_assets.cluster.errors import ClusterError

Resolution = tuple[int, int]
"""Width and height in pixels."""

Work = Literal["analyze", "encode", "upscale"]
"""The kinds of work that a node is fast or slow at: decoding and measuring, encoding, and neural upscaling."""

WORKS: tuple[Work, ...] = get_args(Work)

Measure = Literal["speed", "memory", "vram"]

TASK_TAG = "montage/task"
"""The op tag that names the TaskType of a step."""

FILM_SIZE_TAG = "montage/film_size"
SOURCE_SIZE_TAG = "montage/source_size"
"""The tags of a run that say how large its film and its largest clip are, e.g. 3840x2160; footage finds it out."""

QUALITY_TAG = "montage/quality"
"""The tag of a run with the film's quality: a preview is rendered elsewhere than a film."""

QUEUE_TAG = "dagster-celery/queue"
"""The op tag by which dagster-celery chooses the queue of a step."""


class TaskType(str, Enum):
    """What a step does, as far as the choice of its node depends on it."""

    GPU_ENCODING = "gpu_encoding"
    CPU_SCENE_DETECTION = "cpu_scene_detection"
    MEMORY_INTENSIVE = "memory_intensive"
    PROXY_GENERATION = "proxy_generation"
    FINAL_RENDER = "final_render"
    PREVIEW_RENDER = "preview_render"
    ENCODING_1080P = "1080p_encoding"
    ENCODING_4K = "4k_encoding"
    ENCODING_8K = "8k_encoding"
    ANALYSIS_4K = "4k_analysis"
    AUDIO_ANALYSIS = "audio_analysis"
    CLIP_SELECTION = "clip_selection"
    METADATA = "metadata"
    BATCH_PROCESSING = "batch_processing"
    CPU_INTENSIVE = "cpu_intensive"
    UPSCALING = "upscaling"

    @classmethod
    def parse(cls, task: str) -> TaskType:
        """The task of that name, in any case. Raises ClusterError with one line that names the tasks."""
        wanted = task.value if isinstance(task, TaskType) else task.strip().lower()
        wanted = OTHER_NAMES.get(wanted, wanted)
        names = [member.value for member in cls]
        if wanted in names:
            return cls(wanted)
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ClusterError(f"there is no task {task!r}; {hint}the tasks are {', '.join(sorted(names))}")


OTHER_NAMES: Mapping[str, str] = MappingProxyType({"scene_detection": TaskType.CPU_SCENE_DETECTION.value})

SizeClass = Literal["any", "1080p", "4k", "8k"]


def size_class(resolution: Resolution | None) -> SizeClass:
    """The size that nodes are told apart by; `any` when none is given.

    4K starts at a height of 2160 or a width of 3840, so flat films (4096x1716) and upright ones belong to it.
    """
    if resolution is None:
        return "any"
    width, height = resolution
    if max(width, height) >= 7680 or min(width, height) >= 4320:
        return "8k"
    return "4k" if height >= 2160 or width >= 3840 else "1080p"


@dataclass(frozen=True)
class TaskProfile:
    """What a task asks of a node.

    `ram_gb` is the memory (GiB) of one step up to 1080p, at 4K and at 8K. `named` are the words in `optimal_for`
    that speak for a node, the strongest first, per size. `hardware` is what else it profits from: an encoder
    chip, a GPU to compute on, or nothing. `at_least` is the size that the task's own name says.
    """

    does: str
    work: Work
    ram_gb: tuple[float, float, float]
    named: Mapping[SizeClass, tuple[str, ...]]
    measure: Measure = "speed"
    hardware: Literal["none", "encoder", "gpu"] = "none"
    at_least: Resolution | None = None


def _at_any_size(*words: str) -> Mapping[SizeClass, tuple[str, ...]]:
    return MappingProxyType({"any": words, "1080p": words, "4k": words, "8k": words})


_ENCODING: Mapping[SizeClass, tuple[str, ...]] = MappingProxyType(
    {
        "any": ("gpu_encoding",),
        "1080p": ("1080p_encoding", "gpu_encoding"),
        "4k": ("4k_encoding", "gpu_encoding"),
        "8k": ("8k_encoding", "4k_encoding", "gpu_encoding"),
    }
)

_FINAL_RENDER: Mapping[SizeClass, tuple[str, ...]] = MappingProxyType(
    {
        "any": ("final_render",),
        "1080p": ("1080p_encoding", "final_render"),
        "4k": ("final_render", "4k_encoding"),
        "8k": ("final_render", "8k_encoding"),
    }
)

_SCENES: Mapping[SizeClass, tuple[str, ...]] = MappingProxyType(
    {
        "any": ("cpu_scene_detection", "cpu_intensive"),
        "1080p": ("cpu_scene_detection", "cpu_intensive"),
        "4k": ("cpu_scene_detection", "4k_analysis", "cpu_intensive"),
        "8k": ("cpu_scene_detection", "4k_analysis", "cpu_intensive"),
    }
)

_ENCODE_RAM_GB = (4.0, 8.0, 16.0)
"""x264 stays below 2 GB at 4K with four sources open; the rest is the file cache that decoding lives on."""

PROFILES: Mapping[TaskType, TaskProfile] = MappingProxyType(
    {
        TaskType.METADATA: TaskProfile(
            "probe and fingerprint files, plan, merge", "analyze", (1, 1, 2),
            _at_any_size("metadata", "batch_processing"),
        ),
        TaskType.PROXY_GENERATION: TaskProfile(
            "small copies of what is costly to decode", "analyze", (2, 4, 8), _at_any_size("proxy_generation")
        ),
        TaskType.CPU_SCENE_DETECTION: TaskProfile("score every frame for cuts", "analyze", (4, 4, 8), _SCENES),
        TaskType.ANALYSIS_4K: TaskProfile(
            "score frames of 4K and more", "analyze", (4, 8, 16),
            _at_any_size("4k_analysis", "memory_intensive"), at_least=(3840, 2160),
        ),
        # A whole song is held decoded, with several spectrograms of it: a node named for memory comes first.
        TaskType.AUDIO_ANALYSIS: TaskProfile(
            "beats, tempo and energy of the song", "analyze", (2, 2, 2),
            _at_any_size("memory_intensive", "audio_analysis"), measure="memory",
        ),
        TaskType.CLIP_SELECTION: TaskProfile(
            "the edit", "analyze", (2, 2, 2), _at_any_size("clip_selection", "cpu_intensive")
        ),
        TaskType.CPU_INTENSIVE: TaskProfile(
            "anything bound by the CPU", "analyze", (4, 4, 8), _at_any_size("cpu_intensive")
        ),
        TaskType.MEMORY_INTENSIVE: TaskProfile(
            "anything bound by memory", "analyze", (8, 8, 16), _at_any_size("memory_intensive"), measure="memory"
        ),
        TaskType.BATCH_PROCESSING: TaskProfile(
            "many files one after another", "analyze", (4, 4, 8), _at_any_size("batch_processing")
        ),
        TaskType.GPU_ENCODING: TaskProfile("encode segments", "encode", _ENCODE_RAM_GB, _ENCODING, hardware="encoder"),
        TaskType.ENCODING_1080P: TaskProfile(
            "encode up to 1080p", "encode", _ENCODE_RAM_GB, _ENCODING, hardware="encoder", at_least=(1920, 1080)
        ),
        TaskType.ENCODING_4K: TaskProfile(
            "encode 4K", "encode", _ENCODE_RAM_GB, _ENCODING, hardware="encoder", at_least=(3840, 2160)
        ),
        TaskType.ENCODING_8K: TaskProfile(
            "encode 8K", "encode", _ENCODE_RAM_GB, _ENCODING, hardware="encoder", at_least=(7680, 4320)
        ),
        # A preview is small whatever the footage is.
        TaskType.PREVIEW_RENDER: TaskProfile(
            "a quick, small film", "encode", (2, 2, 4), _at_any_size("preview_render", "1080p_encoding"),
            hardware="encoder",
        ),
        TaskType.FINAL_RENDER: TaskProfile(
            "join the segments into the film", "encode", _ENCODE_RAM_GB, _FINAL_RENDER, hardware="encoder"
        ),
        TaskType.UPSCALING: TaskProfile(
            "enlarge by a neural network", "upscale", (8, 8, 16), _at_any_size("upscaling"),
            measure="vram", hardware="gpu",
        ),
    }
)  # fmt: skip


def queue_of(task: TaskType | str) -> Work:
    """The queue that steps of this task wait in: one per kind of work. Raises ClusterError."""
    return PROFILES[TaskType.parse(task)].work


def size_asked(task: TaskType, resolution: Resolution | None) -> Resolution | None:
    """The resolution, or the size that the task's name says where that is larger or none is given."""
    least = PROFILES[task].at_least
    if least is None or resolution is None:
        return resolution or least
    return resolution if resolution[0] * resolution[1] >= least[0] * least[1] else least


def ram_needed_gb(task: TaskType, resolution: Resolution | None = None) -> float:
    """Memory of one step, GiB."""
    small, four_k, eight_k = PROFILES[task].ram_gb
    return {"any": small, "1080p": small, "4k": four_k, "8k": eight_k}[size_class(size_asked(task, resolution))]


VRAM_SURFACES = 120
"""Frames held in video memory by one encode: four sources open at 25 each, and 20 in the encoder."""


def vram_needed_gb(task: TaskType, resolution: Resolution | None = None) -> float:
    """Video memory of one hardware encode, GiB: VRAM_SURFACES frames of 10-bit 4:2:0, 3 bytes a pixel.

    0.7 at 1080p, 2.8 at 4K, 11.1 at 8K. A preview is at most 1080p. 0 for work without a GPU.
    """
    if PROFILES[task].hardware != "encoder":
        return 0.0
    width, height = size_asked(task, resolution) or (1920, 1080)
    pixels = min(width * height, 1920 * 1080) if task is TaskType.PREVIEW_RENDER else width * height
    return VRAM_SURFACES * pixels * 3 / 2**30
