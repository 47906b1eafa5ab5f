"""How right and how costly the beats are on real songs: `python benchmarks/beats.py MUSIC_DIR [--json FILE]`.

Every song with a `<name>.beats.txt` beside it (seconds, one a line; `<name>.downbeats.txt` where known) is
analysed by the package, and by librosa.load and librosa.beat.beat_track. CPU seconds include decoding and
child processes, and everything else that `analyze_song` finds; librosa's are given for both calls and for
beat_track alone. Its import and its first, compiling call are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from montage_assets.media.audio import Samples
from montage_assets.media.beats import analyze_song

Times = NDArray[np.float64]
Result = TypeVar("Result")

WINDOW_S = 0.07
LIBROSA_RATE = 22050


@dataclass(frozen=True)
class Row:
    """One song. `f_octave` allows double and half tempo; times in seconds, errors in milliseconds."""

    song: str
    minutes: float
    f: float
    f_octave: float
    median_error_ms: float
    downbeat_f: float | None
    tempo_bpm: float
    source: str
    confidence: float
    cpu_s: float
    librosa_f: float
    librosa_f_octave: float
    librosa_tempo_bpm: float
    librosa_cpu_s: float
    librosa_track_cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("music", type=Path, help="folder with songs and their beats.txt")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    songs = [song for song in sorted(options.music.iterdir()) if _is_song(song)]
    if not songs:
        parser.error(f"{options.music} holds no song with a .beats.txt beside it")
    analyze_song(songs[0])
    _librosa_beats(_librosa_load(songs[0]))
    rows = [_measure(song) for song in songs]
    print(_table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _is_song(path: Path) -> bool:
    return path.suffix != ".txt" and path.with_suffix(".beats.txt").is_file()


def _measure(path: Path) -> Row:
    truth = np.loadtxt(path.with_suffix(".beats.txt"), ndmin=1)
    bars = path.with_suffix(".downbeats.txt")
    song, cpu_s = _timed(lambda: analyze_song(path))
    samples, load_cpu_s = _timed(lambda: _librosa_load(path))
    (their_tempo, their_beats), track_cpu_s = _timed(lambda: _librosa_beats(samples))
    beats = np.array(song.beats_s)
    return Row(
        song=path.name,
        minutes=song.duration_s / 60.0,
        f=f_measure(beats, truth),
        f_octave=f_any_octave(beats, truth),
        median_error_ms=float(np.median([np.abs(beats - time).min() for time in truth])) * 1000.0,
        downbeat_f=f_measure(np.array(song.downbeats_s), np.loadtxt(bars, ndmin=1)) if bars.is_file() else None,
        tempo_bpm=song.tempo_bpm,
        source=song.source,
        confidence=song.confidence,
        cpu_s=cpu_s,
        librosa_f=f_measure(their_beats, truth),
        librosa_f_octave=f_any_octave(their_beats, truth),
        librosa_tempo_bpm=their_tempo,
        librosa_cpu_s=load_cpu_s + track_cpu_s,
        librosa_track_cpu_s=track_cpu_s,
    )


def f_measure(found: Times, truth: Times) -> float:
    """2 * hits / (found + true), each true beat hit by at most one found beat within 70 ms."""
    free = list(found)
    hits = 0
    for time in truth:
        near = [beat for beat in free if abs(beat - time) <= WINDOW_S]
        if near:
            free.remove(min(near, key=lambda beat: abs(beat - time)))
            hits += 1
    return 2.0 * hits / (len(found) + len(truth))


def f_any_octave(found: Times, truth: Times) -> float:
    """The best of the tempo itself, its double and its half."""
    halves = [(found[first::2], truth) for first in (0, 1)] + [(found, truth[first::2]) for first in (0, 1)]
    return max(f_measure(ours, theirs) for ours, theirs in [(found, truth), *halves])


def _librosa_load(path: Path) -> Samples:
    import librosa

    samples: Samples = librosa.load(path, sr=LIBROSA_RATE)[0]
    return samples


def _librosa_beats(samples: Samples) -> tuple[float, Times]:
    from librosa.beat import beat_track

    tempo, beats = beat_track(y=samples, sr=LIBROSA_RATE, units="time")
    return float(np.atleast_1d(tempo)[0]), np.asarray(beats)


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    before = sum(os.times()[:4])
    result = work()
    return result, sum(os.times()[:4]) - before


def _table(rows: list[Row]) -> str:
    head = (
        "| song | F 70 ms | F, double/half allowed | median error ms | downbeat F | tempo BPM | source "
        "| confidence | CPU s per minute | librosa F | librosa F, double/half | librosa BPM "
        "| librosa load + beat_track, CPU s per minute | beat_track alone |"
    )
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    for row in rows:
        downbeats = "" if row.downbeat_f is None else f"{row.downbeat_f:.3f}"
        cells = [
            row.song,
            f"{row.f:.3f}",
            f"{row.f_octave:.3f}",
            f"{row.median_error_ms:.1f}",
            downbeats,
            f"{row.tempo_bpm:.2f}",
            row.source,
            f"{row.confidence:.2f}",
            f"{row.cpu_s / row.minutes:.2f}",
            f"{row.librosa_f:.3f}",
            f"{row.librosa_f_octave:.3f}",
            f"{row.librosa_tempo_bpm:.2f}",
            f"{row.librosa_cpu_s / row.minutes:.2f}",
            f"{row.librosa_track_cpu_s / row.minutes:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
