"""Songs of known beats are analysed as files; beats are scored by a measure written here."""

from __future__ import annotations

import tracemalloc
import wave
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.media.beat_analysis import BeatAnalysis, TempoPoint
from montage_assets.media.beats import PACE_S, TrackedBeats, analyze_song
from montage_assets.media.errors import MediaError
from montage_assets.media.onsets import SongSignals, song_signals
from tests.media.synth_audio import (
    RATE,
    Sound,
    add,
    chords,
    drums,
    even_beats,
    pad,
    ramp_beats,
    silence,
    speech,
    write_wav,
)

Times = NDArray[np.float64] | list[float]


def f_measure(found_s: Times, true_s: Times, window_s: float = 0.07) -> float:
    """Share of beats that are right, each true beat found by one beat at most (MIREX beat evaluation)."""
    free = sorted(float(time) for time in found_s)
    hits = 0
    for truth in true_s:
        near = [time for time in free if abs(time - truth) <= window_s]
        if near:
            free.remove(min(near, key=lambda time: abs(time - truth)))
            hits += 1
    return 2.0 * hits / (len(found_s) + len(true_s))


def median_error_ms(found_s: Times, true_s: Times) -> float:
    """Signed: negative when the beats come before the true ones."""
    found = np.asarray(found_s)
    return float(np.median([(found - truth)[np.abs(found - truth).argmin()] for truth in true_s])) * 1000.0


def analyse(folder: Path, sound: Sound, rate: int = RATE) -> BeatAnalysis:
    return analyze_song(write_wav(folder / "song.wav", sound, rate))


def with_chords(beats_s: NDArray[np.float64], seconds: float, meter: int = 4) -> Sound:
    return drums(beats_s, seconds, meter=meter) + chords(beats_s[::meter], seconds)


def test_the_measure_of_these_tests_punishes_missing_added_and_late_beats() -> None:
    truth = [1.0, 2.0, 3.0, 4.0]
    assert f_measure([1.01, 2.0, 3.0, 4.0], truth) == 1.0
    assert f_measure([1.0, 3.0], truth) == pytest.approx(2 / 3)
    assert f_measure([1.0, 1.01, 2.0, 3.0, 4.0], truth) == pytest.approx(8 / 9)
    assert f_measure([1.1, 2.1, 3.1, 4.1], truth) == 0.0


@pytest.mark.parametrize("bpm", [85.0, 127.3, 174.0])
def test_a_song_of_one_tempo_gets_it_to_a_hundredth_and_every_beat_and_bar(tmp_path: Path, bpm: float) -> None:
    beats = even_beats(bpm, 30)
    song = analyse(tmp_path, with_chords(beats, 30))
    assert song.source == "grid"
    assert song.tempo_bpm == pytest.approx(bpm, abs=0.01)
    assert f_measure(song.beats_s, beats) == 1.0
    assert abs(median_error_ms(song.beats_s, beats)) < 5.0
    assert f_measure(song.downbeats_s, beats[::4]) == 1.0
    assert song.confidence > 0.9
    assert f"{song.tempo_bpm:.2f} BPM" in song.explanation


def test_beats_too_fast_to_cut_to_are_counted_in_their_half(tmp_path: Path) -> None:
    song = analyse(tmp_path, drums(even_beats(220, 20), 20))
    assert song.tempo_bpm == pytest.approx(110, abs=0.02)


def test_beats_stand_at_the_attack_of_a_sound(tmp_path: Path) -> None:
    beats = even_beats(100, 20, first_s=0.317)
    sound = silence(20)
    for beat in beats:
        add(sound, beat, np.full(24, 0.8))
    assert abs(median_error_ms(analyse(tmp_path, sound).beats_s, beats)) < 5.0


