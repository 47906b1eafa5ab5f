"""The cluster that this process works with: which nodes there are, where that is known from, and why.

Belongs here: choosing the source of the matrix and keeping it for the process. Does not belong here: reading a
source (`catalog`, `kubernetes_api`, `hardware`) or choosing nodes for work (`routing`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from montage_assets.cluster.catalog import CATALOG_FILE, load_nodes, parse_nodes
from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.hardware import local_node
from montage_assets.cluster.kubernetes_api import KubernetesUnavailableError, read_node_objects
from montage_assets.cluster.kubernetes_nodes import nodes_from_api
from montage_assets.cluster.mode import ClusterMode
from montage_assets.cluster.node import NodeCapability

if TYPE_CHECKING:
    from rich.console import Console

    from montage_assets.settings import Settings

_log = logging.getLogger(__name__)

NodeReader = Callable[[], Sequence[Mapping[str, Any]]]
Catalog = tuple[str, tuple[NodeCapability, ...]]
"""A cluster.yaml: where it was found, and its nodes."""


@dataclass(frozen=True)
class ClusterManager:
    """The nodes, the mode they were taken by (never AUTO), and the reason in words.

    `asked` is the mode that was asked for; `warnings` say what had to give way.
    """

    nodes: tuple[NodeCapability, ...]
    mode: ClusterMode
    asked: ClusterMode
    reason: str
    warnings: tuple[str, ...] = ()

    def node(self, name: str) -> NodeCapability:
        """The node of that name. Raises ClusterError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise ClusterError(f"there is no node {name!r}; the nodes are {', '.join(node.name for node in self.nodes)}")

    def print_cluster_summary(self, console: Console | None = None) -> None:
        """Print the nodes and where each task would go."""
        from montage_assets.cluster.summary import print_summary

        print_summary(self, console)


def discover_cluster(
    settings: Settings,
    read_nodes: NodeReader = read_node_objects,
    detect: Callable[[bool], NodeCapability] | None = None,
) -> ClusterManager:
    """The cluster that the settings name.

    AUTO takes a cluster.yaml if there is one, else Kubernetes if it answers, else this machine. K8S falls back to this
    machine; it takes from a cluster.yaml what Kubernetes does not know. Raises ClusterError for a cluster.yaml that
    cannot be used, and for CONFIG without one.
    """
    find = detect or (lambda force_cpu: local_node(force_cpu=force_cpu))
    asked = settings.cluster_mode
    warnings: list[str] = []

    def manager(mode: ClusterMode, reason: str, nodes: Iterable[NodeCapability]) -> ClusterManager:
        shown = tuple(node.without_gpu() if settings.force_cpu else node for node in nodes)
        reasons = f"{reason}; MONTAGE_FORCE_CPU hides the GPUs" if settings.force_cpu else reason
        return ClusterManager(shown, mode, asked, reasons, tuple(warnings))

    def local(reason: str) -> ClusterManager:
        return manager(ClusterMode.LOCAL, reason, [find(settings.force_cpu)])

    if asked is ClusterMode.LOCAL:
        return local("MONTAGE_CLUSTER_MODE is local")
    catalog = find_catalog(settings)
    expected = settings.data_root().where(CATALOG_FILE)
    if asked is not ClusterMode.K8S and catalog is not None:
        place, nodes = catalog
        return manager(ClusterMode.CONFIG, f"the nodes of {place}", nodes)
    if asked is ClusterMode.CONFIG:
        raise ClusterError(
            f"MONTAGE_CLUSTER_MODE is config, but there is no {expected}; put the file there or name it in "
            "MONTAGE_CLUSTER_CONFIG"
        )
    try:
        live = nodes_from_api(read_nodes())
        if not live:
            raise KubernetesUnavailableError("Kubernetes lists no nodes")
    except ClusterError as error:
        if asked is ClusterMode.AUTO:
            return local(f"there is no {expected}, and no Kubernetes: {error}")
        warnings.append(f"Kubernetes cannot be used ({error}); working on this machine alone")
        return local("MONTAGE_CLUSTER_MODE is k8s, but Kubernetes cannot be used")
    reason = "MONTAGE_CLUSTER_MODE is k8s" if asked is ClusterMode.K8S else f"no {expected}, and Kubernetes answered"
    if catalog is None:
        return manager(ClusterMode.K8S, reason, live)
    place, described = catalog
    absent = [node.name for node in described if node.name not in {present.name for present in live}]
    if absent:
        warnings.append(f"{place} names nodes that Kubernetes does not have: {', '.join(absent)}")
    return manager(ClusterMode.K8S, f"{reason}, described by {place}", described_by(live, described))


def described_by(live: Iterable[NodeCapability], described: Iterable[NodeCapability]) -> tuple[NodeCapability, ...]:
    """Kubernetes' nodes with what only a cluster.yaml can say: what they are good for, speeds, encoders, video memory.

    State, cores, memory, and whether a GPU can be had at all stay as Kubernetes reports them. The order is the file's.
    """
    by_name = {node.name: node for node in described}
    places = {name: place for place, name in enumerate(by_name)}
    merged = []
    for node in live:
        known = by_name.get(node.name)
        if known is None:
            merged.append(node)
            continue
        changes: dict[str, Any] = {
            "optimal_for": known.optimal_for,
            "speed": known.speed,
            "labels": {**known.labels, **node.labels},
            "note": node.note or known.note,
        }
        if node.gpu is not None:
            changes["gpu"] = node.gpu if "gpu" in known.assumed or known.gpu is None else known.gpu
            changes["vram_gb"] = node.vram_gb if node.vram_gb is not None else known.vram_gb
            changes["encoders"] = known.encoders or node.encoders
        else:
            changes["speed"] = known.without_gpu().speed
        merged.append(node.model_copy(update=changes))
    return tuple(sorted(merged, key=lambda node: (places.get(node.name, len(places)), node.name)))


def find_catalog(settings: Settings) -> Catalog | None:
    """The cluster.yaml that the settings name, else the one in the data root, else None. Raises ClusterError."""
    if settings.cluster_config is not None:
        return str(settings.cluster_config), load_nodes(settings.cluster_config)
    root = settings.data_root()
    try:
        text = root.read_bytes(CATALOG_FILE).decode()
    except FileNotFoundError:
        return None
    except Exception as error:  # a bucket's client raises errors of its own
        raise ClusterError(f"{root.where(CATALOG_FILE)} cannot be read: {' '.join(str(error).split())}") from None
    return root.where(CATALOG_FILE), parse_nodes(text, root.where(CATALOG_FILE))


_lock = threading.Lock()
_manager: ClusterManager | None = None
_warned: set[str] = set()


def get_cluster_manager() -> ClusterManager:
    """The cluster of this process, discovered on the first call. Raises ClusterError or MediaError for bad settings."""
    global _manager  # noqa: PLW0603 -- one cluster per process, by name and by design
    with _lock:
        if _manager is None:
            from montage_assets.settings import Settings

            _manager = discover_cluster(Settings.from_environment())
            for warning in _manager.warnings:
                if warning not in _warned:
                    _warned.add(warning)
                    _log.warning("%s", warning)
        return _manager


def reset_cluster_manager() -> None:
    """Forget the cluster: the next call of get_cluster_manager looks again."""
    global _manager  # noqa: PLW0603
    with _lock:
        _manager = None


def print_cluster_summary(console: Console | None = None) -> None:
    """Print the nodes of this process's cluster and where each task would go."""
    get_cluster_manager().print_cluster_summary(console)
