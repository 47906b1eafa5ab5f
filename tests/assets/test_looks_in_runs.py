"""Whole runs with a grade and stabilisation: the film, what is told of it, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import dagster as dg
import numpy as np
import pytest

from montage_assets.assets import cloud_segments, rendered_segments
from montage_assets.assets.footage import Grade
from montage_assets.cloud.offload import Offload, Outcome
from montage_assets.cloud.policy import Work
from montage_assets.media.grading import cube_text, look_lut
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.render import OutputFormat, RenderedSegment, RenderShot, render_segment
from tests.assets.small_montage import failure_of, run_job
from tests.media.synth_footage import write_clip, write_song
from tests.media.synth_video import make_video
from tests.media.test_grading import Floats, luma_error, rgb_of, table_in, through
from tests.media.test_stabilisation import HEIGHT, WIDTH, seen, texture

SPEC = f"resolution: {WIDTH}x{HEIGHT}\nfps: 25\nquality: high\nduration: 6\n"
ODD_NAME = "a:b'[c],d.cube"


@pytest.fixture
def folder(data: Path) -> Path:
    """A hand-held clip, a steady one, a song; nothing about looks yet."""
    folder = data / "input" / "holiday"
    folder.mkdir()
    random = np.random.default_rng(3)
    hand = np.stack([40 + 0.5 * np.arange(120), np.full(120, 40.0)], axis=1) + random.normal(0, 2.5, (120, 2))
    make_video(folder / "hand.mp4", pictures=seen(texture(1), hand))
    write_clip(folder / "steady.mp4", (70, 60), seed=4, size=(WIDTH, HEIGHT), filters="gblur=sigma=3")
    write_song(folder / "song.wav", bpm=120, duration_s=9)
    (folder / "montage.yaml").write_text(SPEC)
    return folder


def settings(**values: str) -> dict[str, object]:
    return {"ops": {"footage": {"config": {"overrides": values}}}}


def segments_of(result: dg.ExecuteInProcessResult) -> rendered_segments.Segments:
    made = result.output_for_node("rendered_segments")
    assert isinstance(made, rendered_segments.Segments)
    return made


def told(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    (event,) = [event for event in result.get_asset_materialization_events() if event.asset_key.path == [asset]]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def failed_checks(result: dg.ExecuteInProcessResult) -> list[str]:
    return [check.check_name for check in result.get_asset_check_evaluations() if not check.passed]


def film_of(data: Path) -> Floats:
    return rgb_of(data / "output" / "holiday" / "montage.mp4")


def test_a_film_is_graded_and_steadied_and_nothing_else_is_made_anew(
    data: Path, folder: Path, instance: dg.DagsterInstance
) -> None:
    plain = run_job("holiday", instance)
    assert plain.success
    before = film_of(data)
    assert {"grade", "stabilised shots"}.isdisjoint(told(plain, "rendered_segments"))

    (folder / ODD_NAME).write_bytes(cube_text(look_lut("cinema")))
    (folder / "montage.yaml").write_text(f'{SPEC}grade: "{ODD_NAME}"\n')
    graded = run_job("holiday", instance)
    assert graded.success
    assert failed_checks(graded) == failed_checks(plain)
    assert told(graded, "footage")["grade"] == told(graded, "rendered_segments")["grade"] == ODD_NAME
    after = film_of(data)
    assert len(after) == len(before) == 150
    some = slice(None, None, 12)
    expected = through(table_in((folder / ODD_NAME).read_bytes()), before[some])
    assert luma_error(after[some], expected) < 2
    assert luma_error(after[some], expected) < luma_error(after[some], before[some]) / 2

    both = run_job("holiday", instance, settings(grade="cinema", stabilize="on"))
    assert both.success
    # The LUT's content counts, not its name.
    assert both.output_for_node("footage").grade == Grade("cinema", graded.output_for_node("footage").grade.lut)
    assert failed_checks(both) == failed_checks(plain)
    edit = json.loads((data / "output" / "holiday" / "montage.json").read_text())
    of_hand = [shot for shot in edit["shots"] if shot["clip"] == "hand.mp4"]
    metadata = told(both, "rendered_segments")
    assert metadata["stabilised shots"] == f"{len(of_hand)} of {len(edit['shots'])}"
    assert float(str(metadata["shake before (% of the height)"])) > 1
    assert metadata["grade"] == "cinema"
    steadied = film_of(data)
    assert len(steadied) == 150
    for shot in of_hand:
        span = slice(shot["first_frame"], shot["first_frame"] + shot["frames"])
        assert jitter_of(steadied[span]) < jitter_of(after[span]) / 3

    # Taken back, the first film is there again without an encode.
    again = run_job("holiday", instance, settings(grade="off"))
    assert segments_of(again) == rendered_segments.Segments(segments_of(plain).segments, 0)
    assert segments_of(plain).encoded_now > 0
    np.testing.assert_array_equal(film_of(data), before)


class WillingCloud:
    """Stands in for the decision to use the cloud: yes."""

    def attempt(self, describe: Callable[[], Work], do: Callable[[Any], RenderedSegment]) -> Outcome[RenderedSegment]:
        assert describe().kind == "encode"
        return Outcome(do(SimpleNamespace(client=None, on_sent=None)), "asked for")


class CopyingEncoder:
    """Stands in for the cloud's encoder: what it is sent comes back."""

    def __init__(self, *_: object) -> None: ...

    def encode_remote(self, source: Path, out: Path, *_: object, **__: object) -> SimpleNamespace:
        out.write_bytes(source.read_bytes())
        return SimpleNamespace(gpu="T4", size_bytes=out.stat().st_size)


