"""What starts runs by itself: the sensor over the input folder, and the nightly sweep.

Belongs here: asking `arrivals` and answering Dagster. The decisions themselves are in `arrivals`.
"""

from collections.abc import Sequence
from functools import partial

import dagster as dg

from montage_assets import layout
from montage_assets.arrivals import Arrival, decide, dump_memory, load_memory, present_contents
from montage_assets.data_root import DataRoot, StoredFile
from montage_assets.dead_runs import report_dead_runs
from montage_assets.failures import plain_failures
from montage_assets.jobs import JOB_NAME, montage_job
from montage_assets.media.errors import MediaError
from montage_assets.media.fingerprint import quick_fingerprint_of, result_key
from montage_assets.partitions import folder_of, montage_partitions, names_in, unfit_as_key
from montage_assets.settings import Settings

CONTENT_TAG = "montage/content"
"""On every run: the content it was asked for, so that the sweep knows what has been made."""

_MADE_OR_UNDER_WAY = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.SUCCESS,
)
_RUNS_AT_A_TIME = 20


@dg.sensor(
    job=montage_job,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Makes a montage of every folder in input/ once its files stop changing, and again when they change.",
)
def input_folders(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Register and request every montage that is ready."""
    report_dead_runs(context.instance)
    with plain_failures():
        root = Settings.from_environment().data_root()
        decision = decide(
            names_in(root), load_memory(context.cursor), partial(_files_of, root), partial(_content, root)
        )
    return dg.SensorResult(
        dynamic_partitions_requests=[
            montage_partitions.build_add_request([arrival.montage for arrival in decision.arrivals])
        ],
        run_requests=[_request(arrival) for arrival in decision.arrivals],
        cursor=dump_memory(decision.memory),
        skip_reason=None if decision.arrivals else dg.SkipReason(_why_nothing(decision.waiting)),
    )


@dg.schedule(
    job=montage_job,
    cron_schedule="0 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Once a night: makes what the sensor missed or what failed.",
)
def nightly_sweep(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
    """Request every montage whose present content is not what its newest run made or is making."""
    with plain_failures():
        root = Settings.from_environment().data_root()
        contents = present_contents(names_in(root), partial(_files_of, root), partial(_content, root))
    missed = [
        Arrival(montage, fingerprint)
        for montage, fingerprint in contents.fingerprints.items()
        if not _made_or_under_way(context.instance, montage, fingerprint)
    ]
    if not missed:
        return dg.SkipReason("; ".join(["nothing is left to make", *contents.waiting]))
    for line in contents.waiting:
        context.log.warning(f"not made: {line}")
    context.instance.add_dynamic_partitions("montage", [arrival.montage for arrival in missed])
    return [_request(arrival) for arrival in missed]


def _files_of(root: DataRoot, montage: str) -> list[StoredFile]:
    fault = unfit_as_key(montage)
    if fault is not None:
        raise MediaError(fault)
    try:
        folder = folder_of(root, montage)
        return root.list_files(folder, recursive=folder != layout.INPUT)
    except OSError as error:
        raise MediaError(_unreadable("its folder", error)) from error


def _content(root: DataRoot, montage: str, files: Sequence[StoredFile]) -> str:
    folder = folder_of(root, montage)
    parts = {}
    for file in files:
        try:
            with root.open(f"{folder}/{file.name}") as stream:
                parts[file.name] = quick_fingerprint_of(stream, file.size)
        except OSError as error:
            raise MediaError(_unreadable(file.name, error)) from error
    return result_key(files=parts)


def _unreadable(what: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{what} vanished while it was read; all is looked at again soon"
    return f"{what} cannot be read ({error.strerror or error}); check who may read it"


def _request(arrival: Arrival) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{arrival.montage}-{arrival.fingerprint}-{arrival.generation}",
        partition_key=arrival.montage,
        tags={CONTENT_TAG: arrival.fingerprint},
    )


def _made_or_under_way(instance: dg.DagsterInstance, montage: str, fingerprint: str) -> bool:
    run = _newest_run(instance, montage)
    return run is not None and run.tags[CONTENT_TAG] == fingerprint and run.status in _MADE_OR_UNDER_WAY


def _newest_run(instance: dg.DagsterInstance, montage: str) -> dg.DagsterRun | None:
    """The newest run of a montage that says what content it was asked for. Runs that a user started do not, and may
    have made another film of it on purpose."""
    of_montage = dg.RunsFilter(job_name=JOB_NAME, tags={"dagster/partition": montage})
    cursor = None
    while runs := instance.get_runs(of_montage, cursor=cursor, limit=_RUNS_AT_A_TIME):
        for run in runs:
            if CONTENT_TAG in run.tags:
                return run
        cursor = runs[-1].run_id
    return None


def _why_nothing(waiting: Sequence[str]) -> str:
    return "; ".join(waiting) if waiting else "nothing new in the input folder"
