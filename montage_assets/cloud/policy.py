"""Whether a piece of work goes to the cloud: a pure decision, and the sentence that says why.

Belongs here: what bars the cloud (no consent, a switch, no network), when it pays, and which place each kind of work
has. Does not belong here: finding the circumstances out (`offload`).

The figures are those of a decision, not promises. Local ones were measured with this program (docs/benchmarks.md, per
core: the song's beats 0.24 CPU-s a minute, x264 22 CPU-s for 18 s of 1080p). The cloud's are the estimates that the
project began with (3 min of song 5 s, 10 min of video 12 s, 1 min of 1080p encoded 8 s, 1 min upscaled 3 min) until
`montage cloud prove` has measured yours. An upscaled minute is 20 minutes on a CPU by the same source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from montage_assets.settings import CloudUse

WorkKind = Literal["beats", "scenes", "neural scenes", "encode", "upscale"]

SESSION_S = 25.0
"""What a piece of work costs in the cloud besides itself: some eight calls of cgpu, three seconds each."""
ASSUMED_UPLOAD_BYTES_PER_S = 1.0e6
"""Eight Mbit/s, where no upload was measured yet."""
SHORT_S = 60.0
"""Videos shorter than this are done before the cloud has begun."""
_BASE64 = 4 / 3
_1080P = 1920 * 1080


@dataclass(frozen=True)
class _Cost:
    """Seconds per second of media: on one local core, and in the cloud. `by_size`: they grow with the picture, and are
    those of 1080p. `per_core`: more cores share it; otherwise the figure is that of a whole machine. `ai`: a neural
    network does it. `gpu_helps`: a local GPU takes it over."""

    local: float
    cloud: float
    by_size: bool = True
    per_core: bool = True
    ai: bool = False
    gpu_helps: bool = True


COSTS: dict[WorkKind, _Cost] = {
    "beats": _Cost(0.24 / 60, 5 / 180, by_size=False, per_core=False, gpu_helps=False),
    # The decoding that PySceneDetect needs gives the frame scores that selection needs anyway: nothing is saved.
    "scenes": _Cost(0.0, 12 / 600, by_size=False, gpu_helps=False),
    "neural scenes": _Cost(30 / 24, 12 / 600, by_size=False, ai=True),
    "encode": _Cost(22 / 18, 8 / 60),
    "upscale": _Cost(20.0, 3.0, per_core=False, ai=True),
}


@dataclass(frozen=True)
class Work:
    """One piece of work. `seconds` is the length of all its media together, `items` how many files they are, `width`
    and `height` the picture's. `film_s` is the length of the film that it is a part of, if it is one. `upload_bytes`
    and `download_bytes` are what would travel. `latency_first`: somebody waits for a first look, so that an early
    result counts more than throughput."""

    kind: WorkKind
    seconds: float
    items: int = 1
    width: int = 1920
    height: int = 1080
    upload_bytes: int = 0
    download_bytes: int = 0
    latency_first: bool = False
    film_s: float | None = None

    @property
    def whole_s(self) -> float:
        """The length that counts where lengths are compared."""
        return self.seconds if self.film_s is None else self.film_s


@dataclass(frozen=True)
class Circumstances:
    """What is known before anything is sent. `bar` is what makes the cloud unreachable (no cgpu, no login, an open
    circuit), None for nothing. `upload_bytes_per_s` is None where it was never measured."""

    consent: bool = False
    use: CloudUse = "auto"
    offline: bool = False
    bar: str | None = None
    local_gpu: bool = False
    cores: float = 1.0
    upload_bytes_per_s: float | None = None
    encode_threshold_s: int = 300


@dataclass(frozen=True)
class Decision:
    """Where the work is done, and why, as a sentence for people. `unreachable`: the cloud cannot be had, whatever was
    wished."""

    cloud: bool
    reason: str
    unreachable: bool = False


def decide(work: Work, circumstances: Circumstances) -> Decision:
    """Where a piece of work is done. What bars the cloud comes first, then an order (`use` is "on"), then what pays."""
    unwanted = _unwanted(work, circumstances)
    if unwanted is not None:
        return Decision(False, unwanted)
    bar = "this machine is offline" if circumstances.offline else circumstances.bar
    if bar is not None:
        return Decision(False, bar, unreachable=True)
    if circumstances.use == "on":
        return Decision(True, "it was asked for")
    kept = _better_here(work, circumstances)
    if kept is not None:
        return Decision(False, kept)
    here, there = local_seconds(work, circumstances), cloud_seconds(work, circumstances)
    figures = f"about {there:.0f} s there, {here:.0f} s here"
    return Decision(True, figures) if there < here else Decision(False, f"the cloud does not pay: {figures}")


def local_seconds(work: Work, circumstances: Circumstances) -> float:
    """Estimated seconds on this machine's CPU."""
    cost = COSTS[work.kind]
    cores = max(1.0, circumstances.cores) if cost.per_core else 1.0
    return cost.local * work.seconds * _size_factor(work) / cores


