"""Stabilisation, on films' decoded frames: what shakes is calmed, what does not stays, and no border shows."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.media import render
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import ffmpeg_program, run_ffmpeg
from montage_assets.media.grading import cube_text, look_lut
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.render import OutputFormat, RenderShot, measuring_args, render_segment
from montage_assets.media.stabilisation import read_shifts, steadying, steadying_filter
from tests.media.synth_video import clip_of, frame_times, lumas_in, make_video, shot_of

WIDTH, HEIGHT = 320, 180
FMT = OutputFormat(WIDTH, HEIGHT, Fraction(25), "h264", "high")
STEADY = replace(FMT, stabilize=True)
SHAKY, CALM, SECONDS_AWAY = 40, 30, 10


def texture(seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=(HEIGHT + 80, WIDTH + 200)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 3) + 2 * cv2.GaussianBlur(noise, (0, 0), 9)
    return cv2.normalize(soft, None, 40, 220, cv2.NORM_MINMAX).astype(np.uint8)  # type: ignore[call-overload]


def seen(surface: NDArray[np.uint8], path: NDArray[np.float64]) -> list[NDArray[np.uint8]]:
    """What a camera sees that is at these places (x, y) of the surface, one after another."""
    return [
        cv2.warpAffine(surface, np.array([[1, 0, -x], [0, 1, -y]]), (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)  # type: ignore[misc]
        for x, y in path
    ]


def jitter(pictures: list[NDArray[np.uint8]]) -> float:
    """Mean change of the movement from one frame to the next, in pixels."""
    window = cv2.createHanningWindow((WIDTH, HEIGHT), cv2.CV_32F)
    floats = [picture.astype(np.float32) for picture in pictures]
    moved = [cv2.phaseCorrelate(one, two, window)[0] for one, two in pairwise(floats)]
    return float(np.hypot(*np.diff(np.array(moved), axis=0).T).mean())


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> list[RenderShot]:
    """A hand-held shot that drifts and shakes, then one of another place, on a tripod that pans evenly."""
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(7)
    frames = SHAKY + SECONDS_AWAY
    drift = np.stack([30 + 0.8 * np.arange(frames), np.full(frames, 40.0)], axis=1)
    hand = drift + random.normal(0, 2.5, (frames, 2))
    pan = np.stack([20 + 1.0 * np.arange(CALM), np.full(CALM, 30.0)], axis=1)
    made = []
    for name, surface, path, start, length in (
        ("hand.mp4", texture(1), hand, SECONDS_AWAY, SHAKY),
        ("tripod.mp4", texture(2), pan, 0, CALM),
    ):
        pictures = seen(surface, path)
        make_video(folder / name, pictures=pictures, encode=("-c:v", "libx264", "-preset", "ultrafast", "-qp", "8"))
        clip = ingest_clip(folder / name, name, name).clip
        made.append(RenderShot(folder / name, clip, Fraction(start, 25), length))
    return made


@pytest.fixture(scope="module")
def films(
    shots: list[RenderShot], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]], render.RenderedSegment]:
    """Frames of the film as it is, of the smoothed one, and what is told of that."""
    folder = tmp_path_factory.mktemp("films")
    plain = render_segment(shots, FMT, folder / "plain.ts")
    smooth = render_segment(shots, STEADY, folder / "smooth.ts")
    return lumas_in(plain.path), lumas_in(smooth.path), smooth


def test_a_shaky_shot_shakes_three_times_less_and_its_cut_stays(
    films: tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]], render.RenderedSegment],
) -> None:
    plain, smooth, told = films
    assert len(smooth) == len(plain) == told.frames == SHAKY + CALM
    before, after = jitter(plain[:SHAKY]), jitter(smooth[:SHAKY])
    assert before > 4
    assert after < before / 3
    assert len(told.stabilised) == 1
    assert told.stabilised[0] * HEIGHT == pytest.approx(before, rel=0.15)
    changes = [float(np.abs(two.astype(int) - one).mean()) for one, two in pairwise(smooth)]
    assert int(np.argmax(changes)) == SHAKY - 1


def test_a_steady_shot_stays_as_it_is(
    films: tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]], render.RenderedSegment],
) -> None:
    plain, smooth, _ = films
    for one, two in zip(plain[SHAKY:], smooth[SHAKY:], strict=True):
        (x, y), _ = cv2.phaseCorrelate(one.astype(np.float32), two.astype(np.float32))
        assert max(abs(x), abs(y)) < 0.3
        assert np.abs(one.astype(int) - two).mean() < 1.5  # coded anew after other pictures


def test_a_film_of_steady_shots_only_is_the_same_bit_for_bit(shots: list[RenderShot], tmp_path: Path) -> None:
    plain = render_segment(shots[1:], FMT, tmp_path / "plain.ts")
    smooth = render_segment(shots[1:], STEADY, tmp_path / "smooth.ts")
    assert smooth.stabilised == ()
    assert smooth.path.read_bytes() == plain.path.read_bytes()


def test_no_border_shows(shots: list[RenderShot], tmp_path: Path) -> None:
    """The same movements of a white picture: what lies beyond its border would be black."""
    measured = tmp_path / "hand.trf"
    run_ffmpeg(measuring_args(shots[:1], FMT, [measured]), what="measuring")
    how = steadying(read_shifts(measured), (WIDTH, HEIGHT), Fraction(25))
    assert how is not None
    moved = steadying_filter(measured, how).replace("crop=keep", "crop=black")
    white = f"color=white:s={WIDTH}x{HEIGHT}:r=25,format=gray,{moved}"
    command = [ffmpeg_program(), "-v", "error", "-f", "lavfi", "-i", white, "-frames:v", str(SHAKY)]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "gray", "-"], capture_output=True, check=True)
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(SHAKY, HEIGHT, WIDTH)
    assert pictures.min() > 230


def test_any_number_of_threads_gives_the_same_frames(
    shots: list[RenderShot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lut = tmp_path / "vivid.cube"
    lut.write_bytes(cube_text(look_lut("vivid")))
    made = []
    for threads in (1, 4):
        monkeypatch.setattr(render, "FILTER_THREADS", threads)
        monkeypatch.setattr(render, "DECODER_THREADS", threads)
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        fmt = replace(STEADY, lut=lut)
        made.append(render_segment(shots, fmt, tmp_path / f"{threads}.ts").path.read_bytes())
    assert made[0] == made[1]


def test_names_of_temporary_folders_are_only_names(
    shots: list[RenderShot],
    films: tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]], render.RenderedSegment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = tmp_path / "a:b'[c],d;e\\f %{x}"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    again = render_segment(shots, STEADY, tmp_path / "again.ts")
    assert again.path.read_bytes() == films[2].path.read_bytes()
    assert list(odd.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "source_fps", "film_fps", "frames", "shown"),
    [
        ("clip.mp4", 30, 24, 16, 20),
        ("clip.mp4", 25, 25, 12, 12),
        ("clip.mp4", Fraction(25, 2), 25, 20, 10),
        ("clip.mp4", 60, 25, 10, 23),
        ("clip.mkv", Fraction(30000, 1001), 30, 24, 24),
        ("clip.avi", 25, 24, 24, 25),
    ],
)
def test_exactly_the_frames_that_are_shown_are_measured(
    name: str, source_fps: Fraction | int, film_fps: int, frames: int, shown: int, tmp_path: Path
) -> None:
    source = make_video(tmp_path / name, fps=source_fps, frames=60, size=(320, 192))
    clip = clip_of(source)
    shot = shot_of(source, clip, 17, frames, frame_times(source, clip))
    fmt = OutputFormat(320, 192, Fraction(film_fps))
    run_ffmpeg(measuring_args([shot], fmt, [tmp_path / "a.trf"]), what="measuring")
    assert len(read_shifts(tmp_path / "a.trf")) + 1 == shown


def test_an_ffmpeg_without_the_filters_is_named_as_the_fault() -> None:
    with pytest.raises(
        MediaError, match=r"^steadying failed: this ffmpeg has no filter nosuchfilter; unset MONTAGE_FF"
    ):
        run_ffmpeg(["-f", "lavfi", "-i", "nullsrc", "-vf", "nosuchfilter", "-f", "null", "-"], what="steadying")


def test_a_shot_too_short_to_measure_stays_as_it_is(shots: list[RenderShot], tmp_path: Path) -> None:
    brief = [replace(shots[0], frames=6)]
    plain = render_segment(brief, FMT, tmp_path / "plain.ts")
    smooth = render_segment(brief, STEADY, tmp_path / "smooth.ts")
    assert smooth.stabilised == ()
    assert smooth.path.read_bytes() == plain.path.read_bytes()
