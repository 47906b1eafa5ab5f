"""The Job controller's decisions, pure: which pods a job needs next, and what its status says.

Source: pkg/controller/job of Kubernetes 1.34. Retries come at once; the controller waits 10 s and longer between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.emulator.objects import Object, timestamp

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class PodState:
    """What the controller sees of one of the job's pods, be it gone or not.

    `deleting`: somebody else asked for its end. `exit_code` is None while it runs and where none is known.
    """

    name: str
    index: int | None
    phase: str
    deleting: bool = False
    exit_code: int | None = None
    disrupted: bool = False
    restarts: int = 0

    @property
    def succeeded(self) -> bool:
        return self.phase == "Succeeded"

    @property
    def failed(self) -> bool:
        return self.phase == "Failed" or (self.deleting and not self.succeeded)

    @property
    def active(self) -> bool:
        return not self.succeeded and not self.failed


@dataclass(frozen=True)
class Step:
    """What to do now: a pod for each entry of `create` (its index, None without indexes), and the job's status."""

    status: Object
    create: tuple[int | None, ...] = ()
    delete: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Tally:
    pods: Sequence[PodState]
    ignored: frozenset[str] = frozenset()
    fatal: str = ""

    @property
    def active(self) -> list[PodState]:
        return [pod for pod in self.pods if pod.active]

    @property
    def failed(self) -> int:
        return sum(pod.failed and pod.name not in self.ignored for pod in self.pods)

    @property
    def succeeded_indexes(self) -> list[int]:
        return sorted({pod.index for pod in self.pods if pod.succeeded and pod.index is not None})


def with_defaults(job: Object) -> None:
    """Fill in what the API server fills in."""
    spec = job["spec"]
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("suspend", False)


def is_finished(job: Object) -> bool:
    return any(condition["type"] in ("Complete", "Failed") for condition in job["status"].get("conditions", ()))


def next_step(job: Object, pods: Iterable[PodState], started: float, now: float) -> Step:
    """The decision for a job that has not finished. `started`, `now`: seconds since the epoch."""
    spec = job["spec"]
    tally = _tally(spec, list(pods))
    status = _status(tally, started, indexed=spec["completionMode"] == "Indexed")
    failure = _failure(spec, tally, started, now)
    if failure is not None:
        reason, message = failure
        ended = {"active": 0, "ready": 0, "conditions": [_condition("Failed", reason, message, now)]}
        return Step({**status, **ended}, delete=tuple(pod.name for pod in tally.active))
    if _is_complete(spec, tally):
        done = [_condition("Complete", "CompletionsReached", "Reached expected number of succeeded pods", now)]
        completed = {"completionTime": timestamp(now), "conditions": done}
        return Step({**status, **completed}, delete=tuple(pod.name for pod in tally.active))
    create = _missing(spec, tally)
    return Step({**status, "active": len(tally.active) + len(create)}, create=create)


def _tally(spec: Mapping[str, Any], pods: list[PodState]) -> _Tally:
    rules = (spec.get("podFailurePolicy") or {}).get("rules") or []
    ignored: set[str] = set()
    fatal = ""
    for pod in pods:
        rule = next((rule for rule in rules if pod.failed and _applies(rule, pod)), None)
        if rule and rule["action"] == "Ignore":
            ignored.add(pod.name)
        if rule and rule["action"] == "FailJob":
            fatal = f"Pod {pod.name} failed with exit code {pod.exit_code} matching FailJob rule"
    return _Tally(pods, frozenset(ignored), fatal)


def _applies(rule: Mapping[str, Any], pod: PodState) -> bool:
    codes = rule.get("onExitCodes")
    if codes is not None:
        known = pod.exit_code not in (None, 0)
        return known and (pod.exit_code in codes["values"]) is (codes["operator"] == "In")
    return any(
        condition["type"] == "DisruptionTarget" and condition.get("status", "True") == "True" and pod.disrupted
        for condition in rule.get("onPodConditions") or []
    )


def _failure(spec: Mapping[str, Any], tally: _Tally, started: float, now: float) -> tuple[str, str] | None:
    if tally.fatal:
        return "PodFailurePolicy", tally.fatal
    # Restarts of a container in its place count as well (restartPolicy OnFailure).
    restarts = sum(pod.restarts for pod in tally.active)
    limit = spec["backoffLimit"]
    if tally.failed > limit or (restarts and restarts >= max(limit, 1)):
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and now >= started + deadline and not _is_complete(spec, tally):
        return "DeadlineExceeded", "Job was active longer than specified deadline"
    return None


def _is_complete(spec: Mapping[str, Any], tally: _Tally) -> bool:
    completions = spec.get("completions")
    succeeded = sum(pod.succeeded for pod in tally.pods)
    if completions is None:  # a work queue: one success, and the others end by themselves
        return succeeded > 0 and not tally.active
    if spec["completionMode"] == "Indexed":
        succeeded = len(tally.succeeded_indexes)
    return bool(succeeded >= completions)


def _missing(spec: Mapping[str, Any], tally: _Tally) -> tuple[int | None, ...]:
    room = spec["parallelism"] - len(tally.active)
    succeeded = sum(pod.succeeded for pod in tally.pods)
    completions = spec.get("completions")
    if completions is None:
        return (None,) * max(0, 0 if succeeded else room)
    if spec["completionMode"] == "Indexed":
        taken = {*tally.succeeded_indexes, *(pod.index for pod in tally.active)}
        free = [index for index in range(completions) if index not in taken]
        return tuple(free[: max(0, room)])
    missing = min(room, completions - succeeded - len(tally.active))
    return (None,) * int(max(0, missing))


def _status(tally: _Tally, started: float, indexed: bool) -> Object:
    indexes = {"completedIndexes": _as_ranges(tally.succeeded_indexes)} if indexed else {}
    return {
        "startTime": timestamp(started),
        "active": len(tally.active),
        "ready": sum(pod.phase == "Running" for pod in tally.active),
        "succeeded": len(tally.succeeded_indexes) if indexed else sum(pod.succeeded for pod in tally.pods),
        "failed": tally.failed,
        "uncountedTerminatedPods": {},
        **indexes,
    }


def _as_ranges(indexes: Sequence[int]) -> str:
    """`0,2-4`, as Kubernetes writes completed indexes."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _condition(kind: str, reason: str, message: str, now: float) -> Object:
    at = timestamp(now)
    return {
        "type": kind, "status": "True", "reason": reason, "message": message,
        "lastProbeTime": at, "lastTransitionTime": at,
    }  # fmt: skip
