"""Segments become one film: every frame once, in order, evenly timed, decodable by a strict reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest

from montage_assets.media.encoders import ReadyEncoder, on_cpu
from montage_assets.media.errors import FfmpegFailed, MediaError
from montage_assets.media.join import join_segments, majority_parameters
from montage_assets.media.render import OutputFormat, RenderedSegment, RenderShot, render_segment
from tests.media.synth_video import clip_of, frame_times, make_video, numbers_in, shot_of

NTSC = OutputFormat(160, 96, Fraction(24000, 1001), "h264", "standard")


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> RenderShot:
    source = make_video(tmp_path_factory.mktemp("source") / "clip.mp4", frames=120, fps=Fraction(24000, 1001))
    clip = clip_of(source)
    return shot_of(source, clip, 0, 120, frame_times(source, clip))


def segments_of(
    shot: RenderShot,
    folder: Path,
    fmt: OutputFormat,
    lengths: Sequence[int],
    flags: dict[int, tuple[str, ...]] | None = None,
) -> list[RenderedSegment]:
    """Consecutive pieces of the clip; `flags` are further encoder flags of single segments."""
    encoder = on_cpu(fmt.codec).encoder
    done = 0
    segments = []
    for index, length in enumerate(lengths):
        piece = replace(shot, in_time_s=done / shot.clip.fps, frames=length)
        other = ReadyEncoder(replace(encoder, flags=(*encoder.flags, *(flags or {}).get(index, ()))))
        # Names that sort otherwise than the segments follow each other.
        out = folder / f"segment {index}{other.container.suffix}"
        segments.append(render_segment([piece], fmt, out, encoders=[other]))
        done += length
    return segments


def packet_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.dts for packet in packets] == sorted({packet.dts for packet in packets})
    assert all(packet.pts >= packet.dts for packet in packets)
    return sorted(packet.pts * packet.time_base for packet in packets)


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_twelve_segments_are_joined_in_the_order_given(codec: str, shot: RenderShot, tmp_path: Path) -> None:
    fmt = replace(NTSC, codec=codec, quality="preview")  # type: ignore[arg-type]
    lengths = [9, 1, 2, 17, 5, 8, 3, 11, 4, 6, 7, 10]
    film = join_segments(segments_of(shot, tmp_path, fmt, lengths), fmt, tmp_path / "film.mp4")
    assert film.frames == sum(lengths)
    assert film.reencoded == []
    assert [number for number, _ in numbers_in(film.path)] == list(range(sum(lengths)))
    assert packet_times(film.path) == [place / fmt.fps for place in range(sum(lengths))]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("segment")) == ["film.mp4"]


def test_joining_copies_the_pictures_bit_for_bit(shot: RenderShot, tmp_path: Path) -> None:
    segments = segments_of(shot, tmp_path, NTSC, [30, 30])
    film = join_segments(segments, NTSC, tmp_path / "film.mp4")

    def pictures(path: Path, container: str) -> list[bytes]:
        with av.open(str(path), format=container) as opened:
            return [frame.to_ndarray().tobytes() for frame in opened.decode(video=0)]

    apart = [picture for segment in segments for picture in pictures(segment.path, "mpegts")]
    assert pictures(film.path, "mp4") == apart


def test_a_foreign_segment_is_encoded_like_the_majority_and_no_frame_is_lost(shot: RenderShot, tmp_path: Path) -> None:
    segments = segments_of(shot, tmp_path, NTSC, [20, 25, 30], {1: ("-profile:v", "main", "-refs", "1")})
    assert len({segment.codec_hash for segment in segments}) == 2
    film = join_segments(segments, NTSC, tmp_path / "film.mp4")
    assert film.reencoded == [1]
    assert [number for number, _ in numbers_in(film.path)] == list(range(75))
    assert packet_times(film.path) == [place / NTSC.fps for place in range(75)]
    # A strict reader sets up its decoder once, from the file's header.
    with av.open(str(film.path)) as container:
        decoder = av.CodecContext.create("h264", "r")
        decoder.extradata = container.streams.video[0].codec_context.extradata
        frames = [frame for packet in container.demux(video=0) for frame in decoder.decode(packet)]
    assert len(frames) == 75


def test_where_the_majority_encoder_is_not_at_hand_all_are_encoded_by_the_software_one(
    shot: RenderShot, tmp_path: Path
) -> None:
    segments = segments_of(shot, tmp_path, NTSC, [20, 10], {0: ("-profile:v", "main")})
    # As if the first had come from an encoder whose stream this machine cannot make again.
    film = join_segments(segments, NTSC, tmp_path / "film.mp4")
    assert film.reencoded == [0, 1]
    assert [number for number, _ in numbers_in(film.path)] == list(range(30))


def test_the_majority_is_counted_in_frames_and_the_first_wins_a_draw() -> None:
    def segment(parameters: str, frames: int) -> RenderedSegment:
        return RenderedSegment(Path("x"), frames, "libx264", parameters, 1, 0.0)

    assert majority_parameters([segment("a", 10), segment("a", 10), segment("b", 30)]) == "b"
    assert majority_parameters([segment("b", 10), segment("a", 10)]) == "b"


def test_a_damaged_or_missing_segment_is_named_and_leaves_no_film(shot: RenderShot, tmp_path: Path) -> None:
    segments = segments_of(shot, tmp_path, NTSC, [30, 30])
    segments[1].path.write_bytes(segments[1].path.read_bytes()[: segments[1].size_bytes // 2])
    with pytest.raises(FfmpegFailed, match=r"segment 1\.ts holds \d+ timed frames instead of 30"):
        join_segments(segments, NTSC, tmp_path / "film.mp4")
    segments[1].path.unlink()
    with pytest.raises(MediaError, match=r"segment 1\.ts cannot be read"):
        join_segments(segments, NTSC, tmp_path / "film.mp4")
    with pytest.raises(MediaError, match="no segments"):
        join_segments([], NTSC, tmp_path / "film.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["segment 0.ts"]
