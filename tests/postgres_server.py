"""A real PostgreSQL for the tests, on loopback, with a password and data of its own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

USER, DATABASE = "dagster", "dagster"


class PostgresServer:
    """A running server. It refuses to run as root, so root hands it to the user of Debian's package."""

    def __init__(self) -> None:
        self.password = secrets.token_hex(12)
        self.port = _free_port()
        self._programs = _programs()
        self._account = pwd.getpwnam("postgres") if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="montage-postgres-"))  # pytest's folders are closed to other users
        password_file = self._folder / "password"
        password_file.write_text(self.password)
        if self._account is not None:
            for path in (self._folder, password_file):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        data = self._folder / "data"
        self._call(
            "initdb", "--pgdata", str(data), "--username", USER, "--pwfile", str(password_file),
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync",
        )  # fmt: skip
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                self._programs / "postgres", "-D", data, "-p", str(self.port), "-k", self._folder,
                "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=100",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            **self._as_account(),
        )  # fmt: skip
        self._wait()
        self.query(f"CREATE DATABASE {DATABASE}", database="postgres")

    def environment(self) -> dict[str, str]:
        """The variables by which deploy/dagster.yaml finds this server."""
        return {
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_PORT": str(self.port),
            "DAGSTER_PG_USER": USER,
            "DAGSTER_PG_PASSWORD": self.password,
            "DAGSTER_PG_DB": DATABASE,
        }

    def query(self, statement: str, database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user=USER, password=self.password, dbname=database
        )
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def stop(self) -> None:
        """End the server and remove its data."""
        self._process.send_signal(signal.SIGINT)  # without waiting for clients
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder)

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments], capture_output=True, text=True, **self._as_account()
        )
        if done.returncode != 0:
            pytest.fail(f"{program} failed:\n{done.stdout}{done.stderr}")

    def _as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": [], "cwd": self._folder}

    def _wait(self) -> None:
        is_ready = [self._programs / "pg_isready", "--quiet"]
        for _ in range(300):
            if self._process.poll() is not None:
                break
            if subprocess.run([*is_ready, "-h", "127.0.0.1", "-p", str(self.port)]).returncode == 0:
                return
            time.sleep(0.1)
        pytest.fail(f"PostgreSQL did not start:\n{(self._folder / 'log').read_text(errors='replace')[-2000:]}")


def _programs() -> Path:
    """Debian keeps the server's programs beside its version's other files, not on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        pytest.fail("PostgreSQL is missing; install Debian's package postgresql")
    return found[-1].parent if found else Path(str(on_path)).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
