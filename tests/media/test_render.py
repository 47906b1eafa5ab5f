"""Segments have exactly the planned frames, from exactly the right place of every kind of source."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from montage_assets.media.errors import FfmpegFailed, MediaError
from montage_assets.media.ffmpeg import ffmpeg_program
from montage_assets.media.render import (
    MOST_SHOTS,
    OPEN_SOURCES_BYTES,
    OutputFormat,
    RenderShot,
    open_source_bytes,
    plan_segments,
    render_segment,
)
from tests.media.synth_video import clip_of, frame_times, make_video, numbers_in, shot_of, tone

MPEG2 = ("-c:v", "mpeg2video", "-q:v", "2", "-g", "12", "-bf", "2")
X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "12")
B_FRAMES = (*X264, "-g", "12", "-bf", "2")
UNEVEN = "settb=1/1000,setpts=N*40+17*mod(N\\,2)+3*mod(N\\,5)"
PASSED_THROUGH = ("-fps_mode", "passthrough", "-enc_time_base", "1/1000")
SMALL = OutputFormat(160, 96, Fraction(25), "h264", "high")


def rendered_numbers(shots: list[RenderShot], out: Path, fmt: OutputFormat = SMALL) -> list[int]:
    render_segment(shots, fmt, out)
    return [number for number, _ in numbers_in(out)]


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """What is started inside runs on a single core, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(
    ("name", "made_with"),
    [
        ("b-frames.mp4", {}),
        ("open gop.mp4", {"encode": (*X264, "-g", "12", "-bf", "3", "-x264-params", "open-gop=1")}),
        ("open gop.ts", {"encode": (*X264, "-g", "12", "-bf", "3", "-x264-params", "open-gop=1")}),
        ("long gop, sound first.ts", {"encode": (*X264, "-g", "40", "-bf", "2"), "inputs": tone(440, 3)}),
        ("mpeg-2.mpg", {"encode": MPEG2, "inputs": tone(440, 3)}),
        ("b-frames.avi", {"encode": ("-c:v", "mpeg4", "-q:v", "2", "-g", "12", "-bf", "2")}),
        ("vp8.webm", {"encode": ("-c:v", "libvpx", "-b:v", "2M", "-g", "12", "-deadline", "realtime")}),
        ("variable rate.mp4", {"filters": UNEVEN, "encode": (*B_FRAMES, *PASSED_THROUGH)}),
        ("variable rate.mkv", {"filters": UNEVEN, "encode": (*B_FRAMES, *PASSED_THROUGH)}),
        ("sound starts earlier.mp4", {
            "filters": "setpts=PTS+0.7/TB", "encode": (*X264, "-g", "12", "-fps_mode", "passthrough"),
            "inputs": tone(440, 4),
        }),
        ("sound starts earlier.mkv", {
            "filters": "setpts=PTS+0.7/TB", "encode": (*X264, "-g", "12", "-fps_mode", "passthrough"),
            "inputs": tone(440, 4),
        }),
        ("no index.mkv", {"output": ("-live", "1")}),
        ("60 frames a second.mp4", {"fps": 60}),
    ],
)  # fmt: skip
def test_a_shot_starts_on_its_very_frame(name: str, made_with: dict[str, object], tmp_path: Path) -> None:
    source = make_video(tmp_path / name, **made_with)  # type: ignore[arg-type]
    clip, numbers = clip_of(source), [number for number, _ in numbers_in(source)]
    times = frame_times(source, clip)
    assert numbers == list(range(60))
    wanted = [0, 1, 5, 11, 12, 13, 23, 24, 39, 40, 41, 57]
    shots = [shot_of(source, clip, frame, 1, times) for frame in wanted]
    assert rendered_numbers(shots, tmp_path / "out.ts") == wanted


