"""The one job: `montage` makes one montage, partition by partition."""

from __future__ import annotations

import dagster as dg

JOB_NAME = "montage"

montage_job = dg.define_asset_job(
    JOB_NAME,
    selection=dg.AssetSelection.groups("montage"),
    description="Make one montage: from the clips and the song of its folder to the checked film.",
)
