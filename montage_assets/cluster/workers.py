"""How many workers the analysis and the encoding of one montage are shared among, and how fast each is.

Belongs here: asking what the executor in use can tell. Does not belong here: what a shard is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.measured import speeds_on
from montage_assets.cluster.tasks import Resolution, TaskType
from montage_assets.data_root import DataRoot
from montage_assets.settings import Settings

if TYPE_CHECKING:
    from montage_assets.cluster.manager import ClusterManager


def analysis_workers(settings: Settings, root: DataRoot, source_size: Resolution, worth: int) -> list[float]:
    """One relative speed per shard. MONTAGE_WORKERS says how many there are; without it there are as many as can work
    at a time and no more than `worth`: nodes for pods, workers of the queue, or half the cores of this machine."""
    if settings.executor == "k8s":
        speeds = _speeds_of_nodes(settings, root, source_size)
        if speeds:
            return speeds if settings.workers else speeds[:worth]
    if settings.workers is not None:
        return [1.0] * settings.workers
    if settings.executor == "celery":
        from montage_assets.cluster.queues import steps_at_a_time

        return [1.0] * max(1, min(worth, steps_at_a_time(settings, "analyze")))
    return [1.0] * max(1, min(worth, (os.cpu_count() or 1) // 2))


def encoding_workers(settings: Settings, root: DataRoot, film_size: Resolution, is_preview: bool) -> list[float]:
    """One relative speed per step that encodes segments, each on a node of its own. Empty where every segment is a
    step: a process or a task of the queue starts in no time, and takes the next segment when it is free."""
    if settings.executor != "k8s":
        return []
    from montage_assets.cluster.placement import encoding_speeds

    task = TaskType.PREVIEW_RENDER if is_preview else TaskType.GPU_ENCODING
    return _of_nodes(settings, lambda cluster: encoding_speeds(cluster, task, film_size, speeds_on(root)))


def _speeds_of_nodes(settings: Settings, root: DataRoot, source_size: Resolution) -> list[float]:
    from montage_assets.cluster.placement import analysis_speeds

    return _of_nodes(settings, lambda cluster: analysis_speeds(cluster, source_size, settings.workers, speeds_on(root)))


def _of_nodes(settings: Settings, speeds: Callable[[ClusterManager], list[float]]) -> list[float]:
    from montage_assets.cluster.pods import KnownNodes

    cluster = KnownNodes(settings).cluster()
    if cluster is None:
        return []
    try:
        return speeds(cluster)
    except ClusterError:  # no node takes work now; the pods wait for one
        return []
