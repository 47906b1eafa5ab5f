"""The film's sound: the right stretch of the song, faded, as long as the picture, at the right loudness."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from montage_assets.media.errors import FfmpegFailed, MediaError
from montage_assets.media.ffmpeg import ffmpeg_program
from montage_assets.media.join import join_segments
from montage_assets.media.render import OutputFormat, RenderShot, render_segment
from montage_assets.media.soundtrack import FilmSound, fade_out_s, film_samples, measure_loudness, mux_film
from tests.media.synth_video import clip_of, frame_times, make_video, shot_of, tone

FPS = Fraction(24000, 1001)
FMT = OutputFormat(64, 36, FPS, "h264", "preview")
FRAMES = 96
X264 = ("-c:v", "libx264", "-preset", "ultrafast")
Sound = NDArray[np.float32]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video")
    source = make_video(folder / "clip.mp4", frames=FRAMES, fps=FPS)
    segment = render_segment([RenderShot(source, clip_of(source), Fraction(0), FRAMES)], FMT, folder / "one.ts")
    return join_segments([segment], FMT, folder / "film.mp4").path


def song_of(
    path: Path, expression: str, seconds: float = 8.0, *, rate: int = 44100, encode: tuple[str, ...] = ()
) -> Path:
    """A stereo song; `expression` is of the time `t`."""
    source = f"aevalsrc='{expression}|{expression}':s={rate}:d={seconds}"
    command = [ffmpeg_program(), "-v", "error", "-y", "-f", "lavfi", "-i", source, *encode, f"file:{path}"]
    subprocess.run(command, check=True)
    return path


def noise(level: float) -> str:
    return f"{level}*(random(0)*2-1)"


def muxed(video: Path, song: Path, out: Path, start_s: float = 0.0, **more: object) -> FilmSound:
    return mux_film(video, song, out, music_start_s=start_s, frames=FRAMES, fps=FPS, **more)  # type: ignore[arg-type]


def sound_of(path: Path) -> Sound:
    """The left channel as a player gives it out: by presentation time from 0, shape (samples,)."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        length = round((stream.duration or 0) * stream.time_base * 48000)
    sound = np.zeros(length, np.float32)
    for frame in frames:
        start = round(frame.pts * frame.time_base * 48000)
        data = frame.to_ndarray()[0]
        low, high = max(start, 0), min(start + len(data), length)
        sound[low:high] = data[low - start : high - start]
    return sound


def level_db(sound: Sound) -> float:
    return float(10 * np.log10(np.square(sound, dtype=np.float64).mean() + 1e-12))


def offset_of(template: Sound, sound: Sound) -> int:
    """By how many samples `sound` is later than `template`."""
    size = 2 * max(len(template), len(sound))
    spectrum = np.fft.rfft(sound, size) * np.conj(np.fft.rfft(template, size))
    peak = int(np.argmax(np.abs(np.fft.irfft(spectrum, size))))
    return peak if peak < size // 2 else peak - size


def test_picture_and_sound_end_together_and_the_picture_is_copied_untouched(video: Path, tmp_path: Path) -> None:
    song = song_of(tmp_path / "song.wav", noise(0.2))
    out = tmp_path / "film.mp4"
    muxed(video, song, out)
    with av.open(str(out)) as container, av.open(str(video)) as before:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", 48000, 2)
        assert picture.duration * picture.time_base == FRAMES / FPS
        assert abs(sound.duration * sound.time_base - FRAMES / FPS) < Fraction(1, 48000)
        assert sound.start_time == picture.start_time == 0
        packets = [(p.pts * p.time_base, bytes(p)) for p in container.demux(picture) if p.size]
        assert packets == [(p.pts * p.time_base, bytes(p)) for p in before.demux(video=0) if p.size]
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "song.wav"]


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".ogg", ".flac", ".m4a"])
def test_the_song_begins_at_its_very_sample(suffix: str, video: Path, tmp_path: Path) -> None:
    encode = {".mp3": ("-q:a", "2"), ".ogg": ("-q:a", "6"), ".m4a": ("-b:a", "192k")}.get(suffix, ())
    # A chirp sounds different at every moment, so that correlation has one peak.
    song = song_of(tmp_path / f"song{suffix}", "0.3*sin(2*PI*(300+400*t)*t)", encode=encode)
    out = tmp_path / "film.mp4"
    muxed(video, song, out, start_s=2.125)
    t = 2.125 + np.arange(48000) / 48000
    expected = np.sin(2 * np.pi * (300 + 400 * t) * t).astype(np.float32)
    assert abs(offset_of(expected[4800:], sound_of(out)[4800:48000])) <= 1


