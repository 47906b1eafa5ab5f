"""The cluster's Dagster instance: on a real Postgres, and what it sends to Kubernetes for runs and steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
from dagster._core.launcher import LaunchRunContext
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

from montage_assets.cluster.placement import Placer, Step, k8s_config
from montage_assets.cluster.tasks import TaskType
from tests.assets.small_montage import write_montage
from tests.cluster.clusters import AMD, JETSON, Nodes, plan
from tests.cluster.emulator import KubernetesEmulator
from tests.deploy.manifests import (
    DEPLOY,
    Manifest,
    built,
    container_context_of,
    environment_of,
    settings_of,
    the,
)
from tests.postgres_server import PostgresServer


@pytest.fixture
def instance(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The instance of deploy/dagster.yaml in the services' environment, as far as this machine can be a cluster."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text((DEPLOY / "dagster.yaml").read_text())
    settings = settings_of(built("base"))
    here = {
        **settings,
        **postgres.environment(),
        "DAGSTER_HOME": str(home),
        "MONTAGE_DATA": str(tmp_path / "data"),
        "MONTAGE_STEP_LOGS": str(tmp_path / "data/dagster/logs"),
        "MONTAGE_CLUSTER_CONFIG": str(DEPLOY / "cluster.yaml"),
        "FFMPEG_HWACCEL": "amf",
        "OUTPUT_CODEC": "h264_amf",
    }
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    # A pod has a token of its account; the launcher only wants to know that it can be read.
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda **_: None)
    with dg.DagsterInstance.get() as found:
        yield found


def test_the_cluster_as_deployed_makes_a_montage_in_pods(
    instance: dg.DagsterInstance, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launcher, settings, secret and code location as the manifests have them; paths and addresses as they are here."""
    objects = built("base")
    data = tmp_path / "data"
    write_montage(data / "input/small", spec="resolution: 192x108\nfps: 25\nquality: preview\nduration: 4\n")
    home = tmp_path / "home"
    here = {
        name: value for name, value in postgres.environment().items() if name in ("DAGSTER_PG_HOST", "DAGSTER_PG_PORT")
    }
    paths = {
        "MONTAGE_DATA": str(data),
        "DAGSTER_HOME": str(home),
        "MONTAGE_CLUSTER_CONFIG": str(DEPLOY / "cluster.yaml"),
    }
    few = {"MONTAGE_WORKERS": "1"}
    soon = {"DAGSTER_STEP_DELEGATING_EXECUTOR_SLEEP_SECONDS": "0.2", "MONTAGE_STEP_LOGS": str(tmp_path / "logs")}
    priorities = {"montage-render": the(objects, "PriorityClass", "montage-render")["value"]}
    with KubernetesEmulator(
        plan(), tmp_path / "cluster", environment={**here, **paths, **few, **soon}, priority_classes=priorities
    ) as cluster:
        for name in ("montage-settings", "montage-dagster", "montage-cluster"):
            cluster.put("configmaps", the(objects, "ConfigMap", name))
        password = {"stringData": {"postgresql-password": postgres.password}}
        cluster.put(
            "secrets", {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "montage-postgres"}, **password}
        )
        config = (DEPLOY / "dagster.yaml").read_text()
        outside = (
            f"config:\n    load_incluster_config: false\n    kubeconfig_file: {cluster.kubeconfig}\n    service_account"
        )
        (home / "dagster.yaml").write_text(config.replace("config:\n    service_account", outside))
        monkeypatch.setenv("FFMPEG_HWACCEL", "auto")
        monkeypatch.setenv("OUTPUT_CODEC", "")
        with dg.DagsterInstance.get() as outer:
            outer.add_dynamic_partitions("montage", ["small"])
            run = _run_of_the_code_location(outer, objects, {"dagster/partition": "small"})
            outer.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
            cluster.wait_until(lambda _: _status(outer, run.run_id) in ("SUCCESS", "FAILURE"), timeout_s=900)
            assert _status(outer, run.run_id) == "SUCCESS", [entry.user_message for entry in outer.all_logs(run.run_id)]
        assert (data / "output/small/montage.mp4").is_file()
        run_pod = cluster.pods[0]
        assert run_pod.node not in (AMD, JETSON), "the run's own pod keeps off GPU nodes"
        assert {pod.node for pod in cluster.pods} & {AMD, JETSON}, "what encodes goes to GPU nodes"
    ((status,),) = postgres.query(f"SELECT status FROM runs WHERE run_id = '{run.run_id}'")  # noqa: S608
    assert status == "SUCCESS"
    keys = {row[0] for row in postgres.query("SELECT DISTINCT asset_key FROM event_logs WHERE asset_key IS NOT NULL")}
    assert {'["footage"]', '["montage"]'} <= keys
    assert not list(tmp_path.rglob("*.db")), "nothing is kept in SQLite"


