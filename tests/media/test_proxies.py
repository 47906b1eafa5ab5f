"""A proxy has its source's frames, each at its source's time."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from montage_assets.media.clip import Clip
from montage_assets.media.frame_scores import FrameScores, merge_scores, score_range
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.keyframes import keyframe_finder
from montage_assets.media.proxies import join_proxy, make_proxy_part, proxy_clip, proxy_size, wants_proxy
from montage_assets.media.shards import cut_into_ranges
from tests.media.synth_footage import MPEG2, OPEN_GOP, VP8, write_clip

VFR = "select='not(eq(mod(n,7),3))',setpts='PTS+0.4*mod(N,3)/25/TB'"


def made_proxy(path: Path, clip: Clip, shards: int, folder: Path) -> tuple[Path, FrameScores]:
    with keyframe_finder(path, clip) as keyframe_before:
        ranges = cut_into_ranges(clip, shards, keyframe_before)
    parts = [folder / f"part{part.index}.nut" for part in ranges]
    scores = merge_scores([make_proxy_part(path, clip, part, out) for part, out in zip(ranges, parts, strict=True)])
    out = folder / "proxy.mp4"
    join_proxy(parts, clip, out)
    return out, scores


def decoded_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [Fraction(frame.pts) * frame.time_base for frame in container.decode(stream)]
    return [time - times[0] for time in times]


@pytest.mark.parametrize(
    ("name", "encoder", "filters"),
    [
        ("a.mp4", OPEN_GOP, "null"),
        ("b.webm", VP8, "null"),
        ("c.mpg", MPEG2, "null"),
        ("d.mp4", OPEN_GOP, VFR),
    ],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_proxy_keeps_every_frame_and_its_timestamp(
    tmp_path: Path, name: str, encoder: tuple[str, ...], filters: str, shards: int
) -> None:
    path = tmp_path / name
    write_clip(path, (50, 40, 45), encoder=encoder, filters=filters, extra=("-fps_mode", "vfr"))
    clip = ingest_clip(path, path.name, "").clip
    proxy, _ = made_proxy(path, clip, shards, tmp_path)
    assert decoded_times(proxy) == decoded_times(path)


def test_making_a_proxy_gives_the_scores_of_scoring_alone(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, (50, 40))
    clip = ingest_clip(path, path.name, "").clip
    _, scores = made_proxy(path, clip, 2, tmp_path)
    (whole,) = cut_into_ranges(clip, 1, lambda _: None)
    alone = score_range(path, clip, whole)
    np.testing.assert_array_equal(scores.delta_val, alone.delta_val)
    np.testing.assert_array_equal(scores.perceptual_hash, alone.perceptual_hash)


def test_the_proxy_is_what_its_clip_record_says(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    write_clip(path, (20,), size=(1920, 270), filters="setsar=1/2")
    clip = ingest_clip(path, path.name, "").clip
    proxy, _ = made_proxy(path, clip, 1, tmp_path)
    found = ingest_clip(proxy, path.name, "").clip
    said = proxy_clip(clip)
    assert (found.width, found.height) == (said.width, said.height) == proxy_size(clip) == (960, 136)
    assert found.sample_aspect == said.sample_aspect
    assert (found.codec, found.pixel_format) == (said.codec, said.pixel_format)


def test_only_costly_clips_get_a_proxy(tmp_path: Path) -> None:
    path = tmp_path / "small.mp4"
    write_clip(path, (10,))
    small = ingest_clip(path, path.name, "").clip
    assert not wants_proxy(small)
    assert not wants_proxy(replace(small, width=1920, height=1080))
    assert wants_proxy(replace(small, width=3840, height=2160))
    assert wants_proxy(replace(small, codec="av1", width=1920, height=1080, bit_depth=10))
