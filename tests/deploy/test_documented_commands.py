"""The commands of the documents, as written there, by the real kubectl on the emulated cluster.

A command that no test takes and that NOT_FOR_A_CLUSTER does not name fails the last test.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.cluster.clusters import plan
from tests.cluster.emulator import KubernetesEmulator, PodRecord
from tests.cluster.emulator.objects import Object
from tests.cluster.emulator.pods import REPOSITORY, base_environment
from tests.cluster.kubernetes import api_server
from tests.deploy.manifests import DEPLOY, K3S, built, the
from tests.media.synth_footage import write_clip
from tests.postgres_server import PostgresServer

DOCUMENTS = (REPOSITORY / "docs/DISTRIBUTED_PROCESSING.md", DEPLOY / "README.md")
NAMESPACE = "montage-ai"
SHOTS = (37, 41, 29, 53, 40)

NOT_FOR_A_CLUSTER: Mapping[str, str] = {
    "python3 -m venv": "installs the package on a PC",
    "export ": "sets a shell's variables",
    "printf ": "writes a PC's dagster.yaml",
    "dagster-webserver": "a service of Dagster",
    "dagster-daemon": "a service of Dagster",
    "dagster instance concurrency": "a command of Dagster's; tests/cluster is about the pools",
    "WORKER_TYPE=": "a worker on a queue: tests/queues",
    "montage doctor": "on a PC: test_doctor",
    "montage launch": "a client of the coordinator: tests/queues",
    "docker ": "needs Docker: deploy/build-image and deploy/check-image",
    "uv pip compile": "asks a package index",
}
"""How commands begin that are run elsewhere or not at all, and why."""

_BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(r"(kubectl|dagster|docker|uv) \S+ \S")


def _commands_in(text: str) -> Iterator[str]:
    for block in _BLOCK.findall(text):
        for line in filter(str.strip, block.splitlines()):
            yield re.sub(r"\s+#.*|\s*&$", "", line)
    spans = (" ".join(span.split()) for span in _SPAN.findall(_BLOCK.sub("", text)))
    yield from (span for span in spans if _COMMAND.match(span))


COMMANDS = tuple(dict.fromkeys(command for file in DOCUMENTS for command in _commands_in(file.read_text())))
_taken: set[str] = set()


def documented(start: str) -> str:
    """The one command of the documents that begins so, with what follows; a test takes it."""
    found = [command for command in COMMANDS if command.startswith(start)]
    assert len(found) == 1, f"the documents have {len(found)} commands that begin with {start!r}"
    _taken.update(found)
    return found[0]


APPLY = documented("kubectl apply -k")
MAKE_SECRET = documented("kubectl create secret")
ROLLED_OUT = documented("kubectl rollout status")
RESTART = documented("kubectl rollout restart")
NODES = documented(f"kubectl exec -n {NAMESPACE} deploy/montage-ai-web -c webserver -- montage nodes")
DOCTOR = documented(f"kubectl exec -n {NAMESPACE} deploy/montage-ai-web -c webserver -- montage doctor")
FORWARD_PORT = documented("kubectl port-forward")
SET_ENV = documented("kubectl set env")
SET_RESOURCES = documented("kubectl set resources")
SCALE = documented("kubectl scale")
DESCRIBE = documented("kubectl describe")
CREATE_JOB = documented("kubectl create -f")
WAIT_FOR_JOB = documented("kubectl wait")
AGGREGATE = documented("python -m montage_assets.cluster.distributed_scene_detection --aggregate")


class Cluster:
    """An emulated cluster and a shell whose kubectl talks to it."""

    def __init__(self, emulator: KubernetesEmulator, folder: Path, data: Path) -> None:
        self.emulator, self.data = emulator, data
        self.environment = {
            **base_environment(),
            "KUBECONFIG": str(emulator.kubeconfig),
            "KUBECACHEDIR": str(folder / "kubectl"),
            "MONTAGE_DATA": str(data),
        }

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        """The command in a shell, in the repository's root."""
        return subprocess.run(
            ["/bin/bash", "-c", command],
            env=self.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def run(self, command: str) -> str:
        """What the command prints. It must succeed and warn of nothing."""
        done = self.attempt(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Warning" not in done.stderr, done.stderr
        return done.stdout

    def deployment(self, name: str) -> Object:
        return self.emulator.get("deployments", NAMESPACE, name)

    def pods(self, component: str) -> Sequence[PodRecord]:
        """Those that are there."""
        pods = [pod for pod in self.emulator.pods if not pod.deleted]
        return [pod for pod in pods if pod.labels.get("app.kubernetes.io/component") == component]

    def roll_out(self, name: str) -> None:
        self.run(ROLLED_OUT.replace("montage-ai-web", name))


@contextmanager
def empty_cluster(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """The nodes of deploy/cluster.yaml, nothing on them, and a folder in place of the NFS export."""
    data = folder / "data"
    (data / "input").mkdir(parents=True)
    with KubernetesEmulator(
        plan(), folder, namespace="default", environment=environment,
        claims={"montage-data": data}, entrypoint=("/bin/sh", str(DEPLOY / "entrypoint")),
    ) as emulator:  # fmt: skip
        yield Cluster(emulator, folder, data)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Cluster]:
    with empty_cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Cluster]:
    """Deployed by the documented commands; a real Postgres stands for the StatefulSet's."""
    account = "documented"
    here = {
        "DAGSTER_PG_HOST": "127.0.0.1",
        "DAGSTER_PG_PORT": str(postgres.port),
        "DAGSTER_PG_USER": account,
        "DAGSTER_PG_DB": account,
    }
    with empty_cluster(tmp_path_factory.mktemp("cluster"), here) as cluster:
        cluster.run(APPLY)
        _reach_kubernetes_from_outside(cluster.emulator)
        cluster.run(MAKE_SECRET)
        secret = cluster.emulator.get("secrets", NAMESPACE, "montage-postgres")["data"]["postgresql-password"]
        postgres.query(f"CREATE ROLE {account} LOGIN PASSWORD '{base64.b64decode(secret).decode()}'")
        postgres.query(f"CREATE DATABASE {account} OWNER {account}")
        cluster.run(ROLLED_OUT)
        yield cluster
    postgres.query(f"DROP DATABASE {account} WITH (FORCE)")
    postgres.query(f"DROP ROLE {account}")


def _reach_kubernetes_from_outside(emulator: KubernetesEmulator) -> None:
    """A kubeconfig stands for what a pod finds of its service account, which only files below /var can say."""
    inside = "config:\n    service_account"
    outside = f"load_incluster_config: false\n    kubeconfig_file: {emulator.kubeconfig}\n    service_account"
    instance = emulator.get("configmaps", NAMESPACE, "montage-dagster")["data"]["dagster.yaml"]
    assert inside in instance
    changed = instance.replace(inside, f"config:\n    {outside}")
    emulator.patch("configmaps", NAMESPACE, "montage-dagster", {"data": {"dagster.yaml": changed}})


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Deployed with queue workers, as the documents' commands about these want it."""
    with empty_cluster(tmp_path_factory.mktemp("workers")) as cluster:
        cluster.run(APPLY.replace("overlays/gpu", "distributed"))
        cluster.run(MAKE_SECRET)
        cluster.roll_out("montage-ai-worker")
        yield cluster


def test_pods_wait_for_the_secret_and_applying_again_changes_nothing(empty: Cluster) -> None:
    first = empty.run(APPLY).splitlines()
    assert first
    assert all(line.endswith(" created") for line in first)
    empty.emulator.wait_until(lambda _: len(empty.pods("web")) == 1)
    again = empty.run(APPLY).splitlines()
    assert len(again) == len(first)
    assert all(line.endswith(" unchanged") for line in again), again
    waiting = empty.attempt(f"{ROLLED_OUT} --timeout=1s")
    assert waiting.returncode == 1
    assert "0 of 1 updated replicas are available" in waiting.stdout
    assert "is not running" in empty.attempt(NODES).stderr
    assert "secret/montage-postgres created" in empty.run(MAKE_SECRET)
    assert "successfully rolled out" in empty.run(ROLLED_OUT)
    (web,) = empty.pods("web")
    assert (web.phase, web.node is not None) == ("Running", True)


def test_a_changed_setting_is_applied_alone_and_reaches_new_pods(empty: Cluster, tmp_path: Path) -> None:
    copied = tmp_path / "k3s"
    shutil.copytree(K3S, copied)
    apply = APPLY.replace("deploy/k3s", str(copied))
    empty.run(apply)
    empty.run(MAKE_SECRET)
    empty.run(ROLLED_OUT)
    settings = copied / "config/settings.env"
    settings.write_text(settings.read_text() + "MONTAGE_WORKERS=3\n")
    changed = [line for line in empty.run(apply).splitlines() if not line.endswith(" unchanged")]
    assert changed == ["configmap/montage-settings configured"]
    before = {pod.name for pod in empty.pods("web")}
    restarted = empty.run(RESTART).splitlines()
    assert {line.removesuffix(" restarted") for line in restarted} == {
        "deployment.apps/montage-ai-code",
        "deployment.apps/montage-ai-web",
    }
    assert "successfully rolled out" in empty.run(ROLLED_OUT)
    assert before.isdisjoint(pod.name for pod in empty.pods("web"))
    inside = NODES.replace("montage nodes", "sh -c 'echo $MONTAGE_WORKERS'")
    assert empty.run(inside) == "3\n"


def test_applying_again_takes_back_what_was_set_by_hand(workers: Cluster) -> None:
    """As deploy/README.md warns."""
    apply = APPLY.replace("overlays/gpu", "distributed")
    workers.run(SET_ENV)
    workers.run(SCALE)
    assert {f"deployment.apps/montage-ai-{name} configured" for name in ("web", "worker")} <= set(
        workers.run(apply).splitlines()
    )
    wanted = {item["metadata"]["name"]: item["spec"] for item in built("distributed") if item["kind"] == "Deployment"}
    for name in ("montage-ai-web", "montage-ai-worker"):
        assert workers.deployment(name)["spec"].items() >= wanted[name].items()


def test_what_changes_in_a_manifest_changes_so_in_the_cluster(empty: Cluster, tmp_path: Path) -> None:
    """The merge of lists: entries that go, that come, that change their place and their kind."""
    copied = tmp_path / "k3s"
    shutil.copytree(K3S, copied)
    apply = APPLY.replace("deploy/k3s", str(copied))
    empty.run(apply)
    service, web = yaml.safe_load_all((copied / "base/web.yaml").read_text())
    web["spec"]["strategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
    pod = web["spec"]["template"]["spec"]
    pod["containers"].reverse()
    pod["containers"].append({**pod["containers"][0], "name": "new"})
    pod["containers"][0]["env"].pop(1)
    pod["containers"][1]["volumeMounts"].pop(1)
    pod["volumes"][1] = {"name": "tmp", "configMap": {"name": "montage-cluster"}}
    service["spec"]["ports"].append({"name": "more", "port": 8081})
    (copied / "base/web.yaml").write_text(yaml.safe_dump_all([service, web]))
    changed = [line for line in empty.run(apply).splitlines() if not line.endswith(" unchanged")]
    assert changed == ["service/montage-ai-web configured", "deployment.apps/montage-ai-web configured"]
    wanted = built("overlays/gpu", copied)
    assert empty.deployment("montage-ai-web")["spec"] == the(wanted, "Deployment", "montage-ai-web")["spec"]
    ports = empty.emulator.get("services", NAMESPACE, "montage-ai-web")["spec"]["ports"]
    assert ports == the(wanted, "Service", "montage-ai-web")["spec"]["ports"]


def test_a_misspelt_field_is_refused_by_the_server(empty: Cluster, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((K3S / "base/web.yaml").read_text().replace("imagePullPolicy", "imagePullPolice"))
    refused = empty.attempt(f"kubectl apply -f {wrong} -n default")
    assert refused.returncode == 1
    assert "imagePullPolice" in refused.stderr
    assert empty.emulator.take_faults()


def test_the_matrix_is_printed_in_the_pod(cluster: Cluster) -> None:
    printed = cluster.run(NODES)
    assert all(node.name in printed for node in plan())
    assert "mode k8s" in printed


def test_the_doctor_finds_the_deployment_well(cluster: Cluster) -> None:
    findings = {line.split()[1]: line.split()[0] for line in cluster.run(DOCTOR).splitlines() if line.strip()}
    assert {"storage", "database", "nodes", "rights", "image", "ffmpeg", "encoders"} <= findings.keys()
    assert "FAIL" not in findings.values()
    assert findings["rights"] == findings["gpus"] == "ok"


def test_the_ui_is_reached_through_the_port_forward(cluster: Cluster) -> None:
    local = _free_port()
    forward = FORWARD_PORT.replace(" 8080", f" {local}:8080")  # this machine's own 8080 may be taken
    page = bytes(range(256)) * 8000
    with api_server(page) as url:
        cluster.emulator.forwarded_ports[8080] = int(url.rpartition(":")[2])
        kubectl = subprocess.Popen(
            ["/bin/bash", "-c", f"exec {forward}"],
            env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            assert kubectl.stdout is not None
            assert kubectl.stdout.readline() == f"Forwarding from 127.0.0.1:{local} -> 8080\n"
            for _ in range(2):
                with urllib.request.urlopen(f"http://127.0.0.1:{local}/api/v1/nodes", timeout=30) as answer:
                    assert answer.read() == page
        finally:
            kubectl.terminate()
            kubectl.communicate()


def test_settings_of_later_runs_reach_both_containers(cluster: Cluster) -> None:
    assert "env updated" in cluster.run(SET_ENV)
    cluster.roll_out("montage-ai-web")
    wanted = dict(word.split("=") for word in SET_ENV.split() if "=" in word)
    containers = cluster.deployment("montage-ai-web")["spec"]["template"]["spec"]["containers"]
    assert [container["name"] for container in containers] == ["webserver", "daemon"]
    for container in containers:
        values = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert wanted.items() <= values.items()
        assert "DAGSTER_PG_PASSWORD" in values, "the others stay"
    inside = NODES.replace("webserver -- montage nodes", "daemon -- env")
    assert {f"{name}={value}" for name, value in wanted.items()} <= set(cluster.run(inside).splitlines())


def test_more_workers_are_spread_over_nodes(workers: Cluster) -> None:
    assert "scaled" in workers.run(SCALE)
    workers.roll_out("montage-ai-worker")
    running = [pod for pod in workers.pods("worker") if pod.labels["app"] == "montage-ai-worker"]
    assert [pod.phase for pod in running] == ["Running"] * 4
    assert len({pod.node for pod in running}) == 4


def test_workers_get_more_memory(workers: Cluster) -> None:
    assert "resource requirements updated" in workers.run(SET_RESOURCES)
    workers.roll_out("montage-ai-worker")
    running = [pod for pod in workers.pods("worker") if pod.labels["app"] == "montage-ai-worker"]
    assert {json.dumps(pod.spec["containers"][0]["resources"], sort_keys=True) for pod in running} == {
        '{"limits": {"memory": "16Gi"}, "requests": {"cpu": "1", "memory": "8Gi"}}'
    }


def test_a_pod_that_nobody_takes_says_what_it_lacks(workers: Cluster) -> None:
    name = "deploy/montage-ai-encoder-amd"
    workers.run(f"kubectl set resources -n {NAMESPACE} {name} --requests=memory=900Gi --limits=memory=900Gi")
    workers.emulator.wait_until(lambda emulator: any(why == "FailedScheduling" for _, why, _ in emulator.events))
    (pending,) = (pod.name for pod in workers.pods("worker") if pod.phase == "Pending")
    described = workers.run(DESCRIBE.replace("POD", pending))
    assert re.search(r"Warning +FailedScheduling .*Insufficient memory", described)
    assert "900Gi" in described


def test_a_video_is_scored_by_four_pods_on_four_hosts(cluster: Cluster) -> None:
    cuts = write_clip(cluster.data / "input/video.mp4", SHOTS)
    assert "job.batch/scene-detect-video created" in cluster.run(CREATE_JOB)
    assert "condition met" in cluster.run(WAIT_FOR_JOB)
    job = cluster.emulator.job("scene-detect-video")
    assert sorted(pod.index for pod in job.pods if pod.index is not None) == [0, 1, 2, 3]
    assert len({pod.node for pod in job.pods}) == 4
    (video,) = json.loads(cluster.run(AGGREGATE))["videos"].values()
    assert video["cuts"] == cuts


def test_another_video_is_scored_as_the_jobs_file_says(cluster: Cluster) -> None:
    cuts = write_clip(cluster.data / "input/long.mp4", SHOTS[::-1], seed=2)
    comment = (K3S / "distributed/scene-detection-job.yaml").read_text().partition("apiVersion")[0]
    script = "\n".join(re.findall(r"^#   (.*)$", comment, re.MULTILINE))
    printed = cluster.run(f"cd {K3S}/distributed; set -e; {script.replace('holiday/long', 'long')}")
    (video,) = json.loads(printed[printed.index("{") :])["videos"].values()
    assert video["cuts"] == cuts


def test_every_command_of_the_documents_is_run_or_named_with_a_reason() -> None:
    unknown = [
        command for command in COMMANDS if command not in _taken and not command.startswith(tuple(NOT_FOR_A_CLUSTER))
    ]
    assert not unknown, "write a test, or say in NOT_FOR_A_CLUSTER why there is none"
    unused = [start for start in NOT_FOR_A_CLUSTER if not any(command.startswith(start) for command in COMMANDS)]
    assert not unused, "these are in the documents no more"
    assert not [start for start in NOT_FOR_A_CLUSTER if start.startswith("kubectl")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
