"""The Deployment controller's decisions, pure: which pods a Deployment needs next, and what its status says.

There are no ReplicaSets between a Deployment and its pods, and a change of the template replaces all pods at once, as
the strategy Recreate does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tests.cluster.emulator.objects import Object

HASH_LABEL = "pod-template-hash"


@dataclass(frozen=True)
class Replica:
    """A pod of the Deployment that is still there. `template`: the hash of the template that it was made from."""

    name: str
    template: str
    is_ready: bool


@dataclass(frozen=True)
class Step:
    """What to do now: so many new pods, an end to those of `delete`, and the Deployment's status."""

    status: Object
    create: int = 0
    delete: tuple[str, ...] = ()


def with_defaults(deployment: Object) -> None:
    """Fill in what the API server fills in, as far as it matters here."""
    deployment["spec"].setdefault("replicas", 1)
    deployment["spec"].setdefault("strategy", {"type": "RollingUpdate"})


def template_hash(deployment: Object) -> str:
    """What tells the pods of one template from those of another."""
    template = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(template.encode()).hexdigest()[:10]


def next_step(deployment: Object, replicas: Sequence[Replica]) -> Step:
    """The decision for one Deployment and the pods that it has."""
    wanted, template = deployment["spec"]["replicas"], template_hash(deployment)
    outdated = [replica for replica in replicas if replica.template != template]
    current = [replica for replica in replicas if replica.template == template]
    too_many = current[wanted:]
    return Step(
        _status(deployment, replicas, current),
        create=max(0, wanted - len(current)),
        delete=tuple(replica.name for replica in (*outdated, *too_many)),
    )


def _status(deployment: Object, replicas: Sequence[Replica], current: Sequence[Replica]) -> Object:
    wanted = deployment["spec"]["replicas"]
    ready = sum(replica.is_ready for replica in replicas)
    is_done = len(replicas) == wanted and sum(replica.is_ready for replica in current) == wanted
    progress = "NewReplicaSetAvailable" if is_done else "ReplicaSetUpdated"
    has_all = ready >= wanted
    availability = "MinimumReplicasAvailable" if has_all else "MinimumReplicasUnavailable"
    counts = {
        "replicas": len(replicas),
        "updatedReplicas": len(current),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(0, wanted - ready),
    }
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        **{name: count for name, count in counts.items() if count},
        "conditions": [
            {"type": "Available", "status": str(has_all), "reason": availability},
            {"type": "Progressing", "status": "True", "reason": progress},
        ],
    }
