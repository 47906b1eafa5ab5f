"""Measure, and write docs/benchmarks.md: `python -m benchmarks [--media DIR] [QUESTION ...]`.

Without questions all are measured (about an hour on two cores). With some, the others' sections stay as they stand in
the document, and so does its head.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.report import updated
from montage_assets.media.ffmpeg import ffmpeg_version

QUESTIONS = ("scoring", "orchestration", "rendering", "memory", "scenes", "songs", "decode_cost", "neural", "cluster")
_REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    """Parse arguments, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(QUESTIONS)}; default: all")
    parser.add_argument("--media", type=Path, default=_REPOSITORY / "examples" / "demo", help="clips and songs")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "montage-benchmarks")
    parser.add_argument("--out", type=Path, default=_REPOSITORY / "docs" / "benchmarks.md")
    options = parser.parse_args()
    unknown = sorted(set(options.questions) - set(QUESTIONS))
    if unknown:
        parser.error(f"there is no question {unknown[0]!r}; choose from {', '.join(QUESTIONS)}")
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.media.resolve(), options.work.resolve())
    found = []
    for question in options.questions or QUESTIONS:
        sys.stderr.write(f"{question} ...\n")
        found.append(importlib.import_module(f"benchmarks.{question}").measure(bench))
    before = options.out.read_text() if options.questions and options.out.is_file() else ""
    options.out.write_text(updated(before, found, _machine(bench)))
    sys.stderr.write(f"{options.out}\n")


def _machine(bench: Bench) -> str:
    has_truth = any(bench.media.rglob("*.cuts.txt"))
    shown = "a folder of clips with viewed truth" if has_truth else "the given folder, without truth"
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        processor = named.group(1) if named else processor
    return (
        f"Machine: {os.cpu_count()} cores ({processor}), shared with other work, so that only CPU-seconds and ratios "
        f"of turns side by side are given. Python {platform.python_version()}, ffmpeg {ffmpeg_version()}.\n\n"
        "To reproduce: `python -m benchmarks --media DIR` with a folder of clips and songs (default: the example's). "
        "Accuracy needs viewed truth beside them: `<clip>.cuts.txt` with the seconds of each new shot's first frame, "
        "`<clip>.gradual.txt` with spans `start end note` that do not count, `<song>.beats.txt` with the seconds of "
        f"the beats. The figures below are of {shown}. Questions can be measured one by one; a section keeps the "
        "figures of its last measurement."
    )


if __name__ == "__main__":
    main()
