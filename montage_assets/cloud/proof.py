"""`montage cloud prove`: every kind of work once in the real cloud and once here, side by side.

Belongs here: the one command that shows, on a machine with a login, what cannot be shown without one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from montage_assets.cloud.beat_detector import CGPUBeatDetector
from montage_assets.cloud.client import CGPUClient, run_cgpu_command
from montage_assets.cloud.encoder import CGPUEncoder, frames_in
from montage_assets.cloud.failures import CloudFailure
from montage_assets.cloud.journal import Journal
from montage_assets.cloud.scene_detector import CGPUSceneDetector
from montage_assets.cloud.workspace import OnSent
from montage_assets.data_root import DataRoot
from montage_assets.media.beat_analysis import BeatAnalysis
from montage_assets.settings import Settings

LIMIT_S = 30 * 60.0
NEAR_S = 0.02
"""How near a beat of the cloud must be to the one found here."""


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
    yield _tried("encode, NVENC", lambda: _encode(client, on_sent, video))


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
    verdict = "the same beats" if furthest <= NEAR_S else "OTHER beats"
    return f"{verdict} as here (up to {1000 * furthest:.1f} ms apart), which took {seconds:.1f} s"


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
    same = len(remote) == len(here) and max(apart, default=0.0) <= float(1 / clip.fps) + 1e-6
    told = "the same scenes, within a frame," if same else "OTHER scenes"
    return f"{told} as here ({len(remote)} and {len(here)}), which took {seconds:.1f} s"


def _encode(client: CGPUClient, on_sent: OnSent, video: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="montage-cloud-") as place:
        done = CGPUEncoder(client, on_sent).encode_remote(video, Path(place) / "film.mp4")
        return f"{frames_in(done.output)[0]} frames by {done.codec} on {done.gpu}, {done.size_bytes / 1e6:.1f} MB"