def test_a_clip_cut_without_reencoding_starts_at_the_frame_it_shows_first(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4")
    trimmed = tmp_path / "trimmed.mp4"
    copy = [ffmpeg_program(), "-v", "error", "-ss", "0.64", "-i", str(whole), "-c", "copy", str(trimmed)]
    subprocess.run(copy, check=True)
    clip, numbers = clip_of(trimmed), [number for number, _ in numbers_in(trimmed)]
    times = frame_times(trimmed, clip)
    wanted = [0, 1, 10, 25]
    shots = [shot_of(trimmed, clip, frame, 1, times) for frame in wanted]
    assert rendered_numbers(shots, tmp_path / "out.ts") == [numbers[frame] for frame in wanted]


def test_many_shots_do_not_drift_and_every_frame_is_the_one_on_show_at_its_time(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4", frames=200, fps=Fraction(30000, 1001))
    clip, times = clip_of(source), frame_times(source, clip_of(source))
    fmt = replace(SMALL, fps=Fraction(24000, 1001))
    shots = [shot_of(source, clip, frame, 8, times) for frame in range(0, 190, 8)]
    numbers = rendered_numbers(shots, tmp_path / "out.ts", fmt)
    assert len(numbers) == 8 * len(shots)
    # Of 30 frames a second 24 are shown: film frame k shows what is on a quarter of a film frame later.
    assert numbers == [first + int(1.25 * (k + 0.25)) for first in range(0, 190, 8) for k in range(8)]


def test_slow_sources_repeat_frames_evenly(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4", fps=Fraction(25, 2))
    clip, times = clip_of(source), frame_times(source, clip_of(source))
    numbers = rendered_numbers([shot_of(source, clip, 20, 10, times)], tmp_path / "out.ts")
    assert numbers == [20, 20, 21, 21, 22, 22, 23, 23, 24, 24]


def test_a_shot_may_end_with_its_clip(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4", frames=20)
    clip, times = clip_of(source), frame_times(source, clip_of(source))
    # One frame more than there is: rounding may ask for it.
    assert rendered_numbers([shot_of(source, clip, 15, 6, times)], tmp_path / "out.ts") == [
        15,
        16,
        17,
        18,
        19,
        19,
    ]


def test_a_shot_far_beyond_its_clip_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    source = make_video(tmp_path / "short.mp4", frames=20)
    clip, times = clip_of(source), frame_times(source, clip_of(source))
    with pytest.raises(FfmpegFailed, match=r"segment 7 .*short\.mp4.* instead of 30"):
        render_segment([shot_of(source, clip, 15, 30, times)], SMALL, tmp_path / "out.ts", name="segment 7")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.mp4"]


def test_a_source_that_broke_after_ingest_leaves_no_file_and_no_old_file_is_touched(tmp_path: Path) -> None:
    source = make_video(tmp_path / "broken.mp4", frames=20)
    clip, times = clip_of(source), frame_times(source, clip_of(source))
    source.write_bytes(b"\0" * 4000)
    (tmp_path / "out.ts").write_bytes(b"before")
    with pytest.raises((FfmpegFailed, MediaError), match=r"broken\.mp4"):
        render_segment([shot_of(source, clip, 10, 5, times)], SMALL, tmp_path / "out.ts")
    assert (tmp_path / "out.ts").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["-i evil.mp4", 'a\'b "c" $(x).mp4', "100%d [0,1];=\\:.mp4", "x:y.mp4"])
def test_file_names_are_only_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_video(tmp_path / name, frames=30)
    clip, times = clip_of(source), frame_times(source, clip_of(source))
    monkeypatch.chdir(tmp_path)
    shot = shot_of(Path(name), clip, 20, 3, times)
    assert rendered_numbers([shot], tmp_path / "-y out 'x'.ts") == [20, 21, 22]


@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".ts"), ("hevc", ".ts"), ("av1", ".mp4")])
def test_a_segment_is_video_only_of_one_kind_and_starts_with_a_keyframe(
    codec: str, suffix: str, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "clip.mp4", inputs=tone(440, 3), output=("-shortest",))
    clip, times = clip_of(source), frame_times(source, clip_of(source))
    fmt = OutputFormat(160, 96, Fraction(24000, 1001), codec, "preview")  # type: ignore[arg-type]
    out = tmp_path / f"segment{suffix}"
    segment = render_segment([shot_of(source, clip, 3, 30, times), shot_of(source, clip, 0, 30, times)], fmt, out)
    with av.open(str(out)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    with av.open(str(out)) as container:
        frames = list(container.decode(video=0))
    assert len(keys) == len(frames) == segment.frames == 60
    assert [place for place, key in enumerate(keys) if key] == [0, 48]
    first = frames[0]
    assert (first.width, first.height, first.format.name) == (160, 96, "yuv420p")
    assert (first.color_primaries, first.color_trc, first.colorspace, first.color_range) == (1, 1, 1, 1)
    assert segment.size_bytes == out.stat().st_size


def test_sources_of_every_kind_share_one_segment(tmp_path: Path) -> None:
    hdr = ("-color_primaries", "bt2020", "-color_trc", "smpte2084", "-colorspace", "bt2020nc")
    sources = [
        make_video(tmp_path / "plain.mp4", clip=0, inputs=tone(440, 2, channels=1)),
        make_video(tmp_path / "anamorphic.mp4", clip=1, size=(120, 96), filters="setsar=4/3"),
        make_video(tmp_path / "variable.mp4", clip=2, filters=UNEVEN, encode=(*B_FRAMES, *PASSED_THROUGH)),
        make_video(
            tmp_path / "odd.mkv", clip=3, size=(161, 97), filters="format=yuv444p", encode=("-c:v", "ffv1"), fps=50
        ),
        make_video(
            tmp_path / "hdr.mkv",
            clip=4,
            filters="format=yuv420p10le,setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc",
            encode=("-c:v", "ffv1"),
            output=hdr,
        ),
        make_video(tmp_path / "full range.mp4", clip=5, filters="scale=out_range=pc", output=("-color_range", "pc")),
    ]
    upright = make_video(tmp_path / "upright.mp4", clip=6)
    turned = tmp_path / "turned.mp4"
    upside_down = ["-display_rotation", "180", "-i", str(upright), "-c", "copy", str(turned)]
    subprocess.run([ffmpeg_program(), "-v", "error", *upside_down], check=True)
    shots = [shot_of(path, clip_of(path), 20, 7, frame_times(path, clip_of(path))) for path in [*sources, turned]]
    assert [shot.clip.transfer for shot in shots].count("pq") == 1
    out = tmp_path / "out.ts"
    render_segment(shots, replace(SMALL, fps=Fraction(24000, 1001)), out)
    numbers = numbers_in(out)
    assert len(numbers) == 7 * 7
    assert [clip for _, clip in numbers[:42]] == [clip for clip in range(6) for _ in range(7)]
    assert [number for number, _ in numbers[:42:7]] == [20] * 6
    # Upside down the first row is the complement of the clip's number, from right to left.
    assert numbers[42][0] == int(f"{~6 & 1023:010b}"[::-1], 2)


def test_the_same_shots_give_the_same_bytes_on_any_number_of_cores(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4", frames=30)
    clip, times = clip_of(source), frame_times(source, clip_of(source))
    shots = [shot_of(source, clip, 4, 12, times), shot_of(source, clip, 9, 12, times)]
    framed = replace(SMALL, width=96, height=160)  # with a blurred surround
    one = render_segment(shots, framed, tmp_path / "one.ts")
    with on_one_core():
        other = render_segment(shots, framed, tmp_path / "other.ts")
    assert one.path.read_bytes() == other.path.read_bytes()
    assert one.codec_hash == other.codec_hash


def test_progress_is_told_up_to_the_last_frame(tmp_path: Path) -> None:
    source = make_video(tmp_path / "clip.mp4", frames=30)
    clip, times = clip_of(source), frame_times(source, clip_of(source))
    told: list[int] = []
    render_segment(
        [shot_of(source, clip, 0, 20, times)],
        SMALL,
        tmp_path / "out.ts",
        on_progress=lambda progress: told.append(progress.frames),
    )
    assert told[-1] == 20


@pytest.fixture(scope="module")
def any_clip(tmp_path_factory: pytest.TempPathFactory) -> RenderShot:
    source = make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=10)
    return RenderShot(source, clip_of(source), Fraction(0), 10)


def test_the_plan_covers_every_shot_once_in_groups_of_like_length(any_clip: RenderShot) -> None:
    lengths = np.random.default_rng(3).integers(10, 60, 200)
    shots = [replace(any_clip, frames=int(length)) for length in lengths]
    groups = plan_segments(shots, Fraction(25))
    assert [index for group in groups for index in group] == list(range(200))
    seconds = [sum(shots[index].frames for index in group) / 25 for group in groups]
    assert 7 < min(seconds) <= max(seconds) < 11


def test_the_plan_opens_no_more_sources_than_memory_bears(any_clip: RenderShot) -> None:
    huge = replace(any_clip, clip=replace(any_clip.clip, width=3840, height=2160, bit_depth=10), frames=5)
    groups = plan_segments([huge] * 40, Fraction(25))
    assert [index for group in groups for index in group] == list(range(40))
    assert max(len(group) for group in groups) * open_source_bytes(huge.clip) <= OPEN_SOURCES_BYTES
    assert max(len(group) for group in plan_segments([any_clip] * 500, Fraction(25))) <= MOST_SHOTS


def test_a_picture_beyond_the_memory_bound_gets_a_segment_of_its_own(any_clip: RenderShot) -> None:
    gigantic = replace(any_clip, clip=replace(any_clip.clip, width=15360, height=8640))
    assert plan_segments([gigantic, gigantic], Fraction(25)) == [range(1), range(1, 2)]


def test_a_short_film_is_one_segment_and_no_film_is_none(any_clip: RenderShot) -> None:
    assert plan_segments([any_clip] * 3, Fraction(25)) == [range(3)]
    assert plan_segments([], Fraction(25)) == []


def test_no_shots_and_unknown_settings_are_refused_in_words(any_clip: RenderShot, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no shots"):
        render_segment([], SMALL, tmp_path / "out.ts")
    with pytest.raises(MediaError, match="quality 'best'; choose one of preview"):
        render_segment([any_clip], replace(SMALL, quality="best"), tmp_path / "out.ts")  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="both sides must be even"):
        render_segment([any_clip], replace(SMALL, width=161), tmp_path / "out.ts")
    assert list(tmp_path.iterdir()) == []
