"""The film's sound and the finished file: song, fade, original sound, loudness, one AAC encode, the mux.

Belongs here: everything between a song and a finished MP4. Does not belong here: where the music starts
(`pacing`), the picture (`render`, `join`), judging the result (`film_check`).

Sound is counted in samples at 48 kHz: the film's `frames` at `fps` are exactly `film_samples` of them, and
the song is cut by decoding it from its beginning, because seeking is inexact in MP3.

Loudness (EBU R128, ITU-R BS.1770): the mix is measured, one linear gain brings it to the target, and a
limiter that works at four times the rate (BS.1770's own oversampling for true peaks) catches what would
exceed the ceiling. What comes out is measured again, and the gain corrected while the limiter has made
it more than 0.3 LU too quiet. loudnorm's own second pass would fall back to changing the dynamics.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from montage_assets.media.edit_list import DEFAULT_LOUDNESS_LUFS
from montage_assets.media.encoders import MP4_TAGS, Codec
from montage_assets.media.errors import FfmpegFailed, MediaError
from montage_assets.media.ffmpeg import OnProgress, input_args, run_ffmpeg
from montage_assets.media.render import RenderShot

ALGORITHM = 1
"""Part of every film's key; raised whenever a change of this module changes the sound."""

SAMPLE_RATE = 48_000
AUDIO_BIT_RATE = "256k"

FADE_S = Fraction(9, 5)
FADE_SHARE = Fraction(1, 5)
CLICK_FADE_S = 0.008

CEILING_DBTP = -1.0
# AAC moves peaks a little; the limiter works that much lower.
CODEC_HEADROOM_DB = 0.5
MOST_GAIN_DB = 20.0
# What the meter reports for silence, and for less than its 0.4 s.
SILENCE_LUFS = -69.9
LOUDNESS_TOLERANCE_LU = 0.3
CORRECTIONS = 3

SOUND_PREROLL_S = 1
SHOTS_PER_COMMAND = 16


@dataclass(frozen=True)
class Loudness:
    """Integrated loudness (LUFS; at most -69.9 means silence) and true peak (dBTP) of a whole sound."""

    integrated_lufs: float
    true_peak_dbtp: float

    @property
    def silent(self) -> bool:
        return self.integrated_lufs <= SILENCE_LUFS


@dataclass(frozen=True)
class FilmSound:
    """What was done to the sound: its loudness before and in the finished film, and the gain (dB) between."""

    before: Loudness
    after: Loudness
    gain_db: float


@dataclass(frozen=True)
class _Mastering:
    gain_db: float
    ceiling_dbtp: float


def film_samples(frames: int, fps: Fraction) -> int:
    """Samples of sound that `frames` frames last, to the nearest."""
    return round(frames * SAMPLE_RATE / fps)


def fade_out_s(frames: int, fps: Fraction) -> float:
    """Length of the fade at the end: 1.8 s, or a fifth of a film shorter than 9 s."""
    return float(min(FADE_S, FADE_SHARE * frames / fps))


def mux_film(
    video: Path,
    song: Path,
    out_path: Path,
    *,
    music_start_s: float,
    frames: int,
    fps: Fraction,
    codec: Codec = "h264",
    shots: Sequence[RenderShot] = (),
    original_audio: float = 0.0,
    target_lufs: float = DEFAULT_LOUDNESS_LUFS,
    on_progress: OnProgress | None = None,
) -> FilmSound:
    """Put the sound under the joined film `video` (`frames` at `fps`) and write the finished MP4.

    `original_audio` (0..1) is the level of the shots' own sound under the song; `shots` are needed for it
    alone. The song is padded with silence when it is too short. The file appears whole or not at all.
    Raises MediaError when the song has no sound or a level is out of range, FfmpegFailed when ffmpeg fails.
    """
    if not 0 <= original_audio <= 1:
        raise MediaError(f"original_audio is {original_audio:g}; it must be from 0 (off) to 1 (full)")
    unfinished = out_path.with_name(f".{out_path.name}.{os.getpid()}.part")
    with tempfile.TemporaryDirectory(prefix=".sound-", dir=out_path.parent) as folder:
        mix = Path(folder) / "mix.wav"
        originals = None
        if original_audio > 0 and any(shot.clip.audio_channels for shot in shots):
            originals = Path(folder) / "originals.f32"
            _lay_out_original_sound(shots, fps, originals)
        _mix(
            song,
            music_start_s,
            film_samples(frames, fps),
            fade_out_s(frames, fps),
            originals,
            original_audio,
            mix,
            on_progress,
        )
        before = measure_loudness(mix, on_progress=on_progress)
        mastering = _mastering(mix, before, target_lufs)
        try:
            for _ in range(CORRECTIONS):
                _mux(video, mix, mastering, codec, unfinished, on_progress)
                after = measure_loudness(unfinished, on_progress=on_progress)
                if after.silent or after.true_peak_dbtp <= CEILING_DBTP:
                    break
                lower = after.true_peak_dbtp - CEILING_DBTP + 0.1
                mastering = replace(mastering, ceiling_dbtp=mastering.ceiling_dbtp - lower)
            unfinished.replace(out_path)
        finally:
            unfinished.unlink(missing_ok=True)
    return FilmSound(before, after, mastering.gain_db)


