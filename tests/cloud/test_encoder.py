"""Encoding on the cloud machine's NVENC, which here is a program that stands in for a GPU and encodes in software."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from montage_assets.cloud.encoder import CGPUEncoder, encode_command, frames_in
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.media.errors import MediaError
from tests.cloud import cgpu_program
from tests.cloud.conftest import Cloud
from tests.media.synth_footage import write_clip


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "it's; a film.mp4"
    write_clip(path, (20, 30), seed=1)
    return path


def test_the_command_is_the_one_asked_for() -> None:
    assert " ".join(encode_command("input.mp4", "output.mp4", "h264_nvenc")) == (
        "-hwaccel cuda -hwaccel_output_format cuda -i input.mp4 -map 0:v:0 -map 0:a? "
        "-c:v h264_nvenc -preset p7 -rc vbr -cq 20 -b:v 0 -c:a copy output.mp4"
    )
    assert "hevc_nvenc" in encode_command("a.mp4", "b.mp4", "hevc_nvenc")
    assert encode_command("a.mp4", "b.mp4", "av1_nvenc", extra=("-g", "50"))[-3:] == ["-g", "50", "b.mp4"]


@pytest.mark.parametrize(("codec", "name"), [("h264_nvenc", "h264"), ("hevc_nvenc", "hevc"), ("av1_nvenc", "av1")])
def test_a_film_comes_back_whole(codec: str, name: str, cloud: Cloud, film: Path, tmp_path: Path) -> None:
    cloud.give_gpu()
    done = CGPUEncoder(cloud.client()).encode_remote(film, tmp_path / "out.mp4", codec)  # type: ignore[arg-type]
    assert (done.gpu, done.frames) == ("Tesla T4", 50)
    with av.open(str(tmp_path / "out.mp4")) as out:
        assert name in out.streams.video[0].codec_context.name
        assert sum(1 for _ in out.decode(video=0)) == 50
    assert done.size_bytes == (tmp_path / "out.mp4").stat().st_size


@pytest.mark.parametrize("gpu", ["NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_a_gpu_that_has_no_nvenc_is_sent_nothing(gpu: str, cloud: Cloud, film: Path, tmp_path: Path) -> None:
    cloud.give_gpu(gpu)
    sent: list[str] = []
    with pytest.raises(CloudFailure) as failure:
        CGPUEncoder(cloud.client(), lambda what, size, seconds: sent.append(what)).encode_remote(
            film, tmp_path / "out.mp4"
        )
    assert (failure.value.fault, failure.value.detail) == (CloudFault.NO_ENCODER, f"{gpu} has none")
    assert sent == ["a script"]
    assert not (tmp_path / "out.mp4").exists()


def test_a_machine_without_a_gpu_is_sent_nothing(cloud: Cloud, film: Path, tmp_path: Path) -> None:
    # Even where the machine that runs this has one.
    cgpu_program.give_program(cloud.state, "nvidia-smi", "exit 9")
    with pytest.raises(CloudFailure) as failure:
        CGPUEncoder(cloud.client()).encode_remote(film, tmp_path / "out.mp4")
    assert failure.value.fault is CloudFault.NO_ENCODER


@pytest.mark.parametrize("flaw", ["broken", "short"])
def test_an_nvenc_that_is_listed_but_does_not_work_is_found_out_by_a_test_encode(
    flaw: str, cloud: Cloud, film: Path, tmp_path: Path
) -> None:
    cloud.give_gpu(flaw=flaw)
    with pytest.raises(CloudFailure) as failure:
        CGPUEncoder(cloud.client()).encode_remote(film, tmp_path / "out.mp4")
    assert failure.value.fault is CloudFault.NO_ENCODER


def test_a_film_that_comes_back_short_is_not_taken(
    cloud: Cloud, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.give_gpu()
    short = ("-frames:v", "49")
    with pytest.raises(CloudFailure) as failure:
        CGPUEncoder(cloud.client()).encode_remote(film, tmp_path / "out.mp4", extra=short)
    assert (failure.value.fault, failure.value.detail) == (CloudFault.WRONG_RESULT, "49 of 50 frames")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloud"]


def test_a_film_that_is_none_is_refused_before_anything_is_sent(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"nothing")
    with pytest.raises(MediaError, match=r"no\.mp4"):
        CGPUEncoder(cloud.client()).encode_remote(tmp_path / "no.mp4", tmp_path / "out.mp4")
    assert cloud.calls() == []


def test_only_known_encoders_and_containers_are_asked_for(cloud: Cloud, film: Path, tmp_path: Path) -> None:
    encoder = CGPUEncoder(cloud.client())
    with pytest.raises(ValueError, match="NVENC"):
        encoder.encode_remote(film, tmp_path / "out.mp4", "libx264")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mkv"):
        encoder.encode_remote(film, tmp_path / "out;rm.exe")
    assert frames_in(film) == (50, "h264")
