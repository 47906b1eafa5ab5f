"""The scenes of videos from the cloud are those found here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import pytest

from montage_assets.assets.cloud_scenes import fitting
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.scene_detector import (
    CGPUSceneDetector,
    RemoteScenes,
    Video,
    _read,
    _Row,
    _scenes,
    timestamps,
    write_small_copy,
)
from montage_assets.media.frame_scores import FrameScores, score_range
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.scenes import detect_scenes
from montage_assets.media.shards import cut_into_ranges
from tests.cloud import cgpu_program
from tests.cloud.conftest import Cloud
from tests.media.synth_footage import MPEG2, OPEN_GOP, VP8, write_clip

SHOTS = {"closed.mp4": (60, 70, 50), "open.mkv": (80, 55), "web.webm": (65, 60), "sub clip.mpg": (90,)}
ENCODERS = {"open.mkv": OPEN_GOP, "web.webm": VP8, "sub clip.mpg": MPEG2}


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for seed, (name, shots) in enumerate(SHOTS.items()):
        encoder = {"encoder": ENCODERS[name]} if name in ENCODERS else {}
        write_clip(folder / name, shots, seed=seed, **encoder)
    return folder


def video(folder: Path, name: str) -> Video:
    return Video(folder / name, ingest_clip(folder / name, name, "").clip)


def scored(each: Video) -> FrameScores:
    (whole,) = cut_into_ranges(each.clip, 1, lambda _: None)
    return score_range(each.path, each.clip, whole)


def test_many_videos_in_one_session_have_the_cuts_found_here(cloud: Cloud, footage: Path) -> None:
    videos = [video(footage, name) for name in SHOTS]
    found = CGPUSceneDetector(cloud.client()).detect_many(videos)
    assert len([call for call in cloud.calls() if call[0] == "copy"]) == 1
    for each, remote in zip(videos, found, strict=True):
        scores = scored(each)
        assert remote.scenes == detect_scenes(each.clip, scores), each.clip.name
        assert remote.pts == scores.pts.tolist(), each.clip.name


def test_one_video_gives_start_and_end_of_its_scenes(cloud: Cloud, footage: Path) -> None:
    spans = CGPUSceneDetector(cloud.client()).detect_scenes_remote(footage / "closed.mp4")
    assert [(round(start, 3), round(end, 3)) for start, end in spans] == [(0.0, 2.4), (2.4, 5.2), (5.2, 7.2)]


@pytest.mark.parametrize("detector", ["content", "hash"])
def test_detector_and_threshold_are_those_chosen(detector: str, cloud: Cloud, footage: Path) -> None:
    each = video(footage, "closed.mp4")
    threshold = 0.2 if detector == "hash" else 90.0
    (found,) = CGPUSceneDetector(cloud.client()).detect_many([each], detector, threshold)
    assert found.scenes is not None
    assert found.scenes.cuts == detect_scenes(each.clip, scored(each), detector, threshold).cuts  # type: ignore[arg-type]


def test_what_is_sent_is_a_small_silent_nameless_copy_with_every_frame(footage: Path, tmp_path: Path) -> None:
    each = video(footage, "open.mkv")
    write_small_copy(each, tmp_path / "copy.nut")
    assert timestamps(tmp_path / "copy.nut", each.clip) == scored(each).pts.tolist()
    with av.open(str(tmp_path / "copy.nut")) as copy:
        assert [stream.type for stream in copy.streams] == ["video"]
        assert max(copy.streams.video[0].width, copy.streams.video[0].height) <= 256
        assert "open" not in str(copy.metadata)


def test_names_of_clips_stay_here(cloud: Cloud, footage: Path, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    cgpu_program.give_program(cloud.state, "python3", f'cp -r . "{keep}"; exit 1')
    with pytest.raises(CloudFailure):
        CGPUSceneDetector(cloud.client()).detect_many([video(footage, "sub clip.mpg")])
    seen = b"".join(path.read_bytes() for path in keep.iterdir() if path.suffix != ".zip")
    assert b"video-0000" in seen
    assert b"sub clip" not in seen


def test_a_video_that_cannot_be_read_fails_alone(cloud: Cloud, footage: Path, tmp_path: Path) -> None:
    good = video(footage, "closed.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    missing = Video(tmp_path / "bad.mp4", good.clip)
    found = CGPUSceneDetector(cloud.client()).detect_many([missing, good])
    assert found[0].scenes is None
    assert found[0].failure
    assert found[1].scenes is not None
    assert found[1].scenes.cuts == [60, 130]


def test_a_backend_that_is_not_there_is_named(cloud: Cloud) -> None:
    with pytest.raises(ValueError, match="pyscenedetect"):
        CGPUSceneDetector(cloud.client(), backend="magic")


def test_a_cloud_machine_without_the_detectors_and_without_a_way_to_fetch_them_says_so(
    cloud: Cloud, footage: Path
) -> None:
    hide = "import sys; sys.modules['scenedetect'] = None; sys.modules['pip'] = None"
    (cloud.state / "hidden").mkdir()
    (cloud.state / "hidden" / "sitecustomize.py").write_text(hide)
    import sys

    command = f'PYTHONPATH="{cloud.state}/hidden" PIP_NO_INDEX=1 exec "{sys.executable}" "$@"'
    cgpu_program.give_program(cloud.state, "python3", command)
    with pytest.raises(CloudFailure) as failure:
        CGPUSceneDetector(cloud.client()).detect_many([video(footage, "closed.mp4")])
    assert failure.value.fault is CloudFault.TOOL_MISSING
    assert failure.value.detail.startswith("scenedetect")


@pytest.mark.parametrize(
    "rows",
    [[], [{"frames": 1}, {"frames": 1}], {"frames": 1}, [{"frames": "many"}], [{"frames": 180, "cuts": ["x"]}]],
)
def test_rows_that_are_none_are_refused(rows: Any, tmp_path: Path) -> None:
    (tmp_path / "scenes.json").write_text(json.dumps(rows))
    with pytest.raises(CloudFailure) as failure:
        _read(tmp_path / "scenes.json", 1)
    assert failure.value.fault is CloudFault.WRONG_RESULT


@pytest.mark.parametrize(
    "row",
    [_Row(9, (3,)), _Row(10, (3, 3)), _Row(10, (0, 3)), _Row(10, (10,)), _Row(10, (-1,)), _Row(failure="no memory")],
)
def test_cuts_that_cannot_be_are_not_taken(row: _Row, footage: Path) -> None:
    clip = video(footage, "closed.mp4").clip
    assert _scenes(row, clip, list(range(10))).scenes is None
    assert _scenes(_Row(10, (3, 7)), clip, list(range(10))).scenes is not None


def test_scenes_of_other_frames_than_those_scored_are_decided_here(footage: Path) -> None:
    each = video(footage, "closed.mp4")
    scores = scored(each)
    scenes = detect_scenes(each.clip, scores)
    warned: list[str] = []

    class Log:
        def warning(self, message: str) -> None:
            warned.append(message)

    pts = scores.pts.tolist()
    assert fitting(RemoteScenes(scenes, pts), scores, each.clip, Log()) == scenes
    assert fitting(None, scores, each.clip, Log()) is None
    assert warned == []
    assert fitting(RemoteScenes(scenes, [*pts[:-1], pts[-1] + 1]), scores, each.clip, Log()) is None
    assert fitting(RemoteScenes(None, pts, "no memory"), scores, each.clip, Log()) is None
    assert len(warned) == 2
    assert all("closed.mp4" in line for line in warned)
