"""The scenes of videos, found on the cloud machine by the same detectors that this machine has.

Belongs here: what is sent of a video, by backend, and the check of what comes back. Does not belong here: detecting
(`media.scenes`, which is sent along). Another backend is another row of `BACKENDS`: what it sends of a video, the
modules of ours and the packages that its script needs, and the script.

`pyscenedetect` sends a copy of 256 pixels without sound and without names. It has the video's frames, one for one, but
it is compressed, so that a cut whose score is at the threshold may fall one frame beside the one found here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from montage_assets.cloud.client import CGPUClient
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.shipped import MODULES, SCRIPTS, packed_modules, run_script
from montage_assets.cloud.workspace import OnSent, Workspace, in_workspace
from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import run_ffmpeg
from montage_assets.media.frame_scores import SCALE_FLAGS, analysis_size, decode_args
from montage_assets.media.scenes import SceneList

COPY_BYTES_PER_S = 50_000
"""Of the copy of 256 pixels, for a decision: 25 to 110 kB on eight clips."""
_WORK_S = 300.0
_WORK_PER_VIDEO_S = 60.0
_SECONDS_PER_SECOND = 0.5
"""The cloud machine may take half a video's length for it."""
_JOB = "job.json"
_RESULT = "scenes.json"


@dataclass(frozen=True)
class Video:
    """A video to send: the file that is decoded for it (the clip or its proxy), and the clip as that file shows it."""

    path: Path
    clip: Clip


@dataclass(frozen=True)
class Backend:
    """One way to find scenes in the cloud. `prepare` writes what is sent of a video, and `sends` names it."""

    sends: str
    prepare: Callable[[Video, Path], None]
    suffix: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    script: Path


@dataclass(frozen=True)
class RemoteScenes:
    """The scenes of one video and the timestamps of the frames that the cloud saw, in the clip's time base; or why
    there are none."""

    scenes: SceneList | None
    pts: list[int]
    failure: str | None = None


@dataclass(frozen=True)
class _Prepared:
    """What is sent of one video."""

    video: Video
    file: Path
    pts: list[int]


class CGPUSceneDetector:
    """Scene detection on a cloud machine. `on_sent` is told of every upload."""

    def __init__(self, client: CGPUClient, backend: str = "pyscenedetect", on_sent: OnSent | None = None) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"there is no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
        self._client = client
        self._backend = BACKENDS[backend]
        self._on_sent = on_sent

    def detect_scenes_remote(
        self, video: Path, detector: str = "adaptive", threshold: float | None = None
    ) -> list[tuple[float, float]]:
        """Start and end of every scene of a video, in seconds from its first frame.

        Raises CloudFailure, and MediaError for a video that cannot be used.
        """
        from montage_assets.media.ingest import ingest_clip

        clip = ingest_clip(video, video.name, "").clip
        (found,) = self.detect_many([Video(video, clip)], detector, threshold)
        if found.scenes is None:
            raise CloudFailure(CloudFault.WORK_FAILED, found.failure or "")
        return spans(found.scenes, found.pts, clip)

    def detect_many(
        self, videos: Sequence[Video], detector: str = "adaptive", threshold: float | None = None
    ) -> list[RemoteScenes]:
        """The scenes of many videos in one session, in their order; a video that fails fails alone.

        Raises CloudFailure when the session does.
        """
        with tempfile.TemporaryDirectory(prefix="montage-cloud-") as place:
            folder = Path(place)
            sent, refused = self._prepared(videos, folder)
            if not sent:
                return [RemoteScenes(None, [], refused[number]) for number in range(len(videos))]
            (folder / _JOB).write_text(json.dumps(self._job(list(sent.values()), detector, threshold)))
            (folder / MODULES).write_bytes(packed_modules(self._backend.modules))
            length_s = sum(each.video.clip.duration_s for each in sent.values())
            limit_s = _WORK_S + _WORK_PER_VIDEO_S * len(sent) + _SECONDS_PER_SECOND * length_s
            files = [*(each.file for each in sent.values()), folder / _JOB, folder / MODULES, self._backend.script]

            def work(workspace: Workspace) -> None:
                workspace.put(files, f"{self._backend.sends} of {len(sent)} videos, and the detectors")
                run_script(workspace, self._backend.script, MODULES, _JOB, _RESULT, timeout_s=limit_s)
                workspace.get(_RESULT, folder / _RESULT)

            in_workspace(self._client, work, self._on_sent)
            rows = dict(zip(sent, _read(folder / _RESULT, len(sent)), strict=True))
            return [
                _scenes(rows[number], video.clip, sent[number].pts)
                if number in sent
                else RemoteScenes(None, [], refused[number])
                for number, video in enumerate(videos)
            ]

    def _prepared(self, videos: Sequence[Video], folder: Path) -> tuple[dict[int, _Prepared], dict[int, str]]:
        """What is sent, and why of some videos nothing can be, by their places."""
        sent: dict[int, _Prepared] = {}
        refused: dict[int, str] = {}
        for number, video in enumerate(videos):
            file = folder / f"video-{number:04d}{self._backend.suffix}"
            try:
                self._backend.prepare(video, file)
            except MediaError as error:
                refused[number] = str(error)
            else:
                sent[number] = _Prepared(video, file, timestamps(file, video.clip))
        return sent, refused

    def _job(self, sent: Sequence[_Prepared], detector: str, threshold: float | None) -> dict[str, Any]:
        from pydantic import TypeAdapter

        nameless = [replace(each.video.clip, name=each.file.name, fingerprint="") for each in sent]
        clips = TypeAdapter(list[Clip]).dump_python(nameless, mode="json")
        return {
            "detector": detector,
            "threshold": threshold,
            "packages": list(self._backend.packages),
            "videos": [
                {"file": each.file.name, "clip": clip, "pts": each.pts} for each, clip in zip(sent, clips, strict=True)
            ],
        }


