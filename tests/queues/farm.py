"""Real workers as processes of their own, and montages made by them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from montage_assets.cluster.broker import Broker, BrokerAwayError, LiveWorker
from montage_assets.settings import Settings
from tests.redis_server import RedisServer

COMMAND = [sys.executable, "-m", "montage_assets.cli"]
LEASE_S = 6
ROOT = Path(__file__).parents[2]


class Farm:
    """Workers on one Redis and one data root."""

    def __init__(self, redis: RedisServer, folder: Path) -> None:
        self.redis, self.folder = redis, folder
        self.data = folder / "data"
        (self.data / "input").mkdir(parents=True, exist_ok=True)
        home = folder / "dagster"
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        self.environment = {
            **os.environ,
            "MONTAGE_DATA": str(self.data),
            "DAGSTER_HOME": str(home),
            "MONTAGE_EXECUTOR": "celery",
            "REDIS_URL": redis.url,
            "WORKER_LEASE": str(LEASE_S),
            "PYTHONPATH": str(ROOT),
        }
        self.broker = Broker(Settings.from_environment(self.environment))
        self.workers: list[subprocess.Popen[bytes]] = []
        self.kinds: list[str] = []

    def start_worker(self, kind: str, *options: str, more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a worker; `wait_for_workers` tells when it is there."""
        log = (self.folder / f"worker-{len(self.workers)}-{kind}.log").open("wb")
        worker = subprocess.Popen(
            [*COMMAND, "worker", *options],
            env={**self.environment, "WORKER_TYPE": kind, **(more or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
        )
        log.close()
        self.workers.append(worker)
        self.kinds.append(kind)
        return worker

    def live_workers(self) -> list[LiveWorker]:
        """The workers that Redis knows of."""
        try:
            return self.broker.live_workers()
        except BrokerAwayError:
            return []

    def wait_for_workers(self, number: int) -> None:
        """Wait until so many workers have shown themselves."""
        wait_until(lambda: len(self.live_workers()) == number, f"{number} workers at work", self.logs)

    def make(self, montage: str, *options: str, **more: str) -> subprocess.Popen[str]:
        """Start to make a montage of input/; `more` are variables of the environment."""
        return subprocess.Popen(
            [*COMMAND, "make", str(self.data / "input" / montage), *options],
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
        )

    def film(self, montage: str) -> Path:
        """Where a montage's film lies."""
        return self.data / "output" / montage / "montage.mp4"

    def logs(self) -> str:
        """What the workers said last."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in self.folder.glob("*.log")
        )

    def stop(self) -> None:
        """End all workers at once."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGKILL)
            worker.wait()


def wait_until(is_so: Callable[[], bool], what: str, explain: Callable[[], str], timeout_s: float = 90) -> None:
    """Wait for something; after `timeout_s` it is an error that tells what was waited for."""
    ends = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > ends:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s\n{explain()}")
        time.sleep(0.1)
