"""Whatever a machine's encoders do, the film has every frame, in order: choosing, falling back and joining together.

Each machine is a stand-in for ffmpeg whose hardware encoders work, or fail as real ones do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import pytest

from montage_assets.media import render
from montage_assets.media.calibration import Measurement
from montage_assets.media.encoder_devices import Host
from montage_assets.media.encoder_router import Need, Wish
from montage_assets.media.encoders import ReadyEncoder, encoder_named, on_cpu
from montage_assets.media.errors import FfmpegFailed
from montage_assets.media.join import join_segments
from montage_assets.media.machine_encoders import MachineEncoders, RunMemory, label_of
from montage_assets.media.render import OutputFormat, RenderedSegment, RenderShot, render_segment
from tests.media.stand_in_ffmpeg import StandIn, stand_in
from tests.media.synth_video import clip_of, frame_times, make_video, numbers_in, shot_of

FMT = OutputFormat(320, 192, Fraction(25), "h264", "preview")
ON = Wish(gpu_encode="on")
LENGTHS = [9, 12, 7, 10]
EVERYTHING = list(range(sum(LENGTHS)))


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> RenderShot:
    source = make_video(tmp_path_factory.mktemp("source") / "clip.mp4", frames=sum(LENGTHS), size=(320, 192))
    clip = clip_of(source)
    return shot_of(source, clip, 0, sum(LENGTHS), frame_times(source, clip))


@dataclass
class Machine:
    """A pretended machine: its ffmpeg, its encoders, and what was logged there."""

    program: StandIn
    encoders: MachineEncoders
    cache: Path
    logged: list[str]

    def segments(
        self, shot: RenderShot, folder: Path, fmt: OutputFormat = FMT, wish: Wish = ON
    ) -> list[RenderedSegment]:
        """One run, one segment after another, as its steps make them."""
        need = Need(fmt.codec, fmt.width, fmt.height, fmt.quality)
        done, segments = 0, []
        for index, length in enumerate(LENGTHS):
            piece = replace(shot, in_time_s=done / shot.clip.fps, frames=length)
            memory = RunMemory(self.cache, "run")
            routing = self.encoders.routing(need, wish, index, memory.left_alone())
            if routing.note:
                memory.tell_once("choice", routing.note, self.logged.append)

            def on_fallback(ready: ReadyEncoder, failure: FfmpegFailed, memory: RunMemory = memory) -> None:
                memory.note_failure(ready, failure, self.logged.append)

            out = folder / f"{index}{on_cpu(fmt.codec).container.suffix}"
            segments.append(
                render_segment([piece], fmt, out, encoders=routing.encoders, name=str(index), on_fallback=on_fallback)
            )
            done += length
        return segments

    def film(self, segments: Sequence[RenderedSegment], out: Path, fmt: OutputFormat = FMT) -> list[int]:
        """Join them here; the numbers of the film's frames as PyAV decodes them, and which were encoded again."""
        need = Need(fmt.codec, fmt.width, fmt.height, fmt.quality)
        joined = join_segments(segments, fmt, out, lambda: self.encoders.routing(need, ON).encoders)
        assert [number for number, _ in numbers_in(out)] == EVERYTHING
        return joined.reencoded


@contextmanager
def machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviours: Mapping[str, str], host: Host | None = None
) -> Iterator[Machine]:
    with stand_in(tmp_path / "bin", monkeypatch, behaviours) as program:
        cache = tmp_path / "cache"
        nowhere = Host(tmp_path / "nothing", "Linux")
        yield Machine(program, MachineEncoders(cache, (), host or nowhere), cache, [])


def encoders_of(segments: Sequence[RenderedSegment]) -> list[str]:
    return [segment.encoder for segment in segments]


