"""The Kubernetes emulator: it refuses, places, runs and counts as a cluster does."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config, dynamic, stream, watch

from montage_assets.cluster import NodeCapability
from montage_assets.cluster.kubernetes_nodes import nodes_from_api
from tests.cluster.clusters import AMD, CONTROL_PLANE, JETSON, PI, VAAPI, node, plan, plan_with
from tests.cluster.emulator import KubernetesEmulator
from tests.cluster.emulator.kinds import RESOURCES
from tests.cluster.emulator.nodes import node_object
from tests.cluster.emulator.objects import ApiError, Object
from tests.cluster.emulator.patches import strategically_merged
from tests.cluster.emulator.scheduler import schedule

HOST = "kubernetes.io/hostname"
Start = Callable[..., KubernetesEmulator]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an emulator of the given nodes; ends it with the test."""
    started: list[KubernetesEmulator] = []

    def begin(nodes: tuple[NodeCapability, ...] = (node("a"), node("b")), **options: Any) -> KubernetesEmulator:
        emulator = KubernetesEmulator(nodes, tmp_path, **options)
        started.append(emulator)
        return emulator.__enter__()

    yield begin
    for emulator in started:
        emulator.__exit__(None, None, None)


def batch(emulator: KubernetesEmulator) -> client.BatchV1Api:
    return client.BatchV1Api(config.new_client_from_config(str(emulator.kubeconfig)))


def core(emulator: KubernetesEmulator) -> client.CoreV1Api:
    return client.CoreV1Api(config.new_client_from_config(str(emulator.kubeconfig)))


def job(
    name: str, script: str = "true", container: Object | None = None, pod: Object | None = None, **spec: Any
) -> Object:
    """A job that runs a shell script."""
    main = {"name": "main", "image": "montage:test", "command": ["/bin/sh", "-c", script], **(container or {})}
    spec_of_pod = {"restartPolicy": "Never", "containers": [main], **(pod or {})}
    template = {"metadata": {"labels": {"app": "test"}}, "spec": spec_of_pod}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"app": "test"}},
        "spec": {"backoffLimit": 0, "template": template, **spec},
    }


def config_map(name: str, **values: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": values}


def submit(emulator: KubernetesEmulator, item: Object) -> str:
    batch(emulator).create_namespaced_job(emulator.namespace, item)
    return str(item["metadata"]["name"])


def test_a_jobs_command_runs_with_what_its_spec_says(start: Start) -> None:
    emulator = start(environment={"MONTAGE_DATA": "/the/tests/own"})
    fields = {
        "POD": "metadata.name",
        "SPACE": "metadata.namespace",
        "WHERE": "spec.nodeName",
        "TASK": "metadata.labels['app']",
    }
    env = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    env += [{"name": "MONTAGE_DATA", "value": "/data"}, {"name": "GREETING", "value": "from $(TASK)"}]
    script = 'echo "$POD $SPACE $WHERE"; echo "$GREETING $MONTAGE_DATA" >&2; command -v python'
    submit(emulator, job("hello", script, {"env": env}))
    ended = emulator.wait_for_job("hello")
    pod = ended.pods[0]
    assert (ended.outcome, pod.phase, pod.exit_code, pod.reason) == ("Complete", "Succeeded", 0, "Completed")
    python = str(Path(sys.executable).with_name("python"))
    assert pod.log.splitlines() == [f"{pod.name} montage-ai a", "from test /the/tests/own", python]
    tail = core(emulator).read_namespaced_pod_log(pod.name, "montage-ai", tail_lines=1, _preload_content=False)
    assert tail.data.decode().strip() == python


def test_the_clients_models_read_jobs_pods_events_and_nodes(start: Start) -> None:
    emulator = start()
    submit(emulator, job("one", "exit 3"))
    emulator.wait_for_job("one")
    found = batch(emulator).list_namespaced_job("montage-ai", field_selector="metadata.name=one").items[0]
    assert (found.status.failed, found.status.conditions[0].reason) == (1, "BackoffLimitExceeded")
    assert batch(emulator).read_namespaced_job_status("one", "montage-ai").status.start_time is not None
    pods = core(emulator).list_namespaced_pod("montage-ai", label_selector="job-name=one,app in (test, other)").items
    assert [pod.status.container_statuses[0].state.terminated.exit_code for pod in pods] == [3]
    assert core(emulator).list_namespaced_pod("montage-ai", label_selector="app!=test").items == []
    events = core(emulator).list_namespaced_event(
        "montage-ai", field_selector=f"involvedObject.name={pods[0].metadata.name}"
    )
    assert [event.reason for event in events.items] == ["Scheduled", "Started"]
    assert [item.metadata.name for item in core(emulator).list_node().items] == ["a", "b"]


def test_the_plans_nodes_read_back_as_they_are() -> None:
    read = {entry.name: entry for entry in nodes_from_api(node_object(entry) for entry in plan())}
    for entry in plan():
        back = read[entry.name]
        assert (back.arch, back.cpu_cores, back.ram_gb) == (entry.arch, entry.cpu_cores, entry.ram_gb)
        assert (back.gpu_type, back.vram_gb is None, back.is_jetson) == (
            entry.gpu_type,
            entry.vram_gb is None,
            entry.is_jetson,
        ), entry.name
        assert (back.control_plane, back.closed_to_all) == (entry.control_plane, "")
    assert {name: dict(read[name].resources) for name in (AMD, JETSON, VAAPI)} == {
        AMD: {"amd.com/gpu": 1},
        JETSON: {"nvidia.com/gpu": 1},
        VAAPI: {"squat.ai/dri": 1},
    }


# What is refused.


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (job("x", comand=["true"]), "'comand' was unexpected"),
        (
            job("x", container={"resources": {"limits": {"memory": "4Gi"}, "requests": {"memory": "8Gi"}}}),
            "more than its limit",
        ),
        (job("x", container={"resources": {"requests": {"amd.com/gpu": "1"}}}), "the limit must be set"),
        (job("x", pod={"restartPolicy": "Always"}), "must be Never or OnFailure"),
        (job("Upper_Case"), "no RFC 1123 subdomain"),
        (job("x" * 64), "longer than the 63 characters"),
        (job("x", completionMode="Indexed"), "spec.completions: required"),
        (job("x", container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]}), "there is no volume"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_job_is_refused_and_kept_for_the_test_to_see(start: Start, item: Object, words: str) -> None:
    emulator = start()
    with pytest.raises(client.ApiException) as refused:
        submit(emulator, item)
    assert refused.value.status == 422
    (fault,) = emulator.take_faults()
    assert words in fault
    assert emulator.jobs == []


