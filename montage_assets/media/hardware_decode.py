"""Decoding on a GPU, where it gives the CPU's very frames for less of the CPU.

Belongs here: the kinds of hardware decoding that ffmpeg has, the comparison of one with the CPU on the clip itself,
the judgement, and keeping it until ffmpeg or a driver changes. Does not belong here: which frames are decoded
(`frame_scores`), or encoders.

Scores and proxies must be the same on every node, so a GPU is used only where the hashes of its frames are the
CPU's. Its frames are fetched into memory and brought into the clip's own pixel format, which loses nothing, before
anything else is done with them: scaling on the GPU would be cheaper, but no GPU scales as swscale does. Costs are
measured, not assumed: fetching a frame can cost as much as decoding a small one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from montage_assets.media.clip import Clip
from montage_assets.media.encoder_devices import Host, devices_of, driver_identity, seems_present
from montage_assets.media.encoder_probe import ffmpeg_identity, run_apart, write_atomically
from montage_assets.media.encoder_table import Family
from montage_assets.media.ffmpeg import ffmpeg_program, input_args

ALGORITHM = 2
"""Part of every judgement's key; raised when the comparison changes."""

METHODS: dict[str, Family] = {
    "cuda": "nvenc",
    "vaapi": "vaapi",
    "videotoolbox": "videotoolbox",
    "vulkan": "vulkan",
}
"""ffmpeg's `-hwaccel` and whose devices it runs on, likeliest first. Intel's and AMD's GPUs decode by VAAPI; the
decoders of QSV, V4L2 and nvmpi are other programs' decoders under names of their own, which are not asked."""

_METHODS_OF_HWACCEL = {
    "cuda": ("cuda",), "nvenc": ("cuda",), "vaapi": ("vaapi",), "qsv": ("vaapi",), "amf": ("vaapi",),
    "videotoolbox": ("videotoolbox",), "vulkan": ("vulkan",), "auto": tuple(METHODS),
}  # fmt: skip

SHORT, LONG = 2, 120
"""Frames of the two decodings whose difference is the cost of a frame without that of starting."""

MOST_CPU_SHARE, MOST_WALL_SHARE = 0.7, 1.5
"""A GPU has to save 30 % of the CPU, for which it may take half as long again: other clips are decoded meanwhile."""

TIME_LIMIT_S = 60.0

REFUSAL_HOLDS_S = 24 * 3600.0
"""A busy machine measures badly. What was chosen holds until something changes."""

NO_GPU = "there is no GPU that decodes video, or none is to be used"


@dataclass(frozen=True)
class HardwareDecoder:
    """One device of one kind. `device` is ffmpeg's name of it, empty where there is nothing to choose."""

    method: str
    device: str

    @property
    def name(self) -> str:
        """`cuda on 0`."""
        return f"{self.method} on {self.device}" if self.device else self.method

    @property
    def input_flags(self) -> list[str]:
        """ffmpeg arguments before the input. An error ends the decoding: the CPU then does all of it."""
        device = ["-hwaccel_device", self.device] if self.device else []
        return ["-xerror", "-hwaccel", self.method, *device]


@dataclass(frozen=True)
class FrameCost:
    """What decoding one frame takes, in seconds of the CPU and on the clock."""

    cpu_s: float
    wall_s: float

    def __str__(self) -> str:
        return f"{1000 * self.cpu_s:.2f} CPU-ms and {1000 * self.wall_s:.2f} ms a frame"


@dataclass(frozen=True)
class Trial:
    """One decoder on one kind of clip. `fault` says why its frames cannot be used, empty when they can."""

    decoder: HardwareDecoder
    fault: str = ""
    cost: FrameCost | None = None


@dataclass(frozen=True)
class Judgement:
    """What decodes a kind of clip here. `decoder` None is the CPU; `reason` says why in words."""

    decoder: HardwareDecoder | None
    reason: str
    cpu: FrameCost | None = None
    trials: list[Trial] = field(default_factory=list)


