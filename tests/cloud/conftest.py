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

    def client(self, **limits: float) -> CGPUClient:
        lock = self.folder / "lock"
        return CGPUClient(consent=True, config=self.folder / "config", lock=lock, **limits)  # type: ignore[arg-type]


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A cgpu on PATH with a login, an ffmpeg on its cloud machine, and consent."""
    folder = tmp_path / "cloud"
    state = cgpu_program.install(folder)
    cgpu_program.give_program(state, "ffmpeg", f'exec "{ffmpeg_program()}" "$@"')
    monkeypatch.setenv("PATH", f"{folder / 'path'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CGPU_CONFIG_DIR", str(folder / "config"))
    monkeypatch.setenv("CGPU_GPU_ENABLED", "true")
    monkeypatch.setattr(clients, "default_lock", lambda: folder / "lock")
    monkeypatch.setattr(offload, "is_offline", lambda: False)
    monkeypatch.setattr(offload, "has_local_gpu", lambda: False)
    return Cloud(folder, state)
