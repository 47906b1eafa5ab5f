"""JobSubmitter over the real Kubernetes client, against the emulated cluster of the plan's nodes; and without any."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import yaml

from montage_assets.cluster import ClusterError, JobFailedError, JobSubmitter, JobTimeoutError, Resources
from montage_assets.cluster.job_manifests import SceneJob, Where, job_manifest, scene_detection_manifest
from montage_assets.settings import Settings
from tests.cluster.clusters import AMD, ESPRIMO, JETSON, SHIPPED, THINKPAD, VAAPI, WORKER, plan
from tests.cluster.emulator import KubernetesEmulator
from tests.cluster.emulator.schemas import check
from tests.media.synth_footage import X264, write_clip

SHOTS = (40, 55, 35, 60, 30, 40)
CUTS = [40, 95, 130, 190, 220]
FOUR_NODES = {THINKPAD, ESPRIMO, VAAPI, WORKER}


@pytest.fixture
def cluster(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesEmulator]:
    """The plan's nodes, described by its cluster.yaml."""
    environment = {"MONTAGE_DATA": str(data)}
    with KubernetesEmulator(plan(), tmp_path, environment=environment) as emulator:
        monkeypatch.setenv("KUBECONFIG", str(emulator.kubeconfig))
        monkeypatch.setenv("MONTAGE_CLUSTER_MODE", "k8s")
        monkeypatch.setenv("MONTAGE_CLUSTER_CONFIG", str(SHIPPED))
        monkeypatch.setenv("MONTAGE_IMAGE", "registry.example:5000/montage-ai:1")
        yield emulator


@pytest.fixture
def video(data: Path) -> str:
    path = data / "input" / "long $(HOME), 1.mp4"
    write_clip(path, SHOTS, encoder=X264)
    return str(path)


def succeed(submitter: JobSubmitter, name: str) -> Any:
    return submitter.wait_for_job(name, timeout=120)


def cuts_of(scenes: list[tuple[float, float]]) -> list[int]:
    return [round(start * 25) for start, _ in scenes[1:]]


def test_four_shards_of_one_video_run_on_the_plans_four_nodes_and_find_its_cuts(
    cluster: KubernetesEmulator, video: str
) -> None:
    submitter = JobSubmitter()
    job = submitter.submit_scene_detection([video], parallelism=4)
    assert (job.where, job.name.startswith("scene-detect-")) == ("kubernetes", True)
    status = succeed(submitter, job.name)
    assert (status.state, status.succeeded, status.failed) == ("succeeded", 4, 0)
    assert {pod.node for pod in cluster.pods} == FOUR_NODES
    assert sorted(pod.index for pod in status.pods if pod.index is not None) == [0, 1, 2, 3]
    scenes = submitter.get_scene_results(job.name)
    assert {name: cuts_of(found) for name, found in scenes.items()} == {video: CUTS}
    assert len(submitter.get_pod_logs(job.name).splitlines()) > 4


def test_a_shard_killed_midway_is_done_again_and_the_cuts_are_the_same(cluster: KubernetesEmulator, video: str) -> None:
    submitter = JobSubmitter()
    job = submitter.submit_scene_detection([video], parallelism=4)
    cluster.wait_until(lambda emulator: any(pod.index == 2 and pod.phase == "Running" for pod in emulator.pods))
    assert len(cluster.kill_pod(lambda pod: pod.index == 2)) == 1
    status = succeed(submitter, job.name)
    assert (status.succeeded, status.failed) == (4, 1)
    assert cuts_of(submitter.get_scene_results(job.name)[video]) == CUTS


def test_a_lost_node_does_not_count_against_the_job(cluster: KubernetesEmulator, video: str) -> None:
    submitter = JobSubmitter()
    job = submitter.submit_scene_detection([video], parallelism=2)
    cluster.wait_until(lambda emulator: any(pod.phase == "Running" for pod in emulator.pods))
    lost = next(pod for pod in cluster.pods if pod.phase == "Running")
    assert lost.node is not None
    cluster.lose_node(lost.node)
    status = succeed(submitter, job.name)
    assert (status.succeeded, status.failed) == (2, 0)
    assert cuts_of(submitter.get_scene_results(job.name)[video]) == CUTS