def test_an_invalid_job_fails_the_test_that_sent_it(tmp_path: Path) -> None:
    emulator = KubernetesEmulator((node("a"),), tmp_path)
    with pytest.raises(AssertionError, match="restartPolicy"), emulator, pytest.raises(client.ApiException):
        submit(emulator, job("x", pod={"restartPolicy": "Always"}))


def test_a_name_is_taken_once_and_what_is_not_there_is_not_found(start: Start) -> None:
    emulator = start()
    submit(emulator, job("x"))
    answers = []
    for ask in (
        lambda: submit(emulator, job("x")),
        lambda: batch(emulator).read_namespaced_job("y", "montage-ai"),
        lambda: batch(emulator).create_namespaced_job("nowhere", job("z")),
    ):
        with pytest.raises(client.ApiException) as answer:
            ask()
        answers.append(answer.value.status)
    assert answers == [409, 404, 404]


def test_what_is_forbidden_is_answered_so(start: Start) -> None:
    emulator = start()
    emulator.forbid("jobs", "create")
    with pytest.raises(client.ApiException) as refused:
        submit(emulator, job("x"))
    assert (refused.value.status, "Forbidden" in refused.value.body) == (403, True)
    emulator.allow("jobs", "create")
    submit(emulator, job("x"))


# Placement, decided by the pure function.


def pod_object(name: str = "p", labels: dict[str, str] | None = None, on: str | None = None, **spec: Any) -> Object:
    requests = spec.pop("requests", {"cpu": "1", "memory": "1Gi"})
    return {
        "metadata": {"name": name, "namespace": "n", "labels": labels or {"app": "x"}},
        "spec": {
            "containers": [{"name": "main", "resources": {"requests": requests}}],
            **({"nodeName": on} if on else {}),
            **spec,
        },
        "status": {"phase": "Running" if on else "Pending"},
    }


