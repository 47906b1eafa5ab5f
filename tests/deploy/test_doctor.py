"""`montage doctor`: each fault of a deployment is named with its cure, and a sound one passes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import s3fs
from click.testing import CliRunner

from montage_assets import doctor
from montage_assets.cli import commands
from montage_assets.cluster.mode import ClusterMode
from montage_assets.data_root import DataRoot
from montage_assets.media.encoders import encoder_named
from montage_assets.media.machine_encoders import EncoderState
from montage_assets.settings import Settings
from tests.cluster.clusters import AMD, JETSON, VAAPI, node, plan, plan_with
from tests.deploy.manifests import DEPLOY
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer
from tests.s3_server import S3Server


def _states(findings: list[doctor.Finding]) -> list[str]:
    return [finding.state for finding in findings]


def _worst(findings: list[doctor.Finding]) -> doctor.Finding:
    return max(findings, key=lambda finding: ("ok", "warn", "FAIL").index(finding.state))


def test_a_laptop_is_well(data: Path) -> None:
    result = CliRunner().invoke(commands, ["doctor", "--json"], standalone_mode=False)
    findings = json.loads(result.stdout)
    assert result.return_value == 0, findings
    assert {"storage", "space", "database", "nodes", "ffmpeg", "encoders"} <= {f["check"] for f in findings}
    assert {f["state"] for f in findings} <= {"ok", "warn"}
    encoders = next(f["what"] for f in findings if f["check"] == "encoders")
    assert "libx264" in encoders
    assert not [f for f in findings if f["check"] in ("broker", "coordinator", "rights")], "none of these is in use"


def test_a_fault_is_a_line_with_its_cure_and_an_exit_code(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONTAGE_DATA", str(data / "gone"))
    result = CliRunner().invoke(commands, ["doctor"], standalone_mode=False)
    assert result.return_value == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert line == f"FAIL  storage      there is no {data / 'gone'}; mount it, or set MONTAGE_DATA"


def test_machines_that_share_the_data_see_each_other(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path))
    alone = doctor.storage_findings(root, "desk", is_distributed=True)
    assert _states(alone) == ["ok", "warn"]
    together = doctor.storage_findings(root, "attic", is_distributed=True)
    assert _states(together) == ["ok", "ok"]
    assert "desk" in together[1].what
    assert not list(tmp_path.glob(".doctor-*"))


def test_a_bucket_is_written_and_read(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server.use(monkeypatch)
    assert _states(doctor.storage_findings(DataRoot(s3_server.new_root()), "desk", True)) == ["ok", "ok"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    (fault,) = doctor.storage_findings(DataRoot(s3_server.new_root()), "attic", True)
    assert fault.state == "FAIL"
    assert "AWS_ENDPOINT_URL" in fault.cure


def test_a_folder_of_somebody_else_is_named_with_who_must_be_let_in() -> None:
    becoming = "os.setgid(10001); os.setuid(10001);" if os.getuid() == 0 else ""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        asked = (
            f"import os; from montage_assets import doctor; from montage_assets.data_root import DataRoot; {becoming}"
            f"print(os.getuid()); print(doctor.storage_findings(DataRoot({folder!r}), 'pod', True)[0].line)"
        )
        done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    user, line = done.stdout.splitlines()
    assert line.startswith("FAIL"), done
    assert "Permission denied" in line
    assert f"chown {user}:" in line


def test_the_file_system_of_the_longest_mount_point_counts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    inner = tmp_path / "with space"
    inner.mkdir()
    escaped = str(inner).replace(" ", "\\040")
    mounts.write_text(f"/dev/x / ext4 rw 0 0\nnas:/films {escaped} nfs4 rw 0 0\n")
    assert doctor._file_system(str(inner), mounts) == "nfs4"
    assert doctor._file_system(str(tmp_path), mounts) == "ext4"


@pytest.mark.parametrize(("free", "state"), [(500 << 20, "FAIL"), (5 << 30, "warn"), (500 << 30, "ok")])
def test_little_space_is_a_warning_and_none_a_fault(free: int, state: str) -> None:
    assert _states(doctor.space_findings(free, "/data")) == [state]


@pytest.fixture
def on_postgres(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    text = (DEPLOY / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text(text)
    for name, value in {
        **postgres.environment(),
        "DAGSTER_HOME": str(home),
        "MONTAGE_STEP_LOGS": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("MONTAGE_NAMESPACE", "MONTAGE_IMAGE", "FFMPEG_HWACCEL", "OUTPUT_CODEC"):
        monkeypatch.setenv(name, "auto" if name == "FFMPEG_HWACCEL" else "montage-ai")
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda **_: None)
    return home


def test_the_database_answers_or_is_named(on_postgres: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(executor="k8s")
    (finding,) = doctor.database_findings(settings, os.environ)
    assert "PostgresRunStorage answers" in finding.what
    assert finding.state == "warn", "no daemon has run on this database"
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "wrong")
    (fault,) = doctor.database_findings(settings, os.environ)
    assert fault.state == "FAIL"
    assert "password authentication failed" in fault.what
    assert "DAGSTER_PG_PASSWORD" in fault.cure


def test_sqlite_is_refused_for_several_machines(data: Path) -> None:
    assert _states(doctor.database_findings(Settings(), os.environ)) == ["ok"]
    (fault,) = doctor.database_findings(Settings(executor="celery"), os.environ)
    assert fault.state == "FAIL"
    assert "Postgres" in fault.cure


def test_a_queue_without_a_worker_is_named(redis_server: RedisServer) -> None:
    findings = doctor.broker_findings(Settings(executor="celery", redis_url=redis_server.url))
    assert _states(findings) == ["ok", "warn", "warn", "warn"]
    assert "WORKER_TYPE=gpu montage worker" in findings[2].cure
    redis_server.kill()
    assert _states(doctor.broker_findings(Settings(executor="celery", redis_url=redis_server.url))) == ["FAIL"]


def test_a_coordinator_that_is_not_there_is_named() -> None:
    assert doctor.coordinator_findings(Settings().coordinator_url) == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        (fault,) = doctor.coordinator_findings(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert fault.state == "FAIL"
    assert "COORDINATOR_URL" in fault.cure


def test_nodes_that_take_no_work_are_named() -> None:
    nodes = plan_with(AMD, ready=False)
    assert AMD in _worst(doctor.readiness_findings(nodes, "a test")).what
    assert (
        doctor.readiness_findings([node("a", schedulable=False), node("b", ready=False)], "a test")[0].state == "FAIL"
    )


def test_nodes_of_another_architecture_want_another_build() -> None:
    (finding,) = doctor.architecture_findings(plan(), "montage-ai:7", machine="x86_64")
    assert finding.state == "warn"
    assert JETSON in finding.what
    assert "--platform linux/amd64,linux/arm64" in finding.cure
    assert _states(doctor.architecture_findings([node("a")], None, machine="x86_64")) == ["ok"]


def test_a_gpu_that_no_plugin_offers_is_named() -> None:
    live = [
        node(AMD, gpu="amd_rx7900xtx", resources={"amd.com/gpu": 1}),
        node(VAAPI),
        node(JETSON, arch="arm64", gpu="nvidia_jetson", resources={"nvidia.com/gpu": 0}),
    ]
    findings = doctor.plugin_findings(live, plan())
    assert _states(findings) == ["ok", "warn", "warn"]
    assert "amd.com/gpu: 1" in findings[0].what
    assert findings[1].what.startswith(f"{VAAPI} has vaapi")
    assert findings[2].what.startswith(f"{JETSON} has nvidia_jetson")


def test_lacking_rights_are_listed() -> None:
    settings = Settings(executor="k8s", namespace="films")
    assert _states(doctor.rights_findings(settings, lambda *_: True)) == ["ok"]
    (fault,) = doctor.rights_findings(settings, lambda _, __, resource, verb: verb != "create")
    assert fault.what == "in namespace films this account may not create jobs"
    assert "deploy/k3s/base" in fault.cure
    assert doctor.rights_findings(Settings(), lambda *_: False) == []


def test_pods_without_a_cluster_are_a_fault(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(data / "no-kubeconfig"))
    settings = Settings(data=str(data), executor="k8s", cluster_mode=ClusterMode.K8S)
    assert _worst(doctor.node_findings(settings)).state == "FAIL"
    (fault,) = doctor.rights_findings(settings)
    assert "no-kubeconfig" in fault.what
    assert _states(doctor.image_findings(settings)) == ["FAIL"]


def test_a_check_that_stumbles_is_a_finding_too() -> None:
    def stumbles() -> list[doctor.Finding]:
        raise ZeroDivisionError("by zero")

    assert doctor._safely("space", stumbles) == [doctor.Finding("space", "FAIL", "ZeroDivisionError: by zero")]


def test_a_device_of_a_group_that_the_user_is_not_in_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "renderD128"
    device.touch()
    assert _states(doctor.render_device_findings([device])) == ["ok"]
    monkeypatch.setattr("os.access", lambda *_: False)  # root may open anything
    (finding,) = doctor.render_device_findings([device])
    assert f"put {device.stat().st_gid} into supplemental_groups" in finding.cure


def test_encoders_are_reported_for_hardware_that_is_there() -> None:
    def state(name: str, device: str, works: bool, reason: str = "") -> EncoderState:
        return EncoderState(encoder_named(name), device, works, reason, ())

    states = [
        state("libx264", "", True),
        state("h264_vaapi", "/dev/dri/renderD128", False, "no permission"),
        state("hevc_vaapi", "/dev/dri/renderD128", False, "no permission"),
        state("h264_nvenc", "0", False, "Cannot load libcuda.so.1"),
    ]
    is_present = lambda state: state.encoder.family == "vaapi"  # noqa: E731
    findings = doctor.encoder_findings(states, "auto", is_present)
    assert _states(findings) == ["ok", "warn"]
    assert findings[0].what == "working: libx264"
    assert findings[1].what == "h264_vaapi, hevc_vaapi on /dev/dri/renderD128: no permission"
    assert "FFMPEG_HWACCEL is vaapi" in doctor.encoder_findings(states, "vaapi", is_present)[-1].what
    assert _states(doctor.encoder_findings(states[1:], "auto", is_present)) == ["FAIL"]
