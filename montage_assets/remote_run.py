"""Launch the job on a coordinator over Dagster's GraphQL, and follow it.

Belongs here: asking a Dagster webserver, and making of its answers what a run that is followed here would give.
Does not belong here: argument parsing and printing (`cli`), or how a run is shown (`run_view`).
"""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from montage_assets.cluster.errors import ClusterError
from montage_assets.local_run import Fault, failed_check_line, faults_of_step
from montage_assets.run_view import RunDisplay, RunEntry, RunView

JOB_NAME = "montage"
PARTITIONS = "montage"

_POLL_S = 1.0
_TIMEOUT_S = 30
_LOADING_BORNE_S = 60.0
_SILENCE_BORNE_S = 60.0
_TELL_QUEUED_AFTER_S = 10.0
_EVENTS_A_TIME = 500
_ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
_WAITING = {"QUEUED", "NOT_STARTED", "STARTING"}

_WORKSPACE = """query { workspaceOrError { __typename ... on PythonError { message }
  ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename
    ... on PythonError { message causes { message } }
    ... on RepositoryLocation { repositories { name jobs { name } } } } } } } }"""

_ADD = """mutation ($key: String!, $of: String!, $in: RepositorySelector!) {
  addDynamicPartition(partitionKey: $key, partitionsDefName: $of, repositorySelector: $in) {
    __typename ... on PythonError { message } ... on UnauthorizedError { message } } }"""

_DELETE = """mutation ($keys: [String!]!, $of: String!, $in: RepositorySelector!) {
  deleteDynamicPartitions(partitionKeys: $keys, partitionsDefName: $of, repositorySelector: $in) { __typename } }"""

_LAUNCH = """mutation ($run: ExecutionParams!) { launchRun(executionParams: $run) { __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on Error { message } } }"""

_FOLLOW = """query ($run: ID!, $cursor: String, $limit: Int) {
  runOrError(runId: $run) { __typename ... on Run { status } }
  logsForRun(runId: $run, afterCursor: $cursor, limit: $limit) { __typename
    ... on PythonError { message }
    ... on EventConnection { cursor hasMore events {
      ... on MessageEvent { eventType stepKey message timestamp level }
      ... on ExecutionStepFailureEvent {
        error { message className causes { message className } }
        failureMetadata { description metadataEntries { label } } }
      ... on RunFailureEvent { runError: error { message causes { message } } }
      ... on AssetCheckEvaluationEvent { evaluation { checkName success severity description } }
      ... on MaterializationEvent { assetKey { path } metadataEntries { label
        ... on PathMetadataEntry { path } ... on TextMetadataEntry { text }
        ... on FloatMetadataEntry { floatValue } ... on IntMetadataEntry { intValue } } } } } } }"""

_TERMINATE = """mutation ($run: String!) { terminateRun(runId: $run) { __typename
  ... on TerminateRunFailure { message } ... on PythonError { message } ... on UnauthorizedError { message } } }"""


@dataclass(frozen=True)
class CodeLocation:
    """Where the job is to be found on the coordinator."""

    location: str
    repository: str

    @property
    def selector(self) -> dict[str, str]:
        """As GraphQL wants it."""
        return {"repositoryLocationName": self.location, "repositoryName": self.repository}


@dataclass
class LaunchedRun:
    """A run as far as it was followed. `status` is Dagster's; `facts` is the metadata of its assets, by asset and
    label."""

    run_id: str
    status: str = "QUEUED"
    faults: list[Fault] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    view: RunView = field(default_factory=RunView)

    def summary(self) -> list[str]:
        """What `montage make` tells of a film, as far as the run's metadata has it."""
        film, edit = self.facts.get("montage", {}), self.facts.get("clip_selections", {})
        lines = [f"film:       {film.get('film', 'as it was')}"]
        if "length (s)" in film:
            size = f", {edit['size']}" if "size" in edit else ""
            lines.append(f"length:     {film['length (s)']:.2f} s{size}")
        if "shots" in edit:
            lines.append(f"cuts:       {edit['shots'] - 1}")
        if "worst cut-to-beat error (ms)" in edit:
            lines.append(f"worst cut:  {edit['worst cut-to-beat error (ms)']:.1f} ms from its beat")
        times = [(name, asset.seconds) for name, asset in self.view.assets.items() if asset.seconds is not None]
        lines.append("seconds:    " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in times))
        return lines