def cloud_seconds(work: Work, circumstances: Circumstances) -> float:
    """Estimated seconds until the result is back from the cloud. Many files of one session share its start."""
    rate = circumstances.upload_bytes_per_s or ASSUMED_UPLOAD_BYTES_PER_S
    transfer = (work.upload_bytes + work.download_bytes) * _BASE64 / rate
    return SESSION_S + transfer + COSTS[work.kind].cloud * work.seconds * _size_factor(work)


def _size_factor(work: Work) -> float:
    return work.width * work.height / _1080P if COSTS[work.kind].by_size else 1.0


def _unwanted(work: Work, circumstances: Circumstances) -> str | None:
    if not circumstances.consent:
        return "CGPU_GPU_ENABLED is not true, so nothing leaves this machine"
    if circumstances.use == "off":
        return "the cloud is switched off for this work"
    if work.kind == "encode" and work.whole_s <= circumstances.encode_threshold_s:
        return f"the film is no longer than CGPU_ENCODE_THRESHOLD, {circumstances.encode_threshold_s} s"
    return None


def _better_here(work: Work, circumstances: Circumstances) -> str | None:
    cost = COSTS[work.kind]
    if work.latency_first:
        return "a first look is wanted soon, and the cloud takes its time to begin"
    if circumstances.local_gpu and cost.gpu_helps:
        return "this machine has a GPU of its own"
    if work.whole_s < SHORT_S and not cost.ai:
        return f"{work.whole_s:.0f} s of media are done here before the cloud has begun"
    return None


Place = Literal["local CPU", "local GPU", "cloud", "cluster"]

PLACEMENT: dict[str, Place] = {
    "file I/O": "local CPU",
    "timeline": "local CPU",
    "clip selection": "local CPU",
    "story arc": "local CPU",
    "metadata": "local CPU",
    "decode": "local GPU",
    "encode": "local GPU",
    "scenes": "local GPU",
    "beats": "local GPU",
    "grade": "local GPU",
    "upscale": "cloud",
    "LLM inference": "cloud",
    "batch transcode": "cloud",
    "training": "cloud",
    "parallel clips": "cluster",
    "multi-video batch": "cluster",
    "distributed encode": "cluster",
}
"""The place that each kind of work is best done at, if there is one. LLM inference and training are no part of this
program; they are here because the table is that of the whole machine park."""


def place_of(work: str, *, gpu: bool, cloud: bool, cluster: bool) -> Place:
    """Where such work is done with these means: its best place, else a local GPU, else the CPU here.

    Of what a GPU does not gain (file I/O to metadata) nothing ever leaves the CPU. Raises KeyError for unknown work.
    """
    best = PLACEMENT[work]
    if best == "local CPU":
        return best
    if (best == "cloud" and cloud) or (best == "cluster" and cluster):
        return best
    return "local GPU" if gpu else "local CPU"
