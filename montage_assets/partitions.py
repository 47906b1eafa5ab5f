"""The one partitions definition: a partition is a montage.

Belongs here: the definition, and what montages there are by the folders of the data root.
"""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg

from montage_assets import layout
from montage_assets.data_root import DataRoot
from montage_assets.media.ingest import media_kind

montage_partitions = dg.DynamicPartitionsDefinition(name="montage")


def montages_in(root: DataRoot) -> list[str]:
    """The montages there are: each folder of input/, and `default` when media lies loose in it."""
    folders = root.list_folders(layout.INPUT)
    loose = root.list_files(layout.INPUT, recursive=False)
    if any(media_kind(file.name) in ("video", "audio") for file in loose):
        folders = sorted({*folders, layout.DEFAULT_MONTAGE})
    return folders


def no_such_montage(montage: str, known: Collection[str], root: DataRoot) -> str:
    """What a user is told who names a montage that has no folder."""
    there = f"the montages there are: {', '.join(sorted(known))}" if known else "there is no folder in it yet"
    return f"there is no montage {montage!r} in {root.where(layout.INPUT)}; {there}"
