"""A real Redis server for the tests, on loopback: private port, appending to a file of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest


class RedisServer:
    """A server that can be killed and started again with what it knew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._process = subprocess.Popen(
            [
                redis_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder),
                "--appendonly", "yes", "--save", "", "--logfile", str(self._folder / "redis.log"),
            ]
        )  # fmt: skip
        for _ in range(200):
            if self._answers():
                return
            time.sleep(0.05)
        raise RuntimeError((self._folder / "redis.log").read_text()[-2000:])

    def kill(self) -> None:
        """End the server as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def redis_program() -> str:
    """The server's program. Where there is none: an error in CI, elsewhere the test is skipped."""
    program = shutil.which("redis-server")
    if program is not None:
        return program
    if os.environ.get("CI"):
        raise RuntimeError("redis-server is not installed; .ci/run installs it")
    pytest.skip("redis-server is not installed (apt install redis-server)")
