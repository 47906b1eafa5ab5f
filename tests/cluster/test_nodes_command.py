"""`montage nodes`, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from montage_assets.cluster import ClusterManager, ClusterMode, TaskType, print_cluster_summary, reset_cluster_manager
from tests.cluster.clusters import AMD, JETSON, SHIPPED, THINKPAD, VAAPI, node, plan, plan_with


@pytest.fixture(autouse=True)
def _no_cluster_kept() -> Iterator[None]:
    reset_cluster_manager()
    yield
    reset_cluster_manager()


def montage(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = {**kept, "HOME": str(tmp_path), "MONTAGE_DATA": str(tmp_path), "COLUMNS": "100", **variables}
    command = [sys.executable, "-m", "montage_assets.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def printed(cluster: ClusterManager, width: int = 100) -> str:
    out = StringIO()
    cluster.print_cluster_summary(Console(file=out, width=width))
    return out.getvalue()


def of_nodes(*nodes: object) -> ClusterManager:
    return ClusterManager(tuple(nodes), ClusterMode.CONFIG, ClusterMode.AUTO, "the test says so")  # type: ignore[arg-type]


def test_the_table_fits_100_columns_and_cuts_no_name() -> None:
    text = printed(of_nodes(*plan()))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    for entry in plan():
        assert entry.name in text
    for task in TaskType:
        assert task.value in text
    assert "…" not in text


def test_the_table_says_source_numbers_and_state() -> None:
    lines = printed(of_nodes(*plan_with(JETSON, schedulable=False))).splitlines()
    assert lines[0] == "8 nodes, mode config: the test says so"
    amd = next(line for line in lines if line.startswith(AMD))
    for word in ("amd64?", " 8 ", " 47 ", "amd_rx7900xtx, 24", "1/15", "ready"):
        assert word in amd
    assert "cordoned" in next(line for line in lines if line.startswith(JETSON))
    assert any(line.startswith("? is assumed") for line in lines)


def test_each_task_says_where_it_goes_at_both_sizes_and_why() -> None:
    lines = printed(of_nodes(*plan())).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("final_render"))
    render = " ".join(lines[start : start + 3]).split()
    assert render[:3] == ["final_render", "1080p", JETSON]
    assert render[render.index("2160p") + 1] == AMD
    detection = next(line for line in lines if line.startswith("cpu_scene_detection"))
    assert f"any    {THINKPAD}" in detection


def test_a_node_passed_over_is_named_with_the_reason() -> None:
    text = " ".join(printed(of_nodes(*plan_with(AMD, ready=False)), width=200).split())
    assert f"final_render 1080p {JETSON}" in text
    assert f"instead of {AMD} (not ready)" in text
    assert VAAPI in text


def test_where_no_node_is_open_the_table_says_nowhere() -> None:
    text = " ".join(printed(of_nodes(node("a", ready=False))).split())
    assert "nowhere no node takes final_render: a is not ready" in text


def test_names_in_brackets_are_no_markup() -> None:
    assert "[bold]" in printed(of_nodes(node("a", gpu="[bold]x", note="[red]y")))


def test_the_module_prints_the_cluster_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONTAGE_CLUSTER_CONFIG", str(SHIPPED))
    out = StringIO()
    print_cluster_summary(Console(file=out, width=100))
    assert f"8 nodes, mode config: the nodes of {SHIPPED}" in " ".join(out.getvalue().split())


def test_the_command_prints_this_machine_where_there_is_nothing_else(tmp_path: Path) -> None:
    done = montage(tmp_path, "nodes")
    assert done.returncode == 0
    assert "1 node, mode local: there is no" in done.stdout
    assert "there is no kubeconfig" in " ".join(done.stdout.split())
    assert done.stderr == ""


def test_the_command_prints_json_for_programs(tmp_path: Path) -> None:
    done = montage(tmp_path, "nodes", "--json", MONTAGE_CLUSTER_CONFIG=str(SHIPPED))
    document = json.loads(done.stdout)
    assert (document["mode"], document["asked"], document["warnings"]) == ("config", "auto", [])
    assert [entry["name"] for entry in document["nodes"]] == [entry.name for entry in plan()]
    assert document["nodes"][0]["vram_gb"] == 24
    assert document["nodes"][0]["gpu_type"] == "amd"
    assert set(document["routes"]) == {task.value for task in TaskType}
    render = document["routes"]["final_render"]
    assert (render["1080p"]["node"], render["2160p"]["node"]) == (JETSON, AMD)
    assert render["2160p"]["encoder"] == "h264_amf"
    assert render["2160p"]["why"]
    assert next(row["node"] for row in render["2160p"]["ranking"] if row["suitable"]) == AMD


def test_the_fallback_from_kubernetes_is_seen_and_is_no_failure(tmp_path: Path) -> None:
    done = montage(tmp_path, "nodes", MONTAGE_CLUSTER_MODE="k8s", MONTAGE_FORCE_CPU="1")
    assert done.returncode == 0
    assert "warning: Kubernetes cannot be used (there is no kubeconfig); working on this machine alone" in done.stdout
    assert "MONTAGE_FORCE_CPU hides the GPUs" in " ".join(done.stdout.split())
    assert "Kubernetes cannot be used" in done.stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MONTAGE_CLUSTER_CONFIG": "/none.yaml"}, "there is no cluster file /none.yaml"),
        ({"MONTAGE_CLUSTER_MODE": "config"}, "MONTAGE_CLUSTER_MODE is config, but there is no"),
        ({"MONTAGE_CLUSTER_MODE": "kube"}, "MONTAGE_CLUSTER_MODE is 'kube'"),
        ({"MONTAGE_FORCE_CPU": "perhaps"}, "MONTAGE_FORCE_CPU is 'perhaps'"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_wrong_input(tmp_path: Path, variables: dict[str, str], words: str) -> None:
    done = montage(tmp_path, "nodes", **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"montage: {words}")
    assert done.stderr.count("\n") == 1


def test_a_malformed_file_is_one_line_and_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("nodes:\n  - name: a\n   cpu_cores: 3\n")
    done = montage(tmp_path, "nodes")
    assert done.returncode == 2
    assert done.stderr.startswith(f"montage: {tmp_path}/cluster.yaml, line 3: this is not usable YAML: ")
    assert done.stderr.count("\n") == 1