def measure_loudness(path: Path, filters: str = "", on_progress: OnProgress | None = None) -> Loudness:
    """Loudness of a file's first audio stream, after `filters`. Raises FfmpegFailed when it has none."""
    chain = ",".join(part for part in (filters, "ebur128=peak=true:framelog=quiet") if part)
    log = run_ffmpeg(
        [*input_args(path, "-vn"), "-map", "0:a:0", "-af", chain, "-f", "null", "-"],
        what=f"Measuring the loudness of {path.name}",
        on_progress=on_progress,
        level="info",
    )
    summary = log[log.rfind("Summary:") :]
    integrated = re.search(r"I:\s+(\S+) LUFS", summary)
    peak = re.search(r"Peak:\s+(\S+) dBFS", summary)
    if integrated is None or peak is None:
        raise FfmpegFailed(f"The loudness of {path.name} could not be measured; use another song", log)
    return Loudness(float(integrated[1]), float(peak[1]))


def _mastering(mix: Path, before: Loudness, target_lufs: float) -> _Mastering:
    """The gain that brings the mix to the target through the limiter."""
    ceiling = CEILING_DBTP - CODEC_HEADROOM_DB
    if before.silent:
        return _Mastering(0.0, ceiling)
    mastering = _Mastering(min(target_lufs - before.integrated_lufs, MOST_GAIN_DB), ceiling)
    if before.true_peak_dbtp + mastering.gain_db <= ceiling:
        return mastering
    for _ in range(CORRECTIONS):
        missing = target_lufs - measure_loudness(mix, _mastering_filters(mastering)).integrated_lufs
        if abs(missing) <= LOUDNESS_TOLERANCE_LU or mastering.gain_db >= MOST_GAIN_DB:
            break
        mastering = replace(mastering, gain_db=min(mastering.gain_db + missing, MOST_GAIN_DB))
    return mastering


def _mastering_filters(mastering: _Mastering) -> str:
    limit = 10 ** (mastering.ceiling_dbtp / 20)
    return (
        f"volume={mastering.gain_db:.2f}dB:precision=float,aresample={4 * SAMPLE_RATE},"
        f"alimiter=limit={limit:.5f}:attack=5:release=80:level=0:latency=1,"
        f"aresample={SAMPLE_RATE},aformat=sample_fmts=fltp:channel_layouts=stereo"
    )


def _mix(
    song: Path,
    music_start_s: float,
    samples: int,
    fade_s: float,
    originals: Path | None,
    level: float,
    out_path: Path,
    on_progress: OnProgress | None,
) -> None:
    start = round(music_start_s * SAMPLE_RATE)
    graph = [
        f"[0:a:0]aresample={SAMPLE_RATE},aformat=sample_fmts=fltp:channel_layouts=stereo,asetpts=N/SR/TB,"
        f"atrim=start_sample={start}:end_sample={start + samples},asetpts=N/SR/TB,"
        f"apad=whole_len={samples},afade=t=in:d={CLICK_FADE_S}[song]"
    ]
    inputs = input_args(song, "-vn")
    if originals is not None:
        inputs += ["-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", "2", "-i", str(originals.absolute())]
        graph += [
            "[song]asplit[heard][key]",
            f"[1:a]volume={level:.4f}:precision=float[own]",
            # The shots' sound steps back by up to 6 dB where the song is loud.
            "[own][key]sidechaincompress=threshold=0.1:ratio=2:attack=20:release=400[ducked]",
            "[heard][ducked]amix=inputs=2:normalize=0:duration=first[mixed]",
        ]
    else:
        graph.append("[song]anull[mixed]")
    fade_start = samples / SAMPLE_RATE - fade_s
    graph.append(f"[mixed]afade=t=out:st={fade_start:.6f}:d={fade_s:.6f},atrim=end_sample={samples}[out]")
    run_ffmpeg(
        [*inputs, "-filter_complex", ";".join(graph), "-map", "[out]", "-c:a", "pcm_f32le",
         "-fflags", "+bitexact", "-f", "wav", str(out_path.absolute())],
        what=f"Preparing the song {song.name}",
        on_progress=on_progress,
    )  # fmt: skip


