"""Pacing, checked on songs whose beats are known because they are made here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from montage_assets.media.beat_analysis import BeatAnalysis, BeatSource, Section
from montage_assets.media.errors import MediaError
from montage_assets.media.pacing import PACES, CutPlan, choose_duration, pace_named, plan_cuts

FILM_RATES = [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)]
VERSE_AND_CHORUS = ((0.0, 32.0, 0.2), (32.0, 64.0, 1.0), (64.0, 96.0, 0.2))


def a_song(
    bpm: float = 120,
    duration_s: float = 96,
    parts: Sequence[tuple[float, float, float]] = VERSE_AND_CHORUS,
    bar: int = 4,
    first_beat_s: float = 0.0,
    source: BeatSource = "grid",
) -> BeatAnalysis:
    """A song at an even tempo; parts are (start, end, energy). `bar` 0: without downbeats."""
    beats = [first_beat_s + k * 60 / bpm for k in range(math.ceil((duration_s - first_beat_s) * bpm / 60))]
    return song_with_beats(beats, beats[::bar] if bar else [], duration_s, parts, bpm, source)


def song_with_beats(
    beats: list[float],
    downbeats: list[float],
    duration_s: float,
    parts: Sequence[tuple[float, float, float]] = (),
    bpm: float = 120,
    source: BeatSource = "local",
) -> BeatAnalysis:
    hop = 0.02
    times = np.arange(0, duration_s, hop)
    energy = np.zeros(len(times))
    for start, end, level in parts:
        energy[(times >= start) & (times < end)] = level
    sections = [Section(start, end, level, "part") for start, end, level in parts]
    onsets = [0.0] * len(times)
    return BeatAnalysis(
        duration_s, beats, downbeats, bpm, [], source, 1.0, "made", hop, energy.tolist(), onsets, sections
    )


def planned(song: BeatAnalysis, fps: Fraction = Fraction(30), start_s: float = 0.0, **options: object) -> CutPlan:
    duration = options.pop("duration_s", song.duration_s - start_s)
    return plan_cuts(song, music_start_s=start_s, duration_s=duration, fps=fps, **options)  # type: ignore[arg-type]


def lengths_s(plan: CutPlan) -> list[float]:
    return [float(slot.frames / plan.fps) for slot in plan.slots]


def assert_whole_film(plan: CutPlan, duration_s: float) -> None:
    assert plan.frames == math.floor(Fraction(duration_s) * plan.fps + Fraction(1, 2))
    assert plan.slots[0].first_frame == 0
    assert plan.slots[0].beat_s == 0
    for before, after in itertools.pairwise(plan.slots):
        assert after.first_frame == before.first_frame + before.frames
    assert plan.slots[-1].first_frame + plan.slots[-1].frames == plan.frames
    assert [slot.index for slot in plan.slots] == list(range(len(plan.slots)))


def furthest_from_a_beat_frames(plan: CutPlan, song: BeatAnalysis) -> float:
    beats = np.array(song.beats_s) - plan.music_start_s
    cuts = [float(slot.first_frame / plan.fps) for slot in plan.slots[1:]]
    return max((np.abs(beats - cut).min() for cut in cuts), default=0.0) * float(plan.fps)


@pytest.mark.parametrize("fps", FILM_RATES)
@pytest.mark.parametrize("bpm", [47.3, 90, 120, 133.7, 180, 400])
@pytest.mark.parametrize("pace", ["calm", "auto", "fast"])
def test_every_cut_is_on_a_beat_and_every_shot_within_its_limits(fps: Fraction, bpm: float, pace: str) -> None:
    for start, duration, bar in ((0.0, 96.0, 4), (7.77, 61.3, 3), (31.9, 33.21, 0)):
        song = a_song(bpm, bar=bar, first_beat_s=0.123)
        plan = planned(song, fps, start, duration_s=duration, pace=pace_named(pace))
        assert_whole_film(plan, duration)
        assert furthest_from_a_beat_frames(plan, song) <= 0.5 + 1e-6
        assert len(plan.slots) > 3
        assert min(lengths_s(plan)) >= 0.35
        assert max(lengths_s(plan)) <= PACES[pace_named(pace).name].max_shot_s
        for slot in plan.slots[1:]:
            assert min(abs(beat - slot.beat_s) for beat in plan.beats_s) == 0
            assert abs(slot.beat_s * float(fps) - slot.first_frame) <= 0.5 + 1e-6


@pytest.mark.parametrize("fps", FILM_RATES)
def test_twenty_minutes_do_not_drift(fps: Fraction) -> None:
    song = a_song(127.93, 1200, parts=[(0, 1200, 1.0)], first_beat_s=0.31)
    plan = planned(song, fps)
    assert_whole_film(plan, 1200)
    last = plan.slots[-1]
    exact = Fraction(last.beat_s) * fps
    assert abs(last.first_frame - exact) <= Fraction(1, 2)
    assert furthest_from_a_beat_frames(plan, song) <= 0.5 + 1e-6


def test_quiet_parts_hold_and_loud_parts_cut_on_every_beat_or_two() -> None:
    plan = planned(a_song())
    in_part = {
        part: [slot.frames / 15 for slot in plan.slots if part[0] + 0.1 <= slot.first_frame / 30 <= part[1] - 4.1]
        for part in ((0, 32), (32, 64), (64, 96))
    }
    assert set(in_part[0, 32]) == {8}
    assert set(in_part[32, 64][:15]) <= {1, 2}
    assert set(in_part[64, 96]) == {8}


def test_a_tempo_heard_at_double_speed_gives_the_same_cuts() -> None:
    heard, doubled = planned(a_song(90)), planned(a_song(180, bar=8))
    assert [slot.first_frame for slot in heard.slots] == [slot.first_frame for slot in doubled.slots]


def test_section_starts_are_always_cut() -> None:
    parts = ((0.0, 10.0, 0.2), (10.0, 11.5, 0.3), (11.5, 40.5, 0.25), (40.5, 96.0, 0.2))
    for bpm, bar in ((120, 4), (120, 0), (120, 3)):
        plan = planned(a_song(bpm, parts=parts, bar=bar))
        cuts = {slot.first_frame / 30 for slot in plan.slots}
        assert {10.0, 11.5, 40.5} <= cuts


def test_a_section_border_between_beats_means_the_bar_line_near_it() -> None:
    plan = planned(a_song(parts=((0.0, 32.3, 0.2), (32.3, 96.0, 0.25))))
    assert 32.0 in {slot.first_frame / 30 for slot in plan.slots}


def test_cuts_prefer_bar_lines() -> None:
    song = a_song(parts=[(0, 96, 0.6)], first_beat_s=0.4)
    plan = planned(song)
    on_bar = [min(abs(slot.beat_s - t) for t in plan.downbeats_s) < 1e-6 for slot in plan.slots[1:]]
    assert all(on_bar)


def test_a_film_that_starts_in_mid_bar_finds_the_bar_line_at_once() -> None:
    song = a_song(parts=[(0, 96, 0.6)])
    plan = planned(song, start_s=0.75)
    assert plan.slots[1].beat_s in plan.downbeats_s
    assert all(slot.beat_s in plan.downbeats_s for slot in plan.slots[1:])


@pytest.mark.parametrize("level", np.linspace(0.15, 0.95, 33))
def test_pace_does_not_flicker_when_energy_hovers_at_a_border(level: float) -> None:
    song = a_song(duration_s=64, parts=((0, 16, 0.1), (16, 32, 1.0), (32, 48, level), (48, 64, 0.1)))
    energy = np.array(song.energy)
    hovering = np.flatnonzero((np.arange(len(energy)) * 0.02 >= 32) & (np.arange(len(energy)) * 0.02 < 48))
    energy[hovering] += 0.1 * (-1.0) ** (hovering // 100)
    plan = planned(BeatAnalysis(**{**vars(song), "energy": energy.tolist()}))
    assert len({slot.frames for slot in plan.slots if 32 <= slot.first_frame / 30 < 48}) == 1


def test_without_bar_lines_cuts_fall_on_the_heavy_beats() -> None:
    song = a_song(parts=(), bar=0)
    onsets = np.zeros(4800)
    onsets[np.arange(50, 4800, 100)] = 1.0  # every fourth beat, from 1 s on
    onsets[np.arange(0, 4800, 25)] += 0.3
    heavy = planned(BeatAnalysis(**{**vars(song), "onset_strength": onsets.tolist()}))
    cuts = [slot.beat_s for slot in heavy.slots[2:]]
    assert len(cuts) > 10
    assert all(cut % 2 == 1 for cut in cuts)


def test_a_louder_part_is_led_into_by_quicker_cuts() -> None:
    plan = planned(a_song())
    lead = [slot.frames / 15 for slot in plan.slots if 30 <= slot.first_frame / 30 < 32]
    assert lead == [2, 2]


def test_a_quick_pace_kept_for_long_takes_a_breath_at_every_phrase() -> None:
    plan = planned(a_song(parts=((0, 8, 0.1), (8, 88, 1.0), (88, 96, 0.1))))
    held = [slot.first_frame / 30 for slot in plan.slots if 8 <= slot.first_frame / 30 < 84 and slot.frames > 30]
    assert held == [24.0, 40.0, 56.0, 72.0]


def test_a_song_without_beat_is_cut_at_a_calm_even_pace() -> None:
    song = a_song(60, source="pace", bar=0)
    plan = planned(song)
    assert set(lengths_s(plan)) == {4.0}
    assert set(lengths_s(planned(song, pace=PACES["fast"]))) == {2.0}


def test_a_song_in_which_nothing_at_all_was_found_still_gets_cuts() -> None:
    plan = planned(song_with_beats([], [], 60.0, bpm=0, source="pace"))
    assert_whole_film(plan, 60.0)
    assert max(lengths_s(plan)) <= 6
    assert plan.notes


def test_a_long_intro_without_beats_is_no_hole_and_keeps_the_beat_of_what_follows() -> None:
    beats = [20 + k / 2 for k in range(40)]
    song = song_with_beats(beats, beats[::4], 60.0)
    plan = planned(song, start_s=0.3, duration_s=59.0)
    assert max(lengths_s(plan)) <= 6
    for slot in plan.slots[1:]:
        assert (slot.beat_s + 0.3) * 2 == pytest.approx(round((slot.beat_s + 0.3) * 2))
        assert slot.beat_s in plan.beats_s
    assert "without a beat" in plan.notes[0]


def test_a_break_without_beats_is_carried_through() -> None:
    beats = [k / 2 for k in range(40)] + [40 + k / 2 for k in range(40)]
    plan = planned(song_with_beats(beats, [], 60.0))
    assert max(lengths_s(plan)) <= 6


@pytest.mark.parametrize("duration", [0.04, 0.1, 0.3, 0.5, 0.72, 1.0, 1.3])
def test_a_film_shorter_than_a_few_beats_is_whole(duration: float) -> None:
    for start in (0.0, 0.33, 5.01):
        plan = planned(a_song(), Fraction(25), start, duration_s=duration)
        assert_whole_film(plan, duration)
        if len(plan.slots) > 1:
            assert min(lengths_s(plan)) >= 0.35


def test_a_film_without_a_frame_is_refused() -> None:
    with pytest.raises(MediaError, match="no frame"):
        planned(a_song(), duration_s=0.01)


@pytest.mark.parametrize("stub_frames", range(1, 12))
def test_the_film_never_ends_with_a_stub(stub_frames: int) -> None:
    fps = Fraction(24000, 1001)
    song = a_song(parts=[(0, 96, 1.0)])
    duration = float(10 + stub_frames / fps)
    plan = planned(song, fps, duration_s=duration)
    assert_whole_film(plan, duration)
    assert lengths_s(plan)[-1] >= 0.35


def test_a_huge_tempo_and_beats_on_one_frame_do_no_harm() -> None:
    plan = planned(a_song(3000, 60.0, parts=[(0, 60, 1.0)]), Fraction(24))
    assert_whole_film(plan, 60.0)
    assert min(lengths_s(plan)) >= 0.35


def test_a_tempo_that_changes_is_followed() -> None:
    gaps = np.linspace(0.8, 0.35, 150)
    beats = np.cumsum(gaps).tolist()
    song = song_with_beats(beats, beats[::4], float(beats[-1]) + 0.2)
    plan = planned(song)
    assert furthest_from_a_beat_frames(plan, song) <= 0.5 + 1e-6
    assert max(lengths_s(plan)) <= 6


def test_beats_out_of_order_and_twice_are_put_right() -> None:
    song = a_song()
    muddled = BeatAnalysis(**{**vars(song), "beats_s": [*reversed(song.beats_s), *song.beats_s]})
    assert planned(muddled).slots == planned(song).slots


@pytest.mark.parametrize("beats", [1, 3, 4, 5])
def test_beats_per_shot_are_kept_exactly(beats: int) -> None:
    song = a_song(parts=())
    plan = planned(song, pace=pace_named("auto", beats_per_shot=beats))
    assert {slot.frames / 15 for slot in plan.slots[:-1]} == {beats}


def test_explicit_limits_are_kept() -> None:
    plan = planned(a_song(), pace=pace_named("auto", min_shot_s=1.4, max_shot_s=2.1))
    assert min(lengths_s(plan)) >= 1.4
    assert max(lengths_s(plan)) <= 2.1


def test_contradictory_and_unknown_paces_are_refused() -> None:
    for wrong in ({"min_shot_s": 3.0, "max_shot_s": 2.0}, {"min_shot_s": 0.0}, {"beats_per_shot": 0}):
        with pytest.raises(MediaError):
            pace_named("auto", **wrong)
    with pytest.raises(MediaError, match="calm"):
        pace_named("slow")


@pytest.mark.parametrize("longest", [0.2, 0.25, 0.4, 0.62, 0.9, 1.1, 2.5])
def test_no_shot_is_longer_than_the_longest_scene(longest: float) -> None:
    for bpm in (60, 120):
        plan = planned(a_song(bpm), Fraction(25), longest_scene_s=longest)
        assert_whole_film(plan, 96.0)
        assert max(lengths_s(plan)) <= longest + 1e-9
        on_beat = sum(abs(slot.beat_s * bpm / 60 - round(slot.beat_s * bpm / 60)) < 1e-6 for slot in plan.slots)
        if longest > 60 / bpm:
            assert on_beat == len(plan.slots)
        else:
            assert on_beat >= math.floor(96 * bpm / 60) - 1
            assert any("between beats" in note for note in plan.notes)


def test_footage_that_lasts_no_shot_is_refused() -> None:
    with pytest.raises(MediaError, match="longer clips"):
        planned(a_song(), longest_scene_s=0.03)


def test_film_beats_are_the_songs_beats_moved_to_the_films_start() -> None:
    plan = planned(a_song(first_beat_s=0.25), start_s=10.0, duration_s=20.0)
    assert plan.beats_s == pytest.approx([0.25 + k / 2 for k in range(40)])
    assert plan.downbeats_s == pytest.approx([0.25 + k * 2 for k in range(10)])


def test_energy_of_slots_tells_quiet_from_loud() -> None:
    plan = planned(a_song())
    assert max(slot.energy for slot in plan.slots if slot.first_frame < 28 * 30) < 0.2
    assert min(slot.energy for slot in plan.slots if 32 * 30 <= slot.first_frame < 61 * 30) > 0.8


def test_the_asked_duration_wins_as_far_as_the_song_goes() -> None:
    song = a_song()
    assert choose_duration(96.0, 6.0, 10.0, 30.0, song)[0] == 30.0
    duration, reason = choose_duration(96.0, 6.0, 10.0, 120.0, song)
    assert duration == 90.0
    assert "90.0 s left" in reason


def test_without_a_wish_the_film_takes_the_rest_of_the_song() -> None:
    assert choose_duration(96.0, 6.0, 500.0, None, a_song())[0] == 90.0


def test_short_footage_ends_the_film_on_a_bar_line() -> None:
    duration, reason = choose_duration(96.0, 0.5, 41.6, None, a_song())
    assert duration == pytest.approx(31.5)
    assert "bar line" in reason
    assert "41.6 s of good footage" in reason


def test_short_footage_without_bar_lines_ends_on_a_beat_and_tiny_footage_as_it_is() -> None:
    assert choose_duration(96.0, 0.2, 41.75, None, a_song(bar=0))[0] == pytest.approx(33.3)
    assert choose_duration(96.0, 0.1, 0.3, None, a_song())[0] == pytest.approx(0.24)


@pytest.mark.parametrize(
    ("start", "usable", "asked"),
    [(96.0, 10.0, None), (-1.0, 10.0, None), (0.0, 0.0, None), (0.0, 9.0, 0.0), (0.0, 9.0, math.inf)],
)
def test_impossible_durations_are_refused(start: float, usable: float, asked: float | None) -> None:
    with pytest.raises(MediaError):
        choose_duration(96.0, start, usable, asked, a_song())
