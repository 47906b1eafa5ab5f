"""What the API server refuses: objects against the published schemas, and the further rules that what makes pods meets.

The schemas are those of the kubernetes-validate package, strict: a field that does not exist is an error, as with
`kubectl apply --validate=strict`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]

from montage_assets.cluster.quantities import parse_quantity
from tests.cluster.emulator.objects import ApiError, Object, matches_label_selector

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

_NOT_EMULATED = ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy", "managedBy")


def check(item: Object) -> None:
    """Raises ApiError (422) with all that is wrong."""
    faults = list(_faults(item))
    if faults:
        kind, name = item.get("kind", "object"), item.get("metadata", {}).get("name", "")
        raise ApiError(422, f'{kind} "{name}" is invalid: {"; ".join(faults)}')


def _faults(item: Object) -> Iterator[str]:
    try:
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(str(part) for part in error.path)}: {error.message}"
        return
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message
        return
    yield from _faults_of_metadata(item.get("metadata") or {})
    if item["kind"] == "Job":
        yield from _faults_of_job(item)
    if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
        yield from _faults_of_service(item)


def _faults_of_metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    name = metadata.get("name") or ""
    if not metadata.get("generateName") and not (NAME.fullmatch(name) and len(name) <= 253):
        yield f"metadata.name: {name!r} is no RFC 1123 subdomain"
    yield from _faults_of_labels(metadata, "metadata")


def _faults_of_labels(metadata: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in (metadata.get("labels") or {}).items():
        if not LABEL_KEY.fullmatch(key):
            yield f"{where}.labels: {key!r} is no label name"
        if not LABEL_VALUE.fullmatch(value) or len(value) > 63:
            yield f"{where}.labels: {value!r} is no label value"
    for key in metadata.get("annotations") or {}:
        if not LABEL_KEY.fullmatch(key.lower()):
            yield f"{where}.annotations: {key!r} is no annotation name"


def _faults_of_job(job: Object) -> Iterator[str]:
    spec, name = job["spec"], job["metadata"].get("name", "")
    if len(name) > 63:
        yield f"metadata.name: {name!r} is longer than the 63 characters that the label job-name may have"
    template = spec["template"]
    yield from _faults_of_labels(template.get("metadata") or {}, "spec.template.metadata")
    pod = template.get("spec") or {}
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        yield f"spec.template.spec.restartPolicy: {pod.get('restartPolicy')!r}: a job's must be Never or OnFailure"
    if spec.get("completionMode") == "Indexed" and spec.get("completions") is None:
        yield "spec.completions: required when completion mode is Indexed"
    if spec.get("selector") and not spec.get("manualSelector"):
        yield "spec.selector: `selector` will be auto-generated"
    if spec.get("podFailurePolicy") and pod.get("restartPolicy") != "Never":
        yield "spec.podFailurePolicy: needs restartPolicy Never"
    for field in _NOT_EMULATED:
        if spec.get(field) is not None:
            yield f"spec.{field}: the emulator does not know it"
    if spec.get("suspend"):
        yield "spec.suspend: the emulator does not know it"
    if len(pod.get("containers") or []) != 1 or pod.get("initContainers"):
        yield "spec.template.spec.containers: the emulator runs exactly one"
    yield from _faults_of_pod(pod, {volume["name"] for volume in pod.get("volumes") or []})


def _faults_of_service(item: Object) -> Iterator[str]:
    spec, template = item["spec"], item["spec"]["template"]
    metadata, pod = template.get("metadata") or {}, template.get("spec") or {}
    yield from _faults_of_labels(metadata, "spec.template.metadata")
    if not matches_label_selector(metadata.get("labels") or {}, spec["selector"]):
        yield "spec.template.metadata.labels: `selector` does not match template `labels`"
    if pod.get("restartPolicy", "Always") != "Always":
        yield f"spec.template.spec.restartPolicy: {pod['restartPolicy']!r}: must be Always"
    claims = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates") or []]
    yield from _faults_of_pod(pod, {*claims, *(volume["name"] for volume in pod.get("volumes") or [])})


def _faults_of_pod(pod: Mapping[str, Any], volumes: set[str]) -> Iterator[str]:
    for container in pod.get("containers") or []:
        if not container.get("image"):
            yield f"container {container['name']}: image: Required value"
        for mount in container.get("volumeMounts") or []:
            if mount["name"] not in volumes:
                yield f"container {container['name']}: volumeMounts: there is no volume {mount['name']!r}"
        yield from _faults_of_resources(container)


def _faults_of_resources(container: Mapping[str, Any]) -> Iterator[str]:
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name, amount in requests.items():
        if name in limits and parse_quantity(amount) > parse_quantity(limits[name]):
            yield f"container {container['name']}: requests.{name}: {amount} is more than its limit {limits[name]}"
    for name in {*requests, *limits}:
        if "/" not in name:
            continue
        # Extended resources are counted in whole devices that cannot be overcommitted.
        amount = limits.get(name)
        if amount is None or requests.get(name, amount) != amount:
            yield f"container {container['name']}: {name}: the limit must be set, and the request equal to it"
        elif not parse_quantity(amount).is_integer():
            yield f"container {container['name']}: {name}: {amount} is no whole number"
