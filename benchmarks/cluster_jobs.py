"""The plan's two jobs as the steps of a run, cut and grouped by the production's own functions.

Belongs here: what the jobs consist of, and what of it the plan calls by which name. Does not belong here: when and
where the steps run (`cluster_replay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from benchmarks.cluster_costs import LONG_FILM_S, LONG_FOOTAGE_MIN, SHORT_FILM_S, SHORT_FOOTAGE_MIN, SIZE, StepCosts
from benchmarks.cluster_replay import Nodes, Work, alone_s
from montage_assets.assets.shard_sizes import range_counts, workers_worth
from montage_assets.cluster.distribution import balance
from montage_assets.cluster.node import NodeCapability
from montage_assets.cluster.placement import MeasuredSpeeds, analysis_speeds, encoding_speeds
from montage_assets.cluster.tasks import TaskType
from montage_assets.media.clip import Clip
from montage_assets.media.render import RenderShot, plan_segments
from montage_assets.media.shards import ClipRange, cut_into_ranges

FPS = 30
SHOT_FRAMES = 45
TIME_BASE = Fraction(1, 15360)
KEYFRAME_EVERY_S = 2

START, FOOTAGE, ANALYSIS, SONG, SELECTION, RENDERING, JOINING, CHECKS = (
    "starting the run",
    "footage",
    "proxies and scenes",
    "song",
    "selection",
    "rendering",
    "joining",
    "checks",
)
IN_SEQUENCE = (START, FOOTAGE, ANALYSIS, SELECTION, RENDERING, JOINING, CHECKS)
"""The song is analysed beside the footage."""


@dataclass(frozen=True)
class Planned:
    """Rows of the plan's tables in minutes, and the stages of ours that do them. Rows that one decoding or one filter
    graph of ours does together are one."""

    name: str
    today_min: float
    cluster_min: float
    stages: tuple[str, ...]

    @property
    def speedup(self) -> float:
        return self.today_min / self.cluster_min


@dataclass(frozen=True)
class Job:
    """Footage and film. `selection_s`: CPU-seconds of the edit. `planned` are the plan's rows, `total` its last."""

    name: str
    clips: tuple[Clip, ...]
    film_s: float
    selection_s: float
    planned: tuple[Planned, ...]
    total: Planned

    @property
    def footage_min(self) -> float:
        return sum(clip.duration_s for clip in self.clips) / 60


def four_k(name: str, seconds: float) -> Clip:
    """A clip of 4K, 30 frames a second."""
    frames = round(seconds * FPS)
    return Clip(
        name=name, fingerprint=name, size_bytes=0, container="mov", codec="h264", pixel_format="yuv420p", bit_depth=8,
        width=SIZE[0], height=SIZE[1], display_width=SIZE[0], display_height=SIZE[1], sample_aspect=Fraction(1),
        rotation=0, interlaced=False, fps=Fraction(FPS), variable_rate=False, frames_estimate=frames,
        duration_s=frames / FPS, time_base=TIME_BASE, first_pts=0, container_start_s=0.0, transfer="sdr",
        matrix="bt709", full_range=False, audio_channels=0, audio_rate=0,
    )  # fmt: skip


def short_job(costs: StepCosts, footage_min: int | None = None) -> Job:
    """The plan's first job: 30 s from 4K, in clips of a minute.

    The plan says how long its scene detection takes today, not on how much footage: without `footage_min` it is as much
    as keeps one node busy so long.
    """
    planned = (
        Planned("Scene Detection", 20, 5, (ANALYSIS,)),
        Planned("Clip Enhancement + Segment Render", 25, 5, (RENDERING,)),
        Planned("Final Concat", 5, 1, (JOINING,)),
    )
    if footage_min is None:
        a_minute = _short_job("", 1, costs, planned)
        of_a_minute_s = alone_s([work for work in on_one_node(a_minute, costs) if work.stage == ANALYSIS])
        footage_min = round(60 * planned[0].today_min / of_a_minute_s)
    return _short_job(f"30 s montage from {footage_min} min of 4K", footage_min, costs, planned)


def _short_job(name: str, footage_min: int, costs: StepCosts, planned: tuple[Planned, ...]) -> Job:
    return Job(
        name,
        tuple(four_k(f"{number}.mp4", 60.0) for number in range(1, footage_min + 1)),
        SHORT_FILM_S,
        costs.short_selection * footage_min / SHORT_FOOTAGE_MIN,
        planned,
        Planned("Gesamt", 50, 11, ()),
    )


def long_job(costs: StepCosts) -> Job:
    """The plan's second job: one video of an hour."""
    return Job(
        "60 min of 4K to a 5 min montage",
        (four_k("long.mp4", 60.0 * LONG_FOOTAGE_MIN),),
        LONG_FILM_S,
        costs.long_selection,
        (
            Planned("Proxy Generation + Scene Detection", 90, 23, (ANALYSIS,)),
            Planned("Clip Selection", 20, 5, (SELECTION,)),
            Planned("Rendering", 45, 5, (RENDERING, JOINING)),
        ),
        Planned("Gesamt", 150, 33, ()),
    )


