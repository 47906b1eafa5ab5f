"""Scene detection in shards without Dagster: what each shard of a job does, and putting the shards together.

One video is shared by time, several are shared by file. A shard's scores are kept where the pipeline keeps its own
(`assets.shard_steps`), so both find what the other has done; beside them each shard leaves a JSON file that says
which parts it did. Putting together refuses a job that lacks a shard, merges as the pipeline does and runs the
detector once over each whole video.

Belongs here: the work, on the data root. Does not belong here: the command line
(`cluster.distributed_scene_detection`) and starting jobs (`cluster.job_submitter`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from montage_assets import layout
from montage_assets.assets import neural_steps, shard_steps
from montage_assets.assets.shard_steps import RangeTask, ShardTask
from montage_assets.cluster.distribution import balance
from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.job_manifests import SceneJob
from montage_assets.data_root import DataRoot
from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError, UnusableClip
from montage_assets.media.ffmpeg import ffmpeg_version
from montage_assets.media.fingerprint import fingerprint_of
from montage_assets.media.frame_scores import FrameScores
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.neural_scenes import NEURAL_DETECTORS, NeuralName
from montage_assets.media.scenes import DETECTORS, DetectorName, SceneList, detect_scenes
from montage_assets.media.shards import ClipRange

_log = logging.getLogger(__name__)
_JOB_ID = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SHARD_FILE = re.compile(r"shard-(\d+)-of-(\d+)\.json")
_RESULT = "scenes.json"

Record = TypeVar("Record")


@dataclass(frozen=True)
class VideoPart:
    """What a shard did of one video: of all its `ranges` those numbered in `done`.

    `failure` says why the video cannot be used; `clip` is None when it could not even be opened.
    """

    video: str
    clip: Clip | None
    ranges: list[ClipRange]
    done: list[int]
    failure: str | None = None


@dataclass(frozen=True)
class ShardFile:
    """What one shard of a job leaves behind. `ffmpeg` is the build: scores of two builds do not compare."""

    job: str
    index: int
    request: SceneJob
    ffmpeg: str
    parts: list[VideoPart]


@dataclass(frozen=True)
class VideoScenes:
    """The scenes of one video: `cuts` are first frames of new scenes, `scenes` their (start, end) in seconds."""

    fps: float
    frames: int
    cuts: list[int]
    cuts_s: list[float]
    scenes: list[tuple[float, float]]


@dataclass(frozen=True)
class JobScenes:
    """The scenes of every video of a job, and why others are left out."""

    job: str
    detector: str
    videos: dict[str, VideoScenes]
    left_out: dict[str, str] = field(default_factory=dict)


def request_of(
    root: DataRoot, videos: Sequence[str], shard_count: int, detector: str, threshold: float | None
) -> SceneJob:
    """The job that a command line asks for. Raises MediaError for a video or a detector that does not exist."""
    keys = tuple(dict.fromkeys(_key_of(root, video) for video in videos))
    return SceneJob(keys, shard_count, _known_detector(detector), threshold)


def do_shard(root: DataRoot, job: str, request: SceneJob, index: int) -> ShardFile:
    """Score one shard's part, and leave its file on the data root. What was scored before is not scored again.

    Raises MediaError for an index or job id that cannot be, or when none of its videos can be used.
    """
    _refuse_bad_id(job)
    if not 0 <= index < request.shard_count:
        raise MediaError(f"there is no shard {index} of {request.shard_count}; they are counted from 0")
    pictures = request.detector in NEURAL_DETECTORS
    parts = [_scored(root, job, index, part, pictures) for part in _planned_for_shard(root, request, index)]
    if parts and all(part.failure for part in parts):
        raise MediaError(_none_usable((part.video, part.failure) for part in parts))
    result = ShardFile(job, index, request, ffmpeg_version(), parts)
    root.write_bytes(shard_key(job, index, request.shard_count), document(result))
    return result


def shard_key(job: str, index: int, count: int) -> str:
    """Where a shard's file lies."""
    return layout.job_file(job, f"shard-{index}-of-{count}.json")


def result_key(job: str) -> str:
    """Where the scenes of the whole job lie."""
    return layout.job_file(job, _RESULT)


