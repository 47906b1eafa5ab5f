"""Where the pod of a step goes, and what it asks for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from montage_assets.cluster.distribution import balance
from montage_assets.cluster.node import NodeCapability
from montage_assets.cluster.placement import (
    Placement,
    Placer,
    Step,
    analysis_speeds,
    encoding_speeds,
    gpu_resource,
    k8s_config,
)
from montage_assets.cluster.tasks import TaskType
from tests.cluster.clusters import (
    AMD,
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
)

SIZES = [None, (1280, 720), FULL_HD, FOUR_K, (7680, 4320)]


def place(step: Step, nodes: tuple[NodeCapability, ...] | None = None, **options: Any) -> Placement:
    return Placer(**options).place(step, Nodes(plan() if nodes is None else nodes))


def segment(turn: int, size: tuple[int, int] = FULL_HD) -> Step:
    return Step(f"encode[segment_{turn + 1}]", TaskType.GPU_ENCODING, film_size=size, turn=turn)


def shard(turn: int) -> Step:
    return Step(f"score[shard_{turn + 1}]", TaskType.CPU_SCENE_DETECTION, source_size=FOUR_K, turn=turn)


def test_a_4k_film_is_joined_on_the_amd_node_and_a_1080p_one_on_the_jetson() -> None:
    assert place(Step("montage", TaskType.FINAL_RENDER, film_size=FOUR_K)).nodes[0] == AMD
    assert place(Step("montage", TaskType.FINAL_RENDER, film_size=FULL_HD)).nodes[0] == JETSON
    assert place(Step("montage", TaskType.PREVIEW_RENDER, film_size=FOUR_K)).nodes[0] == JETSON


def test_with_the_amd_node_cordoned_a_4k_film_goes_to_the_next_best() -> None:
    placed = place(Step("montage", TaskType.FINAL_RENDER, film_size=FOUR_K), plan_with(AMD, schedulable=False))
    assert placed.nodes[0] == VAAPI
    assert placed.gpu_resource == "squat.ai/dri"
    assert "cordoned" in placed.why


def test_without_gpu_nodes_a_film_is_rendered_on_the_cpu() -> None:
    placed = place(Step("montage", TaskType.FINAL_RENDER, film_size=FOUR_K), plan(without=[AMD, JETSON, VAAPI]))
    assert placed.gpu_resource is None
    assert placed.required == ()
    assert placed.nodes[0] in (THINKPAD, ESPRIMO)


def test_shard_i_goes_to_the_node_that_the_plan_names() -> None:
    placer = Placer()
    placed = [placer.place(shard(turn), Nodes(plan())).nodes[0] for turn in range(4)]
    assert placed == [THINKPAD, ESPRIMO, VAAPI, WORKER]


def test_shards_are_cut_to_the_speeds_of_their_nodes() -> None:
    nodes = (node("fast", speed=3), node("slow", speed=1))
    speeds = analysis_speeds(Nodes(nodes), FULL_HD)
    assert speeds == [3, 1]
    shares = balance([1.0] * 8, speeds)
    assert [len(share) for share in shares] == [6, 2]
    placer = Placer()
    assert [placer.place(shard(turn), Nodes(nodes)).nodes[0] for turn in range(2)] == ["fast", "slow"]


def test_more_shards_than_nodes_share_their_nodes_speed() -> None:
    assert analysis_speeds(Nodes((node("a", speed=2), node("b", speed=1))), FULL_HD, shards=3) == [1, 1, 1]


def test_a_measured_speed_outweighs_a_stated_one() -> None:
    nodes = Nodes((node("a", speed=1), node("b", speed=1)))
    assert analysis_speeds(nodes, FULL_HD, measured={"analyze": {"a": 10.0, "b": 30.0}}) == pytest.approx([1.5, 0.5])


def test_segments_spread_over_the_encoders_in_proportion_to_their_speed() -> None:
    speeds = encoding_speeds(Nodes(plan()), TaskType.GPU_ENCODING, FULL_HD)
    shares = balance([1.0] * 24, speeds)
    placed = {place(segment(turn)).nodes[0]: len(share) for turn, share in enumerate(shares)}
    assert placed[AMD] > placed[JETSON] > placed[VAAPI] >= 1
    assert next(iter(placed)) == JETSON


def test_a_node_with_two_gpus_takes_two_batches_of_segments_at_a_time() -> None:
    rtx = {"gpu": "nvidia_rtx4090", "vram_gb": 24, "encoders": ["h264_nvenc"], "speed": {"encode": 10}}
    nodes = (node("two", **rtx, resources={"nvidia.com/gpu": 2}), node("cpu", speed={"encode": 1}))
    assert encoding_speeds(Nodes(nodes), TaskType.GPU_ENCODING, FOUR_K) == [10, 10, 1]
    assert [place(segment(turn, FOUR_K), nodes).nodes[0] for turn in range(3)] == ["two", "two", "cpu"]


def test_a_segment_whose_node_died_is_tried_elsewhere_first() -> None:
    step = Step("montage", TaskType.FINAL_RENDER, film_size=FOUR_K, attempt=1, lost_on=(AMD,))
    placed = place(step)
    assert placed.nodes[0] == VAAPI
    assert f"after {AMD} lost it" in placed.why


def test_nothing_asks_for_more_than_its_node_has() -> None:
    tasks_and_sizes = itertools.product(TaskType, SIZES, range(4))
    for task, size, turn in tasks_and_sizes:
        placed = place(Step("s", task, film_size=size, source_size=size, turn=turn))
        chosen = next(node for node in plan() if node.name == placed.nodes[0])
        assert placed.memory_gb <= placed.memory_limit_gb < chosen.ram_gb
        assert placed.cpus < chosen.cpu_cores
        assert placed.gpu_resource is None or placed.gpu_resource in chosen.resources


def test_4k_work_gets_eight_to_sixteen_gibibytes() -> None:
    config = k8s_config(place(Step("montage", TaskType.FINAL_RENDER, film_size=FOUR_K)), "run")
    resources = config["container_config"]["resources"]
    assert resources["requests"]["memory"] == "8Gi"
    assert resources["limits"] == {"memory": "16Gi", "amd.com/gpu": "1"}


def test_scene_detection_asks_for_what_the_plan_gives_it() -> None:
    requests = k8s_config(place(shard(0)), "run")["container_config"]["resources"]["requests"]
    assert requests == {"cpu": "2", "memory": "4Gi"}


def test_only_a_needed_capability_is_required_and_all_nodes_that_have_it_qualify() -> None:
    nodes = (
        node("rtx", gpu="nvidia_rtx4090", vram_gb=24, encoders=["h264_nvenc"], resources={"nvidia.com/gpu": 1}),
        node("rtx2", gpu="nvidia_rtx3060", vram_gb=12, encoders=["h264_nvenc"], resources={"nvidia.com/gpu": 1}),
        node("h100", gpu="nvidia_h100", vram_gb=80, resources={"nvidia.com/gpu": 1}),
        node("cpu"),
    )
    affinity = _affinity(k8s_config(place(segment(0), nodes), "run"))
    (term,) = affinity["required_during_scheduling_ignored_during_execution"]["node_selector_terms"]
    assert term["match_expressions"][0]["values"] == ["rtx", "rtx2"]
    assert "required_during_scheduling_ignored_during_execution" not in _affinity(k8s_config(place(shard(0)), "run"))


def test_a_gpu_that_no_device_plugin_hands_out_is_not_counted_on() -> None:
    bare = node("vaapi", gpu="vaapi", encoders=["h264_vaapi"])
    assert gpu_resource(bare) is None
    assert gpu_resource(node("amd", gpu="amd_rx7900xtx", vram_gb=24)) == "amd.com/gpu"
    assert gpu_resource(node("amd", gpu="amd_rx7900xtx", vram_gb=24, resources={"amd.com/gpu": 2})) == "amd.com/gpu"
    placed = place(segment(0), (bare, node("cpu", cpu_cores=16)))
    assert (placed.nodes[0], placed.gpu_resource) == ("cpu", None)


def test_a_tainted_gpu_node_is_tolerated_by_gpu_work_alone() -> None:
    nodes = (
        node(
            "gpu",
            gpu="nvidia_rtx4090",
            vram_gb=24,
            encoders=["h264_nvenc"],
            resources={"nvidia.com/gpu": 1},
            taints=["nvidia.com/gpu=present:NoSchedule"],
        ),
        node("cpu"),
    )
    tolerations = k8s_config(place(segment(0), nodes), "run")["pod_spec_config"]["tolerations"]
    assert tolerations == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    analysis = k8s_config(place(shard(0), nodes), "run")["pod_spec_config"]
    assert "tolerations" not in analysis
    assert place(shard(0), nodes).nodes == ("cpu",)


def test_the_best_node_weighs_far_more_than_the_second() -> None:
    affinity = _affinity(k8s_config(place(shard(0)), "run"))
    weights = [term["weight"] for term in affinity["preferred_during_scheduling_ignored_during_execution"]]
    assert weights[0] == 100
    assert all(later <= 30 for later in weights[1:])
    assert min(weights) >= 1


def test_a_hostname_label_that_differs_from_the_nodes_name_is_used() -> None:
    nodes = (node("node-1", labels={"kubernetes.io/hostname": "desk"}),)
    affinity = _affinity(k8s_config(place(shard(0), nodes), "run"))
    (term,) = affinity["preferred_during_scheduling_ignored_during_execution"]
    assert term["preference"]["match_expressions"][0]["values"] == ["desk"]


def test_the_shards_of_one_run_spread_over_hosts() -> None:
    (spread,) = k8s_config(place(shard(0)), "run-7")["pod_spec_config"]["topology_spread_constraints"]
    assert spread["topology_key"] == "kubernetes.io/hostname"
    assert spread["label_selector"]["match_labels"] == {
        "montage/task": "cpu_scene_detection",
        "dagster/run-id": "run-7",
    }


def test_every_pod_has_a_deadline_so_that_none_waits_for_ever() -> None:
    assert k8s_config(place(shard(0)), "run")["job_spec_config"]["active_deadline_seconds"] == 12 * 3600
    assert place(shard(0), deadline_s=90).deadline_s == 90
    assert place(Step("beats", TaskType.AUDIO_ANALYSIS)).deadline_s == 2 * 3600


def test_only_rendering_has_the_priority_class() -> None:
    render = place(Step("montage", TaskType.FINAL_RENDER, film_size=FULL_HD))
    assert k8s_config(render, "run", "montage-render")["pod_spec_config"]["priority_class_name"] == "montage-render"
    assert "priority_class_name" not in k8s_config(place(shard(0)), "run", "montage-render")["pod_spec_config"]


def test_without_a_matrix_a_step_asks_for_resources_alone() -> None:
    placed = Placer().place(shard(0), None)
    config = k8s_config(placed, "run")
    assert "affinity" not in config["pod_spec_config"]
    assert config["container_config"]["resources"]["requests"]["memory"] == "4Gi"


def test_with_no_node_that_takes_work_the_step_waits_unplaced_and_says_why() -> None:
    placed = place(shard(0), (node("only", ready=False),))
    assert placed.nodes == ()
    assert "only is not ready" in placed.why


def test_where_every_node_is_too_small_the_largest_is_asked_for_what_it_has() -> None:
    placed = place(Step("montage", TaskType.FINAL_RENDER, film_size=FOUR_K), (node("a", ram_gb=4), node(PI, ram_gb=2)))
    assert placed.nodes[0] == "a"
    assert placed.memory_gb == pytest.approx(3.4)


def _affinity(config: dict[str, Any]) -> dict[str, Any]:
    affinity: dict[str, Any] = config["pod_spec_config"]["affinity"]["node_affinity"]
    return affinity