def _status(instance: dg.DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status.value


def test_the_instance_watches_its_runs_and_takes_up_those_that_lost_their_pod(instance: dg.DagsterInstance) -> None:
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_max_resume_run_attempts == 3
    assert isinstance(instance.run_launcher, K8sRunLauncher)


@pytest.mark.parametrize("name", ["base", "overlays/gpu", "overlays/s3", "distributed"])
def test_the_pod_of_a_run_has_what_runs_need(instance: dg.DagsterInstance, name: str) -> None:
    objects = built(name)
    job = _job_of_a_run(instance, objects)
    pod = _checked_pod(job, objects)
    (container,) = pod["containers"]
    assert pod["serviceAccountName"] == "montage-run"
    assert container["image"] == "montage-ai:latest"
    variables = environment_of(container)
    assert (variables["FFMPEG_HWACCEL"], variables["OUTPUT_CODEC"]) == ("amf", "h264_amf")
    (term,) = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert {e["key"] for e in term["preference"]["matchExpressions"]} >= {"nvidia.com/gpu.present", "amd.com/gpu"}
    assert {e["operator"] for e in term["preference"]["matchExpressions"]} == {"DoesNotExist"}


@pytest.mark.parametrize("name", ["base", "overlays/gpu", "overlays/s3"])
def test_the_pod_of_a_step_has_the_same_but_goes_where_it_is_placed(instance: dg.DagsterInstance, name: str) -> None:
    objects = built(name)
    step = Step("rendered_segments.render[segment_1]", TaskType.FINAL_RENDER, film_size=(3840, 2160))
    placement = Placer().place(step, Nodes(plan()))
    config = k8s_config(placement, "a-run", settings_of(objects)["MONTAGE_PRIORITY_CLASS"])
    job = _job_of_a_step(instance, objects, config)
    pod = _checked_pod(job, objects)
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["amd.com/gpu"] == "1"
    assert pod["priorityClassName"] == the(objects, "PriorityClass", "montage-render")["metadata"]["name"]
    affinity = json.dumps(pod["affinity"])
    assert "codeai-fluxibriserver" in affinity
    assert "DoesNotExist" not in affinity, "the run's affinity must not reach steps"
    variables = environment_of(container)
    assert (variables["FFMPEG_HWACCEL"], variables["OUTPUT_CODEC"]) == ("amf", "h264_amf")
    if name == "overlays/gpu":
        assert 44 in pod["securityContext"]["supplementalGroups"]


def _run_of_the_code_location(
    instance: dg.DagsterInstance, objects: list[Manifest], tags: dict[str, str] | None = None
) -> dg.DagsterRun:
    """A run as the code location of these manifests hands it to the launcher."""
    from montage_assets.local_run import montage_job

    job = dg.reconstructable(montage_job)
    origin = job.get_python_origin()
    repository = origin.repository_origin._replace(container_context=container_context_of(objects))
    code_origin = origin._replace(repository_origin=repository)
    return instance.create_run_for_job(job.get_definition(), job_code_origin=code_origin, tags=tags)


def _job_of_a_run(instance: dg.DagsterInstance, objects: list[Manifest]) -> Manifest:
    """What the launcher sends to Kubernetes for a run of the code location."""
    sent: list[Any] = []
    launcher = instance.run_launcher
    assert isinstance(launcher, K8sRunLauncher)
    launcher._api_client.create_namespaced_job_with_retries = (  # type: ignore[method-assign]
        lambda body, namespace: sent.append((body, namespace))
    )
    run = _run_of_the_code_location(instance, objects)
    launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    ((body, namespace),) = sent
    assert namespace == "montage-ai"
    return _as_sent(body)


def _job_of_a_step(instance: dg.DagsterInstance, objects: list[Manifest], config: dict[str, Any]) -> Manifest:
    """What Dagster's step handler makes of the launcher, the code location and the step's tag, in its order."""
    launcher = instance.run_launcher
    assert isinstance(launcher, K8sRunLauncher)
    run = _run_of_the_code_location(instance, objects)
    context = K8sContainerContext.create_for_run(run, launcher, include_run_tags=False)
    context = context.merge(K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(config)))
    body = construct_dagster_k8s_job(
        context.get_k8s_job_config(None, launcher),
        ["dagster", "api", "execute_step"],
        "dagster-step-1",
        component="step_worker",
        user_defined_k8s_config=context.run_k8s_config,
    )
    return _as_sent(body)


def _as_sent(body: Any) -> Manifest:
    from kubernetes import client

    sent: Manifest = client.ApiClient().sanitize_for_serialization(body)
    return sent


def _checked_pod(job: Manifest, objects: list[Manifest]) -> Manifest:
    """The pod of a job, after what holds for runs and steps alike."""
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    pod: Manifest = job["spec"]["template"]["spec"]
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {"/tmp", "/opt/dagster", "/etc/montage", "/data"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.values() == set(volumes) or set(mounts.values()) == set(volumes)
    there = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for volume in volumes.values():
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in there
        if "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
    assert ("ServiceAccount", pod["serviceAccountName"]) in there
    assert {"configMapRef": {"name": "montage-settings"}} in container["envFrom"]
    node = next(entry for entry in container["env"] if entry["name"] == "MONTAGE_NODE")
    assert node["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    password = next(entry for entry in container["env"] if entry["name"] == "DAGSTER_PG_PASSWORD")
    assert password["valueFrom"]["secretKeyRef"]["name"] == "montage-postgres"
    settings = settings_of(objects)
    assert {"MONTAGE_DATA", "MONTAGE_EXECUTOR", "MONTAGE_IMAGE", "MONTAGE_NAMESPACE"} <= settings.keys()
    assert {"MONTAGE_CLUSTER_CONFIG", "MONTAGE_PRIORITY_CLASS"} <= settings.keys()
    return pod
