"""Ingest takes ordinary files of every kind, and says of the others why not."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import pytest

from montage_assets.media.clip import Clip
from montage_assets.media.errors import UnusableClip
from montage_assets.media.ffmpeg import ffmpeg_program
from montage_assets.media.ingest import ingest_clip, media_kind
from tests.media.synth_footage import HEVC_OPEN_GOP, MPEG2, X264, write_clip, write_song


def ingested(path: Path) -> Clip:
    return ingest_clip(path, path.name, "fingerprint").clip


def test_a_plain_clip_is_described_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(
        path,
        (50,),
        fps=25,
        inputs=("-f", "lavfi", "-i", "sine=d=2:r=44100"),
        extra=("-c:a", "aac", "-shortest"),
    )
    clip = ingested(path)
    assert (clip.codec, clip.width, clip.height, clip.display_width) == ("h264", 192, 108, 192)
    assert (clip.fps, clip.frames_estimate, clip.variable_rate) == (25, 50, False)
    assert clip.duration_s == pytest.approx(2.0, abs=0.01)
    assert (clip.transfer, clip.matrix, clip.rotation, clip.audio_channels) == ("sdr", "bt601", 0, 1)


def test_a_turned_clip_is_portrait(tmp_path: Path) -> None:
    flat, turned = tmp_path / "flat.mp4", tmp_path / "turned.mp4"
    write_clip(flat, (10,))
    subprocess.run(
        [ffmpeg_program(), "-v", "error", "-display_rotation", "90", "-i", flat, "-c", "copy", turned],
        check=True,
    )
    clip = ingested(turned)
    assert clip.rotation == 270
    assert (clip.display_width, clip.display_height) == (108, 192)


def test_anamorphic_pixels_make_the_display_wider(tmp_path: Path) -> None:
    path = tmp_path / "anamorphic.mp4"
    write_clip(path, (20,), filters="setsar=4/3")
    clip = ingested(path)
    assert clip.sample_aspect == Fraction(4, 3)
    assert (clip.display_width, clip.display_height) == (256, 108)


def test_hdr_and_ten_bits_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "hdr.mp4"
    tags = "setparams=color_trc=smpte2084:colorspace=bt2020nc:color_primaries=bt2020"
    write_clip(path, (10,), encoder=HEVC_OPEN_GOP, extra=("-pix_fmt", "yuv420p10le"), filters=tags)
    clip = ingested(path)
    assert (clip.transfer, clip.matrix, clip.bit_depth) == ("pq", "bt2020", 10)


def test_variable_frame_rate_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mp4"
    write_clip(
        path,
        (60,),
        extra=("-fps_mode", "vfr"),
        filters="select='lt(n,30)+not(mod(n,3))'",
        encoder=(*X264, "-bf", "0"),
    )
    assert ingested(path).variable_rate


def test_interlaced_footage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "interlaced.mpg"
    write_clip(
        path,
        (20,),
        encoder=MPEG2,
        extra=("-flags", "+ildct+ilme", "-field_order", "tt"),
        filters="setfield=tff",
    )
    assert ingested(path).interlaced


def test_a_start_after_zero_is_the_clips_own_zero(tmp_path: Path) -> None:
    path = tmp_path / "late.ts"
    write_clip(path, (20,), encoder=MPEG2, extra=("-output_ts_offset", "3"))
    clip = ingested(path)
    assert float(clip.first_pts * clip.time_base) > 2.9
    assert clip.duration_s == pytest.approx(0.8, abs=0.05)


def test_the_thumbnail_is_a_picture_of_the_clip(tmp_path: Path) -> None:
    import io

    from PIL import Image

    path = tmp_path / "clip.mp4"
    write_clip(path, (20,))
    picture = Image.open(io.BytesIO(ingest_clip(path, path.name, "").thumbnail))
    assert picture.size == (320, 180)


@pytest.mark.parametrize("name", ["-i evil.mp4", 'a\'b "c" $(x).mp4', "100%d.mp4", "concat:a|b.mp4", "ünï.mp4"])
def test_a_file_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    plain = tmp_path / "plain.mp4"
    write_clip(plain, (10,))
    plain.rename(path)
    assert ingested(path).name == name


def cut_off_at(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind.replace(' ', '_')}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "zeros":
        path.write_bytes(b"\0" * 100_000)
    elif kind == "no index":
        write_clip(path, (60,))
        cut_off_at(path, 0.6)
    elif kind == "cut off":
        write_clip(path, (200,), extra=("-movflags", "+faststart"))
        cut_off_at(path, 0.6)
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/hostname\n")
    elif kind == "sound only":
        song = folder / "song.wav"
        write_song(song, duration_s=2)
        subprocess.run([ffmpeg_program(), "-v", "error", "-i", song, "-c:a", "aac", path], check=True)
    elif kind == "encrypted":
        write_clip(path, (30,), extra=(
            "-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "0123456789abcdef0123456789abcdef",
            "-encryption_kid", "0123456789abcdef0123456789abcdef",
        ))  # fmt: skip
    elif kind == "absurd size":
        path = path.with_suffix(".mkv")
        write_clip(path, (2,), size=(128, 16), filters="scale=32768:64", encoder=("-c:v", "ffv1"))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", r"is empty \(0 bytes\)"),
        ("zeros", "only zero bytes"),
        ("no index", "incomplete MP4: its index is missing"),
        ("cut off", "is cut off"),
        ("text", "is no video that can be opened"),
        ("playlist", "is a playlist that names other files"),
        ("sound only", "has sound only"),
        ("encrypted", "encrypted"),
        ("absurd size", "32768x64 pixels; at most 16384 a side"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path: Path, kind: str, reason: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(UnusableClip, match=reason) as refused:
        ingested(path)
    assert "\n" not in str(refused.value)


def test_a_transport_stream_that_was_cut_off_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "cut.ts"
    write_clip(path, (100,), encoder=MPEG2)
    cut_off_at(path, 0.5)
    assert 1.0 < ingested(path).duration_s < 3.0


def test_files_are_told_apart_by_their_suffix() -> None:
    assert [media_kind(name) for name in ("a.MOV", "b.mp3", "c.HEIC", "d.txt")] == [
        "video",
        "audio",
        "still",
        "other",
    ]


def test_a_trimmed_clip_starts_at_its_first_shown_frame(tmp_path: Path) -> None:
    whole, trimmed = tmp_path / "whole.mp4", tmp_path / "trimmed.mp4"
    write_clip(whole, (100,), encoder=(*X264[:-4], "-g", "50", "-pix_fmt", "yuv420p"))
    command = [ffmpeg_program(), "-v", "error", "-ss", "1.2", "-i", whole, "-c", "copy", trimmed]
    subprocess.run(command, check=True)
    clip = ingested(trimmed)
    assert clip.first_pts >= 0
    assert clip.duration_s == pytest.approx(2.8, abs=0.05)


def test_a_recording_cut_in_the_middle_of_a_gop_starts_at_its_first_keyframe(tmp_path: Path) -> None:
    path = tmp_path / "cut.ts"
    write_clip(path, (150,), encoder=(*X264[:-4], "-g", "50", "-bf", "2", "-pix_fmt", "yuv420p"))
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 6 // 188 * 188 :])
    clip = ingested(path)
    with av.open(str(path)) as container:
        times = [frame.pts for frame in container.decode(video=0)]
    assert clip.first_pts == times[0]
