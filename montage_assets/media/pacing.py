"""Pacing: where the film cuts, decided from the song alone, on the film's integer frame grid.

Belongs here: how long the film is, which beats it cuts on, how fast it cuts. Does not belong here: how beats
are found (`beat_analysis` and its trackers) or which picture fills a shot (`selection`).

The cuts are the cheapest path through the song's beats (dynamic programming): every shot costs what it
deviates from the length that the music asks for there, every cut costs what its beat is weak in the bar,
leaving out a section start is all but forbidden. So pace follows the song, yet bars and phrases stay whole,
and no rule needs an exception for the first beat, the last one or a missing one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from montage_assets.media.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from montage_assets.media.beat_analysis import BeatAnalysis

    Floats = NDArray[np.float64]

PACKED_PART = 0.8
"""Of good footage, the part that shots of mixed lengths fill without repeating: of 0.9 one shot in forty
overlapped another, of 0.8 one in a hundred (thirty made montages of 20-200 s). The worst fifth is no loss."""

MOST_REFINEMENTS = 24
"""Halving a gap this often takes any song below a frame."""

SAME_MOMENT_S = 1e-6
"""Times nearer than this are one moment; float arithmetic on song times errs by far less."""


@dataclass(frozen=True)
class Pace:
    """How fast a film cuts. Lengths are seconds; musical lengths follow from them and the tempo.

    A quiet part is given shots of about `quiet_shot_s`, a loud one of about `loud_shot_s`, each rounded to
    the nearest musical number of beats: so a tempo heard at half or double gives the same film. A song
    without a beat gets `even_shot_s`. `beats_per_shot` overrules all three. No shot is shorter than
    `min_shot_s`; none is longer than `max_shot_s` where there are beats to cut on.
    """

    name: str
    quiet_shot_s: float
    loud_shot_s: float
    even_shot_s: float
    min_shot_s: float = 0.35
    max_shot_s: float = 6.0
    beats_per_shot: int | None = None


PACES = {
    "calm": Pace("calm", quiet_shot_s=6.0, loud_shot_s=2.0, even_shot_s=5.0, max_shot_s=8.0),
    "normal": Pace("normal", quiet_shot_s=4.0, loud_shot_s=0.75, even_shot_s=4.0),
    "fast": Pace("fast", quiet_shot_s=2.0, loud_shot_s=0.45, even_shot_s=2.0),
}
PACE_ALIASES = {"auto": "normal"}


@dataclass(frozen=True)
class Slot:
    """One shot that is still to be filled: `frames` film frames from `first_frame` on.

    `beat_s` is the beat (film seconds) that the first frame is cut to, 0 for the first slot. `energy` is
    0..1: how energetic the music is here, compared with the rest of the song.
    """

    index: int
    first_frame: int
    frames: int
    beat_s: float
    energy: float


@dataclass(frozen=True)
class CutPlan:
    """The rhythm of a film: its frame grid, its slots, and the beats in film seconds, 0 to its end.

    `beats_s` also holds the pulses that carry the beat on through a stretch where the song has none and a
    shot would grow too long. `notes` say, for the user, what was done differently than asked.
    """

    fps: Fraction
    frames: int
    music_start_s: float
    duration_s: float
    tempo_bpm: float
    beats_s: list[float]
    downbeats_s: list[float]
    slots: list[Slot]
    notes: list[str]


def pace_named(
    name: str,
    *,
    min_shot_s: float | None = None,
    max_shot_s: float | None = None,
    beats_per_shot: int | None = None,
) -> Pace:
    """The named pace ("calm", "normal" or "auto", "fast"), with what is given explicitly put in its place.

    Raises MediaError for an unknown name and for numbers that contradict each other.
    """
    known = PACES.get(PACE_ALIASES.get(name, name))
    if known is None:
        names = ", ".join(sorted([*PACES, *PACE_ALIASES]))
        raise MediaError(f"There is no pace called '{name}'; use one of {names}.")
    shortest = known.min_shot_s if min_shot_s is None else min_shot_s
    longest = known.max_shot_s if max_shot_s is None else max_shot_s
    if min_shot_s is None and max_shot_s is not None:
        shortest = min(shortest, longest)
    if max_shot_s is None and min_shot_s is not None:
        longest = max(longest, 2 * shortest)
    pace = replace(known, min_shot_s=shortest, max_shot_s=longest, beats_per_shot=beats_per_shot)
    _refuse_contradictions(pace)
    return pace


def choose_duration(
    song_duration_s: float,
    music_start_s: float,
    usable_footage_s: float,
    asked: float | None,
    analysis: BeatAnalysis,
) -> tuple[float, str]:
    """How long the film is (seconds), and why in a sentence.

    What is asked for wins, as far as the song goes. Otherwise the film takes the rest of the song, but no
    more than the usable footage fills without showing anything twice; cut short like that it ends on a bar
    line, or on a beat where no bar line is near. Raises MediaError when no song or footage is left.
    """
    rest = song_duration_s - music_start_s
    if music_start_s < 0 or not rest > 0:
        raise MediaError(
            f"The film cannot start {music_start_s:g} s into the song, which is {song_duration_s:.1f} s "
            f"long; choose a start between 0 and its end."
        )
    if asked is not None:
        if not (asked > 0 and math.isfinite(asked)):
            raise MediaError(f"A film of {asked:g} s cannot be made; ask for a duration above 0.")
        if asked > rest + SAME_MOMENT_S:
            return rest, f"{asked:g} s were asked for, but the song has only {rest:.1f} s left."
        return min(asked, rest), f"{asked:g} s, as asked."
    if not usable_footage_s > 0:
        raise MediaError("No usable footage was found, so there is nothing to make a film of; add clips.")
    most = PACKED_PART * usable_footage_s
    if most >= rest:
        return rest, f"The rest of the song, {rest:.1f} s; there is footage enough for it."
    duration, place = _musical_end(most, music_start_s, analysis)
    return duration, (
        f"{duration:.1f} s, {place}: there are {usable_footage_s:.1f} s of good footage, "
        f"so nothing needs to be shown twice."
    )


def plan_cuts(
    analysis: BeatAnalysis,
    *,
    music_start_s: float,
    duration_s: float,
    fps: Fraction,
    pace: Pace = PACES["normal"],
    longest_scene_s: float | None = None,
) -> CutPlan:
    """The film's slots, cut on the beats of the song from `music_start_s` on, for `duration_s` seconds.

    Frame numbers come straight from exact times (`frame_at`), never from sums of rounded lengths, so cuts
    do not drift however long the film is. `longest_scene_s` is the longest piece of footage there is: no
    slot gets longer, even if that takes cuts between beats. Raises MediaError when the film has no frame
    or no piece of footage lasts two.
    """
    _refuse_contradictions(pace)
    fps = Fraction(fps)
    frames = frame_at(duration_s, fps)
    if frames < 1:
        raise MediaError(f"A film of {duration_s:g} s has no frame at {float(fps):.3f} frames a second.")
    limits = _limits(pace, fps, longest_scene_s)
    beats = _in_film(analysis.beats_s, music_start_s, duration_s)
    downbeats = _in_film(analysis.downbeats_s, music_start_s, duration_s)
    song = _Song(analysis, pace, music_start_s, downbeats, limits)

    pulses = _Pulses(beats, np.zeros(len(beats), bool))
    for _ in range(MOST_REFINEMENTS):
        nodes = _nodes(pulses, song, frames, duration_s, fps)
        path = _cheapest_path(nodes, limits)
        finer = _carried_on(pulses, nodes, path, limits, song.period_s, duration_s)
        if finer is None:
            break
        pulses = finer

    return CutPlan(
        fps=fps,
        frames=frames,
        music_start_s=music_start_s,
        duration_s=duration_s,
        tempo_bpm=analysis.tempo_bpm,
        beats_s=[float(t) for t in pulses.times_s[~pulses.between_beats]],
        downbeats_s=[float(t) for t in downbeats],
        slots=_slots(nodes, path, song, fps),
        notes=_notes(pulses, len(beats), nodes, path, limits),
    )


def frame_at(time_s: float, fps: Fraction) -> int:
    """The film frame nearest to `time_s`; exactly between two, the later one."""
    return math.floor(Fraction(time_s) * fps + Fraction(1, 2))


# --- limits -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Limits:
    """What a shot's length must keep to, in frames. `footage` is the hard one: nothing longer exists."""

    fps: Fraction
    min_frames: int
    max_frames: int
    footage_frames: int | None

    @property
    def longest(self) -> int:
        return self.max_frames if self.footage_frames is None else min(self.max_frames, self.footage_frames)


