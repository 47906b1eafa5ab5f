"""The encoder table keeps to what joining needs."""

from __future__ import annotations

import os
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from montage_assets.media.encoders import (
    CODECS,
    ENCODERS,
    QUALITIES,
    Encoder,
    encode_flags,
    encoder_named,
    read_encoded_stream,
    software_encoder,
)
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import ffmpeg_program
from tests.media.synth_video import lumas_in, make_video


def encode(encoder: Encoder, quality: str, source: Path, out: Path, cores: set[int] | None = None) -> Path:
    command = [
        ffmpeg_program(), "-v", "error", "-y", "-i", str(source),
        "-vf", ",".join(encoder.filters), *encode_flags(encoder, quality, Fraction(25)),  # type: ignore[arg-type]
        "-fflags", "+bitexact", *encoder.container.flags, "-f", encoder.container.format, str(out),
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


def test_only_software_encoders_are_given_a_crf() -> None:
    for encoder in ENCODERS:
        for quality in QUALITIES:
            assert ("-crf" in encode_flags(encoder, quality, Fraction(30))) == (encoder.device == "cpu")


@pytest.mark.parametrize("encoder", [e for e in ENCODERS if e.device == "cpu"], ids=lambda encoder: encoder.name)
def test_better_levels_lose_less_of_the_picture(encoder: Encoder, source: Path, tmp_path: Path) -> None:
    errors = []
    original = [luma.astype(float) for luma in lumas_in(source)]
    for quality in ("preview", "standard", "high", "master"):
        out = encode(encoder, quality, source, tmp_path / f"{quality}{encoder.container.suffix}")
        stream = read_encoded_stream(out, encoder.container)
        assert (stream.codec, stream.frames, stream.starts_with_keyframe) == (encoder.codec, 110, True)
        decoded = lumas_in(out)
        assert len(decoded) == 110
        errors.append(sum(np.square(a - b).mean() for a, b in zip(original, decoded, strict=True)))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("encoder", [e for e in ENCODERS if e.device == "cpu"], ids=lambda encoder: encoder.name)
def test_keyframes_come_every_two_seconds_and_groups_are_closed(encoder: Encoder, source: Path, tmp_path: Path) -> None:
    out = encode(encoder, "standard", source, tmp_path / f"out{encoder.container.suffix}")
    with av.open(str(out)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    assert keys == [0, 50, 100]
    for key in keys[1:]:
        before, after = packets[:key], packets[key:]
        assert max(packet.pts for packet in before) < min(packet.pts for packet in after)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("encoder", [e for e in ENCODERS if e.device == "cpu"], ids=lambda encoder: encoder.name)
def test_the_same_frames_give_the_same_bytes_on_one_core_and_on_several(
    encoder: Encoder, source: Path, tmp_path: Path
) -> None:
    cores = os.sched_getaffinity(0)
    suffix = encoder.container.suffix
    one = encode(encoder, "standard", source, tmp_path / f"one{suffix}", {min(cores)})
    several = encode(encoder, "standard", source, tmp_path / f"several{suffix}", cores)
    assert one.read_bytes() == several.read_bytes()


def test_headers_do_not_depend_on_the_pictures(source: Path, tmp_path: Path) -> None:
    still = make_video(tmp_path / "still.mkv", frames=10, filters="drawbox=t=fill:color=black")
    for encoder in ENCODERS:
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
        encode_flags(ENCODERS[0], "best", Fraction(25))  # type: ignore[arg-type]
    empty = tmp_path / "empty.ts"
    empty.touch()
    with pytest.raises(MediaError, match=r"empty\.ts holds no readable video"):
        read_encoded_stream(empty, ENCODERS[0].container)
