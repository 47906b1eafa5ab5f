"""Runs in pods that are killed at random: `python -m tests.cluster.kills --runs 20 [--seed N]`.

Every few seconds a pod is killed (exit 137), a job deleted, or a node lost for a while. The run's own pod is not
spared; a real daemon takes such a run up again. Every run must end in the film of an undisturbed run, with no shard
missing or twice, or in a failure that names the step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import dagster as dg

from montage_assets.assets.proxies import Proxies
from montage_assets.assets.scene_shards import Scenes
from montage_assets.data_root import DataRoot
from montage_assets.io import read_record
from tests.assets.small_montage import write_montage
from tests.cluster.clusters import plan
from tests.cluster.deployment import Deployment, deployed
from tests.media.synth_footage import write_clip
from tests.media.synth_video import frames_in

ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
LONGEST_RUN_S = 900
COSTLY = "costly.mp4"
"""Costly enough to decode that it gets a proxy."""


def main() -> None:
    """Make the reference, then the disturbed runs; exit 1 when one ends wrongly."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.kills")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="pod-kills-") as folder:
        footage = write_montage(Path(folder) / "footage")
        write_clip(footage / COSTLY, (60, 50), seed=5, filters="scale=2560:1440:flags=neighbor")
        reference = _disturbed_run(Path(folder) / "reference", footage, None)[1]
        for number in range(options.runs):
            outcome, film = _disturbed_run(Path(folder) / str(number), footage, random.Random(options.seed + number))
            if film is not None and film != reference:
                outcome = f"WRONG FILM after {outcome}"
            print(f"run {number + 1}: {outcome}", flush=True)
            outcomes[outcome.partition(" (")[0]] += 1
            shutil.rmtree(Path(folder) / str(number))
    print(dict(outcomes))
    sys.exit(any(outcome.startswith("WRONG") for outcome in outcomes))


def _disturbed_run(folder: Path, footage: Path, chance: random.Random | None) -> tuple[str, object]:
    folder.mkdir()
    data = folder / "data"
    shutil.copytree(footage, data / "input" / "small")
    with deployed(plan(), data, folder, {"MONTAGE_WORKERS": "4"}) as deployment:
        # The daemon is to take up runs; its sensor must find nothing to make.
        elsewhere = {"MONTAGE_DATA": str(folder / "nothing"), "KUBECONFIG": str(deployment.cluster.kubeconfig)}
        environment = {**os.environ, "DAGSTER_HOME": deployment.instance.root_directory, **elsewhere}
        daemon = subprocess.Popen(
            [Path(sys.executable).with_name("dagster-daemon"), "run", "-m", "montage_assets.definitions"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            run_id = _launch(deployment)
            done = [] if chance is None else _disturb(deployment, run_id, chance)
            run = _last_of_its_retries(deployment, deployment.wait(run_id, LONGEST_RUN_S, taken_up_again=True))
            run_id = run.run_id
        finally:
            daemon.terminate()
            daemon.wait()
        if run.status is dg.DagsterRunStatus.SUCCESS:
            _refuse_missing_or_double_shards(deployment)
            film = data / "output" / "small"
            frames = [bytes(frame.to_ndarray().tobytes()) for frame in frames_in(film / "montage.mp4")]
            return f"the film ({', '.join(done)})", ((film / "montage.json").read_bytes(), frames)
        events = [entry.dagster_event for entry in deployment.instance.all_logs(run_id) if entry.dagster_event]
        failures = [event for event in events if event.is_step_failure]
        failed = sorted({event.step_key or "" for event in failures})
        for event in failures:
            print(f"  {event.step_key}: {event.step_failure_data.error_display_string[:300]}")
        if not failed:
            print("\n".join(deployment.messages(run_id)[-12:]))
            return f"WRONG: {run.status.value} without a step's name ({', '.join(done)})", None
        return f"failure that names {', '.join(failed)} ({', '.join(done)})", None


def _launch(deployment: Deployment) -> str:
    """Launch by command: only a run that knows its code location can be made again by the daemon."""
    command = [Path(sys.executable).with_name("dagster"), "job", "launch", "-m", "montage_assets.definitions"]
    deployment.instance.add_dynamic_partitions("montage", ["small"])
    subprocess.run(
        [*command, "-j", "montage", "--tags", json.dumps({"dagster/partition": "small"})],
        env={**os.environ, "DAGSTER_HOME": deployment.instance.root_directory},
        check=True,
        capture_output=True,
    )
    (run,) = deployment.instance.get_runs()
    return run.run_id


def _last_of_its_retries(deployment: Deployment, run: dg.DagsterRun) -> dg.DagsterRun:
    """The run, or that which the daemon made of it after it was killed."""
    while run.status is dg.DagsterRunStatus.FAILURE and run.tags.get("dagster/will_retry") == "true":
        since = time.monotonic()
        while not (again := deployment.instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": run.run_id}))):
            if time.monotonic() - since > LONGEST_RUN_S:
                raise AssertionError(f"run {run.run_id} was not made again")
            time.sleep(1)
        run = deployment.wait(again[0].run_id, LONGEST_RUN_S, taken_up_again=True)
    return run


def _disturb(deployment: Deployment, run_id: str, chance: random.Random) -> list[str]:
    """Three disturbances at random moments, fewer when the run is faster."""
    cluster, done = deployment.cluster, []
    for _ in range(3):
        time.sleep(chance.uniform(3, 15))
        run = deployment.instance.get_run_by_id(run_id)
        if run is None or run.status in ENDED:
            break
        alive = [pod for pod in cluster.pods if pod.started and not pod.ended]
        if not alive:
            continue
        victim = chance.choice(alive)
        step = deployment.step_of(victim) or "the run"
        kind = chance.choice(["killed", "job deleted", "node lost"])
        if kind == "killed":
            cluster.kill_pod(victim.name)
        elif kind == "job deleted" and step != "the run":
            cluster.delete_job(victim.job)
        elif victim.node is not None:
            kind = "node lost"
            cluster.lose_node(victim.node)
            time.sleep(chance.uniform(1, 10))
            cluster.return_node(victim.node)
        done.append(f"{kind}: {step}")
    return done


def _refuse_missing_or_double_shards(deployment: Deployment) -> None:
    root = DataRoot(str(deployment.data))
    scenes = read_record(root, "work/montages/small/scene_shards.json", Scenes)
    proxies = read_record(root, "work/montages/small/proxies.json", Proxies)
    parts = [(part.clip, part.part) for report in [*proxies.reports, *scenes.reports] for part in report.ranges]
    if len(parts) != len(set(parts)):
        raise AssertionError(f"a shard is in the result twice: {parts}")
    if {clip.name for clip in scenes.clips} != {COSTLY, "closed.mp4", "open.mkv", "web.webm", "sub clip.mpg"}:
        raise AssertionError(f"clips are missing: {[clip.name for clip in scenes.clips]}")


if __name__ == "__main__":
    main()
