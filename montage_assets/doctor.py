"""What is wrong with a deployment, seen from the machine or pod that asks: `montage doctor`.

Belongs here: the checks and their cures. Each `..._findings` function judges facts that it is given, or asks the one
thing that it is named for; `examine` runs them all. Does not belong here: printing (`cli`), or mending anything.

A check never raises: what it stumbles over is a finding like others.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from montage_assets.data_root import DataRoot
from montage_assets.settings import DEFAULT_COORDINATOR_URL, DEFAULT_REDIS_URL, Settings

if TYPE_CHECKING:
    from montage_assets.cluster.node import NodeCapability
    from montage_assets.media.machine_encoders import EncoderState

State = Literal["ok", "warn", "FAIL"]

LITTLE_SPACE, NO_SPACE = 20 << 30, 1 << 30
PROBES = "work/doctor"
"""Each machine leaves a file of its name here, by which others see that they share the data root."""
PROBE_COUNTS_S = 7 * 86400
SHARED_FILE_SYSTEMS = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "fuse.ceph",
    "glusterfs",
    "fuse.glusterfs",
    "lustre",
    "9p",
)
RIGHTS = (
    ("batch", "jobs", "create"), ("batch", "jobs", "get"), ("batch", "jobs", "list"), ("batch", "jobs", "delete"),
    ("batch", "jobs/status", "get"), ("", "pods", "list"), ("", "pods/log", "get"), ("", "events", "list"),
    ("", "nodes", "list"),
)  # fmt: skip
"""What starting, watching and ending runs and steps needs, as (API group, resource, verb)."""
_TIMEOUT_S = 5


@dataclass(frozen=True)
class Finding:
    """What one check found. `what` names the thing, `cure` says what to do, empty where nothing is to be done."""

    check: str
    state: State
    what: str
    cure: str = ""

    @property
    def line(self) -> str:
        """For people: one line."""
        return f"{self.state:<4}  {self.check:<11}  {self.what}" + (f"; {self.cure}" if self.cure else "")


def examine(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """All checks that concern what the settings name, in the order of what depends on what."""
    root = settings.data_root
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("storage", lambda: storage_findings(root(), settings.node, settings.executor != "local")),
        ("space", lambda: space_findings(root().free_bytes(), settings.data)),
        ("database", lambda: database_findings(settings, environment)),
        ("broker", lambda: broker_findings(settings)),
        ("coordinator", lambda: coordinator_findings(settings.coordinator_url)),
        ("nodes", lambda: node_findings(settings)),
        ("rights", lambda: rights_findings(settings)),
        ("image", lambda: image_findings(settings)),
        ("ffmpeg", ffmpeg_findings),
        ("devices", lambda: render_device_findings(sorted(Path("/dev/dri").glob("renderD*")))),
        ("encoders", lambda: _examine_encoders(settings)),
        ("cloud", lambda: cloud_findings(settings)),
    ]
    return [finding for name, check in checks for finding in _safely(name, check)]


def _safely(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # the doctor's patient may be ill in ways nobody thought of
        return [Finding(name, "FAIL", f"{type(error).__name__}: {_one_line(error)}")]


def storage_findings(root: DataRoot, node: str, is_distributed: bool) -> list[Finding]:
    """Whether the data root can be written to as results are, and who else has been seen there."""
    place = root.where("").rstrip("/")
    if root.is_local:
        folder = Path(place)
        if not folder.is_dir():
            return [Finding("storage", "FAIL", f"there is no {place}", "mount it, or set MONTAGE_DATA")]
        fault = _fault_of_writing(folder)
        if fault:
            cure = f"let user {os.getuid()} write there, e.g. chown {os.getuid()}:{os.getgid()} on the server"
            return [Finding("storage", "FAIL", f"{place} cannot be written to: {fault}", cure)]
    try:
        others = _leave_probe(root, node)
    except Exception as error:
        cure = "check the rights and, for a bucket, AWS_ENDPOINT_URL and the keys"
        return [Finding("storage", "FAIL", f"{place} cannot be written to: {_one_line(error)}", cure)]
    written = Finding("storage", "ok", f"{place}: writable, a finished file appears whole")
    return [written, *_shared_findings(place, _file_system(place) if root.is_local else None, others, is_distributed)]


def _fault_of_writing(folder: Path) -> str | None:
    """Write a file and rename it over another, as every result is."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
            target, temporary = Path(name, "target"), Path(name, "temporary")
            target.write_bytes(b"old")
            temporary.write_bytes(b"new")
            temporary.replace(target)
            if target.read_bytes() != b"new" or temporary.exists():
                return "a renamed file is not what was written"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _leave_probe(root: DataRoot, node: str) -> list[str]:
    """Leave this machine's file, read it back, and return the names of the other machines seen lately."""
    mark = uuid.uuid4().hex
    key = f"{PROBES}/{node}.json"
    root.write_bytes(key, json.dumps({"node": node, "mark": mark, "at": time.time()}).encode())
    if json.loads(root.read_bytes(key))["mark"] != mark:
        raise OSError(f"{root.where(key)} does not hold what was written just now")
    others = []
    for file in root.list_files(PROBES):
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):  # somebody's else's file, or being removed
            probe = json.loads(root.read_bytes(f"{PROBES}/{Path(file.name).name}"))
            if probe["node"] != node and time.time() - float(probe["at"]) < PROBE_COUNTS_S:
                others.append(str(probe["node"]))
    return sorted(others)


