"""Checking a finished film against its edit list, from those two files alone.

Belongs here: what a viewer or an editor would call a fault, measured on the film itself. Does not belong
here: repairing it, or trusting what the steps before said of it.

The picture is decoded once, by the pipeline's ffmpeg, to a file of small frames (1.7 kB each, 32 MB for ten
minutes), which the picture checks read piece by piece. Differences between frames are mean absolute
differences of those small RGB frames, in levels of 0..255.

A planned cut is `visible` when the picture changes there clearly more than around it, `misplaced` when it
hardly changes there but clearly does one or two frames away, else `unclear`: neighbouring shots may look
alike, and then nothing can be said. Single misplaced cuts happen without a fault (a flash in the footage
beside a cut between like pictures), so that check fails only when more than one cut in twenty is misplaced.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from montage_assets.media.edit_list import EditList, Shot, from_json
from montage_assets.media.errors import FfmpegFailed, MediaError
from montage_assets.media.ffmpeg import OnProgress, input_args, run_ffmpeg
from montage_assets.media.soundtrack import CEILING_DBTP, Loudness, measure_loudness

SMALL_WIDTH, SMALL_HEIGHT = 32, 18
FRAME_BYTES = SMALL_WIDTH * SMALL_HEIGHT * 3
FRAMES_AT_ONCE = 2000

ROUNDING_S = 2e-6
"""Times in an edit list have six decimals."""

LOUDNESS_TOLERANCE_LU = 1.0
ALGORITHM = 1
"""Part of every verdict's key; raised whenever a check changes."""

ADVISORY = frozenset({"loudness", "no_duplicate_shot"})
"""Checks whose failure leaves a right film: little footage must repeat shots, and a song of few loud hits cannot
be made louder without harm."""

PEAK_TOLERANCE_DB = 0.2

CLEAR_CHANGE = 8.0
TIMES_ITS_SURROUNDINGS = 3.0
CUT_WINDOW = 5
CUT_MISSED_BY = 2
MOST_MISPLACED = 0.05

BLACK_MEAN = 6.0
BLACK_BRIGHTEST = 24.0
SAME_PICTURE = 1.0
MOVING = 0.5

Frames = NDArray[np.uint8]
Levels = NDArray[np.float64]


@dataclass(frozen=True)
class CheckResult:
    """One check. `detail` says in plain words what was found; `values` are its figures."""

    name: str
    passed: bool
    detail: str
    values: Mapping[str, float] = field(default_factory=dict)


def check_film(film: Path, edit: EditList, *, on_progress: OnProgress | None = None) -> list[CheckResult]:
    """Every check of `film` against `edit`, in a fixed order. Memory is bounded, whatever the length.

    Raises MediaError when the film is missing or cannot be opened at all, or has no picture.
    """
    timing = _read_timing(film)
    with tempfile.TemporaryDirectory(prefix="montage-check-") as folder:
        small = Path(folder) / "frames.rgb"
        messages = _decode(film, small, on_progress)
        frames = _small_frames(small)
        changes = _changes(frames)
        return [
            _frame_count(timing, len(frames), edit),
            _even_timestamps(timing, edit),
            _decodes_cleanly(messages),
            _ends_together(timing, edit),
            _cuts_on_beats(edit),
            _cuts_visible(changes, edit),
            _loudness(film, timing, edit.loudness_lufs),
            _no_black_shot(frames, edit),
            _no_duplicate_shot(frames, changes, edit),
        ]


def check_film_file(film: Path, edit_list: Path | None = None) -> list[CheckResult]:
    """`check_film` with the edit list read from `edit_list`, or from the film's name with `.json`.

    Raises MediaError, besides `check_film`'s reasons, when the edit list is missing or is none.
    """
    beside = edit_list or film.with_suffix(".json")
    try:
        text = beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(
            f"{film.name} cannot be checked: its edit list {beside.name} cannot be read; make the montage again"
        ) from error
    return check_film(film, from_json(text))


