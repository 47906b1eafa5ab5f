"""Selection, checked on footage whose good and bad parts are known because they are made here."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.media.beat_analysis import BeatAnalysis, Section
from montage_assets.media.clip import ClipSignals
from montage_assets.media.edit_list import Shot
from montage_assets.media.errors import MediaError
from montage_assets.media.pacing import CutPlan, Slot, plan_cuts
from montage_assets.media.selection import (
    WEIGHTS,
    longest_scene_s,
    select_shots,
    usable_footage_s,
    what_gave_way,
)

FPS = Fraction(30)


def a_clip(
    name: str = "a.mp4",
    duration_s: float = 10.0,
    *,
    fps: float = 30.0,
    scenes_s: Sequence[float] = (0.0,),
    motion: float = 3.0,
    sharpness: float = 2.5,
    times_s: NDArray[np.float64] | None = None,
    look: int | None = None,
) -> ClipSignals:
    """An ordinary clip: noisy measurements around the given ones; `look` makes two clips look alike."""
    times = np.arange(round(duration_s * fps)) / fps if times_s is None else times_s
    count = len(times)
    rng = np.random.default_rng([len(name), *name.encode()])
    pictures = np.random.default_rng(look) if look is not None else rng
    starts = [int(np.searchsorted(times, s - 1e-9)) for s in scenes_s]
    signature_frames = np.arange(0, count, 15)
    scene_of = np.searchsorted(starts, signature_frames, "right") - 1
    signatures = np.abs(pictures.standard_normal((len(starts), 48)))[scene_of] + 0.05 * rng.random(
        (len(signature_frames), 48)
    )
    signatures /= np.linalg.norm(signatures, axis=1, keepdims=True)

    def around(value: float, spread: float) -> NDArray[np.float32]:
        return (value + spread * rng.standard_normal(count)).astype(np.float32)

    moved = np.abs(around(motion, motion * 0.1))
    moved[:1] = 0
    return ClipSignals(
        clip=name,
        times_s=times,
        scene_starts=starts,
        sharpness=around(sharpness, 0.03),
        motion=moved,
        brightness=around(115, 3),
        contrast=around(50, 2),
        clipped=np.zeros(count, np.float32),
        signature_frames=signature_frames,
        signatures=signatures.astype(np.float32),
    )


def spoiled(clip: ClipSignals, start_s: float, end_s: float, **values: float) -> ClipSignals:
    """The clip with measurements replaced from `start_s` to `end_s`."""
    inside = (clip.times_s >= start_s) & (clip.times_s < end_s)
    changed: dict[str, Any] = {name: np.where(inside, value, getattr(clip, name)) for name, value in values.items()}
    return replace(clip, **changed)


def a_plan(lengths_s: Sequence[float], fps: Fraction = FPS, energy: Sequence[float] | float = 0.5) -> CutPlan:
    energies = [energy] * len(lengths_s) if isinstance(energy, float) else list(energy)
    frames = [round(length * fps) for length in lengths_s]
    firsts = [0, *itertools.accumulate(frames)]
    slots = [
        Slot(index, firsts[index], count, float(firsts[index] / fps), energies[index])
        for index, count in enumerate(frames)
    ]
    return CutPlan(fps, firsts[-1], 0.0, float(firsts[-1] / fps), 120.0, [], [], slots, [])


def spans(shots: Sequence[Shot], fps: Fraction = FPS) -> list[tuple[str, float, float]]:
    return [(shot.clip, shot.source_start_s, shot.source_start_s + float(shot.frames / fps)) for shot in shots]


def overlapping(shots: Sequence[Shot], fps: Fraction = FPS) -> int:
    pairs = itertools.combinations(spans(shots, fps), 2)
    return sum(a[0] == b[0] and a[1] < b[2] - 1e-6 and b[1] < a[2] - 1e-6 for a, b in pairs)


def assert_fills(shots: Sequence[Shot], plan: CutPlan, clips: Sequence[ClipSignals]) -> None:
    """Every slot has a shot that its clip has frames for."""
    by_name = {clip.clip: clip for clip in clips}
    assert len(shots) == len(plan.slots)
    for shot, slot in zip(shots, plan.slots, strict=True):
        clip = by_name[shot.clip]
        assert (shot.id, shot.first_frame, shot.frames, shot.beat_s) == (
            *(slot.index, slot.first_frame, slot.frames, slot.beat_s),
        )
        assert shot.source_start_s == clip.times_s[shot.source_frame]
        usual = float(np.median(np.diff(clip.times_s)))
        assert shot.source_start_s + float(shot.frames / plan.fps) <= clip.times_s[-1] + usual + 1e-6
        assert 0 <= shot.score <= 1
        assert all(0 <= value <= 1 for value in shot.reasons.values())
        assert shot.reasons.keys() >= WEIGHTS.keys()


def some_clips(count: int = 8, duration_s: float = 12.0) -> list[ClipSignals]:
    return [
        a_clip(f"clip {number}.mp4", duration_s, scenes_s=(0.0, 5.2), motion=1.0 + number) for number in range(count)
    ]


def test_every_slot_gets_footage_that_exists_and_lies_within_one_scene() -> None:
    for fps in (Fraction(24000, 1001), Fraction(30), Fraction(60)):
        for source_fps in (12.5, 23.976, 60.0):
            clips = [a_clip(f"{n}.mp4", 9.0, fps=source_fps, scenes_s=(0.0, 3.3)) for n in range(5)]
            plan = a_plan([2.0, 0.5, 1.1, 1.5, 0.4] * 2, fps)
            shots = select_shots(plan, clips, seed=1)
            assert_fills(shots, plan, clips)
            margin = max(0.15, 2 / source_fps)
            for _, start, end in spans(shots, fps):
                first_scene = margin - 1e-6 <= start and end <= 3.3 + 1 / source_fps - margin + 1e-6
                second_scene = 3.3 + margin - 1e-6 <= start and end <= 9.0 + 1 / source_fps - margin + 1e-6
                assert first_scene or second_scene
            assert not any("margin" in shot.reasons for shot in shots)


def test_the_same_seed_gives_the_same_edit_and_another_seed_another() -> None:
    plan, clips = a_plan([1.0] * 12), some_clips()
    assert select_shots(plan, clips, 3) == select_shots(plan, some_clips(), 3)
    assert select_shots(plan, clips, 3) != select_shots(plan, clips, 4)
    assert select_shots(plan, clips, -5) == select_shots(plan, clips, -5)


def test_the_order_in_which_clips_are_given_does_not_matter() -> None:
    plan, clips = a_plan([1.0, 0.5, 2.0] * 5), some_clips()
    expected = select_shots(plan, clips, 3)
    assert select_shots(plan, clips[::-1], 3) == expected
    assert select_shots(plan, clips[3:] + clips[:3], 3) == expected


def test_nothing_is_shown_twice_while_there_is_footage_that_was_not_shown() -> None:
    clips = [a_clip(f"{n}.mp4", 6.5) for n in range(6)]
    for length in (0.5, 1.0, 1.5, 2.0, 3.0):
        per_clip = int((6.5 - 0.3) / length)
        plan = a_plan([length] * (per_clip * 6))
        shots = select_shots(plan, clips, seed=2)
        assert overlapping(shots) == 0
        assert not any("reused" in shot.reasons for shot in shots)


def test_short_slots_leave_whole_what_the_long_slots_need() -> None:
    clips = [a_clip("long.mp4", 8.4), *(a_clip(f"short {n}.mp4", 1.5) for n in range(8))]
    plan = a_plan([1.0] * 8 + [4.0, 4.0])
    shots = select_shots(plan, clips, seed=0)
    assert overlapping(shots) == 0
    assert [shot.clip for shot in shots[8:]] == ["long.mp4"] * 2


def test_mixed_lengths_that_just_fit_are_packed_without_reuse() -> None:
    clips = [a_clip(f"{n}.mp4", 11.4) for n in range(4)]
    plan = a_plan([1.0, 4.0, 2.0, 1.0, 2.0] * 4)
    assert [overlapping(select_shots(plan, clips, seed)) for seed in range(5)] == [0] * 5


def test_short_footage_is_reused_evenly_and_says_so() -> None:
    clips = [a_clip(f"{n}.mp4", 2.4) for n in range(4)]
    plan = a_plan([2.0] * 12)
    shots = select_shots(plan, clips, seed=0)
    assert_fills(shots, plan, clips)
    assert not any("reused" in shot.reasons for shot in shots[:4])
    assert all(shot.reasons["reused"] == 1.0 for shot in shots[4:])
    assert set(Counter(shot.clip for shot in shots).values()) == {3}
    for position, shot in enumerate(shots):
        assert shot.clip not in [near.clip for near in shots[max(0, position - 2) : position]]


def test_reuse_takes_what_overlaps_least() -> None:
    for seed in range(8):
        shots = select_shots(a_plan([2.0] * 5), [a_clip("a.mp4", 9.35)], seed)
        *before, (_, reused_from, _) = spans(shots)
        assert overlapping(shots[:4]) == 0

        def again(start: float, before: list[tuple[str, float, float]] = before) -> float:
            return sum(max(0.0, min(start + 2, end) - max(start, first)) for _, first, end in before)

        least = min(again(start) for start in np.arange(0.15, 7.2, 0.01))
        assert again(reused_from) == pytest.approx(least, abs=0.15)


def test_reuse_takes_what_was_shown_longest_ago() -> None:
    clip = a_clip("a.mp4", 5 * 2.35, scenes_s=[n * 2.35 for n in range(5)])
    for seed in range(5):
        scenes = [int(shot.source_start_s / 2.35) for shot in select_shots(a_plan([2.0] * 20), [clip], seed)]
        assert all(len(set(scenes[k : k + 4])) == 4 for k in range(17))


def test_the_same_clip_is_not_shown_twice_in_a_row() -> None:
    for count in (2, 3, 7):
        clips = [a_clip(f"{n}.mp4", 30.0, motion=1.0 + 4 * n, look=1) for n in range(count)]
        shots = select_shots(a_plan([1.0, 0.5] * 10, energy=1.0), clips, seed=0)
        assert all(a.clip != b.clip for a, b in itertools.pairwise(shots))


def test_a_clip_that_holds_half_of_the_footage_is_used_every_other_time() -> None:
    clips = [a_clip("big.mp4", 6.4), *(a_clip(f"{n}.mp4", 2.4) for n in range(3))]
    shots = select_shots(a_plan([1.0] * 12), clips, seed=0)
    assert overlapping(shots) == 0
    assert all(a.clip != b.clip for a, b in itertools.pairwise(shots))


def test_black_blown_out_frozen_and_flashing_frames_are_avoided() -> None:
    clips = [
        spoiled(a_clip("black.mp4"), 0, 7, brightness=16, contrast=1, clipped=1),
        spoiled(a_clip("white.mp4"), 3, 10, brightness=250, contrast=3, clipped=1),
        spoiled(a_clip("frozen.mp4"), 2, 8, motion=0.004),
        spoiled(a_clip("flash.mp4"), 5, 5.03, motion=90),
    ]
    good = {
        "black.mp4": [(7, 10)],
        "white.mp4": [(0, 3)],
        "frozen.mp4": [(0, 2), (8, 10)],
        "flash.mp4": [(0, 5), (5, 10)],
    }
    shots = select_shots(a_plan([1.2] * 12), clips, seed=0)
    assert len({shot.clip for shot in shots}) == 4
    for clip, start, end in spans(shots):
        assert any(a - 0.04 <= start and end <= b + 0.04 for a, b in good[clip]), (clip, start, end)
    assert usable_footage_s(clips) == 2 + 2 + 1 + 1 + 4 + 4


def test_a_tripod_shot_is_not_frozen_and_a_night_scene_is_not_black() -> None:
    still = a_clip("tripod.mp4", motion=0.15)
    night = spoiled(a_clip("night.mp4"), 0, 99, brightness=22, contrast=25)
    assert usable_footage_s([still, night]) == 18


def test_a_clip_with_every_frame_doubled_is_not_frozen() -> None:
    clip = a_clip("doubled.mp4")
    motion = clip.motion.copy()
    motion[1::2] = 0
    assert usable_footage_s([replace(clip, motion=motion)]) == 9


def test_a_film_of_nothing_but_unusable_footage_is_made_and_says_what_it_shows() -> None:
    clips = [spoiled(a_clip(f"{n}.mp4"), 0, 99, motion=0) for n in range(2)]
    shots = select_shots(a_plan([1.0] * 4), clips, seed=0)
    assert_fills(shots, a_plan([1.0] * 4), clips)
    assert all(shot.reasons["frozen"] == 1.0 for shot in shots)
    assert usable_footage_s(clips) == 20


def test_energetic_music_gets_motion_and_calm_music_gets_rest() -> None:
    clips = [a_clip(f"{n}.mp4", motion=0.4 * 1.6**n) for n in range(9)]
    number = {clip.clip: n for n, clip in enumerate(clips)}
    energies = [0.0] * 6 + [1.0] * 6
    shots = select_shots(a_plan([1.0] * 12, energy=energies), clips, seed=0)
    calm = np.mean([number[shot.clip] for shot in shots[:6]])
    lively = np.mean([number[shot.clip] for shot in shots[6:]])
    assert lively - calm > 3


def test_a_film_that_needs_most_of_the_footage_does_not_end_on_its_leavings() -> None:
    clips = [a_clip(f"{n}.mp4", 9.3, sharpness=2.0 + 0.15 * n, motion=0.5 * 1.4**n) for n in range(10)]
    shots = select_shots(a_plan([1.0] * 72, energy=1.0), clips, seed=0)
    for name, fall in (("sharpness", 0.12), ("motion", 0.25)):
        values = [shot.reasons[name] for shot in shots]
        assert np.mean(values[:36]) - np.mean(values[36:]) < fall
    assert np.mean([shot.score for shot in shots[-12:]]) > 0.7 * np.mean([shot.score for shot in shots[:12]])


def test_motion_compares_across_frame_rates() -> None:
    slow, fast = a_clip("30.mp4", motion=6.0), a_clip("60.mp4", fps=60, motion=3.0)
    shots = select_shots(a_plan([1.0] * 6, energy=0.5), [slow, fast], seed=0)
    terms = {shot.clip: shot.reasons["motion"] for shot in shots}
    assert terms["30.mp4"] == pytest.approx(terms["60.mp4"], abs=0.2)


def test_the_sharp_part_of_a_clip_is_preferred() -> None:
    clip = spoiled(a_clip("a.mp4", 20.0), 0, 13, sharpness=1.2)
    for shot in select_shots(a_plan([1.5] * 3), [clip, replace(clip, clip="b.mp4")], seed=0):
        assert shot.source_start_s > 12.9


def test_a_low_resolution_clip_is_not_shut_out_by_sharper_ones() -> None:
    clips = [a_clip("old.mp4", sharpness=1.6), *(a_clip(f"{n}.mp4", sharpness=3.0) for n in range(4))]
    shots = select_shots(a_plan([1.0] * 15), clips, seed=0)
    assert "old.mp4" in {shot.clip for shot in shots}


def test_pictures_that_look_alike_do_not_follow_each_other() -> None:
    twins = [a_clip(f"twin {n}.mp4", 12.0, look=5) for n in range(3)]
    others = [a_clip(f"other {n}.mp4", 12.0) for n in range(3)]
    shots = select_shots(a_plan([1.0] * 10), twins + others, seed=0)
    alike = sum("twin" in a.clip and "twin" in b.clip for a, b in itertools.pairwise(shots))
    assert alike == 0


def test_a_single_clip_makes_a_film_that_jumps_at_every_cut() -> None:
    clip = a_clip("only.mp4", 40.0, scenes_s=(0.0, 14.0, 25.0))
    plan = a_plan([1.0, 2.0] * 6)
    shots = select_shots(plan, [clip], seed=0)
    assert_fills(shots, plan, [clip])
    assert overlapping(shots) == 0
    for before, after in itertools.pairwise(spans(shots)):
        assert abs(after[1] - before[2]) >= 0.5


def test_the_best_part_of_a_scene_is_not_shown_on_without_a_visible_cut() -> None:
    for best_from in np.arange(8.0, 16.0):
        clip = spoiled(a_clip("only.mp4", 30.0), 0, best_from, sharpness=2.0)
        clip = spoiled(clip, best_from + 3.2, 99, sharpness=2.0)
        for (_, start, end), (_, later_start, later_end) in itertools.pairwise(
            spans(select_shots(a_plan([1.0] * 4), [clip], seed=0))
        ):
            assert max(later_start - end, start - later_end) >= 0.5 - 1e-6


def test_a_piece_that_must_be_reused_was_not_shown_just_before() -> None:
    shots = select_shots(a_plan([2.0] * 12), [a_clip("only.mp4", 6.4)], seed=0)
    for position in range(1, 12):
        assert overlapping(shots[position - 1 : position + 1]) == 0


def test_a_single_clip_of_a_second_makes_a_whole_film() -> None:
    clip = a_clip("only.mp4", 1.2)
    beats = [k / 2 for k in range(40)]
    song = BeatAnalysis(20, beats, beats[::4], 120, [], "grid", 1, "", 0.02, [], [], [Section(0, 20, 1, "loud")])
    longest = longest_scene_s([clip])
    assert longest == pytest.approx(0.9, abs=0.04)
    plan = plan_cuts(song, music_start_s=0, duration_s=20, fps=FPS, longest_scene_s=longest)
    shots = select_shots(plan, [clip], seed=0)
    assert_fills(shots, plan, [clip])
    assert {shot.frames for shot in shots} == {15}
    assert all("reused" in shot.reasons for shot in shots[2:])
    assert all(a.source_frame != b.source_frame for a, b in itertools.pairwise(shots))


def test_a_short_scene_gives_up_its_margin_and_says_so() -> None:
    clip = a_clip("a.mp4", 6.0, scenes_s=(0.0, 1.1, 2.2, 3.3, 4.4))
    shots = select_shots(a_plan([1.0] * 2), [clip], seed=0)
    assert_fills(shots, a_plan([1.0] * 2), [clip])
    starts = np.array([0.0, 1.1, 2.2, 3.3, 4.4, 6.0])
    for (_, start, end), shot in zip(spans(shots), shots, strict=True):
        scene = np.searchsorted(starts, start + 1e-6, "right") - 1
        assert end <= starts[scene + 1] + 1e-6
        relaxed = start < starts[scene] + 0.15 - 1e-6 or end > starts[scene + 1] - 0.15 + 1e-6
        assert ("margin" in shot.reasons) == relaxed


def test_a_slot_longer_than_every_scene_runs_over_a_cut_and_says_so() -> None:
    clips = [a_clip(f"{n}.mp4", 6.0, scenes_s=(0.0, 2.0, 4.0)) for n in range(3)]
    shots = select_shots(a_plan([1.0, 3.0, 1.0]), clips, seed=0)
    assert_fills(shots, a_plan([1.0, 3.0, 1.0]), clips)
    assert ["crosses_cut" in shot.reasons for shot in shots] == [False, True, False]


def test_a_slot_longer_than_every_clip_is_refused_in_one_line() -> None:
    with pytest.raises(MediaError, match=r"lasts 3\.00 s.*'longer\.mp4'.*2\.00 s") as refused:
        select_shots(a_plan([1.0, 3.0]), [a_clip("a.mp4", 1.5), a_clip("longer.mp4", 2.0)], seed=0)
    assert "\n" not in str(refused.value)


def test_what_gave_way_is_told_and_nothing_else() -> None:
    plenty = select_shots(a_plan([1.0] * 4), some_clips(), seed=0)
    assert what_gave_way(plenty) == []
    short = select_shots(a_plan([1.0] * 6), [a_clip("a.mp4", 2.4), a_clip("b.mp4", 2.4)], seed=0)
    assert ["2 of 6 shots show footage again" in told for told in what_gave_way(short)] == [True]
    frozen = select_shots(a_plan([1.0] * 2), [spoiled(a_clip("a.mp4"), 0, 99, motion=0)], seed=0)
    assert ["2 of 2 shots hold poor frames (frozen)" in told for told in what_gave_way(frozen)] == [True]
    scenes = a_clip("a.mp4", 6.0, scenes_s=(0.0, 2.0, 4.0))
    assert "run over a cut" in what_gave_way(select_shots(a_plan([3.0]), [scenes], seed=0))[0]


def test_another_take_of_the_same_thing_is_shown_last() -> None:
    takes = [a_clip(f"take {n}.mp4", look=9) for n in range(2)]
    others = [a_clip(f"other {n}.mp4") for n in range(6)]
    for seed in range(5):
        shots = select_shots(a_plan([1.0] * 7), takes + others, seed)
        assert sum("take" in shot.clip for shot in shots) == 1


def test_no_clip_at_all_is_refused() -> None:
    empty = a_clip("empty.mp4", times_s=np.zeros(0))
    for clips in ([], [empty]):
        assert usable_footage_s(clips) == 0
        assert longest_scene_s(clips) == 0
        with pytest.raises(MediaError, match="add clips"):
            select_shots(a_plan([1.0]), clips, seed=0)


def test_clips_shorter_than_the_slot_are_passed_over() -> None:
    clips = [
        a_clip("long.mp4", 9.0),
        *(a_clip(f"{n}.mp4", 1.0) for n in range(5)),
        a_clip("frame.mp4", 0.034),
    ]
    shots = select_shots(a_plan([2.5, 0.5, 2.5]), clips, seed=0)
    assert [shots[0].clip, shots[2].clip] == ["long.mp4", "long.mp4"]
    assert shots[1].clip != "long.mp4"


def test_variable_frame_rate_is_measured_by_its_times() -> None:
    rng = np.random.default_rng(3)
    uneven = [
        a_clip(f"{n}.mp4", times_s=np.cumsum(np.append(0.0, rng.choice([1 / 60, 1 / 30, 1 / 15], 400))))
        for n in range(3)
    ]
    plan = a_plan([1.3, 0.5, 2.0] * 4, Fraction(24000, 1001))
    shots = select_shots(plan, uneven, seed=0)
    assert_fills(shots, plan, uneven)
    assert overlapping(shots, plan.fps) == 0


def test_a_hole_in_a_recording_is_not_shown() -> None:
    before, after = np.arange(0, 4, 1 / 30), np.arange(9, 13, 1 / 30)
    clip = a_clip("phone.mp4", times_s=np.concatenate([before, after]))
    shots = select_shots(a_plan([1.0] * 6), [clip], seed=0)
    assert overlapping(shots) == 0
    assert all(end <= 4 or start >= 9 for _, start, end in spans(shots))


def test_usable_footage_counts_what_shots_can_be_cut_from() -> None:
    assert usable_footage_s([a_clip("a.mp4", 10.0)]) == 9
    assert usable_footage_s([a_clip("a.mp4", 1.2)]) == pytest.approx(0.9, abs=0.04)
    assert usable_footage_s([a_clip("a.mp4", 10.0, scenes_s=(0, 4))]) == 3 + 5


def test_one_long_clip_among_short_ones_does_not_set_the_pace() -> None:
    clips = [a_clip("long.mp4", 12.3), *(a_clip(f"{n}.mp4", 2.3) for n in range(40))]
    assert longest_scene_s(clips) == pytest.approx(12.0, abs=0.04)
    assert longest_scene_s(clips, film_s=60.0) == pytest.approx(2.0, abs=0.04)
    assert longest_scene_s(clips, film_s=10.0) == pytest.approx(12.0, abs=0.04)


def test_clips_without_signatures_or_with_one_frame_can_be_used() -> None:
    bare = replace(a_clip("bare.mp4"), signature_frames=np.zeros(0, np.int64), signatures=np.zeros((0, 48), np.float32))
    plan = a_plan([1.0] * 4)
    for clips in ([bare], [bare, a_clip("b.mp4"), a_clip("frame.mp4", 0.034)]):
        assert_fills(select_shots(plan, clips, seed=0), plan, clips)


def test_a_whole_library_of_clips_is_edited() -> None:
    clips = [a_clip(f"{n}.mp4", 7.2, fps=60, scenes_s=(0.0, 3.1)) for n in range(500)]
    plan = a_plan([0.5] * 400 + [2.0] * 200)
    shots = select_shots(plan, clips, seed=0)
    assert_fills(shots, plan, clips)
    assert overlapping(shots) == 0
    assert all(a.clip != b.clip for a, b in itertools.pairwise(shots))
    assert len({shot.clip for shot in shots}) > 250