def _shared_findings(place: str, file_system: str | None, others: Sequence[str], is_distributed: bool) -> list[Finding]:
    if others:
        return [Finding("shared", "ok", f"{place} is shared with {', '.join(others)} (montage doctor ran there)")]
    if file_system is None or file_system in SHARED_FILE_SYSTEMS:
        kind = "a bucket" if file_system is None else file_system
        return [Finding("shared", "ok", f"{place} is {kind}; run montage doctor on another machine to see it there")]
    if not is_distributed:
        return []
    what = f"{place} is on {file_system} and no other machine has been seen there"
    return [Finding("shared", "warn", what, "put it on NFS, or run montage doctor on another machine to show it")]


def _file_system(place: str, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that a folder lies on; `a disk` where the system does not tell."""
    if not mounts.is_file():
        return "a disk"
    path = Path(place).resolve()
    found = ("", "a disk")
    for line in mounts.read_text().splitlines():
        _, point, kind, *_ = line.split()
        point = point.replace("\\040", " ")
        if len(point) >= len(found[0]) and path.is_relative_to(point):
            found = (point, kind)
    return found[1]


def space_findings(free_bytes: int | None, data: str) -> list[Finding]:
    """Whether films and intermediate results have room."""
    if free_bytes is None:
        return []
    free = f"{free_bytes / 2**30:.1f} GiB are free at {data}"
    cure = "free some space: a montage needs about the size of its clips"
    if free_bytes < NO_SPACE:
        return [Finding("space", "FAIL", free, cure)]
    return [Finding("space", "warn", free, cure) if free_bytes < LITTLE_SPACE else Finding("space", "ok", free)]


def database_findings(settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    """Whether Dagster's instance opens and its storage answers."""
    home = environment.get("DAGSTER_HOME")
    if not home:
        if settings.executor == "local":
            return [Finding("database", "ok", "no DAGSTER_HOME: montage make keeps its own records beside the data")]
        cure = "set it to the folder of the deployment's dagster.yaml"
        return [Finding("database", "FAIL", f"executor {settings.executor} without DAGSTER_HOME", cure)]
    import dagster as dg

    try:
        with dg.DagsterInstance.get() as instance:
            storage = type(instance.run_storage).__name__
            runs = instance.get_runs_count()
            has_daemon = all(status.healthy for status in instance.get_daemon_statuses().values())
            launcher = type(instance.run_launcher).__name__ if settings.executor == "k8s" else ""
    except Exception as error:
        cure = "check DAGSTER_PG_HOST, DAGSTER_PG_PASSWORD and that the database runs, or mend dagster.yaml"
        return [Finding("database", "FAIL", f"{home}/dagster.yaml: {_one_line(error)}", cure)]
    if "Sqlite" in storage and settings.executor != "local":
        what = f"{home} keeps its records in SQLite, which serves one machine"
        return [Finding("database", "FAIL", what, "use Postgres, as deploy/dagster.yaml does")]
    if launcher and launcher != "K8sRunLauncher":
        what = f"{home} launches runs by {launcher}, and step pods need K8sRunLauncher"
        return [Finding("database", "FAIL", what, "use deploy/dagster.yaml")]
    if settings.executor != "local" and not has_daemon:
        what = f"{storage} answers, but Dagster's daemon shows no sign of life: queued runs wait"
        cure = "start it, or see kubectl logs -n montage-ai deploy/montage-ai-web -c daemon"
        return [Finding("database", "warn", what, cure)]
    return [Finding("database", "ok", f"{storage} answers, {runs} runs")]


def broker_findings(settings: Settings) -> list[Finding]:
    """Whether Redis answers and every queue is served; nothing where no queue is used."""
    if settings.executor != "celery" and settings.redis_url == DEFAULT_REDIS_URL:
        return []
    from montage_assets.cluster.broker import Broker, shown
    from montage_assets.cluster.errors import ClusterError
    from montage_assets.cluster.queues import nobody_serves
    from montage_assets.cluster.tasks import WORKS

    try:
        broker = Broker(settings)
        broker.require()
        workers = broker.live_workers()
    except ClusterError as error:
        return [Finding("broker", "FAIL", str(error))]
    findings = [Finding("broker", "ok", f"{shown(settings.redis_url)} answers, {_count(workers, 'worker')}")]
    for queue in WORKS:
        if not any(queue in worker.queues for worker in workers):
            what, _, cure = nobody_serves(queue).partition("; ")
            findings.append(Finding("broker", "warn", what, cure))
    return findings


def coordinator_findings(url: str) -> list[Finding]:
    """Whether the webserver that runs are launched on answers; nothing where none was named."""
    if url == DEFAULT_COORDINATOR_URL:
        return []
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/server_info", timeout=_TIMEOUT_S) as answer:  # noqa: S310
            version = json.loads(answer.read())["dagster_version"]
    except Exception as error:
        cure = "start it, or set COORDINATOR_URL to where it is"
        return [Finding("coordinator", "FAIL", f"{url} does not answer as Dagster: {_one_line(error)}", cure)]
    return [Finding("coordinator", "ok", f"{url} answers, Dagster {version}")]


def node_findings(settings: Settings) -> list[Finding]:
    """The nodes, their architectures and their GPUs, as far as anybody knows of other nodes."""
    from montage_assets.cluster.errors import ClusterError
    from montage_assets.cluster.manager import discover_cluster, find_catalog
    from montage_assets.cluster.mode import ClusterMode

    try:
        cluster = discover_cluster(settings)
        catalog = find_catalog(settings)
    except ClusterError as error:
        return [Finding("nodes", "FAIL", str(error))]
    findings = [Finding("nodes", "warn", warning) for warning in cluster.warnings]
    findings += readiness_findings(cluster.nodes, f"mode {cluster.mode.value}: {cluster.reason}")
    if cluster.mode is not ClusterMode.LOCAL:
        findings += architecture_findings(cluster.nodes, settings.image)
    if cluster.mode is ClusterMode.K8S:
        findings += plugin_findings(cluster.nodes, catalog[1] if catalog else ())
    elif settings.executor == "k8s":
        what = f"steps are to be pods, but the nodes are taken from elsewhere ({cluster.reason})"
        findings.append(Finding("nodes", "FAIL", what, "let this account list nodes: apply deploy/k3s/base"))
    return findings


def readiness_findings(nodes: Sequence[NodeCapability], source: str) -> list[Finding]:
    """Which nodes take no work."""
    away = [node.name for node in nodes if not node.ready]
    cordoned = [node.name for node in nodes if node.ready and not node.schedulable]
    findings = [Finding("nodes", "ok", f"{_count(nodes, 'node')}, {source}")]
    if len(away) + len(cordoned) == len(nodes):
        return [Finding("nodes", "FAIL", f"no node takes work, {source}", "see kubectl get nodes")]
    if away:
        cure = "see kubectl describe node, or `ready: false` in cluster.yaml"
        findings.append(Finding("nodes", "warn", f"not ready: {', '.join(away)}", cure))
    if cordoned:
        findings.append(Finding("nodes", "warn", f"cordoned: {', '.join(cordoned)}", "kubectl uncordon NODE"))
    return findings


def architecture_findings(
    nodes: Sequence[NodeCapability], image: str | None, machine: str | None = None
) -> list[Finding]:
    """Whether nodes need another build of the image than the one that runs here. (Only a registry knows for sure.)"""
    from montage_assets.cluster.node import normal_arch

    here = normal_arch(machine or platform.machine())
    others = {node.arch: [n.name for n in nodes if n.arch == node.arch] for node in nodes if node.arch != here}
    if not others:
        return [Finding("arch", "ok", f"all nodes are {here}, as the image that runs here")]
    named = "; ".join(f"{arch}: {', '.join(names)}" for arch, names in sorted(others.items()))
    platforms = ",".join(f"linux/{arch}" for arch in sorted({here, *others}))
    cure = f"build it for all: docker buildx build --platform {platforms} (exec format error says it was not)"
    return [Finding("arch", "warn", f"{image or 'the image'} must have builds besides {here} ({named})", cure)]


def plugin_findings(live: Sequence[NodeCapability], described: Sequence[NodeCapability]) -> list[Finding]:
    """Which GPUs no device plugin hands to pods. `described`: the nodes as cluster.yaml has them."""
    from montage_assets.cluster.node import GPU_VENDOR_DOMAINS

    expected = {node.name: node.gpu for node in described if node.gpu}
    offered, missing = [], []
    for node in live:
        resources = [
            f"{name}: {count}" for name, count in node.resources.items() if name.startswith(GPU_VENDOR_DOMAINS)
        ]
        if any(count > 0 for name, count in node.resources.items() if name.startswith(GPU_VENDOR_DOMAINS)):
            offered.append(f"{node.name} ({', '.join(resources)})")
        elif node.gpu or node.name in expected:
            missing.append((node.name, node.gpu or expected[node.name]))
    findings = [Finding("gpus", "ok", f"handed to pods: {', '.join(offered)}")] if offered else []
    for name, gpu in missing:
        cure = (
            "install the vendor's device plugin on that node (deploy/k3s/overlays/gpu); until then it works on its CPU"
        )
        findings.append(Finding("gpus", "warn", f"{name} has {gpu}, but no device plugin offers it", cure))
    return findings


def rights_findings(
    settings: Settings, is_allowed: Callable[[str, str, str, str], bool] | None = None
) -> list[Finding]:
    """Whether this account may do what runs in pods need. Asked only where steps are pods."""
    if settings.executor != "k8s":
        return []
    from montage_assets.cluster.errors import ClusterError

    ask = is_allowed or _ask_kubernetes
    try:
        lacking = [right for right in RIGHTS if not ask(settings.namespace, *right)]
    except ClusterError as error:
        return [Finding("rights", "FAIL", str(error))]
    if not lacking:
        return [Finding("rights", "ok", f"this account may start, watch and end jobs in {settings.namespace}")]
    named = ", ".join(f"{verb} {resource}" for _, resource, verb in lacking)
    cure = "apply deploy/k3s/base, and use the account montage-web or montage-run"
    return [Finding("rights", "FAIL", f"in namespace {settings.namespace} this account may not {named}", cure)]


def _ask_kubernetes(namespace: str, group: str, resource: str, verb: str) -> bool:
    from kubernetes import client

    from montage_assets.cluster.errors import ClusterError
    from montage_assets.cluster.kubernetes_api import connected_client

    name, _, part = resource.partition("/")
    wanted: dict[str, Any] = {"group": group, "resource": name, "verb": verb}
    if part:
        wanted["subresource"] = part
    if name != "nodes":
        wanted["namespace"] = namespace
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": wanted},
    }
    with connected_client() as connection:
        try:
            answer = client.AuthorizationV1Api(connection).create_self_subject_access_review(
                body, _request_timeout=(_TIMEOUT_S, _TIMEOUT_S)
            )
        except Exception as error:
            raise ClusterError(f"Kubernetes does not tell what this account may do: {_one_line(error)}") from None
    return bool(answer.status.allowed)


