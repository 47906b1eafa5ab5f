"""Sharded scoring: any number of shards gives the scores, and so the cuts, of one."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import av
import numpy as np
import pytest

from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError
from montage_assets.media.frame_scores import (
    FrameScores,
    ShardsDoNotFit,
    analysis_frames,
    dump_scores,
    load_scores,
    merge_scores,
    score_range,
)
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.keyframes import keyframe_finder
from montage_assets.media.scenes import DETECTORS, detect_scenes
from montage_assets.media.shards import cut_into_ranges
from tests.media.synth_footage import HEVC_OPEN_GOP, MPEG2, OPEN_GOP, VP8, X264, write_clip

KINDS = {
    "closed GOP H.264 in MP4": ("a.mp4", X264, (), "null"),
    "open GOP H.264 in MP4": ("b.mp4", OPEN_GOP, (), "null"),
    "open GOP H.264 in Matroska": ("c.mkv", OPEN_GOP, (), "null"),
    "open GOP HEVC in MP4": ("d.mp4", HEVC_OPEN_GOP, (), "null"),
    "VP8 in WebM": ("e.webm", VP8, (), "null"),
    "MPEG-2 in a program stream": ("f.mpg", MPEG2, (), "null"),
    "MPEG-2 in a transport stream": ("g.ts", MPEG2, (), "null"),
    "MPEG-4 in AVI": ("h.avi", ("-c:v", "mpeg4", "-q:v", "4", "-g", "12"), (), "null"),
    "variable frame rate": (
        "i.mp4",
        OPEN_GOP,
        ("-fps_mode", "vfr", "-video_track_timescale", "90000"),
        "select='not(eq(mod(n,7),3))',setpts='PTS+0.4*mod(N,3)/25/TB'",
    ),
    "one keyframe only": (
        "j.mp4",
        (*X264[:-4], "-g", "1000", "-sc_threshold", "0", "-pix_fmt", "yuv420p"),
        (),
        "null",
    ),
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def clip_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Clip]:
    name, encoder, extra, filters = KINDS[request.param]
    path = tmp_path_factory.mktemp("clips") / name
    write_clip(path, (37, 41, 29, 53, 40), encoder=encoder, extra=extra, filters=filters)
    return path, ingest_clip(path, path.name, "fingerprint").clip


def scores_in(path: Path, clip: Clip, shards: int) -> FrameScores:
    with keyframe_finder(path, clip) as keyframe_before:
        ranges = cut_into_ranges(clip, shards, keyframe_before)
    return merge_scores([score_range(path, clip, part) for part in ranges])


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
    return [time - times[0] for time in times]


def test_every_frame_is_scored_once_at_its_own_timestamp(clip_file: tuple[Path, Clip]) -> None:
    path, clip = clip_file
    scores = scores_in(path, clip, 3)
    seconds = (scores.pts - scores.pts[0]) * float(clip.time_base)
    np.testing.assert_allclose(seconds, times_of(path), atol=1e-6)


def test_any_number_of_shards_gives_the_scores_of_one(clip_file: tuple[Path, Clip]) -> None:
    path, clip = clip_file
    whole = scores_in(path, clip, 1)
    for shards in (2, 3, 7, 16):
        parts = scores_in(path, clip, shards)
        for field in fields(FrameScores):
            np.testing.assert_array_equal(getattr(parts, field.name), getattr(whole, field.name), err_msg=field.name)


def test_recorded_scores_give_the_cuts_of_the_stock_detectors(clip_file: tuple[Path, Clip]) -> None:
    from scenedetect import detectors as stock

    from montage_assets.media.scenes import frame_positions

    path, clip = clip_file
    scores = scores_in(path, clip, 3)
    positions = frame_positions(clip, scores.pts)
    detectors = {
        "adaptive": stock.AdaptiveDetector(),
        "content": stock.ContentDetector(),
        "hash": stock.HashDetector(),
        "histogram": stock.HistogramDetector(bins=128),
        "threshold": stock.ThresholdDetector(threshold=100),
    }
    found: dict[str, list[float]] = {name: [] for name in DETECTORS}
    for position, (_, frame) in zip(positions, analysis_frames(path, clip), strict=True):
        for name, detector in detectors.items():
            found[name] += [cut.seconds for cut in detector.process_frame(position, frame.copy())]
    for name in DETECTORS:
        ours = detect_scenes(clip, scores, name, 100 if name == "threshold" else None)
        half_frame = 0.5 / float(clip.fps)
        assert len(ours.cuts_s) == len(found[name]), name
        np.testing.assert_allclose(ours.cuts_s, found[name], atol=half_frame, err_msg=name)
    assert found["content"], "the clip must have cuts for this test to say anything"


def test_known_cuts_are_found_on_their_frames(tmp_path: Path) -> None:
    path = tmp_path / "cuts.mp4"
    cuts = write_clip(path, (40, 35, 45, 30), encoder=X264)
    clip = ingest_clip(path, path.name, "").clip
    assert detect_scenes(clip, scores_in(path, clip, 4), "content").cuts == cuts


def test_shards_that_miss_a_frame_or_decode_one_differently_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, (60, 60))
    clip = ingest_clip(path, path.name, "").clip
    with keyframe_finder(path, clip) as keyframe_before:
        ranges = cut_into_ranges(clip, 2, keyframe_before)
    left, right = (score_range(path, clip, part) for part in ranges)
    merge_scores([left, right])
    with pytest.raises(ShardsDoNotFit, match="shard 1 ends with frame"):
        merge_scores([left, replace(right, before_check=right.before_check ^ 1)])
    with pytest.raises(ShardsDoNotFit):
        merge_scores([left, replace(right, before_pts=right.before_pts - 512)])


def test_scores_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, (30,))
    clip = ingest_clip(path, path.name, "").clip
    scores = scores_in(path, clip, 1)
    again = load_scores(dump_scores(scores))
    for field in fields(FrameScores):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(scores, field.name))


def test_borders_lie_on_keyframes_and_are_as_many_as_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, (90, 110))
    clip = ingest_clip(path, path.name, "").clip
    with av.open(str(path)) as container:
        keyframes = {packet.pts for packet in container.demux(video=0) if packet.is_keyframe}
    with keyframe_finder(path, clip) as keyframe_before:
        ranges = cut_into_ranges(clip, 7, keyframe_before)
    assert len(ranges) == 7
    assert {part.after_pts for part in ranges[1:]} <= keyframes
    assert [part.until_pts for part in ranges[:-1]] == [part.after_pts for part in ranges[1:]]


def test_a_clip_that_decodes_to_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, (30,))
    clip = ingest_clip(path, path.name, "").clip
    path.write_bytes(b"\0" * path.stat().st_size)
    (whole,) = cut_into_ranges(clip, 1, lambda _: None)
    with pytest.raises(MediaError, match=r"decoding clip\.mp4 failed"):
        score_range(path, clip, whole)