def test_a_loud_sustained_chord_does_not_hide_the_drums(tmp_path: Path) -> None:
    beats = even_beats(127.3, 30)
    song = analyse(tmp_path, 0.15 * drums(beats, 30) + pad(30, 0.16))
    assert song.tempo_bpm == pytest.approx(127.3, abs=0.02)
    assert f_measure(song.beats_s, beats) == 1.0


@pytest.mark.parametrize(("off_beat", "level"), [(0.5, 6.0), (2 / 3, 3.0)], ids=["straight", "swung"])
def test_cymbals_louder_than_the_drums_do_not_draw_the_beats_to_the_off_beat(
    tmp_path: Path, off_beat: float, level: float
) -> None:
    beats = even_beats(120, 30)
    song = analyse(tmp_path, drums(beats, 30, off_beat=off_beat, off_beat_level=level) + chords(beats[::4], 30))
    assert f_measure(song.beats_s, beats) == 1.0


def test_a_tempo_ramp_is_followed(tmp_path: Path) -> None:
    beats = ramp_beats(100, 140, 60)
    song = analyse(tmp_path, with_chords(beats, 60))
    assert song.source == "local"
    assert f_measure(song.beats_s, beats) > 0.95
    assert abs(median_error_ms(song.beats_s, beats)) < 10.0
    assert f_measure(song.downbeats_s, beats[::4]) > 0.9
    assert song.tempo_curve[0].bpm < 106 < 134 < song.tempo_curve[-1].bpm


def test_a_tempo_that_changes_half_way_is_followed(tmp_path: Path) -> None:
    beats = np.concatenate([np.arange(0.2, 25, 60 / 120), np.arange(25.2, 50, 60 / 150)])
    song = analyse(tmp_path, with_chords(beats, 50))
    assert song.source == "local"
    assert f_measure(song.beats_s, beats) > 0.95
    assert song.tempo_curve[2].bpm == pytest.approx(120, abs=2)
    assert song.tempo_curve[-3].bpm == pytest.approx(150, abs=2)


def test_players_who_drift_are_followed(tmp_path: Path) -> None:
    periods = 0.5 * (1 + 0.03 * np.sin(np.arange(75) / 8))
    jitter = 0.006 * np.random.default_rng(4).standard_normal(75)
    beats = np.cumsum(periods) + jitter
    song = analyse(tmp_path, drums(beats, 39))
    assert song.source == "local"
    assert f_measure(song.beats_s, beats) > 0.95


def test_a_waltz_has_bars_of_three(tmp_path: Path) -> None:
    beats = even_beats(140, 30)
    song = analyse(tmp_path, with_chords(beats, 30, meter=3))
    assert f_measure(song.beats_s, beats) == 1.0
    assert f_measure(song.downbeats_s, beats[::3]) == 1.0


def test_the_beats_of_a_song_with_a_silent_intro_go_back_to_its_start(tmp_path: Path) -> None:
    beats = even_beats(96, 35, first_s=7.3)
    song = analyse(tmp_path, with_chords(beats, 35))
    heard = [beat for beat in song.beats_s if beat > 7.0]
    assert f_measure(heard, beats) > 0.98
    assert song.beats_s[0] < 60 / 96
    assert song.sections[0].end_s == pytest.approx(7.3, abs=0.3)
    assert song.sections[0].label == "quiet"


def test_beats_end_where_the_sound_ends(tmp_path: Path) -> None:
    beats = even_beats(120, 20)
    song = analyse(tmp_path, np.concatenate([with_chords(beats, 20), silence(6)]))
    assert song.duration_s == pytest.approx(26, abs=0.01)
    assert 19.0 < song.beats_s[-1] < 20.6


@pytest.mark.parametrize("seed", [0, 3])
def test_speech_is_cut_at_a_calm_pace(tmp_path: Path, seed: int) -> None:
    song = analyse(tmp_path, speech(25, seed))
    assert song.source == "pace"
    assert np.diff(song.beats_s) == pytest.approx(PACE_S)
    assert "No beat was found" in song.explanation


