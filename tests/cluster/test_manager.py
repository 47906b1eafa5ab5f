"""Which source the cluster is taken from, what gives way to what, and what is said about it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from montage_assets.cluster import (
    ClusterError,
    ClusterManager,
    ClusterMode,
    NodeCapability,
    TaskRouter,
    get_cluster_manager,
    reset_cluster_manager,
)
from montage_assets.cluster.catalog import save_nodes
from montage_assets.cluster.kubernetes_api import KubernetesUnavailableError
from montage_assets.cluster.manager import discover_cluster
from montage_assets.media.errors import MediaError
from montage_assets.settings import Settings
from tests.cluster.clusters import AMD, CONTROL_PLANE, FOUR_K, JETSON, SHIPPED, VAAPI, node, plan
from tests.cluster.kubernetes import api_node

HERE = node("here", gpu="NVIDIA L4", vram_gb=24, encoders=["h264_nvenc"], speed={"encode": 20})


@pytest.fixture(autouse=True)
def _no_cluster_kept() -> Iterator[None]:
    reset_cluster_manager()
    yield
    reset_cluster_manager()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=str(tmp_path))


def unreachable() -> Sequence[Mapping[str, Any]]:
    raise KubernetesUnavailableError("https://k3s:6443 is not reachable: Connection refused")


def never_asked() -> Sequence[Mapping[str, Any]]:
    raise AssertionError("Kubernetes was asked")


def two_nodes() -> Sequence[Mapping[str, Any]]:
    return [api_node("one"), api_node("two", resources={"amd.com/gpu": "1"})]


def discover(settings: Settings, read_nodes: Any = never_asked) -> ClusterManager:
    return discover_cluster(settings, read_nodes, lambda force_cpu: HERE)


def test_local_mode_is_this_machine_and_nobody_else_is_asked(settings: Settings) -> None:
    shutil.copy(SHIPPED, Path(settings.data) / "cluster.yaml")
    cluster = discover(replace(settings, cluster_mode=ClusterMode.LOCAL, cluster_config=SHIPPED))
    assert (cluster.mode, cluster.nodes, cluster.warnings) == (ClusterMode.LOCAL, (HERE,), ())


@pytest.mark.parametrize("mode", [ClusterMode.AUTO, ClusterMode.CONFIG])
def test_a_named_file_comes_first(settings: Settings, mode: ClusterMode, tmp_path: Path) -> None:
    save_nodes([node("other")], tmp_path / "cluster.yaml")
    cluster = discover(replace(settings, cluster_mode=mode, cluster_config=SHIPPED))
    assert (cluster.mode, cluster.asked, cluster.nodes) == (ClusterMode.CONFIG, mode, plan())
    assert str(SHIPPED) in cluster.reason


@pytest.mark.parametrize("mode", [ClusterMode.AUTO, ClusterMode.CONFIG])
def test_a_file_in_the_data_root_is_found(settings: Settings, mode: ClusterMode, tmp_path: Path) -> None:
    shutil.copy(SHIPPED, tmp_path / "cluster.yaml")
    cluster = discover(replace(settings, cluster_mode=mode))
    assert (cluster.mode, cluster.nodes) == (ClusterMode.CONFIG, plan())
    assert str(tmp_path / "cluster.yaml") in cluster.reason


def test_a_file_in_a_bucket_is_found() -> None:
    bucket = fsspec.filesystem("memory")
    bucket.pipe("/bucket/cluster.yaml", SHIPPED.read_bytes())
    try:
        assert discover(Settings(data="memory://bucket")).nodes == plan()
    finally:
        bucket.rm("/bucket", recursive=True)


def test_automatic_mode_takes_kubernetes_where_there_is_no_file(settings: Settings) -> None:
    cluster = discover(settings, two_nodes)
    assert (cluster.mode, [entry.name for entry in cluster.nodes]) == (ClusterMode.K8S, ["one", "two"])
    assert "Kubernetes answered" in cluster.reason


def test_automatic_mode_takes_this_machine_where_there_is_neither_and_says_why(settings: Settings) -> None:
    cluster = discover(settings, unreachable)
    assert (cluster.mode, cluster.nodes, cluster.warnings) == (ClusterMode.LOCAL, (HERE,), ())
    assert "Connection refused" in cluster.reason
    assert f"{settings.data}/cluster.yaml" in cluster.reason


def test_kubernetes_mode_asks_kubernetes_even_where_there_is_a_file(settings: Settings) -> None:
    cluster = discover(replace(settings, cluster_mode=ClusterMode.K8S, cluster_config=SHIPPED), two_nodes)
    assert [entry.name for entry in cluster.nodes] == ["one", "two"]


def test_kubernetes_mode_falls_back_to_this_machine_with_a_warning(settings: Settings) -> None:
    cluster = discover(replace(settings, cluster_mode=ClusterMode.K8S), unreachable)
    assert (cluster.mode, cluster.asked, cluster.nodes) == (ClusterMode.LOCAL, ClusterMode.K8S, (HERE,))
    (warning,) = cluster.warnings
    assert "Connection refused" in warning
    assert "this machine" in warning


@pytest.mark.parametrize("items", [[], [{"kind": "Pod"}], [api_node("a", cpu="lots")]])
def test_an_answer_without_usable_nodes_falls_back_too(settings: Settings, items: list[Any]) -> None:
    cluster = discover(replace(settings, cluster_mode=ClusterMode.K8S), lambda: items)
    assert cluster.mode is ClusterMode.LOCAL
    assert len(cluster.warnings) == 1


def test_config_mode_without_a_file_is_an_error_that_says_where_to_put_it(settings: Settings) -> None:
    with pytest.raises(ClusterError, match=r"MONTAGE_CLUSTER_MODE is config, but there is no .*/cluster\.yaml; "):
        discover(replace(settings, cluster_mode=ClusterMode.CONFIG))


@pytest.mark.parametrize("mode", [ClusterMode.AUTO, ClusterMode.CONFIG, ClusterMode.K8S])
def test_a_bad_file_is_never_passed_over_in_silence(settings: Settings, mode: ClusterMode, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("nodes: [{name: a, cores: 3}]")
    with pytest.raises(ClusterError, match=r"cluster\.yaml: node a: there is no key 'cores'; did you mean 'cpu_cores'"):
        discover(replace(settings, cluster_mode=mode), two_nodes)


@pytest.mark.parametrize(
    ("changes", "read_nodes"),
    [
        ({"cluster_mode": ClusterMode.LOCAL}, never_asked),
        ({"cluster_config": SHIPPED}, never_asked),
        ({"cluster_mode": ClusterMode.K8S}, two_nodes),
        ({"cluster_mode": ClusterMode.K8S}, unreachable),
    ],
)
def test_force_cpu_hides_all_gpus_in_every_mode(settings: Settings, changes: dict[str, Any], read_nodes: Any) -> None:
    cluster = discover(replace(settings, force_cpu=True, **changes), read_nodes)
    for entry in cluster.nodes:
        assert (entry.gpu, entry.vram_gb, entry.hardware_encoders) == (None, None, ())
        assert not any("gpu" in name for name in entry.resources)
    assert "MONTAGE_FORCE_CPU" in cluster.reason
    chosen = TaskRouter(cluster).choose("final_render", FOUR_K)
    assert not chosen.uses_gpu
    assert chosen.speed <= 1.5


def live_plan(**amd: Any) -> Sequence[Mapping[str, Any]]:
    return [
        api_node(AMD, memory="46Gi", **{"resources": {"amd.com/gpu": "1"}, **amd}),
        api_node(VAAPI, cpu="6", memory="15Gi", resources={"gpu.intel.com/i915": "1"}),
        api_node("codeai-worker-amd64"),
        api_node("newcomer"),
    ]


def test_a_file_describes_what_kubernetes_cannot_know(settings: Settings) -> None:
    described = replace(settings, cluster_mode=ClusterMode.K8S, cluster_config=SHIPPED)
    cluster = discover(described, live_plan)
    amd, codeai, _, newcomer = cluster.nodes
    assert (amd.optimal_for, amd.vram_gb, amd.encoders[0], amd.speed) == (
        plan()[0].optimal_for,
        24,
        "h264_amf",
        {"encode": 15},
    )
    assert (amd.ram_gb, codeai.cpu_cores, codeai.ram_gb) == (46, 6, 15)  # as Kubernetes says
    assert (codeai.gpu, codeai.encoders) == ("intel", ("h264_vaapi",))  # the file only assumes the GPU, not the encoder
    assert newcomer.name == "newcomer"
    (warning,) = cluster.warnings
    assert JETSON in warning
    assert CONTROL_PLANE in warning
    assert TaskRouter(cluster).route_task("final_render", FOUR_K).name == AMD


def test_a_cordon_in_kubernetes_counts_for_a_described_node(settings: Settings) -> None:
    described = replace(settings, cluster_mode=ClusterMode.K8S, cluster_config=SHIPPED)
    cluster = discover(described, lambda: live_plan(unschedulable=True))
    chosen = TaskRouter(cluster).choose("final_render", FOUR_K)
    assert chosen.node.name == VAAPI
    assert "cordoned" in chosen.why


def test_a_described_gpu_that_kubernetes_cannot_give_out_is_not_counted_on(settings: Settings) -> None:
    described = replace(settings, cluster_mode=ClusterMode.K8S, cluster_config=SHIPPED)
    cluster = discover(described, lambda: live_plan(resources={}, labels={"amd.com/gpu": "present"}))
    amd = cluster.node(AMD)
    assert (amd.gpu, amd.encoders) == (None, ())
    assert amd.speed_for("encode") == 1
    assert "device plugin" in amd.note


def test_a_node_is_found_by_name(settings: Settings) -> None:
    cluster = discover(replace(settings, cluster_config=SHIPPED))
    assert cluster.node(AMD) is cluster.nodes[0]
    with pytest.raises(ClusterError, match="there is no node 'x'; the nodes are codeai-fluxibriserver, "):
        cluster.node("x")


# The process's own cluster


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "MONTAGE_CLUSTER_MODE", "MONTAGE_FORCE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MONTAGE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MONTAGE_CLUSTER_CONFIG", str(SHIPPED))
    return monkeypatch


def test_there_is_one_cluster_until_it_is_reset(environment: pytest.MonkeyPatch) -> None:
    first = get_cluster_manager()
    environment.setenv("MONTAGE_CLUSTER_MODE", "local")
    assert get_cluster_manager() is first
    reset_cluster_manager()
    second = get_cluster_manager()
    assert (first.mode, second.mode) == (ClusterMode.CONFIG, ClusterMode.LOCAL)


def test_a_failed_look_is_not_kept(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MONTAGE_CLUSTER_CONFIG", "/none")
    with pytest.raises(ClusterError):
        get_cluster_manager()
    environment.setenv("MONTAGE_CLUSTER_CONFIG", str(SHIPPED))
    assert len(get_cluster_manager().nodes) == 8


def test_the_fallback_is_logged_once(environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    environment.delenv("MONTAGE_CLUSTER_CONFIG")
    environment.setenv("MONTAGE_CLUSTER_MODE", "k8s")
    environment.setenv("KUBECONFIG", "/nowhere/of-this-test")
    with caplog.at_level(logging.WARNING, "montage_assets.cluster"):
        get_cluster_manager()
        get_cluster_manager()
        reset_cluster_manager()
        get_cluster_manager()
    assert len([record for record in caplog.records if "of-this-test" in record.getMessage()]) == 1


# The environment


@pytest.mark.parametrize("mode", list(ClusterMode))
def test_every_mode_is_read_in_any_case(mode: ClusterMode) -> None:
    assert Settings.from_environment({"MONTAGE_CLUSTER_MODE": mode.value}).cluster_mode is mode
    assert Settings.from_environment({"MONTAGE_CLUSTER_MODE": f" {mode.value.upper()} "}).cluster_mode is mode


@pytest.mark.parametrize("environment_without_it", [{}, {"MONTAGE_CLUSTER_MODE": ""}])
def test_the_mode_is_automatic_by_default(environment_without_it: dict[str, str]) -> None:
    assert Settings.from_environment(environment_without_it).cluster_mode is ClusterMode.AUTO


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ClusterError, match="MONTAGE_CLUSTER_MODE is 'confg'; did you mean config"):
        Settings.from_environment({"MONTAGE_CLUSTER_MODE": "confg"})


@pytest.mark.parametrize(("text", "hidden"), [("1", True), ("true", True), ("0", False), ("", False), ("no", False)])
def test_force_cpu_is_a_switch(text: str, hidden: bool) -> None:
    assert Settings.from_environment({"MONTAGE_FORCE_CPU": text}).force_cpu is hidden


def test_a_switch_that_is_neither_on_nor_off_is_refused() -> None:
    with pytest.raises(MediaError, match="MONTAGE_FORCE_CPU is 'maybe'; set it to 1 or 0"):
        Settings.from_environment({"MONTAGE_FORCE_CPU": "maybe"})


def test_speeds_of_a_node_stand_for_what_it_uses() -> None:
    card: NodeCapability = HERE
    assert card.speed_for("encode") == 20
    assert card.speed_for("encode", with_gpu=False) == 1
    assert card.without_gpu().speed_for("encode") == 1
