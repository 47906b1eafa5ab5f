"""The encoder table keeps to what joining needs."""

from __future__ import annotations

import os
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from montage_assets.media.encoder_probe import listed_encoders
from montage_assets.media.encoders import (
    CODECS,
    ENCODERS,
    QUALITIES,
    Encoder,
    ReadyEncoder,
    encode_flags,
    encode_output,
    encoder_filters,
    encoder_named,
    on_cpu,
    read_encoded_stream,
    software_encoder,
)
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import ffmpeg_program
from tests.media.synth_video import lumas_in, make_video

SOFTWARE = [on_cpu(codec) for codec in CODECS]


def encode(ready: ReadyEncoder, quality: str, source: Path, out: Path, cores: set[int] | None = None) -> Path:
    command = [
        ffmpeg_program(), "-v", "error", "-y", "-i", str(source),
        "-vf", ",".join(encoder_filters(ready)),
        *encode_output(ready, quality, Fraction(25), (160, 96), 110, out),  # type: ignore[arg-type]
    ]  # fmt: skip
    pin = None if cores is None else (lambda: os.sched_setaffinity(0, cores))
    subprocess.run(command, check=True, capture_output=True, preexec_fn=pin)
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("source") / "clip.mkv", frames=110, filters="noise=alls=12:all_seed=5")


def test_every_codec_has_an_encoder_that_needs_no_device_and_every_level() -> None:
    for codec in CODECS:
        assert software_encoder(codec).codec == codec
    for encoder in ENCODERS:
        assert encoder_named(encoder.name) is encoder
        assert set(encoder.quality) == set(QUALITIES)


def flags_of(encoder: Encoder, quality: str = "standard", bit_depth: int = 8) -> list[str]:
    ready = ReadyEncoder(encoder, "DEVICE", encoder.b_frames[0])
    return encode_flags(ready, quality, Fraction(30), (1920, 1080), bit_depth)  # type: ignore[arg-type]


def test_only_software_encoders_are_given_a_crf() -> None:
    for encoder in ENCODERS:
        for quality in QUALITIES:
            assert ("-crf" in flags_of(encoder, quality)) == (encoder.family == "cpu")


def test_every_codec_has_every_kind_of_hardware_that_ffmpeg_has_for_it() -> None:
    families = {codec: {encoder.family for encoder in ENCODERS if encoder.codec == codec} for codec in CODECS}
    everywhere = {"cpu", "nvenc", "vaapi", "qsv", "amf", "vulkan"}
    assert families["h264"] == families["hevc"] == everywhere | {"videotoolbox", "v4l2m2m", "nvmpi"}
    assert families["av1"] == everywhere


def test_every_command_is_the_one_written_down() -> None:
    written = (Path(__file__).parent / "encoder_commands.txt").read_text()
    assert "\n".join(commands()) + "\n" == written


def commands() -> list[str]:
    """What every encoder is told for 1920x1080 at 30 frames a second, standard level, 8 and 10 bits."""
    lines = []
    for encoder in ENCODERS:
        for bit_depth in encoder.depths:
            ready = ReadyEncoder(encoder, "DEVICE", encoder.b_frames[0])
            chain = ",".join(encoder_filters(ready, bit_depth))
            before = " ".join(ready.device_flags) or "-"
            lines.append(f"{before} | {chain} | {' '.join(flags_of(encoder, bit_depth=bit_depth))}")
    return lines


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.name)
def test_the_pinned_ffmpeg_knows_every_option_an_encoder_is_given(encoder: Encoder) -> None:
    if encoder.name not in listed_encoders():
        pytest.skip("this build does not have it")
    told = subprocess.run([ffmpeg_program(), "-hide_banner", "-h", f"encoder={encoder.name}"], capture_output=True)
    own = set(re.findall(r"^\s+-([\w-]+)\s+<", told.stdout.decode(), re.MULTILINE))
    generic = {"c:v", "g", "bf", "b:v", "flags", "keyint_min", "sc_threshold", "threads", "global_quality", "bsf:v"}
    colours = {"color_primaries", "color_trc", "colorspace", "color_range"}
    for quality in QUALITIES:
        options = [flag[1:] for flag in flags_of(encoder, quality) if re.match(r"-[a-z]", flag)]
        assert {
            option.removesuffix(":v") if option == "profile:v" else option for option in options
        } - generic - colours <= own


