"""The emulated cluster: its objects, what happens to them and when, controls for tests, and the record of it all.

One lock guards everything; every change wakes whoever waits: the controller's thread, watches, and tests. The
controller's thread brings jobs, placements and containers in line after each change, and sleeps until the next
change or the next deadline.
"""

from __future__ import annotations

import atexit
import base64
import copy
import hashlib
import itertools
import json
import subprocess
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from montage_assets.cluster import NodeCapability
from tests.cluster.emulator import api, deployments, jobs, schemas
from tests.cluster.emulator.execution import end_command
from tests.cluster.emulator.kinds import RESOURCES
from tests.cluster.emulator.nodes import node_object, set_ready
from tests.cluster.emulator.objects import ApiError, Object, not_found, timestamp
from tests.cluster.emulator.patches import merged, strategically_merged
from tests.cluster.emulator.pods import (
    Container,
    ContainerConfigError,
    as_mounted,
    base_environment,
    command_of,
    container_of,
    environment_of,
    mounted_folders,
    start_command,
)
from tests.cluster.emulator.scheduler import has_ended, schedule

_NOT_CREATED = ("nodes", "pods", "events")
_NOT_CHANGED = ("pods", "events")
_SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_TERMINATION_GRACE_S = 30
_IMMUTABLE = ("template", "completionMode", "selector")

Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""


