"""Whole runs in pods: the real launcher, executor and client against the emulated cluster of the plan's nodes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from montage_assets.cluster.executors import FALLBACK_TAG
from montage_assets.cluster.pods import KnownNodes, _task_of
from montage_assets.cluster.tasks import TaskType
from montage_assets.local_run import montage_job
from montage_assets.settings import Settings
from tests.assets.small_montage import run_job, write_montage
from tests.cluster.clusters import AMD, ESPRIMO, JETSON, SHIPPED, THINKPAD, VAAPI, WORKER, plan
from tests.cluster.deployment import Deployment, deployed
from tests.cluster.emulator import PodRecord
from tests.media.synth_footage import write_clip, write_song
from tests.media.synth_video import frames_in

FOUR_K_SPEC = "resolution: 3840x2160\nfps: 25\nduration: 2\nmin_shot: 0.5\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A montage folder."""
    return write_montage(tmp_path_factory.mktemp("footage") / "small")


@pytest.fixture(scope="module")
def made_locally(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of a local run."""
    data = _data_root(tmp_path_factory.mktemp("local"), {"small": small})
    with dg.instance_for_test() as instance, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONTAGE_DATA", str(data))
        assert run_job("small", instance).success
    return data


@pytest.fixture(scope="module")
def on_the_plans_nodes(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Path, str]]:
    """The deployment on the plan's nodes after one run with four shards: deployment, data root, run id."""
    folder = tmp_path_factory.mktemp("pods")
    data = _data_root(folder, {"small": small})
    with deployed(plan(), data, folder, {"MONTAGE_WORKERS": "4"}) as deployment:
        run = deployment.make("small")
        assert run.status is dg.DagsterRunStatus.SUCCESS, (
            deployment.cluster.pods[0],
            deployment.cluster.pods[0].log[-1000:],
        )
        yield deployment, data, run.run_id


def _data_root(folder: Path, montages: dict[str, Path]) -> Path:
    data = folder / "data"
    for name, source in montages.items():
        shutil.copytree(source, data / "input" / name)
    return data


def _fallback_of_a_run_here(instance: dg.DagsterInstance) -> str:
    """Make the film in this process; why it was not made in pods."""
    instance.add_dynamic_partitions("montage", ["small"])
    tags = {"dagster/partition": "small"}
    with dg.execute_job(dg.reconstructable(montage_job), instance=instance, tags=tags) as result:
        assert result.success
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return run.tags[FALLBACK_TAG]


def _same_film(one: Path, other: Path, montage: str = "small") -> None:
    films = [root / "output" / montage for root in (one, other)]
    edits = [(film / "montage.json").read_bytes() for film in films]
    assert edits[0] == edits[1]
    frames = [frames_in(film / "montage.mp4") for film in films]
    assert len(frames[0]) == len(frames[1]) > 0
    for first, second in zip(*frames, strict=True):
        assert (first.to_ndarray() == second.to_ndarray()).all()


def test_pods_make_the_film_that_one_machine_makes(
    on_the_plans_nodes: tuple[Deployment, Path, str], made_locally: Path
) -> None:
    _, data, _ = on_the_plans_nodes
    _same_film(data, made_locally)


def test_four_shards_land_on_the_four_nodes_that_the_plan_names(
    on_the_plans_nodes: tuple[Deployment, Path, str],
) -> None:
    deployment, _, _ = on_the_plans_nodes
    shards = deployment.pods_of("scene_shards.score_shard")
    assert [pod.node for pod in shards] == [THINKPAD, ESPRIMO, VAAPI, WORKER]


def test_a_small_film_is_joined_on_the_jetson_and_the_song_heard_where_memory_is(
    on_the_plans_nodes: tuple[Deployment, Path, str],
) -> None:
    deployment, _, _ = on_the_plans_nodes
    assert deployment.node_of("make_montage") == JETSON
    assert deployment.node_of("beats") == ESPRIMO


def test_planning_and_merging_costs_no_pod_and_at_most_six_pods_start_one_after_another(
    on_the_plans_nodes: tuple[Deployment, Path, str],
) -> None:
    deployment, _, _ = on_the_plans_nodes
    for step in ("footage", "scene_shards.plan_scene_shards", "scene_shards.merge_scenes", "clip_selections"):
        assert deployment.pods_of(step) == []
    times = sorted((pod.started or 0.0, pod.ended or 0.0) for pod in deployment.cluster.pods)
    in_sequence = 1  # the run's own pod
    last_end = 0.0
    for started, ended in times[1:]:
        if started >= last_end:
            in_sequence += 1
            last_end = ended
    assert in_sequence <= 6


def test_no_node_ever_holds_more_than_it_has(on_the_plans_nodes: tuple[Deployment, Path, str]) -> None:
    deployment, _, _ = on_the_plans_nodes
    assert not [event for event in deployment.cluster.events if event[1] == "FailedScheduling"]
    assert all(pod.phase == "Succeeded" for pod in deployment.cluster.pods)


def test_the_log_of_the_run_says_where_each_step_goes_and_why(on_the_plans_nodes: tuple[Deployment, Path, str]) -> None:
    deployment, _, run_id = on_the_plans_nodes
    assert any(
        message.startswith(f"Step beats goes to {ESPRIMO} (optimal for memory_intensive")
        for message in deployment.messages(run_id)
    )


def test_a_4k_film_follows_the_best_node_that_is_there(tmp_path: Path) -> None:
    """The AMD card; without it the next best; without any GPU a CPU; with a malformed matrix any node."""
    folder = tmp_path / "footage" / "large"
    folder.mkdir(parents=True)
    write_clip(folder / "clip.mp4", (40, 40), seed=1)
    write_song(folder / "song.wav", bpm=120, duration_s=6)
    (folder / "montage.yaml").write_text(FOUR_K_SPEC)
    data = _data_root(tmp_path, {"large": folder})
    matrix = data / "cluster.yaml"
    shutil.copy(SHIPPED, matrix)
    with deployed(plan(), data, tmp_path, {"MONTAGE_CLUSTER_CONFIG": str(matrix)}) as deployment:
        cluster = deployment.cluster
        for lost, expected in [((), {AMD}), ((AMD,), {VAAPI}), ((JETSON, VAAPI), {THINKPAD, ESPRIMO})]:
            for node in lost:
                cluster.lose_node(node) if node != AMD else cluster.cordon(node)
            (data / "output" / "large" / "montage.mp4").unlink(missing_ok=True)
            run = deployment.make("large")
            assert run.status is dg.DagsterRunStatus.SUCCESS
            assert deployment.pods_of("make_montage")[-1].node in expected
        resources = deployment.pods_of("make_montage")[0].spec["containers"][0]["resources"]
        assert resources["limits"] == {"memory": "16Gi", "amd.com/gpu": "1"}
        assert "amd.com/gpu" not in str(deployment.pods_of("make_montage")[-1].spec)
        matrix.write_text("nodes: [oops")
        run = deployment.make("large")
        assert run.status is dg.DagsterRunStatus.SUCCESS
        said = [line for line in deployment.messages(run.run_id) if "without the capability matrix" in line]
        assert len(said) == 1
        assert f"{matrix}, line 1" in said[0]


def test_killed_pods_and_a_lost_node_still_end_in_the_right_film(
    small: Path, made_locally: Path, tmp_path: Path
) -> None:
    data = _data_root(tmp_path, {"small": small})
    with deployed(plan(), data, tmp_path, {"MONTAGE_WORKERS": "4"}) as deployment:
        cluster = deployment.cluster
        run_id = deployment.launch("small")

        def wait_for_pod(step: str) -> PodRecord:
            cluster.wait_until(lambda _: any(pod.started for pod in deployment.pods_of(step)), 120)
            return next(pod for pod in deployment.pods_of(step) if pod.started)

        cluster.kill_pod(wait_for_pod("beats").name)
        cluster.kill_pod(wait_for_pod("scene_shards.score_shard").name)
        lost = wait_for_pod("rendered_segments.encode_segment").node
        assert lost is not None
        cluster.lose_node(lost)
        run = deployment.wait(run_id)
        assert run.status is dg.DagsterRunStatus.SUCCESS
        assert len(deployment.pods_of("beats")) == 2
        shards = deployment.pods_of("scene_shards.score_shard")
        assert len(shards) == 5
        assert shards[-1].node != shards[0].node
    _same_film(data, made_locally)


def test_where_kubernetes_is_forbidden_the_film_is_made_in_the_runs_own_pod_and_the_run_says_so(
    small: Path, tmp_path: Path
) -> None:
    data = _data_root(tmp_path, {"small": small})
    with deployed(plan(), data, tmp_path) as deployment:
        deployment.cluster.forbid("jobs", "list")
        run = deployment.make("small")
        assert run.status is dg.DagsterRunStatus.SUCCESS
        assert len(deployment.cluster.pods) == 1
        assert "may not list jobs in namespace montage-ai" in run.tags[FALLBACK_TAG]
        said = [message for message in deployment.messages(run.run_id) if "may not list jobs" in message]
        assert len(said) == 1


def test_without_a_launcher_of_pods_the_film_is_made_here_and_the_run_says_so(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _data_root(tmp_path, {"small": small})
    monkeypatch.setenv("MONTAGE_DATA", str(data))
    monkeypatch.setenv("MONTAGE_EXECUTOR", "k8s")
    with dg.instance_for_test() as instance:
        assert "step pods need K8sRunLauncher" in _fallback_of_a_run_here(instance)


def test_with_an_api_server_that_does_not_answer_the_film_is_made_here_and_the_run_says_so(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _data_root(tmp_path, {"small": small})
    monkeypatch.setenv("MONTAGE_DATA", str(data))
    monkeypatch.setenv("MONTAGE_EXECUTOR", "k8s")
    with deployed(plan(), data, tmp_path) as deployment:
        deployment.cluster.stop()
        assert "the Kubernetes API is not reachable" in _fallback_of_a_run_here(deployment.instance)


def test_a_malformed_cluster_yaml_is_complained_about_once_and_places_nothing(tmp_path: Path) -> None:
    wrong = tmp_path / "cluster.yaml"
    wrong.write_text("nodes: [oops")
    nodes = KnownNodes(Settings(cluster_config=wrong), clock=iter([0.0, 0.0, 100.0, 100.0, 100.0]).__next__)
    assert nodes.cluster() is None
    (warning,) = nodes.new_warnings()
    assert warning.startswith("Steps are placed without the capability matrix")
    assert str(wrong) in warning
    assert nodes.cluster() is None
    assert nodes.new_warnings() == []


def test_an_unknown_task_is_said_and_placed_as_work_for_a_cpu() -> None:
    task, complaint = _task_of({"montage/task": "gpu_encodin"})
    assert task is TaskType.CPU_INTENSIVE
    assert complaint is not None
    assert "did you mean gpu_encoding?" in complaint
