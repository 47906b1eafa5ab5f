"""How many workers the analysis of one montage is shared among, and how fast each is.

Belongs here: asking what the executor in use can tell. Does not belong here: what a shard is.
"""

from __future__ import annotations

import os

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.measured import speeds_on
from montage_assets.cluster.tasks import Resolution
from montage_assets.data_root import DataRoot
from montage_assets.settings import Settings


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


def _speeds_of_nodes(settings: Settings, root: DataRoot, source_size: Resolution) -> list[float]:
    from montage_assets.cluster.placement import analysis_speeds
    from montage_assets.cluster.pods import KnownNodes

    cluster = KnownNodes(settings).cluster()
    if cluster is None:
        return []
    try:
        return analysis_speeds(cluster, source_size, settings.workers, speeds_on(root))
    except ClusterError:  # no node takes work now; the pods wait for one
        return []
