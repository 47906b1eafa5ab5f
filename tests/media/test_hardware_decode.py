"""A GPU decodes for the analysis where it gives the CPU's frames for less, and the CPU takes over where it fails."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from montage_assets.assets import decoding, shard_steps
from montage_assets.assets.decoding import ON_THE_CPU
from montage_assets.assets.shard_steps import RangeTask, ShardReport, ShardTask, do_shard, whole_range
from montage_assets.data_root import DataRoot
from montage_assets.layout import clip_source
from montage_assets.media import frame_scores, hardware_decode
from montage_assets.media.clip import Clip
from montage_assets.media.encoder_devices import Host
from montage_assets.media.errors import FfmpegFailed
from montage_assets.media.ffmpeg import ffmpeg_program
from montage_assets.media.fingerprint import fingerprint_of
from montage_assets.media.frame_scores import FrameScores, load_scores, merge_scores, score_range
from montage_assets.media.hardware_decode import (
    NO_GPU,
    DecoderChoice,
    FrameCost,
    HardwareDecoder,
    Trial,
    compare,
    decoders_here,
    judge,
)
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.keyframes import keyframe_finder
from montage_assets.media.proxies import make_proxy_part
from montage_assets.media.shards import cut_into_ranges
from montage_assets.settings import Settings
from tests.media.decoding_ffmpeg import BEHAVIOURS, DecodingStandIn, decoding_stand_in
from tests.media.synth_footage import OPEN_GOP, VP8, write_clip
from tests.media.synth_video import frames_in

CUDA, VAAPI = HardwareDecoder("cuda", "0"), HardwareDecoder("vaapi", "/dev/dri/renderD128")
CPU = FrameCost(0.010, 0.005)
TEN_BITS = ("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_clip(path, (50, 40, 45), encoder=OPEN_GOP)
    return path


def host(root: Path, *files: str, system: str = "Linux") -> Host:
    for name in files:
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Host(root, system)


def clip_of(path: Path) -> Clip:
    return ingest_clip(path, path.name, path.name).clip


@pytest.mark.parametrize(
    ("trials", "chosen", "told"),
    [
        ([Trial(CUDA, cost=FrameCost(0.002, 0.004))], CUDA, "gives the CPU's frames for 2.00 CPU-ms"),
        ([Trial(CUDA, cost=FrameCost(0.002, 0.004)), Trial(VAAPI, cost=FrameCost(0.001, 0.004))], VAAPI, "1.00 CPU-ms"),
        ([Trial(CUDA, cost=FrameCost(0.008, 0.004))], None, "cuda on 0 gains nothing"),
        ([Trial(CUDA, cost=FrameCost(0.002, 0.009))], None, "gains nothing: 2.00 CPU-ms and 9.00 ms a frame"),
        ([Trial(CUDA, "crashed (SIGSEGV)"), Trial(VAAPI, "failed: no")], None, "cuda on 0 crashed (SIGSEGV); vaapi"),
        ([], None, NO_GPU),
    ],
)
def test_the_one_that_saves_most_of_the_cpu_decodes_unless_it_takes_too_long(
    trials: list[Trial], chosen: HardwareDecoder | None, told: str
) -> None:
    decoder, reason = judge(CPU, trials)
    assert decoder == chosen
    assert told in reason


@pytest.mark.parametrize(
    ("hwaccel", "methods"),
    [
        ("auto", ["cuda", "vaapi", "vulkan"]),
        ("nvenc", ["cuda"]),
        ("amf", ["vaapi"]),
        ("qsv", ["vaapi"]),
        ("nvmpi", []),
        ("none", []),
    ],
)
def test_the_variables_and_the_devices_say_what_may_decode(tmp_path: Path, hwaccel: str, methods: list[str]) -> None:
    machine = host(tmp_path, "/dev/nvidia0", "/dev/dri/renderD128")
    assert list(dict.fromkeys(one.method for one in decoders_here(hwaccel, False, machine))) == methods
    assert decoders_here(hwaccel, True, machine) == []


def test_a_machine_without_signs_of_a_gpu_tries_none(tmp_path: Path) -> None:
    assert decoders_here("auto", False, host(tmp_path)) == []


@pytest.mark.parametrize(
    ("does", "fault"),
    [
        ("exact,for nothing", ""),
        ("exact,dear", ""),
        ("no library", "failed: Cannot load libcuda.so.1"),
        ("crash", "crashed (SIGSEGV)"),
        ("hang", "did not end within 2 s and was stopped"),
        ("other pictures", "decodes frame 6 otherwise than the CPU"),
        ("short", "gave 119 frames instead of 120"),
    ],
)
def test_a_decoder_is_compared_with_the_cpu_frame_by_frame(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, does: str, fault: str
) -> None:
    if does == "short":
        fault = "decodes frame 4 otherwise than the CPU"  # 120 frames are asked for, and the next ones move up
    if does == "hang":
        monkeypatch.setattr(hardware_decode, "TIME_LIMIT_S", 2.0)
    with decoding_stand_in(tmp_path, monkeypatch, does):
        found = compare(video, clip_of(video), [CUDA])
    (trial,) = found.trials
    assert trial.fault == fault
    assert found.decoder == (CUDA if does == "exact,for nothing" else None)


def test_every_behaviour_of_the_stand_in_is_met_by_a_test() -> None:
    told = Path(__file__).read_text()
    assert [name for name in BEHAVIOURS if name not in told] == []


def test_a_clip_too_short_to_tell_starting_from_decoding_is_compared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "v.mp4", (2,))
    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, "exact,for nothing"):
        assert compare(tmp_path / "v.mp4", clip_of(tmp_path / "v.mp4"), [CUDA]).decoder == CUDA


@pytest.mark.parametrize(
    ("name", "encoder", "filters"),
    [
        ("open.mp4", OPEN_GOP, "null"),
        ("vp8.webm", VP8, "null"),
        ("ten bits.mkv", TEN_BITS, "null"),
        ("full range.mp4", OPEN_GOP, "scale=out_range=pc,format=yuvj420p"),
    ],
)
def test_scores_and_proxies_are_the_same_whoever_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, encoder: tuple[str, ...], filters: str
) -> None:
    path = tmp_path / name
    write_clip(path, (30, 25, 28), encoder=encoder, filters=filters)
    clip = clip_of(path)
    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, "exact,for nothing") as program:
        assert compare(path, clip, [CUDA]).decoder == CUDA
        made = [scored_and_copied(tmp_path, path, clip, one) for one in (None, CUDA)]
        assert "work" in program.calls()
    assert_same(made[0][0], made[1][0])
    assert [frame.to_ndarray().tobytes() for frame in frames_in(made[0][1])] == [
        frame.to_ndarray().tobytes() for frame in frames_in(made[1][1])
    ]


def scored_and_copied(
    folder: Path, path: Path, clip: Clip, decoder: HardwareDecoder | None
) -> tuple[FrameScores, Path]:
    with keyframe_finder(path, clip) as keyframe_before:
        ranges = cut_into_ranges(clip, 3, keyframe_before)
    scores = merge_scores([score_range(path, clip, part, decoder=decoder) for part in ranges])
    out = folder / f"proxy of {decoder.method if decoder else 'the CPU'}.nut"
    assert_same(scores, make_proxy_part(path, clip, whole_range(clip), out, decoder=decoder))
    return scores, out


def assert_same(one: FrameScores, other: FrameScores) -> None:
    for name in ("pts", "delta_hue", "delta_sat", "delta_val", "perceptual_hash", "brightness_sum", "signatures"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_judgement_is_kept_for_clips_of_its_kind_until_a_driver_changes(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, cache = host(tmp_path / "host", "/dev/nvidia0"), tmp_path / "cache"
    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, "exact,for nothing") as program:
        first = DecoderChoice(cache, host=machine).judgement(video, clip_of(video), [CUDA])
        asked = len(program.calls())
        assert DecoderChoice(cache, host=machine).judgement(video, clip_of(video), [CUDA]).decoder == first.decoder
        assert len(program.calls()) == asked
        host(tmp_path / "host", "/usr/lib/libcuda.so.1")
        DecoderChoice(cache, host=machine).judgement(video, clip_of(video), [CUDA])
        assert len(program.calls()) == 2 * asked


def test_a_decoder_that_fails_is_tried_again_by_the_next_process(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, cache = host(tmp_path / "host", "/dev/nvidia0"), tmp_path / "cache"
    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, "no library") as program:
        for expected in (1, 2):
            choice = DecoderChoice(cache, host=machine)
            for _ in range(2):
                assert choice.judgement(video, clip_of(video), [CUDA]).decoder is None
            assert len(program.calls()) == expected


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that shows an NVIDIA GPU, on which every clip is worth asking it."""
    machine = host(tmp_path / "host", "/dev/nvidia0")
    monkeypatch.setattr(decoding, "Host", lambda: machine)
    monkeypatch.setattr(decoding, "CHEAP_FRAME_MS", 0.0)
    monkeypatch.setattr(decoding, "_failures", {})
    monkeypatch.setenv("FFMPEG_HWACCEL", "cuda")
    monkeypatch.delenv("MONTAGE_FORCE_CPU", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    decoding._choice_of.cache_clear()
    yield
    decoding._choice_of.cache_clear()


def shard_of(tmp_path: Path, video: Path, count: int = 1) -> tuple[DataRoot, ShardTask]:
    root = DataRoot(str(tmp_path / "data"))
    tasks = []
    for number in range(count):
        name = f"{number}.mp4"
        root.write_bytes(clip_source("input/m", name), video.read_bytes() + bytes(number))
        path = root.local_file(clip_source("input/m", name))
        with path.open("rb") as stream:
            clip = ingest_clip(path, name, fingerprint_of(stream, path.stat().st_size)).clip
        tasks.append(RangeTask(clip, whole_range(clip), with_proxy=True))
    return root, ShardTask("input/m", 0, 1, tasks)


def made_by(root: DataRoot, shard: ShardTask, log: logging.Logger) -> tuple[ShardReport, FrameScores]:
    report = do_shard(root, shard, log)
    task = shard.tasks[0]
    return report, load_scores(root.read_bytes(shard_steps.range_scores_key(task.clip, task.part)))


def test_a_shard_is_decoded_on_the_gpu_and_says_so(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, gpu: None
) -> None:
    root, shard = shard_of(tmp_path, video)
    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, "exact,for nothing") as program:
        report, scores = made_by(root, shard, logging.getLogger("shard"))
        assert program.calls()[-1] == "work"
    assert [part.decoder for part in report.ranges] == ["cuda on 0"]
    assert scores.frames == 135


