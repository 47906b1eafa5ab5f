"""The one partitions definition: a partition is a montage.

Belongs here: the definition, what montages there are by the folders of the data root, and which folder is whose.
"""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg

from montage_assets import layout
from montage_assets.data_root import DataRoot, is_utf8
from montage_assets.media.errors import MediaError
from montage_assets.media.ingest import media_kind

montage_partitions = dg.DynamicPartitionsDefinition(name="montage")


def montages_in(root: DataRoot) -> list[str]:
    """The montages there are: each folder of input/, and `default` when media lies loose in it. Folders whose names
    cannot be partition keys are left out; `unfit_as_key` says why."""
    return [name for name in names_in(root) if unfit_as_key(name) is None]


def names_in(root: DataRoot) -> list[str]:
    """As `montages_in`, with the folders whose names cannot be partition keys."""
    loose = {layout.DEFAULT_MONTAGE} if _has_loose_media(root) else set()
    return sorted({*root.list_folders(layout.INPUT), *loose})


def unfit_as_key(name: str) -> str | None:
    """Why a folder's name cannot be a partition key and what to do, None if it can. The rules are Dagster's."""
    if not is_utf8(name):
        return "its name is not UTF-8; rename the folder"
    if "..." in name or any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "its name has '...' or a control character in it; rename the folder"
    return None


def folder_of(root: DataRoot, montage: str) -> str:
    """The folder of a montage's footage. `default` is the media that lies loose in input/; where none does, it is a
    folder like any other. Raises MediaError where it could be both."""
    if montage != layout.DEFAULT_MONTAGE:
        return layout.input_folder(montage)
    folder = f"{layout.INPUT}/{layout.DEFAULT_MONTAGE}"
    if not root.folder_exists(folder):
        return layout.INPUT
    if _has_loose_media(root):
        raise MediaError(
            f"the montage {montage!r} could be the folder {root.where(folder)} or the media files loose in "
            f"{root.where(layout.INPUT)}; rename the folder, or move the loose files into it"
        )
    return folder


def _has_loose_media(root: DataRoot) -> bool:
    loose = root.list_files(layout.INPUT, recursive=False)
    return any(media_kind(file.name) in ("video", "audio") for file in loose)


def no_such_montage(montage: str, known: Collection[str], root: DataRoot) -> str:
    """What a user is told who names a montage that has no folder."""
    there = f"the montages there are: {', '.join(sorted(known))}" if known else "there is no folder in it yet"
    return f"there is no montage {montage!r} in {root.where(layout.INPUT)}; {there}"