def decoders_here(hwaccel: str, force_cpu: bool, host: Host) -> list[HardwareDecoder]:
    """What FFMPEG_HWACCEL and MONTAGE_FORCE_CPU leave of the decoders that this machine shows signs of."""
    methods = () if force_cpu else _METHODS_OF_HWACCEL.get(hwaccel, ())
    present = [method for method in methods if seems_present(METHODS[method], host)]
    return [HardwareDecoder(method, device) for method in present for device in devices_of(METHODS[method], host)]


def first_devices(decoders: Sequence[HardwareDecoder]) -> list[HardwareDecoder]:
    """The first device of each kind: it speaks for the others of its kind."""
    firsts: dict[str, HardwareDecoder] = {}
    for decoder in decoders:
        firsts.setdefault(decoder.method, decoder)
    return list(firsts.values())


def judge(cpu: FrameCost, trials: Sequence[Trial]) -> tuple[HardwareDecoder | None, str]:
    """The decoder that gives the right frames for the least of the CPU, None for the CPU itself, and why."""
    sound = [(trial.decoder, trial.cost) for trial in trials if not trial.fault and trial.cost is not None]
    gains = [
        (decoder, cost)
        for decoder, cost in sound
        if cost.cpu_s <= MOST_CPU_SHARE * cpu.cpu_s and cost.wall_s <= MOST_WALL_SHARE * cpu.wall_s
    ]
    if gains:
        decoder, cost = min(gains, key=lambda gain: gain[1].cpu_s)
        return decoder, f"{decoder.name} gives the CPU's frames for {cost}, the CPU takes {cpu}"
    told = [f"{decoder.name} gains nothing: {cost}, the CPU takes {cpu}" for decoder, cost in sound]
    told += [f"{trial.decoder.name} {trial.fault}" for trial in trials if trial.fault]
    return None, "; ".join(told) or NO_GPU


class DecoderChoice:
    """Judgements of this machine's decoders, one per kind of clip, kept in `folder` (None: in this process only)."""

    def __init__(
        self, folder: Path | None, variables: Sequence[tuple[str, str]] = (), host: Host | None = None
    ) -> None:
        self.host = host or Host()
        self._folder, self._variables = folder, tuple(variables)
        self._known: dict[str, Judgement] = {}

    @functools.cached_property
    def _driver(self) -> str:
        return driver_identity(self.host, self._variables)

    def judgement(self, path: Path, clip: Clip, decoders: Sequence[HardwareDecoder]) -> Judgement:
        """What decodes this clip and others of its codec, size and depth. Compares on the clip where not known yet."""
        if not decoders:
            return Judgement(None, NO_GPU)
        key = self._key(clip, decoders)
        known = self._known.get(f"{key} {clip.fingerprint}") or self._stored(key)
        if known is None:
            known = compare(path, clip, decoders)
            self._store(key, clip, known)
        return known

    def _key(self, clip: Clip, decoders: Sequence[HardwareDecoder]) -> str:
        kind = [clip.codec, clip.pixel_format, clip.width, clip.height, clip.rotation, clip.interlaced, clip.full_range]
        described = [ALGORITHM, ffmpeg_identity(), self._driver, [asdict(one) for one in decoders], kind]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]

    def _stored(self, key: str) -> Judgement | None:
        if key not in self._known and self._folder is not None:
            path = self._folder / f"decoder-{key}.json"
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                found = json.loads(path.read_text())
                chosen = found["decoder"]
                decoder = None if chosen is None else HardwareDecoder(**chosen)
                if decoder or time.time() - path.stat().st_mtime < REFUSAL_HOLDS_S:
                    self._known[key] = Judgement(decoder, str(found["reason"]))
        return self._known.get(key)

    def _store(self, key: str, clip: Clip, judgement: Judgement) -> None:
        # A fault may be this clip's, or pass.
        if judgement.decoder is None and (not judgement.trials or any(trial.fault for trial in judgement.trials)):
            self._known[f"{key} {clip.fingerprint}"] = judgement
            return
        self._known[key] = judgement
        if self._folder is not None:
            decoder = None if judgement.decoder is None else asdict(judgement.decoder)
            with contextlib.suppress(OSError):
                text = json.dumps({"decoder": decoder, "reason": judgement.reason})
                write_atomically(self._folder / f"decoder-{key}.json", text)


