"""An encoder exists when a test encode with production's flags decodes back whole; each way to fail has its words."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from montage_assets.media.encoder_devices import Host, devices_of, driver_identity, is_jetson, seems_present
from montage_assets.media.encoder_probe import FAILURE_HOLDS_S, ProbeResult, ProbeStore, probe, telling_line
from montage_assets.media.encoder_table import CODECS, Encoder
from montage_assets.media.encoders import encoder_named, software_encoder
from tests.media.stand_in_ffmpeg import forget_ffmpeg, stand_in

NVENC = encoder_named("h264_nvenc")


def probed(
    behaviour: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoder: Encoder = NVENC,
    size: tuple[int, int] = (640, 368),
    time_limit_s: float = 20.0,
) -> ProbeResult:
    with stand_in(tmp_path / "bin", monkeypatch, {encoder.name: behaviour}):
        return probe(encoder, "0", size, time_limit_s=time_limit_s)


@pytest.mark.parametrize("codec", CODECS)
def test_the_software_encoders_pass_in_8_and_in_10_bits(codec: str) -> None:
    for bit_depth in (8, 10):
        found = probe(software_encoder(codec), "", bit_depth=bit_depth)  # type: ignore[arg-type]
        assert (found.works, found.reason) == (True, "")


@pytest.mark.parametrize("name", ["h264_nvenc", "h264_vaapi", "hevc_qsv", "h264_vulkan", "hevc_nvmpi"])
def test_an_encoder_that_works_passes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = probed("works", tmp_path, monkeypatch, encoder_named(name))
    assert (found.works, found.reason) == (True, "")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("broken", "listed by ffmpeg, but the test encode failed: Cannot load libcuda.so.1"),
        ("crash", "listed by ffmpeg, but the test encode crashed (SIGSEGV)"),
        ("short", "listed by ffmpeg, but the test encode gave 9 frames instead of 10"),
        ("no header", "listed by ffmpeg, but the test encode gave a stream that cannot be decoded"),
        ("negative", "listed by ffmpeg, but the test encode gave pictures that are not those it was given"),
        ("open gop", "listed by ffmpeg, but the test encode began the GOP at frame"),
        (
            "few keyframes",
            "listed by ffmpeg, but the test encode set no keyframe for 10 frames, though it was told to every 8",
        ),
        ("no colours", "listed by ffmpeg, but the test encode gave a stream that does not name its colours"),
    ],
)
def test_an_encoder_that_fails_is_told_with_its_reason(
    behaviour: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = probed(behaviour, tmp_path, monkeypatch)
    assert not found.works
    assert found.reason.startswith(reason)


def test_an_encoder_that_hangs_is_stopped_with_all_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = probed("hang", tmp_path, monkeypatch, time_limit_s=1.5)
    assert found.reason == "listed by ffmpeg, but the test encode did not end within 1.5 s and was stopped"
    for pid in (tmp_path / "bin" / "hanging").read_text().split():
        assert not is_running(int(pid))


def is_running(pid: int) -> bool:
    """Whether a process lives; one that nobody has waited for yet is dead all the same."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.05)
    return True


def test_an_encoder_with_a_size_limit_passes_at_one_size_and_not_at_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probed("at most 700", tmp_path, monkeypatch).works
    larger = probed("at most 700", tmp_path, monkeypatch, size=(1280, 720))
    assert larger.reason.startswith(
        "listed by ffmpeg, but the test encode failed: Hardware does not support encoding at"
    )


def test_an_encoder_without_b_pictures_is_used_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = probed("no b-frames", tmp_path, monkeypatch)
    assert (found.works, found.b_frames) == (True, 0)
    assert probed("works", tmp_path, monkeypatch).b_frames == 2


def test_an_encoder_that_the_build_lacks_is_not_even_tried() -> None:
    assert probe(encoder_named("h264_nvmpi"), "").reason == "this ffmpeg build does not have it"
    assert probe(NVENC, "0", bit_depth=10).reason == "it does not encode 10-bit video"


def test_the_telling_line_is_the_one_that_names_the_cause() -> None:
    log = (
        "[VAAPI @ 0x55] No VA display found for device /dev/dri/renderD128.\nDevice creation failed: -22.\n"
        "Failed to set value 'vaapi=va:/dev/dri/renderD128' for option 'init_hw_device': Invalid argument\n"
    )
    assert telling_line(log) == "No VA display found for device /dev/dri/renderD128."
    assert telling_line("Conversion failed!\n") == "Conversion failed!"
    assert telling_line("") == "ffmpeg gave no reason"