def test_noise_and_steady_tones_are_cut_at_a_calm_pace(tmp_path: Path) -> None:
    time = np.arange(15 * RATE) / RATE
    noise = 0.1 * np.random.default_rng(2).standard_normal(len(time))
    for sound in (noise, 0.5 * np.sin(2 * np.pi * 440 * time), 0.5 * np.sin(2 * np.pi * 55 * time)):
        assert analyse(tmp_path, sound).source == "pace"


def test_silence_is_cut_at_a_calm_pace_and_said_to_be_silent(tmp_path: Path) -> None:
    song = analyse(tmp_path, silence(12))
    assert song.source == "pace"
    assert song.confidence == 0.0
    assert song.beats_s[0] == 0.0
    assert song.beats_s[-1] > 11
    assert max(song.energy) == 0.0
    assert "silent" in song.explanation


def test_five_seconds_are_enough(tmp_path: Path) -> None:
    beats = even_beats(120, 5)
    song = analyse(tmp_path, drums(beats, 5))
    assert song.source == "grid"
    assert f_measure(song.beats_s, beats) == 1.0


def test_a_telephone_recording_keeps_its_beats(tmp_path: Path) -> None:
    beats = even_beats(118, 24)
    smooth = np.convolve(with_chords(beats, 24), np.ones(3) / 3, mode="same")
    assert f_measure(analyse(tmp_path, smooth[::3], rate=8000).beats_s, beats) == 1.0


def test_a_copy_at_a_two_hundredth_of_the_level_reads_the_same(tmp_path: Path) -> None:
    beats = even_beats(110, 24)
    loud = analyse(tmp_path, 0.5 * with_chords(beats, 24))
    quiet = analyse(tmp_path, 0.0025 * with_chords(beats, 24))
    assert quiet.tempo_bpm == pytest.approx(loud.tempo_bpm, abs=0.02)
    assert f_measure(quiet.beats_s, beats) == 1.0
    assert np.abs(np.array(quiet.energy) - np.array(loud.energy)).max() < 0.1


def test_energy_and_sections_tell_the_quiet_half_from_the_loud_one(tmp_path: Path) -> None:
    beats = even_beats(120, 40)
    sound = with_chords(beats, 40)
    sound[: round(20.2 * RATE)] *= 0.15
    song = analyse(tmp_path, sound)
    assert [section.label for section in song.sections] == ["quiet", "loud"]
    assert song.sections[1].start_s == pytest.approx(20.2, abs=0.1)
    assert min(abs(song.sections[1].start_s - beat) for beat in song.downbeats_s) < 1e-9
    curve = np.array(song.energy)
    half = round(20.2 / song.hop_s)
    assert curve[: half - 10].mean() < 0.6 * curve[half + 10 :].mean()


def test_the_record_is_whole_in_range_and_in_order(tmp_path: Path) -> None:
    beats = ramp_beats(100, 140, 30)
    song = analyse(tmp_path, with_chords(beats, 30))
    assert all(second > first for first, second in pairwise(song.beats_s))
    assert song.beats_s[0] >= 0.0
    assert song.beats_s[-1] <= song.duration_s
    assert set(song.downbeats_s) <= set(song.beats_s)
    for curve in (song.energy, song.onset_strength):
        assert len(curve) == pytest.approx(song.duration_s / song.hop_s, abs=1.5)
        assert min(curve) >= 0.0
        assert max(curve) <= 1.0
    assert song.sections[0].start_s == 0.0
    assert song.sections[-1].end_s == song.duration_s
    assert all(one.end_s == other.start_s for one, other in pairwise(song.sections))


def test_the_same_song_gives_the_same_record(tmp_path: Path) -> None:
    sound = with_chords(even_beats(133, 12), 12)
    assert analyse(tmp_path, sound) == analyse(tmp_path, sound)


