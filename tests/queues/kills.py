"""Montages while workers are killed and Redis is restarted at random: `python -m tests.queues.kills --runs 20`.

Every run must end in the right film (the edit list and the decoded frames of an undisturbed local run) or in a
failure that names the step. Prints a line per run and a summary; the exit code is 1 when a run ended otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from montage_assets.cluster.broker import BrokerAwayError
from tests.assets.small_montage import write_montage
from tests.queues.farm import Farm
from tests.queues.films import edit_list_of, frames_of
from tests.redis_server import RedisServer

WORKERS = ("cpu", "cpu", "gpu", "cgpu")
TIMEOUT_S = 300


class Chaos(threading.Thread):
    """Kills until told to stop, and starts again what it has killed, as a supervisor would."""

    def __init__(self, farm: Farm, chance: random.Random, most: int) -> None:
        super().__init__(daemon=True)
        self._farm, self._chance, self._most = farm, chance, most
        self.over = threading.Event()
        self.done: list[str] = []

    def run(self) -> None:
        while not self.over.wait(self._chance.uniform(1.5, 6)) and len(self.done) < self._most:
            kind = self._chance.choice(("worker", "worker", "process", "redis"))
            if kind == "redis":
                self._restart_redis()
            else:
                self._kill_somebody(kind)

    def _restart_redis(self) -> None:
        away_s = self._chance.uniform(0.1, 5)
        self._farm.redis.kill()
        time.sleep(away_s)
        self._farm.redis.start()
        self.done.append(f"redis {away_s:.1f} s")

    def _kill_somebody(self, kind: str) -> None:
        """Rather one that is at a step than any."""
        for _ in range(40):
            busy = self._busy()
            if busy or self._chance.random() < 0.02:
                break
            time.sleep(0.1)
        alive = [index for index, worker in enumerate(self._farm.workers) if worker.poll() is None]
        index = self._chance.choice([i for i in alive if self._farm.workers[i].pid in busy] or alive)
        worker = self._farm.workers[index]
        if kind == "process":
            child = busy.get(worker.pid)
            if child is not None:
                _kill(child)
                self.done.append(f"process of {self._farm.kinds[index]}")
            return
        _kill(worker.pid)
        worker.wait()
        self.done.append(f"{self._farm.kinds[index]}{' at a step' if worker.pid in busy else ''}")
        self._farm.start_worker(self._farm.kinds[index])

    def _busy(self) -> dict[int, int]:
        """By workers that are at a step (process ids) the process that carries it out."""
        found = {}
        try:
            for lease in self._farm.broker.leases():
                match = re.match(r"runs on \w+-(\d+)@\S+ \((\d+)\)$", lease)
                if match:
                    found[int(match[1])] = int(match[2])
        except BrokerAwayError:
            return {}
        return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def one_run(number: int, seed: int, source: Path, expected: tuple[object, object], folder: Path) -> tuple[str, str]:
    """Returns how the run ended (film, named failure, or what is wrong) and a line about it."""
    chance = random.Random(seed)
    (folder / "redis").mkdir(parents=True)
    redis = RedisServer(folder / "redis")
    farm = Farm(redis, folder)
    shutil.copytree(source, farm.data / "input" / "holiday")
    chaos = Chaos(farm, chance, most=chance.randint(2, 5))
    started = time.monotonic()
    try:
        for kind in WORKERS:
            farm.start_worker(kind)
        farm.wait_for_workers(len(WORKERS))
        run = farm.make("holiday", MONTAGE_WORKERS="3")
        chaos.start()
        try:
            output = run.communicate(timeout=TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            run.kill()
            output = run.communicate()[0]
        chaos.over.set()
        chaos.join()
    finally:
        farm.stop()
        redis.kill()
    (folder / "output.txt").write_text(output)
    lost = len(re.findall(r" was lost: ", output))
    ending = _ending(run.returncode, output, farm.film("holiday"), expected)
    took = time.monotonic() - started
    return ending, f"run {number} (seed {seed}): {ending}; {took:.0f} s; {lost} redelivered; {', '.join(chaos.done)}"


def _ending(code: int, output: str, film: Path, expected: tuple[object, object]) -> str:
    if code == 0:
        return "film" if (edit_list_of(film), frames_of(film)) == expected else "WRONG FILM"
    if code < 0:
        return "HANGS"
    last = output.strip().splitlines()[-1] if output.strip() else ""
    return "named failure" if re.match(r"montage: .*\b[a-z_.]+(\[\w+\])? was lost twice", last) else f"UNNAMED: {last}"


def undisturbed(folder: Path, source: Path) -> tuple[object, object]:
    """Edit list and frames of the local film."""
    environment = {**os.environ, "MONTAGE_DATA": str(folder / "data"), "DAGSTER_HOME": "", "MONTAGE_EXECUTOR": "local"}
    subprocess.run(
        [sys.executable, "-m", "montage_assets.cli", "make", str(source)],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    film = folder / "data" / "output" / source.name / "montage.mp4"
    return edit_list_of(film), frames_of(film)


def main() -> int:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="kills-"))
    source = write_montage(base / "local" / "data" / "input" / "holiday")
    expected = undisturbed(base / "local", source)
    endings: Counter[str] = Counter()
    for number in range(options.runs):
        folder = base / f"run-{number}"
        ending, line = one_run(number, options.seed + number, source, expected, folder)
        endings[ending] += 1
        print(line, flush=True)
    print(", ".join(f"{count} x {ending}" for ending, count in endings.most_common()), f"({base})")
    return 0 if set(endings) <= {"film", "named failure"} else 1


if __name__ == "__main__":
    sys.exit(main())
