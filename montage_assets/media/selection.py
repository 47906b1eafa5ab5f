"""Selection: which window of which clip fills each slot of the film.

Belongs here: scoring windows against the music and their neighbours, and the rules of an edit (nothing twice
while there is something new, not the same clip twice in a row). Does not belong here: the slots (`pacing`)
or what is measured of single windows (`shot_candidates`).

Slots are filled in film order, each with its best window. Two guards look ahead: one keeps long stretches of
footage whole for the slots that need them, one uses a clip that holds most of the footage often enough.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from montage_assets.media.clip import ClipSignals
from montage_assets.media.edit_list import Shot
from montage_assets.media.errors import MediaError
from montage_assets.media.shot_candidates import (
    SAME_MOMENT_S,
    UNUSABLE_KINDS,
    Footage,
    Windows,
    good_stretches_s,
    in_points,
    lay_out,
    whole_seconds,
    windows,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from montage_assets.media.pacing import CutPlan, Slot

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

WEIGHTS = {
    "motion": 0.24,
    "sharpness": 0.20,
    "novelty": 0.18,
    "variety": 0.12,
    "exposure": 0.10,
    "contrast": 0.08,
    "steadiness": 0.08,
}
"""What a shot's score is made of; they add up to 1."""

LOOKS = ("sharpness", "exposure", "contrast", "steadiness")
"""The terms that are the picture's own, whatever the music and the other shots."""

UNUSABLE_COST = 1000.0
REUSE_COST = 100.0
OVERLAP_COST = 20.0
FLASH_COST = 30.0
SAME_CLIP_COST = 10.0
MARGIN_COST = 8.0
FRAGMENT_COST = 4.0
RECENT_REUSE_COST = 4.0
CONTINUED_COST = 3.0
LARGEST_CLIP_GAIN = 2.0
"""Each outweighs what stands below it, and the scores (0..1) last: a rule is broken only for a higher one."""

REMEMBERED_SHOTS = (1.0, 0.8, 0.6, 0.4)
"""How much a new shot should differ from the one before it, the one before that, and so on."""

WHIM = 0.06
"""How much score a seed may give away for variety between edits."""

EVER_SHOWN = 0.3
"""How much a new shot should differ from any shot before: another take of one thing is no news either."""

LENGTH_CLASSES = 8

KEPT_LENGTHS = 32
"""Shot lengths whose windows are kept for the next shot of that length; each may take 2 MB."""


def usable_footage_s(clips: Sequence[ClipSignals]) -> float:
    """Seconds of footage that make good shots without showing anything twice; 0 when there is no frame."""
    if not any(len(clip.times_s) for clip in clips):
        return 0.0
    return whole_seconds(good_stretches_s(lay_out(clips)))


def longest_scene_s(clips: Sequence[ClipSignals], film_s: float | None = None) -> float:
    """Length of the longest stretch that one shot can show, for `pacing.plan_cuts`; 0 when there is no frame.

    With the film's length it is the longest shot that half of the film could be made of without repeating
    (or half of the footage, when that is less): one long clip among short ones then sets no pace that only
    it can keep.
    """
    if not any(len(clip.times_s) for clip in clips):
        return 0.0
    stretches = good_stretches_s(lay_out(clips))
    if film_s is None:
        return float(stretches.max())
    enough = min(film_s, float(stretches.sum())) / 2
    lengths = np.unique(stretches)[::-1]
    supply = (float(np.floor(stretches / length + SAME_MOMENT_S).sum() * length) for length in lengths)
    return next((float(length) for length, s in zip(lengths, supply, strict=True) if s >= enough), float(lengths[-1]))


def select_shots(plan: CutPlan, clips: Sequence[ClipSignals], seed: int) -> list[Shot]:
    """The film's shots, one per slot, in order; `Shot.id` is the slot's index, from 0.

    The same plan, clips (in any order) and seed give the same shots. A shot's `reasons` hold the terms of
    its score (see WEIGHTS) and, only where a rule had to give way: "reused" (1: some of it was shown
    before), "margin" (part kept of the distance to scene borders), "same_clip", "crosses_cut", or the shares
    of frames that are "black", "blown_out", "frozen", in a "recording_gap" or a "flash".

    Raises MediaError when a slot is longer than every clip.
    """
    footage = lay_out(clips)
    chooser = _Chooser(footage, plan, seed)
    return [chooser.fill(slot) for slot in plan.slots]


