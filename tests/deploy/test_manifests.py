"""The manifests: each builds, each object is what Kubernetes' schemas allow, and pods may do no more than they must."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from montage_assets.cluster import job_manifests
from tests.deploy.manifests import (
    BY_HAND,
    DEPLOY,
    K3S,
    KUSTOMIZATIONS,
    WHOLE,
    Manifest,
    built,
    built_text,
    by_hand,
    environment_of,
    kubectl,
    pod_labels,
    pod_specs,
    settings_of,
    the,
)

OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()
ALL = [(name, lambda name=name: built(name)) for name in KUSTOMIZATIONS] + [
    (name, lambda name=name: by_hand(name)) for name in BY_HAND
]
OUR_SECRETS = {"montage-postgres", "montage-s3"}

each_part = pytest.mark.parametrize("objects", [make for _, make in ALL], ids=[name for name, _ in ALL])
each_deployment = pytest.mark.parametrize("name", WHOLE)


@each_part
def test_every_object_is_what_the_schemas_of_old_and_new_kubernetes_allow(objects: Any) -> None:
    for item in objects():
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(item, version, strict=True)


def test_a_misspelt_key_would_be_found() -> None:
    deployment = the(built("base"), "Deployment", "montage-ai-web")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


@each_part
def test_pods_run_as_nobody_special_on_a_root_they_cannot_write(objects: Any) -> None:
    for name, pod in pod_specs(objects()):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not ({"hostNetwork", "hostPID", "hostIPC"} & pod.keys()), name
        assert all("hostPath" not in volume for volume in pod["volumes"]), name
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert "privileged" not in security, name


@each_part
def test_pods_say_what_they_need_and_services_how_they_are(objects: Any) -> None:
    for name, pod in pod_specs(objects()):
        for container in pod["containers"]:
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys(), name
            assert "memory" in resources["limits"], name
            if not name.startswith("Job"):
                assert "livenessProbe" in container, name


@each_part
def test_no_secret_is_in_the_clear(objects: Any) -> None:
    for item in objects():
        assert item["kind"] != "Secret"
        for name, value in _variables(item):
            if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", name):
                assert value is None, f"{name} is given as text"


def _variables(item: Manifest) -> list[tuple[str, Any]]:
    if item["kind"] == "ConfigMap":
        return list(item["data"].items())
    return [pair for _, pod in pod_specs([item]) for c in pod["containers"] for pair in environment_of(c).items()]


@each_deployment
def test_all_that_a_pod_refers_to_is_part_of_the_deployment(name: str) -> None:
    objects = built(name)
    there = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for pod_name, pod in pod_specs(objects):
        wanted = {("ServiceAccount", pod["serviceAccountName"])}
        if "priorityClassName" in pod:
            wanted.add(("PriorityClass", pod["priorityClassName"]))
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                wanted.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
            if "configMap" in volume:
                wanted.add(("ConfigMap", volume["configMap"]["name"]))
        for container in pod["containers"]:
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            templates = {"data"} if pod_name.startswith("StatefulSet") else set()
            assert mounts <= {volume["name"] for volume in pod["volumes"]} | templates
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    wanted.add(("ConfigMap", source["configMapRef"]["name"]))
                else:
                    assert source["secretRef"]["name"] in OUR_SECRETS
            for entry in container.get("env", []):
                if "secretKeyRef" in entry.get("valueFrom", {}):
                    assert entry["valueFrom"]["secretKeyRef"]["name"] in OUR_SECRETS
        assert wanted <= there, pod_name


@each_deployment
def test_services_and_policies_find_their_pods(name: str) -> None:
    objects = built(name)
    pods = [labels for _, labels in pod_labels(objects)]
    launched = [{"app.kubernetes.io/component": component} for component in ("run_worker", "step_worker", "job")]
    for item in objects:
        if item["kind"] == "Service":
            assert any(item["spec"]["selector"].items() <= labels.items() for labels in pods), item["metadata"]
        if item["kind"] == "NetworkPolicy":
            assert any(_selects(item["spec"]["podSelector"], labels) for labels in [*pods, *launched])


def _selects(selector: Manifest, labels: Manifest) -> bool:
    given = selector.get("matchLabels", {}).items() <= labels.items()
    return given and all(
        labels.get(term["key"]) in term["values"] and term["operator"] == "In"
        for term in selector.get("matchExpressions", [])
    )


@each_deployment
def test_whoever_listens_lets_in_only_those_who_are_named(name: str) -> None:
    objects = built(name)
    deny = the(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    listening = {
        pod_name.split()[1]
        for pod_name, pod in pod_specs(objects)
        if any("ports" in container for container in pod["containers"])
    }
    doors = [item["spec"] for item in objects if item["kind"] == "NetworkPolicy" and "ingress" in item["spec"]]
    for pod_name, labels in pod_labels(objects):
        own = [door for door in doors if _selects(door["podSelector"], labels)]
        assert bool(own) == (pod_name in listening), pod_name
        assert all(rule["from"] and rule["ports"] for door in own for rule in door["ingress"])


def test_the_accounts_may_work_with_jobs_and_look_at_pods_and_nodes_and_no_more() -> None:
    objects = built("base")
    rules = the(objects, "Role", "montage-jobs")["rules"] + the(objects, "ClusterRole", "montage-nodes")["rules"]
    writes = {"create", "delete", "patch", "update", "deletecollection", "*"}
    assert {r for rule in rules for r in rule["resources"] if writes & set(rule["verbs"])} == {"jobs"}
    assert {r for rule in rules for r in rule["resources"]} == {
        "jobs",
        "jobs/status",
        "pods",
        "pods/log",
        "events",
        "nodes",
    }
    bound = {
        subject["name"]
        for item in objects
        if item["kind"] in ("RoleBinding", "ClusterRoleBinding")
        for subject in item["subjects"]
    }
    assert bound == {"montage-web", "montage-run"}
    users = {name: pod["serviceAccountName"] for name, pod in pod_specs(built("distributed"))}
    assert {name for name, account in users.items() if account in bound} == {"Deployment montage-ai-web"}


@pytest.mark.parametrize("name", [*WHOLE, "workers"])
def test_whoever_opens_the_instance_has_a_token_since_its_launcher_reads_one(name: str) -> None:
    for pod_name, pod in pod_specs(built(name)):
        opens = any(volume.get("configMap", {}).get("name") == "montage-dagster" for volume in pod["volumes"])
        assert pod.get("automountServiceAccountToken", True) is opens, pod_name


@pytest.mark.parametrize("name", [*WHOLE, "workers"])
def test_one_entry_takes_all_pods_to_another_registry(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "k3s"
    shutil.copytree(K3S, copy)
    file = copy / name / "kustomization.yaml"
    image = "registry.example:5000/montage-ai"
    file.write_text(file.read_text().replace("  newTag: latest", f"  newName: {image}\n    newTag: '7'"))
    assert image not in built_text(K3S / name)
    objects = built(name, copy)
    images = {container["image"] for _, pod in pod_specs(objects) for container in pod["containers"]}
    assert images - {"postgres:17-bookworm", "redis:7-alpine"} == {f"{image}:7"}
    if name != "workers":
        assert settings_of(objects)["MONTAGE_IMAGE"] == f"{image}:7"


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_no_registry_is_named(name: str) -> None:
    for _, pod in pod_specs(built(name)):
        for container in pod["containers"]:
            assert "/" not in container["image"]


def test_the_nfs_server_is_a_parameter(tmp_path: Path) -> None:
    copy = tmp_path / "k3s"
    shutil.copytree(K3S, copy)
    (copy / "base/storage.env").write_text("NFS_SERVER=nas.lan\nNFS_PATH=/srv/films\n")
    for name in ("base", "distributed"):
        assert the(built(name, copy), "PersistentVolume", "montage-data")["spec"]["nfs"] == {
            "server": "nas.lan",
            "path": "/srv/films",
        }


def test_the_cluster_gets_the_described_nodes_word_for_word() -> None:
    data = the(built("base"), "ConfigMap", "montage-cluster")["data"]
    assert data["cluster.yaml"] == (DEPLOY / "cluster.yaml").read_text()


def test_s3_needs_no_shared_folder() -> None:
    objects = built("overlays/s3")
    assert not [item for item in objects if item["kind"].startswith("PersistentVolume")]
    assert settings_of(objects)["MONTAGE_DATA"].startswith("s3://")
    assert not any("persistentVolumeClaim" in v for _, pod in pod_specs(objects) for v in pod["volumes"])


def test_workers_keep_off_the_control_plane_and_take_from_redis() -> None:
    objects = built("distributed")
    pod = the(objects, "DaemonSet", "montage-ai-worker-node")["spec"]["template"]["spec"]
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "node-role.kubernetes.io/control-plane", "operator": "DoesNotExist"}]
    assert environment_of(pod["containers"][0])["WORKER_MODE"] == "true"
    settings = settings_of(objects)
    assert (settings["MONTAGE_EXECUTOR"], settings["REDIS_URL"]) == ("celery", "redis://redis.montage-ai:6379")
    assert the(objects, "Service", "redis")["metadata"]["namespace"] == "montage-ai"


@pytest.mark.parametrize(
    ("gpu", "resource", "hwaccel", "codec"),
    [
        ("amd", "amd.com/gpu", "amf", "h264_amf"),
        ("nvidia", "nvidia.com/gpu", "cuda", "h264_nvenc"),
        ("vaapi", "squat.ai/dri", "vaapi", "h264_vaapi"),
    ],
)
def test_each_kind_of_gpu_has_an_encoder(gpu: str, resource: str, hwaccel: str, codec: str) -> None:
    encoder = the(built("workers"), "Deployment", f"montage-ai-encoder-{gpu}")
    assert (
        encoder["spec"]["template"]["metadata"]["labels"].items() >= {"app": "montage-ai-encoder", "gpu": gpu}.items()
    )
    (container,) = encoder["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"][resource] == 1
    variables = environment_of(container)
    assert (variables["WORKER_TYPE"], variables["FFMPEG_HWACCEL"], variables["OUTPUT_CODEC"]) == ("gpu", hwaccel, codec)


def test_shards_of_one_video_are_numbered_and_go_to_a_node_each() -> None:
    (job,) = by_hand("distributed/scene-detection-job.yaml")
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert apart["labelSelector"]["matchLabels"]["job-name"] == job["metadata"]["name"]
    (container,) = pod["containers"]
    assert environment_of(container)["SHARD_COUNT"] == "4"
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "4Gi"}
    index = next(entry for entry in container["env"] if entry["name"] == "SHARD_INDEX")
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]


def test_the_quick_wins_work_on_these_names() -> None:
    manifests = built_text(K3S / "distributed")
    offline = ("--local", "--dry-run=client", "-o", "yaml", "-f", "-")
    web = yaml.safe_dump(the(built("distributed"), "Deployment", "montage-ai-web"))
    worker = yaml.safe_dump(the(built("distributed"), "Deployment", "montage-ai-worker"))
    assert "name: montage-ai-worker\n" in manifests

    changed = yaml.safe_load(kubectl("set", "env", *offline, "FFMPEG_HWACCEL=amf", "OUTPUT_CODEC=h264_amf", stdin=web))
    for container in changed["spec"]["template"]["spec"]["containers"]:
        variables = environment_of(container)
        assert (variables["FFMPEG_HWACCEL"], variables["OUTPUT_CODEC"]) == ("amf", "h264_amf")
    kubernetes_validate.validate(changed, NEWEST, strict=True)

    changed = yaml.safe_load(
        kubectl("set", "resources", *offline, "--requests=memory=8Gi", "--limits=memory=16Gi", stdin=worker)
    )
    (container,) = changed["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["memory"] == "8Gi"
    assert container["resources"]["limits"]["memory"] == "16Gi"
    kubernetes_validate.validate(changed, NEWEST, strict=True)
    # `kubectl scale` has no offline form: it sets this field of the Deployment, which a DaemonSet has not.
    assert changed["spec"]["replicas"] == 1


def test_jobs_that_the_program_submits_refer_to_what_is_there() -> None:
    objects = built("base")
    the(objects, "PersistentVolumeClaim", job_manifests.DATA_CLAIM)
    the(objects, "ConfigMap", job_manifests.SETTINGS_MAP)
    the(objects, "ServiceAccount", job_manifests.ACCOUNT)
    assert job_manifests.BUCKET_SECRET in OUR_SECRETS
    (job,) = by_hand("distributed/scene-detection-job.yaml")
    assert job["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == job_manifests.USER
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert "command" not in container, "the image's entrypoint hands signals on"
    assert tuple(container["args"][: len(job_manifests.SCENE_DETECTION)]) == job_manifests.SCENE_DETECTION


def test_the_command_of_the_sharded_job_is_one_that_the_program_knows() -> None:
    from montage_assets.cluster.distributed_scene_detection import command

    (job,) = by_hand("distributed/scene-detection-job.yaml")
    words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    context = command.make_context("scene-detection", words[len(job_manifests.SCENE_DETECTION) :])
    assert context.params["shard"] is True
    assert context.params["single"] == ("/data/input/video.mp4",)


def test_substituting_the_hash_renames_the_job_wherever_its_name_is(tmp_path: Path) -> None:
    file = K3S / "distributed/scene-detection-job.yaml"
    (line,) = [line for line in file.read_text().splitlines() if line.startswith("#   sed ")]
    script = line.removeprefix("#   ").removesuffix(" |").replace("scene-detection-job.yaml", str(file))
    settings = 'video=/data/input/holiday/long.mp4; hash=$(printf %s "$video" | sha256sum | cut -c1-12); '
    done = subprocess.run(["/bin/bash", "-c", settings + script], capture_output=True, text=True, check=True)
    job = yaml.safe_load(done.stdout)
    name = job["metadata"]["name"]
    assert re.fullmatch(r"scene-detect-[0-9a-f]{12}", name)
    kubernetes_validate.validate(job, NEWEST, strict=True)
    pod = job["spec"]["template"]["spec"]
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["labelSelector"]["matchLabels"]["job-name"] == name
    arguments = pod["containers"][0]["args"][len(job_manifests.SCENE_DETECTION) :]
    assert arguments == ["--shard", "--video", "/data/input/holiday/long.mp4", "--job-id", name]
