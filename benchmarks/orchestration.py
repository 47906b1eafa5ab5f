"""What the flow around the media functions costs, what its parts load, and what is done again in a second run."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import Bench, probed
from benchmarks.measuring import children_cpu_s
from benchmarks.report import Line, Section, Table, within
from benchmarks.scoring import SHARDS
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import ffmpeg_program

CLIPS, CLIP_S, FILM_S, SEGMENTS = 8, 12.0, 72.0, 8
ROUNDS = 3
MOST_FOR_ORCHESTRATION_S = 6.0
MOST_FOR_IMPORT_S = 2.0
MOST_FOR_SECOND_RUN_S = 4.0
HEAVY = ("cv2", "scipy", "librosa", "numba", "scenedetect", "av", "PIL", "pandas", "torch")

# ffmpeg is asked for its version in every run, since the version is part of every key; that is no media work.
_COUNTING_FFMPEG = """#!/bin/sh
case " $* " in *" -version "*) ;; *) printf '%s\\n' "$*" >> "{log}" ;; esac
exec "{ffmpeg}" "$@"
"""


@dataclass(frozen=True)
class Run:
    """One run of a program: its CPU-seconds with all children, what it printed, the ffmpeg calls it made."""

    cpu_s: float
    printed: str
    calls: list[str]

    @property
    def analysed(self) -> int:
        """Calls that decoded a clip for its scores."""
        return sum("-f nut" in call and "pipe:1" in call for call in self.calls)


@dataclass(frozen=True)
class Stage:
    """A data root of its own, and an ffmpeg that writes down how it is called."""

    root: Path

    def run(self, *arguments: str, **extra: str) -> Run:
        """Run Python with these arguments. Raises MediaError when it fails."""
        log = self.root / "calls.txt"
        log.write_text("")
        before = children_cpu_s()
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=self._environment(log, extra), check=False
        )
        cpu_s = children_cpu_s() - before
        if done.returncode != 0:
            raise MediaError(f"{' '.join(arguments)} failed: {done.stderr[-800:]}")
        return Run(cpu_s, done.stdout, log.read_text().splitlines())

    def _environment(self, log: Path, extra: Mapping[str, str]) -> dict[str, str]:
        program = self.root / "ffmpeg"
        if not program.is_file():
            program.write_text(_COUNTING_FFMPEG.format(log=log, ffmpeg=ffmpeg_program()))
            program.chmod(0o755)
        own = {
            "MONTAGE_DATA": str(self.root / "data"),
            "DAGSTER_HOME": str(self.root / "dagster"),
            "MONTAGE_FFMPEG": str(program),
        }
        (self.root / "dagster").mkdir(exist_ok=True)
        (self.root / "dagster" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        return {**os.environ, **own, **extra}


def measure(bench: Bench) -> Section:
    """A whole local run beside the bare functions; then again unchanged, and with another song."""
    songs = bench.songs()
    if not songs:
        raise MediaError(f"{bench.media} holds no song; name a folder with one by --media")
    whole: list[Run] = []
    bare: list[float] = []
    again: list[Run] = []
    other: list[Run] = []
    start: list[float] = []
    imported: list[float] = []
    dagster_alone: list[float] = []
    with tempfile.TemporaryDirectory(dir=bench.work) as made:
        folder = _folder(bench, songs[0], Path(made) / "footage")
        another = shutil.copyfile(songs[-1], Path(made) / f"another{songs[-1].suffix}")
        for number in range(ROUNDS):
            stage = Stage(Path(made) / f"round{number}")
            stage.root.mkdir()
            make = ("-m", "benchmarks.whole_run", "make", str(folder))
            start.append(stage.run("-c", "pass").cpu_s)
            dagster_alone.append(stage.run("-c", "import dagster").cpu_s)
            imported.append(stage.run("-c", "import montage_assets.definitions").cpu_s)
            bare.append(_bare(stage, folder))
            whole.append(stage.run(*make, MONTAGE_WORKERS=str(SHARDS)))
            again.append(stage.run("-m", "montage_assets.cli", "make", str(folder)))
            other.append(stage.run("-m", "montage_assets.cli", "make", str(folder), "--music", str(another)))
        loaded = _heavy_loaded(stage)
    around = statistics.median(run.cpu_s - alone for run, alone in zip(whole, bare, strict=True))
    beyond = statistics.median(run.cpu_s - alone for run, alone in zip(again, start, strict=True))
    importing = statistics.median(seconds - alone for seconds, alone in zip(imported, start, strict=True))
    rows = [
        ["starting Python", start],
        ["`import dagster`", dagster_alone],
        ["`import montage_assets.definitions`", imported],
        ["bare media functions", bare],
        ["`montage make`, first run", [run.cpu_s for run in whole]],
        ["the same again", [run.cpu_s for run in again]],
        ["with another song", [run.cpu_s for run in other]],
    ]
    dagster_s = statistics.median(dagster_alone) - statistics.median(start)
    why = (
        f"importing dagster is {dagster_s:.2f} CPU-s of it, and numpy, SQLAlchemy and pydantic another half second; "
        "the rest is Dagster's own: about 150 events, each written over a new SQLite engine and connection, and the "
        "look-up of every input's data version."
    )
    return Section(
        "Orchestration",
        f"{CLIPS} clips of {CLIP_S:g} s, {SHARDS} shards, {SEGMENTS} segments, every step in the run's process, SQLite "
        "storage; CPU-seconds of the process and all children, imports included. ffmpeg is called through a program "
        f"that writes down every call. Median of {ROUNDS} rounds in turns, each on an empty data root.",
        [
            within(
                f"whole run beyond the bare functions, {CLIPS} clips, {SHARDS} shards, {SEGMENTS} segments",
                around,
                MOST_FOR_ORCHESTRATION_S,
                " CPU-s",
                why,
            ),
            within("importing the definitions", importing, MOST_FOR_IMPORT_S, " CPU-s", why),
            Line("heavy libraries that it loads", ", ".join(loaded) or "none", "none", not loaded),
            _none("ffmpeg calls of a second run", [len(run.calls) for run in again]),
            within("second run beyond starting Python", beyond, MOST_FOR_SECOND_RUN_S, " CPU-s", why),
            _none("clips decoded for analysis with another song", [run.analysed for run in other]),
        ],
        [Table(["CPU-seconds", "best", "median"], [[str(name), *_best_and_median(cpu)] for name, cpu in rows])],
    )


def _folder(bench: Bench, song: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    source = bench.film()
    room_s = probed(source).duration_s - CLIP_S
    settings = ("-an", "-vf", "scale=640:360,setsar=1", "-c:v", "libx264", "-preset", "veryfast", "-crf", "23")
    for number in range(CLIPS):
        clip = bench.cut(source, f"clip{number}", room_s * number / (CLIPS - 1), CLIP_S, settings)
        shutil.copyfile(clip, folder / f"clip{number}.mp4")
    shutil.copyfile(song, folder / f"song{song.suffix}")
    (folder / "montage.yaml").write_text(f"duration: {FILM_S:g}\nquality: preview\n")
    return folder


def _bare(stage: Stage, folder: Path) -> float:
    found = json.loads(stage.run("-m", "benchmarks.bare_run", str(folder)).printed)
    if found["segments"] != SEGMENTS:
        raise MediaError(f"the film has {found['segments']} segments, not {SEGMENTS}; change FILM_S")
    return float(found["cpu_s"])


def _heavy_loaded(stage: Stage) -> list[str]:
    program = f"import sys, montage_assets.definitions; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    return stage.run("-c", program).printed.split()


def _none(what: str, counts: list[int]) -> Line:
    return Line(what, str(max(counts)), "0", max(counts) == 0)


def _best_and_median(seconds: object) -> list[str]:
    assert isinstance(seconds, list)
    return [f"{min(seconds):.2f}", f"{statistics.median(seconds):.2f}"]
