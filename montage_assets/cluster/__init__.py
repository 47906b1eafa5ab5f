"""Where work runs: the capability matrix of the nodes, and the choice among them. Never imports `media`.

    from montage_assets.cluster import TaskRouter, TaskType, get_cluster_manager

    cluster = get_cluster_manager()
    cluster.print_cluster_summary()
    node = TaskRouter(cluster).route_task(TaskType.GPU_ENCODING, resolution=(3840, 2160))

Names are imported when first used, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from montage_assets.cluster.distribution import ShardRange, measured_speeds
    from montage_assets.cluster.errors import ClusterError
    from montage_assets.cluster.gpus import GPUType
    from montage_assets.cluster.job_manifests import Resources
    from montage_assets.cluster.job_status import JobFailedError, JobStatus, JobTimeoutError
    from montage_assets.cluster.job_submitter import JobSubmitter, SubmittedJob
    from montage_assets.cluster.manager import (
        ClusterManager,
        get_cluster_manager,
        print_cluster_summary,
        reset_cluster_manager,
    )
    from montage_assets.cluster.mode import ClusterMode
    from montage_assets.cluster.node import NodeCapability
    from montage_assets.cluster.routing import Candidate, ParallelJob, TaskRouter, select_node_for_task
    from montage_assets.cluster.tasks import TaskType

_HOMES = {
    "Candidate": "routing",
    "ClusterError": "errors",
    "ClusterManager": "manager",
    "ClusterMode": "mode",
    "GPUType": "gpus",
    "JobFailedError": "job_status",
    "JobStatus": "job_status",
    "JobSubmitter": "job_submitter",
    "JobTimeoutError": "job_status",
    "NodeCapability": "node",
    "ParallelJob": "routing",
    "Resources": "job_manifests",
    "ShardRange": "distribution",
    "SubmittedJob": "job_submitter",
    "TaskRouter": "routing",
    "TaskType": "tasks",
    "get_cluster_manager": "manager",
    "measured_speeds": "distribution",
    "print_cluster_summary": "manager",
    "reset_cluster_manager": "manager",
    "select_node_for_task": "routing",
}

__all__ = [
    "Candidate",
    "ClusterError",
    "ClusterManager",
    "ClusterMode",
    "GPUType",
    "JobFailedError",
    "JobStatus",
    "JobSubmitter",
    "JobTimeoutError",
    "NodeCapability",
    "ParallelJob",
    "Resources",
    "ShardRange",
    "SubmittedJob",
    "TaskRouter",
    "TaskType",
    "get_cluster_manager",
    "measured_speeds",
    "print_cluster_summary",
    "reset_cluster_manager",
    "select_node_for_task",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
