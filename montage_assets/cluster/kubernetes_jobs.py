"""Jobs on Kubernetes: sending them, waiting for them, and saying in one line what went wrong.

Belongs here: the requests and what their answers mean. Does not belong here: the objects sent (`job_manifests`), or
which work becomes a job (`job_submitter`). Answers are read as plain JSON: the keys are the API's own.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.job_manifests import Manifest
from montage_assets.cluster.job_status import JobFailedError, JobState, JobStatus, JobTimeoutError, PodStatus
from montage_assets.cluster.kubernetes_api import KubernetesUnavailableError, connected_client, reason_of

_REQUEST_S = (3.0, 10.0)
"""To connect, and between two pieces of an answer."""

_WATCH_S = 60
_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_ANSWERS_LOST = 5
"""So many lost connections in a row, a second apart and more, are a cluster that is gone."""


class KubernetesJobs:
    """The jobs of one namespace."""

    def __init__(self, namespace: str) -> None:
        """Find the access and try it. Raises KubernetesUnavailableError when jobs cannot be worked with from here."""
        client = connected_client()
        from kubernetes import client as kubernetes

        self.namespace = namespace
        self._host = client.configuration.host
        self._batch: Any = kubernetes.BatchV1Api(client)
        self._core: Any = kubernetes.CoreV1Api(client)
        try:
            self._batch.list_namespaced_job(namespace, limit=1, _request_timeout=_REQUEST_S, _preload_content=False)
        except Exception as error:
            deed, right = f"list jobs in namespace {namespace}", "list on jobs; see deploy/k3s/base/rbac.yaml"
            raise KubernetesUnavailableError(reason_of(error, self._host, deed, right)) from None

    def submit(self, manifest: Manifest) -> None:
        """Create a job. One of its name that has ended makes room; one that runs is the job. Raises ClusterError."""
        name = manifest["metadata"]["name"]
        while True:
            try:
                with self._asking(f"create job {name}", "create on jobs"):
                    self._batch.create_namespaced_job(self.namespace, manifest, _request_timeout=_REQUEST_S)
                return
            except _NameTakenError:
                with contextlib.suppress(_NotThereError):  # it may be cleaned away meanwhile
                    if not self.status(name).has_ended:
                        return
                    self.delete(name, wait=True)

    def status(self, name: str) -> JobStatus:
        """The job and its pods now. Raises ClusterError when there is none of that name."""
        return _status_of(self._job(name), self._pods(name))

    def wait(self, name: str, timeout_s: float | None = None) -> JobStatus:
        """The status of the job once it has succeeded.

        Raises JobFailedError with the reason, JobTimeoutError when it has not ended in time, and ClusterError when it
        was deleted or Kubernetes can no longer be asked.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        lost = 0
        while True:
            try:
                job = self._job(name)
                lost = 0
                if _state_of(job) == "succeeded":
                    return self.status(name)
                if _state_of(job) == "failed":
                    raise JobFailedError(self._why_failed(name, job))
                if time.monotonic() >= until:
                    raise JobTimeoutError(self._why_not_done(name, timeout_s or 0.0))
                self._await_change(job, until)
            except _ConnectionLostError:
                lost += 1
                if lost == _ANSWERS_LOST:
                    raise
                time.sleep(min(lost, max(0.0, until - time.monotonic())))

    def log(self, name: str) -> str:
        """What the pods of a job printed, each line after the pod's name where there are several."""
        pods = self._pods(name)
        texts = {pod["metadata"]["name"]: self._log_of(pod["metadata"]["name"]) for pod in pods}
        if len(texts) == 1:
            return next(iter(texts.values()))
        return "".join(f"{pod}: {line}\n" for pod, text in texts.items() for line in text.splitlines())

    def delete(self, name: str, wait: bool = False) -> None:
        """Remove a job and its pods; with `wait`, return when its name is free. Raises ClusterError."""
        policy = "Foreground" if wait else "Background"
        with self._asking(f"delete job {name}", "delete on jobs"):
            self._batch.delete_namespaced_job(
                name, self.namespace, propagation_policy=policy, _request_timeout=_REQUEST_S, _preload_content=False
            )
        while wait:
            try:
                self._await_change(self._job(name), time.monotonic() + _WATCH_S)
            except _NotThereError:
                return

    def _job(self, name: str) -> Manifest:
        with self._asking(f"read job {name}", "get on jobs"):
            return _plain(
                self._batch.read_namespaced_job(
                    name, self.namespace, _request_timeout=_REQUEST_S, _preload_content=False
                )
            )

    def _pods(self, job: str) -> list[Manifest]:
        with self._asking("list pods", "list on pods"):
            answer = _plain(
                self._core.list_namespaced_pod(
                    self.namespace,
                    label_selector=f"job-name={job}",
                    _request_timeout=_REQUEST_S,
                    _preload_content=False,
                )
            )
        pods: list[Manifest] = answer["items"]
        return sorted(pods, key=lambda pod: (_index_of(pod) or 0, pod["metadata"]["name"]))

    def _await_change(self, job: Manifest, until: float) -> None:
        """Return when the job has changed, or at times without a change; the caller looks for itself."""
        from kubernetes import watch

        name, version = job["metadata"]["name"], job["metadata"]["resourceVersion"]
        seconds = max(1, min(_WATCH_S, math.ceil(until - time.monotonic()) if until < math.inf else _WATCH_S))
        stream: Any = watch.Watch()
        with self._asking("watch jobs", "watch on jobs"):
            for _ in stream.stream(
                self._batch.list_namespaced_job,
                self.namespace,
                field_selector=f"metadata.name={name}",
                resource_version=version,
                timeout_seconds=seconds,
                _request_timeout=(_REQUEST_S[0], seconds + _REQUEST_S[1]),
            ):
                stream.stop()
                return

    def _log_of(self, pod: str, last_lines: int | None = None) -> str:
        options = {} if last_lines is None else {"tail_lines": last_lines}
        try:
            with self._asking("read the log of pods", "get on pods/log"):
                answer = self._core.read_namespaced_pod_log(
                    pod, self.namespace, _request_timeout=_REQUEST_S, _preload_content=False, **options
                )
            return bytes(answer.data).decode("utf-8", "replace")
        except (_NotStartedError, _NotThereError):
            return ""

    def _why_failed(self, name: str, job: Manifest) -> str:
        condition = next(entry for entry in job["status"]["conditions"] if entry["type"] == "Failed")
        said = f"job {name} failed ({condition.get('reason', 'Failed')})"
        dead = [pod for pod in self._pods(name) if pod["status"].get("phase") == "Failed"]
        if not dead:
            return f"{said}: {self._last_warning(name) or condition.get('message', 'no pod of it is left to ask')}"
        last = _status_of_pod(max(dead, key=_ended_at))
        lines = self._log_of(last.name, 5).strip().splitlines()
        code = "" if last.exit_code is None else f", exit code {last.exit_code}"
        return f"{said}: pod {last.name} on {last.node}: {last.reason}{code}" + (f": {lines[-1]}" if lines else "")

    def _why_not_done(self, name: str, timeout_s: float) -> str:
        said = f"job {name} has not ended within {timeout_s:g} s and goes on"
        waiting = next((pod for pod in self.status(name).pods if pod.phase == "Pending" and pod.reason), None)
        return f"{said}; pod {waiting.name} waits: {waiting.reason}" if waiting else said

    def _last_warning(self, job: str) -> str:
        """What Kubernetes last complained of about a job or its pods, which may be gone."""
        with self._asking("list events", "list on events"):
            answer = _plain(
                self._core.list_namespaced_event(self.namespace, _request_timeout=_REQUEST_S, _preload_content=False)
            )
        warnings = [
            event
            for event in answer["items"]
            if event.get("type") == "Warning" and _is_about(event["involvedObject"].get("name", ""), job)
            if event.get("reason") in ("FailedScheduling", "FailedCreate", "Failed")
        ]
        last = max(warnings, key=lambda event: event.get("lastTimestamp") or "", default=None)
        return "" if last is None else str(last["message"])

    @contextlib.contextmanager
    def _asking(self, deed: str, right: str) -> Iterator[None]:
        """The client's errors in one line each."""
        from kubernetes.client.exceptions import ApiException

        try:
            yield
        except ApiException as error:
            said = _message_in(error)
            if error.status == 404:
                where = f"namespace {self.namespace} of {self._host}"
                raise _NotThereError(f"cannot {deed}: {said or 'it is not there'} ({where})") from None
            if error.status == 409:
                raise _NameTakenError(f"cannot {deed}: {said}") from None
            if error.status == 400:
                raise _NotStartedError(f"cannot {deed}: {said}") from None
            if error.status in (410, 429, 500, 503, 504):
                raise _ConnectionLostError(f"cannot {deed}: {self._host} answered with HTTP {error.status}") from None
            if error.status == 403:
                raise ClusterError(reason_of(error, self._host, deed, right)) from None
            raise ClusterError(f"cannot {deed}: HTTP {error.status}: {said}") from None
        except (OSError, _network_error()) as error:
            raise _ConnectionLostError(reason_of(error, self._host, deed, right)) from None