def test_what_is_sent_to_the_cloud_is_graded_and_steadied_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_segments, "CGPUEncoder", CopyingEncoder)
    lut = tmp_path / "grey.cube"
    lut.write_bytes(cube_text(look_lut("monochrome")))
    clips = [ingest_clip(folder / name, name, name).clip for name in ("hand.mp4", "steady.mp4")]
    shots = [RenderShot(folder / clip.name, clip, Fraction(1), 30) for clip in clips]
    fmt = OutputFormat(WIDTH, HEIGHT, Fraction(25), "h264", "high", lut=lut, stabilize=True)
    cloud = cast("Offload", WillingCloud())
    there = cloud_segments.encode(cloud, shots, fmt, tmp_path / "there.ts", 600.0).value
    assert there is not None
    here = render_segment(shots, fmt, tmp_path / "here.ts")
    assert there.encoder.endswith("cloud)")
    assert there.stabilised == here.stabilised
    assert len(there.stabilised) == 1
    sent, made = rgb_of(there.path), rgb_of(here.path)
    assert len(sent) == len(made) == 60
    assert np.ptp(sent, axis=-1).max() < 0.05
    assert luma_error(sent, made) < 2


def jitter_of(rgb: Floats) -> float:
    greens = [np.ascontiguousarray(picture[..., 1], dtype=np.float32) for picture in rgb]
    window = cv2.createHanningWindow((WIDTH, HEIGHT), cv2.CV_32F)
    moved = [cv2.phaseCorrelate(one, two, window)[0] for one, two in pairwise(greens)]
    return float(np.hypot(*np.diff(np.array(moved), axis=0).T).mean())


@pytest.mark.parametrize(
    ("grade", "content", "message"),
    [
        ("sunset.cube", None, r"the LUT 'sunset.cube' that grade names is not in "),
        ("../sunset.cube", None, r"grade: '../sunset.cube' lies outside the montage's folder"),
        ("sunset.cube", "LUT_3D_SIZE 2\n0 0 x\n", "sunset.cube, line 2, has 'x' where a finite number is expected"),
        ("sunset", None, "grade: there is no look 'sunset'; choose from warm, cool"),
    ],
)
def test_a_bad_grade_ends_the_run_with_one_line_before_anything_is_made(
    grade: str, content: str | None, message: str, data: Path, folder: Path, instance: dg.DagsterInstance
) -> None:
    if content is not None:
        (folder / grade).write_text(content)
    result = run_job("holiday", instance, settings(grade=grade))
    assert not result.success
    said = failure_of(result)
    assert message in said
    assert "\n" not in said
    assert [path for path in (data / "work").rglob("*") if path.is_file()] == []


def test_a_preview_is_graded_and_steadied_as_well(data: Path, folder: Path, instance: dg.DagsterInstance) -> None:
    result = run_job("holiday", instance, settings(grade="monochrome", stabilize="on", quality="preview"))
    assert result.success
    film = film_of(data)
    assert np.ptp(film, axis=-1).max() < 0.05
    assert not str(told(result, "rendered_segments")["stabilised shots"]).startswith("0 of")
