"""docker-compose.distributed.yml as Debian's docker-compose reads it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from montage_assets.settings import Settings

FILE = Path(__file__).parents[2] / "deploy" / "docker-compose.distributed.yml"
PASSWORDS = {"MONTAGE_DB_PASSWORD": "db-secret", "MONTAGE_REDIS_PASSWORD": "redissecret"}
MONTAGE = ("coordinator", "daemon", "code", "worker-cpu", "worker-gpu", "worker-cgpu")


def compose(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker-compose")
    if program is None and os.environ.get("CI"):
        raise RuntimeError("docker-compose is not installed; .ci/run installs it")
    if program is None:
        pytest.skip("docker-compose is not installed (apt install docker-compose)")
    base = {name: value for name, value in os.environ.items() if not name.startswith(("MONTAGE_", "CGPU_", "WORKER_"))}
    return subprocess.run(
        [program, "-f", str(FILE), "config"], env={**base, **environment}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    result = compose(PASSWORDS)
    assert result.returncode == 0, result.stderr
    return dict(yaml.safe_load(result.stdout))


def test_there_is_a_coordinator_on_loopback_with_workers_of_three_types(config: dict[str, Any]) -> None:
    services = config["services"]
    assert set(services) == {*MONTAGE, "redis", "postgres"}
    assert services["coordinator"]["ports"] == ["127.0.0.1:8080:8080/tcp"]
    assert services["worker-cpu"]["deploy"]["replicas"] == 2
    device = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert services["worker-cgpu"]["environment"]["CGPU_GPU_ENABLED"] == "true"
    assert any(volume.endswith(":/cgpu:rw") for volume in services["worker-cgpu"]["volumes"])
    assert services["redis"]["image"] == "redis:7-alpine"
    assert services["redis"]["volumes"] == ["redis-data:/data:rw"]
    assert "--appendonly yes" in services["redis"]["command"][-1]
    for name in services:
        assert "healthcheck" in services[name], name
        assert all(port.startswith("127.0.0.1:") for port in services[name].get("ports", [])), name


def test_every_process_of_ours_has_the_same_data_queue_and_instance(config: dict[str, Any]) -> None:
    types = {"worker-cpu": "cpu", "worker-gpu": "gpu", "worker-cgpu": "cgpu"}
    for name in MONTAGE:
        service = config["services"][name]
        assert "montage-data:/data:rw" in service["volumes"], name
        assert any(
            volume.endswith("compose/dagster.yaml:/opt/dagster/dagster.yaml:ro") for volume in service["volumes"]
        )
        settings = Settings.from_environment(service["environment"])
        assert settings.executor == "celery"
        assert settings.redis_url == "redis://:redissecret@redis:6379/0"
        assert settings.data == "/data"
        assert settings.worker_type == types.get(name, "cpu")
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])


def test_no_password_is_in_the_files_and_none_is_made_up() -> None:
    result = compose({})
    assert result.returncode != 0
    assert "choose a password" in result.stderr
    instance = yaml.safe_load((FILE.parent / "compose" / "dagster.yaml").read_text())
    assert instance["storage"]["postgres"]["postgres_db"]["password"] == {"env": "DAGSTER_PG_PASSWORD"}