def aggregate(root: DataRoot, job: str, detector: str | None = None, threshold: float | None = None) -> JobScenes:
    """The scenes of every video of a job, from the files of all its shards; stored on the data root as well.

    Another detector or threshold than the job's needs no decoding. Raises MediaError, naming the shard, when one is
    missing or does not belong to the others.
    """
    shards = _all_shards(root, job)
    request = shards[0].request
    if detector is None and threshold is None:
        threshold = request.threshold
    detector = _known_detector(detector or request.detector)
    videos: dict[str, VideoScenes] = {}
    left_out: dict[str, str] = {}
    for video in request.videos:
        try:
            videos[video] = _scenes_of(root, _parts_of(video, shards), detector, threshold)
        except UnusableClip as error:
            left_out[video] = str(error)
    if not videos:
        raise MediaError(_none_usable(left_out.items()))
    result = JobScenes(job, detector, videos, left_out)
    root.write_bytes(result_key(job), document(result))
    return result


def scenes_of_job(root: DataRoot, job: str) -> JobScenes:
    """As `aggregate`, for the cluster rooms: raises ClusterError."""
    try:
        return aggregate(root, job)
    except MediaError as error:
        raise ClusterError(str(error)) from None


def document(record: JobScenes | ShardFile) -> bytes:
    """A record as JSON."""
    return TypeAdapter(type(record)).dump_json(record, indent=1)


def _loaded(kind: type[Record], root: DataRoot, key: str) -> Record:
    try:
        return TypeAdapter(kind).validate_json(root.read_bytes(key))
    except ValidationError:
        raise MediaError(f"{root.where(key)} is not of this version; do the job's shards again") from None


def _known_detector(name: str) -> DetectorName | NeuralName:
    for detector in (*DETECTORS, *NEURAL_DETECTORS):
        if detector == name:
            return detector
    raise MediaError(f"there is no scene detector {name!r}; choose one of {', '.join((*DETECTORS, *NEURAL_DETECTORS))}")


def _refuse_bad_id(job: str) -> None:
    if not _JOB_ID.fullmatch(job):
        raise MediaError(f"{job!r} is no name of a job; use small letters, digits and dashes")


def _none_usable(reasons: Iterable[tuple[str, str | None]]) -> str:
    return "no video can be used: " + "; ".join(f"{video} {reason}" for video, reason in reasons)


# One shard.


def _key_of(root: DataRoot, video: str) -> str:
    """The video as a key of the data root where it lies there, so that every node finds it; else its full path."""
    key = root.key_of(video)
    if root.exists(key):
        return key
    if not Path(video).is_file():
        raise MediaError(f"there is no video {video}, neither here nor on {root.url}; check its spelling")
    return root.key_of(str(Path(video).absolute()))


def _videos_of(root: DataRoot, request: SceneJob, index: int) -> list[str]:
    """Shards of like size in bytes; every shard comes to the same division by itself."""
    sizes = [float(_size(root, video)) for video in request.videos]
    return [request.videos[number] for number in balance(sizes, [1.0] * request.shard_count)[index]]


def _size(root: DataRoot, video: str) -> int:
    folder, name = _folder_and_name(video)
    return next((file.size for file in root.list_files(folder, recursive=False) if file.name == name), 0)


def _folder_and_name(video: str) -> tuple[str, str]:
    folder, _, name = video.rpartition("/")
    return folder or ("/" if video.startswith("/") else "."), name


def _planned(root: DataRoot, video: str, count: int) -> VideoPart:
    """The video with all its ranges, none of them done yet."""
    folder, name = _folder_and_name(video)
    path = root.local_file(video)
    with path.open("rb") as stream:
        fingerprint = fingerprint_of(stream, path.stat().st_size)
    try:
        clip = ingest_clip(path, name, fingerprint).clip
    except UnusableClip as error:
        return VideoPart(video, None, [], [], str(error))
    return VideoPart(video, clip, shard_steps.ranges_of(root, folder, clip, count), [])


def _planned_for_shard(root: DataRoot, request: SceneJob, index: int) -> list[VideoPart]:
    if len(request.videos) > 1:
        whole = [_planned(root, video, 1) for video in _videos_of(root, request, index)]
        return [replace(part, done=[0] if part.clip else []) for part in whole]
    part = _planned(root, request.videos[0], request.shard_count)
    # A video with few keyframes has fewer ranges than there are shards.
    return [replace(part, done=[index] if index < len(part.ranges) else [])]


