"""Whole runs of the job on a real, ephemeral Dagster instance, judged by the film they make."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import dagster as dg
import numpy as np
import pytest

from montage_assets.assets import shard_steps
from montage_assets.checks import CHECKS
from montage_assets.data_root import DataRoot
from montage_assets.definitions import build_definitions, defs
from montage_assets.media import frame_scores, render
from montage_assets.media.clip import Clip
from montage_assets.media.film_check import ADVISORY
from montage_assets.media.frame_scores import FrameScores
from montage_assets.media.render import RenderedSegment, RenderShot
from tests.assets.small_montage import failure_of, run_job, write_montage
from tests.media.synth_footage import write_clip, write_song


@pytest.fixture(scope="module")
def footage_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_montage(tmp_path_factory.mktemp("footage") / "holiday")


def put_in(data: Path, footage_folder: Path, name: str = "holiday") -> Path:
    return Path(shutil.copytree(footage_folder, data / "input" / name))


def edit_of(data: Path, name: str = "holiday") -> dict[str, object]:
    return dict(json.loads((data / "output" / name / "montage.json").read_text()))


def decoded(film: Path) -> tuple[list[float], list[bytes]]:
    with av.open(str(film)) as container:
        frames = list(container.decode(video=0))
        return [float(frame.pts * frame.time_base) for frame in frames], [
            frame.to_ndarray(format="gray").tobytes() for frame in frames
        ]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_definitions_load_as_a_code_location() -> None:
    dg.Definitions.validate_loadable(defs)


def test_every_asset_says_what_it_is_and_whose() -> None:
    for spec in defs.resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.owners == ["team:montage"], spec.key
        assert spec.group_name == "montage", spec.key
        assert spec.kinds, spec.key


def test_a_folder_becomes_a_film_that_keeps_to_its_edit_list(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance
) -> None:
    source = put_in(data, footage_folder)
    before = snapshot(source)
    result = run_job("holiday", instance)
    assert result.success
    edit = edit_of(data)
    film = data / "output" / "holiday" / "montage.mp4"
    times, pictures = decoded(film)
    fps = Fraction(*edit["fps"])  # type: ignore[misc]
    assert len(times) == edit["frames"] == 225
    np.testing.assert_allclose(times, np.arange(225) / float(fps), atol=1e-4)
    beats = edit["music"]["beats_s"]  # type: ignore[index]
    for shot in edit["shots"][1:]:  # type: ignore[index]
        assert min(abs(shot["first_frame"] / fps - beat) for beat in beats) <= 0.5 / fps
    assert len(set(pictures)) > 0.8 * len(pictures)
    assert snapshot(source) == before, "sources are never written to"
    assert instance.has_dynamic_partition("montage", "holiday")
    verdicts = {
        evaluation.check_name: evaluation.passed
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.check_name not in ADVISORY
    }
    assert set(verdicts) == set(CHECKS) - ADVISORY
    assert all(verdicts.values()), verdicts


def test_a_second_run_changes_nothing(data: Path, footage_folder: Path, instance: dg.DagsterInstance) -> None:
    put_in(data, footage_folder)
    assert run_job("holiday", instance).success
    media = ("scores", "score_parts", "proxies", "segments", "beats", "checks")
    before = {kind: snapshot(data / "work" / kind) for kind in media}
    film = snapshot(data / "output")
    assert run_job("holiday", instance).success
    assert {kind: snapshot(data / "work" / kind) for kind in media} == before
    assert snapshot(data / "output") == film


def test_a_deleted_segment_and_a_foreign_edit_list_are_made_again(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance
) -> None:
    put_in(data, footage_folder)
    assert run_job("holiday", instance).success
    edit_list = data / "output" / "holiday" / "montage.json"
    film, edit = edit_list.with_suffix(".mp4").read_bytes(), edit_list.read_text()
    sorted((data / "work" / "segments").rglob("*.ts"))[0].unlink()
    edit_list.write_text(edit.replace('"seed": 0', '"seed": 5'))
    assert run_job("holiday", instance).success
    assert edit_list.read_text() == edit
    assert edit_list.with_suffix(".mp4").read_bytes() == film


def test_a_costly_clip_has_a_whole_proxy_whose_parts_are_gone(data: Path, instance: dg.DagsterInstance) -> None:
    folder = data / "input" / "holiday"
    folder.mkdir(parents=True)
    write_clip(folder / "qhd.mp4", (30, 25, 35), filters="scale=2560:1440:flags=neighbor")
    write_song(folder / "song.wav", bpm=120, duration_s=8)
    (folder / "montage.yaml").write_text("detector: adaptive\n")
    to_the_scenes = [dg.AssetKey(name) for name in ("footage", "proxies", "scene_shards")]
    job = build_definitions().resolve_job_def("montage")
    instance.add_dynamic_partitions("montage", ["holiday"])
    for _ in range(2):
        run = job.execute_in_process(
            partition_key="holiday", instance=instance, asset_selection=to_the_scenes, raise_on_error=False
        )
        assert run.success
        (proxy,) = (data / "work" / "proxies").rglob("*.mp4")
        assert len(decoded(proxy)[0]) == 90
        record = json.loads((data / "work" / "montages" / "holiday" / "scene_shards.json").read_bytes())
        assert record["scenes"][0]["cuts"] == [30, 55]
        assert not list((data / "work" / "proxy_parts").rglob("*.nut"))
    assert not [event.step_key for event in run.all_events if event.is_step_success and "[" in (event.step_key or "")]


def test_another_song_decodes_no_clip_again(data: Path, footage_folder: Path, instance: dg.DagsterInstance) -> None:
    source = put_in(data, footage_folder)
    assert run_job("holiday", instance).success
    scores, film = snapshot(data / "work" / "scores"), snapshot(data / "output")
    write_song(source / "song.wav", bpm=100, duration_s=13)
    assert run_job("holiday", instance).success
    assert snapshot(data / "work" / "scores") == scores
    assert snapshot(data / "output") != film
    tempo = edit_of(data)["music"]["tempo_bpm"]  # type: ignore[index]
    assert min(abs(tempo - 100), abs(tempo - 200)) < 0.5, "100 BPM, or its hats' double"


def test_the_edit_does_not_depend_on_the_number_of_workers(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    films = []
    for workers in ("1", "4"):
        root = tmp_path / f"with {workers}"
        (root / "input").mkdir(parents=True)
        monkeypatch.setenv("MONTAGE_DATA", str(root))
        monkeypatch.setenv("MONTAGE_WORKERS", workers)
        put_in(root, footage_folder)
        assert run_job("holiday", instance).success
        films.append((edit_of(root), decoded(root / "output" / "holiday" / "montage.mp4")))
    assert films[0] == films[1]


def test_broken_clips_are_left_out_with_their_reason_and_the_rest_makes_the_film(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance
) -> None:
    source = put_in(data, footage_folder)
    (source / "empty.mp4").touch()
    (source / "zeros.mov").write_bytes(b"\0" * 5000)
    (source / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    whole = (source / "closed.mp4").read_bytes()
    (source / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for seed, name in enumerate(("-i evil.mp4", 'a\'b "c" $(x).mp4'), start=20):
        write_clip(source / name, (60, 50), seed=seed)
    assert run_job("holiday", instance).success
    edit = edit_of(data)
    reasons = {entry["clip"]: entry["reason"] for entry in edit["left_out"]}  # type: ignore[attr-defined]
    assert set(reasons) == {"empty.mp4", "zeros.mov", "photo.jpg", "cut.mp4"}
    assert reasons["empty.mp4"] == "is empty (0 bytes)"
    assert "still picture" in reasons["photo.jpg"]
    used = {shot["clip"] for shot in edit["shots"]}  # type: ignore[attr-defined]
    assert used.isdisjoint(reasons)
    assert 'a\'b "c" $(x).mp4' in used


def test_loose_files_form_the_montage_default(data: Path, footage_folder: Path, instance: dg.DagsterInstance) -> None:
    for path in footage_folder.iterdir():
        shutil.copy(path, data / "input" / path.name)
    assert run_job("default", instance).success
    assert (data / "output" / "default" / "montage.mp4").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no song", "there is no song in"),
        ("two songs", "there are 2 songs in"),
        ("no clip", "there is no video in"),
        ("only broken clips", "none of the 1 files in"),
        ("wrong key", "there is no key 'musik'; did you mean 'music'"),
        ("wrong value", "pace: 'slow': must be 'calm', 'normal' or 'fast'"),
        ("named song missing", "the song 'gone.mp3' that montage.yaml names is not in"),
        ("broken song", "song.wav"),
        ("start after the song", "The film cannot start 99 s into the song"),
    ],
)
def test_a_wrong_input_stops_at_once_with_one_clear_line_and_nothing_half_written(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance, fault: str, message: str
) -> None:
    source = put_in(data, footage_folder)
    clips = [path for path in source.iterdir() if path.suffix not in (".wav", ".yaml")]
    if fault == "no song":
        (source / "song.wav").unlink()
    elif fault == "two songs":
        shutil.copy(source / "song.wav", source / "other.wav")
    elif fault in ("no clip", "only broken clips"):
        for clip in clips:
            clip.unlink()
        if fault == "only broken clips":
            (source / "empty.mp4").touch()
    elif fault == "broken song":
        (source / "song.wav").write_bytes(b"RIFF" + b"\0" * 1000)
    else:
        spec = {
            "wrong key": "musik: song.wav",
            "wrong value": "pace: slow",
            "named song missing": "music: gone.mp3",
            "start after the song": "music_start: 99",
        }
        (source / "montage.yaml").write_text(spec[fault])
    result = run_job("holiday", instance)
    assert not result.success
    assert message in failure_of(result)
    assert "\n" not in failure_of(result)
    assert not (data / "output").exists() or not list((data / "output").rglob("*.mp4"))
    assert not list(data.rglob("*.partial*"))


def test_a_montage_without_folder_is_told_which_there_are(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance
) -> None:
    put_in(data, footage_folder, "holiday")
    put_in(data, footage_folder, "wedding")
    result = run_job("hoilday", instance)
    assert "there is no montage 'hoilday'" in failure_of(result)
    assert "the montages there are: holiday, wedding" in failure_of(result)


def test_a_whole_run_works_on_s3(
    footage_folder: Path,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    from montage_assets.data_root import DataRoot

    server = request.getfixturevalue("s3_server")
    server.use(monkeypatch)
    url = server.new_root()
    monkeypatch.setenv("MONTAGE_DATA", url)
    monkeypatch.setenv("MONTAGE_CACHE", str(tmp_path / "cache"))
    root = DataRoot(url, cache=tmp_path / "upload")
    for path in footage_folder.iterdir():
        root.write_bytes(f"input/holiday/{path.name}", path.read_bytes())
    assert run_job("holiday", instance).success
    film = root.local_file("output/holiday/montage.mp4")
    assert len(decoded(film)[0]) == json.loads(root.read_bytes("output/holiday/montage.json"))["frames"] == 225


def test_definitions_can_be_overridden_for_tests() -> None:
    assert not build_definitions(sensors=[]).sensors


def test_a_clip_that_is_replaced_during_a_run_is_left_out_and_used_by_the_next(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put_in(data, footage_folder)
    score_range = frame_scores.score_range

    def score_while_it_is_replaced(path: Path, clip: Clip, *arguments: Any) -> FrameScores:
        scores = score_range(path, clip, *arguments)
        if clip.name == "closed.mp4":
            write_clip(source / "closed.mp4", (75, 65), seed=9)
        return scores

    with monkeypatch.context() as patched:
        patched.setattr(frame_scores, "score_range", score_while_it_is_replaced)
        assert run_job("holiday", instance).success
    (left_out,) = edit_of(data)["left_out"]  # type: ignore[misc]
    assert left_out["clip"] == "closed.mp4"
    assert left_out["reason"] == "changed while the montage was made; run again once it is whole"
    assert run_job("holiday", instance).success
    assert edit_of(data)["left_out"] == []
    record = json.loads((data / "work" / "montages" / "holiday" / "scene_shards.json").read_bytes())
    assert next(clip["cuts"] for clip in record["scenes"] if clip["clip"] == "closed.mp4") == [75]


def test_a_clip_that_is_replaced_before_it_is_rendered_stops_the_run_and_leaves_no_segment(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put_in(data, footage_folder)
    render_segment = render.render_segment

    def render_what_is_replaced(shots: list[RenderShot], *arguments: Any, **options: Any) -> RenderedSegment:
        first = shots[0].path
        write_clip(first.with_suffix(".new.mp4"), (90, 85), seed=9)
        first.with_suffix(".new.mp4").replace(first)
        return render_segment(shots, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(render, "render_segment", render_what_is_replaced)
        said = failure_of(run_job("holiday", instance))
    assert said.endswith("changed while the montage was made; run again once it is whole")
    assert any(said.startswith(f"{path.name} changed") for path in source.iterdir())
    assert not list((data / "work" / "segments").rglob("*.ts"))
    assert run_job("holiday", instance).success


def test_a_trimmed_clip_shows_the_frames_that_were_chosen(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance
) -> None:
    """A lossless trim keeps frames before the first shown one; no shot may be off by them."""
    import subprocess

    from montage_assets.media.ffmpeg import ffmpeg_program
    from tests.media.synth_footage import SIZE, X264

    source = put_in(data, footage_folder)
    for path in source.iterdir():
        if path.suffix not in (".wav", ".yaml"):
            path.unlink()
    whole = data / "whole.mp4"
    write_clip(whole, (60, 70, 80, 90), seed=5, encoder=(*X264[:-4], "-g", "100", "-pix_fmt", "yuv420p"))
    command = [ffmpeg_program(), "-v", "error", "-ss", "0.8", "-i", whole, "-c", "copy", source / "trimmed.mp4"]
    subprocess.run(command, check=True)
    assert run_job("holiday", instance).success
    with av.open(str(source / "trimmed.mp4")) as container:
        shown = [frame.to_ndarray(format="gray") for frame in container.decode(video=0) if not frame.is_corrupt]
    with av.open(str(data / "output" / "holiday" / "montage.mp4")) as container:
        film = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    width, height = SIZE
    for shot in edit_of(data)["shots"]:  # type: ignore[attr-defined]
        picture = film[shot["first_frame"]].astype(float)
        chosen = shown[shot["source_frame"]].astype(float)
        assert chosen.shape == picture.shape == (height, width)
        assert np.abs(picture - chosen).mean() < 12, shot


def test_what_the_pipeline_made_is_never_footage(
    footage_folder: Path, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(footage_folder, folder)
    monkeypatch.setenv("MONTAGE_DATA", str(folder / "data"))
    config = {"ops": {"footage": {"config": {"folder": str(folder)}}}}
    assert run_job("clips", instance, config).success
    film = folder / "data" / "output" / "clips" / "montage.mp4"
    shutil.copy(film, folder / "film.mp4")
    shutil.copy(film.with_suffix(".json"), folder / "film.json")
    before = film.with_suffix(".json").read_text()
    assert run_job("clips", instance, config).success
    after = json.loads(film.with_suffix(".json").read_text())
    assert {entry["clip"]: entry["reason"] for entry in after["left_out"]} == {
        "film.mp4": "is a film that was made here: its edit list lies beside it"
    }
    assert after["shots"] == json.loads(before)["shots"]


def test_a_clip_that_is_there_twice_is_used_once(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance
) -> None:
    source = put_in(data, footage_folder)
    shutil.copy(source / "closed.mp4", source / "copy of closed.mp4")
    assert run_job("holiday", instance).success
    assert edit_of(data)["left_out"] == [{"clip": "copy of closed.mp4", "reason": "is the same as closed.mp4"}]


def test_a_name_that_is_no_unicode_is_left_out_by_its_bytes(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance
) -> None:
    import os

    source = put_in(data, footage_folder)
    shutil.copy(source / "closed.mp4", os.fsencode(source) + b"/caf\xe9.mp4")
    assert run_job("holiday", instance).success
    assert edit_of(data)["left_out"] == [
        {"clip": "caf\\udce9.mp4", "reason": "has a name that is not UTF-8; rename it"}
    ]


def test_a_killed_ffmpeg_fails_the_step_and_drops_no_clip(
    data: Path,
    footage_folder: Path,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the machine runs out of memory: the clip is good, so the film must not be made without it."""
    from montage_assets.media import ffmpeg

    program = tmp_path / "killed-ffmpeg"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *web.webm*"-f nut"*) kill -9 $$;; esac\nexec "{ffmpeg.ffmpeg_program()}" "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "ffmpeg_program", lambda: str(program))
    put_in(data, footage_folder)
    result = run_job("holiday", instance)
    assert not result.success
    assert "ffmpeg was killed (signal 9)" in failure_of(result)
    assert not (data / "output").exists()


def test_a_part_that_no_shard_has_done_is_done_by_the_merge(
    data: Path, footage_folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a run was carried on by two processes that planned differently."""
    put_in(data, footage_folder)
    done = shard_steps.do_shard
    lost: list[shard_steps.RangeTask] = []

    def lose_one(root: DataRoot, shard: shard_steps.ShardTask, log: Any) -> shard_steps.ShardReport:
        if lost:
            return done(root, shard, log)
        lost.extend(shard.tasks[-1:])
        return done(root, replace(shard, tasks=shard.tasks[:-1]), log)

    monkeypatch.setattr(shard_steps, "do_shard", lose_one)
    assert run_job("holiday", instance).success
    assert lost
    assert edit_of(data)["left_out"] == []
