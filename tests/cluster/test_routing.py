"""Which node a task goes to: the plan's rules on the plan's nodes, and what happens when a node is missing."""

from __future__ import annotations

import itertools

import pytest

from montage_assets.cluster import ClusterError, ClusterManager, ClusterMode, TaskRouter, TaskType, select_node_for_task
from montage_assets.cluster.tasks import ram_needed_gb, vram_needed_gb
from tests.cluster.clusters import (
    AMD,
    CONTROL_PLANE,
    EIGHT_K,
    ESPRIMO,
    FOUR_K,
    FULL_HD,
    JETSON,
    PI,
    THINKPAD,
    VAAPI,
    WORKER,
    Nodes,
    node,
    plan,
    plan_with,
    router,
)

EVERY_SIZE = [None, (640, 360), FULL_HD, (1080, 1920), (2560, 1440), FOUR_K, (2160, 3840), EIGHT_K]


@pytest.mark.parametrize("resolution", [FOUR_K, (4096, 2160), (2880, 2160), (2160, 3840), (1440, 2560), EIGHT_K])
def test_the_final_render_of_2160_lines_and_more_goes_to_the_amd_server(resolution: tuple[int, int]) -> None:
    assert select_node_for_task("final_render", resolution, Nodes(plan())) == AMD


@pytest.mark.parametrize("resolution", EVERY_SIZE)
def test_scene_detection_goes_to_the_node_with_most_cores_at_any_size(resolution: tuple[int, int] | None) -> None:
    assert select_node_for_task("scene_detection", resolution, Nodes(plan())) == THINKPAD
    assert router(plan()).route_task(TaskType.CPU_SCENE_DETECTION, resolution).name == THINKPAD


@pytest.mark.parametrize("resolution", EVERY_SIZE)
def test_audio_analysis_goes_to_the_cpu_node_with_most_memory_at_any_size(resolution: tuple[int, int] | None) -> None:
    assert select_node_for_task("audio_analysis", resolution, Nodes(plan())) == ESPRIMO


@pytest.mark.parametrize(
    ("task", "resolution", "name"),
    [
        ("4k_encoding", FOUR_K, AMD),
        ("8k_encoding", EIGHT_K, AMD),
        ("final_render", None, AMD),
        ("1080p_encoding", FULL_HD, JETSON),
        ("preview_render", None, JETSON),
        ("scene_detection", None, THINKPAD),
        ("cpu_intensive", None, THINKPAD),
        ("4k_analysis", FOUR_K, ESPRIMO),
        ("memory_intensive", None, ESPRIMO),
        ("batch_processing", None, ESPRIMO),
    ],
)
def test_what_a_node_is_optimal_for_goes_to_it(task: str, resolution: tuple[int, int] | None, name: str) -> None:
    assert select_node_for_task(task, resolution, Nodes(plan())) == name


def test_audio_analysis_goes_to_the_node_that_is_optimal_for_it_when_the_one_with_more_memory_is_away() -> None:
    assert router(plan(without=[ESPRIMO])).route_task("audio_analysis").name == THINKPAD


def test_gpu_encoding_of_4k_goes_to_the_amd_server() -> None:
    assert router(plan()).route_task(TaskType.GPU_ENCODING, resolution=FOUR_K).name == AMD


@pytest.mark.parametrize("task", ["gpu_encoding", "final_render", "preview_render", "1080p_encoding"])
@pytest.mark.parametrize("resolution", [FULL_HD, (1080, 1920), (1280, 720)])
def test_full_hd_and_less_is_encoded_on_the_jetson(task: str, resolution: tuple[int, int]) -> None:
    assert router(plan()).route_task(task, resolution).name == JETSON


@pytest.mark.parametrize("resolution", EVERY_SIZE)
@pytest.mark.parametrize("task", [TaskType.GPU_ENCODING, TaskType.FINAL_RENDER])
def test_encoding_goes_to_the_amd_server_or_the_jetson_while_they_are_there(
    task: TaskType, resolution: tuple[int, int] | None
) -> None:
    assert router(plan()).route_task(task, resolution).name in (AMD, JETSON)