def test_hardware_that_works_encodes_every_segment(
    shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(tmp_path, monkeypatch, {"h264_nvenc": "works"}) as here:
        segments = here.segments(shot, tmp_path)
        assert encoders_of(segments) == ["h264_nvenc"] * 4
        assert here.film(segments, tmp_path / "film.mp4") == []
        assert here.logged == []
        assert here.program.calls() == ["test h264_nvenc"] * 2 + ["segment h264_nvenc"] * 4


@pytest.mark.parametrize(
    "behaviour", ["broken", "crash", "short", "no header", "negative", "few keyframes", "at most 700"]
)
def test_an_encoder_that_fails_its_test_never_gets_a_segment(
    behaviour: str, shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fmt = replace(FMT, width=1280, height=720) if behaviour == "at most 700" else FMT
    with machine(tmp_path, monkeypatch, {"h264_nvenc": behaviour}) as here:
        segments = here.segments(shot, tmp_path, fmt)
        assert encoders_of(segments) == ["libx264"] * 4
        assert here.film(segments, tmp_path / "film.mp4", fmt) == []
        assert len(here.logged) == 1
        assert here.logged[0].startswith("LOCAL_GPU_ENCODE=on, but no video encoder of this machine can be used (")
        assert "segment h264_nvenc" not in here.program.calls()


def test_a_size_limit_below_the_tests_own_size_is_found_by_a_test_at_the_films_size(
    shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fmt = replace(FMT, width=192, height=108)
    with machine(tmp_path, monkeypatch, {"h264_nvenc": "at least 256"}) as here:
        segments = here.segments(shot, tmp_path, fmt)
        assert encoders_of(segments) == ["libx264"] * 4
        assert "(at 192x108)" in here.logged[0]
        here.film(segments, tmp_path / "film.mp4", fmt)


def test_the_next_hardware_encoder_takes_over_before_the_cpu(
    shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(tmp_path, monkeypatch, {"h264_nvenc": "crash", "h264_amf": "works"}) as here:
        segments = here.segments(shot, tmp_path)
        assert encoders_of(segments) == ["h264_amf"] * 4
        assert here.logged == []


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("third fails", "h264_nvenc: Rendering 2 (clip.mp4) failed: "),
        ("third crashes", "h264_nvenc: Rendering 2 (clip.mp4) failed: ffmpeg was killed (signal 11)"),
    ],
)
def test_a_failure_in_the_third_segment_falls_to_the_cpu_and_the_film_is_whole(
    behaviour: str, reason: str, shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(tmp_path, monkeypatch, {"h264_nvenc": behaviour}) as here:
        segments = here.segments(shot, tmp_path)
        assert encoders_of(segments) == ["h264_nvenc", "h264_nvenc", "libx264", "h264_nvenc"]
        assert [bool(segment.fallback) for segment in segments] == [False, False, True, False]
        assert segments[2].fallback.startswith(reason)
        assert len(here.logged) == 1
        assert here.logged[0].startswith("h264_nvenc on 0 failed, the next encoder takes over: ")
        # Its parameters differ from the others', so it is encoded again like them.
        assert here.film(segments, tmp_path / "film.mp4") == [2]


def test_an_encoder_that_hangs_in_a_segment_is_stopped_and_left_alone_for_the_rest_of_the_run(
    shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "HARDWARE_STALL_S", 1.5)
    with machine(tmp_path, monkeypatch, {"h264_nvenc": "third hangs"}) as here:
        segments = here.segments(shot, tmp_path)
        assert encoders_of(segments) == ["h264_nvenc", "h264_nvenc", "libx264", "libx264"]
        assert "gave no frame for 1.5 s and was stopped" in segments[2].fallback
        assert here.program.calls().count("segment h264_nvenc") == 3
        assert len(here.logged) == 1
        here.film(segments, tmp_path / "film.mp4")


def test_an_encoder_that_keeps_failing_is_left_alone_after_three_times(tmp_path: Path) -> None:
    ready, failure = ReadyEncoder(encoder_named("h264_nvenc"), "0"), FfmpegFailed("no session is free")
    logged: list[str] = []
    for count in range(3):
        assert RunMemory(tmp_path, "a run").left_alone() == [], count
        RunMemory(tmp_path, "a run").note_failure(ready, failure, logged.append)
    assert RunMemory(tmp_path, "a run").left_alone() == [label_of(ready)] == ["h264_nvenc on 0"]
    assert RunMemory(tmp_path, "another run").left_alone() == []
    assert logged == ["h264_nvenc on 0 failed, the next encoder takes over: no session is free"]


def test_where_nothing_can_be_remembered_every_failure_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ready, failure = ReadyEncoder(encoder_named("h264_nvenc"), "0"), FfmpegFailed("gone")
    for folder in (None, tmp_path / "file"):
        logged: list[str] = []
        for _ in range(2):
            RunMemory(folder, "run").note_failure(ready, failure, logged.append)
        assert len(logged) == 2
        assert RunMemory(folder, "run").left_alone() == []


def test_segments_of_a_gpu_are_joined_on_a_machine_without_it(
    shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(tmp_path, monkeypatch, {"h264_nvenc": "third fails"}) as here:
        segments = here.segments(shot, tmp_path)
    with machine(tmp_path / "other", monkeypatch, {}) as there:
        # Only those that are not like the software encoder's are encoded again.
        assert there.film(segments, tmp_path / "film.mp4") == [0, 1, 3]


def test_segments_of_two_kinds_of_gpu_are_joined_on_a_machine_with_neither(
    shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "amd").mkdir()
    with machine(tmp_path / "1", monkeypatch, {"h264_nvenc": "works"}) as here:
        nvidia = here.segments(shot, tmp_path)
    with machine(tmp_path / "2", monkeypatch, {"h264_amf": "other"}) as here:
        amd = here.segments(shot, tmp_path / "amd")
        # Here one of the two kinds runs, and the other one's segments become like its.
        assert here.film([amd[0], amd[1], nvidia[2], amd[3]], tmp_path / "film.mp4") == [2]
    mixed = [amd[0], nvidia[1], amd[2], nvidia[3]]
    with machine(tmp_path / "3", monkeypatch, {}) as there:
        assert there.film(mixed, tmp_path / "film.mp4") == [0, 1, 2, 3]


def test_a_report_of_an_earlier_encode_does_not_mislead_the_join(
    shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(tmp_path, monkeypatch, {"h264_nvenc": "third fails"}) as here:
        segments = here.segments(shot, tmp_path)
        told_alike = [replace(segment, codec_hash=segments[0].codec_hash) for segment in segments]
        assert here.film(told_alike, tmp_path / "film.mp4") == [2]


def test_auto_looks_for_devices_and_takes_what_works(
    shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    for node in ("dev/dri/renderD128", "sys/class/drm/renderD128/device/vendor"):
        (root / node).parent.mkdir(parents=True)
        (root / node).write_text("0x1002")
    behaviours = {"h264_vaapi": "works", "h264_nvenc": "works", "h264_amf": "works"}
    with machine(tmp_path, monkeypatch, behaviours, Host(root, "Linux")) as here:
        segments = here.segments(shot, tmp_path, wish=Wish())
        assert encoders_of(segments) == ["h264_vaapi"] * 4
        assert not any("nvenc" in call or "amf" in call for call in here.program.calls())
    with machine(tmp_path / "bare", monkeypatch, behaviours) as bare:
        assert encoders_of(bare.segments(shot, tmp_path, wish=Wish())) == ["libx264"] * 4
        assert (bare.program.calls(), bare.logged) == ([], [])


def test_segments_take_turns_on_devices_of_one_kind(
    shot: RenderShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    for number in (0, 1):
        (root / "dev" / f"nvidia{number}").touch()
    with machine(tmp_path, monkeypatch, {"h264_nvenc": "works"}, Host(root, "Linux")) as here:
        need = Need("h264", 320, 192, "preview")
        first = [here.encoders.routing(need, Wish(), turn).encoders[0].device for turn in range(4)]
    assert first == ["0", "1", "0", "1"]


def test_measured_speed_and_calibrated_numbers_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = Need("h264", 1280, 720, "high")
    with machine(tmp_path, monkeypatch, {"h264_nvenc": "works", "h264_amf": "works"}) as here:
        for encoder, device, number, fps in (("h264_nvenc", "0", 24.0, 90.0), ("h264_amf", "", 19.0, 240.0)):
            here.encoders.measured.put(Measurement(encoder, device, "high", number, fps, 97.0, 5000.0))
        again = MachineEncoders(here.cache, (), here.encoders.host)
        order = again.routing(need, ON).encoders
    assert [(ready.name, ready.number("high")) for ready in order] == [
        ("h264_amf", 19.0),
        ("h264_nvenc", 24.0),
        ("libx264", 18),
    ]
    assert order[0].number("standard") == order[0].encoder.numbers["standard"]


def test_a_full_disk_is_no_reason_to_try_another_encoder(shot: RenderShot, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> str:
        raise FfmpegFailed("the disk is full", "av_interleaved_write_frame(): No space left on device")

    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "run_ffmpeg", full)
        with pytest.raises(FfmpegFailed, match="disk is full"):
            render_segment(
                [replace(shot, frames=5)],
                FMT,
                tmp_path / "out.ts",
                encoders=[ReadyEncoder(encoder_named("h264_nvenc"), "0"), on_cpu("h264")],
                on_fallback=lambda ready, _: told.append(ready.name),
            )
    assert told == []
