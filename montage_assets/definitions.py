"""The code location: `build_definitions` puts assets, job, IO and triggers together; nothing else."""

from __future__ import annotations

from typing import Any

import dagster as dg

from montage_assets.assets.beats import beats
from montage_assets.assets.clip_selections import clip_selections
from montage_assets.assets.footage import footage
from montage_assets.assets.montage import montage
from montage_assets.assets.proxies import proxies
from montage_assets.assets.rendered_segments import rendered_segments
from montage_assets.assets.scene_shards import scene_shards
from montage_assets.checks import film_checks
from montage_assets.cluster.executors import step_executor
from montage_assets.io import json_records
from montage_assets.jobs import montage_job
from montage_assets.sensors import input_folders, nightly_sweep
from montage_assets.settings import Settings


def build_definitions(**overrides: Any) -> dg.Definitions:
    """Everything Dagster is to know. Keyword arguments replace arguments of `dg.Definitions`, e.g. for tests."""
    parts: dict[str, Any] = {
        "assets": [footage, proxies, scene_shards, beats, clip_selections, rendered_segments, montage],
        "asset_checks": [film_checks],
        "jobs": [montage_job],
        "sensors": [input_folders],
        "schedules": [nightly_sweep],
        "executor": step_executor(Settings.from_environment().workers or 1),
        "resources": {"io_manager": json_records},
    }
    return dg.Definitions(**{**parts, **overrides})


defs = build_definitions()