def test_several_videos_are_shared_by_file_and_named_as_they_were_submitted(
    cluster: KubernetesEmulator, data: Path
) -> None:
    videos = []
    for seed, name in enumerate(("a/v.mp4", "b/v.mp4", "c.mp4"), start=1):
        path = data / "input" / name
        path.parent.mkdir(exist_ok=True)
        write_clip(path, (30 + seed, 40), seed=seed, encoder=X264)
        videos.append(str(path))
    submitter = JobSubmitter()
    job = submitter.submit_scene_detection(videos, parallelism=2)
    succeed(submitter, job.name)
    assert len(cluster.pods) == 2
    scenes = submitter.get_scene_results(job.name)
    assert [cuts_of(scenes[video]) for video in videos] == [[31], [32], [33]]


def test_results_are_refused_while_a_shard_is_missing(cluster: KubernetesEmulator, video: str, data: Path) -> None:
    submitter = JobSubmitter()
    job = submitter.submit_scene_detection([video], parallelism=3)
    succeed(submitter, job.name)
    (data / "work" / "jobs" / job.name / "shard-1-of-3.json").unlink()
    with pytest.raises(ClusterError, match=f"job {job.name} lacks shard 1 of 3"):
        submitter.get_scene_results(job.name)


def test_a_job_that_runs_is_not_started_twice_and_one_that_has_ended_is_done_anew(
    cluster: KubernetesEmulator, video: str
) -> None:
    submitter = JobSubmitter()
    cluster.pause()
    first = submitter.submit_scene_detection([video], parallelism=2)
    assert submitter.submit_scene_detection([video], parallelism=2) == first
    assert len(cluster.jobs) == 1
    cluster.resume()
    succeed(submitter, first.name)
    submitter.submit_scene_detection([video], parallelism=2)
    succeed(submitter, first.name)
    assert [job.deleted for job in cluster.jobs] == [True, False]


def test_the_manifest_that_is_shipped_does_the_same_by_hand(cluster: KubernetesEmulator, video: str) -> None:
    name = "scene-detect-by-hand"
    text = (SHIPPED.parent / "k3s" / "distributed" / "scene-detection-job.yaml").read_text()
    manifest = yaml.safe_load(text.replace("scene-detect-video", name))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    place = container["args"].index("/data/input/video.mp4")
    container["args"][place] = video.replace("$", "$$")
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "montage-settings"}, "data": {}}
    cluster.put("configmaps", settings)
    cluster.put("jobs", manifest)
    submitter = JobSubmitter()
    assert succeed(submitter, name).succeeded == 4
    assert len({pod.node for pod in cluster.pods}) == 4
    assert cuts_of(submitter.get_scene_results(name)[video]) == CUTS


# How waiting ends.


def test_a_failed_job_is_told_from_one_that_takes_too_long_with_the_pods_reason(cluster: KubernetesEmulator) -> None:
    submitter = JobSubmitter()
    submitter.submit_generic_job("broken", ["sh", "-c", "echo no such codec >&2; exit 2"])
    with pytest.raises(
        JobFailedError, match=r"failed \(PodFailurePolicy\): pod broken-\w+ on .*: Error, exit code 2: "
    ):
        submitter.wait_for_job("broken", timeout=60)
    assert "no such codec" in submitter.get_pod_logs("broken")
    submitter.submit_generic_job("slow", ["sleep", "60"])
    with pytest.raises(JobTimeoutError, match=r"has not ended within 0\.1 s and goes on"):
        submitter.wait_for_job("slow", timeout=0.1)
    cluster.wait_until(lambda emulator: emulator.job("slow").pods[0].phase == "Running")
    assert submitter.get_job_status("slow").state == "running"
    submitter.delete_job("slow")
    with pytest.raises(ClusterError, match="not found"):
        submitter.get_job_status("slow")


def test_a_job_killed_for_memory_again_and_again_says_so(cluster: KubernetesEmulator) -> None:
    submitter = JobSubmitter()
    submitter.submit_generic_job("big", ["sh", "-c", "echo reading; kill -9 $$"])
    with pytest.raises(JobFailedError, match=r"BackoffLimitExceeded.*exit code 137: reading"):
        submitter.wait_for_job("big", timeout=60)
    assert len(cluster.pods) == 3