def test_the_end_is_faded_out_and_the_rest_is_not(video: Path, tmp_path: Path) -> None:
    muxed(video, song_of(tmp_path / "song.wav", noise(0.2)), tmp_path / "film.mp4")
    sound = sound_of(tmp_path / "film.mp4")
    fade = round(fade_out_s(FRAMES, FPS) * 48000)
    assert level_db(sound[:48000]) == pytest.approx(level_db(sound[-fade - 24000 : -fade]), abs=0.5)
    assert level_db(sound[-1000:]) < level_db(sound[:48000]) - 25
    assert fade_out_s(3000, Fraction(30)) == pytest.approx(1.8)
    assert fade_out_s(50, Fraction(25)) == pytest.approx(0.4)


def test_a_song_that_is_too_short_is_followed_by_silence(video: Path, tmp_path: Path) -> None:
    muxed(video, song_of(tmp_path / "song.wav", noise(0.2), seconds=3.0), tmp_path / "film.mp4", start_s=1.0)
    sound = sound_of(tmp_path / "film.mp4")
    assert len(sound) == film_samples(FRAMES, FPS)
    assert level_db(sound[24000:72000]) > -30
    assert np.abs(sound[2 * 48000 + 2400 :]).max() < 1e-3


@pytest.mark.parametrize(
    ("expression", "gain"),
    [
        (noise(0.9), "down"),
        (noise(0.03), "up"),
        # Quiet with hard clicks: the limiter has to hold them without pulling the loudness down.
        ("0.06*sin(2*PI*440*t)+if(lt(mod(t,0.5),0.002),0.9,0)", "up"),
    ],
    ids=["loud", "quiet", "peaky"],
)
def test_the_film_has_the_wanted_loudness_and_its_peaks_stay_below_the_ceiling(
    expression: str, gain: str, video: Path, tmp_path: Path
) -> None:
    report = muxed(video, song_of(tmp_path / "song.wav", expression), tmp_path / "film.mp4")
    found = measure_loudness(tmp_path / "film.mp4")
    assert found.integrated_lufs == pytest.approx(-14, abs=0.5)
    assert found.true_peak_dbtp <= -1.0
    assert report.after == found
    assert (report.gain_db > 0) == (gain == "up")


def test_the_target_can_be_chosen(video: Path, tmp_path: Path) -> None:
    muxed(video, song_of(tmp_path / "song.wav", noise(0.3)), tmp_path / "film.mp4", target_lufs=-23.0)
    assert measure_loudness(tmp_path / "film.mp4").integrated_lufs == pytest.approx(-23, abs=0.3)


def test_gain_keeps_the_dynamics_of_the_song(video: Path, tmp_path: Path) -> None:
    song = song_of(tmp_path / "song.wav", f"if(lt(t,1.5),0.1,1)*{noise(0.3)}")
    muxed(video, song, tmp_path / "film.mp4")
    sound = sound_of(tmp_path / "film.mp4")
    step = level_db(sound[80000:120000]) - level_db(sound[10000:60000])
    assert step == pytest.approx(20, abs=0.7)


@pytest.mark.parametrize("level", [0.0, 0.0005])
def test_silence_stays_silence_and_near_silence_gets_no_absurd_gain(level: float, video: Path, tmp_path: Path) -> None:
    report = muxed(video, song_of(tmp_path / "song.wav", noise(level) if level else "0*t"), tmp_path / "film.mp4")
    assert report.gain_db <= 20
    assert level_db(sound_of(tmp_path / "film.mp4")) < (-100 if level == 0 else -45)


