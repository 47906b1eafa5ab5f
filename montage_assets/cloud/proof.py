"""`montage cloud prove`: every kind of work once in the real cloud and once here, side by side.

Belongs here: the one command that shows, on a machine with a login, what cannot be shown without one.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from montage_assets.cloud.beat_detector import CGPUBeatDetector
from montage_assets.cloud.client import CGPUClient, run_cgpu_command
from montage_assets.cloud.encoder import CGPUEncoder, frames_in
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.journal import Journal
from montage_assets.cloud.neural_looks import CGPUNeuralLooks
from montage_assets.cloud.scene_detector import CGPUSceneDetector
from montage_assets.cloud.upscaler import CGPUUpscaler
from montage_assets.cloud.workspace import OnSent
from montage_assets.data_root import DataRoot
from montage_assets.media.beat_analysis import BeatAnalysis
from montage_assets.media.ffmpeg import input_args, run_ffmpeg
from montage_assets.settings import Settings

if TYPE_CHECKING:
    from montage_assets.media.small_frames import PackedPictures

LIMIT_S = 30 * 60.0
NEAR_S = 0.02
"""How near a beat of the cloud must be to the one found here."""
NEAR_ANSWER = 0.05
"""How near a probability of the cloud's TransNet V2 must be to the one here; a GPU adds up in another order."""
LIKE_DB = 30.0
"""How like the pictures upscaled there and here must be, in PSNR; a GPU calculates with half the digits."""
SHOT_FRAMES = 25
SHOT_WIDTH = 320
"""Pictures of the video that are upscaled, and their width: enough to measure, and here no more than minutes."""
SHOWN_FRAMES = 1000
"""Frames of the video that TransNet V2 is shown."""


@dataclass(frozen=True)
class Proved:
    """One thing tried. `seconds` counts transfers."""

    what: str
    worked: bool
    seconds: float
    told: str


def prove(settings: Settings, root: DataRoot, song: Path, video: Path) -> Iterator[Proved]:
    """Each thing as it is done. A failure of one does not keep the others from being tried."""
    journal = Journal(root, "proof")
    client = CGPUClient.from_settings(settings, deadline_s=LIMIT_S)

    def on_sent(what: str, size: int, seconds: float) -> None:
        journal.sent("proof", what, size, seconds)

    yield _tried("login and account", client.ask_status)
    yield _tried("GPU", lambda: run_cgpu_command(["nvidia-smi", "-L"], client=client))
    yield _tried("beats", lambda: _beats(client, on_sent, song))
    yield _tried("scenes", lambda: _scenes(client, on_sent, video))
    yield _tried("scenes by TransNet V2", lambda: _looks(client, on_sent, video))
    yield _tried("encode, NVENC", lambda: _encode(client, on_sent, video))
    yield _tried("upscale", lambda: _upscale(client, on_sent, video))


def _tried(what: str, do: Callable[[], str]) -> Proved:
    started = time.monotonic()
    try:
        told, worked = do(), True
    except CloudFailure as failure:
        told, worked = str(failure), False
    return Proved(what, worked, time.monotonic() - started, told)


def _beats(client: CGPUClient, on_sent: OnSent, song: Path) -> str:
    from montage_assets.media.beats import analyze_song

    remote = CGPUBeatDetector(client, on_sent).analyze_remote(song)
    started = time.monotonic()
    here = analyze_song(song)
    seconds = time.monotonic() - started
    furthest = furthest_beat_s(remote, here)
    if furthest > NEAR_S:
        raise _other(f"other beats than here, up to {1000 * furthest:.1f} ms apart")
    return f"the same beats as here (up to {1000 * furthest:.1f} ms apart), which took {seconds:.1f} s"


def _other(told: str) -> CloudFailure:
    return CloudFailure(CloudFault.WRONG_RESULT, told)


def furthest_beat_s(remote: BeatAnalysis, here: BeatAnalysis) -> float:
    """The largest distance of beats of the same number; infinite when they are not as many."""
    if len(remote.beats_s) != len(here.beats_s):
        return float("inf")
    return max((abs(a - b) for a, b in zip(remote.beats_s, here.beats_s, strict=True)), default=0.0)


def _scenes(client: CGPUClient, on_sent: OnSent, video: Path) -> str:
    from montage_assets.media.frame_scores import score_range
    from montage_assets.media.ingest import ingest_clip
    from montage_assets.media.scenes import detect_scenes
    from montage_assets.media.shards import cut_into_ranges

    remote = [start for start, _ in CGPUSceneDetector(client, on_sent=on_sent).detect_scenes_remote(video)]
    started = time.monotonic()
    clip = ingest_clip(video, video.name, "").clip
    (whole,) = cut_into_ranges(clip, 1, lambda _: None)
    here = [0.0, *detect_scenes(clip, score_range(video, clip, whole)).cuts_s]
    seconds = time.monotonic() - started
    apart = [abs(a - b) for a, b in zip(remote, here, strict=False)]
    if len(remote) != len(here) or max(apart, default=0.0) > float(1 / clip.fps) + 1e-6:
        raise _other(f"other scenes than here: {len(remote)} and {len(here)}")
    return f"the same {len(here)} scenes, within a frame, as here, which took {seconds:.1f} s"