@pytest.mark.parametrize(
    ("does", "asked"),
    [
        ("fails later", 2),  # the first clip may be damaged, the second one too is the decoder's fault
        ("crashes later", 1),
        ("hangs later", 1),
        ("crashes halfway", 1),
        ("hangs halfway", 1),
    ],
)
def test_the_cpu_takes_over_where_the_gpu_fails_and_the_reason_is_logged_once(
    tmp_path: Path,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gpu: None,
    does: str,
    asked: int,
) -> None:
    monkeypatch.setattr(frame_scores, "DRIVER_HANGS_AFTER_S", 1.0)
    log = logging.getLogger("shard")
    root, shard = shard_of(tmp_path, video, count=3)
    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, f"{does},for nothing") as program:
        report, scores = made_by(root, shard, log)
        assert program.calls().count("work") == asked, "a decoder that failed is left alone"
    assert [part.failure for part in report.ranges] == [None, None, None]
    assert report.ranges[0].decoder.startswith(f"{ON_THE_CPU}, since cuda on 0 failed: ")
    assert report.ranges[2].decoder == ON_THE_CPU
    task = shard.tasks[0]
    assert_same(scores, score_range(video, task.clip, task.part))
    with caplog.at_level(logging.WARNING):
        shard_steps.tell_fallbacks([report], log)
    assert [record.message.count("cuda on 0") for record in caplog.records] == [1]


