"""Fixtures for all tests: a Dagster home and data root of their own, and one S3 server for the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer
from tests.s3_server import S3Server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for the session; it starts with an empty database for Dagster."""
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.kill()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data root that the environment names."""
    root = tmp_path / "data"
    (root / "input").mkdir(parents=True)
    monkeypatch.setenv("MONTAGE_DATA", str(root))
    monkeypatch.setenv("DAGSTER_HOME", str(_home(tmp_path)))
    # Hardware's bytes differ from machine to machine; tests that are about it say so themselves.
    monkeypatch.setenv("LOCAL_GPU_ENCODE", "off")
    for variable in ("FFMPEG_HWACCEL", "OUTPUT_CODEC"):
        monkeypatch.delenv(variable, raising=False)
    return root


def _home(tmp_path: Path) -> Path:
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    return home
