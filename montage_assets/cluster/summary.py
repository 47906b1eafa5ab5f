"""The capability matrix and its routes, for people and for programs.

Belongs here: laying out what the cluster manager and the router say. Does not belong here: deciding anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.node import NodeCapability
from montage_assets.cluster.routing import TaskRouter
from montage_assets.cluster.tasks import WORKS, Resolution, TaskType

if TYPE_CHECKING:
    from montage_assets.cluster.manager import ClusterManager

SIZES: dict[str, Resolution] = {"1080p": (1920, 1080), "2160p": (3840, 2160)}


def print_summary(cluster: ClusterManager, console: Console | None = None) -> None:
    """Print the source, the nodes and the routes."""
    out = console or Console()
    out.print(Text(f"{_count(cluster.nodes)}, mode {cluster.mode.value}: {cluster.reason}", style="bold"))
    for warning in cluster.warnings:
        out.print(Text(f"warning: {warning}", style="yellow"))
    out.print(_node_table(cluster.nodes))
    for line in _footnotes(cluster.nodes):
        out.print(Text(line, style="dim"))
    out.print()
    out.print(_route_table(cluster))


def summary_document(cluster: ClusterManager) -> dict[str, Any]:
    """The same as JSON-ready values."""
    return {
        "mode": cluster.mode.value,
        "asked": cluster.asked.value,
        "reason": cluster.reason,
        "warnings": list(cluster.warnings),
        "nodes": [_node_document(node) for node in cluster.nodes],
        "routes": {task.value: {size: _route(cluster, task, SIZES[size]) for size in SIZES} for task in TaskType},
    }


def _node_document(node: NodeCapability) -> dict[str, Any]:
    return {
        **node.model_dump(mode="json"),
        "gpu_type": node.gpu_type.value,
        "speed": {work: round(node.speed_for(work), 3) for work in WORKS},
        "state": _state(node),
    }


def _route(cluster: ClusterManager, task: TaskType, resolution: Resolution) -> dict[str, Any]:
    router = TaskRouter(cluster)
    try:
        chosen = router.choose(task, resolution)
    except ClusterError as error:
        return {"node": None, "encoder": None, "why": str(error), "ranking": []}
    return {
        "node": chosen.node.name,
        "encoder": chosen.encoder,
        "why": chosen.why,
        "ranking": [
            {"node": candidate.node.name, "suitable": candidate.suitable, "why": candidate.why}
            for candidate in router.rank(task, resolution)
        ],
    }


def _node_table(nodes: tuple[NodeCapability, ...]) -> Table:
    table = _table()
    table.add_column("node", no_wrap=True)
    table.add_column("arch", no_wrap=True)
    table.add_column("cores", justify="right", no_wrap=True)
    table.add_column("RAM", justify="right", no_wrap=True)
    table.add_column("GPU, VRAM\nencoders", overflow="fold")
    table.add_column("speed*", justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for node in nodes:
        state = _state(node)
        table.add_row(
            _known(node, "name", node.name),
            _known(node, "arch", node.arch),
            _known(node, "cpu_cores", f"{node.cpu_cores:g}"),
            _known(node, "ram_gb", f"{node.ram_gb:g}"),
            Text("\n".join([_gpu(node), *_encoders(node.encoders)])),
            Text(f"{node.speed_for('analyze'):.2g}/{node.speed_for('encode'):.2g}"),
            Text(state, style="green" if state == "ready" else "red" if node.closed_to_all else "yellow"),
        )
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)


def _gpu(node: NodeCapability) -> str:
    vram = "" if node.vram_gb is None else f", {node.vram_gb:g}{_doubt(node, 'vram_gb')}"
    return f"{node.gpu}{_doubt(node, 'gpu')}{vram}" if node.gpu else "-"


def _encoders(encoders: tuple[str, ...]) -> list[str]:
    """`amf, vaapi: h264 hevc`: kinds of chips that encode the same go on one line, in the order to try them."""
    codecs_by_family: dict[str, list[str]] = {}
    for encoder in encoders:
        codec, _, family = encoder.partition("_")
        codecs_by_family.setdefault(family or "CPU", []).append(codec)
    families_by_codecs: dict[str, list[str]] = {}
    for family, codecs in codecs_by_family.items():
        families_by_codecs.setdefault(" ".join(codecs), []).append(family)
    return [f"{', '.join(families)}: {codecs}" for codecs, families in families_by_codecs.items()]


def _doubt(node: NodeCapability, field: str) -> str:
    return "?" if field in node.assumed else ""


def _known(node: NodeCapability, field: str, text: str) -> Text:
    return Text(f"{text}{_doubt(node, field)}")


def _state(node: NodeCapability) -> str:
    if node.closed_to_all:
        return node.closed_to_all
    marks = ["control plane"] if node.control_plane else []
    marks += ["GPU work only"] if node.gpu_taint else []
    return ", ".join(marks) or "ready"


def _footnotes(nodes: tuple[NodeCapability, ...]) -> list[str]:
    lines = ["* analysis/encoding; 1 is eight ordinary CPU cores. Memory in GiB."]
    if any(node.assumed for node in nodes):
        lines.append("? is assumed: nobody has stated or measured it.")
    return lines + [f"{node.name}: {node.note}" for node in nodes if node.note]


def _route_table(cluster: ClusterManager) -> Table:
    table = _table()
    table.add_column("task", no_wrap=True)
    table.add_column("size", no_wrap=True)
    table.add_column("goes to", overflow="fold")
    table.add_column("because", overflow="fold")
    for task in TaskType:
        routes = {size: _route(cluster, task, resolution) for size, resolution in SIZES.items()}
        texts = {size: (route["node"] or "nowhere", route["why"]) for size, route in routes.items()}
        if len(set(texts.values())) == 1:
            texts = {"any": texts["1080p"]}
        for place, (size, (node, why)) in enumerate(texts.items()):
            table.add_row(task.value if place == 0 else "", size, Text(node), Text(why))
    return table


def _count(nodes: tuple[NodeCapability, ...]) -> str:
    return "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