def test_a_full_disk_is_no_fault_of_the_gpus(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, gpu: None
) -> None:
    asked: list[HardwareDecoder | None] = []

    def work(decoder: HardwareDecoder | None) -> None:
        asked.append(decoder)
        raise FfmpegFailed("decoding v.mp4 failed: the disk is full", "No space left on device", from_outside=True)

    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, "exact,for nothing"), pytest.raises(FfmpegFailed):
        decoding.decoded(video, clip_of(video), Settings.from_environment(), work)
    assert asked == [CUDA]


def test_a_refusal_is_looked_at_again_after_a_day(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, cache = host(tmp_path / "host", "/dev/nvidia0"), tmp_path / "cache"
    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, "exact,dear") as program:
        for _ in range(2):
            assert DecoderChoice(cache, host=machine).judgement(video, clip_of(video), [CUDA]).decoder is None
        asked = len(program.calls())
        (kept,) = cache.glob("decoder-*.json")
        os.utime(kept, (0, 0))
        DecoderChoice(cache, host=machine).judgement(video, clip_of(video), [CUDA])
        assert len(program.calls()) == 2 * asked


def test_turned_clips_whose_pixels_cannot_be_had_exactly_stay_with_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv422p10le", "-x265-params", "log-level=none")
    write_clip(tmp_path / "upright.mp4", (20,), encoder=encoder)
    turning = [ffmpeg_program(), "-v", "error", "-display_rotation", "90", "-i", tmp_path / "upright.mp4", "-c", "copy"]
    subprocess.run([*turning, tmp_path / "turned.mp4"], check=True)
    clip = clip_of(tmp_path / "turned.mp4")
    assert clip.rotation in (90, 270)
    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, "exact,for nothing"):
        (trial,) = compare(tmp_path / "turned.mp4", clip, [CUDA]).trials
    assert trial.fault == "decodes frame 1 otherwise than the CPU"


def test_without_a_gpu_no_clip_is_compared(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, shard = shard_of(tmp_path, video)
    with decoding_stand_in(tmp_path / "ffmpeg", monkeypatch, "exact,for nothing") as program:
        assert isinstance(program, DecodingStandIn)
        report, _ = made_by(root, shard, logging.getLogger("shard"))
        assert program.calls() == []
    assert [part.decoder for part in report.ranges] == [ON_THE_CPU]
