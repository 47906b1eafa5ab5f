"""The command line as a user meets it: its output, its exit codes, one line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from montage_assets.media.ffmpeg import ffmpeg_program
from montage_assets.media.transnet import is_installed
from montage_assets.spec import chosen_detector
from tests.assets.small_montage import write_montage
from tests.media.synth_footage import write_clip, write_song

COMMAND = [sys.executable, "-m", "montage_assets.cli"]


def montage(
    *args: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, env={**os.environ, **(env or {})}, cwd=cwd
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_montage(tmp_path_factory.mktemp("raw") / "holiday")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"MONTAGE_DATA": str(tmp_path / "data"), "DAGSTER_HOME": ""}


def counting_ffmpeg(folder: Path) -> tuple[Path, Path]:
    """An ffmpeg that notes every start, and the file it notes them in."""
    program, notes = folder / "counting-ffmpeg", folder / "ffmpeg-starts"
    program.write_text(f'#!/bin/sh\necho "$*" >> "{notes}"\nexec "{ffmpeg_program()}" "$@"\n')
    program.chmod(0o755)
    return program, notes


def media_work(notes: Path) -> list[str]:
    lines = notes.read_text().splitlines() if notes.exists() else []
    notes.unlink(missing_ok=True)
    return [line for line in lines if "-version" not in line]


def test_make_gives_the_film_its_edit_list_and_the_figures(folder: Path, home: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "film.mp4"
    done = montage("make", folder, "-o", out, env=home)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 10_000
    edit = json.loads(out.with_suffix(".json").read_text())
    assert edit["frames"] == 225
    for word in (
        f"film:       {out}",
        "length:     9.00 s, 192x108, 25 fps",
        "cuts:",
        "worst cut:",
        "seconds:    footage",
    ):
        assert word in done.stdout
    assert "rendered_segments: done in" in done.stderr
    checked = montage("check", out, "--json")
    assert checked.returncode == 0
    again = montage("make", folder, "-o", out, env=home)
    assert again.returncode == 0, "a film of ours may be overwritten"
    verdict = json.loads(checked.stdout)
    assert verdict["passed"]
    assert {check["name"] for check in verdict["checks"]} >= {"frame_count", "cuts_on_beats", "loudness"}


def test_a_second_run_does_no_media_work_and_another_song_decodes_no_clip(
    folder: Path, home: dict[str, str], tmp_path: Path
) -> None:
    program, notes = counting_ffmpeg(tmp_path)
    env = {**home, "MONTAGE_FFMPEG": str(program)}
    assert montage("make", folder, env=env).returncode == 0
    assert media_work(notes)
    assert montage("make", folder, env=env).returncode == 0
    assert media_work(notes) == []
    song = tmp_path / "other.wav"
    write_song(song, bpm=96, duration_s=12)
    assert montage("make", folder, "--music", song, env=env).returncode == 0
    assert not [line for line in media_work(notes) if "-f nut" in line]


def test_several_step_processes_say_no_more_than_one(folder: Path, home: dict[str, str], tmp_path: Path) -> None:
    done = montage("make", folder, env={**home, "MONTAGE_WORKERS": "2"})
    assert done.returncode == 0, done.stderr
    assets = "footage proxies scene_shards beats clip_selections rendered_segments montage film_checks".split()
    for line in done.stderr.splitlines():
        assert line.startswith("  ") or line.split(" ")[0].rstrip(":") in assets, line
    config = (tmp_path / "data" / "dagster" / "dagster.yaml").read_text()
    assert config == (Path(__file__).parents[2] / "dagster.yaml").read_text(), "the instance of `make dev`"


def test_a_film_that_fails_a_check_is_told_by_its_check(folder: Path, home: dict[str, str], tmp_path: Path) -> None:
    done = montage("make", folder, env=home)
    assert done.returncode == 0, done.stderr
    film = tmp_path / "data" / "output" / "holiday" / "montage.mp4"
    whole = film.read_bytes()
    middle = len(whole) // 2
    film.write_bytes(whole[:middle] + bytes(4000) + whole[middle + 4000 :])
    failed = montage("make", folder, env=home)
    assert failed.returncode == 1
    told = failed.stderr.partition("film_checks ...\n")[2].splitlines()
    assert told
    assert all(line.startswith("montage: check ") and " failed: " in line for line in told), told
    film.write_bytes(whole)
    assert montage("make", folder, env=home).returncode == 0, "a verdict is that of the film it was given on"


def test_overrides_reach_the_film(folder: Path, home: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "film.mp4"
    args = ("--duration", "5", "--set", "resolution=108x192", "--set", "seed=9", "-o", out)
    done = montage("make", folder, *args, env=home)
    assert done.returncode == 0, done.stderr
    edit = json.loads(out.with_suffix(".json").read_text())
    assert (edit["size"], edit["frames"], edit["seed"]) == ([108, 192], 125, 9)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("make", "gone"), "there is no folder gone; check its spelling"),
        (("make", ".", "--set", "musik=a"), "--set: there is no key 'musik'; did you mean 'music'?"),
        (("make", ".", "--set", "pace"), "write it as key=value"),
        (("make", ".", "--duration", "soon"), "duration: 'soon'"),
        (("make", ".", "--music", "gone.mp3"), "there is no song gone.mp3"),
        (("make", ".", "-o", "gone/film.mp4"), "make it first"),
        (("make", ".", "-o", "film.avi"), "films are MP4 files; name it film.mp4"),
        (("make", "."), "there is no song in"),
        (("scenes", "gone.mp4"), "there is no video gone.mp4"),
        (("scenes", "text.mp4"), "text.mp4 is no video that can be opened"),
        (("scenes", "text.mp4", "--detector", "magic"), "there is no scene detector 'magic'; choose one of auto"),
        (("decoders", "gone.mp4"), "there is no video gone.mp4"),
        (("beats", "text.mp4"), "text.mp4"),
        (("check", "gone.mp4"), "there is no film gone.mp4"),
        (("check", "text.mp4"), "its edit list text.json cannot be read"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    tmp_path: Path, home: dict[str, str], args: tuple[str, ...], message: str
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    done = montage(*args, env=home, cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("montage: ")
    assert message in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MONTAGE_WORKERS", "many", "MONTAGE_WORKERS is 'many'; set it to a whole number"),
        ("MONTAGE_FFMPEG", "gone", "MONTAGE_FFMPEG is 'gone', which is no program"),
        ("MONTAGE_FFMPEG", "/bin/true", "/bin/true does not run as ffmpeg"),
    ],
)
def test_a_wrong_setting_gets_one_line(
    folder: Path, home: dict[str, str], variable: str, value: str, message: str
) -> None:
    done = montage("make", folder, env={**home, variable: value})
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("own/closed.mp4", "own/closed.mp4 lies among the clips of own"),
        ("link/deep/new.mp4", "link/deep/new.mp4 lies among the clips of own"),
        ("song.mp4", "song.mp4 is the song itself"),
        ("other.mp4", "other.mp4 is there already and is no film of this program"),
        ("linked.mp4", "linked.mp4 is there already and is no film of this program"),
        ("notes.mp4", "notes.json is there already and is no film of this program"),
    ],
)
def test_no_source_and_no_foreign_file_is_overwritten(
    tmp_path: Path, home: dict[str, str], output: str, message: str
) -> None:
    (tmp_path / "own" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "linked.mp4").symlink_to(tmp_path / "other.mp4")
    for name in ("own/closed.mp4", "song.mp4", "other.mp4", "notes.json"):
        (tmp_path / name).write_text(f'{{"the bytes of": "{name}"}}')
    before = contents(tmp_path)
    done = montage("make", "own", "--music", "song.mp4", "-o", output, env=home, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("montage: ")
    assert message in line
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_scenes_prints_the_same_cuts_for_any_number_of_shards(tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    cuts = write_clip(video, (50, 60, 45, 55))
    printed = [montage("scenes", video, "--json", "--shards", shards).stdout for shards in (1, 3, 7)]
    assert len(set(printed)) == 1
    found = json.loads(printed[0])
    assert found["cuts"] == cuts
    assert found["detector"] == chosen_detector(None, network_is_there=is_installed())
    assert found["fps"] == 25
    assert found["frames"] == 210
    assert found["cuts_s"] == [cut / 25 for cut in cuts]


def test_decoders_says_what_decodes_a_clip_and_why(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", (20,))
    said = montage("decoders", tmp_path / "clip.mp4", env={"MONTAGE_FORCE_CPU": "1"}).stdout
    assert said.endswith("clip.mp4 is decoded by the CPU: there is no GPU that decodes video, or none is to be used\n")
    found = json.loads(montage("decoders", tmp_path / "clip.mp4", "--json", env={"MONTAGE_FORCE_CPU": "1"}).stdout)
    assert found["decoder"] is None
    assert set(found["cpu"]) == {"cpu_s", "wall_s"}


def test_beats_prints_beats_and_curves(tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    write_song(song, bpm=120, duration_s=12)
    found = json.loads(montage("beats", song, "--json").stdout)
    assert found["tempo_bpm"] == pytest.approx(120, abs=0.1)
    steps = [b - a for a, b in zip(found["beats_s"], found["beats_s"][1:], strict=False)]
    assert steps == pytest.approx([0.5] * len(steps), abs=0.01)
    assert set(found) >= {"downbeats_s", "energy", "onset_strength"}


def test_schema_is_json(tmp_path: Path) -> None:
    assert json.loads(montage("schema").stdout)["title"] == "MontageSpec"


def test_a_killed_run_goes_on_where_it_stopped_and_makes_the_same_film(
    folder: Path, home: dict[str, str], tmp_path: Path
) -> None:
    whole, killed = (
        {**home, "MONTAGE_DATA": str(tmp_path / "whole")},
        {**home, "MONTAGE_DATA": str(tmp_path / "killed")},
    )
    assert montage("make", folder, env=whole).returncode == 0
    for wanted in ("scores", "segments"):
        kill_when_there(folder, killed, tmp_path / "killed" / "work" / wanted)
        finished = snapshot(tmp_path / "killed" / "work")
    assert finished
    done = montage("make", folder, env=killed)
    assert done.returncode == 0, done.stderr
    assert {key: value for key, value in snapshot(tmp_path / "killed" / "work").items() if key in finished} == finished
    for name in ("montage.mp4", "montage.json"):
        undisturbed, resumed = (tmp_path / root / "output" / "holiday" / name for root in ("whole", "killed"))
        assert resumed.read_bytes() == undisturbed.read_bytes()


def kill_when_there(folder: Path, env: dict[str, str], wanted: Path) -> None:
    run = subprocess.Popen(
        [*COMMAND, "make", str(folder)], env={**os.environ, **env}, stderr=subprocess.DEVNULL, start_new_session=True
    )
    for _ in range(1200):
        if run.poll() is not None or any(path.is_file() and "partial" not in path.name for path in wanted.rglob("*")):
            break
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def snapshot(work: Path) -> dict[str, tuple[int, int]]:
    kinds = ("scores", "score_parts", "segments", "beats", "ingest", "thumbnails")
    return {
        str(path.relative_to(work)): (path.stat().st_size, path.stat().st_mtime_ns)
        for kind in kinds
        for path in sorted((work / kind).rglob("*"))
        if path.is_file() and "partial" not in path.name
        # A segment counts as finished once its report is beside it.
        if kind != "segments" or path.with_suffix(".json").is_file()
    }


def test_two_folders_of_one_name_are_two_montages(folder: Path, home: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "holiday"
    shutil.copytree(folder, other)
    first, second = (montage("make", path, "--duration", "3", env=home) for path in (folder, other))
    assert first.returncode == second.returncode == 0
    films = {line for done in (first, second) for line in done.stdout.splitlines() if line.startswith("film:")}
    assert len(films) == 2


@pytest.mark.parametrize(("workers", "asset"), [("1", "footage"), ("1", "scene_shards"), ("2", "beats")])
def test_an_interrupted_run_says_that_it_can_go_on(
    folder: Path, home: dict[str, str], workers: str, asset: str, tmp_path: Path
) -> None:
    """The signal reaches every process, as Ctrl-C in a terminal does."""
    said = tmp_path / "stderr"
    with said.open("w") as stderr:
        run = subprocess.Popen(
            [*COMMAND, "make", str(folder)],
            env={**os.environ, **home, "MONTAGE_WORKERS": workers},
            stderr=stderr,
            start_new_session=True,
        )
    while f"{asset} ..." not in said.read_text() and run.poll() is None:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) == 1
    assert not [line for line in processes_of_group(run.pid) if "ffmpeg" in line]
    lines = [line for line in said.read_text().splitlines() if not line.startswith("  ") and line]
    assert lines.pop() == "montage: stopped; finished work is kept, run the same command again to go on"
    assert all(line.endswith(" ...") or ": done in" in line for line in lines), lines


def processes_of_group(group: int) -> list[str]:
    """The commands of a process group that still run; what has ended and awaits its parent does not."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,comm="], capture_output=True, text=True, check=True).stdout  # noqa: S607
    rows = (line.split(None, 2) for line in listed.splitlines())
    return [command for of_group, state, command in rows if int(of_group) == group and not state.startswith("Z")]


def test_the_input_folder_itself_is_the_montage_of_its_loose_files(folder: Path, home: dict[str, str]) -> None:
    source = Path(home["MONTAGE_DATA"]) / "input"
    source.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, source)
    shutil.copytree(folder, source / "another")
    done = montage("make", source, "--duration", "3", env=home)
    assert done.returncode == 0, done.stderr
    edit = json.loads((source.parent / "output" / "default" / "montage.json").read_text())
    assert all("/" not in shot["clip"] for shot in edit["shots"])
