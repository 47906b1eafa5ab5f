"""Pictures come out upright, unstretched, in the right colours, whatever the source."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import ffmpeg_program
from montage_assets.media.picture import Framing, display_aspect, layout, picture_chain, share_lost_by_crop
from montage_assets.media.render import OutputFormat, RenderShot, render_segment
from tests.media.synth_video import clip_of, frames_in, luma_of, lumas_in, make_video

LOSSLESS_RGB = ("-c:v", "libx264rgb", "-qp", "0", "-preset", "ultrafast")


def rendered(source: Path, size: tuple[int, int], framing: Framing = "auto", clip: Clip | None = None) -> Path:
    out = source.with_name(f"{source.name}.{size[0]}x{size[1]}.{framing}.ts")
    fmt = OutputFormat(*size, Fraction(25), "h264", "master", framing)
    render_segment([RenderShot(source, clip or clip_of(source), Fraction(0), 3)], fmt, out)
    return out


def rgb_of(path: Path) -> NDArray[np.uint8]:
    """The first frame as a screen shows it: shape (height, width, 3)."""
    height, width = lumas_in(path)[0].shape
    command = [
        ffmpeg_program(), "-v", "error", "-f", "mpegts", "-i", f"file:{path}", "-frames:v", "1",
        "-vf", "scale=in_color_matrix=bt709:in_range=tv:out_range=pc,format=rgb24", "-f", "rawvideo", "-",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(height, width, 3)


def disc(width: int, height: int, squeeze: float = 1.0) -> NDArray[np.uint8]:
    """A white disc in the middle of dark grey, narrower by `squeeze` than it is high."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) / squeeze) ** 2 + (y - height / 2) ** 2 < (0.2 * height) ** 2
    return np.where(inside, 230, 50).astype(np.uint8)