def beeps(path: Path, at_s: float, **more: object) -> Path:
    """A video whose sound is silent but for a short chirp."""
    chirp = f"if(between(t,{at_s},{at_s}+0.1),0.5*sin(2*PI*(500+8000*(t-{at_s}))*t),0)"
    sound = ["-f", "lavfi", "-i", f"aevalsrc='{chirp}':s=44100:d=3,aformat=channel_layouts=mono"]
    return make_video(path, frames=72, fps=24, inputs=sound, output=("-shortest",), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "made_with"),
    [
        ("plain.mp4", {}),
        ("plain.mkv", {}),
        ("broadcast.ts", {"encode": ("-c:v", "mpeg2video", "-q:v", "4", "-c:a", "mp2", "-b:a", "192k")}),
        (
            "picture later.mp4",
            {"filters": "setpts=PTS+0.5/TB", "encode": (*X264, "-fps_mode", "passthrough")},
        ),
    ],
)
def test_the_shots_own_sound_lies_under_its_very_picture(
    name: str, made_with: dict[str, object], tmp_path: Path
) -> None:
    source = beeps(tmp_path / name, at_s=2.0, **made_with)
    mute = make_video(tmp_path / "mute.mp4", frames=30, fps=24)
    clip, silent = clip_of(source), clip_of(mute)
    times = frame_times(source, clip)
    shots = [
        RenderShot(mute, silent, Fraction(0), 11),
        replace(shot_of(source, clip, 36, 24, times), frames=24),
        RenderShot(mute, silent, Fraction(0), 13),
    ]
    fmt = replace(FMT, fps=Fraction(24))
    segment = render_segment(shots, fmt, tmp_path / "film.ts")
    film = join_segments([segment], fmt, tmp_path / "joined.mp4").path
    song = song_of(tmp_path / "song.wav", "0.0001*sin(2*PI*50*t)")
    out = tmp_path / "film.mp4"
    mux_film(film, song, out, music_start_s=0, frames=48, fps=fmt.fps, shots=shots, original_audio=1.0)
    first = clip.first_pts * clip.time_base
    # The chirp's 2.0 s are the sound's; the shot begins at frame 36 of the picture.
    origin = first if name == "broadcast.ts" else Fraction(0)
    expected_s = 11 / 24 + float(2 + origin - first - times[36])
    sound = sound_of(out)
    t = np.arange(4800) / 48000
    chirp = np.sin(2 * np.pi * (500 + 8000 * t) * (2.0 + t)).astype(np.float32)
    assert offset_of(chirp, sound) / 48000 == pytest.approx(expected_s, abs=0.0015)
    assert level_db(sound[: 11 * 2000 - 500]) < level_db(sound[11 * 2000 : 35 * 2000]) - 12


def test_more_original_sound_is_louder_beside_the_song(video: Path, tmp_path: Path) -> None:
    source = make_video(
        tmp_path / "tone.mp4", frames=FRAMES, fps=FPS, inputs=tone(3000, 5, channels=1), output=("-shortest",)
    )
    shots = [RenderShot(source, clip_of(source), Fraction(0), FRAMES)]
    song = song_of(tmp_path / "song.wav", "0.2*sin(2*PI*300*t)")
    shares = []
    for level in (0.0, 0.3, 1.0):
        muxed(video, song, tmp_path / "film.mp4", shots=shots, original_audio=level)
        spectrum = np.abs(np.fft.rfft(sound_of(tmp_path / "film.mp4")[:96000]))
        shares.append(spectrum[2900 * 2 : 3100 * 2].max() / spectrum[250 * 2 : 350 * 2].max())
    assert shares[0] < 0.001 < shares[1] < shares[2]


@pytest.mark.parametrize("name", ["-y evil.wav", 'a\'b "c" $(x);[0:a],=\\.wav'])
def test_song_names_are_only_names(name: str, video: Path, tmp_path: Path) -> None:
    muxed(video, song_of(tmp_path / name, noise(0.2)), tmp_path / "out 'film'.mp4")
    assert level_db(sound_of(tmp_path / "out 'film'.mp4")[:48000]) > -30


def test_a_file_without_sound_is_refused_and_leaves_nothing(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "song.mp3"
    broken.write_bytes(b"no song" * 100)
    (tmp_path / "film.mp4").write_bytes(b"before")
    with pytest.raises(FfmpegFailed, match=r"song\.mp3"):
        muxed(video, broken, tmp_path / "film.mp4")
    with pytest.raises(MediaError, match="original_audio is 2; it must be from 0"):
        muxed(video, broken, tmp_path / "film.mp4", original_audio=2.0)
    assert (tmp_path / "film.mp4").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "song.mp3"]


def test_the_same_inputs_give_the_same_film(video: Path, tmp_path: Path) -> None:
    song = song_of(tmp_path / "song.wav", noise(0.4))
    for name in ("one.mp4", "other.mp4"):
        muxed(video, song, tmp_path / name)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "other.mp4").read_bytes()