def write_small_copy(video: Video, out: Path) -> None:
    """The video's frames as the detectors want them: 256 pixels on the long side, each at its own timestamp."""
    width, height = analysis_size(video.clip)
    args = [
        *decode_args(video.path, video.clip), "-map", "0:V:0", "-map_metadata", "-1",
        "-vf", f"scale={width}:{height}:flags={SCALE_FLAGS},format=yuv444p",
        "-fps_mode", "passthrough", "-enc_time_base", "demux",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-bf", "0", "-g", "250", "-f", "nut", str(out),
    ]  # fmt: skip
    run_ffmpeg(args, what=f"preparing {video.clip.name} for the cloud")


def timestamps(copy: Path, clip: Clip) -> list[int]:
    """Times of all frames of a copy, in the clip's time base, in display order."""
    from fractions import Fraction

    import av

    with av.open(str(copy)) as container:
        stream = container.streams.video[0]
        ticks = Fraction(stream.time_base or 1) / clip.time_base
        found = [round(packet.pts * ticks) for packet in container.demux(stream) if packet.pts is not None]
    return sorted(found)


def spans(scenes: SceneList, pts: Sequence[int], clip: Clip) -> list[tuple[float, float]]:
    """Start and end of every scene in seconds. The last frame is taken to last one mean frame."""
    end_s = float((pts[-1] - pts[0]) * clip.time_base + 1 / clip.fps)
    edges = [0.0, *scenes.cuts_s, round(end_s, 6)]
    return list(pairwise(edges))


def _read(file: Path, videos: int) -> list[_Row]:
    from pydantic import TypeAdapter, ValidationError

    try:
        rows = TypeAdapter(list[_Row]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise CloudFailure(CloudFault.WRONG_RESULT, error.errors()[0]["msg"]) from None
    if len(rows) != videos:
        raise CloudFailure(CloudFault.WRONG_RESULT, f"{len(rows)} of {videos} videos")
    return rows


@dataclass(frozen=True)
class _Row:
    """What the script says of one video."""

    frames: int = 0
    cuts: tuple[int, ...] = ()
    failure: str | None = None


def _scenes(row: _Row, clip: Clip, pts: list[int]) -> RemoteScenes:
    if row.failure is not None:
        return RemoteScenes(None, pts, row.failure[:200])
    rising = all(later > earlier for earlier, later in pairwise((0, *row.cuts, row.frames)))
    if row.frames != len(pts) or not rising:
        return RemoteScenes(None, pts, f"{row.frames} of {len(pts)} frames were seen, or the cuts are none")
    times_s = [round(float((pts[cut] - pts[0]) * clip.time_base), 6) for cut in row.cuts]
    scenes = SceneList(clip.name, clip.fps, row.frames, pts[0], list(row.cuts), times_s)
    return RemoteScenes(scenes, pts)


BACKENDS: dict[str, Backend] = {
    "pyscenedetect": Backend(
        sends="small copies (256 px, without sound)",
        prepare=write_small_copy,
        suffix=".nut",
        modules=("montage_assets.media.scenes", "montage_assets.media.frame_scores"),
        packages=(f"scenedetect-headless=={version('scenedetect-headless')}",),
        script=SCRIPTS / "find_scenes.py",
    ),
}
