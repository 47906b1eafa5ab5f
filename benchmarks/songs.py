"""How right and how costly the beats are: the table of `benchmarks/beats.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.report import Section, Table


def measure(bench: Bench) -> Section:
    """The beats of every song with truth."""
    folders = sorted({path.parent for path in bench.songs() if path.with_suffix(".beats.txt").is_file()})
    if not folders:
        return Section("Songs", "Not measured: no song has a `<song>.beats.txt` beside it.")
    script = Path(__file__).with_name("beats.py")
    tables = [
        subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, check=True).stdout
        for folder in folders
    ]
    return Section(
        "Songs",
        "Beats against human or chart timing within 70 ms, beside librosa's `beat_track`. Decoding counts, imports and "
        "first compilations do not.",
        tables=[_parsed(text) for text in tables],
    )


def _parsed(markdown: str) -> Table:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in markdown.splitlines() if line]
    return Table(rows[0], rows[2:])
