"""Clusters for the tests: the plan's, and small ones made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from montage_assets.cluster import NodeCapability, TaskRouter
from montage_assets.cluster.catalog import load_nodes

SHIPPED = Path(__file__).parents[2] / "deploy" / "cluster.yaml"

AMD = "codeai-fluxibriserver"
JETSON = "codeaijetson-desktop"
THINKPAD = "codeai-thinkpad-t14s-gen-6"
ESPRIMO = "codeai-esprimo-q958"
VAAPI = "codeai"
WORKER = "codeai-worker-amd64"
PI = "codeai-pi"
CONTROL_PLANE = "codeai-control-plane"

FULL_HD = (1920, 1080)
FOUR_K = (3840, 2160)
EIGHT_K = (7680, 4320)


@dataclass(frozen=True)
class Nodes:
    """Just nodes, as the router wants them."""

    nodes: Sequence[NodeCapability]


def plan(without: Sequence[str] = ()) -> tuple[NodeCapability, ...]:
    """The nodes of deploy/cluster.yaml, some left out."""
    return tuple(node for node in load_nodes(SHIPPED) if node.name not in without)


def plan_with(name: str, **changes: object) -> tuple[NodeCapability, ...]:
    """The nodes of deploy/cluster.yaml, one of them changed."""
    return tuple(node.model_copy(update=changes) if node.name == name else node for node in load_nodes(SHIPPED))


def router(nodes: Sequence[NodeCapability]) -> TaskRouter:
    return TaskRouter(Nodes(nodes))


def node(name: str, **fields: object) -> NodeCapability:
    return NodeCapability.model_validate({"name": name, "cpu_cores": 8, "ram_gb": 32, **fields})