def on_cluster(
    job: Job, costs: StepCosts, nodes: Sequence[NodeCapability], measured: MeasuredSpeeds | None = None
) -> list[Work]:
    """The steps of a run in pods: shards cut for the speeds of the nodes, planning and merging beside the run."""
    cluster = Nodes(tuple(nodes))
    analysis = analysis_speeds(cluster, SIZE, measured=measured)[: workers_worth(job.clips)]
    return _steps(job, costs, analysis, encoding_speeds(cluster, TaskType.GPU_ENCODING, SIZE, measured))


def on_one_node(job: Job, costs: StepCosts) -> list[Work]:
    """The same steps where nothing is shared out, and no step is a process of its own."""
    return _steps(job, replace(costs, step_process=0.0), [1.0], [1.0])


def segments_of(job: Job) -> list[int]:
    """The frames of each segment of the film, as the production groups its shots."""
    count = round(job.film_s * FPS / SHOT_FRAMES)
    shots = [
        RenderShot(Path(clip.name), clip, Fraction(0), SHOT_FRAMES)
        for clip in (job.clips[number % len(job.clips)] for number in range(count))
    ]
    return [sum(shots[index].frames for index in group) for group in plan_segments(shots, Fraction(FPS))]


def _steps(job: Job, costs: StepCosts, speeds: Sequence[float], encoding: Sequence[float]) -> list[Work]:
    beside = costs.step_process
    counts = range_counts(job.clips, speeds)
    ranges = [part for clip in job.clips for part in cut_into_ranges(clip, counts[clip.name], _keyframe_before)]
    shares = [
        (turn, [ranges[item] for item in share])
        for turn, share in enumerate(balance([part.cost for part in ranges], speeds))
        if share
    ]
    footage_frames = sum(clip.frames_estimate for clip in job.clips)
    scenes_s = costs.scenes_start + costs.scenes_frame * footage_frames
    segments = segments_of(job)
    film_frames = sum(segments)
    shards = [_shard(turn, parts, costs) for turn, parts in shares]
    encodes = [
        _batch(turn, [segments[item] for item in share], costs)
        for turn, share in enumerate(balance(segments, encoding))
        if share
    ]
    shard_keys, segment_keys = (tuple(work.key for work in works) for works in (shards, encodes))
    plan, light = TaskType.METADATA, TaskType.CLIP_SELECTION
    return [
        Work("footage", FOOTAGE, plan, (), beside, len(job.clips) * costs.probe_clip),
        Work("beats", SONG, TaskType.AUDIO_ANALYSIS, ("footage",), job.film_s * costs.song_second),
        Work("proxies.plan", ANALYSIS, plan, ("footage",), beside),
        *shards,
        Work("proxies.join", ANALYSIS, plan, ("proxies.plan", *shard_keys), beside),
        Work("scene_shards.plan", ANALYSIS, plan, ("proxies.join",), beside),
        Work("scene_shards.merge", ANALYSIS, plan, ("scene_shards.plan",), beside + scenes_s),
        Work("clip_selections", SELECTION, light, ("scene_shards.merge", "beats"), beside + job.selection_s),
        Work("rendered_segments.plan", RENDERING, plan, ("clip_selections",), beside),
        *encodes,
        Work("rendered_segments.collect", RENDERING, plan, segment_keys, beside),
        Work(
            "montage", JOINING, TaskType.FINAL_RENDER, ("rendered_segments.collect",),
            costs.join_start + film_frames * costs.join_frame, joins=segment_keys,
        ),
        Work("film_checks", CHECKS, plan, ("montage",), beside, film_frames * costs.check_frame),
    ]  # fmt: skip


def _shard(turn: int, parts: Sequence[ClipRange], costs: StepCosts) -> Work:
    frames = sum(part.frames_estimate for part in parts)
    return Work(
        f"proxies.make[shard_{turn + 1}]", ANALYSIS, TaskType.PROXY_GENERATION, ("proxies.plan",),
        all_cores_s=frames * costs.analysis_frame + len(parts) * costs.analysis_range,
        turn=turn, cost=sum(part.cost for part in parts),
    )  # fmt: skip


def _batch(turn: int, frames: Sequence[int], costs: StepCosts) -> Work:
    return Work(
        f"rendered_segments.encode_segment[batch_{turn + 1}]", RENDERING, TaskType.GPU_ENCODING,
        ("rendered_segments.plan",), all_cores_s=sum(frames) * costs.segment_frame, turn=turn, frames=sum(frames),
    )  # fmt: skip


def _keyframe_before(time: int) -> int:
    every = KEYFRAME_EVERY_S * TIME_BASE.denominator
    return time // every * every
