"""Asking a Kubernetes API for its nodes, through the official client and a small server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from montage_assets.cluster import kubernetes_api
from montage_assets.cluster.kubernetes_api import KubernetesUnavailableError, read_node_objects
from montage_assets.cluster.kubernetes_nodes import nodes_from_api
from tests.cluster.kubernetes import api_node, api_server, kubeconfig


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def reason(tmp_path: Path, url: str, deadline_s: float = 10.0) -> str:
    with pytest.raises(KubernetesUnavailableError) as error:
        read_node_objects({"KUBECONFIG": str(kubeconfig(tmp_path, url))}, deadline_s)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nodes_are_read_from_the_api(tmp_path: Path) -> None:
    pytest.importorskip("kubernetes")
    items = [api_node("b", resources={"amd.com/gpu": "1"}), api_node("a", unschedulable=True)]
    with api_server({"kind": "NodeList", "apiVersion": "v1", "items": items}) as url:
        nodes = nodes_from_api(read_node_objects({"KUBECONFIG": str(kubeconfig(tmp_path, url))}))
    assert [(node.name, node.gpu, node.closed_to_all) for node in nodes] == [
        ("a", None, "cordoned"),
        ("b", "amd", ""),
    ]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "did not accept the credentials"),
        (403, "does not let this account list nodes"),
        (503, "answered with HTTP 503"),
    ],
)
def test_a_refusal_is_told_apart(tmp_path: Path, status: int, words: str) -> None:
    pytest.importorskip("kubernetes")
    with api_server({"kind": "Status"}, status=status) as url:
        text = reason(tmp_path, url)
    assert words in text
    assert url in text


@pytest.mark.parametrize("body", [b"<html>", b"", [1], {"items": None}])
def test_another_server_is_not_taken_for_kubernetes(tmp_path: Path, body: object) -> None:
    pytest.importorskip("kubernetes")
    with api_server(body) as url:
        assert "is not a Kubernetes API" in reason(tmp_path, url)


def test_an_api_that_is_not_there_is_not_reachable(tmp_path: Path) -> None:
    pytest.importorskip("kubernetes")
    with api_server() as url:
        pass
    assert "is not reachable: " in reason(tmp_path, url)


def test_an_api_that_stays_silent_is_given_up_after_one_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes")
    monkeypatch.setattr(kubernetes_api, "TIMEOUT_S", 0.2)
    asked: list[str] = []
    with api_server(silent=True, asked=asked) as url:
        assert "is not reachable: " in reason(tmp_path, url)
    assert asked == ["/api/v1/nodes"]


def test_whatever_hangs_the_whole_attempt_has_a_deadline(tmp_path: Path) -> None:
    pytest.importorskip("kubernetes")
    with api_server(silent=True) as url:
        assert "did not answer within 0.1 s" in reason(tmp_path, url, deadline_s=0.1)


@pytest.mark.parametrize(
    "text", ["", "][", "- a", "clusters: 3\ncurrent-context: x", "current-context: x\ncontexts: []\nclusters: []", "\0"]
)
def test_a_malformed_kubeconfig_is_one_line_that_names_it(tmp_path: Path, text: str) -> None:
    pytest.importorskip("kubernetes")
    (tmp_path / "config").write_text(text)
    with pytest.raises(KubernetesUnavailableError) as error:
        read_node_objects({"KUBECONFIG": str(tmp_path / "config")})
    assert str(error.value).startswith(f"the kubeconfig {tmp_path / 'config'} cannot be used: ")
    assert "\n" not in str(error.value)


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KubernetesUnavailableError, match=r"KUBECONFIG names .*/none, which is not there"):
        read_node_objects({"KUBECONFIG": str(tmp_path / "none")})


def test_without_a_kubeconfig_there_is_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(KubernetesUnavailableError, match=r"^there is no kubeconfig$"):
        read_node_objects({})


def test_without_the_client_the_reason_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert "pip install 'montage-assets[cluster]'" in reason(tmp_path, "http://127.0.0.1:1")


def test_without_a_kubeconfig_the_client_is_not_even_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from montage_assets.cluster import get_cluster_manager\n"
        "get_cluster_manager()\n"
        "print([name for name in ('kubernetes', 'dagster', 'montage_assets.media.ingest') if name in sys.modules])"
    )
    environment = {"HOME": str(tmp_path), "PATH": "", "MONTAGE_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
