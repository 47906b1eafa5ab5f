"""The one job: `montage` makes one montage, partition by partition."""

from __future__ import annotations

import dagster as dg

from montage_assets.partitions import montage_partitions

JOB_NAME = "montage"

montage_job = dg.define_asset_job(
    JOB_NAME,
    selection=dg.AssetSelection.groups("montage"),
    partitions_def=montage_partitions,
    description="Make one montage: from the clips and the song of its folder to the checked film.",
)
