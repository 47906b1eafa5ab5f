"""Which encoder is tried first, which ones follow, and what the user is told: the decision alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from montage_assets.media.encoder_router import (
    Candidate,
    Choice,
    Need,
    Wish,
    choose,
    encoder_asked,
    unable,
    wish_of,
    with_plan,
    worth_trying,
)
from montage_assets.media.encoder_table import HARDWARE_FAMILIES, JETSON_FAMILIES
from montage_assets.media.encoders import encoder_named
from montage_assets.settings import Settings

FULL_HD = Need("h264", 1920, 1080, "standard")
AUTO = Wish()
ON = Wish(gpu_encode="on")


def works(name: str, fps: float | None = None, device: str = "") -> Candidate:
    return Candidate(encoder_named(name), device, fps=fps)


def fails(name: str, reason: str) -> Candidate:
    return Candidate(encoder_named(name), works=False, reason=reason)


def chosen(
    *tried: Candidate, wish: Wish = AUTO, need: Need = FULL_HD, software_fps: float | None = None, jetson: bool = False
) -> Choice:
    families = (*JETSON_FAMILIES, *HARDWARE_FAMILIES) if jetson else HARDWARE_FAMILIES
    return choose(need, wish, tried, [], families, software_fps)


def names(choice: Choice) -> list[str]:
    return [candidate.encoder.name for candidate in choice.order]


def tried_for(wish: Wish, *present: str, need: Need = FULL_HD) -> list[str]:
    return [encoder.name for encoder in worth_trying(need, wish, present)[0]]  # type: ignore[arg-type]


def test_a_machine_without_hardware_uses_the_cpu_and_says_nothing() -> None:
    assert tried_for(AUTO) == []
    choice = chosen()
    assert (names(choice), choice.note) == (["libx264"], "")


def test_auto_tries_what_shows_a_sign_and_on_tries_everything() -> None:
    assert tried_for(AUTO, "vaapi", "vulkan") == ["h264_vaapi", "h264_vulkan"]
    assert len(tried_for(ON)) == 8


def test_hardware_goes_before_the_cpu_and_the_cpu_is_always_last() -> None:
    assert names(chosen(works("h264_vaapi"), works("h264_amf"))) == ["h264_vaapi", "h264_amf", "libx264"]


def test_on_amd_vaapi_goes_first_and_amf_after_it() -> None:
    assert names(chosen(works("h264_amf"), works("h264_vulkan"), works("h264_vaapi"))) == [
        "h264_vaapi",
        "h264_amf",
        "h264_vulkan",
        "libx264",
    ]


def test_on_a_jetson_its_own_interfaces_go_before_the_desktops() -> None:
    choice = chosen(works("h264_nvenc"), works("h264_v4l2m2m"), works("h264_nvmpi"), jetson=True)
    assert names(choice) == ["h264_nvmpi", "h264_v4l2m2m", "h264_nvenc", "libx264"]


def test_measured_speed_decides_where_it_is_known() -> None:
    choice = chosen(works("h264_vaapi", 120), works("h264_amf", 300), software_fps=60)
    assert names(choice) == ["h264_amf", "h264_vaapi", "libx264"]


def test_hardware_that_is_slower_than_the_cpu_is_left_out_by_auto_and_taken_by_on() -> None:
    slow = works("h264_v4l2m2m", 25)
    choice = chosen(slow, software_fps=60)
    assert names(choice) == ["libx264"]
    assert [(one.encoder, one.reason) for one in choice.left_out] == [("h264_v4l2m2m", "libx264 is faster here")]
    assert names(chosen(slow, wish=ON, software_fps=60)) == ["h264_v4l2m2m", "libx264"]


def test_several_devices_of_one_kind_are_all_candidates() -> None:
    choice = chosen(works("h264_nvenc", device="0"), works("h264_nvenc", device="1"))
    assert [(one.encoder.name, one.device) for one in choice.order] == [
        ("h264_nvenc", "0"),
        ("h264_nvenc", "1"),
        ("libx264", ""),
    ]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("off", "auto", False), "LOCAL_GPU_ENCODE=off"),
        (("on", "auto", True), "MONTAGE_FORCE_CPU=1"),
        (("auto", "none", False), "FFMPEG_HWACCEL=none"),
    ],
)
def test_what_forbids_hardware_is_named(settings: tuple[str, str, bool], reason: str) -> None:
    wish = wish_of(settings[0], settings[1], settings[2], None)  # type: ignore[arg-type]
    trying, left_out = worth_trying(FULL_HD, wish, HARDWARE_FAMILIES)
    assert trying == []
    assert {one.reason for one in left_out} == {reason}
    assert chosen(wish=wish).note == ""


def test_two_wishes_that_contradict_each_other_are_told() -> None:
    wish = wish_of("off", "auto", False, "h264_nvenc")
    assert chosen(wish=wish).note == "h264_nvenc was asked for, but LOCAL_GPU_ENCODE=off; libx264 encodes"
    assert names(chosen(wish=wish)) == ["libx264"]


def test_on_without_any_hardware_that_works_is_told_with_every_reason() -> None:
    choice = chosen(fails("h264_nvenc", "Cannot load libcuda.so.1"), fails("h264_vaapi", "no node"), wish=ON)
    assert names(choice) == ["libx264"]
    assert choice.note == (
        "LOCAL_GPU_ENCODE=on, but no video encoder of this machine can be used "
        "(h264_nvenc: Cannot load libcuda.so.1; h264_vaapi: no node); libx264 encodes"
    )


def test_hardware_that_is_there_but_fails_is_told() -> None:
    choice = chosen(fails("h264_vaapi", "the test encode crashed (SIGSEGV)"))
    assert choice.note == (
        "libx264 encodes, since the video encoders of this machine do not work "
        "(h264_vaapi: the test encode crashed (SIGSEGV))"
    )


@pytest.mark.parametrize(
    ("hwaccel", "encoder"),
    [
        ("cuda", "h264_nvenc"), ("nvenc", "h264_nvenc"), ("vaapi", "h264_vaapi"), ("qsv", "h264_qsv"),
        ("amf", "h264_amf"), ("videotoolbox", "h264_videotoolbox"), ("v4l2m2m", "h264_v4l2m2m"),
        ("nvmpi", "h264_nvmpi"), ("vulkan", "h264_vulkan"),
    ],
)  # fmt: skip
def test_a_wish_for_one_kind_leaves_out_all_others_even_without_a_sign_of_it(hwaccel: str, encoder: str) -> None:
    assert tried_for(Wish(hwaccel=hwaccel), "vaapi", "nvenc") == [encoder]


def test_a_wish_for_one_kind_that_fails_is_told() -> None:
    choice = chosen(fails("h264_qsv", "no node"), wish=Wish(hwaccel="qsv"))
    assert choice.note == "FFMPEG_HWACCEL=qsv, but it cannot be used (h264_qsv: no node); libx264 encodes"


def test_an_encoder_asked_for_goes_first_and_the_others_stay_behind_it() -> None:
    wish = Wish(encoder="h264_amf")
    assert tried_for(wish, "vaapi") == ["h264_vaapi", "h264_amf"]
    choice = chosen(works("h264_vaapi", 500), works("h264_amf", 20), wish=wish, software_fps=60)
    assert names(choice)[:2] == ["h264_amf", "h264_vaapi"]
    assert choice.note == ""


def test_an_encoder_asked_for_that_fails_is_told_and_the_next_takes_its_place() -> None:
    wish = Wish(encoder="h264_amf")
    choice = chosen(works("h264_vaapi"), fails("h264_amf", "no runtime"), wish=wish)
    assert names(choice) == ["h264_vaapi", "libx264"]
    assert choice.note == "h264_amf was asked for, but cannot be used (no runtime); h264_vaapi encodes instead"


def test_an_encoder_of_another_codec_stands_for_its_kind() -> None:
    hevc = replace(FULL_HD, codec="hevc")
    assert encoder_asked(Wish(encoder="h264_amf"), "hevc") == "hevc_amf"
    assert (
        names(chosen(works("hevc_vaapi"), works("hevc_amf"), wish=Wish(encoder="h264_amf"), need=hevc))[0] == "hevc_amf"
    )
    av1 = replace(FULL_HD, codec="av1")
    none = chosen(wish=Wish(encoder="h264_nvmpi"), need=av1)
    assert none.note == "h264_nvmpi was asked for, but its kind has no av1 encoder; libsvtav1 encodes instead"


def test_a_software_encoder_asked_for_is_the_only_one() -> None:
    wish = Wish(encoder="libx264")
    assert tried_for(wish, "nvenc") == []
    assert names(chosen(wish=wish)) == ["libx264"]
    assert chosen(wish=wish).note == ""


def test_the_key_names_an_encoder_only_if_the_user_did() -> None:
    assert encoder_asked(AUTO, "h264") is None
    assert encoder_asked(ON, "h264") is None
    assert encoder_asked(Wish(hwaccel="vaapi"), "h264") is None
    assert encoder_asked(Wish(encoder="h264_nvenc"), "h264") == "h264_nvenc"
    assert encoder_asked(Wish(cpu_because="LOCAL_GPU_ENCODE=off"), "hevc") == "libx265"


def test_a_run_planned_for_the_cpu_stays_there_and_a_machines_own_encoder_goes_before_the_plans() -> None:
    own = Wish(gpu_encode="on", encoder="h264_vaapi")
    assert with_plan(own, None) == own
    assert with_plan(own, "libx264").cpu_because == "the run is planned for libx264"
    assert with_plan(own, "h264_nvenc").encoder == "h264_vaapi"
    assert with_plan(AUTO, "h264_nvenc").encoder == "h264_nvenc"
    assert with_plan(Wish(cpu_because="MONTAGE_FORCE_CPU=1"), "h264_nvenc").cpu_because == "MONTAGE_FORCE_CPU=1"


@pytest.mark.parametrize(
    ("name", "need", "reason"),
    [
        ("h264_vaapi", replace(FULL_HD, width=192, height=108), "192x108 is below its smallest picture, 256x128"),
        ("h264_nvenc", replace(FULL_HD, width=5120, height=2880), "5120x2880 is beyond its largest picture, 4096x4096"),
        ("h264_nvenc", replace(FULL_HD, bit_depth=10), "it does not encode 10-bit video"),
        ("hevc_nvenc", replace(FULL_HD, codec="hevc", bit_depth=10), None),
    ],
)
def test_a_need_beyond_an_encoder_leaves_it_out_with_the_reason(name: str, need: Need, reason: str | None) -> None:
    assert unable(encoder_named(name), need) == reason
    trying, left_out = worth_trying(need, ON, HARDWARE_FAMILIES)
    assert (name in [encoder.name for encoder in trying]) == (reason is None)
    assert {one.encoder: one.reason for one in left_out}.get(name) == reason


def test_the_environment_makes_the_wish() -> None:
    settings = Settings.from_environment(
        {"LOCAL_GPU_ENCODE": "ON", "FFMPEG_HWACCEL": "vaapi", "OUTPUT_CODEC": "hevc_vaapi"}
    )
    wish = wish_of(settings.gpu_encode, settings.hwaccel, settings.force_cpu, settings.output_codec)
    assert wish == Wish("on", "vaapi", "hevc_vaapi")
    assert wish_of("auto", "auto", False, "hevc").encoder is None
