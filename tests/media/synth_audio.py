"""Songs made of numpy: drums, chords, speech-like noise and silence, with beats that are known exactly."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 24000
Sound = NDArray[np.float64]

CHORDS_HZ = ((220.0, 277.2, 329.6), (146.8, 220.0, 349.2), (196.0, 246.9, 293.7), (164.8, 207.7, 329.6))


def write_wav(path: Path, sound: Sound, rate: int = RATE) -> Path:
    """`sound` as 16-bit mono; a peak over full scale is brought down to it."""
    peak = max(1.0, float(np.abs(sound).max(initial=0.0)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound / peak * 32000.0).astype("<i2").tobytes())
    return path


def silence(seconds: float) -> Sound:
    return np.zeros(round(seconds * RATE))


def even_beats(bpm: float, seconds: float, first_s: float = 0.2) -> NDArray[np.float64]:
    return np.arange(first_s, seconds - 0.1, 60.0 / bpm)


def ramp_beats(first_bpm: float, last_bpm: float, seconds: float) -> NDArray[np.float64]:
    """Beats of a tempo that changes by the same BPM every second; the first is at 0."""
    slope = (last_bpm - first_bpm) / seconds / 60.0
    start = first_bpm / 60.0
    count = int(start * seconds + slope * seconds**2 / 2.0)
    beats = np.arange(count + 1)
    beats_s: Sound = (-start + np.sqrt(start**2 + 2.0 * slope * beats)) / slope
    return beats_s


def add(sound: Sound, time_s: float, hit: Sound) -> None:
    """Mix `hit` into `sound` at `time_s`; what reaches over the end is dropped."""
    first = round(time_s * RATE)
    if 0 <= first < len(sound):
        part = hit[: len(sound) - first]
        sound[first : first + len(part)] += part


def kick() -> Sound:
    t = np.arange(round(0.25 * RATE)) / RATE
    return 0.8 * np.sin(2 * np.pi * (50 * t + 1.8 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.08)


def snare(random: np.random.Generator) -> Sound:
    t = np.arange(round(0.2 * RATE)) / RATE
    return 0.3 * random.standard_normal(len(t)) * np.exp(-t / 0.05)


def hat(random: np.random.Generator) -> Sound:
    t = np.arange(round(0.08 * RATE)) / RATE
    return 0.12 * np.diff(random.standard_normal(len(t) + 1)) * np.exp(-t / 0.02)


def drums(
    beats_s: Sequence[float] | NDArray[np.float64],
    seconds: float,
    *,
    meter: int = 4,
    off_beat: float = 0.5,
    off_beat_level: float = 1.0,
    seed: int = 1,
) -> Sound:
    """A kit: kick on a bar's first beat (and third of four), snare on the others, hats on and between."""
    random = np.random.default_rng(seed)
    sound = silence(seconds)
    for beat, time in enumerate(beats_s):
        low = beat % meter in ((0, 2) if meter == 4 else (0,))
        add(sound, time, kick() if low else snare(random) * (1.0 if meter == 4 else 0.4))
        add(sound, time, hat(random))
        if beat + 1 < len(beats_s):
            add(sound, time + off_beat * (beats_s[beat + 1] - time), off_beat_level * hat(random))
    return sound


def chords(starts_s: Sequence[float] | NDArray[np.float64], seconds: float, level: float = 0.1) -> Sound:
    """A sustained organ that takes the next of four chords at each start."""
    sound = silence(seconds)
    bounds = [*starts_s, seconds]
    for index, (start, end) in enumerate(pairwise(bounds)):
        t = np.arange(max(0, round((end - start) * RATE))) / RATE
        edge = np.minimum(1.0, np.minimum(t, max(end - start, 0.0) - t) / 0.02)
        tones = sum(np.sin(2 * np.pi * hz * t) for hz in CHORDS_HZ[index % len(CHORDS_HZ)])
        add(sound, start, level * tones * edge)
    return sound


def pad(seconds: float, level: float) -> Sound:
    """One loud chord that never stops."""
    t = np.arange(round(seconds * RATE)) / RATE
    sound = silence(seconds)
    for hz in (110.0, 165.0, 220.5, 277.0, 330.0):
        sound += level * np.sin(2 * np.pi * hz * t + hz)
    return sound


def speech(seconds: float, seed: int) -> Sound:
    """Syllables of uneven length, voiced and hissed, in phrases with pauses between them."""
    random = np.random.default_rng(seed)
    sound = silence(seconds)
    time = 0.3
    while time < seconds:
        for _ in range(random.integers(4, 14)):
            length = random.uniform(0.1, 0.3)
            t = np.arange(round(length * RATE)) / RATE
            shape = np.sin(np.pi * t / length)
            pitch = random.uniform(90.0, 180.0)
            voice = sum(np.sin(2 * np.pi * pitch * k * t) / k * random.uniform(0.2, 1.0) for k in range(1, 20))
            hiss = 0.3 * random.standard_normal(len(t))
            add(sound, time, 0.2 * shape * (hiss if random.random() < 0.4 else voice))
            time += length * random.uniform(0.8, 1.3)
        time += random.uniform(0.2, 1.0)
    return sound
