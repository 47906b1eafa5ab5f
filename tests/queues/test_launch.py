"""`montage launch` against a real Dagster webserver and daemon."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from montage_assets.cluster.errors import ClusterError
from montage_assets.remote_run import Coordinator
from montage_assets.run_view import ASSETS
from tests.assets.small_montage import write_montage
from tests.queues.coordinator import RealCoordinator
from tests.queues.farm import COMMAND
from tests.queues.films import edit_list_of, frames_of


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCoordinator]:
    coordinator = RealCoordinator(tmp_path_factory.mktemp("coordinator"))
    write_montage(coordinator.data / "input" / "holiday")
    yield coordinator
    coordinator.stop()


def launch(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "launch", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 -- no threads at work here
    )


def test_a_launched_run_is_followed_to_its_film_as_one_made_here(coordinator: RealCoordinator) -> None:
    run = launch("holiday", "--duration", "6", COORDINATOR_URL=coordinator.url)
    output = run.communicate(timeout=240)[0]
    assert run.returncode == 0, output
    film = coordinator.data / "output" / "holiday" / "montage.mp4"
    frames, _ = frames_of(film)
    told = [line for line in output.splitlines() if line.endswith(" ...")]
    assert next(line.removesuffix(" ...") for line in told if line.removesuffix(" ...") in ASSETS) == "footage"
    assert "rendered_segments: done in" in output
    assert f"film:       {film}" in output
    assert f"length:     {frames / 25:.2f} s, 192x108, 25 fps" in output
    edit = edit_list_of(film)
    assert isinstance(edit, dict)
    assert f"cuts:       {len(edit['shots']) - 1}\n" in output
    assert "\nmontage: " not in output.replace("\nmontage: done in", "")


def test_ctrl_c_cancels_the_run_on_the_coordinator(coordinator: RealCoordinator) -> None:
    run = launch("holiday", "--set", "seed=7", "--coordinator", coordinator.url)
    assert run.stdout is not None
    lines = []
    for line in run.stdout:
        lines.append(line)
        if line.startswith("footage ..."):
            break
    run.send_signal(signal.SIGINT)
    output = "".join(lines) + run.communicate(timeout=120)[0]
    assert run.returncode == 1, output
    assert "cancelling the run; press Ctrl-C again to leave it to itself" in output
    assert output.splitlines()[-1] == (
        "montage: the run was cancelled; finished work is kept, launch it again to go on"
    )
    assert "film:" not in output


def test_a_montage_without_a_folder_is_one_line_that_names_those_there_are(coordinator: RealCoordinator) -> None:
    run = launch("holidy", "--coordinator", coordinator.url)
    output = run.communicate(timeout=120)[0]
    assert run.returncode == 2, output
    assert output.splitlines()[-1].startswith("montage: there is no montage 'holidy' in ")
    assert output.splitlines()[-1].endswith("the montages there are: holiday")


def test_a_detached_run_is_only_submitted(coordinator: RealCoordinator) -> None:
    run = launch("holidy", "--detach", "--coordinator", coordinator.url)
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 0
    assert output.startswith(f"run:        {coordinator.url}/runs/")
    assert len(output.splitlines()) == 1


def test_a_wrong_address_is_one_line(coordinator: RealCoordinator) -> None:
    run = launch("holiday", "--coordinator", "http://127.0.0.1:1")
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 2
    assert len(output.splitlines()) == 1
    assert output.startswith("montage: there is no coordinator at http://127.0.0.1:1 (")
    with pytest.raises(ClusterError, match="'ftp://host' is no address of a coordinator"):
        Coordinator("ftp://host")


def test_a_server_that_is_no_dagster_is_one_line(tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ClusterError, match=r"does not answer as a Dagster webserver does \(HTTP 501\)"):
            Coordinator(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def test_a_broken_code_location_is_one_line_with_the_cause(tmp_path: Path) -> None:
    coordinator = RealCoordinator(tmp_path / "broken", is_broken=True)
    try:
        with pytest.raises(ClusterError, match=r"the code location .* of .* cannot be loaded: .*nothing_here"):
            Coordinator(coordinator.url)
    finally:
        coordinator.stop()