@dataclass(frozen=True)
class _Timing:
    """`times_s` are the presentation times of the video packets, in order. Without sound its end is None."""

    times_s: list[Fraction]
    video_end_s: Fraction
    audio_end_s: Fraction | None


def _read_timing(film: Path) -> _Timing:
    import av

    if not film.is_file():
        raise MediaError(f"The film {film.name} is not there; make the montage first")
    try:
        with av.open(str(film)) as container:
            video = container.streams.video[0]
            audio = container.streams.audio[0] if container.streams.audio else None
            base = Fraction(video.time_base or 1)
            audio_end = None
            if audio is not None and audio.duration:
                audio_end = ((audio.start_time or 0) + audio.duration) * Fraction(audio.time_base or 1)
            times: list[Fraction] = []
            end = Fraction(0)
            for packet in container.demux(video):
                if packet.size and packet.pts is not None:
                    times.append(packet.pts * base)
                    end = max(end, (packet.pts + (packet.duration or 0)) * base)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise MediaError(f"{film.name} is no film that can be read ({error}); make it again") from error
    return _Timing(sorted(times), end, audio_end)


def _decode(film: Path, small: Path, on_progress: OnProgress | None) -> list[str]:
    """Decode picture and sound once; write small frames. Returns what ffmpeg had to say: best, nothing."""
    scale = f"scale={SMALL_WIDTH}:{SMALL_HEIGHT}:flags=area,format=rgb24"
    args = [
        *input_args(film),
        "-map", "0:v:0", "-vf", scale, "-fps_mode", "passthrough", "-f", "rawvideo", str(small),
        "-map", "0:a?", "-f", "null", "-",
    ]  # fmt: skip
    try:
        log = run_ffmpeg(args, what=f"Decoding {film.name}", on_progress=on_progress, level="warning")
    except FfmpegFailed as error:
        log = error.log or str(error)
    return [line for line in log.splitlines() if line.strip()]


def _small_frames(path: Path) -> Frames:
    """Shape (frames, bytes), read from the file as it is used."""
    count = path.stat().st_size // FRAME_BYTES if path.exists() else 0
    if count == 0:
        return np.zeros((0, FRAME_BYTES), np.uint8)
    return np.memmap(path, np.uint8, "r", shape=(count, FRAME_BYTES))


def _changes(frames: Frames) -> Levels:
    """For every frame its difference to the one before; 0 for the first."""
    changes = np.zeros(len(frames))
    for first in range(1, len(frames), FRAMES_AT_ONCE):
        block = frames[first - 1 : first + FRAMES_AT_ONCE].astype(np.int16)
        changes[first : first + len(block) - 1] = np.abs(np.diff(block, axis=0)).mean(axis=1)
    return changes


def _frame_count(timing: _Timing, decoded: int, edit: EditList) -> CheckResult:
    stored = len(timing.times_s)
    passed = stored == decoded == edit.frames
    detail = (
        f"all {edit.frames} planned frames are there"
        if passed
        else f"{edit.frames} frames were planned, {stored} are stored and {decoded} can be shown"
    )
    values = {"planned": edit.frames, "stored": stored, "decoded": decoded}
    return CheckResult("frame_count", passed, detail, values)


def _even_timestamps(timing: _Timing, edit: EditList) -> CheckResult:
    uneven = [place for place, time in enumerate(timing.times_s) if time != timing.times_s[0] + place / edit.fps]
    starts_at = float(timing.times_s[0]) if timing.times_s else 0.0
    passed = bool(timing.times_s) and not uneven and starts_at == 0
    if passed:
        detail = f"every frame is shown for exactly 1/{float(edit.fps):g} s"
    elif uneven:
        detail = f"{len(uneven)} frames are not shown at their time, the first is frame {uneven[0]}"
    else:
        detail = f"the first frame is shown at {starts_at:.3f} s instead of 0"
    return CheckResult("even_timestamps", passed, detail, {"uneven_frames": len(uneven), "starts_at_s": starts_at})


