"""Whole runs where ffmpeg pretends to have hardware encoders: the film is right, the report says who made it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import av
import dagster as dg
import pytest

from montage_assets.assets import rendered_segments
from montage_assets.media import machine_encoders, render
from montage_assets.media.encoder_devices import Host
from tests.assets.small_montage import run_job
from tests.media.stand_in_ffmpeg import StandIn, stand_in
from tests.media.synth_footage import write_clip, write_song

SPEC = "resolution: 320x180\nfps: 25\nquality: preview\nduration: 8\npace: fast\n"


@pytest.fixture
def holiday(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small montage that is cut into four or five segments."""
    folder = data / "input" / "holiday"
    folder.mkdir()
    write_clip(folder / "a.mp4", (70, 60), seed=1)
    write_clip(folder / "b.mp4", (60, 80), seed=2)
    write_song(folder / "song.wav", bpm=120, duration_s=10)
    (folder / "montage.yaml").write_text(SPEC)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCAL_GPU_ENCODE", "auto")
    monkeypatch.setattr(render, "plan_segments", functools.partial(render.plan_segments, target_s=2))
    # Of the machine that runs the tests no device is seen.
    monkeypatch.setattr(machine_encoders, "Host", functools.partial(Host, root=tmp_path / "nothing", system="Linux"))
    rendered_segments._machine_encoders_of.cache_clear()
    return data


def codec_and_frames(film: Path) -> tuple[str, int]:
    with av.open(str(film)) as container:
        return container.streams.video[0].codec_context.name, sum(1 for _ in container.decode(video=0))


def film_of(data: Path) -> tuple[str, int]:
    edit = json.loads((data / "output" / "holiday" / "montage.json").read_text())
    codec, frames = codec_and_frames(data / "output" / "holiday" / "montage.mp4")
    assert frames == edit["frames"] == 200
    return codec, frames


def reports_of(result: dg.ExecuteInProcessResult) -> list[rendered_segments.SegmentReport]:
    return list(result.output_for_node("rendered_segments").segments)


def told_by_steps(result: dg.ExecuteInProcessResult) -> str:
    """What the steps that encode say in their metadata."""
    events = [event for event in result.all_events if event.is_successful_output and event.step_key]
    steps = [event for event in events if "encode_segment" in str(event.step_key)]
    return "\n".join(str(value.value) for step in steps for value in step.step_output_data.metadata.values())


def warnings_of(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> list[str]:
    records = [record.event_log_entry for record in instance.get_records_for_run(result.run_id).records]
    return [entry.user_message for entry in records if entry.level == 30]


def run_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, behaviours: dict[str, str]
) -> tuple[dg.ExecuteInProcessResult, StandIn]:
    with stand_in(tmp_path / "bin", monkeypatch, behaviours) as program:
        return run_job("holiday", instance), program


def test_a_gpu_that_fails_in_the_third_segment_costs_a_fallback_and_no_frame(
    holiday: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    monkeypatch.setenv("LOCAL_GPU_ENCODE", "on")
    result, _ = run_with(tmp_path, monkeypatch, instance, {"h264_nvenc": "third fails"})
    assert result.success
    assert film_of(holiday) == ("h264", 200)
    made = reports_of(result)
    assert [report.encoder for report in made[:4]] == ["h264_nvenc", "h264_nvenc", "libx264", "h264_nvenc"]
    (fallen,) = [report for report in made if report.fallback]
    assert fallen.index == 2
    assert fallen.fallback.startswith("h264_nvenc: Rendering segment 3 of ")
    assert fallen.fallback in told_by_steps(result)
    warned = [message for message in warnings_of(instance, result) if "h264_nvenc" in message]
    assert len(warned) == 1
    assert "h264_nvenc on 0 failed, the next encoder takes over" in warned[0]

    # Without the GPU nothing that it made is taken for the CPU's work, and the film is the CPU's own.
    monkeypatch.setenv("LOCAL_GPU_ENCODE", "off")
    off, program = run_with(tmp_path / "off", monkeypatch, instance, {"h264_nvenc": "works"})
    assert off.success
    assert [report.encoder for report in reports_of(off)] == ["libx264"] * len(made)
    assert film_of(holiday) == ("h264", 200)
    assert program.calls() == []


def test_a_machine_without_hardware_makes_the_same_film_whatever_it_is_told(
    holiday: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    films = []
    for name, value in (("LOCAL_GPU_ENCODE", "auto"), ("LOCAL_GPU_ENCODE", "off"), ("MONTAGE_FORCE_CPU", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert run_job("holiday", instance).success
        films.append((holiday / "output" / "holiday" / "montage.mp4").read_bytes())
    assert films[0] == films[1] == films[2]


def test_an_encoder_asked_for_by_name_makes_the_film_in_its_codec_or_says_why_not(
    holiday: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    monkeypatch.setenv("OUTPUT_CODEC", "hevc_nvenc")
    result, _ = run_with(tmp_path, monkeypatch, instance, {"hevc_nvenc": "works"})
    assert result.success
    assert film_of(holiday) == ("hevc", 200)
    assert {report.encoder for report in reports_of(result)} == {"hevc_nvenc"}
    monkeypatch.setenv("OUTPUT_CODEC", "hevc_amf")
    result, _ = run_with(tmp_path, monkeypatch, instance, {"hevc_amf": "broken"})
    assert film_of(holiday) == ("hevc", 200)
    assert {report.encoder for report in reports_of(result)} == {"libx265"}
    warned = [message for message in warnings_of(instance, result) if "hevc_amf" in message]
    assert warned == [
        "hevc_amf was asked for, but cannot be used (listed by ffmpeg, but the test encode failed: "
        "Cannot load libcuda.so.1); libx265 encodes instead"
    ]
