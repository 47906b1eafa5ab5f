"""A real coordinator on loopback: code server, webserver and daemon, as the image runs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import yaml

ROOT = Path(__file__).parents[2]


class RealCoordinator:
    """Dagster's services over one data root. `url` is the webserver. The broken one has nothing but this, and code
    that cannot be loaded."""

    def __init__(self, folder: Path, *, is_broken: bool = False) -> None:
        self.folder = folder
        self.data = folder / "data"
        (self.data / "input").mkdir(parents=True)
        self._home = folder / "dagster"
        self._home.mkdir()
        (self._home / "dagster.yaml").write_bytes((ROOT / "montage_assets" / "dagster.yaml").read_bytes())
        # Two services that make the databases at the same time get in each other's way.
        dg.DagsterInstance.from_config(str(self._home)).dispose()
        code, web = _free_port(), _free_port()
        server = {"grpc_server": {"host": "127.0.0.1", "port": code, "location_name": "montage"}}
        workspace = folder / "workspace.yaml"
        workspace.write_text(yaml.safe_dump({"load_from": [server]}))
        self.url = f"http://127.0.0.1:{web}"
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            if is_broken:
                workspace.write_text(yaml.safe_dump({"load_from": [{"python_module": "montage_assets.nothing_here"}]}))
            else:
                module = "montage_assets.definitions"
                self._start("dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(code), "-m", module)
                self._wait_for(lambda: _is_open(code))
                self._start("dagster._daemon", "run", "-w", str(workspace))
            self._start("dagster_webserver", "-h", "127.0.0.1", "-p", str(web), "-w", str(workspace))
            self._wait_for(self._answers)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all of it."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, module: str, *arguments: str) -> None:
        environment = {
            **os.environ,
            "MONTAGE_DATA": str(self.data),
            "DAGSTER_HOME": str(self._home),
            "MONTAGE_EXECUTOR": "local",
            "PYTHONPATH": str(ROOT),
        }
        with (self.folder / f"{module}.log").open("wb") as log:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._processes.append(process)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/server_info", timeout=5):  # noqa: S310
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _wait_for(self, is_there: Callable[[], bool]) -> None:
        for _ in range(600):
            if is_there():
                return
            time.sleep(0.2)
        raise TimeoutError("\n".join(log.read_text()[-1500:] for log in self.folder.glob("*.log")))


def _is_open(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
