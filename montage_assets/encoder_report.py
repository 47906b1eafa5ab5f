"""`montage encoders`: what this machine's video encoders can do, and which one a film gets.

Belongs here: gathering the table and putting it into words. Does not belong here: testing, measuring and choosing
(`media.machine_encoders` and what it calls).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from montage_assets.media.calibration import TestFilm, made_film
from montage_assets.media.encoder_router import Choice, Need, wish_of
from montage_assets.media.encoder_table import CODECS, Codec, Quality
from montage_assets.media.errors import FfmpegFailed
from montage_assets.media.ffmpeg import ffmpeg_version
from montage_assets.media.machine_encoders import EncoderState, MachineEncoders

if TYPE_CHECKING:
    from montage_assets.settings import Settings

USUAL_SIZE = (1920, 1080)
"""The film for which the choice is told."""


@dataclass(frozen=True)
class EncoderReport:
    """All encoders of this machine, and what would be taken for a film of each codec."""

    ffmpeg: str
    quality: Quality
    states: list[EncoderState]
    choices: dict[Codec, Choice]


def encoder_report(settings: Settings, quality: Quality, fresh: bool = False) -> EncoderReport:
    """Test what is not known, measure what works and is not measured. A minute at first, a second later."""
    machine = MachineEncoders(settings.encoder_cache, settings.driver_variables)
    states = _with_measurements(machine, machine.states(quality, fresh), quality)
    wish = wish_of(settings.gpu_encode, settings.hwaccel, settings.force_cpu, settings.output_codec)
    choices = {codec: machine.choice(Need(codec, *USUAL_SIZE, quality), wish) for codec in CODECS}
    return EncoderReport(ffmpeg_version(), quality, states, choices)


def _with_measurements(
    machine: MachineEncoders, states: Iterable[EncoderState], quality: Quality
) -> list[EncoderState]:
    films: list[TestFilm] = []

    def with_measurement(state: EncoderState) -> EncoderState:
        if not state.works or state.measured is not None:
            return state
        sys.stderr.write(f"measuring {state.encoder.name} ...\n")
        films.extend([] if films else [made_film(Path(folder))])
        try:
            return replace(state, measured=machine.measure(state, quality, films[0]))
        except FfmpegFailed as failure:
            return replace(state, works=False, reason=f"the test encode works, but {failure}")

    with tempfile.TemporaryDirectory(prefix="montage-encoders-") as folder:
        return [with_measurement(state) for state in states]


def document(report: EncoderReport) -> dict[str, Any]:
    """The report as JSON carries it."""
    return {
        "ffmpeg": report.ffmpeg,
        "quality": report.quality,
        "encoders": [_row(state) for state in report.states],
        "choices": {
            codec: {
                "order": [{"encoder": one.encoder.name, "device": one.device, "fps": one.fps} for one in choice.order],
                "left_out": [{"encoder": one.encoder, "reason": one.reason} for one in choice.left_out],
                "note": choice.note,
            }
            for codec, choice in report.choices.items()
        },
    }


def _row(state: EncoderState) -> dict[str, Any]:
    measured = state.measured
    return {
        "encoder": state.encoder.name,
        "codec": state.encoder.codec,
        "family": state.encoder.family,
        "device": state.device,
        "available": state.works,
        "reason": state.reason,
        "bit_depths": list(state.bit_depths),
        "number": measured.number if measured else None,
        "fps": measured.fps if measured else None,
        "vmaf": measured.vmaf if measured else None,
        "kilobits_per_s": measured.kilobits_per_s if measured else None,
    }


def lines(report: EncoderReport) -> list[str]:
    """The report as text: what works, what does not and why, what is taken."""
    working = [state for state in report.states if state.works]
    missing = [state for state in report.states if not state.works]
    rows = [_working_row(state) for state in working]
    text = [f"ffmpeg {report.ffmpeg}, quality {report.quality}; measured on 24 frames of 1280x720", ""]
    text += _aligned([("encoder", "device", "bits", "number", "fps", "VMAF", "kbit/s"), *rows])
    if missing:
        text += ["", "not available:"]
        text += _aligned([(f"  {state.encoder.name}", state.device, state.reason) for state in missing])
    text.append("")
    for codec, choice in report.choices.items():
        order = ", then ".join(_on_device(one.encoder.name, one.device) for one in choice.order)
        text.append(f"{codec} films of {USUAL_SIZE[0]}x{USUAL_SIZE[1]}: {order}")
        text += [f"  {choice.note}"] if choice.note else []
    return text


def _working_row(state: EncoderState) -> tuple[str, ...]:
    depths = "/".join(str(depth) for depth in state.bit_depths)
    found = state.measured
    if found is None:
        return (state.encoder.name, state.device or "CPU", depths, "", "", "", "")
    vmaf = "no libvmaf" if found.vmaf is None else f"{found.vmaf:.1f}"
    device = "CPU" if state.encoder.family == "cpu" else state.device or "-"
    return (
        state.encoder.name, device, depths, f"{found.number:g}", f"{found.fps:.0f}", vmaf, f"{found.kilobits_per_s:.0f}"
    )  # fmt: skip


def _on_device(encoder: str, device: str) -> str:
    return f"{encoder} on {device}" if device else encoder


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
