"""Scene detection in shards by command line: the pipeline's own cuts, and no job that lacks a shard."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import dagster as dg
import pytest
from click.testing import CliRunner

from montage_assets.cluster.distributed_scene_detection import command
from montage_assets.data_root import DataRoot
from montage_assets.definitions import build_definitions
from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError
from montage_assets.media.frame_scores import score_range
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.scenes import detect_scenes
from montage_assets.media.shards import ClipRange
from montage_assets.scene_job import aggregate, do_shard, request_of, shard_key
from tests.media.synth_footage import MPEG2, OPEN_GOP, write_clip, write_song

SHOTS = (37, 41, 29, 53, 40)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("footage") / "a long, hard name.mp4"
    write_clip(path, SHOTS, encoder=OPEN_GOP)
    return path


@pytest.fixture
def root(data: Path) -> DataRoot:
    return DataRoot(str(data))


def cuts_in_one_piece(path: Path, detector: Any = "adaptive") -> list[int]:
    """The cuts that the media functions find when the whole video is scored at once."""
    clip: Clip = ingest_clip(path, path.name, "").clip
    whole = ClipRange(clip.name, 0, 1, None, None, 1.0, clip.frames_estimate)
    return detect_scenes(clip, score_range(path, clip, whole), detector).cuts


def run(*arguments: str, env: Mapping[str, str] | None = None) -> Any:
    """What the command line printed, from JSON."""
    result = CliRunner().invoke(command, list(arguments), env=env, catch_exceptions=False)
    return json.loads(result.stdout)


def exit_of(arguments: Sequence[str], data: Path) -> tuple[int, str]:
    """Exit code and error output of the program itself."""
    program = [sys.executable, "-m", "montage_assets.cluster.distributed_scene_detection", *arguments]
    done = subprocess.run(program, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_four_shards_of_one_video_find_what_one_piece_does(video: Path, root: DataRoot) -> None:
    for index in range(4):
        shard = run("--video", str(video), "--shard-index", str(index), "--shard-count", "4")
        assert shard["parts"][0]["done"] == [index]
    scenes = run("--aggregate", "--job-id", shard["job"])
    found = scenes["videos"][str(video)]
    assert found["cuts"] == cuts_in_one_piece(video) == [37, 78, 107, 160]
    with av.open(str(video)) as opened:
        assert found["frames"] == sum(1 for _ in opened.decode(video=0))
    assert found["scenes"][0] == [0.0, 37 / 25]
    assert found["scenes"][-1] == [160 / 25, 200 / 25]


def test_the_pipelines_asset_finds_the_scores_of_a_job_and_has_the_same_cuts(data: Path, root: DataRoot) -> None:
    folder = data / "input" / "holiday"
    folder.mkdir()
    write_clip(folder / "v.mp4", SHOTS, encoder=OPEN_GOP)
    write_song(folder / "song.wav", bpm=120, duration_s=8)
    (folder / "montage.yaml").write_text("detector: adaptive\n")
    request = request_of(root, ["input/holiday/v.mp4"], 3, "adaptive", None)
    for index in range(3):
        do_shard(root, "j", request, index)
    cuts = aggregate(root, "j").videos["input/holiday/v.mp4"].cuts
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("montage", ["holiday"])
        job = build_definitions().resolve_job_def("montage")
        run = job.execute_in_process(
            partition_key="holiday",
            instance=instance,
            asset_selection=[dg.AssetKey(name) for name in ("footage", "proxies", "scene_shards")],
        )
        assert run.success
        scored = [event.step_key for event in run.all_events if event.is_step_success]
    assert not [key for key in scored if key and "score_shard" in key]
    record = json.loads(root.read_bytes("work/montages/holiday/scene_shards.json"))
    assert record["scenes"][0]["cuts"] == cuts == [37, 78, 107, 160]


def test_the_environment_says_which_shard_a_pod_is(video: Path, root: DataRoot) -> None:
    run("--shard", "--video", str(video), "--job-id", "x", env={"SHARD_INDEX": "0", "SHARD_COUNT": "2"})
    run("--shard", "--video", str(video), "--job-id", "x", env={"JOB_COMPLETION_INDEX": "1", "SHARD_COUNT": "2"})
    assert run("--aggregate", "--job-id", "x")["videos"][str(video)]["cuts"] == cuts_in_one_piece(video)


def test_several_videos_are_shared_by_file_and_none_overwrites_another(root: DataRoot, data: Path) -> None:
    folders = [data / "input" / name for name in ("a", "b", "c")]
    for seed, folder in enumerate(folders, start=1):
        folder.mkdir()
        write_clip(folder / "same name.mpg", (30 + seed, 40), seed=seed, encoder=MPEG2)
    videos = ",".join(str(folder / "same name.mpg") for folder in folders)
    shards = [run("--videos", videos, "--shard-index", str(index), "--shard-count", "2") for index in (0, 1)]
    done = [part["video"] for shard in shards for part in shard["parts"]]
    assert sorted(done) == [f"input/{name}/same name.mpg" for name in ("a", "b", "c")]
    found = run("--aggregate", "--job-id", shards[0]["job"])["videos"]
    assert [found[f"input/{name}/same name.mpg"]["cuts"] for name in ("a", "b", "c")] == [[31], [32], [33]]


def test_a_missing_shard_is_named_and_nothing_is_put_together(video: Path, root: DataRoot, data: Path) -> None:
    for index in (0, 1, 3):
        run("--video", str(video), "--shard-index", str(index), "--shard-count", "4", "--job-id", "gap")
    code, said = exit_of(["--aggregate", "--job-id", "gap"], data)
    assert code == 2
    assert said.strip() == "montage: job gap lacks shard 2 of 4; run it (--shard-index 2) and try again"
    assert not root.exists("work/jobs/gap/scenes.json")


def test_a_job_that_never_ran_is_said_to_have_left_nothing(data: Path, root: DataRoot) -> None:
    code, said = exit_of(["--aggregate", "--job-id", "scene-detect-abc123"], data)
    assert (code, "has left no shard" in said, said.count("\n")) == (2, True, 1)


def test_a_shard_of_another_content_is_refused(root: DataRoot, data: Path) -> None:
    path = data / "input" / "v.mp4"
    write_clip(path, (40, 40), seed=1)
    request = request_of(root, [str(path)], 2, "adaptive", None)
    do_shard(root, "j", request, 0)
    write_clip(path, (50, 40), seed=2)
    do_shard(root, "j", request, 1)
    with pytest.raises(MediaError, match="was another one when shard 1 was done"):
        aggregate(root, "j")


def test_shards_of_two_divisions_are_not_mixed(video: Path, root: DataRoot) -> None:
    for count in (1, 2):
        do_shard(root, "j", request_of(root, [str(video)], count, "adaptive", None), 0)
    with pytest.raises(MediaError, match="has shards of 1 and of 2"):
        aggregate(root, "j")


def test_another_detector_needs_no_decoding(root: DataRoot, data: Path) -> None:
    path = data / "input" / "v.mp4"
    write_clip(path, (40, 40, 40), seed=3)
    wanted = cuts_in_one_piece(path, "histogram")
    do_shard(root, "j", request_of(root, [str(path)], 1, "adaptive", None), 0)
    path.unlink()
    assert aggregate(root, "j", "histogram").videos["input/v.mp4"].cuts == wanted


def test_more_shards_than_keyframes_leave_some_with_nothing_to_do(root: DataRoot, data: Path) -> None:
    path = data / "input" / "v.mp4"
    write_clip(path, (20, 20), encoder=("-c:v", "libx264", "-g", "1000", "-sc_threshold", "0", "-pix_fmt", "yuv420p"))
    request = request_of(root, [str(path)], 3, "adaptive", None)
    assert [len(do_shard(root, "j", request, index).parts[0].done) for index in range(3)] == [1, 0, 0]
    assert aggregate(root, "j").videos["input/v.mp4"].cuts == cuts_in_one_piece(path)


def test_a_damaged_video_is_left_out_with_its_reason_and_alone_it_is_an_error(root: DataRoot, data: Path) -> None:
    good, bad = data / "input" / "good.mp4", data / "input" / "bad.mp4"
    write_clip(good, (30, 30))
    bad.write_bytes(b"\0" * 4000)
    both = request_of(root, [str(good), str(bad)], 1, "adaptive", None)
    do_shard(root, "both", both, 0)
    scenes = aggregate(root, "both")
    assert list(scenes.videos) == ["input/good.mp4"]
    assert "only zero bytes" in scenes.left_out["input/bad.mp4"]
    with pytest.raises(MediaError, match=r"input/bad\.mp4 holds no data"):
        do_shard(root, "alone", request_of(root, [str(bad)], 1, "adaptive", None), 0)
    assert not root.exists(shard_key("alone", 0, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard-index", "0", "--shard-count", "1"], "name the videos"),
        (["--video", "nowhere.mp4", "--shard-index", "0", "--shard-count", "1"], "there is no video nowhere.mp4"),
        (["--video", "{video}"], "say which shard to do"),
        (["--video", "{video}", "--shard"], "JOB_COMPLETION_INDEX"),
        (["--video", "{video}", "--shard-index", "4", "--shard-count", "4"], "counted from 0"),
        (["--video", "{video}", "--shard-index", "0", "--shard-count", "1", "--detector", "x"], "no scene detector"),
        (["--video", "{video}", "--shard-index", "0", "--shard-count", "1", "--job-id", "../x"], "no name of a job"),
        (["--aggregate"], "goes with --job-id alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_asked_for_is_one_line(video: Path, root: DataRoot, arguments: list[str], words: str) -> None:
    with pytest.raises(Exception, match=words) as fault:
        run(*(word.format(video=video) for word in arguments))
    assert "\n" not in str(fault.value)


def test_the_work_needs_neither_dagster_nor_a_kubernetes_client() -> None:
    program = "import sys, montage_assets.scene_job\nprint(sorted(set(sys.modules) & {'dagster', 'kubernetes'}))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