@pytest.mark.parametrize("resolution", EVERY_SIZE)
@pytest.mark.parametrize("task", list(TaskType))
def test_every_task_has_a_node_at_every_size_that_has_the_memory_for_it(
    task: TaskType, resolution: tuple[int, int] | None
) -> None:
    chosen = router(plan()).choose(task, resolution)
    assert chosen.node.ram_gb >= ram_needed_gb(task, resolution)
    if chosen.uses_gpu and chosen.node.vram_gb is not None:
        assert chosen.node.vram_gb >= vram_needed_gb(task, resolution)
    assert chosen.why


@pytest.mark.parametrize("task", list(TaskType))
def test_the_control_plane_takes_work_only_when_nobody_else_does(task: TaskType) -> None:
    ranked = [candidate.node.name for candidate in router(plan()).rank(task) if candidate.suitable]
    assert CONTROL_PLANE not in ranked[:-1]
    alone = plan(without=[AMD, JETSON, THINKPAD, ESPRIMO, VAAPI, WORKER, PI])
    assert router(alone).route_task(task).name == CONTROL_PLANE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedulable": False}, "cordoned"),
        ({"ready": False}, "not ready"),
        ({"taints": ("x=y:NoExecute",)}, "x=y:NoExecute"),
    ],
)
def test_the_next_best_takes_over_from_the_amd_server_and_says_why(change: dict[str, object], words: str) -> None:
    chosen = router(plan_with(AMD, **change)).choose("final_render", FOUR_K)
    assert chosen.node.name == VAAPI  # the Jetson is faster but has too little memory for 4K
    assert f"instead of {AMD}" in chosen.why
    assert words in chosen.why


def test_the_next_best_takes_over_when_the_amd_server_is_missing() -> None:
    assert router(plan(without=[AMD])).route_task("final_render", FOUR_K).name == VAAPI


def test_the_amd_server_takes_over_from_the_jetson() -> None:
    for task in ("final_render", "gpu_encoding", "preview_render"):
        assert router(plan_with(JETSON, ready=False)).route_task(task, FULL_HD).name == AMD


def test_without_any_gpu_node_films_are_rendered_on_the_cpu_node_that_encodes_fastest() -> None:
    for task, size in itertools.product(["final_render", "gpu_encoding", "preview_render"], [FULL_HD, FOUR_K, EIGHT_K]):
        chosen = router(plan(without=[AMD, JETSON, VAAPI])).choose(task, size)
        assert chosen.node.name == THINKPAD
        assert chosen.encoder is None
        assert "on the CPU" in chosen.why


def test_scene_detection_falls_to_the_planned_nodes_in_their_order() -> None:
    gone: list[str] = []
    for expected in (THINKPAD, ESPRIMO, VAAPI, WORKER):
        assert router(plan(without=gone)).route_task("scene_detection").name == expected
        gone.append(expected)


def test_a_preference_by_taint_keeps_nobody_away() -> None:
    assert router(plan_with(AMD, taints=("x:PreferNoSchedule",))).route_task("final_render", FOUR_K).name == AMD


def test_a_gpu_taint_leaves_the_node_to_gpu_work() -> None:
    tainted = plan_with(AMD, taints=("amd.com/gpu:NoSchedule",))
    assert router(tainted).route_task("final_render", FOUR_K).name == AMD
    analysts = {candidate.node.name: candidate for candidate in router(tainted).rank("scene_detection")}
    assert "amd.com/gpu:NoSchedule" in analysts[AMD].closed
    fast = node("gpu", gpu="nvidia", taints=["nvidia.com/gpu:NoSchedule"], cpu_cores=64)
    assert router([fast, node("plain")]).choose("scene_detection").why == "speed 1, 8 cores"


def test_all_better_nodes_passed_over_are_named() -> None:
    chosen = router(plan_with(AMD, ready=False)).choose("4k_encoding")
    assert chosen.why.endswith(f"instead of {AMD} (not ready) and {JETSON} (has 7.4 GB RAM of 8 needed)")


