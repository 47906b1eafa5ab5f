"""The replay of a run on a cluster: small cases worked out by hand, and the plan's targets with fixed costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.cluster import equal_nodes, outcome, section_of, speeds_told
from benchmarks.cluster_costs import SIZE, StepCosts
from benchmarks.cluster_jobs import ANALYSIS, four_k, long_job, on_cluster, segments_of, short_job
from benchmarks.cluster_replay import Done, Pace, Work, alone_s, made_again, replay, shared_out
from montage_assets.assets.rendered_segments import SegmentTask, ShotSource, batches_of
from montage_assets.assets.shard_sizes import range_counts
from montage_assets.cluster.node import NodeCapability
from montage_assets.cluster.tasks import TaskType
from montage_assets.media.render import OutputFormat
from tests.cluster.clusters import AMD, ESPRIMO, PI, VAAPI, node, plan

COSTS = StepCosts(
    analysis_frame=0.047, analysis_range=0.3, probe_clip=0.2, scenes_start=0.05, scenes_frame=2e-5, song_second=0.004,
    short_selection=0.25, long_selection=2.0, segment_frame=0.35, segment_picture_frame=0.09, join_start=0.6,
    join_frame=0.003, check_frame=0.025, step_process=0.6, footage_mbit=90.0,
)  # fmt: skip
"""Round figures of the size that was measured: the tests are about what follows from them."""

BY_HAND = Pace(pod_start_s=10.0, notice_s=1.0, parallel=1.0)


def done_by(nodes: Sequence[NodeCapability], works: Sequence[Work], **options: Any) -> dict[str, Done]:
    return {done.work.key: done for done in replay(nodes, works, SIZE, SIZE, pace=BY_HAND, **options)}


def score(turn: int, cpu_s: float) -> Work:
    return Work(f"score[shard_{turn + 1}]", ANALYSIS, TaskType.CPU_SCENE_DETECTION, (), 0, cpu_s, turn, cost=cpu_s)


def encode(turn: int, cpu_s: float) -> Work:
    return Work(f"encode[batch_{turn + 1}]", "", TaskType.GPU_ENCODING, (), 0, cpu_s, turn, frames=100)


def test_the_clip_that_one_worker_would_be_left_with_is_shared_by_all() -> None:
    clips = [four_k(f"{number}.mp4", 60.0) for number in range(73)]
    counts = range_counts(clips, [1.0] * 4)
    assert sorted(counts.values()) == [1] * 72 + [3]  # no piece is shorter than 20 s


def test_a_step_waits_for_its_run_its_own_pod_and_the_notice_of_the_step_before() -> None:
    steps = done_by(
        equal_nodes(1),
        [
            Work("plan", "", TaskType.METADATA, one_core_s=2.0),
            Work("score", ANALYSIS, TaskType.CPU_SCENE_DETECTION, ("plan",), one_core_s=1.0, all_cores_s=80.0),
        ],
    )
    assert (steps["plan"].began_s, steps["plan"].ended_s) == (10.0, 12.0)  # the run's own pod, then no other
    # Noticed at 13, ten seconds of starting, one on a core, 80 on eight.
    assert (steps["score"].ready_s, steps["score"].began_s, steps["score"].ended_s) == (13.0, 23.0, 34.0)


def test_one_node_alone_needs_no_pods() -> None:
    assert alone_s([Work("a", "", TaskType.METADATA, (), 2.0, 80.0)], parallel=0.5) == 2.0 + 20.0


def test_a_gpu_is_held_by_one_pod_at_a_time_and_encodes_as_fast_as_is_stated() -> None:
    gpu = node(
        "gpu", gpu="amd_rx7900xtx", vram_gb=24, encoders=["h264_amf"], speed={"encode": 10},
        resources={"amd.com/gpu": 1}, ram_gb=64,
    )  # fmt: skip
    steps = done_by((gpu,), [encode(0, 800.0), encode(1, 800.0)])
    first, second = steps["encode[batch_1]"], steps["encode[batch_2]"]
    assert (first.bound_s, first.ended_s) == (10.0, 30.0)  # 800 CPU-s at ten times eight cores
    assert (second.bound_s, second.ended_s) == (30.0, 50.0)
    assert (first.encoder, first.on_gpu) == ("h264_amf", True)


def test_pods_on_the_same_node_share_its_cores_and_those_that_do_not_fit_wait() -> None:
    small = node("small", cpu_cores=8, ram_gb=10, speed={"analyze": 1})
    steps = done_by((small,), [score(0, 80.0), score(1, 80.0), score(2, 80.0)])
    assert [steps[f"score[shard_{number}]"].ended_s for number in (1, 2)] == [40.0, 40.0]  # ten seconds' work each
    assert steps["score[shard_3]"].bound_s == 40.0  # three times 4 GiB beside the run do not fit into ten
    assert steps["score[shard_3]"].ended_s == 60.0


def test_a_node_slower_than_stated_takes_so_much_longer() -> None:
    steps = done_by(equal_nodes(2), [score(0, 80.0), score(1, 80.0)], slowed={"node-1": 0.5})
    assert {done.node: done.ended_s - done.began_s for done in steps.values()} == {"node-1": 20.0, "node-2": 10.0}
    assert speeds_told(list(steps.values())) == {"analyze": {"node-1": 4.0, "node-2": 8.0}}


def test_segments_of_another_encoder_are_made_again_where_the_film_is_joined() -> None:
    nodes = [node for node in plan() if node.name in (AMD, VAAPI)]
    film = Work("montage", "", TaskType.FINAL_RENDER, ("encode[batch_1]", "encode[batch_2]"), 5.0,
                joins=("encode[batch_1]", "encode[batch_2]"))  # fmt: skip
    large = Work("encode[batch_1]", "", TaskType.GPU_ENCODING, (), 0, 1200.0, 0, frames=300)
    steps = done_by(nodes, [large, encode(1, 240.0), film])
    assert [steps[f"encode[batch_{number}]"].encoder for number in (1, 2)] == ["h264_amf", "h264_vaapi"]
    assert [done.work.key for done in made_again(list(steps.values())[:2])] == ["encode[batch_2]"]
    joined = steps["montage"]
    assert joined.node == AMD
    assert joined.ended_s - joined.began_s == pytest.approx(5.0 + 240.0 / (8 * 15))


def test_steps_that_wait_for_ever_are_named() -> None:
    with pytest.raises(ValueError, match=r"wait for ever.*'score'"):
        done_by(equal_nodes(1), [Work("score", "", TaskType.METADATA, ("no such step",))])


def test_cores_are_shared_by_what_processes_can_use() -> None:
    assert shared_out(8, [1, 8, 8]) == [1, 3.5, 3.5]
    assert shared_out(8, [1, 1]) == [1, 1]


def test_the_same_replay_gives_the_same_times() -> None:
    works = on_cluster(short_job(COSTS, 20), COSTS, plan())
    assert replay(plan(), works, SIZE, SIZE) == replay(plan(), works, SIZE, SIZE)


def test_the_long_job_of_the_plan_is_four_and_a_half_times_as_fast_on_its_nodes_and_all_work() -> None:
    found = outcome(long_job(COSTS), COSTS, plan())
    assert found.speedup() >= 4.5
    assert found.nodes_used == 8
    assert sum(done.work.frames for done in found.steps) == 300 * 30 == sum(segments_of(found.job))


def test_the_short_job_gains_four_times_where_the_plan_says_so() -> None:
    job = short_job(COSTS)
    found = outcome(job, COSTS, plan())
    assert found.alone[ANALYSIS] == pytest.approx(20 * 60, rel=0.02)
    assert found.alone[ANALYSIS] / found.cluster[ANALYSIS] >= 4
    assert found.speedup() >= 4


def test_four_equal_nodes_are_used_to_more_than_three_quarters() -> None:
    assert outcome(long_job(COSTS), COSTS, equal_nodes()).speedup() >= 0.75 * 4


def test_every_shard_runs_on_the_node_that_it_was_cut_for() -> None:
    found = outcome(long_job(COSTS), COSTS, plan())
    shards = [done for done in found.steps if done.work.task is TaskType.PROXY_GENERATION]
    assert len({done.node for done in shards}) == 8
    costs = {done.node: done.work.cost for done in shards}
    assert costs[PI] < 0.4 * costs[ESPRIMO]
    times = [done.ended_s - done.began_s for done in shards]
    assert min(times) > 0.75 * max(times)


def test_a_slow_node_gets_less_in_the_next_run() -> None:
    slowed = {ESPRIMO: 0.5}
    first = outcome(long_job(COSTS), COSTS, plan(), slowed=slowed)
    second = outcome(long_job(COSTS), COSTS, plan(), slowed=slowed, measured=speeds_told(first.steps))
    assert second.cluster[ANALYSIS] < 0.75 * first.cluster[ANALYSIS]


def test_footage_is_cut_as_fine_as_the_slowest_node_needs_and_no_finer() -> None:
    hour = [four_k("hour.mp4", 3600.0)]
    assert range_counts(hour, [1.0]) == {"hour.mp4": 6}  # by the longest range that may be lost
    assert range_counts(hour, [1.0] * 8) == {"hour.mp4": 8}
    assert range_counts(hour, [1.0] * 7 + [0.25]) == {"hour.mp4": 64}
    assert range_counts([four_k("minute.mp4", 60.0)], [1.0, 0.5]) == {"minute.mp4": 3}
    assert range_counts([], [1.0, 0.5]) == {}


def test_segments_go_to_workers_as_these_are_fast_and_one_by_one_where_speeds_are_unknown() -> None:
    clip = four_k("a.mp4", 60.0)
    fmt = OutputFormat(*SIZE, clip.fps)
    tasks = [
        SegmentTask(number, 12, f"key-{number}", [ShotSource("a.mp4", "", clip, clip.time_base, 90)], fmt)
        for number in range(12)
    ]
    assert list(batches_of(tasks[:2], [])) == ["segment_1", "segment_2"]
    batches = batches_of(tasks, [8.0, 0.1, 4.0])
    assert {name: len(batch.tasks) for name, batch in batches.items()} == {"batch_1": 8, "batch_3": 4}
    assert sorted(task.index for batch in batches.values() for task in batch.tasks) == list(range(12))


def test_the_section_names_every_stage_of_the_plan_and_every_target() -> None:
    section = section_of(COSTS)
    stages = {row[0] for table in section.tables[:2] for row in table.rows if row[0]}
    assert stages == {
        "Scene Detection", "Clip Enhancement + Segment Render", "Final Concat", "Gesamt",
        "Proxy Generation + Scene Detection", "Clip Selection", "Rendering",
    }  # fmt: skip
    assert sum(line.target == "at least 4.5 x" for line in section.lines) == 3
    assert sum(line.target == "at least 80 %" for line in section.lines) == 2
    assert all(line.why for line in section.lines if line.met is False)