def test_a_pod_that_fits_nowhere_says_what_it_waits_for(cluster: KubernetesEmulator) -> None:
    submitter = JobSubmitter()
    submitter.submit_generic_job("huge", ["true"], resources=Resources(cpu="64", memory="4Gi"))
    cluster.wait_until(lambda emulator: any(reason == "FailedScheduling" for _, reason, _ in emulator.events))
    with pytest.raises(JobTimeoutError, match=r"waits: 0/8 nodes are available: 8 Insufficient cpu"):
        submitter.wait_for_job("huge", timeout=0.1)


def test_a_job_deleted_while_it_is_waited_for_is_no_success(cluster: KubernetesEmulator) -> None:
    submitter = JobSubmitter()
    submitter.submit_generic_job("gone", ["sleep", "60"])
    cluster.wait_until(lambda emulator: emulator.jobs[0].pods[0].phase == "Running")
    cluster.delete_job("gone")
    with pytest.raises(ClusterError, match="not found"):
        submitter.wait_for_job("gone", timeout=60)


def test_any_image_runs_any_command_with_its_environment(cluster: KubernetesEmulator) -> None:
    submitter = JobSubmitter()
    job = submitter.submit_generic_job(
        "hello", ["sh", "-c", "echo $WHO $MONTAGE_NODE"], "busybox:1", env={"WHO": "$(nobody)"},
        resources=Resources(cpu="100m", memory="64Mi", memory_limit="128Mi"),
    )  # fmt: skip
    succeed(submitter, job.name)
    assert submitter.get_pod_logs("hello") == f"$(nobody) {cluster.pods[0].node}\n"
    container = cluster.pods[0].spec["containers"][0]
    assert (container["image"], "command" in container, "args" in container) == ("busybox:1", True, False)
    assert container["resources"]["limits"] == {"memory": "128Mi"}


# Encoding.