def _limits(pace: Pace, fps: Fraction, longest_scene_s: float | None) -> _Limits:
    shortest = max(2, math.ceil(Fraction(pace.min_shot_s) * fps - Fraction(1, 1000)))
    longest = max(shortest, math.floor(Fraction(pace.max_shot_s) * fps + Fraction(1, 1000)))
    if longest_scene_s is None:
        return _Limits(fps, shortest, longest, None)
    footage = math.floor(Fraction(longest_scene_s) * fps + Fraction(1, 1000))
    if footage < 2:
        raise MediaError(
            f"The longest piece of usable footage lasts {longest_scene_s:.3f} s, which is no shot; add longer clips."
        )
    # Any film length is a sum of shots of m to 2m frames; nearer limits would leave some without a plan.
    return _Limits(fps, min(shortest, max(2, footage // 2)), longest, footage)


def _refuse_contradictions(pace: Pace) -> None:
    if not 0 < pace.min_shot_s <= pace.max_shot_s < math.inf:
        raise MediaError(
            f"Shots cannot last at least {pace.min_shot_s:g} s and at most {pace.max_shot_s:g} s; "
            f"choose a min_shot above 0 and a max_shot that is longer."
        )
    if pace.beats_per_shot is not None and pace.beats_per_shot < 1:
        raise MediaError(f"A shot cannot last {pace.beats_per_shot} beats; choose 1 or more beats_per_shot.")


# --- the song as the film hears it --------------------------------------------------------------------


def _in_film(times_s: Sequence[float], music_start_s: float, duration_s: float) -> Floats:
    """Song times within the film, in film seconds, ascending, each once."""
    start = Fraction(music_start_s)
    moved = np.array([float(Fraction(t) - start) for t in times_s if math.isfinite(t)], dtype=np.float64)
    inside = moved[(moved >= -SAME_MOMENT_S) & (moved <= duration_s + SAME_MOMENT_S)]
    ascending = np.unique(np.clip(inside, 0.0, duration_s))
    if len(ascending) < 2:
        return ascending
    apart: Floats = ascending[np.append(True, np.diff(ascending) > SAME_MOMENT_S)]
    return apart


def _musical_end(limit_s: float, music_start_s: float, analysis: BeatAnalysis) -> tuple[float, str]:
    for times, place in ((analysis.downbeats_s, "up to a bar line"), (analysis.beats_s, "up to a beat")):
        inside = _in_film(times, music_start_s, limit_s)
        # A bar line in the film's first half would throw away more footage than a tidy end is worth.
        if len(inside) and inside[-1] > limit_s / 2:
            return float(inside[-1]), place
    return limit_s, "as long as the footage lasts"


SECTION_SHARE = 0.65
"""Of the energy that pace follows, the part that is the whole section's; the rest is the bar's own."""

FLAT_SONG_SPAN = 0.3
"""A song whose energy spans less is not stretched to the full range: flat songs stay in the middle."""

HYSTERESIS_OCTAVES = 0.25
"""How far past the half-way point the wanted shot length must go before the pace follows it."""

PHRASE_BARS = 8
"""After so many bars of one quick pace, each further phrase opens with a held shot: even cutting tires."""

LIFT_INTO_LOUDER = 0.25
"""A section louder than its forerunner by this much is led into by a bar of quicker cuts."""


class _Song:
    """Tempo, bar, energy and section starts of a song, asked for by film seconds."""

    def __init__(
        self, analysis: BeatAnalysis, pace: Pace, music_start_s: float, downbeats: Floats, limits: _Limits
    ) -> None:
        self.pace = pace
        self.limits = limits
        self.start_s = music_start_s
        self.downbeats = downbeats
        self.even = analysis.source == "pace"
        self.sections = sorted(analysis.sections, key=lambda section: section.start_s)
        self.period_s = _beat_period(analysis, pace)
        self.bar = _beats_per_bar(analysis)
        self._hop_s = analysis.hop_s
        self._energy = np.asarray(analysis.energy, dtype=np.float64)
        self._onsets = np.asarray(analysis.onset_strength, dtype=np.float64)
        self._loud = float(np.percentile(self._energy, 95)) if len(self._energy) else 0.0
        self._cumulated = np.concatenate([[0.0], np.cumsum(self._energy)])
        everywhere = np.arange(0.0, max(analysis.duration_s, 1.0), 0.5) - music_start_s
        raw = self._raw_energy(everywhere)
        self._low, self._high = (float(value) for value in np.percentile(raw, [3, 97]))

    def energy(self, film_s: Floats) -> Floats:
        """0..1 at each time, stretched so that this song's quiet and loud parts are 0 and 1."""
        middle = (self._low + self._high) / 2
        span = max(self._high - self._low, FLAT_SONG_SPAN)
        return np.clip(0.5 + (self._raw_energy(film_s) - middle) / span, 0.0, 1.0)

    def accents(self, film_s: Floats) -> Floats:
        """0..1 at each time: how strong the onset is there, ranked among the times given."""
        if not len(self._onsets) or not self._hop_s > 0 or not len(film_s):
            return np.full(len(film_s), 0.5)
        centre = np.rint((film_s + self.start_s) / self._hop_s).astype(np.int64)
        reach = max(1, round(0.04 / self._hop_s))
        near = np.clip(centre[:, None] + np.arange(-reach, reach + 1), 0, len(self._onsets) - 1)
        peak = self._onsets[near].max(axis=1)
        ordered = np.sort(peak)
        below = np.searchsorted(ordered, peak, "left") + np.searchsorted(ordered, peak, "right")
        ranks: Floats = below / (2.0 * len(peak))
        return ranks

    def section_starts(self, pulses: Floats) -> NDArray[np.bool_]:
        """Which pulses begin a section: the beat at its start, or the downbeat it must have meant."""
        starts = np.zeros(len(pulses), dtype=bool)
        if self.even or not len(pulses):
            return starts
        on_bar = self.on_downbeat(pulses)
        for section in self.sections:
            start = section.start_s - self.start_s
            distance = np.abs(pulses - start)
            nearest = int(np.argmin(distance))
            if start <= SAME_MOMENT_S or distance[nearest] > self.period_s:
                continue
            # Section borders are found to within a beat or so; music changes on the bar line.
            near_bar = on_bar & (distance < self.period_s)
            if distance[nearest] > 0.05 and near_bar.any():
                nearest = int(np.argmin(np.where(near_bar, distance, np.inf)))
            starts[nearest] = True
        return starts

    def on_downbeat(self, film_s: Floats) -> NDArray[np.bool_]:
        if not len(self.downbeats) or not len(film_s):
            return np.zeros(len(film_s), dtype=bool)
        place = np.searchsorted(self.downbeats, film_s)
        before = self.downbeats[np.maximum(place - 1, 0)]
        after = self.downbeats[np.minimum(place, len(self.downbeats) - 1)]
        distance = np.minimum(np.abs(film_s - before), np.abs(film_s - after))
        nearby: NDArray[np.bool_] = distance <= min(0.05, self.period_s / 4)
        return nearby

    def wanted_beats(self, times_s: Floats, new_bar: NDArray[np.bool_], new_section: NDArray[np.bool_]) -> Floats:
        """How many beats a shot should last that starts at each time; changes only at bars and sections."""
        if self.pace.beats_per_shot is not None:
            return np.full(len(times_s), float(self.pace.beats_per_shot))
        if self.even:
            return np.full(len(times_s), float(max(1, round(self.pace.even_shot_s / self.period_s))))
        counts = self._musical_counts()
        steps = np.log2(counts)
        energy = self.energy(times_s)
        ratio = self.pace.loud_shot_s / self.pace.quiet_shot_s
        wanted = np.log2(self.pace.quiet_shot_s * ratio**energy / self.period_s)
        chosen = np.zeros(len(times_s))
        level, bars_at_level = -1, 0
        for index in range(len(times_s)):
            nearest = int(np.argmin(np.abs(steps - wanted[index])))
            bars_at_level += int(new_bar[index])
            if level < 0 or new_section[index]:
                level, bars_at_level = nearest, 0
            elif new_bar[index] and nearest != level:
                half_way = (steps[nearest] + steps[level]) / 2
                if abs(wanted[index] - half_way) > HYSTERESIS_OCTAVES or abs(nearest - level) > 1:
                    level, bars_at_level = nearest, 0
            chosen[index] = self._breathing(counts, level, bars_at_level)
        return self._led_into_louder(times_s, chosen, energy, new_section, counts)

    def _breathing(self, counts: Floats, level: int, bars: int) -> float:
        """The level's beats per shot; longer ones where a pace that was kept for long begins a new phrase."""
        if level + 1 == len(counts) or counts[level] > self.bar or bars < PHRASE_BARS:
            return float(counts[level])
        held_bars = max(1, int(counts[level + 1]) // self.bar)
        return float(counts[level + 1] if bars % PHRASE_BARS < held_bars else counts[level])

    def _led_into_louder(
        self, times_s: Floats, chosen: Floats, energy: Floats, new_section: NDArray[np.bool_], counts: Floats
    ) -> Floats:
        quickened = chosen.copy()
        for start in np.flatnonzero(new_section):
            bar_before = (times_s < times_s[start] - SAME_MOMENT_S) & (
                times_s >= times_s[start] - self.bar * self.period_s - 0.05
            )
            if bar_before.any() and energy[start] - energy[bar_before].mean() > LIFT_INTO_LOUDER:
                # The step must be within one bar, else the quicker length cannot even be heard.
                quicker = [count for count in counts if count < chosen[bar_before].min() and count < self.bar]
                if quicker:
                    quickened[bar_before] = quicker[-1]
        return quickened

    def _musical_counts(self) -> Floats:
        """Numbers of beats that a bar divides into or multiplies to, within the limits of a shot."""
        counts = {1, *(self.bar * 2**power for power in range(5))}
        part = self.bar
        while part % 2 == 0:
            part //= 2
            counts.add(part)
        beat_frames = self.period_s * float(self.limits.fps)
        fitting = [c for c in counts if self.limits.min_frames <= c * beat_frames <= self.limits.longest]
        if not fitting:
            fitting = [max(1, math.ceil(self.limits.min_frames / beat_frames))]
        return np.array(sorted(fitting), dtype=np.float64)

    def _raw_energy(self, film_s: Floats) -> Floats:
        song_s = film_s + self.start_s
        local = self._bar_energy(song_s)
        if not self.sections:
            return local
        starts = np.array([section.start_s for section in self.sections])
        energies = np.array([section.energy for section in self.sections])
        here = np.clip(np.searchsorted(starts, song_s + 0.02, "right") - 1, 0, len(starts) - 1)
        mixed: Floats = SECTION_SHARE * energies[here] + (1 - SECTION_SHARE) * local
        return mixed

    def _bar_energy(self, song_s: Floats) -> Floats:
        if not self._loud > 0 or not self._hop_s > 0:
            return np.full(len(song_s), 0.5)
        count = len(self._energy)
        first = np.clip(np.rint(song_s / self._hop_s).astype(np.int64), 0, count - 1)
        bar = max(1, round(self.bar * self.period_s / self._hop_s))
        last = np.minimum(first + bar, count)
        mean = (self._cumulated[last] - self._cumulated[first]) / (last - first)
        relative: Floats = np.clip(mean / self._loud, 0.0, 1.0)
        return relative


def _beat_period(analysis: BeatAnalysis, pace: Pace) -> float:
    gaps = np.diff(np.unique(np.asarray(analysis.beats_s, dtype=np.float64)))
    gaps = gaps[gaps > SAME_MOMENT_S]
    if len(gaps):
        return float(np.median(gaps))
    return 60.0 / analysis.tempo_bpm if analysis.tempo_bpm > 0 else pace.even_shot_s


def _beats_per_bar(analysis: BeatAnalysis) -> int:
    if len(analysis.downbeats_s) < 2 or len(analysis.beats_s) < 2:
        return 4
    places = np.searchsorted(np.unique(analysis.beats_s), np.unique(analysis.downbeats_s) - 0.05)
    counts = np.diff(places)
    counts = counts[counts > 0]
    return int(np.median(counts)) if len(counts) else 4


# --- the grid of possible cuts ------------------------------------------------------------------------

MID_BAR_COST = 0.15
WEAK_BEAT_COST = 0.3
BETWEEN_BEATS_COST = 0.6
NEW_PACE_GAIN = 0.5
"""Costs and gains of cutting on a pulse; a shot of twice its wanted length costs 2, one of half of it 0.5."""

NEARLY = 0.01
"""Beats: how far from a whole number a count of beats may be."""

RIGID = 8.0
"""How much more a deviation costs where the pace is fixed by number: only the last shot may differ then."""


@dataclass(frozen=True)
class _Pulses:
    """Moments that may be cut on, in film seconds; `between_beats` marks halves and quarters of beats."""

    times_s: Floats
    between_beats: NDArray[np.bool_]


@dataclass(frozen=True)
class _Nodes:
    """The film's start, every pulse that a cut can fall on, and the film's end."""

    times_s: Floats
    frames: NDArray[np.int64]
    beat_position: Floats
    cut_cost: Floats
    section_start: NDArray[np.bool_]
    wanted_beats: Floats
    rigidity: float


def _nodes(pulses: _Pulses, song: _Song, film_frames: int, duration_s: float, fps: Fraction) -> _Nodes:
    all_frames = np.array([frame_at(float(t), fps) for t in pulses.times_s], dtype=np.int64)
    inside = (all_frames > 0) & (all_frames < film_frames)
    if inside.any():
        # Two pulses on one frame (a huge tempo) are one place to cut.
        inside &= np.concatenate([[True], np.diff(all_frames) > 0])
    times, between = pulses.times_s[inside], pulses.between_beats[inside]
    on_bar = song.on_downbeat(times)
    sections = song.section_starts(times)
    position = _beat_positions(times, between, song.period_s)
    counted = on_bar.any()
    place = _place_in_bar(position, on_bar if counted else _guessed_bars(times, position, sections, song), song.bar)

    framed_times = np.concatenate([[0.0], times, [duration_s]])
    new_bar = np.concatenate([[True], on_bar | (np.abs(place) < NEARLY), [False]])
    new_section = np.concatenate([[True], sections, [False]])
    if len(times):
        ends = (
            position[0] - times[0] / song.period_s,
            position[-1] + (duration_s - times[-1]) / song.period_s,
        )
    else:
        ends = (0.0, duration_s / song.period_s)
    wanted = song.wanted_beats(framed_times, new_bar, new_section)
    cut_cost = np.zeros(len(framed_times))
    cut_cost[1:-1] = _cut_costs(times, between, place, 1.0 if counted else 0.5, wanted[1:-1], song)
    cut_cost[1:-1] -= np.where(wanted[1:-1] != wanted[:-2], NEW_PACE_GAIN, 0.0)
    return _Nodes(
        times_s=framed_times,
        frames=np.concatenate([[0], all_frames[inside], [film_frames]]),
        beat_position=np.concatenate([[ends[0]], position, [ends[1]]]),
        cut_cost=cut_cost,
        section_start=np.concatenate([[False], sections, [False]]),
        wanted_beats=wanted,
        rigidity=RIGID if song.even or song.pace.beats_per_shot is not None else 1.0,
    )


def _beat_positions(times: Floats, between: NDArray[np.bool_], period_s: float) -> Floats:
    """Counts beats along the pulses, so that lengths are musical even where the tempo moves."""
    if not len(times):
        return np.zeros(0)
    whole = np.flatnonzero(~between)
    if len(whole) < 2:
        return times / period_s
    gaps = np.diff(times[whole])
    counted = np.concatenate([[0.0], np.cumsum(np.maximum(1.0, np.floor(gaps / period_s + 0.4)))])
    positions: Floats = np.interp(times, times[whole], counted)
    early, late = times < times[whole[0]], times > times[whole[-1]]
    positions[early] = (times[early] - times[whole[0]]) / period_s
    positions[late] = counted[-1] + (times[late] - times[whole[-1]]) / period_s
    return positions


def _guessed_bars(times: Floats, position: Floats, sections: NDArray[np.bool_], song: _Song) -> NDArray[np.bool_]:
    """Bar lines of a song without any: music moves in fours, from a section's start or by its heavy beats."""
    if sections.any() or not len(times):
        return sections
    since_first = np.rint(position - position[0]).astype(np.int64)
    accents = song.accents(times)
    phases = [accents[since_first % song.bar == phase] for phase in range(song.bar)]
    weight = [float(phase.mean()) if len(phase) else 0.0 for phase in phases]
    heavy: NDArray[np.bool_] = since_first % song.bar == int(np.argmax(weight))
    return heavy


def _place_in_bar(position: Floats, bar_starts: NDArray[np.bool_], bar: int) -> Floats:
    """Beats since the last bar line, counted on by whole bars where lines are missing."""
    if not len(position):
        return np.zeros(0)
    lines = position[bar_starts] if bar_starts.any() else position[:1]
    since = position - lines[np.maximum(np.searchsorted(lines, position, "right") - 1, 0)]
    place: Floats = np.mod(since + NEARLY / 2, bar) - NEARLY / 2
    return place


def _cut_costs(
    times: Floats, between: NDArray[np.bool_], place: Floats, belief: float, wanted: Floats, song: _Song
) -> Floats:
    if song.even or song.pace.beats_per_shot is not None:
        return np.where(between, BETWEEN_BEATS_COST, 0.0)
    mid_bar = np.abs(place - song.bar / 2) < NEARLY
    weak = np.where(np.abs(place) < NEARLY, 0.0, np.where(mid_bar, MID_BAR_COST, WEAK_BEAT_COST))
    # The longer shots are held, the more a cut beside the bar line jars.
    held = np.clip(2 * wanted / song.bar, 1.0, 3.0)
    cost: Floats = np.where(between, BETWEEN_BEATS_COST, belief * weak * held)
    return cost


# --- the cheapest path --------------------------------------------------------------------------------

SKIPPED_SECTION_COST = 1e3
TOO_LONG_COST = 1e6


def _cheapest_path(nodes: _Nodes, limits: _Limits) -> list[int]:
    """Indexes of the nodes cut on, from the film's start to its end, both included."""
    count = len(nodes.frames)
    cost = np.full(count, np.inf)
    cost[0] = 0.0
    came_from = np.zeros(count, dtype=np.int64)
    sections_before = np.concatenate([[0], np.cumsum(nodes.section_start)])
    wanted_so_far = np.concatenate([[0.0], np.cumsum(np.log2(nodes.wanted_beats))])
    earliest = np.searchsorted(nodes.frames, nodes.frames - limits.longest, "left")
    latest = np.searchsorted(nodes.frames, nodes.frames - limits.min_frames, "right") - 1
    for node in range(1, count):
        first, last = int(earliest[node]), int(latest[node])
        too_long = 0.0
        if last < 0:
            if node < count - 1:
                continue
            last = 0  # the whole film is shorter than a shot may be
        if first > last or not np.isfinite(cost[first : last + 1]).any():
            last = int(np.flatnonzero(np.isfinite(cost[: last + 1]))[-1])
            first, too_long = last, TOO_LONG_COST
        befores = np.arange(first, last + 1)
        wanted = 2 ** ((wanted_so_far[node] - wanted_so_far[befores]) / (node - befores))
        ratio = (nodes.beat_position[node] - nodes.beat_position[befores]) / wanted
        off = np.log2(np.maximum(ratio, 1e-6)) ** 2 * ratio
        if node == count - 1:
            off *= np.where(ratio > 1, 0.5, 2.0)  # the last shot may linger, and must not be a stub
        else:
            off *= nodes.rigidity
        skipped = sections_before[node] - sections_before[befores + 1]
        total = cost[befores] + off + SKIPPED_SECTION_COST * skipped + too_long
        best = int(np.argmin(np.round(total, 9)))
        cost[node] = total[best] + nodes.cut_cost[node]
        came_from[node] = befores[best]
    path = [count - 1]
    while path[-1] != 0:
        path.append(int(came_from[path[-1]]))
    return path[::-1]


# --- stretches without a beat -------------------------------------------------------------------------


def _carried_on(
    pulses: _Pulses, nodes: _Nodes, path: list[int], limits: _Limits, period_s: float, duration_s: float
) -> _Pulses | None:
    """The pulses with more of them inside every shot that is too long, or None when none is or can be helped.

    A gap of several beats is filled with the beat that its ends imply. A single beat is only ever divided
    when there is no footage as long as it.
    """
    borders = np.concatenate([[0.0], pulses.times_s, [duration_s]])
    added: list[tuple[float, bool]] = []
    for before, after in itertools.pairwise(path):
        length = int(nodes.frames[after] - nodes.frames[before])
        if length <= limits.longest:
            continue
        must_divide = limits.footage_frames is not None and length > limits.footage_frames
        from_s, to_s = nodes.times_s[before], nodes.times_s[after]
        inner = np.flatnonzero((borders[1:] > from_s + SAME_MOMENT_S) & (borders[:-1] < to_s - SAME_MOMENT_S))
        for gap in inner:
            added += _pulses_between(borders, int(gap), period_s, must_divide)
    if not added:
        return None
    times = np.concatenate([pulses.times_s, [time for time, _ in added]])
    between = np.concatenate([pulses.between_beats, [half for _, half in added]]).astype(bool)
    order = np.argsort(times, kind="stable")
    return _Pulses(times[order], between[order])


def _pulses_between(borders: Floats, gap: int, period_s: float, must_divide: bool) -> list[tuple[float, bool]]:
    start, end = float(borders[gap]), float(borders[gap + 1])
    beats = round((end - start) / period_s)
    opens, closes = gap == 0, gap == len(borders) - 2
    if opens or closes:
        # Only one end of the gap is a beat (none in a song without any): count from that one.
        whole = math.ceil((end - start) / period_s - 0.05) - 1
        if whole >= 1:
            steps = range(1, whole + 1)
            return [(start + k * period_s if closes else end - k * period_s, False) for k in steps]
    elif beats >= 2:
        return [(start + (end - start) * k / beats, False) for k in range(1, beats)]
    if must_divide and end - start > SAME_MOMENT_S:
        return [((start + end) / 2, True)]
    return []


# --- the result ---------------------------------------------------------------------------------------


def _slots(nodes: _Nodes, path: list[int], song: _Song, fps: Fraction) -> list[Slot]:
    slots = []
    for index, (before, after) in enumerate(itertools.pairwise(path)):
        first, end = int(nodes.frames[before]), int(nodes.frames[after])
        moments = (first + (end - first) * np.array([0.0, 0.25, 0.5, 0.75])) / float(fps)
        energy = 0.5 if song.even else float(song.energy(moments).mean())
        slots.append(Slot(index, first, end - first, float(nodes.times_s[before]), round(energy, 6)))
    return slots


def _notes(pulses: _Pulses, beats_found: int, nodes: _Nodes, path: list[int], limits: _Limits) -> list[str]:
    notes = []
    carried = int(np.count_nonzero(~pulses.between_beats)) - beats_found
    if carried > 0:
        notes.append(f"The song has stretches without a beat; {carried} beats were carried on through them.")
    cut_times = {float(nodes.times_s[node]) for node in path[1:-1]}
    halves = len(cut_times & {float(t) for t in pulses.times_s[pulses.between_beats]})
    if halves and limits.footage_frames is not None:
        longest = float(limits.footage_frames / limits.fps)
        notes.append(
            f"The longest piece of good footage lasts {longest:.2f} s, less than a beat: "
            f"{halves} cuts fall between beats. Longer clips would cure it."
        )
    return notes
