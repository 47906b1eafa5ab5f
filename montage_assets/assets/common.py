"""What every asset shares: its group, owners and kinds, the data root of this process, result storage."""

from collections.abc import Iterable
from typing import Any, Final

import dagster as dg

from montage_assets import layout
from montage_assets.data_root import DataRoot
from montage_assets.media.clip import Clip
from montage_assets.settings import Settings

GROUP: Final = "montage"
OWNERS: Final = ["team:montage"]
TASK_TAG: Final = "montage/task"


def data_root() -> DataRoot:
    """The data root that the environment names."""
    return Settings.from_environment().data_root()


def montage_of(context: Any) -> str:
    """The montage that a step works on."""
    return str(context.partition_key)


def clip_source(folder: str, name: str) -> str:
    """The data-root key (or absolute path) of a clip of a footage folder."""
    return f"{folder}/{name}"


def by_name(clips: Iterable[Clip]) -> dict[str, Clip]:
    """Clips by their names."""
    return {clip.name: clip for clip in clips}


def mapping_key(kind: str, number: int) -> str:
    """The key of one mapped step, e.g. shard_2."""
    return f"{kind}_{number}"


def seconds(value: float) -> dg.MetadataValue:
    """Seconds for the UI, rounded for people."""
    return dg.MetadataValue.float(round(value, 2))


__all__ = [
    "GROUP",
    "OWNERS",
    "TASK_TAG",
    "by_name",
    "clip_source",
    "data_root",
    "layout",
    "mapping_key",
    "montage_of",
    "seconds",
]