def compare(path: Path, clip: Clip, decoders: Sequence[HardwareDecoder]) -> Judgement:
    """Decode the beginning of a clip on the CPU and by each decoder; compare every frame, measure both.

    Decoders that do not even start are found out first, for little.
    """
    attempts = [(decoder, _decoded(path, clip, decoder, SHORT)) for decoder in decoders]
    trials = [Trial(decoder, few) for decoder, few in attempts if isinstance(few, str)]
    started = [(decoder, few) for decoder, few in attempts if not isinstance(few, str)]
    if decoders and not started:
        return Judgement(None, judge(FrameCost(0.0, 0.0), trials)[1], trials=trials)
    right, start = _decoded(path, clip, None, LONG), _decoded(path, clip, None, SHORT)
    if isinstance(right, str) or isinstance(start, str):
        return Judgement(None, f"the CPU's own decoding {right if isinstance(right, str) else start}")
    cpu = _cost(right, start)
    trials += [_tried(path, clip, decoder, few, right.frames) for decoder, few in started]
    decoder, reason = judge(cpu, trials)
    return Judgement(decoder, reason, cpu, trials)


@dataclass(frozen=True)
class _Decoded:
    frames: list[str]
    """Time and hash of each frame."""
    cpu_s: float
    wall_s: float


def _tried(path: Path, clip: Clip, decoder: HardwareDecoder, few: _Decoded, right: Sequence[str]) -> Trial:
    found = _decoded(path, clip, decoder, LONG)
    if isinstance(found, str):
        return Trial(decoder, found)
    if len(found.frames) != len(right):
        return Trial(decoder, f"gave {len(found.frames)} frames instead of {len(right)}")
    for number, (frame, as_it_is) in enumerate(zip(found.frames, right, strict=True), start=1):
        if frame != as_it_is:
            return Trial(decoder, f"decodes frame {number} otherwise than the CPU")
    return Trial(decoder, cost=_cost(found, few))


def _cost(many: _Decoded, few: _Decoded) -> FrameCost:
    """The difference, per frame; a clip with no more frames than the short run is taken whole."""
    if len(many.frames) <= len(few.frames):
        return FrameCost(many.cpu_s / max(1, len(many.frames)), many.wall_s / max(1, len(many.frames)))
    frames = len(many.frames) - len(few.frames)
    return FrameCost(max(0.0, many.cpu_s - few.cpu_s) / frames, max(0.0, many.wall_s - few.wall_s) / frames)


def _decoded(path: Path, clip: Clip, decoder: HardwareDecoder | None, frames: int) -> _Decoded | str:
    """The first frames' hashes and what they cost, or what went wrong.

    The CPU's frames are hashed as they come, after ffmpeg has turned them: a pixel format in which only the turning is
    done otherwise shows as other frames.
    """
    flags = decoder.input_flags if decoder else []
    chain = exact_format(clip) if decoder else "null"
    command = [
        ffmpeg_program(), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info", "-benchmark",
        *input_args(path, *flags, "-an", "-sn", "-dn"),
        "-map", "0:V:0", "-frames:v", str(frames), "-vf", chain,
        "-fps_mode", "passthrough", "-f", "framehash", "-hash", "murmur3", "pipe:1",
    ]  # fmt: skip
    run = run_apart(command, b"", TIME_LIMIT_S)
    if run.fault is not None:
        return run.fault
    spent = re.search(rb"bench: utime=([\d.]+)s stime=([\d.]+)s rtime=([\d.]+)s", run.log)
    if spent is None:
        return "told no times (ffmpeg's -benchmark)"
    user, system, real = (float(seconds) for seconds in spent.groups())
    return _Decoded(list(_frame_lines(run.output.decode("ascii", "replace"))), user + system, real)


def _frame_lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line and not line.startswith("#"))


def exact_format(clip: Clip) -> str:
    """The filter that brings a fetched frame into the clip's own pixel format. A GPU's formats hold the same samples
    in another order."""
    return f"format={clip.pixel_format}"