def image_findings(settings: Settings) -> list[Finding]:
    """Whether it is known which image pods are made of."""
    if settings.executor != "k8s":
        return []
    if settings.image is None:
        return [
            Finding("image", "FAIL", "MONTAGE_IMAGE is not set", "set it in montage-settings to the services' image")
        ]
    return [Finding("image", "ok", f"pods are made of {settings.image}")]


def cloud_findings(settings: Settings) -> list[Finding]:
    """Whether the cloud GPU can be asked, and what it would be sent; nothing for those who never allowed it."""
    if not settings.cgpu_enabled:
        return []
    from montage_assets.cloud.offload import bar
    from montage_assets.cloud.status import would_send

    missing = bar(settings)
    if missing is not None:
        return [Finding("cloud", "warn", missing, "until then all work is done here")]
    told = "; ".join(f"{row.work}: {row.when}" for row in would_send(settings))
    return [Finding("cloud", "ok", f"cgpu with a login; would be sent: {told}", "see montage cloud status")]


def ffmpeg_findings() -> list[Finding]:
    """Which ffmpeg is used; scores and decoded frames are the same on all nodes only for the same build."""
    from montage_assets.media.errors import MediaError
    from montage_assets.media.ffmpeg import ffmpeg_program, ffmpeg_version

    try:
        program, version = ffmpeg_program(), ffmpeg_version()
    except MediaError as error:
        return [Finding("ffmpeg", "FAIL", str(error))]
    if "imageio_ffmpeg" in program:
        return [Finding("ffmpeg", "ok", f"{version}, the pinned build")]
    cure = "use the same build on every node, or none of your own"
    return [Finding("ffmpeg", "warn", f"{version} at {program}, as MONTAGE_FFMPEG says", cure)]