class _NotThereError(ClusterError):
    """HTTP 404."""


class _NameTakenError(ClusterError):
    """HTTP 409."""


class _NotStartedError(ClusterError):
    """HTTP 400: what is asked for has no answer yet."""


class _ConnectionLostError(ClusterError):
    """Kubernetes did not answer; it may again."""


def _network_error() -> type[Exception]:
    from urllib3.exceptions import HTTPError

    return HTTPError


def _plain(response: Any) -> Manifest:
    answer: Manifest = json.loads(response.data)
    return answer


def _message_in(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return " ".join(str(error.reason or error).split())


def _is_about(name: str, job: str) -> bool:
    return name == job or name.startswith(f"{job}-")


def _state_of(job: Mapping[str, Any]) -> JobState:
    status = job.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return "succeeded" if condition["type"] == "Complete" else "failed"
    return "running" if status.get("ready") or status.get("succeeded") else "pending"


def _status_of(job: Mapping[str, Any], pods: list[Manifest]) -> JobStatus:
    status = job.get("status") or {}
    reasons = [entry.get("reason", "") for entry in status.get("conditions") or () if entry["type"] == "Failed"]
    return JobStatus(
        name=job["metadata"]["name"],
        state=_state_of(job),
        active=status.get("active") or 0,
        succeeded=status.get("succeeded") or 0,
        failed=status.get("failed") or 0,
        reason=reasons[0] if reasons else "",
        pods=tuple(_status_of_pod(pod) for pod in pods),
    )


def _status_of_pod(pod: Mapping[str, Any]) -> PodStatus:
    status = pod.get("status") or {}
    states = [entry.get("state") or {} for entry in status.get("containerStatuses") or ()]
    ended = next(iter(_in_state(states, "terminated")), {})
    waiting = next(iter(_in_state(states, "waiting")), {})
    unplaced = [entry["message"] for entry in status.get("conditions") or () if entry.get("reason") == "Unschedulable"]
    reason = status.get("reason") or ended.get("reason") or next(iter(unplaced), None) or waiting.get("reason")
    return PodStatus(
        name=pod["metadata"]["name"],
        phase=status.get("phase") or "Unknown",
        node=(pod.get("spec") or {}).get("nodeName"),
        index=_index_of(pod),
        reason=str(reason or ""),
        exit_code=ended.get("exitCode"),
    )


def _in_state(states: list[Manifest], name: str) -> list[Manifest]:
    return [state[name] for state in states if state.get(name)]


def _index_of(pod: Mapping[str, Any]) -> int | None:
    text = (pod["metadata"].get("annotations") or {}).get(_INDEX_ANNOTATION)
    return None if text is None else int(text)


def _ended_at(pod: Mapping[str, Any]) -> str:
    states = [entry.get("state") or {} for entry in pod["status"].get("containerStatuses") or ()]
    return max((str((state.get("terminated") or {}).get("finishedAt") or "") for state in states), default="")