def required(key: str, operator: str, *values: str) -> Object:
    term = {"matchExpressions": [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def fitting(pod: Object, nodes: tuple[NodeCapability, ...], pods: list[Object] | None = None) -> set[str]:
    return set(schedule(pod, map(node_object, nodes), pods or []).scores)


@pytest.mark.parametrize(
    ("key", "operator", "values", "fits"),
    [
        (HOST, "In", ("a", "c"), {"a"}),
        (HOST, "NotIn", ("a",), {"b"}),
        ("disk", "Exists", (), {"b"}),
        ("disk", "DoesNotExist", (), {"a"}),
        ("disk", "Gt", ("7",), {"b"}),
        ("disk", "Lt", ("7",), set()),
    ],
)
def test_required_node_affinity_knows_every_operator(
    key: str, operator: str, values: tuple[str, ...], fits: set[str]
) -> None:
    nodes = (node("a"), node("b", labels={"disk": "8"}))
    assert fitting(pod_object(affinity=required(key, operator, *values)), nodes) == fits


def test_terms_of_required_node_affinity_are_alternatives() -> None:
    either = required(HOST, "In", "a")
    terms = either["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    terms.append({"matchExpressions": [{"key": HOST, "operator": "In", "values": ["b"]}]})
    assert fitting(pod_object(affinity=either), (node("a"), node("b"), node("c"))) == {"a", "b"}


def test_a_node_selector_wants_all_of_its_labels() -> None:
    nodes = (node("a", labels={"x": "1"}), node("b", labels={"x": "1", "y": "2"}))
    assert fitting(pod_object(nodeSelector={"x": "1", "y": "2"}), nodes) == {"b"}


def test_taints_keep_pods_away_that_do_not_tolerate_them() -> None:
    nodes = (node("a"), node("b", taints=["nvidia.com/gpu=present:NoSchedule"]))
    assert fitting(pod_object(), nodes) == {"a"}
    for toleration in (
        {"operator": "Exists"},
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
    ):
        assert fitting(pod_object(tolerations=[toleration]), nodes) == {"a", "b"}
    for toleration in ({"key": "nvidia.com/gpu", "value": "other"}, {"key": "nvidia.com/gpu", "effect": "NoExecute"}):
        assert fitting(pod_object(tolerations=[toleration]), nodes) == {"a"}


def test_cordoned_and_lost_nodes_get_nothing() -> None:
    assert fitting(pod_object(), (node("a", schedulable=False), node("b", ready=False), node("c"))) == {"c"}


def test_a_pod_goes_only_where_what_it_asks_for_is_free() -> None:
    nodes = (node("small", cpu_cores=2, ram_gb=4), node("big", cpu_cores=8, ram_gb=8))
    running = [pod_object("r", on="big", requests={"cpu": "7", "memory": "1Gi"})]
    assert fitting(pod_object(requests={"cpu": "1500m", "memory": "3Gi"}), nodes, running) == {"small"}
    assert fitting(pod_object(requests={"cpu": "500m", "memory": "7Gi"}), nodes, running) == {"big"}
    running[0]["status"]["phase"] = "Succeeded"
    assert fitting(pod_object(requests={"cpu": "6"}), nodes, running) == {"big"}


def test_why_a_pod_fits_nowhere_is_counted_by_reason() -> None:
    nodes = (node("a"), node("b", taints=["x:NoSchedule"]), node("c", schedulable=False), node("d", labels={"z": "1"}))
    pod = pod_object(requests={"cpu": "9", "memory": "64Gi"}, nodeSelector={"z": "1"})
    message = schedule(pod, map(node_object, nodes), []).message
    assert message == (
        "0/4 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, "
        "1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {x: }, "
        "1 node(s) were unschedulable."
    )


def test_a_gpu_is_one_pods_at_a_time() -> None:
    pod = pod_object(requests={"amd.com/gpu": "1"})
    assert fitting(pod, plan()) == {AMD}
    assert fitting(pod, plan(), [pod_object("other", on=AMD, requests={"amd.com/gpu": "1"})]) == set()


def anti_affinity(labels: dict[str, str], topology_key: str = HOST) -> Object:
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": topology_key}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def test_required_anti_affinity_holds_in_both_directions() -> None:
    nodes = (node("a", labels={"zone": "1"}), node("b", labels={"zone": "1"}), node("c", labels={"zone": "2"}))
    loner = pod_object("loner", {"app": "loner"}, affinity=anti_affinity({"app": "x"}))
    assert fitting(loner, nodes, [pod_object("r", on="a")]) == {"b", "c"}
    assert fitting(pod_object(), nodes, [{**loner, "spec": {**loner["spec"], "nodeName": "b"}}]) == {"a", "c"}
    by_zone = pod_object("p", affinity=anti_affinity({"app": "x"}, "zone"))
    assert fitting(by_zone, nodes, [pod_object("r", on="a")]) == {"c"}


def spread(when: str) -> list[Object]:
    selector = {"matchLabels": {"app": "x"}}
    return [{"maxSkew": 1, "topologyKey": HOST, "whenUnsatisfiable": when, "labelSelector": selector}]


def test_required_spread_allows_no_more_than_its_skew() -> None:
    nodes = (node("a"), node("b"), node("c"))
    pod = pod_object(topologySpreadConstraints=spread("DoNotSchedule"))
    assert fitting(pod, nodes, [pod_object("1", on="a"), pod_object("2", on="b")]) == {"c"}
    pod["spec"]["affinity"] = required(HOST, "In", "a", "b")
    assert fitting(pod, nodes, [pod_object("1", on="a"), pod_object("2", on="b")]) == {"a", "b"}


def preferred(weights: dict[str, int]) -> Object:
    terms = [
        {"weight": weight, "preference": {"matchExpressions": [{"key": HOST, "operator": "In", "values": [name]}]}}
        for name, weight in weights.items()
    ]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}


def test_scores_are_kube_schedulers_for_equal_empty_nodes() -> None:
    """8 cores and 32 GiB; the pod takes 1 core and 1 GiB: free shares 87 and 96, mean 91; fractions 1/8 and 1/32
    deviate by 0.047, so balance is 95; 300 without taints; twice 100 and twice 30 for the weights 100 and 30."""
    nodes = (node("a"), node("b"), node("c"))
    pod = pod_object(affinity=preferred({"a": 30, "b": 100}))
    assert schedule(pod, map(node_object, nodes), []).scores == {
        "a": 300 + 60 + 91 + 95,
        "b": 300 + 200 + 91 + 95,
        "c": 300 + 91 + 95,
    }


def test_preferred_spread_and_affinity_add_up_as_in_kube_scheduler() -> None:
    """Spread: one pod of its kind on a, none on b and c: crowding ln(3+2) rounds to 2 against 0, so 0 and 100 points.
    Twice that is as much as the whole of node affinity."""
    nodes = (node("a"), node("b"), node("c"))
    running = [pod_object("1", on="a", requests={})]
    pod = pod_object(topologySpreadConstraints=spread("ScheduleAnyway"))
    apart = schedule(pod, map(node_object, nodes), running)
    assert (apart.node, apart.scores["b"] - apart.scores["a"]) == ("b", 200)
    pod["spec"]["affinity"] = preferred({"a": 1})
    drawn = schedule(pod, map(node_object, nodes), running)
    assert drawn.scores["b"] == drawn.scores["a"]


def test_preferred_anti_affinity_and_preferred_taints_move_a_pod_elsewhere() -> None:
    term = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": HOST}
    wish = {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }
    nodes = (node("a"), node("b", taints=["slow=1:PreferNoSchedule"]), node("c"))
    decision = schedule(pod_object(affinity=wish), map(node_object, nodes), [pod_object("1", on="a")])
    assert decision.node == "c"
    assert decision.scores["c"] - decision.scores["b"] == 300


def test_equals_are_taken_by_name() -> None:
    assert schedule(pod_object(), map(node_object, (node("b"), node("a"))), []).node == "a"


# Jobs, with processes.


def test_a_pod_that_fits_nowhere_waits_says_why_and_starts_when_it_fits(start: Start) -> None:
    emulator = start((node("a", cpu_cores=1),))
    emulator.cordon("a")
    submit(emulator, job("late"))
    emulator.wait_until(lambda cluster: any(reason == "FailedScheduling" for _, reason, _ in cluster.events))
    pod = core(emulator).list_namespaced_pod("montage-ai").items[0]
    assert (pod.status.phase, pod.status.conditions[0].reason) == ("Pending", "Unschedulable")
    assert ("0/1 nodes are available: 1 node(s) were unschedulable.") in {message for _, _, message in emulator.events}
    emulator.uncordon("a")
    assert emulator.wait_for_job("late").outcome == "Complete"


def test_pods_wait_for_the_resources_of_those_before_them(start: Start) -> None:
    emulator = start((node("a", cpu_cores=2),))
    requests = {"resources": {"requests": {"cpu": "1500m"}}}
    for name in ("first", "second"):
        submit(emulator, job(name, "sleep 0.2", requests))
    emulator.wait_for_job("first")
    emulator.wait_for_job("second")
    first, second = emulator.pods
    assert first.ended is not None
    assert second.started is not None
    assert second.started >= first.ended


def indexed(name: str, script: str, count: int, **options: Any) -> Object:
    return job(name, script, completionMode="Indexed", completions=count, parallelism=count, **options)


def test_each_index_of_an_indexed_job_succeeds_once_on_a_host_of_its_own(start: Start) -> None:
    emulator = start(plan())
    pod = {"affinity": anti_affinity({"job-name": "shards"})}
    reference = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    container = {"env": [{"name": "SHARD_INDEX", "valueFrom": reference}]}
    script = 'echo "$SHARD_INDEX $JOB_COMPLETION_INDEX"; sleep 0.5'
    submit(emulator, indexed("shards", script, 4, pod=pod, container=container))
    ended = emulator.wait_for_job("shards")
    assert ended.item["status"]["completedIndexes"] == "0-3"
    assert sorted(pod.log.strip() for pod in ended.pods) == ["0 0", "1 1", "2 2", "3 3"]
    assert len({pod.node for pod in ended.pods}) == 4
    assert PI not in {pod.node for pod in ended.pods}


def test_a_killed_index_is_run_again_and_counted_once(start: Start, tmp_path: Path) -> None:
    emulator = start()
    once = tmp_path / "once"
    submit(
        emulator, indexed("shards", f"[ $JOB_COMPLETION_INDEX = 0 ] || [ -e {once} ] || sleep 60", 2, backoffLimit=3)
    )
    emulator.wait_until(lambda cluster: any(pod.index == 1 and pod.phase == "Running" for pod in cluster.pods))
    emulator.pause()
    (killed,) = emulator.kill_pod(lambda pod: pod.index == 1)
    once.touch()
    emulator.resume()
    ended = emulator.wait_for_job("shards")
    assert (ended.outcome, ended.item["status"]["succeeded"], ended.item["status"]["failed"]) == ("Complete", 2, 1)
    dead = next(pod for pod in ended.pods if pod.name == killed)
    assert (dead.exit_code, dead.reason, dead.phase) == (137, "OOMKilled", "Failed")
    assert {pod.index for pod in ended.pods if pod.phase == "Succeeded"} == {0, 1}


def test_the_pods_of_a_lost_node_fail_and_run_again_elsewhere(start: Start, tmp_path: Path) -> None:
    emulator = start()
    once = tmp_path / "once"
    submit(emulator, job("x", f"[ -e {once} ] || sleep 60", backoffLimit=1))
    emulator.wait_until(lambda cluster: any(pod.phase == "Running" for pod in cluster.pods))
    emulator.pause()
    emulator.lose_node("a")
    once.touch()
    emulator.resume()
    ended = emulator.wait_for_job("x")
    assert [(pod.node, pod.phase, pod.reason) for pod in ended.pods] == [
        ("a", "Failed", "NodeLost"),
        ("b", "Succeeded", "Completed"),
    ]
    assert {entry.name: entry.ready for entry in nodes_from_api(core_items(emulator))} == {"a": False, "b": True}


def core_items(emulator: KubernetesEmulator) -> list[Object]:
    api = core(emulator)
    return list(api.api_client.sanitize_for_serialization(api.list_node())["items"])


def test_a_deadline_counts_the_wait_for_a_node(start: Start) -> None:
    emulator = start((node("a"),))
    emulator.cordon("a")
    submit(emulator, job("never", activeDeadlineSeconds=1))
    ended = emulator.wait_for_job("never")
    assert (ended.outcome, ended.reason, ended.pods[0].node) == ("Failed", "DeadlineExceeded", None)


def test_a_deadline_ends_what_runs_with_all_that_it_started(start: Start, tmp_path: Path) -> None:
    emulator = start()
    child = tmp_path / "child"
    submit(emulator, job("long", f"setsid sh -c 'echo $$$$ > {child}; exec sleep 60' & wait", activeDeadlineSeconds=1))
    emulator.wait_until(lambda cluster: all(pod.ended for pod in cluster.pods) and bool(cluster.pods))
    assert emulator.job("long").reason == "DeadlineExceeded"
    assert not is_running(int(child.read_text()))


def is_running(pid: int) -> bool:
    """Whether the process does anything still: one that waits to be reaped has no command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def test_exit_codes_can_end_a_job_at_once_or_not_count(start: Start, tmp_path: Path) -> None:
    emulator = start()
    codes = lambda action, *values: {  # noqa: E731 -- a table of rules
        "action": action, "onExitCodes": {"operator": "In", "values": list(values)},
    }  # fmt: skip
    policy = {"rules": [codes("FailJob", 2), codes("Ignore", 137)]}
    submit(emulator, job("hopeless", "exit 2", backoffLimit=5, podFailurePolicy=policy))
    ended = emulator.wait_for_job("hopeless")
    assert (ended.reason, len(ended.pods)) == ("PodFailurePolicy", 1)
    once = tmp_path / "once"
    submit(emulator, job("patient", f"[ -e {once} ] || {{ touch {once}; exit 137; }}", podFailurePolicy=policy))
    assert emulator.wait_for_job("patient").outcome == "Complete"


def test_a_container_that_restarts_in_its_place_counts_its_restarts(start: Start) -> None:
    emulator = start()
    submit(emulator, job("again", "exit 1", pod={"restartPolicy": "OnFailure"}, backoffLimit=2))
    ended = emulator.wait_for_job("again")
    assert (ended.reason, len(ended.pods)) == ("BackoffLimitExceeded", 1)


def test_a_command_that_is_not_there_cannot_start(start: Start) -> None:
    emulator = start()
    submit(emulator, job("x", container={"command": ["no-such-program"]}))
    pod = emulator.wait_for_job("x").pods[0]
    assert (pod.exit_code, pod.reason) == (128, "StartError")


def test_a_missing_config_map_holds_a_container_up_until_it_is_there(start: Start) -> None:
    emulator = start()
    submit(emulator, job("x", 'echo "$COLOUR"', {"envFrom": [{"configMapRef": {"name": "colours"}}]}))
    emulator.wait_until(lambda cluster: waiting_reason(cluster) == "CreateContainerConfigError")
    emulator.put(
        "configmaps",
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "colours"}, "data": {"COLOUR": "red"}},
    )
    assert emulator.wait_for_job("x").pods[0].log == "red\n"


def waiting_reason(emulator: KubernetesEmulator) -> str:
    pods, _ = emulator.list("pods", None, lambda _: True)
    states = [pod["status"]["containerStatuses"][0]["state"] for pod in pods if "containerStatuses" in pod["status"]]
    return str(states[0].get("waiting", {}).get("reason", "")) if states else ""


def test_a_deleted_job_takes_its_pods_along_only_when_told_to(start: Start) -> None:
    emulator = start()
    for name in ("kept", "gone"):
        submit(emulator, job(name, "sleep 60"))
    emulator.wait_until(lambda cluster: [pod.phase for pod in cluster.pods] == ["Running", "Running"])
    batch(emulator).delete_namespaced_job("kept", "montage-ai")
    batch(emulator).delete_namespaced_job("gone", "montage-ai", propagation_policy="Background")
    emulator.wait_until(lambda cluster: cluster.job("gone").pods[0].deleted)
    kept, gone = emulator.pods
    assert (kept.phase, kept.deleted) == ("Running", False)
    assert gone.exit_code == 128 + 15
    assert [entry.metadata.name for entry in core(emulator).list_namespaced_pod("montage-ai").items] == [kept.name]


def test_a_deleted_pod_counts_as_failed(start: Start) -> None:
    emulator = start()
    submit(emulator, job("x", "sleep 60"))
    emulator.wait_until(lambda cluster: any(pod.phase == "Running" for pod in cluster.pods))
    core(emulator).delete_namespaced_pod(emulator.pods[0].name, "montage-ai")
    assert emulator.wait_for_job("x").reason == "BackoffLimitExceeded"


def test_a_finished_job_is_cleaned_away_after_its_time(start: Start) -> None:
    emulator = start()
    submit(emulator, job("x", ttlSecondsAfterFinished=0))
    emulator.wait_until(lambda cluster: cluster.jobs[0].deleted)
    assert core(emulator).list_namespaced_pod("montage-ai").items == []


def test_a_priority_class_must_exist_and_goes_first(start: Start) -> None:
    emulator = start((node("a", cpu_cores=1),), priority_classes={"render": 1000})
    emulator.pause()
    submit(emulator, job("unknown", pod={"priorityClassName": "nobody"}))
    requests = {"resources": {"requests": {"cpu": "1"}}}
    submit(emulator, job("low", "true", requests))
    submit(emulator, job("high", "true", requests, pod={"priorityClassName": "render"}))
    emulator.wait_until(lambda cluster: len(cluster.pods) == 2)
    emulator.resume()
    emulator.wait_for_job("low")
    starts = {pod.job: pod.started or 0.0 for pod in emulator.pods}
    assert starts["high"] < starts["low"]
    assert "FailedCreate" in {reason for name, reason, _ in emulator.events if name == "unknown"}


def test_a_watch_tells_of_a_jobs_whole_life(start: Start) -> None:
    emulator = start()
    submit(emulator, job("x"))
    seen = []
    stream = watch.Watch()
    for event in stream.stream(batch(emulator).list_namespaced_job, "montage-ai", field_selector="metadata.name=x"):
        seen.append(event["type"])
        if event["type"] == "DELETED":
            break
        if event["object"].status.completion_time:
            batch(emulator).delete_namespaced_job("x", "montage-ai", propagation_policy="Foreground")
    assert (seen[0], seen[-1], "MODIFIED" in seen) == ("ADDED", "DELETED", True)


def test_dagsters_own_client_waits_for_explains_and_deletes_jobs(start: Start) -> None:
    from dagster_k8s.client import DagsterK8sError, DagsterKubernetesClient

    emulator = start()
    dagster = DagsterKubernetesClient.production_client(batch(emulator), core(emulator))
    dagster.create_namespaced_job_with_retries(job("good"), "montage-ai")
    dagster.wait_for_job_success("good", "montage-ai", wait_time_between_attempts=0.1)
    dagster.create_namespaced_job_with_retries(job("bad", "echo no disk; exit 4"), "montage-ai")
    with pytest.raises(DagsterK8sError, match="failed job pods"):
        dagster.wait_for_job_success("bad", "montage-ai", wait_time_between_attempts=0.1)
    (name,) = dagster.get_pod_names_in_job("bad", "montage-ai")
    explained = dagster.get_pod_debug_info(name, "montage-ai")
    assert "Terminated with exit code 4: Error" in explained
    assert "no disk" in explained
    assert dagster.delete_job("bad", "montage-ai") is True
    assert dagster.get_job_status("bad", "montage-ai") is None


def test_a_node_can_be_cordoned_over_the_api(start: Start) -> None:
    emulator = start()
    core(emulator).patch_node("a", {"spec": {"unschedulable": True}})
    submit(emulator, job("x"))
    assert emulator.wait_for_job("x").pods[0].node == "b"


def test_a_patch_that_changes_nothing_is_no_change(start: Start) -> None:
    emulator = start()
    emulator.put("configmaps", config_map("settings", SPEED="1"))
    before = core(emulator).read_namespaced_config_map("settings", "montage-ai").metadata.resource_version
    same = core(emulator).patch_namespaced_config_map("settings", "montage-ai", {"data": {"SPEED": "1"}})
    other = core(emulator).patch_namespaced_config_map("settings", "montage-ai", {"data": {"SPEED": "2"}})
    assert same.metadata.resource_version == before
    assert other.metadata.resource_version != before


def test_paths_of_claims_and_config_maps_are_folders_of_this_machine(start: Start, tmp_path: Path) -> None:
    emulator = start(claims={"films": tmp_path})
    emulator.put("configmaps", config_map("settings", **{"nodes.yaml": "nodes: []"}))
    volumes = [
        {"name": "films", "persistentVolumeClaim": {"claimName": "films"}},
        {"name": "settings", "configMap": {"name": "settings"}},
    ]
    mounts = [{"name": "films", "mountPath": "/data"}, {"name": "settings", "mountPath": "/etc/montage"}]
    env = [{"name": "SETTINGS", "value": "/etc/montage/nodes.yaml"}, {"name": "OTHER", "value": "/database"}]
    script = 'cat "$SETTINGS"; echo " $OTHER"; echo film > "$0"'
    container = {"command": ["/bin/sh", "-c", script, "/data/a film"], "env": env, "volumeMounts": mounts}
    submit(emulator, job("x", container=container, pod={"volumes": volumes}))
    assert emulator.wait_for_job("x").pods[0].log == "nodes: [] /database\n"
    assert (tmp_path / "a film").read_text() == "film\n"


# What kubectl asks for besides. tests/deploy/test_documented_commands.py has kubectl itself.


def test_clients_discover_the_kinds(start: Start) -> None:
    api = config.new_client_from_config(str(start().kubeconfig))
    found = dynamic.DynamicClient(api).resources
    for name, resource in RESOURCES.items():
        discovered = found.get(api_version=resource.api_version, kind=resource.kind)
        assert (discovered.name, discovered.namespaced) == (name, resource.namespaced)


UNCHANGED = {"name": "B", "valueFrom": {}}
CONTAINERS: list[Object] = [
    {"name": "web", "image": "a", "env": [{"name": "A", "value": "1"}, UNCHANGED]},
    {"name": "daemon", "image": "a", "args": ["x", "y"]},
]


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        (
            {"containers": CONTAINERS},
            {"containers": [{"name": "web", "env": [{"name": "C", "value": "3"}, {"name": "A", "value": "2"}]}]},
            {
                "containers": [
                    {**CONTAINERS[0], "env": [{"name": "A", "value": "2"}, UNCHANGED, {"name": "C", "value": "3"}]},
                    CONTAINERS[1],
                ]
            },
        ),
        (
            {"containers": CONTAINERS},
            {
                "$setElementOrder/containers": [{"name": "new"}, {"name": "daemon"}],
                "containers": [{"name": "web", "$patch": "delete"}, {"name": "daemon", "args": ["z"]}, {"name": "new"}],
            },
            {"containers": [{"name": "new"}, {"name": "daemon", "image": "a", "args": ["z"]}]},
        ),
        (
            {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}},
            {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}},
            {"strategy": {"type": "Recreate"}},
        ),
        (
            {"volumes": [{"name": "tmp", "emptyDir": {}}]},
            {"volumes": [{"$retainKeys": ["name", "secret"], "name": "tmp", "secret": {"secretName": "s"}}]},
            {"volumes": [{"name": "tmp", "secret": {"secretName": "s"}}]},
        ),
        (
            {"ports": [{"port": 80, "name": "http"}], "tolerations": [{"key": "a"}, {"key": "b"}]},
            {"ports": [{"port": 81}], "tolerations": [{"key": "b"}]},
            {"ports": [{"port": 80, "name": "http"}, {"port": 81}], "tolerations": [{"key": "b"}]},
        ),
        (
            {"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}},
            {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "labels": {"x": None}}},
            {"metadata": {"finalizers": ["b", "c"], "labels": {"y": "2"}}},
        ),
        ({"data": {"a": "1"}}, {"data": {"$patch": "replace", "b": "2"}}, {"data": {"b": "2"}}),
        ({"data": {"a": "1"}, "type": "x"}, {"data": {"$patch": "delete"}}, {"type": "x"}),
    ],
    ids=["merged by name", "ordered and deleted", "retained", "retained in lists", "keys", "sets", "replaced", "gone"],
)  # fmt: skip
def test_strategic_patches_merge_lists_by_their_keys(target: Object, patch: Object, result: Object) -> None:
    before = copy.deepcopy(target)
    assert strategically_merged(target, patch) == result
    assert target == before, "the stored object is not touched"


def deployment(name: str, labels: Object | None = None, **container: Any) -> Object:
    pod = {"containers": [{"name": "main", "image": "montage:test", **container}]}
    template = {"metadata": {"labels": labels or {"app": name}}, "spec": pod}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def apps(emulator: KubernetesEmulator) -> client.AppsV1Api:
    return client.AppsV1Api(config.new_client_from_config(str(emulator.kubeconfig)))


def there(emulator: KubernetesEmulator) -> list[Any]:
    """The pods of Deployments that are still there and have not failed."""
    return [pod for pod in emulator.pods if not pod.job and not pod.deleted and pod.phase != "Failed"]


def wait_for_replicas(emulator: KubernetesEmulator, count: int) -> None:
    emulator.wait_until(lambda cluster: [pod.phase for pod in there(cluster)] == ["Running"] * count)


def test_a_deployment_has_its_pods_whatever_happens_to_them(start: Start) -> None:
    emulator = start()
    apps(emulator).create_namespaced_deployment("montage-ai", deployment("web"))
    wait_for_replicas(emulator, 2)
    emulator.lose_node("a")
    wait_for_replicas(emulator, 2)
    assert {pod.node for pod in there(emulator)} == {"b"}
    apps(emulator).patch_namespaced_deployment_scale("web", "montage-ai", {"spec": {"replicas": 3}})
    wait_for_replicas(emulator, 3)
    assert apps(emulator).read_namespaced_deployment_scale("web", "montage-ai").status.replicas == 3
    old = {pod.name for pod in there(emulator)}
    core(emulator).delete_namespaced_pod(min(old), "montage-ai")
    wait_for_replicas(emulator, 3)
    change = {"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "montage:2"}]}}}}
    apps(emulator).patch_namespaced_deployment("web", "montage-ai", change)
    emulator.wait_until(lambda _: old.isdisjoint(pod.name for pod in there(emulator)))
    wait_for_replicas(emulator, 3)
    read = apps(emulator).read_namespaced_deployment("web", "montage-ai")
    assert read.status.observed_generation == read.metadata.generation == 3
    assert (read.status.updated_replicas, read.status.available_replicas) == (3, 3)
    apps(emulator).delete_namespaced_deployment("web", "montage-ai")
    assert there(emulator) == []


def test_a_deployment_that_cannot_select_its_pods_is_refused(start: Start) -> None:
    emulator = start()
    with pytest.raises(client.ApiException) as refused:
        apps(emulator).create_namespaced_deployment("montage-ai", deployment("web", {"app": "other"}))
    assert refused.value.status == 422
    (fault,) = emulator.take_faults()
    assert "does not match" in fault


def test_a_command_in_a_pod_has_the_containers_variables(start: Start) -> None:
    emulator = start()
    env = [{"name": "GREETING", "value": "hello"}]
    apps(emulator).create_namespaced_deployment("montage-ai", deployment("web", env=env))
    wait_for_replicas(emulator, 2)
    name = there(emulator)[0].name

    def execute(script: str) -> Any:
        ask = core(emulator).connect_get_namespaced_pod_exec
        command = ["/bin/sh", "-c", script]
        answer = stream.stream(
            ask, name, "montage-ai", command=command, stdout=True, stderr=True, _preload_content=False
        )
        answer.run_forever(timeout=20)
        return answer

    answer = execute('echo "$GREETING from $HOSTNAME"; echo hm >&2; exit 7')
    assert answer.read_stdout() == f"hello from {name}\n"
    assert answer.read_stderr() == "hm\n"
    assert answer.returncode == 7
    assert len(execute("head -c 300000 /dev/zero | tr '\\0' x").read_stdout()) == 300_000
    with pytest.raises(ApiError, match="container other is not valid"):
        emulator.execute("montage-ai", name, "other", ["true"])
    with pytest.raises(ApiError, match="No such file"):
        emulator.execute("montage-ai", name, None, ["no-such-program"])


def test_a_command_ends_with_the_one_who_asked_for_it(start: Start, tmp_path: Path) -> None:
    emulator = start()
    apps(emulator).create_namespaced_deployment("montage-ai", deployment("web"))
    wait_for_replicas(emulator, 2)
    child = tmp_path / "child"
    command = ["/bin/sh", "-c", f"echo $$ > {child}; exec sleep 60"]
    answer = stream.stream(
        core(emulator).connect_get_namespaced_pod_exec, there(emulator)[0].name, "montage-ai", command=command,
        stdout=True, _preload_content=False,
    )  # fmt: skip
    eventually(lambda: child.exists() and child.read_text() != "")
    answer.close()
    eventually(lambda: not is_running(int(child.read_text())))


def eventually(holds: Callable[[], bool]) -> None:
    """For what the emulator is not told of."""
    for _ in range(400):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("this did not happen")


def test_nothing_is_left_running(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with KubernetesEmulator(plan_with(AMD, schedulable=False, labels={}), tmp_path) as emulator:
        submit(emulator, job("x", f"echo $$$$ > {child}; exec sleep 60"))
        emulator.wait_until(lambda cluster: child.exists() and any(pod.phase == "Running" for pod in cluster.pods))
        assert emulator.pods[0].node not in (AMD, CONTROL_PLANE)
    assert not is_running(int(child.read_text()))