def test_8k_is_not_encoded_in_8_gb_of_video_memory() -> None:
    small = node("small", gpu="NVIDIA GeForce RTX 4060", vram_gb=8, encoders=["h264_nvenc"], ram_gb=64)
    plain = node("plain", ram_gb=64, cpu_cores=4)
    chosen = router([plain, small]).choose("gpu_encoding", EIGHT_K)
    assert not chosen.uses_gpu
    assert "8 GB video memory of 11 needed" in next(c.why for c in router([plain, small]).rank("gpu_encoding", EIGHT_K))
    assert router([plain, small]).choose("gpu_encoding", FOUR_K).encoder == "h264_nvenc"


def test_unknown_video_memory_does_not_bar_a_gpu_from_4k() -> None:
    integrated = node("igpu", gpu="intel", encoders=["h264_qsv"])
    assert router([node("plain", cpu_cores=64), integrated]).choose("final_render", FOUR_K).encoder == "h264_qsv"


def test_too_little_memory_bars_a_node() -> None:
    ranked = router([node("tiny", ram_gb=4, cpu_cores=64), node("fit", ram_gb=16, cpu_cores=2)]).rank("4k_encoding")
    assert [candidate.node.name for candidate in ranked] == ["fit", "tiny"]
    assert ranked[1].closed == "has 4 GB RAM of 8 needed"


def test_where_nobody_has_the_memory_the_largest_node_works_anyway() -> None:
    chosen = router([node("tiny", ram_gb=2), node("small", ram_gb=4)]).choose("final_render", FOUR_K)
    assert chosen.node.name == "small"
    assert "has 4 GB RAM of 8 needed" in chosen.why


def test_where_nobody_is_open_the_error_says_what_each_node_is() -> None:
    with pytest.raises(ClusterError, match=r"^no node takes final_render: a is not ready; b is cordoned$"):
        router([node("a", ready=False), node("b", schedulable=False)]).route_task("final_render")


def test_an_empty_cluster_is_an_error_and_no_crash() -> None:
    with pytest.raises(ClusterError, match="no nodes"):
        router([]).route_task("final_render")


def test_an_unknown_task_is_refused_with_the_nearest_and_all_others() -> None:
    with pytest.raises(
        ClusterError, match=r"^there is no task 'final_rendr'; did you mean final_render\? the tasks are "
    ) as error:
        router(plan()).route_task("final_rendr")
    assert "\n" not in str(error.value)
    for task in TaskType:
        assert task.value in str(error.value)


def test_a_gpu_without_an_encoder_is_offered_for_upscaling_but_not_for_encoding() -> None:
    h100 = node("h100", gpu="NVIDIA H100 PCIe", vram_gb=80, ram_gb=256, cpu_cores=4)
    igpu = node("igpu", gpu="intel", encoders=["h264_qsv"])
    assert router([h100, igpu]).route_task("gpu_encoding", FOUR_K).name == "igpu"
    assert router([igpu, h100]).route_task("upscaling").name == "h100"


def test_analysis_leaves_nodes_with_a_big_gpu_free_unless_they_are_much_faster() -> None:
    card = {"gpu": "nvidia", "vram_gb": 16, "encoders": ["h264_nvenc"]}
    assert router([node("gpu", **card), node("plain")]).route_task("scene_detection").name == "plain"
    assert router([node("gpu", **card, cpu_cores=64), node("plain")]).route_task("scene_detection").name == "gpu"


def test_without_any_optimal_for_the_hardware_alone_gives_the_plans_rules() -> None:
    bare = [entry.model_copy(update={"optimal_for": (), "speed": {}, "assumed": ()}) for entry in plan()]
    assert router(bare).route_task("final_render", FOUR_K).name == AMD
    assert router(bare).route_task("scene_detection").name == THINKPAD
    assert router(bare).route_task("audio_analysis").name == ESPRIMO


def test_measured_speeds_overrule_stated_ones() -> None:
    slow, quick = node("slow", speed=4), node("quick", speed=1)
    assert router([slow, quick]).route_task("cpu_intensive").name == "slow"
    measured = TaskRouter(Nodes([slow, quick]), measured={"analyze": {"slow": 10.0, "quick": 30.0}})
    chosen = measured.choose("cpu_intensive")
    assert chosen.node.name == "quick"
    assert "measured speed" in chosen.why