def _decodes_cleanly(messages: list[str]) -> CheckResult:
    detail = "decodes from start to end without a message"
    if messages:
        detail = f"the decoder complains {len(messages)} times, first: {messages[0].strip()[:160]}"
    return CheckResult("decodes_cleanly", not messages, detail, {"messages": len(messages)})


def _ends_together(timing: _Timing, edit: EditList) -> CheckResult:
    if timing.audio_end_s is None:
        return CheckResult("sound_ends_with_picture", False, "the film has no sound", {})
    apart = float(timing.audio_end_s - timing.video_end_s)
    passed = abs(apart) <= float(1 / edit.fps)
    where = "together with the picture" if passed else ("after" if apart > 0 else "before") + " the picture"
    detail = f"the sound ends {where} ({1000 * apart:+.1f} ms)"
    return CheckResult("sound_ends_with_picture", passed, detail, {"apart_ms": round(1000 * apart, 3)})


def _cuts_on_beats(edit: EditList) -> CheckResult:
    half_frame_s = float(1 / edit.fps) / 2
    errors = [(abs(float(shot.first_frame / edit.fps) - shot.beat_s), shot) for shot in edit.shots[1:]]
    off = [shot for error, shot in errors if error > half_frame_s + ROUNDING_S]
    worst = max((error for error, _ in errors), default=0.0)
    if off:
        detail = f"{len(off)} of {len(errors)} cuts are over half a frame off their beat, first: shot {off[0].id}"
    elif errors:
        detail = f"all {len(errors)} cuts are within half a frame of their beat (worst {1000 * worst:.1f} ms)"
    else:
        detail = "the film is one shot; there is no cut"
    values = {"cuts": len(errors), "off_beat": len(off), "worst_ms": round(1000 * worst, 3)}
    return CheckResult("cuts_on_beats", not off, detail, values)


def _cuts_visible(changes: Levels, edit: EditList) -> CheckResult:
    cuts = [shot.first_frame for shot in edit.shots[1:] if shot.first_frame < len(changes)]
    misplaced = [cut for cut in cuts if _is_misplaced(changes, cut)]
    visible = sum(_is_visible(changes, cut) for cut in cuts)
    passed = len(misplaced) <= MOST_MISPLACED * len(cuts)
    detail = f"at {visible} of {len(cuts)} cuts the picture clearly changes, on the planned frame"
    if misplaced:
        seconds = float(misplaced[0] / edit.fps)
        detail += f"; at {len(misplaced)} it changes a frame or two away, first at {seconds:.2f} s"
    elif visible < len(cuts):
        detail += "; elsewhere the shots look alike"
    values = {"cuts": len(cuts), "visible": visible, "misplaced": len(misplaced)}
    return CheckResult("cuts_visible", passed, detail, values)


def _is_visible(changes: Levels, cut: int) -> bool:
    around = np.r_[changes[max(1, cut - CUT_WINDOW) : cut], changes[cut + 1 : cut + 1 + CUT_WINDOW]]
    usual = float(np.median(around)) if len(around) else 0.0
    return bool(changes[cut] >= max(2.0, TIMES_ITS_SURROUNDINGS * usual))


def _is_misplaced(changes: Levels, cut: int) -> bool:
    near = [*range(max(1, cut - CUT_MISSED_BY), cut), *range(cut + 1, cut + 1 + CUT_MISSED_BY)]
    best = max((place for place in near if place < len(changes)), key=lambda place: changes[place], default=cut)
    change = changes[best]
    return bool(change >= CLEAR_CHANGE and change >= 4 * changes[cut] and _is_visible(changes, best))


def _loudness(film: Path, timing: _Timing, target_lufs: float) -> CheckResult:
    if timing.audio_end_s is None:
        return CheckResult("loudness", False, "the film has no sound", {})
    try:
        found = measure_loudness(film)
    except FfmpegFailed as error:
        return CheckResult("loudness", False, str(error), {})
    values = {"integrated_lufs": found.integrated_lufs, "true_peak_dbtp": found.true_peak_dbtp}
    if found.silent:
        return CheckResult("loudness", False, "the film is silent; check that the song is not", values)
    return CheckResult("loudness", _is_at_target(found, target_lufs), _loudness_in_words(found, target_lufs), values)


