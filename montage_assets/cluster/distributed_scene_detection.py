"""Scene detection in shards, as a command line: the program of the scene-detection jobs, usable by hand as well.

    python -m montage_assets.cluster.distributed_scene_detection --video V --shard-index 0 --shard-count 4
    python -m montage_assets.cluster.distributed_scene_detection --videos V1,V2 --shard-index 0 --shard-count 2
    python -m montage_assets.cluster.distributed_scene_detection --shard --video V
    python -m montage_assets.cluster.distributed_scene_detection --aggregate --job-id scene-detect-abc123

Prints JSON; exit codes as `montage`'s. Belongs here: reading arguments. Does not belong here: the work (`scene_job`),
which is imported only when there is some.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from montage_assets.cluster.errors import ClusterError
from montage_assets.settings import Settings


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--video", "single", multiple=True, metavar="VIDEO", help="A video; may be given several times.")
@click.option("--videos", "listed", metavar="V1,V2,...", help="Videos, shared among the shards by file.")
@click.option("--shard-index", type=click.IntRange(min=0), help="Which shard to do, counted from 0.")
@click.option("--shard-count", type=click.IntRange(1, 4096), help="How many shards there are.")
@click.option("--shard", is_flag=True, help="Take both from SHARD_INDEX or JOB_COMPLETION_INDEX, and SHARD_COUNT.")
@click.option("--aggregate", is_flag=True, help="Put the shards of a job together and print its scenes.")
@click.option("--job-id", metavar="ID", help="The job's name. Default: one made of the videos and the settings.")
@click.option("--detector", help="adaptive (default), content, hash, histogram or threshold.")
@click.option("--threshold", type=float, help="The detector's threshold. Default: its own.")
def command(
    single: Sequence[str],
    listed: str | None,
    shard_index: int | None,
    shard_count: int | None,
    shard: bool,
    aggregate: bool,
    job_id: str | None,
    detector: str | None,
    threshold: float | None,
) -> None:
    """Do one shard of a scene detection, or put the shards of one together."""
    import logging

    from montage_assets import scene_job

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = Settings.from_environment()
    root = settings.data_root()
    videos = [*single, *(filter(None, listed.split(",")) if listed else ())]
    if aggregate:
        if job_id is None or videos or shard or shard_index is not None or shard_count is not None:
            raise ClusterError("--aggregate goes with --job-id alone; the shards know their videos")
        click.echo(scene_job.document(scene_job.aggregate(root, job_id, detector, threshold)))
        return
    if not videos:
        raise ClusterError("name the videos: --video V, or --videos V1,V2")
    index, count = _shard(settings, shard, shard_index, shard_count)
    request = scene_job.request_of(root, videos, count, detector or "adaptive", threshold)
    click.echo(scene_job.document(scene_job.do_shard(root, job_id or request.name, request, index)))


def _shard(settings: Settings, from_environment: bool, index: int | None, count: int | None) -> tuple[int, int]:
    if from_environment:
        index = settings.shard_index if index is None else index
        count = settings.shard_count if count is None else count
        if index is None:
            raise ClusterError("--shard needs SHARD_INDEX or JOB_COMPLETION_INDEX; an Indexed job sets the latter")
        if count is None:
            raise ClusterError("--shard needs SHARD_COUNT, the number of shards of the job")
    if index is None or count is None:
        raise ClusterError("say which shard to do: --shard-index 0 --shard-count 4, or --shard in an Indexed job")
    return index, count


if __name__ == "__main__":
    from montage_assets.cli import run

    run(command)