def test_the_ranking_names_every_node_once_and_the_unfit_last() -> None:
    for task, resolution in itertools.product(TaskType, EVERY_SIZE):
        ranked = router(plan()).rank(task, resolution)
        assert sorted(candidate.node.name for candidate in ranked) == sorted(entry.name for entry in plan())
        assert [c.suitable for c in ranked] == sorted((c.suitable for c in ranked), reverse=True)


def test_of_equal_nodes_the_one_whose_numbers_are_known_comes_first() -> None:
    guessed = node("guessed", assumed=["cpu_cores", "ram_gb"])
    assert router([guessed, node("stated")]).route_task("cpu_intensive").name == "stated"


def test_the_order_of_equal_nodes_is_the_order_of_the_file() -> None:
    assert router([node("b"), node("a")]).route_task("cpu_intensive").name == "b"


def test_the_plans_four_nodes_get_the_plans_quarters() -> None:
    shards = router(plan()).shard_ranges(TaskType.CPU_SCENE_DETECTION, 4)
    assert [(shard.index, shard.node, shard.percent) for shard in shards] == [
        (0, THINKPAD, "0-25%"),
        (1, ESPRIMO, "25-50%"),
        (2, VAAPI, "50-75%"),
        (3, WORKER, "75-100%"),
    ]


def test_more_shards_than_nodes_go_round_and_share_their_nodes_speed() -> None:
    shards = router([node("a"), node("b", cpu_cores=16)]).shard_ranges(count=4)
    assert [shard.node for shard in shards] == ["b", "a", "b", "a"]
    assert [float(shard.end - shard.start) for shard in shards] == pytest.approx([1 / 3, 1 / 6, 1 / 3, 1 / 6])


def test_no_shards_at_all_cannot_be_asked_for() -> None:
    with pytest.raises(ClusterError, match="at least one"):
        router(plan()).shard_ranges(count=0)


def test_parallel_jobs_hold_each_video_exactly_once() -> None:
    videos = [f"/data/input/v{number}.mp4" for number in range(37)] + ["/data/input/v0.mp4"]
    jobs = router(plan()).create_parallel_jobs(TaskType.CPU_SCENE_DETECTION, videos)
    assert sorted(index for job in jobs for index in job.indexes) == list(range(38))
    assert sorted(video for job in jobs for video in job.videos) == sorted(videos)
    assert len({job.node.name for job in jobs}) == len(jobs) == 8  # every node has a part


def test_two_videos_go_to_the_two_best_nodes() -> None:
    jobs = router(plan()).create_parallel_jobs(TaskType.CPU_SCENE_DETECTION, ["v1.mp4", "v2.mp4"])
    assert [(job.node.name, job.videos) for job in jobs] == [(THINKPAD, ("v1.mp4",)), (ESPRIMO, ("v2.mp4",))]


def test_four_equal_videos_go_to_the_plans_four_nodes() -> None:
    jobs = router(plan()).create_parallel_jobs("scene_detection", list("abcd"), parallelism=4)
    assert [job.node.name for job in jobs] == [THINKPAD, ESPRIMO, VAAPI, WORKER]


def test_no_videos_make_no_jobs() -> None:
    assert router(plan()).create_parallel_jobs("scene_detection", []) == []


def test_costs_must_fit_the_videos() -> None:
    with pytest.raises(ClusterError, match="one cost"):
        router(plan()).create_parallel_jobs("scene_detection", ["a", "b"], costs=[1.0])


def test_a_slow_node_gets_fewer_items() -> None:
    jobs = router([node("quick", speed=3), node("slow", speed=1)]).create_parallel_jobs(
        "cpu_intensive", list("abcdefgh")
    )
    assert {job.node.name: len(job.videos) for job in jobs} == {"quick": 6, "slow": 2}


def test_the_router_takes_the_manager_of_the_documents_example() -> None:
    cluster = ClusterManager(plan(), ClusterMode.CONFIG, ClusterMode.AUTO, "the test says so")
    assert TaskRouter(cluster).route_task(TaskType.GPU_ENCODING, resolution=FOUR_K).name == AMD
