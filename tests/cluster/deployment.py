"""A Dagster deployment on the emulated cluster: runs are launched by the real K8sRunLauncher, in pods."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.launcher import LaunchRunContext

from montage_assets.cluster.node import NodeCapability
from montage_assets.local_run import montage_job
from tests.cluster.clusters import SHIPPED
from tests.cluster.emulator import KubernetesEmulator, PodRecord

_INSTANCE = """
telemetry: {{enabled: false}}
run_launcher:
  module: dagster_k8s
  class: K8sRunLauncher
  config:
    service_account_name: montage
    instance_config_map: montage-instance
    job_image: montage-ai:latest
    job_namespace: {namespace}
    load_incluster_config: false
    kubeconfig_file: {kubeconfig}
    dagster_home: {home}
run_monitoring:
  enabled: true
  poll_interval_seconds: 5
  start_timeout_seconds: 45
  max_resume_run_attempts: 5
run_retries:
  enabled: true
  max_retries: 2
  retry_on_asset_or_op_failure: false
"""
_ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class Deployment:
    """An instance whose runs are pods of `cluster`."""

    def __init__(self, cluster: KubernetesEmulator, instance: dg.DagsterInstance, data: Path) -> None:
        self.cluster, self.instance, self.data = cluster, instance, data

    def launch(self, montage: str) -> str:
        """Launch the job for one montage as the daemon does. Returns the run's id."""
        job = dg.reconstructable(montage_job)
        self.instance.add_dynamic_partitions("montage", [montage])
        run = self.instance.create_run_for_job(
            job.get_definition(),
            tags={"dagster/partition": montage},
            job_code_origin=job.get_python_origin(),
        )
        self.instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
        return run.run_id

    def wait(self, run_id: str, timeout_s: float = 300, taken_up_again: bool = False) -> dg.DagsterRun:
        """The run, once it has ended, or its pod, unless a daemon takes the run up again."""
        self.cluster.wait_until(
            lambda _: self._status(run_id) in _ENDED or (not taken_up_again and self._run_pod_is_gone(run_id)),
            timeout_s,
        )
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def make(self, montage: str) -> dg.DagsterRun:
        """Launch and wait."""
        return self.wait(self.launch(montage))

    def pods_of(self, step: str) -> list[PodRecord]:
        """The pods of an op's steps, in the order of their creation; mapped ones included."""
        return [pod for pod in self.cluster.pods if self.step_of(pod).partition("[")[0] == step]

    def step_of(self, pod: PodRecord) -> str:
        """The key of the step that a pod carries out, empty for the run's own pod."""
        environment = {entry["name"]: entry.get("value", "") for entry in pod.spec["containers"][0].get("env", [])}
        return str(environment.get("DAGSTER_RUN_STEP_KEY", ""))

    def messages(self, run_id: str) -> list[str]:
        """All that the run's log says."""
        return [entry.user_message for entry in self.instance.all_logs(run_id)]

    def node_of(self, step: str) -> str | None:
        """The node of the only pod of a step."""
        (pod,) = self.pods_of(step)
        return pod.node

    def _status(self, run_id: str) -> str:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value

    def _run_pod_is_gone(self, run_id: str) -> bool:
        return any(job.name == f"dagster-run-{run_id}" and job.outcome for job in self.cluster.jobs)


@contextmanager
def deployed(
    nodes: Sequence[NodeCapability], data: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Deployment]:
    """A cluster of such nodes with a Dagster instance in front of it, on the data root `data`."""
    home = folder / "cluster-home"
    home.mkdir()
    pods_see = {
        "MONTAGE_DATA": str(data),
        "MONTAGE_EXECUTOR": "k8s",
        "MONTAGE_CLUSTER_CONFIG": str(SHIPPED),
        "DAGSTER_HOME": str(home),
        **(environment or {}),
    }
    with KubernetesEmulator(nodes, folder / "cluster", environment=pods_see) as cluster:
        settings = _INSTANCE.format(
            namespace=cluster.namespace, kubeconfig=json.dumps(str(cluster.kubeconfig)), home=home
        )
        (home / "dagster.yaml").write_text(settings)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield Deployment(cluster, instance, data)