def render_device_findings(devices: Sequence[Path]) -> list[Finding]:
    """Whether this user may use the GPUs that are here: VAAPI, QSV and Vulkan open /dev/dri/renderD*."""
    findings = []
    for device in devices:
        if os.access(device, os.R_OK | os.W_OK):
            findings.append(Finding("devices", "ok", f"{device} can be opened"))
            continue
        group = device.stat().st_gid
        what = f"{device} belongs to group {group}, which this user is not in"
        cure = f"add the user to it; for pods put {group} into supplemental_groups (deploy/k3s/overlays/gpu)"
        findings.append(Finding("devices", "warn", what, cure))
    return findings


def encoder_findings(
    states: Sequence[EncoderState], hwaccel: str, is_present: Callable[[EncoderState], bool]
) -> list[Finding]:
    """Which video encoders work here, by test encodes; `hwaccel` is the kind that was asked for, `auto` for any.

    `is_present` says whether there is any sign of such hardware; encoders of what is not there are passed over.
    """
    on_cpu = [state.encoder.name for state in states if state.works and state.encoder.family == "cpu"]
    on_gpu = [state for state in states if state.works and state.encoder.family != "cpu"]
    if not on_cpu:
        return [Finding("encoders", "FAIL", "not even the CPU's encoders work", "see `montage make` on this machine")]
    working = [*(f"{state.encoder.name} on {state.device}" for state in on_gpu), *on_cpu]
    findings = [Finding("encoders", "ok", f"working: {', '.join(working)}")]
    broken: dict[tuple[str, str], list[str]] = {}
    for state in states:
        if not state.works and state.device and is_present(state):
            broken.setdefault((state.device, state.reason), []).append(state.encoder.name)
    for (device, reason), names in broken.items():
        findings.append(
            Finding("encoders", "warn", f"{', '.join(names)} on {device}: {reason}", "others are used instead")
        )
    if hwaccel not in ("auto", "none") and not on_gpu:
        what = f"FFMPEG_HWACCEL is {hwaccel}, but no encoder of a GPU works here"
        findings.append(Finding("encoders", "warn", what, "films are encoded on the CPU; check driver and device"))
    return findings


def _examine_encoders(settings: Settings) -> list[Finding]:
    from montage_assets.media.encoder_devices import seems_present
    from montage_assets.media.machine_encoders import MachineEncoders

    machine = MachineEncoders(settings.encoder_cache, settings.driver_variables)
    states = list(machine.states("standard"))
    return encoder_findings(states, settings.hwaccel, lambda state: seems_present(state.encoder.family, machine.host))


def _count(things: Sequence[object], name: str) -> str:
    return f"1 {name}" if len(things) == 1 else f"{len(things)} {name}s"


def _one_line(error: BaseException) -> str:
    """The innermost words of a chain of errors, which are the telling ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:240] or type(error).__name__
