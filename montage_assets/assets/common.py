"""What every asset shares: its group and owners, the data root of this process, names of clips and of mapped steps."""

from collections.abc import Iterable
from typing import Any, Final

import dagster as dg

from montage_assets.cluster.tasks import QUEUE_TAG, TASK_TAG, queue_of
from montage_assets.data_root import DataRoot
from montage_assets.layout import clip_source as clip_source
from montage_assets.media.clip import Clip
from montage_assets.settings import Settings

GROUP: Final = "montage"
OWNERS: Final = ["team:montage"]
RETRIES: Final = dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL)
"""For every step: a killed ffmpeg, a lost worker or pod is tried again, a fault of input is not."""


def task_tags(task: str) -> dict[str, str]:
    """The tags of an op that does such a task (a TaskType): what it is, and the queue that workers take it from."""
    return {TASK_TAG: task, QUEUE_TAG: queue_of(task)}


def data_root() -> DataRoot:
    """The data root that the environment names."""
    return Settings.from_environment().data_root()


def montage_of(context: Any) -> str:
    """The montage that a step works on."""
    return str(context.partition_key)


def by_name(clips: Iterable[Clip]) -> dict[str, Clip]:
    """Clips by their names."""
    return {clip.name: clip for clip in clips}


def mapping_key(kind: str, number: int) -> str:
    """The key of one mapped step, e.g. shard_2."""
    return f"{kind}_{number}"