def test_the_curves_do_not_depend_on_how_the_samples_arrive() -> None:
    sound = with_chords(even_beats(120, 9), 9).astype(np.float32)
    whole, parts = song_signals([sound]), song_signals([sound[:7], sound[7:50001], sound[50001:]])
    assert whole.duration_s == parts.duration_s == 9.0
    for name in ("onsets", "rms", "timbre", "chroma"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-5)


def test_ten_minutes_of_song_need_a_fraction_of_their_samples_memory() -> None:
    minute = np.random.default_rng(6).standard_normal(60 * RATE).astype(np.float32)
    tracemalloc.start()
    song_signals(minute[first : first + 5 * RATE] for _ in range(10) for first in range(0, len(minute), 5 * RATE))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 0.6 * 10 * minute.nbytes


def test_another_tracker_can_take_the_place_of_the_built_in_one(tmp_path: Path) -> None:
    @dataclass
    class EverySecond:
        seen: Path | None = None

        def track(self, path: Path, signals: SongSignals) -> TrackedBeats:
            self.seen = path
            return TrackedBeats(
                beats_s=np.arange(0.0, signals.duration_s, 1.0),
                downbeats_s=np.array([1.0, 5.0]),
                tempo_bpm=60.0,
                tempo_curve=[TempoPoint(0.0, 60.0)],
                source="local",
                confidence=0.5,
                explanation="One beat a second.",
            )

    tracker = EverySecond()
    file = write_wav(tmp_path / "song.wav", with_chords(even_beats(120, 10), 10))
    song = analyze_song(file, tracker)
    assert tracker.seen == file
    assert song.beats_s == list(range(10))
    assert song.downbeats_s == [1.0, 5.0]
    assert replace(song, explanation="") != replace(analyze_song(file), explanation="")


@pytest.mark.parametrize("name", ["-y.wav", 'it\'s "50%" of file:x.wav', "söng ♫.wav"])
def test_awkward_file_names_are_only_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / name, drums(even_beats(120, 4), 4))
    monkeypatch.chdir(tmp_path)
    assert analyze_song(name).duration_s == pytest.approx(4.0, abs=0.01)


def test_a_song_that_breaks_off_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "whole.wav", drums(even_beats(120, 10), 10))
    data = whole.read_bytes()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(data[: len(data) * 6 // 10])
    assert analyze_song(cut).duration_s == pytest.approx(6.0, abs=0.1)


def test_what_is_no_song_is_refused_in_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp3").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("just words " * 100)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nshort.wav\n")
    write_wav(tmp_path / "short.wav", drums(even_beats(120, 1), 1))
    _write_silent_film(tmp_path / "film.mp4")
    (tmp_path / "folder.ogg").mkdir()
    reasons = {
        "missing.ogg": "no file",
        "folder.ogg": "no file",
        "empty.mp3": "empty",
        "text.mp3": "can be read",
        "list.m3u8": "can be read",
        "short.wav": "only 1.0 s",
        "film.mp4": "no sound",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError, match=reason) as caught:
            analyze_song(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_samples_that_are_no_numbers_are_taken_as_silence(tmp_path: Path) -> None:
    beats = even_beats(120, 8)
    sound = drums(beats, 8).astype("<f4")
    sound[1000:1100] = np.nan
    sound[50000] = np.inf
    assert f_measure(analyze_song(_write_float_wav(tmp_path / "odd.wav", sound)).beats_s, beats) == 1.0


def _write_silent_film(path: Path) -> None:
    import av

    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(10):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            film.mux(stream.encode(picture))
        film.mux(stream.encode(None))


def _write_float_wav(path: Path, samples: NDArray[np.float32]) -> Path:
    """`wave` writes whole numbers only; the format code in its header is made 3, IEEE float."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(4)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    data = bytearray(path.read_bytes())
    data[20:22] = (3).to_bytes(2, "little")
    path.write_bytes(bytes(data))
    return path
