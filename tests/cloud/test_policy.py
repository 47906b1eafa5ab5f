"""Where work goes: one test for each bullet of the break-even lists, the bars, and the placement table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from montage_assets.cloud.policy import (
    PLACEMENT,
    Circumstances,
    Decision,
    Work,
    cloud_seconds,
    decide,
    local_seconds,
    place_of,
)

READY = Circumstances(consent=True, cores=4.0)
FILM = Work("encode", 900.0, upload_bytes=900_000_000 // 8, download_bytes=900_000_000 // 8)
SHOTS = Work("upscale", 30.0, width=1920, height=1080, upload_bytes=20_000_000, download_bytes=40_000_000)


def goes_there(work: Work, circumstances: Circumstances = READY) -> bool:
    return decide(work, circumstances).cloud


# The cloud pays ...


def test_without_a_gpu_here_a_long_neural_detection_goes_to_the_cloud_and_with_one_it_stays() -> None:
    clips = Work("neural scenes", 3600.0, upload_bytes=100_000_000)
    assert goes_there(clips)
    assert not goes_there(clips, replace(READY, local_gpu=True))


def test_many_videos_share_one_session_and_go_where_one_would_stay() -> None:
    one = Work("neural scenes", 65.0, items=1, upload_bytes=2_600_000)
    many = Work("neural scenes", 65.0 * 20, items=20, upload_bytes=2_600_000 * 20)
    slow_start = replace(READY, upload_bytes_per_s=2e5)
    assert not goes_there(one, slow_start)
    assert goes_there(many, replace(READY, upload_bytes_per_s=4e6))
    assert cloud_seconds(many, READY) < 20 * cloud_seconds(one, READY)


def test_ai_work_goes_to_the_cloud_even_when_it_is_short() -> None:
    assert goes_there(SHOTS)
    assert not goes_there(replace(SHOTS, kind="encode"), replace(READY, encode_threshold_s=1))


@pytest.mark.parametrize(("width", "height", "there"), [(1920, 1080, False), (3840, 2160, True), (7680, 4320, True)])
def test_4k_and_8k_pay_where_1080p_does_not(width: int, height: int, there: bool) -> None:
    film = Work("encode", 600.0, width=width, height=height, upload_bytes=250_000_000, download_bytes=150_000_000)
    assert goes_there(film, replace(READY, upload_bytes_per_s=1.5e6)) is there


# Here is better ...


def test_a_fast_gpu_here_keeps_the_work() -> None:
    fast_line = replace(READY, cores=1.0, upload_bytes_per_s=1e8)
    assert goes_there(FILM, fast_line)
    assert decide(FILM, replace(fast_line, local_gpu=True)) == Decision(False, "this machine has a GPU of its own")


def test_a_video_under_a_minute_stays_however_slow_the_machine_is() -> None:
    slow = replace(READY, cores=1.0, upload_bytes_per_s=1e9, encode_threshold_s=1)
    assert not goes_there(Work("encode", 59.0, width=7680, height=4320), slow)
    assert goes_there(Work("encode", 61.0, width=7680, height=4320), slow)


def test_a_first_look_that_somebody_waits_for_stays() -> None:
    assert goes_there(SHOTS)
    assert not goes_there(replace(SHOTS, latency_first=True))


def test_offline_everything_stays() -> None:
    offline = replace(READY, offline=True)
    for use in ("auto", "on"):
        assert decide(SHOTS, replace(offline, use=use)) == Decision(False, "this machine is offline", unreachable=True)


# What the user says ...


@pytest.mark.parametrize("kind", ["beats", "scenes", "neural scenes", "encode", "upscale"])
def test_without_consent_nothing_goes_whatever_else_is_set(kind: str) -> None:
    work = replace(SHOTS, kind=kind, seconds=1e5)
    assert not goes_there(work, replace(READY, consent=False, use="on"))


@pytest.mark.parametrize(("seconds", "there"), [(299.0, False), (300.0, False), (301.0, True)])
def test_encoding_goes_only_above_its_threshold(seconds: float, there: bool) -> None:
    film = replace(FILM, seconds=seconds)
    assert goes_there(film, replace(READY, use="on", encode_threshold_s=300)) is there


def test_what_is_switched_off_stays_and_what_is_ordered_goes() -> None:
    song = Work("beats", 30.0)
    assert not goes_there(song, replace(READY, use="off"))
    assert goes_there(song, replace(READY, use="on", local_gpu=True))


def test_what_is_missing_here_keeps_even_ordered_work() -> None:
    assert decide(SHOTS, replace(READY, use="on", bar="no login")) == Decision(False, "no login", unreachable=True)


def test_a_song_stays_since_it_is_done_before_the_cloud_has_begun() -> None:
    song = Work("beats", 180.0, upload_bytes=180 * 26_000)
    assert local_seconds(song, READY) == pytest.approx(0.72)
    assert decide(song, READY).reason == "the cloud does not pay: about 36 s there, 1 s here"


def test_scenes_of_scored_clips_stay_since_nothing_would_be_saved() -> None:
    assert not goes_there(Work("scenes", 36_000.0), replace(READY, upload_bytes_per_s=1e12))


def test_the_measured_line_decides() -> None:
    film = replace(FILM, width=3840, height=2160)
    assert goes_there(film, replace(READY, upload_bytes_per_s=2e6))
    assert not goes_there(film, replace(READY, upload_bytes_per_s=5e4))


# The whole machine park ...


@pytest.mark.parametrize("work", ["file I/O", "timeline", "clip selection", "story arc", "metadata"])
def test_work_without_pixels_stays_on_the_cpu_here(work: str) -> None:
    assert place_of(work, gpu=True, cloud=True, cluster=True) == "local CPU"


@pytest.mark.parametrize("work", ["decode", "encode", "scenes", "beats", "grade"])
def test_pixel_work_is_for_the_gpu_here_else_the_cpu(work: str) -> None:
    assert place_of(work, gpu=True, cloud=True, cluster=True) == "local GPU"
    assert place_of(work, gpu=False, cloud=True, cluster=True) == "local CPU"


@pytest.mark.parametrize("work", ["upscale", "LLM inference", "batch transcode", "training"])
def test_heavy_ai_is_for_the_cloud_else_for_what_is_here(work: str) -> None:
    assert place_of(work, gpu=True, cloud=True, cluster=True) == "cloud"
    assert place_of(work, gpu=True, cloud=False, cluster=True) == "local GPU"
    assert place_of(work, gpu=False, cloud=False, cluster=True) == "local CPU"


@pytest.mark.parametrize("work", ["parallel clips", "multi-video batch", "distributed encode"])
def test_many_clips_are_for_the_cluster_else_for_what_is_here(work: str) -> None:
    assert place_of(work, gpu=True, cloud=True, cluster=True) == "cluster"
    assert place_of(work, gpu=True, cloud=True, cluster=False) == "local GPU"


def test_the_table_has_the_documents_seventeen_kinds() -> None:
    assert len(PLACEMENT) == 17
    with pytest.raises(KeyError):
        place_of("laundry", gpu=False, cloud=False, cluster=False)
