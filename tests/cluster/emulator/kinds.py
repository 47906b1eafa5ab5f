"""The kinds of objects that the emulator knows, and what it tells clients about them: discovery and OpenAPI.

Belongs here: the table, and the documents made of it. Does not belong here: the schemas themselves (`schemas`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.cluster.emulator.objects import Object

_NAMED = ("metadata.name", "metadata.namespace")
_ABOUT = tuple(f"involvedObject.{name}" for name in ("name", "namespace", "kind", "uid"))
_APPS, _BATCH, _NETWORK = "apps/v1", "batch/v1", "networking.k8s.io/v1"
_POLICY, _RIGHTS = "policy/v1", "rbac.authorization.k8s.io/v1"
_VERBS = ("create", "delete", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Resource:
    """A kind of object. `fields` are those a fieldSelector may name; `parts` its subresources."""

    api_version: str
    kind: str
    namespaced: bool = True
    fields: tuple[str, ...] = _NAMED
    short: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("status",)

    @property
    def root(self) -> str:
        return _root(self.api_version)


RESOURCES: Mapping[str, Resource] = {
    "configmaps": Resource("v1", "ConfigMap", short=("cm",)),
    "events": Resource("v1", "Event", fields=(*_NAMED, *_ABOUT, "reason", "type"), short=("ev",)),
    "limitranges": Resource("v1", "LimitRange", short=("limits",)),
    "namespaces": Resource(
        "v1", "Namespace", namespaced=False, fields=("metadata.name", "status.phase"), short=("ns",)
    ),
    "nodes": Resource("v1", "Node", namespaced=False, fields=("metadata.name", "spec.unschedulable"), short=("no",)),
    "persistentvolumeclaims": Resource("v1", "PersistentVolumeClaim", short=("pvc",)),
    "persistentvolumes": Resource("v1", "PersistentVolume", namespaced=False, short=("pv",)),
    "pods": Resource(
        "v1", "Pod", short=("po",), parts=("status", "log", "exec", "portforward"),
        fields=(*_NAMED, "spec.nodeName", "spec.restartPolicy", "status.phase", "status.podIP"),
    ),
    "resourcequotas": Resource("v1", "ResourceQuota", short=("quota",)),
    "secrets": Resource("v1", "Secret"),
    "serviceaccounts": Resource("v1", "ServiceAccount", short=("sa",)),
    "services": Resource("v1", "Service", short=("svc",)),
    "daemonsets": Resource(_APPS, "DaemonSet", short=("ds",)),
    "deployments": Resource(_APPS, "Deployment", short=("deploy",), parts=("status", "scale")),
    "statefulsets": Resource(_APPS, "StatefulSet", short=("sts",)),
    "cronjobs": Resource(_BATCH, "CronJob", short=("cj",)),
    "jobs": Resource(_BATCH, "Job", fields=(*_NAMED, "status.successful")),
    "networkpolicies": Resource(_NETWORK, "NetworkPolicy", short=("netpol",)),
    "poddisruptionbudgets": Resource(_POLICY, "PodDisruptionBudget", short=("pdb",)),
    "clusterroles": Resource(_RIGHTS, "ClusterRole", namespaced=False),
    "clusterrolebindings": Resource(_RIGHTS, "ClusterRoleBinding", namespaced=False),
    "roles": Resource(_RIGHTS, "Role"),
    "rolebindings": Resource(_RIGHTS, "RoleBinding"),
    "priorityclasses": Resource("scheduling.k8s.io/v1", "PriorityClass", namespaced=False, short=("pc",)),
}  # fmt: skip

_API_VERSIONS = tuple(dict.fromkeys(resource.api_version for resource in RESOURCES.values()))


def document(path: str) -> Object | None:
    """What is found at a path of the discovery and OpenAPI documents, None when nothing is."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [_group(version) for version in _API_VERSIONS if "/" in version]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/openapi/v3":
        roots = [_root(version) for version in _API_VERSIONS]
        return {"paths": {root[1:]: {"serverRelativeURL": f"/openapi/v3{root}"} for root in roots}}
    for version in _API_VERSIONS:
        if path == _root(version):
            return _resource_list(version)
        if path == f"/openapi/v3{_root(version)}":
            return _openapi(version)
    return None


def _root(api_version: str) -> str:
    return f"/api{'s' if '/' in api_version else ''}/{api_version}"


def _group(api_version: str) -> Object:
    group, _, version = api_version.partition("/")
    named = {"groupVersion": api_version, "version": version}
    return {"name": group, "versions": [named], "preferredVersion": named}


def _resource_list(api_version: str) -> Object:
    entries: list[Object] = []
    for name, resource in _of(api_version).items():
        entries.append(
            {
                "name": name, "singularName": resource.kind.lower(), "namespaced": resource.namespaced,
                "kind": resource.kind, "verbs": list(_VERBS), "shortNames": list(resource.short),
            }
        )  # fmt: skip
        for part in resource.parts:
            entry = {"name": f"{name}/{part}", "singularName": "", "namespaced": resource.namespaced}
            kind = {"kind": resource.kind}
            if part == "scale":
                kind = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
            entries.append({**entry, **kind, "verbs": ["get", "patch", "update"]})
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": entries}


def _openapi(api_version: str) -> Object:
    """As much as tells kubectl that the server checks the fields itself (the parameter fieldValidation)."""
    group, _, version = api_version.rpartition("/")
    paths = {}
    for name, resource in _of(api_version).items():
        place = "/namespaces/{namespace}" if resource.namespaced else ""
        paths[f"{resource.root}{place}/{name}/{{name}}"] = {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": resource.kind},
            }
        }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "emulated"}, "paths": paths}


def _of(api_version: str) -> Mapping[str, Resource]:
    return {name: resource for name, resource in RESOURCES.items() if resource.api_version == api_version}
