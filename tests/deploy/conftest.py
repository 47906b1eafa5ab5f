"""Fixtures of the deployment's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for the session; it starts with an empty database for Dagster."""
    server = PostgresServer()
    yield server
    server.stop()
