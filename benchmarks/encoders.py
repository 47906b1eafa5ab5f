"""How fast and how good the encoders of this machine are at every level, beside x264: `python -m benchmarks.encoders`.

    python -m benchmarks.encoders [--media DIR] [--levels standard,high] [--clips 4] [--calibrate] [--out FILE]

Every encoder that works here encodes the same two seconds of several clips (1280x720) with production's flags; VMAF
is the mean over all their frames, speed is wall time without ffmpeg's start. `--calibrate` first looks for the
number at which each hardware encoder comes as close as it can to x264's VMAF at the level, and keeps it for this
machine: renders use it from then on. For the CPU's encoders it only proposes one: their numbers stand in the table,
since they must be the same on every machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from benchmarks.bench import Bench, probed
from montage_assets.media.calibration import CLOSE_ENOUGH, Measurement, TestFilm, calibrated, measure
from montage_assets.media.encoders import QUALITIES, Quality, ReadyEncoder, on_cpu
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import ffmpeg_version, input_args, run_ffmpeg
from montage_assets.media.machine_encoders import MachineEncoders, label_of
from montage_assets.settings import Settings

_REPOSITORY = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, FRAMES = 1280, 720, 48


@dataclass(frozen=True)
class Row:
    """One encoder at one level: the mean over the films, and what x264 has there."""

    found: Measurement
    reference_vmaf: float
    proposed: float | None

    @property
    def difference(self) -> float:
        return (self.found.vmaf or 0.0) - self.reference_vmaf


def films_of(bench: Bench, folder: Path, most: int) -> list[TestFilm]:
    """The middle of up to `most` upright SDR clips, evenly chosen. Raises MediaError when there are none."""
    usable = [path for path in bench.clips() if _is_usable(path)]
    if not usable:
        raise MediaError(f"{bench.media} holds no upright SDR clip of two seconds; name another folder by --media")
    step = max(1.0, len(usable) / most)
    films: list[TestFilm] = []
    for path in [usable[int(place * step)] for place in range(min(most, len(usable)))]:
        clip = probed(path)
        start_s = max(0.0, clip.duration_s / 2 - FRAMES / float(clip.fps) / 2)
        out = folder / f"{len(films)}.yuv"
        arguments = [
            *input_args(path, "-an", "-sn", "-dn", "-ss", f"{start_s:.3f}"),
            "-map", "0:V:0", "-frames:v", str(FRAMES), "-fps_mode", "passthrough",
            "-vf", f"scale={WIDTH}:{HEIGHT}:flags=bicubic:out_range=tv,format=yuv420p",
            "-f", "rawvideo", str(out),
        ]  # fmt: skip
        run_ffmpeg(arguments, what=f"reading {path.name}")
        frames = out.stat().st_size // (WIDTH * HEIGHT * 3 // 2)
        films.append(TestFilm(out, WIDTH, HEIGHT, Fraction(round(clip.fps)), frames))
    return films


def _is_usable(path: Path) -> bool:
    try:
        clip = probed(path)
    except MediaError:
        return False
    upright = clip.rotation == 0 and clip.width >= clip.height
    return upright and clip.transfer == "sdr" and clip.bit_depth == 8 and clip.duration_s * float(clip.fps) > FRAMES


def measured_on_all(ready: ReadyEncoder, quality: Quality, films: Sequence[TestFilm]) -> Measurement:
    """The mean over the films."""
    each = [measure(ready, quality, film) for film in films]
    scores = [one.vmaf for one in each if one.vmaf is not None]
    return Measurement(
        encoder=ready.name,
        device=ready.device,
        quality=quality,
        number=ready.number(quality),
        fps=round(len(each) / sum(1 / one.fps for one in each), 1),
        vmaf=round(sum(scores) / len(scores), 2) if scores else None,
        kilobits_per_s=round(sum(one.kilobits_per_s for one in each) / len(each), 1),
    )


def rows_of(
    machine: MachineEncoders, levels: Sequence[Quality], films: Sequence[TestFilm], calibrate: bool
) -> list[Row]:
    """Measure every working encoder at every level, x264 first; keep what was found for this machine."""
    ready = [machine.ready(s.encoder, s.device) for s in machine.states(levels[0]) if s.works]
    rows = []
    for level in levels:
        reference = measured_on_all(on_cpu("h264"), level, films)
        for encoder in ready:
            sys.stderr.write(f"{level}: {label_of(encoder)} ...\n")
            proposed = calibrated(encoder, level, [reference.vmaf or 0.0], films) if calibrate else None
            used = proposed if proposed and not encoder.on_cpu else encoder
            is_reference = encoder.name == reference.encoder
            found = reference if is_reference else measured_on_all(used, level, films)
            machine.measured.put(found)
            number = proposed.number(level) if proposed and not is_reference else None
            rows.append(Row(found, reference.vmaf or 0.0, number))
    return rows


def document(rows: Sequence[Row], films: int, machine_line: str, missing: Sequence[tuple[str, str]]) -> str:
    """The measurements as a page."""
    header = ["level", "encoder", "number", "VMAF", "beside x264", "kbit/s", "frames a second", "proposed number"]
    lines = [
        "# Encoders", "",
        "Written by `python -m benchmarks.encoders`; do not edit.", "",
        machine_line, "",
        f"{films} clips, {FRAMES} frames each, {WIDTH}x{HEIGHT}. A level should mean x264's VMAF within "
        f"{CLOSE_ENOUGH:g} points on every encoder; above 99, VMAF tells little.", "",
        "| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |",
    ]  # fmt: skip
    for row in rows:
        found = row.found
        name = f"{found.encoder} on {found.device}" if found.device else found.encoder
        proposed = "" if row.proposed is None else f"{row.proposed:g}"
        cells = [
            found.quality, name, f"{found.number:g}", f"{found.vmaf:.2f}" if found.vmaf is not None else "-",
            f"{row.difference:+.2f}", f"{found.kilobits_per_s:.0f}", f"{found.fps:.0f}", proposed,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Not available on that machine:", ""]
    lines += [f"- {name}: {reason}" for name, reason in missing]
    return "\n".join(lines) + "\n"


def _machine_words() -> str:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        processor = named.group(1) if named else processor
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    return (
        f"Machine: {os.cpu_count()} cores ({processor}), ffmpeg {ffmpeg_version()}. Load per core while measuring: "
        f"{busy:.1f}; above 1, frames a second are those of a shared machine and only their ratios mean anything."
    )


def main() -> None:
    """Parse arguments, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoders", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--media", type=Path, default=_REPOSITORY / "examples" / "demo", help="a folder of clips")
    parser.add_argument("--levels", default=",".join(QUALITIES), help=f"of {', '.join(QUALITIES)}; default: all")
    parser.add_argument("--clips", type=int, default=4, help="how many clips of the folder")
    parser.add_argument("--calibrate", action="store_true", help="find the numbers that make levels alike")
    parser.add_argument("--out", type=Path, default=_REPOSITORY / "docs" / "encoders.md")
    options = parser.parse_args()
    levels = [level for level in QUALITIES if level in options.levels.split(",")]
    if not levels or len(levels) != len(options.levels.split(",")):
        parser.error(f"--levels {options.levels}: choose from {', '.join(QUALITIES)}")
    settings = Settings.from_environment()
    machine = MachineEncoders(settings.encoder_cache, settings.driver_variables)
    with tempfile.TemporaryDirectory(prefix="montage-encoders-") as folder:
        bench = Bench(options.media.resolve(), Path(folder))
        films = films_of(bench, Path(folder), options.clips)
        rows = rows_of(machine, levels, films, options.calibrate)
    missing = [(state.encoder.name, state.reason) for state in machine.states(levels[0]) if not state.works]
    options.out.write_text(document(rows, len(films), _machine_words(), missing))
    sys.stderr.write(f"{options.out}\n")


if __name__ == "__main__":
    main()
