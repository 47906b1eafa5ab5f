"""What starts runs by itself: the sensor over the input folder, and the nightly sweep.

Belongs here: asking `arrivals` and answering Dagster. The decisions themselves are in `arrivals`.
"""

from collections.abc import Sequence

import dagster as dg

from montage_assets import layout
from montage_assets.arrivals import Arrival, concerns_the_film, decide, dump_seen, load_seen
from montage_assets.data_root import DataRoot, StoredFile
from montage_assets.failures import plain_failures
from montage_assets.jobs import JOB_NAME, montage_job
from montage_assets.media.fingerprint import quick_fingerprint_of, result_key
from montage_assets.partitions import montage_partitions, montages_in
from montage_assets.settings import Settings

CONTENT_TAG = "montage/content"
"""On every run: the content it was asked for, so that the sweep knows what has been made."""


@dg.sensor(
    job=montage_job,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Makes a montage of every folder in input/ once its files stop changing, and again when they change.",
)
def input_folders(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Register and request every montage that is ready."""
    with plain_failures():
        root = Settings.from_environment().data_root()
        decision = decide(_listings(root), load_seen(context.cursor), lambda *args: _content(root, *args))
    return dg.SensorResult(
        dynamic_partitions_requests=[
            montage_partitions.build_add_request([arrival.montage for arrival in decision.arrivals])
        ],
        run_requests=[_request(arrival) for arrival in decision.arrivals],
        cursor=dump_seen(decision.seen),
        skip_reason=None if decision.arrivals else dg.SkipReason(_why_nothing(decision.waiting)),
    )


@dg.schedule(
    job=montage_job,
    cron_schedule="0 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Once a night: makes what the sensor missed or what failed.",
)
def nightly_sweep(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
    """Request every montage whose present content has no finished and no running run."""
    with plain_failures():
        root = Settings.from_environment().data_root()
        listings = {montage: _relevant(files) for montage, files in _listings(root).items()}
        content = {name: _content(root, name, files) for name, files in listings.items() if files}
    missed = [
        Arrival(montage, fingerprint)
        for montage, fingerprint in sorted(content.items())
        if not _made_or_under_way(context.instance, montage, fingerprint)
    ]
    if not missed:
        return dg.SkipReason("every montage is made")
    context.instance.add_dynamic_partitions("montage", [arrival.montage for arrival in missed])
    return [_request(arrival) for arrival in missed]


def _listings(root: DataRoot) -> dict[str, list[StoredFile]]:
    return {
        montage: root.list_files(layout.input_folder(montage), recursive=montage != layout.DEFAULT_MONTAGE)
        for montage in montages_in(root)
    }


def _relevant(files: Sequence[StoredFile]) -> list[StoredFile]:
    return [file for file in files if concerns_the_film(file.name)]


def _content(root: DataRoot, montage: str, files: Sequence[StoredFile]) -> str:
    parts = {}
    for file in files:
        with root.open(f"{layout.input_folder(montage)}/{file.name}") as stream:
            parts[file.name] = quick_fingerprint_of(stream, file.size)
    return result_key(files=parts)


def _request(arrival: Arrival) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{arrival.montage}-{arrival.fingerprint}",
        partition_key=arrival.montage,
        tags={CONTENT_TAG: arrival.fingerprint},
    )


def _made_or_under_way(instance: dg.DagsterInstance, montage: str, fingerprint: str) -> bool:
    runs = instance.get_runs(
        dg.RunsFilter(
            job_name=JOB_NAME,
            tags={CONTENT_TAG: fingerprint, "dagster/partition": montage},
            statuses=[
                dg.DagsterRunStatus.QUEUED,
                dg.DagsterRunStatus.STARTING,
                dg.DagsterRunStatus.STARTED,
                dg.DagsterRunStatus.SUCCESS,
            ],
        ),
        limit=1,
    )
    return bool(runs)


def _why_nothing(waiting: Sequence[str]) -> str:
    return "; ".join(waiting) if waiting else "nothing new in the input folder"