class Coordinator:
    """A Dagster webserver that knows the montage job. Raises ClusterError with one line when it is none."""

    def __init__(self, url: str) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClusterError(f"{url!r} is no address of a coordinator; it looks like http://host:8080")
        self._code = self._find_code()

    def launch(self, montage: str, overrides: Mapping[str, Any]) -> LaunchedRun:
        """Submit the run of one montage, a folder of the coordinator's input/."""
        self._added = self._register(montage)
        answer = self._ask(
            _LAUNCH,
            run={
                "selector": {**self._code.selector, "jobName": JOB_NAME},
                "runConfigData": {"ops": {"footage": {"config": {"overrides": dict(overrides)}}}},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": montage}]},
            },
        )["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            reasons = [error["message"] for error in answer.get("errors", [])] or [answer.get("message", "")]
            raise ClusterError(f"{self.url} does not launch {montage}: {_first_line(reasons[0])}")
        return LaunchedRun(answer["run"]["runId"])

    def page_of(self, run: LaunchedRun) -> str:
        """Where the run is to be seen in a browser."""
        return f"{self.url}/runs/{run.run_id}"

    def follow(self, run: LaunchedRun, display: RunDisplay, note: Callable[[str], None]) -> None:
        """Show the run until it ends. Ctrl-C cancels it and waits for its end; a second one leaves it alone.

        `note` is told what is not in the run's log.
        """
        follower = _Follower(self._ask_patiently, run, display, note)
        try:
            follower.to_the_end()
        except KeyboardInterrupt:
            note("cancelling the run; press Ctrl-C again to leave it to itself")
            self.cancel(run)
            follower.to_the_end()
        if run.status == "FAILURE" and not run.faults:
            run.faults.append(Fault("run", follower.run_error or f"the run failed; see {self.page_of(run)}", False))

    def cancel(self, run: LaunchedRun) -> None:
        """Ask the coordinator to end the run. Raises ClusterError when it will not."""
        answer = self._ask(_TERMINATE, run=run.run_id)["terminateRun"]
        if answer["__typename"] not in ("TerminateRunSuccess", "RunNotFoundError"):
            raise ClusterError(f"the run is not cancelled: {_first_line(answer['message'])}; see {self.page_of(run)}")

    def take_back(self, montage: str) -> None:
        """Remove the partition of a montage that has turned out not to be there, if `launch` added it."""
        if self._added:
            self._ask(_DELETE, keys=[montage], of=PARTITIONS, **{"in": self._code.selector})

    def _register(self, montage: str) -> bool:
        answer = self._ask(_ADD, key=montage, of=PARTITIONS, **{"in": self._code.selector})["addDynamicPartition"]
        if answer["__typename"] == "DuplicateDynamicPartitionError":
            return False
        if answer["__typename"] != "AddDynamicPartitionSuccess":
            raise ClusterError(f"{self.url} does not take {montage}: {_first_line(answer['message'])}")
        return True

    def _find_code(self) -> CodeLocation:
        ends = time.monotonic() + _LOADING_BORNE_S
        while True:
            workspace = self._ask(_WORKSPACE)["workspaceOrError"]
            entries = workspace.get("locationEntries", [])
            for entry in entries:
                loaded = entry["locationOrLoadError"] or {}
                for repository in loaded.get("repositories", []):
                    if any(job["name"] == JOB_NAME for job in repository["jobs"]):
                        return CodeLocation(entry["name"], repository["name"])
            if all(entry["loadStatus"] != "LOADING" for entry in entries) or time.monotonic() > ends:
                raise ClusterError(self._why_no_code(workspace, entries))
            time.sleep(_POLL_S)

    def _why_no_code(self, workspace: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
        for entry in entries:
            error = entry["locationOrLoadError"] or {}
            if error.get("__typename") == "PythonError":
                causes = [cause["message"] for cause in error["causes"]]
                line = _first_line((causes or [error["message"]])[-1])
                return f"the code location {entry['name']} of {self.url} cannot be loaded: {line}"
        if "message" in workspace:
            return f"{self.url} has no workspace: {_first_line(workspace['message'])}"
        return f"{self.url} has no job {JOB_NAME}; it must load montage_assets.definitions"

    def _ask_patiently(self, query: str, **variables: Any) -> Any:
        """As `_ask`, over a restart of the coordinator."""
        ends = time.monotonic() + _SILENCE_BORNE_S
        while True:
            try:
                return self._ask(query, **variables)
            except ClusterError:
                if time.monotonic() > ends:
                    raise
                time.sleep(_POLL_S)

    def _ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310 -- the scheme was looked at
            f"{self.url}/graphql", body, {"Content-Type": "application/json", "Accept": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
                answer = json.load(response)
        except (urllib.error.HTTPError, json.JSONDecodeError, UnicodeDecodeError, http.client.HTTPException) as error:
            why = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else "no JSON"
            raise ClusterError(
                f"{self.url} does not answer as a Dagster webserver does ({why}); check the address"
            ) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ClusterError(
                f"there is no coordinator at {self.url} ({reason}); start it, or name it with --coordinator or "
                "COORDINATOR_URL"
            ) from None
        if not isinstance(answer, dict) or answer.get("data") is None:
            errors = answer.get("errors") if isinstance(answer, dict) else None
            said = _first_line(errors[0].get("message", "")) if errors else "no data"
            raise ClusterError(f"{self.url} does not answer as this version of Dagster does ({said})")
        return answer["data"]


class _Follower:
    """Reads the log of a run page by page into its view."""

    def __init__(
        self, ask: Callable[..., Any], run: LaunchedRun, display: RunDisplay, note: Callable[[str], None]
    ) -> None:
        self._ask, self._run, self._display, self._note = ask, run, display, note
        self._cursor: str | None = None
        self._started = time.monotonic()
        self._told_queued = False
        self._checks: list[tuple[str | None, str]] = []
        self.run_error: str | None = None

    def to_the_end(self) -> None:
        """Follow until the run has ended and its whole log is read."""
        while True:
            answer = self._ask(_FOLLOW, run=self._run.run_id, cursor=self._cursor, limit=_EVENTS_A_TIME)
            self._run.status = answer["runOrError"].get("status", "CANCELED")  # a deleted run is over
            log = answer["logsForRun"]
            for event in log.get("events", []):
                self._take(event)
            self._cursor = log.get("cursor", self._cursor)
            if log.get("hasMore"):
                continue
            if self._run.status in _ENDED:
                return
            self._tell_of_the_queue()
            time.sleep(_POLL_S)

    def _tell_of_the_queue(self) -> None:
        waited = time.monotonic() - self._started
        if not self._told_queued and self._run.status in _WAITING and waited > _TELL_QUEUED_AFTER_S:
            self._told_queued = True
            self._note(
                "the run waits in the coordinator's queue: another run is under way, or no Dagster daemon is at work"
            )

    def _take(self, event: Mapping[str, Any]) -> None:
        step = event.get("stepKey")
        entry = RunEntry(
            kind=event.get("eventType") or "LOG",
            step=step,
            message=event.get("message", ""),
            at=float(event.get("timestamp", 0)) / 1000,
            level=event.get("level", logging.getLevelName(logging.INFO)),
        )
        self._display.show(self._run.view, self._run.view.add(entry))
        if "evaluation" in event:
            check = event["evaluation"]
            if check["severity"] == "ERROR" and not check["success"]:
                self._checks.append((step, failed_check_line(check["checkName"], check["description"])))
        if "metadataEntries" in event and event.get("assetKey"):
            self._run.facts[event["assetKey"]["path"][-1]] = {
                item["label"]: value
                for item in event["metadataEntries"]
                for key, value in item.items()
                if key != "label"
            }
        if event.get("eventType") == "STEP_FAILURE":
            self._run.faults.extend(self._faults(event))
        elif event.get("runError"):
            causes = event["runError"]["causes"]
            self.run_error = _first_line((causes[-1] if causes else event["runError"])["message"])

    def _faults(self, event: Mapping[str, Any]) -> list[Fault]:
        step = event["stepKey"]
        given, error = event.get("failureMetadata"), event.get("error") or {}
        causes = error.get("causes") or []
        return faults_of_step(
            step,
            description=None if given is None else given["description"] or "failed",
            labels={item["label"] for item in given["metadataEntries"]} if given else set(),
            error_class=error.get("className"),
            error_message=(causes[-1] if causes else error).get("message", "failed"),
            failed_checks=[line for of_step, line in self._checks if of_step == step],
        )


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else "no reason given"