def _mux(
    video: Path,
    mix: Path,
    mastering: _Mastering,
    codec: Codec,
    out_path: Path,
    on_progress: OnProgress | None,
) -> None:
    run_ffmpeg(
        [
            *input_args(video), *input_args(mix),
            "-map", "0:v:0", "-map", "1:a:0",
            "-c:v", "copy", "-tag:v", MP4_TAGS[codec],
            "-af", _mastering_filters(mastering), "-c:a", "aac", "-b:a", AUDIO_BIT_RATE, "-ac", "2",
            "-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact",
            "-movflags", "+faststart", "-f", "mp4", str(out_path.absolute()),
        ],
        what=f"Writing {out_path.name.strip('.').split('.mp4')[0]}.mp4",
        on_progress=on_progress,
    )  # fmt: skip


def _lay_out_original_sound(shots: Sequence[RenderShot], fps: Fraction, out_path: Path) -> None:
    """Every shot's own sound at its place in the film, silence where a clip has none: raw stereo floats."""
    ends = [film_samples(frames, fps) for frames in accumulate(shot.frames for shot in shots)]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    with out_path.open("wb") as whole:
        for first in range(0, len(shots), SHOTS_PER_COMMAND):
            part = out_path.with_name("part.f32")
            group = slice(first, first + SHOTS_PER_COMMAND)
            _original_sound(shots[group], lengths[group], part)
            whole.write(part.read_bytes())


def _original_sound(shots: Sequence[RenderShot], lengths: Sequence[int], out_path: Path) -> None:
    inputs: list[str] = []
    chains: list[str] = []
    opened = 0
    for index, (shot, length) in enumerate(zip(shots, lengths, strict=True)):
        if shot.clip.audio_channels == 0:
            source = f"anullsrc=r={SAMPLE_RATE}:cl=stereo,atrim=end_sample={length}"
        else:
            start = shot.clip.first_pts * shot.clip.time_base + shot.in_time_s
            inputs += input_args(shot.path, "-vn", "-sn", "-dn", *_seek_before(shot, start))
            source = f"[{opened}:a:0]{_own_sound_chain(start, length)}"
            opened += 1
        chains.append(f"{source},aformat=sample_fmts=flt:channel_layouts=stereo[a{index}]")
    pads = "".join(f"[a{index}]" for index in range(len(shots)))
    graph = ";".join([*chains, f"{pads}concat=n={len(shots)}:v=0:a=1[out]"])
    run_ffmpeg(
        ["-copyts", *inputs, "-filter_complex", graph, "-map", "[out]", "-c:a", "pcm_f32le", "-f", "f32le",
         str(out_path.absolute())],
        what=f"Reading the sound of {', '.join(dict.fromkeys(shot.clip.name for shot in shots))}",
    )  # fmt: skip


def _own_sound_chain(start: Fraction, length: int) -> str:
    """`length` samples from the absolute time `start` on.

    Gaps become silence, so that a sample's place is its time. The edges are faded against clicks.
    """
    seconds = length / SAMPLE_RATE
    edge = min(CLICK_FADE_S, seconds / 4)
    origin = _origin(start)
    skip = round((start - origin) * SAMPLE_RATE)
    return (
        f"asetpts=PTS-{float(origin):.3f}/TB,aresample={SAMPLE_RATE}:async=1:first_pts=0,"
        f"aformat=sample_fmts=fltp:channel_layouts=stereo,"
        f"atrim=start_sample={skip}:end_sample={skip + length},asetpts=N/SR/TB,apad=whole_len={length},"
        f"afade=t=in:d={edge:.6f},afade=t=out:st={seconds - edge:.6f}:d={edge:.6f}"
    )


def _origin(start: Fraction) -> Fraction:
    """Where a shot's sound is counted from: a second before it, in whole milliseconds."""
    return Fraction(int((start - SOUND_PREROLL_S) * 1000), 1000)


def _seek_before(shot: RenderShot, start: Fraction) -> list[str]:
    """Input options that seek before the shot, far enough for the decoder to have settled at its start."""
    seek_to = _origin(start) - SOUND_PREROLL_S
    if seek_to <= Fraction(shot.clip.container_start_s):
        return []
    return ["-seek_timestamp", "1", "-noaccurate_seek", "-ss", f"{float(seek_to):.3f}"]