def what_gave_way(shots: Sequence[Shot]) -> list[str]:
    """For the user, a sentence for every rule that was broken for want of footage, and what would cure it."""
    told = []
    reused = sum("reused" in shot.reasons for shot in shots)
    if reused:
        told.append(f"{reused} of {len(shots)} shots show footage again; add clips or ask for a shorter film.")
    crossing = sum("crosses_cut" in shot.reasons for shot in shots)
    if crossing:
        told.append(
            f"{crossing} of {len(shots)} shots run over a cut within their clip, as no scene is as long; "
            f"ask for a faster pace."
        )
    spoiled = [kind for kind in UNUSABLE_KINDS if any(kind in shot.reasons for shot in shots)]
    if spoiled:
        count = sum(any(kind in shot.reasons for kind in spoiled) for shot in shots)
        kinds = ", ".join(kind.replace("_", " ") for kind in spoiled)
        told.append(f"{count} of {len(shots)} shots hold poor frames ({kinds}), for want of better footage.")
    return told


class _Chooser:
    """Fills slots in film order and remembers what was used; all state of a selection is here."""

    def __init__(self, footage: Footage, plan: CutPlan, seed: int) -> None:
        self._footage = footage
        self._plan = plan
        self._starts = in_points(footage)
        self._by_length: dict[int, Windows] = {}
        self._scene_whims = _scene_numbers(footage)
        self._seed = seed

        self._stock = _Stock(footage, plan)
        self._spent = self._stock.part_needed()
        self._wanted_motion = _wanted_motion(footage, plan, self._spent)
        self._uses = np.zeros(len(footage.time_s), dtype=np.int64)
        self._last_use = np.full(len(footage.time_s), -1, dtype=np.int64)
        self._clip_last = np.full(len(footage.names), -1, dtype=np.int64)
        self._clip_uses = np.zeros(len(footage.names), dtype=np.int64)
        self._scene_uses = np.zeros(len(footage.scene_first), dtype=np.int64)
        self._previous: tuple[int, int, float, float] | None = None
        self._likeness = _Likeness(footage)

    def fill(self, slot: Slot) -> Shot:
        options = self._windows(slot)
        terms = self._terms(slot, options)
        looks = _weighted(terms, LOOKS)
        fit = _weighted(terms, [name for name in WEIGHTS if name not in LOOKS])
        # Where most of the footage is needed anyway, all but its worst is as good: else the best would go
        # to the first shots and the film would end on leavings.
        enough = float(np.quantile(looks, 1 - self._spent))
        cost = (
            self._costs(slot, options) - np.minimum(looks, enough) - fit - WHIM * self._whims(slot.index)[options.scene]
        )
        # Rounded, so that the last bits of another processor's arithmetic do not choose another shot.
        chosen = int(np.argmin(np.round(cost, 7)))
        shot = self._shot(slot, options, chosen, terms, float(looks[chosen] + fit[chosen]))
        self._remember(slot, options, chosen)
        return shot

    def _windows(self, slot: Slot) -> Windows:
        options = self._by_length.get(slot.frames)
        if options is None:
            options = windows(self._footage, self._starts, slot.frames, self._plan.fps)
            if len(self._by_length) == KEPT_LENGTHS:
                del self._by_length[next(iter(self._by_length))]
            self._by_length[slot.frames] = options
        if not len(options.first):
            self._refuse(slot)
        return options

    def _refuse(self, slot: Slot) -> None:
        own_end = self._footage.clip_end_s - self._footage.time_s[self._footage.clip_first]
        longest = int(np.argmax(own_end))
        raise MediaError(
            f"The shot at {float(slot.first_frame / self._plan.fps):.1f} s lasts "
            f"{float(slot.frames / self._plan.fps):.2f} s, longer than every clip "
            f"(the longest, '{self._footage.names[longest]}', has {own_end[longest]:.2f} s); "
            f"use longer clips or cut faster."
        )

    # --- scores ---------------------------------------------------------------------------------------

    def _terms(self, slot: Slot, options: Windows) -> dict[str, Floats]:
        plain = {name: values for name, values in options.terms.items() if name != "liveliness"}
        return {
            **plain,
            "motion": 1 - np.abs(options.terms["liveliness"] - self._wanted_motion[slot.index]),
            "novelty": self._likeness.novelty(options.signature),
            "variety": self._variety(slot.index)[options.scene],
        }

    def _variety(self, slot: int) -> Floats:
        """Per scene: 1 when neither it nor its clip was shown, near 0 when both just were."""
        footage = self._footage
        memory = max(1.0, min(len(footage.names), 12) / 2)
        rested = 1 - np.exp(-(slot - self._clip_last) / memory)
        rested = np.where(self._clip_last < 0, 1.0, rested)
        # Plentiful footage is shared evenly among the clips; scarce footage by how much each has left.
        fair = (1 - self._spent) / (1 + self._clip_uses) + self._spent * self._stock.clips_left()
        per_clip = 0.5 * rested + 0.25 * fair
        variety: Floats = per_clip[footage.scene_clip] + 0.25 / (1 + self._scene_uses)
        return variety

    def _whims(self, slot: int) -> Floats:
        """Per scene: 0..1 drawn from the seed, the slot and the scene's own name."""
        drawn_for = np.array([_fold(self._seed + slot * 0x632BE59BD9B4E019)], dtype=np.uint64)
        mixed = _scramble(self._scene_whims ^ _scramble(drawn_for))
        drawn: Floats = (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)
        return drawn

    # --- rules ----------------------------------------------------------------------------------------

    def _costs(self, slot: Slot, options: Windows) -> Floats:
        cost = MARGIN_COST * (1 - options.margin)
        for kind, share in options.unusable.items():
            if kind == "flash":
                cost += np.where(share > 0, FLASH_COST, 0.0)
            else:
                cost += np.where(share > 0, UNUSABLE_COST * (0.3 + share), 0.0)
        cost += self._reuse_costs(slot, options)
        cost += FRAGMENT_COST * self._stock.shots_lost(slot.index, options)
        if self._previous is not None:
            clip, scene, start, end = self._previous
            cost += np.where(options.clip == clip, SAME_CLIP_COST, 0.0)
            gap = np.maximum(options.start_s - end, start - options.start_s - options.length_s)
            # Footage that goes on where the last shot ended shows no cut at all.
            cost += np.where((options.scene == scene) & (gap < 0.5), CONTINUED_COST, 0.0)
            due = self._stock.clips_due(slot.index)
            cost -= np.where(due[options.clip] & (options.clip != clip), LARGEST_CLIP_GAIN, 0.0)
        return cost

    def _shown_before(self, options: Windows) -> Floats:
        """Mean number of times that each window's frames were shown already."""
        total = np.concatenate([[0], np.cumsum(self._uses)])
        mean: Floats = (total[options.end] - total[options.first]) / (options.end - options.first)
        return mean

    def _reuse_costs(self, slot: Slot, options: Windows) -> Floats:
        shown = self._shown_before(options)
        seen = shown > 0
        if not seen.any():
            return np.zeros(len(shown))
        last = options.end - 1
        places = [options.first + (last - options.first) * k // 4 for k in range(5)]
        latest = np.max([self._last_use[place] for place in places], axis=0)
        recent = 1 - (slot.index - latest) / len(self._plan.slots)
        # Relative, so that margins do not attract shots by being shown less often.
        often = shown / max(1.0, float(shown.max()))
        cost = REUSE_COST + OVERLAP_COST * often + RECENT_REUSE_COST * np.where(latest < 0, 0.0, recent)
        return np.where(seen, cost, 0.0)

    # --- results --------------------------------------------------------------------------------------

    def _shot(self, slot: Slot, options: Windows, chosen: int, terms: dict[str, Floats], score: float) -> Shot:
        footage = self._footage
        first = int(options.first[chosen])
        clip = int(options.clip[chosen])
        reasons = {name: round(float(terms[name][chosen]), 4) for name in WEIGHTS}
        if self._uses[first : int(options.end[chosen])].any():
            reasons["reused"] = 1.0
        if options.margin[chosen] < 1:
            reasons["margin"] = round(float(options.margin[chosen]), 4)
        if self._previous is not None and self._previous[0] == clip:
            reasons["same_clip"] = 1.0
        if options.crosses_cut:
            reasons["crosses_cut"] = 1.0
        for kind, share in options.unusable.items():
            if share[chosen] > 0:
                reasons[kind] = max(round(float(share[chosen]), 4), 0.0001)
        return Shot(
            id=slot.index,
            clip=footage.names[clip],
            source_start_s=float(footage.own_time_s[first]),
            source_frame=first - int(footage.clip_first[clip]),
            first_frame=slot.first_frame,
            frames=slot.frames,
            beat_s=slot.beat_s,
            score=round(score, 6),
            reasons=reasons,
        )

    def _remember(self, slot: Slot, options: Windows, chosen: int) -> None:
        first, end = int(options.first[chosen]), int(options.end[chosen])
        clip, scene = int(options.clip[chosen]), int(options.scene[chosen])
        start = float(options.start_s[chosen])
        self._uses[first:end] += 1
        self._last_use[first:end] = slot.index
        self._clip_last[clip] = slot.index
        self._clip_uses[clip] += 1
        self._scene_uses[scene] += 1
        self._previous = (clip, scene, start, start + options.length_s)
        self._likeness.show(int(options.signature[chosen]))
        self._stock.take(start, start + options.length_s)


def _weighted(terms: dict[str, Floats], names: Sequence[str]) -> Floats:
    total: Floats = np.sum([WEIGHTS[name] * terms[name] for name in names], axis=0)
    return total


def _wanted_motion(footage: Footage, plan: CutPlan, spent: float) -> Floats:
    """The motion (0..1) that each slot asks for: its energy, as far as the footage has it to give.

    The more of the footage is needed, the more it is shared out by rank: the liveliest to the loudest slots.
    """
    energy = np.array([slot.energy for slot in plan.slots])
    frames = np.array([slot.frames for slot in plan.slots], dtype=np.float64)
    order = np.argsort(energy, kind="stable")
    ends = np.cumsum(frames[order]) / frames.sum()
    # Slots of one energy share one rank: the middle of what they span.
    low = np.searchsorted(energy[order], energy, "left")
    high = np.searchsorted(energy[order], energy, "right") - 1
    rank = (np.concatenate([[0.0], ends])[low] + ends[high]) / 2
    shared: Floats = np.quantile(footage.quality["liveliness"], np.clip(rank, 0.0, 1.0))
    return (1 - spent) * energy + spent * shared


class _Likeness:
    """How alike pictures are to the last shots, on the scale of this footage."""

    def __init__(self, footage: Footage) -> None:
        self._signatures = footage.signatures
        self._usual = _usual_likeness(footage.signatures)
        self._shown: list[Floats | None] = []
        self._ever = np.zeros(len(footage.signatures))

    def show(self, row: int) -> None:
        if row < 0:
            self._shown.insert(0, None)
        else:
            # Not a matrix product: those wake a thread per core, and sum in an order that they choose.
            likeness = np.einsum("ij,j->i", self._signatures, self._signatures[row]).astype(np.float64)
            alike = np.clip((likeness - self._usual) / (1 - self._usual), 0.0, 1.0)
            self._ever = np.maximum(self._ever, alike)
            self._shown.insert(0, alike)
        del self._shown[len(REMEMBERED_SHOTS) :]

    def novelty(self, rows: Ints) -> Floats:
        """1 = as unlike the last shots as footage usually is, 0 = the last shot's very picture."""
        likest = np.where(rows >= 0, EVER_SHOWN * self._ever[rows], 0.0) if len(self._ever) else np.zeros(len(rows))
        for weight, likeness in zip(REMEMBERED_SHOTS, self._shown, strict=False):
            if likeness is not None:
                # A window without a signature is taken for half alike.
                likest = np.maximum(likest, weight * np.where(rows >= 0, likeness[rows], 0.5))
        return 1 - likest


def _usual_likeness(signatures: NDArray[np.float32]) -> float:
    if len(signatures) < 2:
        return 0.0
    sample = signatures[:: max(1, len(signatures) // 256)].astype(np.float64)
    pairs = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    return float(np.clip(np.median(pairs), 0.0, 0.95)) if len(pairs) else 0.0


@dataclass(frozen=True)
class _LengthClass:
    length_s: float
    needed_after: Floats
    """For each slot, how many pieces of this length the later slots take up; long ones take up several."""


class _Stock:
    """Good footage that was not shown yet, and what the slots to come need of it."""

    def __init__(self, footage: Footage, plan: CutPlan) -> None:
        self._start = footage.run_start_s.copy()
        self._end = footage.run_end_s.copy()
        self._clip_starts = footage.time_s[footage.clip_first]
        self._clips = len(footage.names)
        self._at_first = np.bincount(self._clip_of_stretch(), self._end - self._start, self._clips)
        lengths = np.array([float(slot.frames / plan.fps) for slot in plan.slots])
        self._lengths = lengths
        self._classes = [
            _LengthClass(float(length), _still_to_come(_fitting(lengths, float(length))))
            for length in _class_lengths(lengths)
        ]
        after = np.cumsum(lengths[::-1])[::-1]
        self._mean_length = after / np.arange(len(lengths), 0, -1)

    def clips_left(self) -> Floats:
        """Per clip, the part of its good footage that was not shown; 0 when it had none."""
        left = np.bincount(self._clip_of_stretch(), self._end - self._start, self._clips)
        part: Floats = left / np.maximum(self._at_first, SAME_MOMENT_S)
        return part

    def _clip_of_stretch(self) -> Ints:
        clips: Ints = np.searchsorted(self._clip_starts, self._start + SAME_MOMENT_S, "right") - 1
        return clips

    def part_needed(self) -> float:
        """0..1: how much of the good footage the film takes up."""
        needed = math.fsum(self._lengths)
        return min(1.0, needed / max(float((self._end - self._start).sum()), needed))

    def shots_lost(self, slot: int, options: Windows) -> Floats:
        """Shots that can no longer be cut without reuse if each window is taken; 0 while there is plenty."""
        lost = np.zeros(len(options.first))
        if not len(self._start):
            return lost
        end = options.start_s + options.length_s
        middle = options.start_s + options.length_s / 2
        run = np.maximum(np.searchsorted(self._start, middle, "right") - 1, 0)
        taking = (middle >= self._start[run]) & (middle < self._end[run])
        whole = np.where(taking, self._end[run] - self._start[run], 0.0)
        before = np.where(taking, np.maximum(options.start_s - self._start[run], 0.0), 0.0)
        behind = np.where(taking, np.maximum(self._end[run] - end, 0.0), 0.0)
        free = self._end - self._start
        for kind in self._classes:
            spare = _fitting(free, kind.length_s).sum() - kind.needed_after[slot]
            taken = _fitting(whole, kind.length_s) - _fitting(before, kind.length_s) - _fitting(behind, kind.length_s)
            lost += np.maximum(taken - max(spare, 0), 0)
        return lost

    def clips_due(self, slot: int) -> Bools:
        """Clips that must fill every other slot from here on, lest the film end with one of them in a row."""
        remaining = len(self._mean_length) - slot
        clip = self._clip_of_stretch()
        fitting = _fitting(self._end - self._start, float(self._mean_length[slot]))
        stock = np.bincount(clip, weights=fitting, minlength=self._clips)
        must = remaining - (stock.sum() - stock)
        due: Bools = (2 * must >= remaining) & (stock > 0)
        return due

    def take(self, start_s: float, end_s: float) -> None:
        first = int(np.searchsorted(self._end, start_s + SAME_MOMENT_S, "right"))
        stop = int(np.searchsorted(self._start, end_s - SAME_MOMENT_S, "left"))
        if first >= stop:
            return
        pieces = [(self._start[first], start_s), (end_s, self._end[stop - 1])]
        left = [(a, b) for a, b in pieces if b - a > SAME_MOMENT_S]
        self._start = np.concatenate([self._start[:first], [a for a, _ in left], self._start[stop:]])
        self._end = np.concatenate([self._end[:first], [b for _, b in left], self._end[stop:]])


def _fitting(stretch_s: Floats, length_s: float) -> Floats:
    whole: Floats = np.floor((stretch_s + SAME_MOMENT_S) / length_s)
    return whole


def _class_lengths(lengths: Floats) -> Floats:
    """A few of the slots' lengths, from the shortest to the longest, that stand for all."""
    distinct = np.unique(np.round(lengths, 6))
    if len(distinct) <= LENGTH_CLASSES:
        return distinct
    picked = np.unique(np.linspace(0, len(distinct) - 1, LENGTH_CLASSES).round().astype(np.int64))
    return distinct[picked]


def _still_to_come(counts: Floats) -> Floats:
    """For each slot, the sum over the slots after it."""
    after: Floats = np.cumsum(counts[::-1])[::-1] - counts
    return after


# --- reproducible whims -------------------------------------------------------------------------------


def _fold(number: int) -> int:
    return number & 0xFFFFFFFFFFFFFFFF


def _scene_numbers(footage: Footage) -> NDArray[np.uint64]:
    """A number per scene that depends on its clip's name and its place there, not on the other clips."""
    names = np.array([zlib.crc32(name.encode("utf-8")) for name in footage.names], dtype=np.uint64)
    place = (footage.scene_first - footage.clip_first[footage.scene_clip]).astype(np.uint64)
    return _scramble(names[footage.scene_clip] * np.uint64(0x9E3779B97F4A7C15) + place)


def _scramble(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): neighbouring numbers come out unrelated.

    numpy's own generators do not promise the same stream in every version; this does.
    """
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
