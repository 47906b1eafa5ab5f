"""Grading: what a LUT does to a film's decoded frames, which .cube files are refused and why, the looks themselves."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.media.encoders import QUALITIES, ReadyEncoder, software_encoder
from montage_assets.media.errors import MediaError
from montage_assets.media.grading import LOOKS, Lut, cube_text, look_lut, parse_cube, refuse_unknown
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.render import OutputFormat, RenderShot, render_segment
from tests.media.synth_footage import write_clip
from tests.media.synth_video import frames_in

Floats: TypeAlias = "NDArray[np.floating[Any]]"
FMT = OutputFormat(192, 108, Fraction(25), "h264", "master")
FRAMES = 6
# What x264 changes must not hide what the LUT changes.
NEAR_LOSSLESS = [ReadyEncoder(software_encoder("h264"), numbers=dict.fromkeys(QUALITIES, 1.0))]


def rgb_of(path: Path) -> Floats:
    """(frames, height, width, 3), 0 to 1: PyAV's decoding, and BT.709 of limited range by its definition."""
    pictures = []
    for frame in frames_in(path):
        planes = [
            np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
            for plane in frame.planes
        ]
        y = (planes[0].astype(np.float32) - 16) / 219
        cb, cr = ((plane.astype(np.float32).repeat(2, 0).repeat(2, 1) - 128) / 224 for plane in planes[1:])
        red, blue = y + 1.5748 * cr, y + 1.8556 * cb
        pictures.append(np.stack([red, (y - 0.2126 * red - 0.0722 * blue) / 0.7152, blue], axis=-1))
    return np.stack(pictures).clip(0, 1)


def through(table: Floats, rgb: Floats) -> Floats:
    """Trilinear interpolation in `table`, which is (blue, green, red, 3)."""
    places = rgb * (len(table) - 1)
    low = np.floor(places).astype(int).clip(0, len(table) - 2)
    part = places - low
    result = np.zeros_like(rgb)
    for corner in range(8):
        step = np.array([corner & 1, corner >> 1 & 1, corner >> 2])
        weight = np.where(step, part, 1 - part).prod(axis=-1, keepdims=True)
        red, green, blue = np.moveaxis(low + step, -1, 0)
        result += weight * table[blue, green, red]
    return result.clip(0, 1)


def table_in(text: bytes) -> Floats:
    """The entries of a .cube file, read as NumPy reads numbers."""
    rows = [line for line in text.decode().splitlines() if line[:1] in "-0123456789."]
    size = round(len(rows) ** (1 / 3))
    return np.array([line.split() for line in rows], float).reshape(size, size, size, 3)


