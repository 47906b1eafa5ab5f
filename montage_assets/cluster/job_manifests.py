"""Job objects for Kubernetes, as plain dicts: pure functions, no client, no cluster.

Belongs here: what a pod of a job looks like. Does not belong here: sending objects (`kubernetes_jobs`), which node
is the best (`routing`, `placement`), what a command does.

The names that these objects refer to are those of deploy/k3s: the claim of the data, the settings, the account.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from montage_assets.cluster.placement import Placement, k8s_config

Manifest = dict[str, Any]
Spread = Literal["required", "preferred"]

DATA_CLAIM = "montage-data"
SETTINGS_MAP = "montage-settings"
BUCKET_SECRET = "montage-s3"  # noqa: S105 -- the name of a secret, not one
ACCOUNT = "montage-plain"
USER = 10001
DATA_FOLDER = "/data"

SCENE_DETECTION = ("python", "-m", "montage_assets.cluster.distributed_scene_detection")
ENCODING = ("python", "-m", "montage_assets.encode_job")
INDEX_FIELD = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
HOST_LABEL = "kubernetes.io/hostname"

WRONG_INPUT = 2
"""The exit code of a command whose input is at fault: no retry mends that."""

RETRIES_PER_POD = 2
DEADLINE_S = 4 * 3600
KEPT_FOR_S = 24 * 3600


@dataclass(frozen=True)
class Resources:
    """What a pod asks for, as Kubernetes writes it. The memory limit is twice the request unless said otherwise.

    `devices`: resources of device plugins, e.g. {"amd.com/gpu": 1}.
    """

    cpu: str = "2"
    memory: str = "4Gi"
    memory_limit: str | None = None
    devices: Mapping[str, int] = field(default_factory=dict)

    def manifest(self) -> Manifest:
        """The `resources` of a container."""
        devices = {name: str(count) for name, count in self.devices.items()}
        limits = {**devices} if self.memory_limit is None else {"memory": self.memory_limit, **devices}
        return {"requests": {"cpu": self.cpu, "memory": self.memory, **devices}, "limits": limits}


@dataclass(frozen=True)
class Where:
    """What runs, and in which namespace. `data`: the data root as the pods see it, None for the cluster's own.

    `is_our_image`: its entrypoint is kept, which hands signals on; another image's is replaced by the command.
    """

    image: str
    namespace: str
    data: str | None = None
    is_our_image: bool = True


@dataclass(frozen=True)
class SceneJob:
    """Scene detection over some videos in shards. `videos` are keys of the data root, or full paths outside of it."""

    videos: tuple[str, ...]
    shard_count: int
    detector: str = "adaptive"
    threshold: float | None = None

    @property
    def name(self) -> str:
        """`scene-detect-<hash>`: the same for the same videos, shards and detector."""
        identity = json.dumps([self.videos, self.shard_count, self.detector, self.threshold])
        return f"scene-detect-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    def arguments(self, job: str) -> list[str]:
        """The arguments of the command line that does one shard; which one, it is told besides."""
        chosen = [f"--video={video}" for video in self.videos]
        threshold = [] if self.threshold is None else [f"--threshold={self.threshold!r}"]
        return [*chosen, f"--job-id={job}", f"--detector={self.detector}", *threshold]


def job_manifest(
    name: str,
    command: Sequence[str],
    where: Where,
    resources: Resources,
    *,
    env: Mapping[str, str] | None = None,
    pod_spec: Manifest | None = None,
    **job_spec: Any,
) -> Manifest:
    """A job of one pod that runs a command of the image, without root, rights or a writable root file system.

    `pod_spec` and `job_spec` are added, in the API's own words.
    """
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": where.namespace, "labels": _LABELS},
        "spec": {
            "backoffLimit": RETRIES_PER_POD,
            "activeDeadlineSeconds": DEADLINE_S,
            "ttlSecondsAfterFinished": KEPT_FOR_S,
            "podFailurePolicy": _FAILURE_POLICY,
            **job_spec,
            "template": {
                "metadata": {"labels": {**_LABELS, "app.kubernetes.io/component": "job"}},
                "spec": {
                    "restartPolicy": "Never",
                    "serviceAccountName": ACCOUNT,
                    "automountServiceAccountToken": False,
                    "securityContext": _POD_SECURITY,
                    "containers": [_container(command, where, resources, env or {})],
                    "volumes": [_data_volume(where), {"name": "tmp", "emptyDir": {}}],
                    **(pod_spec or {}),
                },
            },
        },
    }


def scene_detection_manifest(
    job: SceneJob, where: Where, resources: Resources, *, spread: Spread = "required", nodes: Sequence[str] = ()
) -> Manifest:
    """An Indexed job with one pod for each shard, on a host each.

    With `spread="preferred"` hosts take several where there are too few. `nodes` are the host names to prefer.
    """
    name = job.name
    manifest = job_manifest(
        name,
        [*SCENE_DETECTION, "--shard", *job.arguments(name)],
        where,
        resources,
        env={"SHARD_COUNT": str(job.shard_count)},
        pod_spec={"affinity": {"podAntiAffinity": _apart(name, spread), **_preferring(nodes)}},
        completionMode="Indexed",
        completions=job.shard_count,
        parallelism=job.shard_count,
        backoffLimit=RETRIES_PER_POD * job.shard_count,
    )
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "SHARD_INDEX", "valueFrom": {"fieldRef": {"fieldPath": INDEX_FIELD}}})
    return manifest


def placed_manifest(name: str, command: Sequence[str], where: Where, placement: Placement) -> Manifest:
    """A job of one pod that goes where the capability matrix wants it."""
    step = _as_the_api_spells_it(k8s_config(placement, name))
    pod_spec = {key: value for key, value in step["podSpecConfig"].items() if key in ("affinity", "tolerations")}
    encoder = {"OUTPUT_CODEC": placement.encoder} if placement.encoder else {}
    manifest = job_manifest(
        name,
        command,
        where,
        Resources(),
        env=encoder,
        pod_spec=pod_spec,
        activeDeadlineSeconds=placement.deadline_s,
    )
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"] = step["containerConfig"]["resources"]
    return manifest


_LABELS = {"app.kubernetes.io/part-of": "montage-ai"}

_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}

_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

# A pod that lost its node is no failure of its work; wrong input fails for good.
_FAILURE_POLICY = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [WRONG_INPUT]}},
    ]
}


def _container(command: Sequence[str], where: Where, resources: Resources, env: Mapping[str, str]) -> Manifest:
    variables = {**({} if where.data is None else {"MONTAGE_DATA": where.data}), **env}
    return {
        "name": "main",
        "image": where.image,
        "imagePullPolicy": "IfNotPresent",
        "args" if where.is_our_image else "command": [_literally(word) for word in command],
        "envFrom": [
            {"configMapRef": {"name": SETTINGS_MAP, "optional": True}},
            {"secretRef": {"name": BUCKET_SECRET, "optional": True}},
        ],
        "env": [
            *({"name": name, "value": _literally(value)} for name, value in variables.items()),
            {"name": "MONTAGE_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "resources": resources.manifest(),
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [{"name": "data", "mountPath": DATA_FOLDER}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }


def _literally(word: str) -> str:
    """Kubernetes fills in `$(NAME)`; a file may be called that."""
    return word.replace("$", "$$")


def _data_volume(where: Where) -> Manifest:
    if where.data is not None and "://" in where.data:
        return {"name": "data", "emptyDir": {}}
    return {"name": "data", "persistentVolumeClaim": {"claimName": DATA_CLAIM}}


def _apart(name: str, spread: Spread) -> Manifest:
    term = {"labelSelector": {"matchLabels": {"job-name": name}}, "topologyKey": HOST_LABEL}
    if spread == "required":
        return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def _preferring(nodes: Sequence[str]) -> Manifest:
    if not nodes:
        return {}
    wanted = {"matchExpressions": [{"key": HOST_LABEL, "operator": "In", "values": list(nodes)}]}
    return {
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": wanted}]}
    }


def _as_the_api_spells_it(value: Any) -> Any:
    """Dagster's snake_case field names as the API's; keys of labels and resources hold a slash and stay."""
    if isinstance(value, list):
        return [_as_the_api_spells_it(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {_camel(key): _as_the_api_spells_it(entry) for key, entry in value.items()}


def _camel(key: str) -> str:
    head, *rest = key.split("_")
    return key if "/" in key else head + "".join(word.capitalize() for word in rest)
