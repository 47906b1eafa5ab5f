"""Whole montages with a cgpu that fails: `python -m tests.cloud.whole_runs [--only NAME]`.

Every way to fail is met by every kind of work that may go to the cloud, each being the first that the run asks for,
at its first call and in the middle of its work. After each run it is checked by independent means that

- the film was made: as many frames as without cgpu, the same edit, and the very same file where all was done here;
- the reason stands in the metadata of every step that fell back, and once in the run's log;
- the login is as it was, byte for byte, with its time and rights;
- no process of cgpu and no file of a call is left, cgpu was called as often as the failure allows and not once more,
  and every call ended by itself, but for those that have to be stopped.

Prints a line for each run; exits 1 at the first that is wrong. The test suite does the same once for each class of
failure (test_failure_modes.py). What stands in for the service is `cgpu_program`; scores of the clips' frames, which
cost most, are made once and found again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import dagster as dg
import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.cloud import client as clients
from montage_assets.cloud import offload, workspace
from montage_assets.cloud.client import CGPUClient
from montage_assets.cloud.failures import CloudFault
from montage_assets.cloud.journal import FAILURES_ENDURED, Failed, all_failed
from montage_assets.cloud.offload import LIMIT_S
from montage_assets.cloud.policy import COSTS, WorkKind
from montage_assets.data_root import DataRoot
from montage_assets.media import transnet, upscaling
from montage_assets.media.transnet import Compute, Looks, Window
from tests.assets.small_montage import run_job
from tests.cloud import cgpu_program
from tests.cloud.conftest import Cloud, cloud_in
from tests.media.synth_footage import write_clip, write_song

MONTAGE = "holiday"
SPEC = "resolution: 256x144\nfps: 25\nduration: 2\npace: fast\nupscale: auto\ndetector: {detector}\n"
KINDS: tuple[WorkKind, ...] = ("beats", "scenes", "neural scenes", "upscale", "encode")
"""In the order in which a run comes to them."""
STEPS: dict[WorkKind, tuple[str, str]] = {
    "beats": ("beats", "done"),
    "scenes": ("scene_shards.merge_scenes", "done"),
    "neural scenes": ("scene_shards.merge_scenes", "network's fallbacks"),
    "upscale": ("rendered_segments.upscale_shot", "left out"),
    "encode": ("rendered_segments.encode_segment", "fallback"),
}
"""The step of a kind of work, and the metadata that says why it was done here."""

_ASKED_FOR = "in the cloud: it was asked for"
DONE_THERE: dict[WorkKind, str] = {
    "beats": _ASKED_FOR, "scenes": _ASKED_FOR, "neural scenes": "none", "upscale": "no", "encode": "none",
}  # fmt: skip
"""What that metadata says when it was done in the cloud."""

Arrange = Callable[[Cloud, pytest.MonkeyPatch], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Mishap:
    """One way to fail: a mode of the program, or what is `arrange`d around it.

    `befalls`: the kinds of work that it does not leave alone. `calls`: how often cgpu is called in a run that asks for
    all kinds from the first of those on, and meets it from the first call on. `stopped`: each such call has to be ended
    by force. `line` is what shows, where it is not the class's.
    """

    fault: CloudFault
    calls: int
    arrange: Arrange | None = None
    stopped: bool = False
    befalls: tuple[WorkKind, ...] = KINDS
    line: str = ""

    @property
    def told(self) -> str:
        return self.line or self.fault.line


MIDDLE = 4
"""The call of a piece of work with which its script is run: before, there are a workspace, an upload, a look at it."""


@contextlib.contextmanager
def _without_program(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (cloud.folder / "path" / "cgpu").unlink()
    yield


@contextlib.contextmanager
def _without_login(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cloud.session.unlink()
    yield


@contextlib.contextmanager
def _with_damaged_login(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cloud.session.write_text(cloud.session.read_text()[:40])
    yield


@contextlib.contextmanager
def _without_network(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(offload, "is_offline", lambda: True)
    yield


@contextlib.contextmanager
def _in_use(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another process has a call of cgpu going."""
    defaults = CGPUClient.__init__.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "lock_wait_s", 0.2)
    with (cloud.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _too_large(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(workspace, "LARGEST_BYTES", 1000)
    yield


@contextlib.contextmanager
def _short_limits(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for kind in KINDS:
        monkeypatch.setitem(LIMIT_S, kind, 3.0)
    yield


@contextlib.contextmanager
def _little_output(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(clients, "_MOST_OUTPUT", 1 << 20)
    yield


def _scripts_that(command: str) -> Arrange:
    """A cloud machine on which our scripts end so; `command` is a line of shell."""

    @contextlib.contextmanager
    def arrange(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        cgpu_program.give_program(cloud.state, "python3", command)
        yield

    return arrange


@contextlib.contextmanager
def _gpu_without_encoder(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cloud.give_gpu("NVIDIA A100-SXM4-40GB")
    yield


_RESULTS = "beats.json scenes.json answers.npz upscaled.mkv output.ts"
_KILLED = _scripts_that("echo Killed; exit 137")
_LACKING = _scripts_that("echo MONTAGE-FAULT TOOL_MISSING ffmpeg; exit 1")
_WRONG = _scripts_that(
    f'for made in {_RESULTS}; do echo "{{}}" > $made; done; echo "GPU: Tesla T4"; cat "$@" > /dev/null 2>&1; exit 0'
)

MISHAPS: dict[str, Mishap] = {
    "no-session": Mishap(CloudFault.NO_SESSION, 1, stopped=True),
    "session-lost": Mishap(CloudFault.SESSION_LOST, 1, stopped=True),
    "session-lost-late": Mishap(CloudFault.SESSION_LOST, 1, stopped=True),
    "refused": Mishap(CloudFault.SESSION_LOST, 1),
    "no-network": Mishap(CloudFault.OFFLINE, 1),
    "own-login": Mishap(CloudFault.OFFLINE, 1),
    "no-capacity": Mishap(CloudFault.NO_CAPACITY, 1),
    "quota": Mishap(CloudFault.QUOTA, 1),
    "blocked": Mishap(CloudFault.BLOCKED, 1),
    "too-many": Mishap(CloudFault.TOO_MANY_RUNTIMES, 1),
    "not-offered": Mishap(CloudFault.NOT_OFFERED, 1),
    "not-set-up": Mishap(CloudFault.NOT_SET_UP, 1),
    "theft": Mishap(CloudFault.NOT_SET_UP, 1),
    "lost-socket": Mishap(CloudFault.CONNECTION_LOST, 4),
    "login-thrown-away": Mishap(CloudFault.CONNECTION_LOST, 4, stopped=True),
    "no-terminal": Mishap(CloudFault.CONNECTION_LOST, 4),
    "new-machine": Mishap(CloudFault.RUNTIME_CHANGED, 16),
    "upload-refused": Mishap(CloudFault.UPLOAD_FAILED, 12),
    "upload-damaged": Mishap(CloudFault.UPLOAD_DAMAGED, 14),
    "download-damaged": Mishap(CloudFault.DOWNLOAD_DAMAGED, 14),
    "no-end-line": Mishap(CloudFault.OUTPUT_UNREADABLE, 4),
    "hangs": Mishap(CloudFault.TIMED_OUT, 1, arrange=_short_limits, stopped=True),
    "crashes": Mishap(CloudFault.CRASHED, 1),
    "floods": Mishap(CloudFault.CRASHED, 1, arrange=_little_output, stopped=True),
    "no program": Mishap(CloudFault.NOT_INSTALLED, 0, arrange=_without_program),
    "no login": Mishap(CloudFault.NO_SESSION, 0, arrange=_without_login),
    "damaged login": Mishap(CloudFault.NO_SESSION, 0, arrange=_with_damaged_login),
    "offline": Mishap(CloudFault.OFFLINE, 0, arrange=_without_network, line="this machine is offline"),
    "in use": Mishap(CloudFault.BUSY, 0, arrange=_in_use),
    "too large": Mishap(CloudFault.TOO_LARGE, 10, arrange=_too_large),
    "work killed": Mishap(CloudFault.WORK_FAILED, 25, arrange=_KILLED),
    "tool missing": Mishap(CloudFault.TOOL_MISSING, 20, arrange=_LACKING),
    "wrong result": Mishap(CloudFault.WRONG_RESULT, 34, arrange=_WRONG),
    "no encoder": Mishap(CloudFault.NO_ENCODER, 5, arrange=_gpu_without_encoder, befalls=("encode",)),
}
"""By the program's mode, or by what is arranged around it."""


@dataclass(frozen=True)
class Film:
    """What was made: the file, how many frames it decodes to, its edit list."""

    content: bytes
    frames: int
    edit: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A data root in which all is known that costs, but nothing that the cloud may be asked for; and the film that is
    made there without a cloud."""

    data: Path
    film: Film


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch, detector: str = "adaptive") -> Prepared:
    """Write the footage, make the film without the cloud, forget of it what the cloud may do."""
    data = folder / "data"
    footage = data / "input" / MONTAGE
    footage.mkdir(parents=True)
    write_clip(footage / "one.mp4", (60, 50), seed=1)
    write_clip(footage / "two.mp4", (55, 65), seed=2)
    write_song(footage / "song.wav", bpm=120, duration_s=8)
    (footage / "montage.yaml").write_text(SPEC.format(detector=detector))
    _set_up(data, monkeypatch)
    monkeypatch.setenv("CGPU_GPU_ENABLED", "false")
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_job(MONTAGE, instance).success
    film = film_in(data)
    shutil.rmtree(data / "output")
    for known in ("beats", "scenes", "answers", "segments", "runs", "montages"):
        shutil.rmtree(data / "work" / known, ignore_errors=True)
    return Prepared(data, film)


def film_in(data: Path) -> Film:
    made = data / "output" / MONTAGE
    with av.open(str(made / "montage.mp4")) as film:
        frames = sum(1 for _ in film.decode(video=0))
    return Film((made / "montage.mp4").read_bytes(), frames, json.loads((made / "montage.json").read_text()))


@dataclass(frozen=True)
class Run:
    """A run that was made with a cloud: what it left, said and called."""

    film: Film
    told: dict[WorkKind, list[str]]
    log: list[str]
    cloud: Cloud
    same_login: bool
    failures: list[Failed]

    @property
    def calls_after_the_end(self) -> int:
        """Calls of cgpu that began after the run had no reason left to call it."""
        counted = [failure for failure in self.failures if not failure.kind.of_work]
        ends = [failure.at for failure in counted if failure.kind.lasting]
        ends += [failure.at for failure in counted[FAILURES_ENDURED - 1 :]]
        return sum(1 for at in cgpu_program.times_of_calls(self.cloud.state) if ends and at > min(ends))


def run_with(
    prepared: Prepared,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    behaviour: str = "",
    arrange: Arrange | None = None,
    first: WorkKind = KINDS[0],
    encoders_here: str = "auto",
) -> Run:
    """Make the montage with a cloud that behaves so and is asked for `first` and for all kinds of work after it.

    `encoders_here` is LOCAL_GPU_ENCODE.
    """
    cloud = cloud_in(folder / "cloud", monkeypatch)
    cloud.give_networks()
    cloud.give_gpu()
    cloud.behave(behaviour)
    data = folder / "data"
    shutil.copytree(prepared.data, data)
    _set_up(data, monkeypatch)
    _ask_from(first, monkeypatch)
    monkeypatch.setenv("LOCAL_GPU_ENCODE", encoders_here)
    with dg.DagsterInstance.ephemeral() as instance, (arrange or _nothing)(cloud, monkeypatch):
        before = _state_of(cloud.session)
        result = run_job(MONTAGE, instance)
        same_login = _state_of(cloud.session) == before
        log = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.dagster_event is None]
    assert result.success, log[-5:]
    return Run(
        film_in(data),
        {kind: _told(result, kind) for kind in asked_from(first)},
        log,
        cloud,
        same_login,
        all_failed(DataRoot(str(data))),
    )


def asked_from(first: WorkKind) -> list[WorkKind]:
    """The kinds of work that a run asks the cloud for, in their order. It has one kind of scene detection."""
    other = "scenes" if first == "neural scenes" else "neural scenes"
    return [kind for kind in KINDS[KINDS.index(first) :] if kind != other]


def refuse_what_is_wrong(mishap: Mishap, run: Run, prepared: Prepared, call: int = 1) -> list[WorkKind]:
    """Raises AssertionError, else returns what was done here. `call` is the first that the mishap befell: what was
    uploaded before may have gone well, and only then."""
    assert all(run.told.values()), run.told
    fell_back = [kind for kind, told in run.told.items() if all(mishap.told in each for each in told)]
    befallen = [kind for kind in run.told if kind in mishap.befalls]
    assert fell_back == befallen or (call > 1 and fell_back == befallen[1:]), run.told
    for kind in set(run.told) - set(fell_back):
        assert not any(word in told for told in run.told[kind] for word in ("here", "cloud GPU", "nowhere")), run.told
    lines = [line for line in run.log if mishap.told in line]
    assert len(lines) == (len(fell_back) if mishap.fault.of_work else 1), lines
    assert run.film.frames == prepared.film.frames
    assert run.film.edit["shots"] == prepared.film.edit["shots"]
    if len(fell_back) == len(run.told):
        assert run.film == prepared.film
    assert run.same_login
    assert run.calls_after_the_end == 0
    befallen_calls = max(0, len(run.cloud.calls()) - call + 1)
    assert cgpu_program.stopped_calls(run.cloud.state) == (befallen_calls if mishap.stopped else 0)
    assert left_behind(run.cloud) == []
    if mishap.fault.of_work:
        assert list(run.cloud.content.iterdir()) == [], "something is left lying on the cloud machine"
    assert [path.name for path in Path(tempfile.gettempdir()).glob("montage-*")] == []
    assert "never-shown" not in f"{run.log}{run.told}"
    return fell_back


def left_behind(cloud: Cloud) -> list[str]:
    """Command lines of processes that cgpu, or anything below it, started and that are still there."""
    mark = os.fsencode(cloud.state)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        # Gone meanwhile, or somebody else's.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@contextlib.contextmanager
def _nothing(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield


def _set_up(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This data root, and a machine of its own, without hardware and with stand-ins for the neural networks."""
    home, place = data.parent / "dagster", data.parent / "place"
    home.mkdir(exist_ok=True)
    place.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    monkeypatch.setenv("MONTAGE_DATA", str(data))
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("LOCAL_GPU_ENCODE", "auto")
    for variable in ("FFMPEG_HWACCEL", "OUTPUT_CODEC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(upscaling, "is_installed", lambda: False)
    monkeypatch.setattr(transnet, "refuse_without_network", lambda detector: None)
    monkeypatch.setattr(transnet, "network_version", lambda: "a stand-in")
    monkeypatch.setattr(transnet, "look", _look)


def _look(pictures: NDArray[np.uint8], windows: Sequence[Window], compute: Compute) -> Looks:
    """What the stand-in on the cloud machine answers: how bright each picture is."""
    answers = []
    for window in windows:
        kept = np.clip(np.arange(window.keep_from, window.keep_until), 0, len(pictures) - 1)
        answers.append((pictures[kept].mean(axis=(1, 2, 3)) / 255).astype(np.float32))
    return Looks(answers, "cpu")


def _ask_from(first: WorkKind, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_from(first)
    monkeypatch.setenv("CGPU_BEAT_DETECT", str("beats" in asked))
    monkeypatch.setenv("CGPU_SCENE_DETECT", str("scenes" in asked or "neural scenes" in asked))
    monkeypatch.setenv("CGPU_ENCODE", "true")
    monkeypatch.setenv("CGPU_ENCODE_THRESHOLD", "1")
    # Upscaling has no switch: a machine that is slow enough is what makes it pay.
    seconds = 1000.0 if "upscale" in asked else 0.0
    monkeypatch.setitem(COSTS, "upscale", replace(COSTS["upscale"], local=seconds))


def _state_of(file: Path) -> tuple[bytes, int, int] | None:
    return (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_mode) if file.exists() else None


def _told(result: dg.ExecuteInProcessResult, kind: WorkKind) -> list[str]:
    """What the metadata of all steps of that kind say of where it was done."""
    step, field = STEPS[kind]
    told = []
    for event in result.all_events:
        if (event.step_key or "").partition("[")[0] != step:
            continue
        if event.is_step_materialization:
            told.append(event.materialization.metadata.get(field))
        elif event.is_successful_output:
            told.append(event.step_output_data.metadata.get(field))
    return [str(value.value) for value in told if value is not None]


def whole_runs(names: Sequence[str]) -> Iterator[tuple[str, Mishap | None, WorkKind, int]]:
    """Every run to make: its title, the mishap (None where nothing fails), first kind of work, first call."""
    for first in KINDS:
        yield f"nothing fails, from {first} on", None, first, 1
        for name in names:
            yield f"{name}, from {first} on", MISHAPS[name], first, 1
            if name in cgpu_program.MODES:
                yield f"{name}, from the middle of {first} on", MISHAPS[name], first, MIDDLE


def main() -> None:
    """Make them all; exit 1 at the first that goes wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.cloud.whole_runs")
    parser.add_argument("--only", choices=[*MISHAPS], help="this way to fail alone")
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory(prefix="cgpu-runs-") as place, pytest.MonkeyPatch.context() as monkeypatch:
        prepared = {name: prepare(Path(place) / name, monkeypatch, name) for name in ("adaptive", "transnetv2")}
        for number, (title, mishap, first, call) in enumerate(whole_runs([only] if only else [*MISHAPS])):
            began = time.monotonic()
            folder = Path(place) / str(number)
            known = prepared["transnetv2" if first == "neural scenes" else "adaptive"]
            try:
                said = one_run(folder, known, mishap, title.partition(",")[0], first, call)
            except AssertionError as error:
                print(f"{title}: WRONG\n{error}")
                sys.exit(1)
            print(f"{title}: {said} [{time.monotonic() - began:.1f} s]", flush=True)
            shutil.rmtree(folder)


def one_run(folder: Path, prepared: Prepared, mishap: Mishap | None, name: str, first: WorkKind, call: int) -> str:
    """What happened, for people. Raises AssertionError."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        behaviour = f"{name} {call}" if name in cgpu_program.MODES else ""
        arrange = mishap.arrange if mishap else None
        run = run_with(prepared, folder, monkeypatch, behaviour=behaviour, arrange=arrange, first=first)
        calls = len(run.cloud.calls())
        if mishap is None:
            refuse_what_failed(run, prepared)
            return f"film made, {calls} calls, all in the cloud"
        fell_back = refuse_what_is_wrong(mishap, run, prepared, call)
        return f"film made, {calls} calls, {', '.join(fell_back)} here: {mishap.told}"


def refuse_what_failed(run: Run, prepared: Prepared) -> None:
    """Raises AssertionError unless all was done in the cloud, and the film is the one made here."""
    assert run.failures == []
    assert list(run.cloud.content.iterdir()) == [], "something is left lying on the cloud machine"
    assert {kind: set(told) for kind, told in run.told.items()} == {kind: {DONE_THERE[kind]} for kind in run.told}
    assert run.film.edit["shots"] == prepared.film.edit["shots"]
    assert run.film.frames == prepared.film.frames
    assert run.same_login


if __name__ == "__main__":
    main()