def disc_size(luma: NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height of the bright part of the middle row and column."""
    height, width = luma.shape
    return int((luma[height // 2] > 150).sum()), int((luma[:, width // 2] > 150).sum())


def quarters() -> NDArray[np.uint8]:
    """Brightness falls clockwise from the upper left: 220, 170, 120, 70."""
    picture = np.zeros((80, 120), np.uint8)
    picture[:40, :60], picture[:40, 60:], picture[40:, 60:], picture[40:, :60] = 220, 170, 120, 70
    return picture


def clip_like(any_clip: Clip, width: int, height: int, rotation: int = 0, aspect: Fraction = Fraction(1)) -> Clip:
    return replace(any_clip, width=width, height=height, rotation=rotation, sample_aspect=aspect)


@pytest.fixture(scope="module")
def any_clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return clip_of(make_video(tmp_path_factory.mktemp("any") / "clip.mp4", frames=5))


def test_a_crop_of_a_quarter_is_taken_and_one_of_two_thirds_is_not(any_clip: Clip) -> None:
    assert layout(clip_like(any_clip, 640, 480), 1920, 1080, "auto").framing == "fill"
    assert layout(clip_like(any_clip, 2560, 1080), 1920, 1080, "auto").framing == "fill"
    assert layout(clip_like(any_clip, 1080, 1920), 1920, 1080, "auto").framing == "blur"
    assert layout(clip_like(any_clip, 1920, 1080, rotation=90), 1920, 1080, "auto").framing == "blur"
    assert layout(clip_like(any_clip, 1920, 1080, rotation=90), 1080, 1920, "auto").framing == "fill"
    assert share_lost_by_crop(Fraction(4, 3), Fraction(16, 9)) == Fraction(1, 4)


@pytest.mark.parametrize("framing", ["fill", "fit", "blur"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("size", [(1920, 1080), (1081, 607), (720, 576), (333, 777), (64, 36), (4096, 1716)])
def test_no_layout_stretches(any_clip: Clip, size: tuple[int, int], rotation: int, framing: Framing) -> None:
    clip = clip_like(any_clip, *size, rotation, Fraction(16, 15))
    for width, height in ((1280, 720), (1080, 1920), (640, 640)):
        placed = layout(clip, width, height, framing)
        assert placed.width % 2 == placed.height % 2 == 0
        # Even sides: off by two pixels at most.
        assert abs(placed.width - placed.height * display_aspect(clip)) <= 2 * max(1, display_aspect(clip))
        if placed.framing == "fill":
            assert placed.width >= width and placed.height >= height  # noqa: PT018
        else:
            assert placed.width <= width and placed.height <= height  # noqa: PT018


def test_a_disc_stays_round_in_every_framing(tmp_path: Path) -> None:
    source = make_video(tmp_path / "odd.mp4", pictures=[disc(162, 98)] * 5)
    anamorphic = make_video(
        tmp_path / "anamorphic.mp4", pictures=[disc(120, 96, squeeze=0.75)] * 5, filters="setsar=4/3"
    )
    for path in (source, anamorphic):
        for size in ((320, 180), (180, 320), (200, 200)):
            for framing in ("fill", "fit", "blur"):
                out = lumas_in(rendered(path, size, framing))[1]  # type: ignore[arg-type]
                assert out.shape == size[::-1]
                wide, high = disc_size(out)
                assert wide == pytest.approx(high, abs=4), (path.name, size, framing)


def test_odd_sizes_become_even_pictures(tmp_path: Path) -> None:
    source = make_video(
        tmp_path / "odd.mkv", pictures=[disc(161, 97)] * 5, filters="format=yuv444p", encode=("-c:v", "ffv1")
    )
    assert (clip_of(source).width, clip_of(source).height) == (161, 97)
    assert lumas_in(rendered(source, (160, 90)))[0].shape == (90, 160)


@pytest.mark.parametrize(("turn", "upper_left"), [(90, 70), (180, 120), (270, 170)])
def test_a_picture_recorded_on_its_side_is_shown_upright(turn: int, upper_left: int, tmp_path: Path) -> None:
    upright = make_video(tmp_path / "upright.mp4", pictures=[quarters()] * 5)
    turned = tmp_path / f"turned {turn}.mp4"
    rotate = ["-display_rotation", str(-turn), "-i", str(upright), "-c", "copy", str(turned)]
    subprocess.run([ffmpeg_program(), "-v", "error", *rotate], check=True)
    size = (80, 120) if turn != 180 else (120, 80)
    luma = lumas_in(rendered(turned, size))[0]
    assert luma[10, 10] == pytest.approx(16 + upper_left * 219 / 255, abs=4)


def test_bars_are_black_and_the_surround_is_a_dark_copy(tmp_path: Path) -> None:
    source = make_video(tmp_path / "portrait.mp4", pictures=[np.full((160, 90), 200, np.uint8)] * 5)
    bars, blurred = (lumas_in(rendered(source, (320, 180), framing))[0] for framing in ("fit", "blur"))
    assert (bars[:, :100] == 16).all()
    inside = bars[90, 160]
    assert blurred[90, 160] == pytest.approx(inside, abs=2)
    assert 60 < blurred[:, :100].mean() < 0.75 * inside


COLOURS = {"red": (200, 30, 40), "green": (40, 180, 60), "blue": (30, 50, 200), "grey": (128, 128, 128)}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("size", "scale", "tags"),
    [
        ("160x96", "out_color_matrix=bt601:out_range=tv", ()),
        ("160x96", "out_color_matrix=bt709:out_range=tv", ("-colorspace", "bt709")),
        ("1280x720", "out_color_matrix=bt709:out_range=tv", ()),
        ("160x96", "out_color_matrix=bt601:out_range=pc", ("-colorspace", "smpte170m", "-color_range", "pc")),
    ],
    ids=["untagged SD", "tagged bt709", "untagged HD", "full range"],
)
def test_colours_survive(colour: str, size: str, scale: str, tags: tuple[str, ...], tmp_path: Path) -> None:
    rgb = COLOURS[colour]
    source = tmp_path / "colour.mp4"
    command = [
        ffmpeg_program(), "-v", "error", "-f", "lavfi", "-i",
        f"color=0x{rgb[0]:02x}{rgb[1]:02x}{rgb[2]:02x}:s={size}:r=25:d=0.2,format=rgb24,scale={scale},format=yuv420p",
        "-c:v", "libx264", "-preset", "ultrafast", "-qp", "4", *tags, str(source),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    shown = rgb_of(rendered(source, (160, 90)))[40:50, 70:90].reshape(-1, 3).mean(axis=0)
    assert shown == pytest.approx(rgb, abs=5)


def test_rgb_sources_keep_their_colours(tmp_path: Path) -> None:
    source = tmp_path / "screen.mkv"
    picture = "color=0xc81e28:s=160x96:r=25:d=0.2,format=rgb24"
    subprocess.run(
        [ffmpeg_program(), "-v", "error", "-f", "lavfi", "-i", picture, *LOSSLESS_RGB, str(source)],
        check=True,
    )
    shown = rgb_of(rendered(source, (160, 90)))[40:50, 70:90].reshape(-1, 3).mean(axis=0)
    assert shown == pytest.approx((200, 30, 40), abs=5)


@pytest.mark.parametrize(
    ("transfer", "signal", "low", "high"),
    [
        # 10-bit luma of 203 cd/m2 (58 % PQ) and of 75 % HLG: reference white. And a mid-grey, and 1000 cd/m2.
        ("smpte2084", 64 + 0.58 * 876, 180, 225),
        ("smpte2084", 64 + 0.38 * 876, 85, 130),
        ("smpte2084", 64 + 0.75 * 876, 228, 240),
        ("arib-std-b67", 64 + 0.75 * 876, 180, 225),
        ("arib-std-b67", 64 + 0.38 * 876, 85, 130),
        ("arib-std-b67", 64, 14, 18),
    ],
)
@pytest.mark.parametrize("size", [(80, 48), (320, 180)], ids=["smaller", "larger"])
def test_hdr_is_neither_washed_out_nor_dark(
    transfer: str, signal: float, low: int, high: int, size: tuple[int, int], tmp_path: Path
) -> None:
    source = tmp_path / "hdr.mp4"
    grey = f"nullsrc=s=160x96:r=25:d=0.2,format=yuv420p10le,geq=lum={round(signal)}:cb=512:cr=512"
    tags = f"setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc:range=tv"
    command = [
        ffmpeg_program(), "-v", "error", "-f", "lavfi", "-i", f"{grey},{tags}",
        "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:lossless=1",
        "-pix_fmt", "yuv420p10le", str(source),
    ]  # fmt: skip
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    clip = clip_of(source)
    assert clip.transfer == ("pq" if transfer == "smpte2084" else "hlg")
    frame = frames_in(rendered(source, size))[0]
    assert (frame.format.name, frame.color_trc, frame.colorspace) == ("yuv420p", 1, 1)
    assert low <= luma_of(frame).mean() <= high


def test_interlaced_sources_are_deinterlaced(any_clip: Clip) -> None:
    chain = picture_chain(replace(any_clip, interlaced=True), 160, 90, "auto", "0")
    assert chain.startswith("bwdif=")
    assert "bwdif" not in picture_chain(any_clip, 160, 90, "auto", "0")


def test_unknown_framings_and_odd_films_are_refused_in_words(any_clip: Clip) -> None:
    with pytest.raises(MediaError, match="framing 'zoom'; choose one of auto, fill, fit, blur"):
        picture_chain(any_clip, 160, 90, "zoom", "0")  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="161x90"):
        picture_chain(any_clip, 161, 90, "auto", "0")