def test_numbers_get_better_from_level_to_level_on_the_scale_of_each_encoder() -> None:
    for encoder in ENCODERS:
        worst, best = encoder.scale
        numbers = [encoder.numbers[quality] for quality in QUALITIES]
        assert numbers == sorted(numbers, reverse=worst > best)
        assert all(min(worst, best) <= number <= max(worst, best) for number in numbers)


def test_an_encoder_without_constant_quality_is_given_bits_for_the_size_and_rate_of_the_film() -> None:
    ready = ReadyEncoder(encoder_named("h264_v4l2m2m"))
    small = encode_flags(ready, "standard", Fraction(30), (1280, 720))
    large = encode_flags(ready, "standard", Fraction(60), (2560, 1440))
    rates = [int(flags[flags.index("-b:v") + 1]) for flags in (small, large)]
    assert rates == [3_317_760, 8 * 3_317_760]


def test_calibrated_numbers_take_the_place_of_the_tables() -> None:
    nvenc = encoder_named("h264_nvenc")
    flags = encode_flags(ReadyEncoder(nvenc, "0", 2, {**nvenc.numbers, "high": 19.0}), "high", Fraction(30), (64, 64))
    assert flags[flags.index("-cq") + 1] == "19"


@pytest.mark.parametrize("encoder", SOFTWARE, ids=lambda encoder: encoder.name)
def test_better_levels_lose_less_of_the_picture(encoder: ReadyEncoder, source: Path, tmp_path: Path) -> None:
    errors = []
    original = [luma.astype(float) for luma in lumas_in(source)]
    for quality in ("preview", "standard", "high", "master"):
        out = encode(encoder, quality, source, tmp_path / f"{quality}{encoder.container.suffix}")
        stream = read_encoded_stream(out, encoder.container)
        assert (stream.codec, stream.frames, stream.starts_with_keyframe) == (encoder.encoder.codec, 110, True)
        assert stream.size == (160, 96)
        decoded = lumas_in(out)
        assert len(decoded) == 110
        errors.append(sum(np.square(a - b).mean() for a, b in zip(original, decoded, strict=True)))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("encoder", SOFTWARE, ids=lambda encoder: encoder.name)
def test_keyframes_come_every_two_seconds_and_groups_are_closed(
    encoder: ReadyEncoder, source: Path, tmp_path: Path
) -> None:
    out = encode(encoder, "standard", source, tmp_path / f"out{encoder.container.suffix}")
    with av.open(str(out)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    assert keys == [0, 50, 100]
    for key in keys[1:]:
        before, after = packets[:key], packets[key:]
        assert max(packet.pts for packet in before) < min(packet.pts for packet in after)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("encoder", SOFTWARE, ids=lambda encoder: encoder.name)
def test_the_same_frames_give_the_same_bytes_on_one_core_and_on_several(
    encoder: ReadyEncoder, source: Path, tmp_path: Path
) -> None:
    cores = os.sched_getaffinity(0)
    suffix = encoder.container.suffix
    one = encode(encoder, "standard", source, tmp_path / f"one{suffix}", {min(cores)})
    several = encode(encoder, "standard", source, tmp_path / f"several{suffix}", cores)
    assert one.read_bytes() == several.read_bytes()


def test_headers_do_not_depend_on_the_pictures(source: Path, tmp_path: Path) -> None:
    still = make_video(tmp_path / "still.mkv", frames=10, filters="drawbox=t=fill:color=black")
    for encoder in SOFTWARE:
        suffix = encoder.container.suffix
        one = encode(encoder, "standard", source, tmp_path / f"{encoder.name}-one{suffix}")
        other = encode(encoder, "standard", still, tmp_path / f"{encoder.name}-other{suffix}")
        assert (
            read_encoded_stream(one, encoder.container).parameters
            == read_encoded_stream(other, encoder.container).parameters
        )


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="libx264, libx265"):
        encoder_named("libx266")
    with pytest.raises(MediaError, match="h264, hevc, av1"):
        software_encoder("vp9")  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="preview, standard, high, master"):
        encode_flags(SOFTWARE[0], "best", Fraction(25), (64, 64))  # type: ignore[arg-type]
    empty = tmp_path / "empty.ts"
    empty.touch()
    with pytest.raises(MediaError, match=r"empty\.ts holds no readable video"):
        read_encoded_stream(empty, SOFTWARE[0].container)