def test_an_encode_runs_on_the_best_gpu_node_with_its_gpu(cluster: KubernetesEmulator, video: str, data: Path) -> None:
    submitter = JobSubmitter()
    job = submitter.submit_gpu_encoding(video, str(data / "output" / "x.mp4"), resolution=(3840, 2160))
    assert job.node == AMD
    succeed(submitter, job.name)
    (pod,) = cluster.pods
    assert pod.node == AMD
    assert pod.spec["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "1"
    report = json.loads(pod.log.splitlines()[-1])
    assert report["frames"] == sum(SHOTS)
    with av.open(str(data / "output" / "x.mp4")) as film:
        assert (film.streams.video[0].codec_context.name, sum(1 for _ in film.decode(video=0))) == ("h264", sum(SHOTS))


def test_without_gpu_nodes_an_encode_runs_on_a_cpu(cluster: KubernetesEmulator, video: str, data: Path) -> None:
    for name in (AMD, JETSON, VAAPI):
        cluster.cordon(name)
    submitter = JobSubmitter()
    job = submitter.submit_gpu_encoding(video, "output/y.mp4", codec="hevc", quality="preview")
    succeed(submitter, job.name)
    assert cluster.pods[0].node not in {AMD, JETSON, VAAPI}
    with av.open(str(data / "output" / "y.mp4")) as film:
        assert film.streams.video[0].codec_context.name == "hevc"


def test_a_source_is_never_written_to(cluster: KubernetesEmulator, video: str) -> None:
    submitter = JobSubmitter()
    job = submitter.submit_gpu_encoding(video, video)
    with pytest.raises(JobFailedError, match="among the sources"):
        submitter.wait_for_job(job.name, timeout=60)
    assert len(cluster.pods) == 1


# Without Kubernetes.


@pytest.mark.parametrize("fault", ["no kubeconfig", "nobody answers", "forbidden"])
def test_without_kubernetes_the_same_is_found_on_this_machine_and_the_reason_said_once(
    fault: str,
    cluster: KubernetesEmulator,
    video: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = {
        "no kubeconfig": "which is not there",
        "nobody answers": "is not reachable",
        "forbidden": "does not let this account list jobs in namespace montage-ai",
    }[fault]
    if fault == "no kubeconfig":
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    elif fault == "nobody answers":
        cluster.stop()
    else:
        cluster.forbid("jobs", "list")
    submitter = JobSubmitter()
    with caplog.at_level(logging.WARNING):
        job = submitter.submit_scene_detection([video], parallelism=2)
        assert (job.where, succeed(submitter, job.name).succeeded) == ("local", 2)
    assert cuts_of(submitter.get_scene_results(job.name)[video]) == CUTS
    assert [record.message for record in caplog.records if said in record.message] == [caplog.records[0].message]
    with pytest.raises(ClusterError, match="needs Kubernetes to run its image, and Kubernetes cannot be used"):
        submitter.submit_generic_job("x", ["true"])


def test_a_local_job_fails_with_its_last_words_and_can_be_removed(data: Path) -> None:
    submitter = JobSubmitter(Settings.from_environment({"MONTAGE_DATA": str(data), "MONTAGE_CLUSTER_MODE": "local"}))
    job = submitter.submit_scene_detection(["input/missing.mp4"], parallelism=1)
    with pytest.raises(JobFailedError, match=r"shard 0 ended with exit code 2: montage: there is no video"):
        submitter.wait_for_job(job.name, timeout=60)
    assert submitter.get_job_status(job.name).state == "failed"
    submitter.delete_job(job.name)
    with pytest.raises(ClusterError, match="has started no job"):
        submitter.get_job_status(job.name)


# What is asked for.


def test_without_an_image_it_is_said_where_to_name_it(
    cluster: KubernetesEmulator, video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MONTAGE_IMAGE")
    with pytest.raises(ClusterError, match="set MONTAGE_IMAGE"):
        JobSubmitter().submit_scene_detection([video])


def test_rights_that_lack_are_named(cluster: KubernetesEmulator) -> None:
    cluster.forbid("jobs", "create")
    with pytest.raises(ClusterError, match="does not let this account create job x; grant it create on jobs"):
        JobSubmitter().submit_generic_job("x", ["true"])


@pytest.mark.parametrize("ask", [lambda s: s.submit_scene_detection([]), lambda s: s.submit_generic_job("A b", ["x"])])
def test_what_cannot_be_is_refused_before_anything_is_sent(ask: Callable[[JobSubmitter], object], data: Path) -> None:
    with pytest.raises(ClusterError):
        ask(JobSubmitter(Settings(data=str(data))))


# The objects.

WHERE = Where("montage:1", "montage-ai")


def test_the_job_of_the_plan_in_valid_form() -> None:
    job = SceneJob(("input/a.mp4",), 4)
    manifest = scene_detection_manifest(job, WHERE, Resources())
    check(manifest)
    spec = manifest["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "4Gi"}
    assert container["args"][:4] == ["python", "-m", "montage_assets.cluster.distributed_scene_detection", "--shard"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["SHARD_COUNT"]["value"] == "4"
    field = env["SHARD_INDEX"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert (term["topologyKey"], term["labelSelector"]["matchLabels"]) == (
        "kubernetes.io/hostname",
        {"job-name": manifest["metadata"]["name"]},
    )
    assert pod["restartPolicy"] == "Never"
    assert (pod["securityContext"]["runAsNonRoot"], container["securityContext"]["readOnlyRootFilesystem"]) == (
        True,
        True,
    )
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_its_name_changes_with_the_videos_and_with_nothing_that_does_not_change_the_work() -> None:
    job = SceneJob(("input/a.mp4",), 4)
    assert job.name == SceneJob(("input/a.mp4",), 4).name
    others = [SceneJob(("input/b.mp4",), 4), SceneJob(("input/a.mp4",), 3), SceneJob(("input/a.mp4",), 4, "content")]
    assert len({job.name, *(other.name for other in others)}) == 4
    assert len(job.name) <= 63


def test_hosts_may_be_shared_when_there_are_too_few_and_nodes_preferred() -> None:
    manifest = scene_detection_manifest(
        SceneJob(("a.mp4",), 9), WHERE, Resources(cpu="1", memory="2Gi"), spread="preferred", nodes=["a", "b"]
    )
    check(manifest)
    affinity = manifest["spec"]["template"]["spec"]["affinity"]
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in affinity["podAntiAffinity"]
    (preference,) = affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preference["preference"]["matchExpressions"][0]["values"] == ["a", "b"]


def test_data_in_a_bucket_needs_no_claim_and_its_keys_stay_in_their_secret() -> None:
    manifest = job_manifest("x", ["true"], Where("i:1", "n", "s3://bucket/data"), Resources())
    check(manifest)
    pod = manifest["spec"]["template"]["spec"]
    assert {volume["name"]: sorted(set(volume) - {"name"}) for volume in pod["volumes"]}["data"] == ["emptyDir"]
    assert {"name": "MONTAGE_DATA", "value": "s3://bucket/data"} in pod["containers"][0]["env"]
    assert "AWS" not in json.dumps(manifest)