def test_a_result_holds_until_ffmpeg_driver_or_flags_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    with stand_in(tmp_path / "bin", monkeypatch, {"h264_nvenc": "works"}) as program:
        probe(NVENC, "0", store=ProbeStore(folder, "driver 1"))
        probe(NVENC, "0", store=ProbeStore(folder, "driver 1"))
        assert len(program.calls()) == 1
        probe(NVENC, "0", store=ProbeStore(folder, "driver 2"))
        assert len(program.calls()) == 2
        probe(NVENC, "1", store=ProbeStore(folder, "driver 1"))
        assert len(program.calls()) == 3
        program.program.write_text(program.program.read_text() + "\n")
        forget_ffmpeg()
        probe(NVENC, "0", store=ProbeStore(folder, "driver 1"))
        assert len(program.calls()) == 4


def test_a_failure_is_tried_again_after_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    with stand_in(tmp_path / "bin", monkeypatch, {"h264_amf": "broken"}) as program:
        amf = encoder_named("h264_amf")
        for _ in range(2):
            assert not probe(amf, "", store=ProbeStore(folder, "")).works
        assert len(program.calls()) == 1
        (kept,) = folder.iterdir()
        os.utime(kept, (time.time() - FAILURE_HOLDS_S - 1,) * 2)
        probe(amf, "", store=ProbeStore(folder, ""))
        assert len(program.calls()) == 2


def test_a_cache_that_cannot_be_read_or_written_costs_a_test_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    with stand_in(tmp_path / "bin", monkeypatch, {"h264_amf": "works"}) as program:
        amf = encoder_named("h264_amf")
        store = ProbeStore(not_a_folder, "")
        assert probe(amf, "", store=store).works
        assert probe(amf, "", store=store).works
        assert len(program.calls()) == 1
        damaged = tmp_path / "cache"
        probe(amf, "", store=ProbeStore(damaged, ""))
        for path in damaged.iterdir():
            path.write_text('{"encoder": 3')
        assert probe(amf, "", store=ProbeStore(damaged, "")).works


def a_machine(root: Path, files: dict[str, str]) -> Host:
    for path, text in files.items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / path.lstrip("/")).write_text(text)
    return Host(root, "Linux")


def test_devices_are_found_by_their_files(tmp_path: Path) -> None:
    nodes = {f"/dev/dri/renderD{number}": "" for number in (128, 129, 130)}
    vendors = {128: "0x1002", 129: "0x8086", 130: "0x10de"}
    sysfs = {f"/sys/class/drm/renderD{number}/device/vendor": f"{vendor}\n" for number, vendor in vendors.items()}
    host = a_machine(tmp_path, {**nodes, **sysfs, "/dev/nvidia0": "", "/dev/nvidia1": "", "/dev/nvidiactl": ""})
    assert devices_of("vaapi", host) == ["/dev/dri/renderD128", "/dev/dri/renderD129"]
    assert devices_of("qsv", host) == ["/dev/dri/renderD129"]
    assert devices_of("nvenc", host) == ["0", "1"]
    assert devices_of("amf", host) == [""]
    assert [family for family in ("nvenc", "vaapi", "amf", "v4l2m2m") if seems_present(family, host)] == [  # type: ignore[arg-type]
        "nvenc",
        "vaapi",
    ]


def test_a_machine_without_devices_has_none(tmp_path: Path) -> None:
    host = Host(tmp_path, "Linux")
    assert devices_of("vaapi", host) == []
    assert not any(seems_present(family, host) for family in ("nvenc", "vaapi", "qsv", "amf", "nvmpi", "vulkan"))  # type: ignore[arg-type]
    assert not is_jetson(host)


def test_the_driver_identity_changes_with_driver_device_and_environment(tmp_path: Path) -> None:
    host = a_machine(tmp_path, {"/proc/driver/nvidia/version": "550.1", "/usr/lib/libcuda.so.1": "a"})
    first = driver_identity(host)
    assert driver_identity(host) == first
    assert driver_identity(host, [("LIBVA_DRIVER_NAME", "iHD")]) != first
    a_machine(tmp_path, {"/proc/driver/nvidia/version": "560.2"})
    second = driver_identity(host)
    a_machine(tmp_path, {"/usr/lib/libcuda.so.1": "other"})
    third = driver_identity(host)
    a_machine(tmp_path, {"/dev/dri/renderD128": ""})
    assert len({first, second, third, driver_identity(host)}) == 4