@dataclass(frozen=True)
class PodRecord:
    """What became of a pod, be it still there or not. Times in seconds since the epoch, None if it never came to that.

    `node` is None while no node was found. `job` is empty for a pod of a Deployment. `index` is that of an Indexed
    job. `reason`: of the end, e.g. OOMKilled.
    """

    name: str
    job: str
    index: int | None
    node: str | None
    phase: str
    reason: str
    exit_code: int | None
    command: tuple[str, ...]
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    created: float
    started: float | None
    ended: float | None
    deleted: bool
    log_file: Path

    @property
    def log(self) -> str:
        """Its output so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


@dataclass(frozen=True)
class JobRecord:
    """A job, be it still there or not. `outcome` is Complete or Failed, empty while it runs; `reason` says why."""

    name: str
    outcome: str
    reason: str
    deleted: bool
    item: Mapping[str, Any]
    pods: tuple[PodRecord, ...]


@dataclass(eq=False)
class _Pod:
    item: Object
    job: _Job | None
    log_file: Path
    created: float
    index: int | None = None
    command: tuple[str, ...] = ()
    container: Container | None = None
    start_at: float | None = None
    started: float | None = None
    ended: float | None = None
    kill_after: float | None = None
    killed_for: str = ""
    lost: bool = False
    gone: bool = False

    @property
    def name(self) -> str:
        return str(self.item["metadata"]["name"])

    @property
    def key(self) -> Key:
        return _key(self.item)

    @property
    def deleting(self) -> bool:
        return "deletionTimestamp" in self.item["metadata"]

    @property
    def node(self) -> str | None:
        name = self.item["spec"].get("nodeName")
        return None if name is None else str(name)

    @property
    def exit_code(self) -> int | None:
        statuses = self.item["status"].get("containerStatuses") or [{}]
        code = (statuses[0].get("state") or {}).get("terminated", {}).get("exitCode")
        return None if code is None else int(code)

    @property
    def owner(self) -> str | None:
        """The uid of the job or Deployment that it belongs to."""
        owners = self.item["metadata"].get("ownerReferences") or []
        return str(owners[0]["uid"]) if owners else None

    @property
    def restarts(self) -> int:
        statuses = self.item["status"].get("containerStatuses") or [{}]
        return int(statuses[0].get("restartCount", 0))

    def state(self) -> jobs.PodState:
        return jobs.PodState(
            name=self.name,
            index=self.index,
            phase=self.item["status"]["phase"],
            deleting=self.deleting or self.gone,
            exit_code=self.exit_code,
            disrupted=self.lost,
            restarts=self.restarts,
        )

    def record(self) -> PodRecord:
        status = self.item["status"]
        states = [entry.get("state") or {} for entry in status.get("containerStatuses") or []]
        ends = [state["terminated"]["reason"] for state in states if "terminated" in state]
        return PodRecord(
            name=self.name,
            job="" if self.job is None else self.job.name,
            index=self.index,
            node=self.node,
            phase=status["phase"],
            reason=status.get("reason") or (ends[0] if ends else ""),
            exit_code=self.exit_code,
            command=self.command,
            labels=dict(self.item["metadata"]["labels"]),
            spec=copy.deepcopy(self.item["spec"]),
            created=self.created,
            started=self.started,
            ended=self.ended,
            deleted=self.gone,
            log_file=self.log_file,
        )


@dataclass(eq=False)
class _Job:
    item: Object
    started: float
    pods: list[_Pod] = field(default_factory=list)
    finished: float | None = None
    gone: bool = False

    @property
    def name(self) -> str:
        return str(self.item["metadata"]["name"])

    @property
    def key(self) -> Key:
        return _key(self.item)

    def record(self) -> JobRecord:
        ends = self.item["status"].get("conditions") or [{}]
        return JobRecord(
            name=self.name,
            outcome=ends[0].get("type", ""),
            reason=ends[0].get("reason", ""),
            deleted=self.gone,
            item=copy.deepcopy(self.item),
            pods=tuple(pod.record() for pod in self.pods),
        )


class KubernetesEmulator:
    """A cluster of the given nodes, from `with` to its end, where every process that is left is killed.

    `folder` gets the kubeconfig and the pods' logs. `environment` is added to every container and wins over its spec:
    there the tests' own paths stand for what is mounted (MONTAGE_DATA, DAGSTER_HOME). `claims` are the folders that
    stand for PersistentVolumeClaims, by name: paths below their mount points mean these folders in the arguments and
    variables of containers, as those below the mount points of ConfigMaps mean folders with their files.
    `start_delay_s` is how long a container takes to start. `entrypoint` is the image's, for containers without a
    command. `priority_classes` are the names and values of PriorityClasses. Leaving the `with` fails when an invalid
    object was sent (`take_faults` to expect that).

    Jobs' pods are processes. The containers of Deployments' pods are said to run, where all that their variables
    refer to is there, and start nothing; `kubectl exec` starts its command with their variables.
    """

    def __init__(
        self,
        nodes: Iterable[NodeCapability],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        claims: Mapping[str, Path] | None = None,
        namespace: str = "montage-ai",
        start_delay_s: float = 0.0,
        entrypoint: Sequence[str] = (),
        priority_classes: Mapping[str, int] | None = None,
    ) -> None:
        self.namespace = namespace
        self.kubeconfig = folder / "kubeconfig"
        self._logs, self._mounts = folder / "pod-logs", folder / "config-maps"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._environment = {**base_environment(), "KUBECONFIG": str(self.kubeconfig)}
        self._overrides = dict(environment or {})
        self._claims = dict(claims or {})
        self._start_delay_s = start_delay_s
        self._entrypoint = tuple(entrypoint)
        self._changed = threading.Condition(threading.RLock())
        self._version = 0
        self._numbers = itertools.count(1)
        # A pod's processes are known by its uid: other emulators of this machine must not have the same ones.
        self._uid_prefix = str(uuid.uuid4()).rpartition("-")[0]
        self._stores: dict[str, dict[Key, Object]] = {resource: {} for resource in RESOURCES}
        self._history: list[tuple[int, str, str, Object]] = []
        self._jobs: list[_Job] = []
        self._pods: list[_Pod] = []
        self._commands: list[subprocess.Popen[bytes]] = []
        self.forwarded_ports: dict[int, int] = {}
        """What `kubectl port-forward` to a port of any pod reaches: a port of 127.0.0.1. For tests to fill in."""
        self._faults: list[str] = []
        self._forbidden: set[tuple[str, str]] = set()
        self._paused = False
        self._stopped = False
        self._broken = False
        for name in ("default", namespace):
            self._put("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for name, value in {**_SYSTEM_PRIORITIES, **(priority_classes or {})}.items():
            self._put("priorityclasses", _priority_class(name, value))
        for node in nodes:
            self._put("nodes", node_object(node))
        self._server = api.Server(self)
        self.url = self._server.url
        self.kubeconfig.write_text(json.dumps(_kubeconfig(self.url, namespace)))
        self._controller = threading.Thread(target=self._control, name="kubernetes-emulator", daemon=True)

    def __enter__(self) -> KubernetesEmulator:
        atexit.register(self.stop)
        self._server.start()
        self._controller.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is None and self._faults:
            raise AssertionError("this was wrong with what was sent to Kubernetes:\n" + "\n".join(self._faults))

    def stop(self) -> None:
        """End the server and every process of every pod."""
        atexit.unregister(self.stop)
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            containers = [pod.container for pod in self._pods if pod.container is not None]
            self._changed.notify_all()
        self._controller.join()
        for command in self._commands:
            end_command(command)
        for container in containers:
            container.kill()
        for container in containers:
            container.join()
        self._server.stop()

    # Controls and records, for tests.

    @property
    def pods(self) -> list[PodRecord]:
        """All pods there ever were, in the order of their creation."""
        with self._changed:
            return [pod.record() for pod in self._pods]

    @property
    def jobs(self) -> list[JobRecord]:
        """All jobs there ever were, in the order of their creation."""
        with self._changed:
            return [job.record() for job in self._jobs]

    def job(self, name: str) -> JobRecord:
        """The last job of that name."""
        return next(job for job in reversed(self.jobs) if job.name == name)

    @property
    def events(self) -> list[tuple[str, str, str]]:
        """Name of the object, reason and message of each event."""
        with self._changed:
            return [
                (event["involvedObject"]["name"], event["reason"], event["message"])
                for event in self._stores["events"].values()
            ]

    def wait_until(self, holds: Callable[[KubernetesEmulator], bool], timeout_s: float = 60) -> None:
        """Return once the condition holds. Raises AssertionError with the pods' states when it does not in time."""
        with self._changed:
            happened = self._changed.wait_for(lambda: self._broken or holds(self), timeout_s)
            if self._broken:
                raise AssertionError("the emulator itself is broken:\n" + "\n".join(self._faults))
            if not happened:
                states = "\n".join(
                    f"{pod.name} on {pod.node}: {pod.phase} {pod.reason}\n{pod.log[-1000:]}" for pod in self.pods
                )
                raise AssertionError(f"this did not happen within {timeout_s:g} s; the pods:\n{states}")

    def wait_for_job(self, name: str, timeout_s: float = 60) -> JobRecord:
        """The job, once it has finished."""
        self.wait_until(lambda emulator: any(job.name == name and job.outcome for job in emulator.jobs), timeout_s)
        return self.job(name)

    def note_fault(self, fault: str) -> None:
        """The test fails: with this."""
        with self._changed:
            self._faults.append(fault)

    def take_faults(self) -> list[str]:
        """What was said about invalid objects so far; they no longer fail the test."""
        with self._changed:
            faults, self._faults = self._faults, []
        return faults

    def forbid(self, resource: str, verb: str) -> None:
        """Answer 403 from now on, e.g. to ("jobs", "create") or ("pods/log", "get")."""
        self._forbidden.add((resource, verb))

    def allow(self, resource: str, verb: str) -> None:
        """Take back `forbid`."""
        self._forbidden.discard((resource, verb))

    def cordon(self, node: str) -> None:
        """No more pods there; those that run go on."""
        self._edit_node(node, lambda item: item["spec"].update(unschedulable=True))

    def uncordon(self, node: str) -> None:
        """Take back `cordon`."""
        self._edit_node(node, lambda item: item["spec"].pop("unschedulable", None))

    def lose_node(self, node: str) -> None:
        """The node vanishes: it is not ready any more, and its pods die and are Failed."""
        with self._changed:
            self._edit_node(node, lambda item: set_ready(item, False))
            for pod in self._pods:
                if pod.node == node and not pod.gone and not has_ended(pod.item):
                    pod.lost = True
                    self._end_now(pod)

    def return_node(self, node: str) -> None:
        """The node is back, empty."""
        self._edit_node(node, lambda item: set_ready(item, True))

    def kill_pod(self, which: str | Callable[[PodRecord], bool], reason: str = "OOMKilled") -> list[str]:
        """SIGKILL to the containers of a pod, by name, or of all that a function picks. Returns the names."""
        chosen = (lambda record: record.name == which) if isinstance(which, str) else which
        with self._changed:
            running = [pod for pod in self._pods if pod.container is not None and pod.ended is None]
            victims = [pod for pod in running if chosen(pod.record())]
            for pod in victims:
                pod.killed_for = reason
                assert pod.container is not None
                pod.container.kill()
        return [pod.name for pod in victims]

    def delete_job(self, name: str) -> None:
        """As `kubectl delete job`: its pods go with it."""
        self.delete("jobs", self.namespace, name, propagation="Background")

    def pause(self) -> None:
        """Place no pods until `resume`."""
        with self._changed:
            self._paused = True

    def resume(self) -> None:
        """Take back `pause`."""
        with self._changed:
            self._paused = False
            self._touch()

    def put(self, resource: str, item: Object) -> None:
        """Add an object as an administrator would, e.g. a ConfigMap. Raises ApiError for an invalid one."""
        self.create(resource, self.namespace, item)

    # The API's verbs. All raise ApiError; what they return is the caller's to keep.

    def allows(self, resource: str, verb: str) -> bool:
        return (resource, verb) not in self._forbidden

    def authorise(self, resource: str, verb: str) -> None:
        if not self.allows(resource, verb):
            name = resource.split("/")[0]
            raise ApiError(403, f'{name} is forbidden: User "test" cannot {verb} resource "{resource}"')

    def create(self, resource: str, namespace: str, body: Object, dry_run: bool = False) -> Object:
        item = copy.deepcopy(body)
        if resource in _NOT_CREATED:
            raise ApiError(405, f"the emulator creates no {resource}")
        self._check(item)
        with self._changed:
            place = namespace if RESOURCES[resource].namespaced else ""
            if place and ("", place) not in self._stores["namespaces"]:
                raise not_found("namespaces", place)
            if place and item["metadata"].setdefault("namespace", place) != place:
                raise ApiError(400, f"the namespace of the object is not that of the request, {place}")
            if "name" not in item["metadata"]:
                item["metadata"]["name"] = item["metadata"]["generateName"] + self._suffix()
            if _key(item) in self._stores[resource]:
                raise ApiError(409, f'{resource} "{item["metadata"]["name"]}" already exists')
            if dry_run:
                return item
            if resource == "jobs":
                self._add_job(item)
                return copy.deepcopy(item)
            if resource == "deployments":
                deployments.with_defaults(item)
            self._put(resource, item)
            return copy.deepcopy(item)

    def get(self, resource: str, namespace: str, name: str) -> Object:
        with self._changed:
            return copy.deepcopy(self._stored(resource, namespace, name))

    def list(self, resource: str, namespace: str | None, chosen: Callable[[Object], bool]) -> tuple[list[Object], int]:
        """The objects, by name, and the resource version of the list. `namespace` None means all."""
        with self._changed:
            items = [
                copy.deepcopy(item)
                for (place, _), item in sorted(self._stores[resource].items())
                if namespace in (None, place) and chosen(item)
            ]
            return items, self._version

    def patch(self, resource: str, namespace: str, name: str, change: Object, is_strategic: bool = False) -> Object:
        with self._changed:
            merge = strategically_merged if is_strategic else merged
            changed = merge(self._stored(resource, namespace, name), change)
            return self.replace(resource, namespace, name, changed, checked=False)

    def replace(self, resource: str, namespace: str, name: str, body: Object, checked: bool = True) -> Object:
        with self._changed:
            current = self._stored(resource, namespace, name)
            if resource in _NOT_CHANGED:
                raise ApiError(405, f"the emulator changes no {resource}")
            version = body.get("metadata", {}).get("resourceVersion")
            if checked and version is not None and version != current["metadata"]["resourceVersion"]:
                raise ApiError(409, f'{resource} "{name}" has been modified; apply your changes again', "Conflict")
            if resource == "jobs":
                for part in _IMMUTABLE:
                    if body["spec"].get(part) != current["spec"].get(part):
                        raise ApiError(422, f'Job "{name}" is invalid: spec.{part}: field is immutable')
            elif resource != "nodes":
                self._check(body)
            changed = {**copy.deepcopy(body), "status": current.get("status", {})} if "status" in current else body
            if changed != current:
                is_new_spec = changed.get("spec") != current.get("spec")
                current.clear()
                current.update(changed)
                if is_new_spec and "generation" in current["metadata"]:
                    current["metadata"]["generation"] += 1
                self._put(resource, current)
            return copy.deepcopy(current)

    def delete(
        self, resource: str, namespace: str, name: str, propagation: str | None = None, grace_s: float | None = None
    ) -> Object:
        with self._changed:
            item = self._stored(resource, namespace, name)
            if resource == "pods":
                self._delete_pod(self._pod(item), grace_s)
            elif resource == "jobs":
                # For jobs the API's default is to leave the pods behind (registry/batch/job/strategy.go).
                self._delete_job(self._job(item), propagation or "Orphan")
            elif resource == "deployments":
                self._drop(resource, item)
                self._leave_or_delete(self._pods_of(item), propagation or "Background")
            else:
                self._drop(resource, item)
            return copy.deepcopy(item)

    def log_file(self, namespace: str, name: str) -> Path:
        """Where the pod's output is. Raises ApiError when its container has not started."""
        with self._changed:
            pod = self._pod(self._stored("pods", namespace, name))
            if pod.started is None:
                raise ApiError(400, f'container in pod "{name}" is waiting to start', "BadRequest")
            return pod.log_file

    def running(self, namespace: str, name: str) -> Object:
        """The pod. Raises ApiError when it does not run."""
        pod = self.get("pods", namespace, name)
        if pod["status"]["phase"] != "Running":
            raise ApiError(400, f'pod "{name}" is not running: {pod["status"]["phase"]}')
        return pod

    def execute(
        self, namespace: str, name: str, container: str | None, command: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        """A further process in a running container, the first unless one is named. Raises ApiError."""
        pod = self.running(namespace, name)
        try:
            chosen = container_of(pod, container)
            with self._changed:
                folders, environment = self._folders(pod, chosen), self._environment_in(pod, chosen)
            words = [as_mounted(word, folders) for word in command]
            process = start_command(pod["metadata"]["uid"], words, environment)
        except KeyError:
            raise ApiError(400, f"container {container} is not valid for pod {name}") from None
        except (OSError, ContainerConfigError) as error:
            raise ApiError(500, f"failed to exec in container: {error}") from None
        with self._changed:
            self._commands.append(process)
        return process

    def follow_log(self, namespace: str, name: str) -> Iterator[None]:
        """Yields while the pod runs, about twice a second, and once after its end."""
        while True:
            with self._changed:
                item = self._stores["pods"].get((namespace, name))
                ended = item is None or has_ended(item) or self._stopped
                if not ended:
                    self._changed.wait(0.5)  # a file tells nobody when it grows
            yield
            if ended:
                return

    def watch(
        self, resource: str, namespace: str | None, chosen: Callable[[Object], bool], since: int, timeout_s: float
    ) -> Iterator[Object]:
        """What happens to these objects after the resource version `since`, as watch events."""
        until = time.monotonic() + timeout_s
        seen = 0
        while True:
            with self._changed:
                while len(self._history) == seen and not self._stopped and time.monotonic() < until:
                    self._changed.wait(until - time.monotonic())
                happened, seen = self._history[seen:], len(self._history)
                over = self._stopped or time.monotonic() >= until
            for version, what, kind, item in happened:
                place = item["metadata"].get("namespace", "")
                if version > since and what == resource and namespace in (None, place) and chosen(item):
                    yield {"type": kind, "object": item}
            if over:
                return

    # Objects.

    def _check(self, item: Object) -> None:
        try:
            schemas.check(item)
        except ApiError as error:
            self.note_fault(str(error))
            raise

    def _stored(self, resource: str, namespace: str, name: str) -> Object:
        found = self._stores[resource].get((namespace, name))
        if found is None:
            raise not_found(resource, name)
        return found

    def _put(self, resource: str, item: Object) -> None:
        with self._changed:
            key, metadata = _key(item), item["metadata"]
            is_new = key not in self._stores[resource]
            if is_new:
                number = next(self._numbers)
                metadata.setdefault("uid", f"{self._uid_prefix}-{number:012x}")
                metadata.setdefault("creationTimestamp", timestamp(time.time()))
                if RESOURCES[resource].api_version == "apps/v1":
                    metadata["generation"] = 1
            self._touch()
            metadata["resourceVersion"] = str(self._version)
            self._stores[resource][key] = item
            self._remember(resource, "ADDED" if is_new else "MODIFIED", item)

    def _drop(self, resource: str, item: Object) -> None:
        self._stores[resource].pop(_key(item), None)
        self._touch()
        item["metadata"]["resourceVersion"] = str(self._version)
        self._remember(resource, "DELETED", item)

    def _remember(self, resource: str, kind: str, item: Object) -> None:
        self._history.append((self._version, resource, kind, copy.deepcopy(item)))

    def _touch(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _edit_node(self, name: str, edit: Callable[[Object], object]) -> None:
        with self._changed:
            item = self._stored("nodes", "", name)
            edit(item)
            self._put("nodes", item)

    def _pod(self, item: Object) -> _Pod:
        return next(pod for pod in self._pods if pod.item is item)

    def _job(self, item: Object) -> _Job:
        return next(job for job in self._jobs if job.item is item)

    def _suffix(self) -> str:
        return hashlib.sha256(str(next(self._numbers)).encode()).hexdigest()[:5]

    def _event(self, item: Object, reason: str, message: str, kind: str = "Normal") -> None:
        """The same event again is counted, not repeated."""
        about = {
            "apiVersion": item["apiVersion"], "kind": item["kind"], "name": item["metadata"]["name"],
            "namespace": item["metadata"]["namespace"], "uid": item["metadata"]["uid"],
        }  # fmt: skip
        now = timestamp(time.time())
        for event in self._stores["events"].values():
            if (event["involvedObject"], event["reason"], event["message"]) == (about, reason, message):
                event.update(count=event["count"] + 1, lastTimestamp=now)
                return
        metadata = {"name": f"{about['name']}.{self._suffix()}", "namespace": about["namespace"]}
        self._put(
            "events",
            {
                "apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": about, "type": kind,
                "reason": reason, "message": message, "count": 1, "firstTimestamp": now, "lastTimestamp": now,
                "source": {"component": "kubernetes-emulator"},
            },
        )  # fmt: skip

    # Jobs.

    def _add_job(self, item: Object) -> None:
        jobs.with_defaults(item)
        job = _Job(item, time.time())
        item["status"] = {}
        self._put("jobs", item)
        labels = _job_labels(item)
        item["spec"]["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": item["metadata"]["uid"]}}
        template = item["spec"]["template"].setdefault("metadata", {})
        template["labels"] = {**(template.get("labels") or {}), **labels}
        self._jobs.append(job)

    def _sync_job(self, job: _Job, now: float) -> None:
        if job.finished is not None:
            keep_s = job.item["spec"].get("ttlSecondsAfterFinished")
            if keep_s is not None and now >= job.finished + keep_s:
                self._delete_job(job, "Background")
            return
        step = jobs.next_step(job.item, [pod.state() for pod in job.pods], job.started, now)
        if step.status != job.item["status"]:
            job.item["status"] = step.status
            if jobs.is_finished(job.item):
                job.finished = now
                condition = step.status["conditions"][0]
                kind = "Normal" if condition["type"] == "Complete" else "Warning"
                self._event(job.item, condition["reason"], condition["message"], kind)
            self._put("jobs", job.item)
        for index in step.create:
            self._add_job_pod(job, index, now)
        for pod in job.pods:
            if pod.name in step.delete:
                self._delete_pod(pod, None)

    def _delete_job(self, job: _Job, propagation: str) -> None:
        job.gone = True
        self._drop("jobs", job.item)
        self._leave_or_delete(job.pods, propagation)

    def _leave_or_delete(self, pods: Iterable[_Pod], propagation: str) -> None:
        for pod in pods:
            if pod.gone:
                continue
            if propagation == "Orphan":
                pod.item["metadata"].pop("ownerReferences", None)
            else:
                self._delete_pod(pod, None)

    # Deployments.

    def _pods_of(self, deployment: Object) -> Sequence[_Pod]:
        return [pod for pod in self._pods if not pod.gone and pod.owner == deployment["metadata"]["uid"]]

    def _sync_deployment(self, item: Object, now: float) -> None:
        pods = self._pods_of(item)
        replicas = [
            deployments.Replica(
                pod.name,
                pod.item["metadata"]["labels"][deployments.HASH_LABEL],
                pod.item["status"]["phase"] == "Running",
            )
            for pod in pods
            if not has_ended(pod.item)
        ]
        step = deployments.next_step(item, replicas)
        if step.status != item.get("status"):
            item["status"] = step.status
            self._put("deployments", item)
        for pod in pods:
            if pod.name in step.delete:
                self._delete_pod(pod, None)
        for _ in range(step.create):
            self._add_replica(item, now)

    def _add_replica(self, deployment: Object, now: float) -> None:
        template = copy.deepcopy(deployment["spec"]["template"])
        template_hash = deployments.template_hash(deployment)
        template["metadata"]["labels"][deployments.HASH_LABEL] = template_hash
        item = self._pod_object(deployment, template, f"{deployment['metadata']['name']}-{template_hash}")
        if item is not None:
            self._add_pod(_Pod(item, None, self._logs / f"{item['metadata']['name']}.log", now))

    # Pods.

    def _pod_object(self, owner: Object, template: Object, stem: str) -> Object | None:
        """A pod of the template, which becomes the pod's. None when the API server would refuse it."""
        spec, metadata = template["spec"], template.get("metadata") or {}
        priority = spec.get("priorityClassName")
        priority_class = self._stores["priorityclasses"].get(("", priority or ""))
        if priority is not None and priority_class is None:
            self._event(owner, "FailedCreate", f"no PriorityClass with name {priority} was found", "Warning")
            return None
        spec["priority"] = 0 if priority_class is None else priority_class["value"]
        metadata |= {
            "name": f"{stem[:57]}-{self._suffix()}",
            "namespace": owner["metadata"]["namespace"],
            "ownerReferences": [
                {
                    "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
                    "uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True,
                }
            ],
        }  # fmt: skip
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}

    def _add_job_pod(self, job: _Job, index: int | None, now: float) -> None:
        stem = job.name if index is None else f"{job.name}-{index}"
        item = self._pod_object(job.item, copy.deepcopy(job.item["spec"]["template"]), stem)
        if item is None:
            return
        spec, metadata = item["spec"], item["metadata"]
        if index is not None:
            metadata["annotations"] = {**(metadata.get("annotations") or {}), jobs.INDEX_ANNOTATION: str(index)}
            metadata["labels"][jobs.INDEX_ANNOTATION] = str(index)
            spec.setdefault("hostname", stem[:63])
            reference = {
                "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{jobs.INDEX_ANNOTATION}']"}
            }
            env = spec["containers"][0].setdefault("env", [])
            env.append({"name": "JOB_COMPLETION_INDEX", "valueFrom": reference})
        pod = _Pod(item, job, self._logs / f"{metadata['name']}.log", now, index)
        job.pods.append(pod)
        self._add_pod(pod)

    def _add_pod(self, pod: _Pod) -> None:
        self._pods.append(pod)
        self._put("pods", pod.item)

    def _delete_pod(self, pod: _Pod, grace_s: float | None) -> None:
        if pod.gone:
            return
        if grace_s is None:
            grace_s = pod.item["spec"].get("terminationGracePeriodSeconds", _TERMINATION_GRACE_S)
        if pod.container is None or pod.ended is not None or grace_s == 0:
            self._end_now(pod)
            pod.gone = True
            self._drop("pods", pod.item)
            return
        if not pod.deleting:
            pod.item["metadata"] |= {"deletionTimestamp": timestamp(time.time()), "deletionGracePeriodSeconds": grace_s}
            self._put("pods", pod.item)
            pod.container.terminate()
        pod.kill_after = time.time() + grace_s

    def _end_now(self, pod: _Pod) -> None:
        if pod.container is not None:
            pod.container.kill()
        elif not has_ended(pod.item):
            self._fail_unstarted(pod)

    def _fail_unstarted(self, pod: _Pod) -> None:
        """A pod that never ran, and now never will."""
        pod.ended = time.time()
        pod.item["status"]["phase"] = "Failed"
        if pod.lost:
            pod.item["status"] |= _disruption()
        self._put("pods", pod.item)

    def _place(self, now: float) -> None:
        waiting = [pod for pod in self._pods if not pod.gone and pod.node is None and not has_ended(pod.item)]
        for pod in sorted(waiting, key=lambda pod: (-pod.item["spec"]["priority"], pod.created)):
            decision = schedule(pod.item, self._stores["nodes"].values(), self._stores["pods"].values())
            if decision.node is None:
                self._note_unschedulable(pod, decision.message)
            else:
                self._bind(pod, decision.node, now)

    def _note_unschedulable(self, pod: _Pod, message: str) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        if pod.item["status"].get("conditions") == [condition]:
            return
        pod.item["status"]["conditions"] = [condition]
        self._put("pods", pod.item)
        self._event(pod.item, "FailedScheduling", message, "Warning")

    def _bind(self, pod: _Pod, node: str, now: float) -> None:
        pod.item["spec"]["nodeName"] = node
        pod.start_at = now + self._start_delay_s
        addresses = self._stored("nodes", "", node)["status"]["addresses"]
        address = next(entry["address"] for entry in addresses if entry["type"] == "InternalIP")
        pod.item["status"] |= {
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "hostIP": address,
            "podIP": "127.0.0.1",
        }
        self._set_container(pod, {"waiting": {"reason": "ContainerCreating"}})
        self._event(pod.item, "Scheduled", f"Successfully assigned {pod.key[0]}/{pod.name} to {node}")

    def _set_container(self, pod: _Pod, state: Object, restarts: int | None = None) -> None:
        """The state of all containers of the pod."""
        entries = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": container["image"],
                "containerID": f"containerd://{pod.item['metadata']['uid']}",
                "ready": "running" in state,
                "started": "running" in state,
                "restartCount": pod.restarts if restarts is None else restarts,
                "state": state,
            }
            for container in pod.item["spec"]["containers"]
        ]
        if pod.item["status"].get("containerStatuses") != entries:
            pod.item["status"]["containerStatuses"] = entries
            self._put("pods", pod.item)

    def _environment_in(self, pod: Object, container: Mapping[str, Any]) -> dict[str, str]:
        """All variables of a container. Raises ContainerConfigError."""
        place, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        given = environment_of(pod, container, lambda resource, known: self._values(resource, place, known))
        folders = self._folders(pod, container)
        here = {variable: as_mounted(value, folders) for variable, value in given.items()}
        host = str(pod["spec"].get("hostname") or name)
        return {**self._environment, "HOSTNAME": host, **here, **self._overrides}

    def _folders(self, pod: Object, container: Mapping[str, Any]) -> Mapping[str, Path]:
        place = pod["metadata"]["namespace"]
        return mounted_folders(pod, container, self._claims, lambda name: self._config_folder(place, name))

    def _config_folder(self, namespace: str, name: str) -> Path | None:
        """A folder with the files of a ConfigMap as it is now."""
        item = self._stores["configmaps"].get((namespace, name))
        if item is None:
            return None
        folder = self._mounts / f"{name}-{item['metadata']['resourceVersion']}"
        if not folder.exists():
            folder.mkdir(parents=True)
            for key, text in (item.get("data") or {}).items():
                (folder / key).write_text(text)
        return folder

    def _start(self, pod: _Pod, now: float) -> None:
        try:
            environments = [self._environment_in(pod.item, one) for one in pod.item["spec"]["containers"]]
        except ContainerConfigError as error:
            self._set_container(pod, {"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}})
            return
        pod.started = pod.started or now
        pod.start_at = None
        if pod.job is None:
            pod.log_file.touch()
        elif not self._start_process(pod, environments[0]):
            return
        pod.item["status"] |= {"phase": "Running", "startTime": timestamp(now)}
        self._set_container(pod, {"running": {"startedAt": timestamp(now)}})
        self._event(pod.item, "Started", "Container started")

    def _start_process(self, pod: _Pod, environment: Mapping[str, str]) -> bool:
        """Whether the pod's command could be started. If not, the pod has failed."""
        container = container_of(pod.item)
        folders = self._folders(pod.item, container)
        pod.command = command_of(container, environment, self._entrypoint)
        folder = Path(container.get("workingDir") or "")
        try:
            pod.container = Container(
                pod.item["metadata"]["uid"],
                [as_mounted(word, folders) for word in pod.command],
                environment,
                folder if folder.is_absolute() and folder.is_dir() else None,
                pod.log_file,
                lambda code: self._container_ended(pod, code),
            )
        except (OSError, IndexError) as error:
            self._end(pod, 128, "StartError", str(error))
            return False
        return True

    def _values(self, resource: str, namespace: str, name: str) -> Mapping[str, str] | None:
        item = self._stores[resource].get((namespace, name))
        if item is None:
            return None
        encoded = item.get("data") or {}
        if resource == "secrets":
            encoded = {key: base64.b64decode(value).decode() for key, value in encoded.items()}
        return {**encoded, **(item.get("stringData") or {})}

    def _container_ended(self, pod: _Pod, code: int) -> None:
        with self._changed:
            pod.container = None
            reason = pod.killed_for or ("Completed" if code == 0 else "Error")
            pod.killed_for = ""
            stays = pod.deleting or pod.gone or pod.lost or self._stopped
            if code != 0 and pod.item["spec"]["restartPolicy"] == "OnFailure" and not stays:
                pod.start_at = time.time()
                self._set_container(pod, {"waiting": {"reason": "CrashLoopBackOff"}}, restarts=pod.restarts + 1)
                return
            self._end(pod, code, reason)

    def _end(self, pod: _Pod, code: int, reason: str, message: str = "") -> None:
        pod.ended = time.time()
        status = pod.item["status"]
        status["phase"] = "Succeeded" if code == 0 else "Failed"
        if pod.lost:
            status |= {"phase": "Failed", **_disruption()}
        terminated: dict[str, Any] = {
            "exitCode": code,
            "reason": reason,
            "startedAt": timestamp(pod.started or pod.ended),
            "finishedAt": timestamp(pod.ended),
        }
        if message:
            terminated["message"] = message
        if pod.gone:
            self._touch()
            return
        self._set_container(pod, {"terminated": terminated})
        if pod.deleting:
            pod.gone = True
            self._drop("pods", pod.item)

    # The controller's thread.

    def _control(self) -> None:
        with self._changed:
            try:
                self._keep_in_line()
            except Exception:
                # In a thread of its own nobody would see it.
                self.note_fault(traceback.format_exc())
                self._broken = True
                self._changed.notify_all()

    def _keep_in_line(self) -> None:
        while not self._stopped:
            before = self._version
            self._bring_in_line(time.time())
            if self._version == before:
                next_deadline = min(self._deadlines(), default=None)
                # Whoever changes anything while this thread has the lock is this thread itself.
                self._changed.wait(None if next_deadline is None else max(0.0, next_deadline - time.time()))

    def _bring_in_line(self, now: float) -> None:
        for job in self._jobs:
            if not job.gone:
                self._sync_job(job, now)
        for deployment in list(self._stores["deployments"].values()):
            self._sync_deployment(deployment, now)
        if not self._paused:
            self._place(now)
        for pod in self._pods:
            if pod.gone or pod.ended is not None:
                continue
            if pod.start_at is not None and now >= pod.start_at:
                self._start(pod, now)
            if pod.kill_after is not None and now >= pod.kill_after and pod.container is not None:
                pod.kill_after = None
                pod.container.kill()

    def _deadlines(self) -> Iterator[float]:
        for job in self._jobs:
            spec = job.item["spec"]
            if job.gone:
                continue
            if job.finished is None and "activeDeadlineSeconds" in spec:
                yield job.started + spec["activeDeadlineSeconds"]
            if job.finished is not None and "ttlSecondsAfterFinished" in spec:
                yield job.finished + spec["ttlSecondsAfterFinished"]
        for pod in self._pods:
            if pod.gone or pod.ended is not None:
                continue
            if pod.start_at is not None and pod.start_at > time.time():
                yield pod.start_at
            if pod.kill_after is not None:
                yield pod.kill_after


def _key(item: Object) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _priority_class(name: str, value: int) -> Object:
    return {
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
    }  # fmt: skip


def _job_labels(item: Object) -> dict[str, str]:
    uid, name = item["metadata"]["uid"], item["metadata"]["name"]
    return {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": name,
        "controller-uid": uid,
        "job-name": name,
    }


def _disruption() -> Object:
    message = "the node of the pod is gone"
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": message}
    return {"reason": "NodeLost", "message": message, "conditions": [condition]}


def _kubeconfig(url: str, namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "emulated", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "test"}}],
        "contexts": [{"name": "test", "context": {"cluster": "emulated", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