def _scored(root: DataRoot, job: str, index: int, part: VideoPart, pictures: bool) -> VideoPart:
    if part.clip is None:
        _log.warning("%s is left out: it %s", part.video, part.failure)
        return part
    tasks = [RangeTask(part.clip, part.ranges[number], False, with_small_frames=pictures) for number in part.done]
    is_known = shard_steps.is_analysed(root, part.clip, NEURAL_DETECTORS[0] if pictures else DETECTORS[0])
    undone = [] if is_known else [task for task in tasks if not shard_steps.is_done(root, task)]
    folder, _ = _folder_and_name(part.video)
    report = shard_steps.do_shard(root, ShardTask(folder, index, 1, undone), _log)
    shard_steps.keep_speeds(root, f"{job}-{index}", [report])
    failures = shard_steps.failures_in([report])
    return replace(part, failure=failures[0].reason) if failures else part


# All shards.


def _all_shards(root: DataRoot, job: str) -> list[ShardFile]:
    _refuse_bad_id(job)
    folder = layout.job_file(job, "").rstrip("/")
    files = root.list_files(folder, recursive=False) if root.folder_exists(folder) else []
    found = [match for file in files if (match := _SHARD_FILE.fullmatch(file.name))]
    if not found:
        raise MediaError(f"job {job} has left no shard on {root.url}; has it run, and on this data root?")
    counts = {int(match[2]) for match in found}
    if len(counts) > 1:
        both = " and of ".join(str(count) for count in sorted(counts))
        raise MediaError(f"job {job} has shards of {both} in {root.where(folder)}; remove those that do not belong")
    (count,) = counts
    missing = sorted(set(range(count)) - {int(match[1]) for match in found})
    if missing:
        which = ", ".join(map(str, missing))
        raise MediaError(f"job {job} lacks shard {which} of {count}; run it (--shard-index {missing[0]}) and try again")
    shards = [_loaded(ShardFile, root, shard_key(job, index, count)) for index in range(count)]
    for shard in shards[1:]:
        if (shard.request, shard.ffmpeg) != (shards[0].request, shards[0].ffmpeg):
            what = "for other videos or settings" if shard.request != shards[0].request else "by another ffmpeg"
            raise MediaError(f"shard {shard.index} of job {job} was done {what} than shard 0; run both again")
    return shards


def _parts_of(video: str, shards: Sequence[ShardFile]) -> list[VideoPart]:
    """What the shards did of a video. Raises MediaError unless each of its ranges was done, once."""
    found = [(shard, part) for shard in shards for part in shard.parts if part.video == video]
    if not found:
        raise MediaError(f"no shard of job {shards[0].job} did {video}; its videos have changed, run all shards again")
    first = found[0][1]
    for shard, part in found:
        if part.failure is None and first.failure is None and (part.clip, part.ranges) != (first.clip, first.ranges):
            raise MediaError(f"{video} was another one when shard {shard.index} was done; run all shards again")
    parts = [part for _, part in found]
    done = sorted(number for part in parts for number in part.done)
    if not any(part.failure for part in parts) and done != list(range(len(first.ranges))):
        raise MediaError(f"the shards of job {shards[0].job} do not cover {video} once; run all shards again")
    return parts


def _scenes_of(
    root: DataRoot, parts: Sequence[VideoPart], detector: DetectorName | NeuralName, threshold: float | None
) -> VideoScenes:
    failure = next((part.failure for part in parts if part.failure), None)
    clip = parts[0].clip
    if failure is not None or clip is None:
        raise UnusableClip(str(failure))
    folder, _ = _folder_and_name(parts[0].video)
    try:
        scores = shard_steps.merged_scores(root, folder, clip, parts[0].ranges, _log)
    except FileNotFoundError as error:
        gone = f"the scores of {parts[0].video} are gone from {root.url} ({error.filename}); run all shards again"
        raise MediaError(gone) from None
    shard_steps.refuse_mostly_lost(clip, scores)
    if detector == "transnetv2" or detector == "hybrid":
        shard_steps.merged_small_frames(root, folder, clip, parts[0].ranges, scores, _log)
        found = neural_steps.look_and_decide(root, detector, clip, scores, threshold, _log)
    else:
        found = detect_scenes(clip, scores, detector, threshold)
    return _in_seconds(found, scores, clip)


def _in_seconds(found: SceneList, scores: FrameScores, clip: Clip) -> VideoScenes:
    """The last scene ends when the last frame, shown as long as a frame is on the average, does."""
    end_s = float((int(scores.pts[-1]) - int(scores.pts[0])) * clip.time_base + 1 / clip.fps)
    borders = [0.0, *found.cuts_s, round(end_s, 6)]
    return VideoScenes(float(found.fps), found.frames, found.cuts, found.cuts_s, list(pairwise(borders)))
