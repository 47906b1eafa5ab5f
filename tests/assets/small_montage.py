"""A small montage folder for whole runs, and running the job on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from montage_assets.definitions import build_definitions
from tests.media.synth_footage import MPEG2, OPEN_GOP, VP8, write_clip, write_song

SPEC = "resolution: 192x108\nfps: 25\nquality: preview\nduration: 9\n"


def write_montage(folder: Path, spec: str = SPEC) -> Path:
    """Four clips of four kinds, a song at 120 BPM, a montage.yaml."""
    folder.mkdir(parents=True)
    write_clip(folder / "closed.mp4", (60, 70, 50), seed=1)
    write_clip(folder / "open.mkv", (80, 55), seed=2, encoder=OPEN_GOP)
    write_clip(folder / "web.webm", (65, 60), seed=3, encoder=VP8)
    write_clip(folder / "sub clip.mpg", (90,), seed=4, encoder=MPEG2)
    write_song(folder / "song.wav", bpm=120, duration_s=14)
    (folder / "montage.yaml").write_text(spec)
    return folder


def run_job(
    montage: str, instance: dg.DagsterInstance, run_config: dict[str, Any] | None = None
) -> dg.ExecuteInProcessResult:
    """Run the job in this process, as `dagster job execute` with a partition tag does."""
    job = build_definitions().resolve_job_def("montage")
    return job.execute_in_process(
        tags={"dagster/partition": montage}, instance=instance, run_config=run_config, raise_on_error=False
    )


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """The description of the first failed step."""
    for event in result.all_events:
        if event.is_step_failure:
            given = event.step_failure_data.user_failure_data
            assert given is not None, event.step_failure_data.error
            return given.description or ""
    raise AssertionError("the run did not fail")