def _is_at_target(found: Loudness, target_lufs: float) -> bool:
    loud_enough = abs(found.integrated_lufs - target_lufs) <= LOUDNESS_TOLERANCE_LU
    return loud_enough and found.true_peak_dbtp <= CEILING_DBTP + PEAK_TOLERANCE_DB


def _loudness_in_words(found: Loudness, target_lufs: float) -> str:
    return (
        f"{found.integrated_lufs:.1f} LUFS (wanted {target_lufs:g}), "
        f"true peak {found.true_peak_dbtp:.1f} dBTP (at most {CEILING_DBTP:g})"
    )


def _no_black_shot(frames: Frames, edit: EditList) -> CheckResult:
    black = [shot for shot, picture in _pictures(frames, edit) if _is_black(picture)]
    detail = "no shot is black"
    if black:
        detail = f"{len(black)} shots are black from start to end, first: shot {black[0].id} ({black[0].clip})"
    return CheckResult("no_black_shot", not black, detail, {"black_shots": len(black)})


def _is_black(picture: Frames) -> bool:
    brightest = np.percentile(picture[:: max(1, len(picture) // 50)], 99)
    return len(picture) > 0 and float(picture.mean()) <= BLACK_MEAN and float(brightest) <= BLACK_BRIGHTEST


def _no_duplicate_shot(frames: Frames, changes: Levels, edit: EditList) -> CheckResult:
    pairs = sorted({*_overlapping_sources(edit), *_same_pictures(frames, changes, edit)})
    detail = "no two shots show the same frames"
    if pairs:
        one, other = pairs[0]
        detail = f"{len(pairs)} pairs of shots show the same frames, first: shots {one} and {other}"
    return CheckResult("no_duplicate_shot", not pairs, detail, {"duplicates": len(pairs)})


def _overlapping_sources(edit: EditList) -> Iterator[tuple[int, int]]:
    """Pairs of shots that, by the edit list, use more than one film frame of the same stretch of a clip."""
    frame_s = float(1 / edit.fps)
    last: Shot | None = None
    for shot in sorted(edit.shots, key=lambda shot: (shot.clip, shot.source_start_s)):
        if last is not None and last.clip == shot.clip:
            last_end_s = last.source_start_s + last.frames * frame_s
            if shot.source_start_s < last_end_s - frame_s:
                yield min(last.id, shot.id), max(last.id, shot.id)
            if shot.source_start_s + shot.frames * frame_s <= last_end_s:
                continue
        last = shot


def _same_pictures(frames: Frames, changes: Levels, edit: EditList) -> Iterator[tuple[int, int]]:
    """Pairs of shots whose pictures agree frame by frame; shots in which nothing moves say nothing."""
    shots = [shot for shot in edit.shots if shot.first_frame + shot.frames <= len(frames) and _moves(changes, shot)]
    if len(shots) < 2:
        return
    firsts = frames[[shot.first_frame for shot in shots]].astype(np.int16)
    for place, one in enumerate(shots):
        alike = np.abs(firsts[place + 1 :] - firsts[place]).mean(axis=1) < SAME_PICTURE
        for other in (shots[place + 1 + offset] for offset in np.flatnonzero(alike)):
            common = min(one.frames, other.frames)
            left = frames[one.first_frame : one.first_frame + common].astype(np.int16)
            right = frames[other.first_frame : other.first_frame + common]
            if (np.abs(left - right).mean(axis=1) < SAME_PICTURE).all():
                yield min(one.id, other.id), max(one.id, other.id)


def _moves(changes: Levels, shot: Shot) -> bool:
    inside = changes[shot.first_frame + 1 : shot.first_frame + shot.frames]
    return bool(len(inside) and inside.mean() >= MOVING)


def _pictures(frames: Frames, edit: EditList) -> Iterator[tuple[Shot, Frames]]:
    for shot in edit.shots:
        picture = frames[shot.first_frame : shot.first_frame + shot.frames]
        if len(picture):
            yield shot, picture