def luma_error(one: Floats, other: Floats) -> float:
    """Mean difference in brightness, in levels of 255."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    return float(np.abs((one - other) @ weights).mean() * 255)


def cube(size: int, *lines: str, head: str = "", entries: int | None = None) -> bytes:
    """A .cube file of an identity LUT, with lines put in before or entries left out."""
    steps = np.linspace(0, 1, size)
    rows = [f"{red:.6f} {green:.6f} {blue:.6f}" for blue in steps for green in steps for red in steps]
    return "\n".join([f"{head}LUT_3D_SIZE {size}", *lines, *rows[:entries]]).encode()


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> RenderShot:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    # Colours are stored at half the size; soft edges survive being scaled to the full size and back.
    write_clip(path, (FRAMES,), seed=5, filters="gblur=sigma=3")
    return RenderShot(path, ingest_clip(path, path.name, "").clip, Fraction(0), FRAMES)


@pytest.fixture(scope="module")
def ungraded(shot: RenderShot, tmp_path_factory: pytest.TempPathFactory) -> Floats:
    out = tmp_path_factory.mktemp("plain") / "film.ts"
    return rgb_of(render_segment([shot], FMT, out, encoders=NEAR_LOSSLESS).path)


def graded_frames(shot: RenderShot, lut: Path, fmt: OutputFormat = FMT) -> Floats:
    out = lut.with_name("film.ts")
    return rgb_of(render_segment([shot], replace(fmt, lut=lut), out, encoders=NEAR_LOSSLESS).path)


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_does_to_the_film_what_its_lut_says(
    look: str, shot: RenderShot, ungraded: Floats, tmp_path: Path
) -> None:
    lut = tmp_path / "look.cube"
    lut.write_bytes(cube_text(look_lut(look)))
    found, expected = graded_frames(shot, lut), through(table_in(lut.read_bytes()), ungraded)
    assert luma_error(found, expected) < 1
    assert np.abs(found - expected).mean() * 255 < 2
    assert np.abs(found - ungraded).mean() * 255 > 2.5


def test_an_identity_lut_changes_nothing_beyond_rounding(shot: RenderShot, ungraded: Floats, tmp_path: Path) -> None:
    lut = tmp_path / "identity.cube"
    lut.write_bytes(cube_text(parse_cube(cube(2), "identity.cube")))
    found = graded_frames(shot, lut)
    assert luma_error(found, ungraded) < 0.4
    assert np.abs(found - ungraded).mean() * 255 < 0.8


def test_the_blurred_surround_is_graded_as_well(shot: RenderShot, tmp_path: Path) -> None:
    lut = tmp_path / "grey.cube"
    lut.write_bytes(cube_text(look_lut("monochrome")))
    upright = replace(FMT, width=108, height=192, framing="auto")
    colour = rgb_of(render_segment([shot], upright, tmp_path / "colour.ts").path)
    grey = graded_frames(shot, lut, upright)
    assert np.ptp(colour[:, :40], axis=-1).mean() > 0.1
    assert np.ptp(grey, axis=-1).max() < 0.03


def test_a_film_is_the_same_whatever_the_lut_is_called(shot: RenderShot, tmp_path: Path) -> None:
    made = []
    for name in ("plain", 'a:b\'[c],d;e\\f %{x} "g"'):
        folder = tmp_path / name
        folder.mkdir()
        lut = folder / f"{name}.cube"
        lut.write_bytes(cube_text(look_lut("vivid")))
        made.append(render_segment([shot], replace(FMT, lut=lut), folder / "film.ts").path.read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"x\.cube has no line LUT_3D_SIZE"),
        (b"\x00\x01\x02\xff" * 100, r"x\.cube, line 1, has '.*', which no 3D \.cube file has"),
        (b"LUT_1D_SIZE 4\n0 0 0\n", r"line 1, says that this is a 1D LUT \(LUT_1D_SIZE\); export a 3D LUT"),
        (cube(2, head="LUT_1D_SIZE 16\n"), r"line 1, says that this is a 1D LUT"),
        (b"LUT_3D_SIZE 1\n0 0 0\n", r"line 1, has the size 1; only 2 to 65"),
        (b"LUT_3D_SIZE 999999\n", r"line 1, has the size 999999"),
        (b"LUT_3D_SIZE -2\n", r"line 1, has no whole number after LUT_3D_SIZE"),
        (b"LUT_3D_SIZE 2\nLUT_3D_SIZE 3\n", r"line 2, has a second LUT_3D_SIZE"),
        (b"0 0 0\n", r"line 1, comes before the line LUT_3D_SIZE"),
        (cube(2, entries=7), r"ends after 7 of the 8 entries"),
        (cube(2, "0 0 0"), r"line 10, is one entry more than the 8"),
        (cube(2, "0 0"), r"line 2, has 2 numbers where red, green and blue"),
        (cube(2, "0 0 0 0"), r"line 2, has 4 numbers"),
        (cube(2, "nan 0 0"), r"line 2, has 'nan' where a finite number"),
        (cube(2, "0 inf 0"), r"line 2, has 'inf' where a finite number"),
        (cube(2, "0 1e999 0"), r"line 2, has '1e999' where a finite number"),
        (cube(2, "0 1_0 0"), r"line 2, has '1_0' where a finite number"),
        (cube(2, "255 0 0"), r"line 2, has a value far outside 0 to 1 \(255\)"),
        (cube(2, "DOMAIN_MIN 0 0"), r"line 2, has 2 numbers after DOMAIN_MIN instead of 3"),
        (cube(2, "DOMAIN_MAX 1 1 1e200"), r"line 2, has a domain far outside 0 to 1 \(1e\+200\)"),
        (cube(2, "0 " * 4_000_000), r"line 2, is far longer than a line"),
        (b"\n" * (15 << 20), r"has no line LUT_3D_SIZE"),
        (cube(2, "DOMAIN_MAX 0 1 1"), r"a DOMAIN_MAX that is not above its DOMAIN_MIN"),
        (cube(2, "LUT_OUT_VIDEO_RANGE"), r"line 2, has 'LUT_OUT_VIDEO_RANGE', which no 3D \.cube file has"),
        (cube(2) + b"\nDOMAIN_MIN 0 0 0", r"line 10, has 'DOMAIN_MIN' after the first entry"),
        (b"#" * (17 << 20), r"larger than 16 MiB"),
    ],
)
def test_a_bad_cube_file_gives_one_line_that_says_where_and_what(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message) as error:
        parse_cube(data, "x.cube")
    assert str(error.value).startswith("x.cube")
    assert "\n" not in str(error.value)


def test_cube_files_are_read_as_programs_write_them() -> None:
    written = cube(3, "  # made by hand", "", "DOMAIN_MIN 0.0 0 0", "DOMAIN_MAX 1 1.0 1e0", head='TITLE "Ü"\n')
    plain = parse_cube(cube(3), "x.cube")
    for data in (written, written.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + written, written + b"\n\n"):
        np.testing.assert_array_equal(parse_cube(data, "x.cube").values, plain.values)
    # Red is the fastest: the second entry is a third of the way to red.
    assert plain.values[0, 0, 1].tolist() == [0.5, 0, 0]


@pytest.mark.parametrize("domain", ["DOMAIN_MIN -1 -1 -1\nDOMAIN_MAX 3 3 3", "LUT_3D_INPUT_RANGE -1.0 3.0"])
def test_a_wider_domain_is_worked_in(domain: str) -> None:
    # An identity over -1 to 3 would say -1 to 3; these entries say 0 to 1 there.
    lut = parse_cube(cube(5, domain), "x.cube")
    np.testing.assert_allclose(lut.values[0, 0, 0], [0.25, 0.25, 0.25], atol=1e-9)
    np.testing.assert_allclose(lut.values[-1, -1, -1], [0.5, 0.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(lut.values[0, 0, -1], [0.5, 0.25, 0.25], atol=1e-9)


def test_looks_keep_black_and_white_and_hold_all_colours() -> None:
    for look in LOOKS:
        values = look_lut(look).values
        np.testing.assert_allclose(values[0, 0, 0], 0, atol=1e-9)
        np.testing.assert_allclose(values[-1, -1, -1], 1, atol=1e-9)
        assert values.min() >= 0
        assert values.max() <= 1
        # Brighter in, never darker out, along the greys.
        greys = np.einsum("iiij->ij", values)
        assert (np.diff(greys.mean(axis=1)) > 0).all(), look
        np.testing.assert_allclose(parse_cube(cube_text(Lut(values)), "x").values, values, atol=6e-7)


@pytest.mark.parametrize(
    ("grade", "message"),
    [
        ("wram", r"^montage\.yaml: grade: there is no look 'wram'; did you mean 'warm'\?$"),
        ("picture.png", r"no look 'picture\.png'; choose from warm, .*, or name a \.cube file$"),
    ],
)
def test_an_unknown_look_is_refused_with_those_there_are(grade: str, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        refuse_unknown(grade, "montage.yaml")
