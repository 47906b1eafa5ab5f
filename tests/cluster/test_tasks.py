"""Task names: the plan's, the pipeline's tags, and sizes."""

from __future__ import annotations

import dagster as dg
import pytest

from montage_assets.assets.common import TASK_TAG
from montage_assets.cluster import ClusterError, TaskType
from montage_assets.cluster.tasks import PROFILES, ram_needed_gb, size_class, vram_needed_gb
from montage_assets.definitions import build_definitions
from tests.cluster.clusters import EIGHT_K, FOUR_K, FULL_HD


def tags_of_all_ops() -> dict[str, str | None]:
    repository = build_definitions().get_repository_def()
    ops: dict[str, str | None] = {}
    for assets in repository.assets_defs_by_key.values():
        if isinstance(assets, dg.AssetsDefinition) and assets.is_executable:
            ops |= {op.name: op.tags.get(TASK_TAG) for op in assets.node_def.iterate_op_defs()}
    return ops


def test_every_step_of_the_pipeline_is_a_task_that_can_be_routed() -> None:
    tags = tags_of_all_ops()
    assert len(tags) >= 12
    assert {name: tag for name, tag in tags.items() if tag not in {task.value for task in TaskType}} == {}


def test_the_plans_five_tasks_have_its_names() -> None:
    assert [task.name for task in list(TaskType)[:5]] == [
        "GPU_ENCODING",
        "CPU_SCENE_DETECTION",
        "MEMORY_INTENSIVE",
        "PROXY_GENERATION",
        "FINAL_RENDER",
    ]


def test_every_task_has_a_profile() -> None:
    assert set(PROFILES) == set(TaskType)


@pytest.mark.parametrize("text", ["final_render", "FINAL_RENDER", " final_render "])
def test_a_task_is_found_by_its_name_in_any_case(text: str) -> None:
    assert TaskType.parse(text) is TaskType.FINAL_RENDER


def test_scene_detection_is_the_plans_short_name() -> None:
    assert TaskType.parse("scene_detection") is TaskType.CPU_SCENE_DETECTION


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ClusterError, match="there is no task 'coffee'; the tasks are 1080p_encoding, "):
        TaskType.parse("coffee")


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [
        (None, "any"),
        (FULL_HD, "1080p"),
        ((1080, 1920), "1080p"),
        ((2560, 1440), "1080p"),
        (FOUR_K, "4k"),
        ((2160, 3840), "4k"),
        ((4096, 1716), "4k"),
        ((2880, 2160), "4k"),
        ((2878, 2158), "1080p"),
        (EIGHT_K, "8k"),
        ((4320, 7680), "8k"),
    ],
)
def test_sizes_are_told_apart_also_upright_and_flat(resolution: tuple[int, int] | None, expected: str) -> None:
    assert size_class(resolution) == expected


@pytest.mark.parametrize("task", list(TaskType))
def test_a_larger_picture_never_needs_less(task: TaskType) -> None:
    sizes = [FULL_HD, FOUR_K, EIGHT_K]
    assert [ram_needed_gb(task, size) for size in sizes] == sorted(ram_needed_gb(task, size) for size in sizes)
    assert [vram_needed_gb(task, size) for size in sizes] == sorted(vram_needed_gb(task, size) for size in sizes)


def test_video_memory_needed_grows_with_the_pixels() -> None:
    needed = [vram_needed_gb(TaskType.GPU_ENCODING, size) for size in (FULL_HD, FOUR_K, EIGHT_K)]
    assert needed == pytest.approx([0.695, 2.78, 11.12], abs=0.01)
    assert vram_needed_gb(TaskType.CPU_SCENE_DETECTION, EIGHT_K) == 0