def _looks(client: CGPUClient, on_sent: OnSent, video: Path) -> str:
    import numpy as np

    from montage_assets.media import transnet

    pictures = _small_pictures(video)
    windows = transnet.windows_of_all(len(pictures))
    found = CGPUNeuralLooks(client, on_sent).look_remote([(pictures, windows)])
    told = f"{len(pictures)} frames looked at on {found.device}"
    if not transnet.is_installed():
        return f"{told}; nothing here to compare with, since the extra neural is not installed"
    started = time.monotonic()
    here = transnet.look(pictures, windows, transnet.Compute())
    seconds = time.monotonic() - started
    apart = float(np.abs(np.concatenate(found.answers) - np.concatenate(here.answers)).max())
    if apart > NEAR_ANSWER:
        raise _other(f"other answers than here, up to {apart:.3f} apart")
    return f"{told}, the same answers as here (up to {apart:.4f} apart), which took {seconds:.1f} s on {here.device}"


def _small_pictures(video: Path) -> PackedPictures:
    """What TransNet V2 is shown of the video's beginning."""
    from montage_assets.media.frame_scores import analysis_frames
    from montage_assets.media.ingest import ingest_clip
    from montage_assets.media.shards import cut_into_ranges
    from montage_assets.media.small_frames import SmallFrameRecorder

    clip = ingest_clip(video, video.name, "").clip
    (whole,) = cut_into_ranges(clip, 1, lambda _: None)
    recorder = SmallFrameRecorder(whole)
    frames = analysis_frames(video, clip, whole.after_pts, whole.until_pts)
    for pts, frame in itertools.islice(frames, SHOWN_FRAMES):
        recorder.add(pts, frame)
    return recorder.recorded().pictures


def _upscale(client: CGPUClient, on_sent: OnSent, video: Path) -> str:
    from montage_assets.media import upscaling
    from montage_assets.media.transnet import Compute

    with tempfile.TemporaryDirectory(prefix="montage-cloud-") as place:
        shot, there, here = Path(place) / "shot.mkv", Path(place) / "there.mkv", Path(place) / "here.mkv"
        _write_shot(video, shot)
        made = CGPUUpscaler(client, on_sent).upscale_remote(shot, there)
        told = f"{made.frames} frames of {made.width}x{made.height}"
        if not upscaling.is_installed():
            return f"{told}; nothing here to compare with, since the extra upscale is not installed"
        device = upscaling.device_for(Compute())
        started = time.monotonic()
        upscaling.enlarge(shot, here, 2, device)
        seconds = time.monotonic() - started
        alike = likeness_db(there, here)
        if alike < LIKE_DB:
            raise _other(f"other pictures than here, like by {alike:.1f} dB")
        return f"{told}, like those made here by {alike:.1f} dB, which took {seconds:.1f} s on the {device}"


def _write_shot(video: Path, out: Path) -> None:
    args = [
        *input_args(video, "-an", "-sn", "-dn"), "-map", "0:V:0", "-vf", f"fps=25,scale={SHOT_WIDTH}:-2,format=yuv420p",
        "-frames:v", str(SHOT_FRAMES), "-c:v", "libx264", "-preset", "veryfast", "-crf", "12", str(out),
    ]  # fmt: skip
    run_ffmpeg(args, what=f"preparing a shot of {video.name} for the cloud")


def likeness_db(one: Path, other: Path) -> float:
    """The least PSNR of two films' pictures, in dB; 0 when they are not as many or as large."""
    import av
    import numpy as np

    worst = math.inf
    with av.open(str(one)) as first, av.open(str(other)) as second:
        for a, b in itertools.zip_longest(first.decode(video=0), second.decode(video=0)):
            if a is None or b is None or (a.width, a.height) != (b.width, b.height):
                return 0.0
            apart = a.to_ndarray(format="rgb24").astype(np.float64) - b.to_ndarray(format="rgb24")
            mean = float((apart**2).mean())
            worst = min(worst, 10 * math.log10(255**2 / mean) if mean else math.inf)
    return worst


def _encode(client: CGPUClient, on_sent: OnSent, video: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="montage-cloud-") as place:
        done = CGPUEncoder(client, on_sent).encode_remote(video, Path(place) / "film.mp4")
        return f"{frames_in(done.output)[0]} frames by {done.codec} on {done.gpu}, {done.size_bytes / 1e6:.1f} MB"
