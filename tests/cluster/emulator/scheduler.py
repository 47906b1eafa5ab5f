"""kube-scheduler's decision for one pod: the default plugins' filters and scores, as pure functions on API objects.

Source: pkg/scheduler/framework/plugins of Kubernetes 1.34, with the default weights of
pkg/scheduler/apis/config/v1/default_plugins.go. Where kube-scheduler picks among equals by lot, the first name wins.
Left out: preemption, volumes, host ports, image locality, namespaceSelector and matchLabelKeys.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from montage_assets.cluster.quantities import parse_quantity
from tests.cluster.emulator.objects import Object, labels_of, matches_label_selector, meets

MAX = 100
WEIGHTS = {
    "TaintToleration": 3,
    "NodeAffinity": 2,
    "PodTopologySpread": 2,
    "InterPodAffinity": 2,
    "NodeResourcesFit": 1,
    "NodeResourcesBalancedAllocation": 1,
}

# What a container without requests is taken to need when nodes are scored (pkg/scheduler/util/pod_resources.go).
_UNASKED = {"cpu": 0.1, "memory": 200 * 2**20}
_UNSCHEDULABLE = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
_HARD_POD_AFFINITY_WEIGHT = 1


@dataclass(frozen=True)
class Decision:
    """`node` is None when the pod fits nowhere; `message` then says why, in the words of a FailedScheduling event.

    `scores`: the total of each node that passed the filters.
    """

    node: str | None
    message: str
    scores: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """A node and the pods on it that have not ended."""

    node: Object
    pods: Sequence[Object]

    @property
    def name(self) -> str:
        return str(self.node["metadata"]["name"])

    @property
    def labels(self) -> Mapping[str, str]:
        return labels_of(self.node)

    def allocatable(self, resource: str) -> float:
        return parse_quantity(self.node["status"]["allocatable"].get(resource, "0"))

    def requested(self, resource: str) -> float:
        return sum(requests_of(pod).get(resource, 0.0) for pod in self.pods)


def schedule(pod: Object, nodes: Iterable[Object], pods: Iterable[Object]) -> Decision:
    """Where `pod` goes. `pods` are all others; those without a node and those that have ended do not count."""
    bound = [other for other in pods if other["spec"].get("nodeName") and not has_ended(other)]
    hosts = [
        Host(node, [other for other in bound if other["spec"]["nodeName"] == node["metadata"]["name"]])
        for node in sorted(nodes, key=lambda node: str(node["metadata"]["name"]))
    ]
    faults = {host.name: _first_faults(pod, host, hosts) for host in hosts}
    fitting = [host for host in hosts if not faults[host.name]]
    if not fitting:
        reasons = Counter(fault for host_faults in faults.values() for fault in host_faults)
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        return Decision(None, f"0/{len(hosts)} nodes are available: {listed}.")
    totals = Counter({host.name: 0 for host in fitting})
    for plugin, weight in WEIGHTS.items():
        for name, points in _SCORES[plugin](pod, fitting, hosts).items():
            totals[name] += weight * points
    best = min(totals, key=lambda name: (-totals[name], name))
    return Decision(best, f"Successfully assigned to {best}", dict(totals))


def has_ended(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def requests_of(pod: Object) -> dict[str, float]:
    """What the pod asks for: cores, bytes, devices. A limit without a request counts as one."""
    total: defaultdict[str, float] = defaultdict(float)
    for container in pod["spec"]["containers"]:
        for name, amount in _container_requests(container).items():
            total[name] += amount
    return {"pods": 1, **total}


def _container_requests(container: Mapping[str, Any]) -> dict[str, float]:
    resources = container.get("resources") or {}
    amounts = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: parse_quantity(amount) for name, amount in amounts.items()}


# Filters: each says why the pod cannot go to the host, or nothing.


def _first_faults(pod: Object, host: Host, hosts: Sequence[Host]) -> list[str]:
    for found in (
        _unschedulable(pod, host),
        _untolerated(pod, host),
        [] if _on_wanted_node(pod, host.node) else ["node(s) didn't match Pod's node affinity/selector"],
        _insufficient(pod, host),
        list(_broken_spread(pod, host, hosts)),
        list(_broken_pod_affinity(pod, host, hosts)),
    ):
        if found:
            return found
    return []


def _unschedulable(pod: Object, host: Host) -> list[str]:
    if host.node["spec"].get("unschedulable") and not _tolerated(pod, _UNSCHEDULABLE):
        return ["node(s) were unschedulable"]
    return []


def _untolerated(pod: Object, host: Host) -> list[str]:
    for taint in host.node["spec"].get("taints") or []:
        if taint["effect"] in ("NoSchedule", "NoExecute") and not _tolerated(pod, taint):
            return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
    return []


def _tolerated(pod: Object, taint: Mapping[str, str]) -> bool:
    return any(_tolerates(toleration, taint) for toleration in pod["spec"].get("tolerations") or [])


def _tolerates(toleration: Mapping[str, str], taint: Mapping[str, str]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    exists = toleration.get("operator") == "Exists"
    if not toleration.get("key"):
        return exists
    if toleration["key"] != taint["key"]:
        return False
    return exists or toleration.get("value", "") == taint.get("value", "")


def _on_wanted_node(pod: Object, node: Object) -> bool:
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels_of(node).get(key) != value for key, value in wanted.items()):
        return False
    required = _affinity(pod, "nodeAffinity").get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or any(_term_matches(term, node) for term in required["nodeSelectorTerms"])


def _term_matches(term: Mapping[str, Any], node: Object) -> bool:
    """A node selector term: all of its expressions. An empty one matches nothing."""
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    by_field = {"metadata.name": str(node["metadata"]["name"])}
    return bool(expressions or fields) and all(
        meets(source, entry["key"], entry["operator"], entry.get("values") or [])
        for source, entries in ((labels_of(node), expressions), (by_field, fields))
        for entry in entries
    )


def _insufficient(pod: Object, host: Host) -> list[str]:
    faults = []
    for resource, amount in requests_of(pod).items():
        free = host.allocatable(resource) - host.requested(resource)
        if amount > free + 1e-9:
            faults.append("Too many pods" if resource == "pods" else f"Insufficient {resource}")
    return faults


def _broken_spread(pod: Object, host: Host, hosts: Sequence[Host]) -> Iterator[str]:
    for constraint in _spread_constraints(pod, "DoNotSchedule"):
        key = constraint["topologyKey"]
        if key not in host.labels:
            yield "node(s) didn't match pod topology spread constraints (missing required label)"
            return
        eligible = [other for other in hosts if key in other.labels and _on_wanted_node(pod, other.node)]
        counts = {other.labels[key]: 0 for other in eligible}
        for other in eligible:
            counts[other.labels[key]] += _matching_for_spread(constraint, pod, other)
        fewest = min(counts.values(), default=0) if len(counts) >= constraint.get("minDomains", 1) else 0
        counts_itself = matches_label_selector(labels_of(pod), constraint.get("labelSelector"))
        if counts.get(host.labels[key], 0) + counts_itself - fewest > constraint["maxSkew"]:
            yield "node(s) didn't match pod topology spread constraints"
            return


def _broken_pod_affinity(pod: Object, host: Host, hosts: Sequence[Host]) -> Iterator[str]:
    for term in _required_terms(pod, "podAffinity"):
        some_match = any(_term_selects(term, pod, other) for _, other in _placed(hosts))
        near = any(_term_selects(term, pod, other) for other in _neighbours(term, host, hosts))
        # The first of a group that wants to be together must be let in somewhere.
        is_first = not some_match and _term_selects(term, pod, pod) and term["topologyKey"] in host.labels
        if not near and not is_first:
            yield "node(s) didn't match pod affinity rules"
            return
    for term in _required_terms(pod, "podAntiAffinity"):
        if any(_term_selects(term, pod, other) for other in _neighbours(term, host, hosts)):
            yield "node(s) didn't match pod anti-affinity rules"
            return
    for where, other in _placed(hosts):
        for term in _required_terms(other, "podAntiAffinity"):
            if _term_selects(term, other, pod) and _same_domain(term["topologyKey"], where, host):
                yield "node(s) didn't satisfy existing pods anti-affinity rules"
                return


# Scores: 0 to 100 for each host that passed the filters.

Scores = dict[str, int]


def _taint_scores(pod: Object, fitting: Sequence[Host], _: Sequence[Host]) -> Scores:
    unwanted = {
        host.name: sum(
            taint["effect"] == "PreferNoSchedule" and not _tolerated(pod, taint)
            for taint in host.node["spec"].get("taints") or []
        )
        for host in fitting
    }
    return {name: MAX - share for name, share in _as_shares(unwanted).items()}


def _node_affinity_scores(pod: Object, fitting: Sequence[Host], _: Sequence[Host]) -> Scores:
    preferred = _affinity(pod, "nodeAffinity").get("preferredDuringSchedulingIgnoredDuringExecution") or []
    return _as_shares(
        {
            host.name: sum(entry["weight"] for entry in preferred if _term_matches(entry["preference"], host.node))
            for host in fitting
        }
    )


def _as_shares(points: Mapping[str, int]) -> Scores:
    most = max(points.values())
    return {name: MAX * value // most if most else 0 for name, value in points.items()}


def _least_allocated_scores(pod: Object, fitting: Sequence[Host], _: Sequence[Host]) -> Scores:
    def points(host: Host) -> int:
        free = []
        for resource, unasked in _UNASKED.items():
            used = sum(
                _container_requests(container).get(resource, unasked)
                for other in (*host.pods, pod)
                for container in other["spec"]["containers"]
            )
            whole = host.allocatable(resource)
            free.append(int((whole - used) * MAX / whole) if used <= whole else 0)
        return sum(free) // len(free)

    return {host.name: points(host) for host in fitting}


def _balanced_scores(pod: Object, fitting: Sequence[Host], _: Sequence[Host]) -> Scores:
    def points(host: Host) -> int:
        if not any(requests_of(pod).get(resource) for resource in _UNASKED):
            return 0
        used = [
            min(1.0, (host.requested(resource) + requests_of(pod).get(resource, 0.0)) / host.allocatable(resource))
            for resource in _UNASKED
        ]
        return int((1 - abs(used[0] - used[1]) / 2) * MAX)  # half the difference is the deviation of two numbers

    return {host.name: points(host) for host in fitting}


def _spread_scores(pod: Object, fitting: Sequence[Host], hosts: Sequence[Host]) -> Scores:
    constraints = _spread_constraints(pod, "ScheduleAnyway")
    if not constraints:
        return {host.name: 0 for host in fitting}
    counted = [host for host in fitting if all(entry["topologyKey"] in host.labels for entry in constraints)]
    crowding = dict.fromkeys((host.name for host in counted), 0.0)
    for constraint in constraints:
        key = constraint["topologyKey"]
        weight = math.log(len({host.labels[key] for host in counted}) + 2)
        counts: Counter[str] = Counter()
        for other in hosts:
            has_all = all(entry["topologyKey"] in other.labels for entry in constraints)
            if has_all and _on_wanted_node(pod, other.node):
                counts[other.labels[key]] += _matching_for_spread(constraint, pod, other)
        for host in counted:
            crowding[host.name] += counts[host.labels[key]] * weight + constraint["maxSkew"] - 1
    rounded = {name: round(value) for name, value in crowding.items()}
    most, least = max(rounded.values(), default=0), min(rounded.values(), default=0)
    scores = {name: MAX * (most + least - value) // most if most else MAX for name, value in rounded.items()}
    return {host.name: scores.get(host.name, 0) for host in fitting}


def _pod_affinity_scores(pod: Object, fitting: Sequence[Host], hosts: Sequence[Host]) -> Scores:
    totals = dict.fromkeys((host.name for host in fitting), 0)

    def add(weight: int, key: str, where: Host) -> None:
        for host in fitting:
            if _same_domain(key, where, host):
                totals[host.name] += weight

    for where, other in _placed(hosts):
        for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
            for owner, target in ((pod, other), (other, pod)):
                preferred = _affinity(owner, kind).get("preferredDuringSchedulingIgnoredDuringExecution") or []
                for entry in preferred:
                    term = entry["podAffinityTerm"]
                    if _term_selects(term, owner, target):
                        add(sign * entry["weight"], term["topologyKey"], where)
        for term in _required_terms(other, "podAffinity"):
            if _term_selects(term, other, pod):
                add(_HARD_POD_AFFINITY_WEIGHT, term["topologyKey"], where)
    most, least = max(totals.values()), min(totals.values())
    return {name: MAX * (value - least) // (most - least) if most > least else 0 for name, value in totals.items()}


_SCORES: Mapping[str, Callable[[Object, Sequence[Host], Sequence[Host]], Scores]] = {
    "TaintToleration": _taint_scores,
    "NodeAffinity": _node_affinity_scores,
    "PodTopologySpread": _spread_scores,
    "InterPodAffinity": _pod_affinity_scores,
    "NodeResourcesFit": _least_allocated_scores,
    "NodeResourcesBalancedAllocation": _balanced_scores,
}


def _affinity(pod: Object, kind: str) -> Mapping[str, Any]:
    return (pod["spec"].get("affinity") or {}).get(kind) or {}


def _required_terms(pod: Object, kind: str) -> list[Mapping[str, Any]]:
    return _affinity(pod, kind).get("requiredDuringSchedulingIgnoredDuringExecution") or []


def _term_selects(term: Mapping[str, Any], owner: Object, other: Object) -> bool:
    namespaces = term.get("namespaces") or [owner["metadata"]["namespace"]]
    return other["metadata"]["namespace"] in namespaces and matches_label_selector(
        labels_of(other), term.get("labelSelector")
    )


def _placed(hosts: Sequence[Host]) -> Iterator[tuple[Host, Object]]:
    return ((host, pod) for host in hosts for pod in host.pods)


def _neighbours(term: Mapping[str, Any], host: Host, hosts: Sequence[Host]) -> Iterator[Object]:
    return (pod for where, pod in _placed(hosts) if _same_domain(term["topologyKey"], where, host))


def _same_domain(key: str, one: Host, other: Host) -> bool:
    return key in one.labels and one.labels[key] == other.labels.get(key)


def _spread_constraints(pod: Object, when: str) -> list[Mapping[str, Any]]:
    constraints = pod["spec"].get("topologySpreadConstraints") or []
    return [constraint for constraint in constraints if constraint["whenUnsatisfiable"] == when]


def _matching_for_spread(constraint: Mapping[str, Any], pod: Object, host: Host) -> int:
    return sum(
        other["metadata"]["namespace"] == pod["metadata"]["namespace"]
        and "deletionTimestamp" not in other["metadata"]
        and matches_label_selector(labels_of(other), constraint.get("labelSelector"))
        for other in host.pods
    )
