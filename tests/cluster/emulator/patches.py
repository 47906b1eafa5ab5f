"""Patches of objects: JSON merge patches, and Kubernetes' own strategic ones.

Source of the latter: "Update API Objects in Place Using kubectl patch" of Kubernetes' documentation, and the directives
of strategicpatch (staging/src/k8s.io/apimachinery/pkg/util/strategicpatch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MERGE_KEYS: Mapping[str, tuple[str, ...]] = {
    "addresses": ("type",),
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port"),  # of containers, of services
    "secrets": ("name",),
    "taints": ("key",),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""Lists whose entries are merged, by the key that tells them apart (`patchMergeKey` in the API's Go types). All others
are replaced as a whole."""

_SET_LISTS = ("finalizers",)
_ORDER, _DELETED, _RETAINED = "$setElementOrder/", "$deleteFromPrimitiveList/", "$retainKeys"
_DIRECTIVE = "$patch"


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396) applied to a copy of the target."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def strategically_merged(target: Any, patch: Any) -> Any:
    """A strategic merge patch applied to a copy of the target."""
    if not isinstance(patch, dict):
        return patch
    if patch.get(_DIRECTIVE) == "replace":
        return {key: value for key, value in patch.items() if key != _DIRECTIVE}
    result = dict(target) if isinstance(target, dict) else {}
    if _RETAINED in patch:
        result = {key: value for key, value in result.items() if key in patch[_RETAINED]}
    for key, value in patch.items():
        if key.startswith(_DELETED):
            name = key.removeprefix(_DELETED)
            result[name] = [entry for entry in result.get(name) or [] if entry not in value]
        elif key.startswith("$"):
            continue  # what it says about other keys is seen to with them
        elif value is None or (isinstance(value, dict) and value.get(_DIRECTIVE) == "delete"):
            result.pop(key, None)
        elif isinstance(value, list):
            result[key] = _merged_list(key, result.get(key) or [], value)
        else:
            result[key] = strategically_merged(result.get(key), value)
    for key, order in patch.items():
        name = key.removeprefix(_ORDER)
        if name != key and result.get(name):
            result[name] = _ordered(name, result[name], order)
    return result


def _merged_list(name: str, present: Sequence[Any], changes: Sequence[Any]) -> list[Any]:
    if name in _SET_LISTS:
        return [*present, *(entry for entry in changes if entry not in present)]
    key = _merge_key(name, [*present, *changes])
    if key is None or {_DIRECTIVE: "replace"} in changes:
        return [entry for entry in changes if entry != {_DIRECTIVE: "replace"}]
    result = list(present)
    for change in changes:
        places = [number for number, entry in enumerate(result) if entry.get(key) == change[key]]
        if change.get(_DIRECTIVE) == "delete":
            result = [entry for entry in result if entry.get(key) != change[key]]
        elif places:
            result[places[0]] = strategically_merged(result[places[0]], change)
        else:
            result.append(strategically_merged({}, change))
    return result


def _merge_key(name: str, entries: Sequence[Any]) -> str | None:
    for key in _MERGE_KEYS.get(name, ()):
        if all(isinstance(entry, dict) and (key in entry or entry == {_DIRECTIVE: "replace"}) for entry in entries):
            return key
    return None


def _ordered(name: str, entries: Sequence[Any], order: Sequence[Any]) -> list[Any]:
    """The entries in the given order; those that it does not name stay behind their predecessor."""
    key = _merge_key(name, entries)
    identities = [entry[key] if key else entry for entry in entries]
    wanted = [entry[key] if key else entry for entry in order]
    ranks: list[tuple[int, int]] = []
    rank = -1
    for number, identity in enumerate(identities):
        rank = wanted.index(identity) if identity in wanted else rank
        ranks.append((rank, number))
    return [entries[number] for _, number in sorted(ranks)]
