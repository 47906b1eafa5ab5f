"""The queues: one per kind of work, who serves them, and the executor that puts a run's steps on them.

Belongs here: the configuration that runs and workers of the queues share, which worker serves which queue, and what
becomes of a step whose worker is gone: it is given to another worker once. Does not belong here: what both sides tell
each other through Redis (`broker`), or the worker (`worker`).

The executor is dagster-celery's. Instead of Celery's result it is given one of ours, since a broker that is started
anew must not end a run, and a step that nobody has must not be waited for. Kombu's own redelivery is left out of it:
its only sign of a dead worker is that a step takes long.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import dagster as dg
from celery.backends.redis import RedisBackend
from dagster_celery.executor import CeleryExecutor

from montage_assets.cluster.broker import REMEMBERED_S, RUNNING, Broker, BrokerAwayError, LiveWorker, shown
from montage_assets.cluster.cancelling import insisting_on_cancellation
from montage_assets.cluster.tasks import Work

if TYPE_CHECKING:
    from montage_assets.settings import Settings, WorkerType

OWN_QUEUES: Mapping[WorkerType, tuple[Work, ...]] = MappingProxyType(
    {"cpu": ("analyze",), "gpu": ("encode", "analyze"), "cgpu": ("upscale",)}
)
"""What a worker of each type serves, the first queue before the second."""

STANDS_IN_FOR: Mapping[WorkerType, tuple[Work, ...]] = MappingProxyType(
    {"cpu": ("encode", "upscale"), "gpu": ("upscale",), "cgpu": ()}
)
"""What a worker of each type serves as long as no worker of the proper type is there."""

TYPE_FOR: Mapping[str, WorkerType] = MappingProxyType({"analyze": "cpu", "encode": "gpu", "upscale": "cgpu"})
"""The type of worker that is for a kind of work."""

LOSSES_BORNE = 1
"""A step that has taken two workers with it would take the next one too."""

AWAY_BORNE_S = 600.0
_TELL_AGAIN_S = 60.0
_NOBODY_SERVES_AFTER_S = 5.0
_REVOKING_BORNE_S = 30.0
_OVERTAKES = 3
_LOWEST, _HIGHEST = 0, 9


class PolledRedis(RedisBackend):  # type: ignore[misc]
    """Celery's result store without its subscriptions: dagster-celery only polls, so what is published to it piles up
    unread, and a subscription does not survive a restart of Redis."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Subscribe to nothing."""


def queues_to_serve(kind: WorkerType, types_there: Iterable[str]) -> tuple[Work, ...]:
    """The queues of a worker, its own first, by the types of all workers that are there."""
    there = set(types_there)
    return OWN_QUEUES[kind] + tuple(queue for queue in STANDS_IN_FOR[kind] if TYPE_FOR[queue] not in there)


def nobody_serves(queue: str) -> str:
    """What a user is told whose steps wait in a queue without workers."""
    kind = TYPE_FOR.get(queue, "cpu")
    return f"no worker serves the queue {queue}; start one with WORKER_TYPE={kind} montage worker"


def steps_at_a_time(settings: Settings, queue: str) -> int:
    """How many steps of a queue its workers take at a time; 0 when Redis is away."""
    try:
        return sum(worker.concurrency for worker in Broker(settings).live_workers() if queue in worker.queues)
    except BrokerAwayError:
        return 0


def app_args(settings: Settings, *, is_worker: bool) -> dict[str, Any]:
    """Broker, backend and configuration of the Celery app, for runs and workers alike.

    A worker waits for a Redis that is away for as long as it takes, since it holds a result that would be lost; a run
    asks again every second.
    """
    url = settings.redis_url
    config: dict[str, Any] = {
        "worker_prefetch_multiplier": 1,
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "task_acks_on_failure_or_timeout": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "visibility_timeout": REMEMBERED_S,
            "queue_order_strategy": "priority",
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            "socket_keepalive": True,
            # What is behind `apply_async`; a run tries again by itself.
            "max_retries": 1,
        },
        "result_backend_always_retry": is_worker,
        "result_backend_transport_options": {"retry_policy": {"max_retries": 1, "interval_start": 0}},
        "redis_socket_connect_timeout": 5,
        "redis_socket_timeout": 30,
        "redis_backend_health_check_interval": 25,
        "task_create_missing_queues": True,
        "task_default_queue": "analyze",
        "task_default_priority": 5,
        "worker_hijack_root_logger": True,
        "worker_send_task_events": False,
    }
    if url.startswith("rediss://") and "ssl_cert_reqs" not in url:
        config["broker_use_ssl"] = config["redis_backend_use_ssl"] = {"ssl_cert_reqs": "required"}
    return {"broker": url, "backend": f"{__name__}:{PolledRedis.__name__}+{url}", "config_source": config}


def celery_executor(init_context: dg.InitExecutorContext, settings: Settings) -> dg.Executor:
    """The executor that puts each step on the queue of its `dagster-celery/queue` tag.

    Raises ClusterError with one line when Redis cannot be used.
    """
    from dagster._core.execution.retries import RetryMode

    broker = Broker(settings)
    broker.require()
    return QueueExecutor(settings, broker, RetryMode.ENABLED)


class QueueExecutor(CeleryExecutor):
    """dagster-celery's executor, with steps that outlive a lost worker and a restarted Redis."""

    def __init__(self, settings: Settings, broker: Broker, retries: Any) -> None:
        super().__init__(retries=retries, **app_args(settings, is_worker=False))  # type: ignore[no-untyped-call]
        self._broker = broker
        self._address = shown(settings.redis_url)

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Run the plan; the events are the steps'."""
        from dagster_celery.core_execution_loop import core_celery_execution_loop

        watch = _Watch(self._broker, self._address)

        def put(app: Any, context: Any, step: Any, queue: str, priority: int, known_state: Any) -> QueuedStep:
            send = _sender(app, context, step, queue, _redis_priority(priority, step.key), known_state)
            return QueuedStep(watch, context.for_step(step), queue, send, lambda id_: _result_of(app, id_), app)

        with insisting_on_cancellation(plan_context.instance, plan_context.run_id):
            yield from core_celery_execution_loop(plan_context, execution_plan, step_execution_fn=put)


class _Watch:
    """What all steps of one run share: the losses by step, and what the user was told about Redis and the queues."""

    def __init__(self, broker: Broker, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.broker, self.clock = broker, clock
        self.losses: Counter[str] = Counter()
        self._address = address
        self._away_since: float | None = None
        self._told: dict[str, float] = {}
        self._workers: tuple[float, list[LiveWorker]] | None = None

    def away(self, log: Any, why: object) -> bool:
        """Redis does not answer. True when that has been so for too long."""
        now = self.clock()
        if self._away_since is None:
            self._away_since = now
            log.warning(f"Redis at {self._address} is away ({why}); the run goes on when it is back")
        return now - self._away_since > AWAY_BORNE_S

    def there(self, log: Any) -> None:
        """Redis answers."""
        if self._away_since is not None:
            self._away_since = None
            log.warning(f"Redis at {self._address} is back")

    def tell_if_nobody_serves(self, log: Any, queue: str) -> None:
        """Say so, at most once a minute, when no worker serves a queue."""
        now = self.clock()
        if self._workers is None or now - self._workers[0] >= _NOBODY_SERVES_AFTER_S:
            self._workers = (now, self.broker.live_workers())
        if any(queue in worker.queues for worker in self._workers[1]):
            self._told.pop(queue, None)
        elif now - self._told.get(queue, float("-inf")) >= _TELL_AGAIN_S:
            self._told[queue] = now
            log.warning(nobody_serves(queue))


class QueuedStep:
    """One step on its queue, as dagster-celery's loop asks about it: ready, get, revoke.

    A delivery is one message of the step. When the lease of its worker has run out, or nobody has it although it is
    in no queue (a broker that is killed at the wrong moment forgets it), a new delivery is sent and the old one no
    longer counts. Only a delivery that was begun is a loss of the step: the second one fails it.
    """

    def __init__(
        self,
        watch: _Watch,
        context: Any,
        queue: str,
        send: Callable[[str], None],
        result_of: Callable[[str], Mapping[str, Any]],
        app: Any,
    ) -> None:
        self._watch, self._context, self._queue = watch, context, queue
        self._send, self._result_of, self._app = send, result_of, app
        self._outcome: list[str] | None = None
        self._revoked_at: float | None = None
        self._prepare()
        self.ready()

    def _prepare(self) -> None:
        now = self._watch.clock()
        self._delivery = str(uuid.uuid4())
        self._is_sent = self._has_begun = False
        self._waits_since = self._seen_at = self._looked_at = now

    def ready(self) -> bool:
        """Whether `get` has an answer."""
        from kombu.exceptions import OperationalError
        from redis.exceptions import RedisError

        if self._outcome is not None:
            return True
        try:
            is_ready = self._look()
        except (BrokerAwayError, OperationalError, RedisError, OSError) as error:
            self._seen_at = self._watch.clock()
            if self._watch.away(self._context.log, error):
                self._fail(f"Redis was away for {AWAY_BORNE_S / 60:.0f} minutes")
            return self._outcome is not None or self._revoked_at is not None
        self._watch.there(self._context.log)
        return is_ready

    def get(self) -> list[str]:
        """The step's events, serialized. Raises TaskRevokedError when the step was revoked before its end."""
        from celery.exceptions import TaskRevokedError

        if self._outcome is None:
            raise TaskRevokedError(self._context.step.key)
        return self._outcome

    def revoke(self) -> None:
        """Let nobody begin the step any more, and stop whoever is at it."""
        self._revoked_at = self._watch.clock()
        try:
            self._watch.broker.give_up(self._delivery)
            self._app.control.revoke(self._delivery, terminate=True, signal="SIGTERM")
        except Exception as error:  # whatever it is, the run is to end now
            self._context.log.warning(f"{self._context.step.key} could not be stopped on its worker: {error}")

    def _look(self) -> bool:
        if self._revoked_at is not None:
            return self._is_over_after_revoking()
        if not self._is_sent:
            self._send(self._delivery)
            self._is_sent = True
            return False
        result = self._result_of(self._delivery)
        if result["status"] == "SUCCESS":
            self._outcome = list(result["result"])
        elif result["status"] == "FAILURE":
            self._failed(result["result"])
        elif result["status"] == "REVOKED":  # by hand, through Celery's own means
            self._fail(f"{self._context.step.key} was revoked on its worker")
        else:
            self._look_for_the_worker()
        return self._outcome is not None

    def _is_over_after_revoking(self) -> bool:
        is_stopped = self._result_of(self._delivery)["status"] != "PENDING"
        lease = self._watch.broker.lease_on(self._delivery)
        waited_s = self._watch.clock() - (self._revoked_at or 0.0)
        return is_stopped or lease is None or waited_s > _REVOKING_BORNE_S

    def _failed(self, error: object) -> None:
        from billiard.exceptions import WorkerLostError

        if type(error).__name__ == WorkerLostError.__name__:
            self._lost(f"its process on the worker died ({error})", counts=True)
        else:
            line = str(error).strip().splitlines()
            self._fail(f"the worker could not carry out the step: {line[0] if line else type(error).__name__}")

    def _look_for_the_worker(self) -> None:
        now, lease_s = self._watch.clock(), self._watch.broker.lease_s
        if now - self._looked_at < min(1.0, lease_s / 8):
            return
        self._looked_at = now
        lease = self._watch.broker.lease_on(self._delivery)
        if lease is not None:
            self._seen_at = self._waits_since = now
            self._has_begun = self._has_begun or lease.startswith(RUNNING)
            return
        if not self._has_begun and now - self._waits_since >= _NOBODY_SERVES_AFTER_S:
            self._watch.tell_if_nobody_serves(self._context.log, self._queue)
        # What was begun has left its queue; of what was not, only a look into the queue tells.
        if now - self._seen_at < (lease_s / 2 if self._has_begun else lease_s):
            return
        if not self._has_begun and self._watch.broker.is_in(self._queue, self._delivery):
            self._seen_at = now
        # The result may have come, and the lease been given back, between the two looks.
        elif self._result_of(self._delivery)["status"] == "PENDING":
            why = "its worker is gone" if self._has_begun else "it is in no queue and no worker has it"
            self._lost(why, counts=self._has_begun)

    def _lost(self, why: str, *, counts: bool) -> None:
        key = self._context.step.key
        self._watch.broker.give_up(self._delivery)
        self._watch.losses[key] += counts
        if self._watch.losses[key] > LOSSES_BORNE:
            self._fail(f"{key} was lost twice: {why}; see that worker's log, it may want memory, and run again")
        else:
            self._context.log.warning(f"{key} was lost: {why}; it is given to another worker")
            self._prepare()

    def _fail(self, message: str) -> None:
        """End the step with a failure that names it, as a step that failed by itself would."""
        from dagster._core.execution.plan.objects import StepFailureData, UserFailureData
        from dagster._serdes import serialize_value
        from dagster_shared.error import SerializableErrorInfo

        event = dg.DagsterEvent.step_failure_event(
            self._context,
            StepFailureData(
                error=SerializableErrorInfo(f"{message}\n", [], "StepLost"),
                user_failure_data=UserFailureData(label="lost", description=message, metadata={}),
            ),
        )
        self._outcome = [serialize_value(event)]


def _redis_priority(priority: int, step_key: str) -> int:
    """Redis takes the lowest number first, dagster-celery means the highest. A step that others wait for overtakes
    the mapped ones: their run, and with it its next fan-out, gets on."""
    urgency = priority + (0 if "[" in step_key else _OVERTAKES)
    return _HIGHEST - max(_LOWEST, min(_HIGHEST, urgency))


def _sender(app: Any, context: Any, step: Any, queue: str, priority: int, known_state: Any) -> Callable[[str], None]:
    from dagster._grpc.types import ExecuteStepArgs
    from dagster._serdes import pack_value
    from dagster_celery.tasks import create_task

    arguments = ExecuteStepArgs(
        job_origin=context.reconstructable_job.get_python_origin(),
        run_id=context.dagster_run.run_id,
        step_keys_to_execute=[step.key],
        instance_ref=context.instance.get_ref(),
        retry_mode=context.executor.retries.for_inner_plan(),
        known_state=known_state,
        print_serialized_events=False,
    )
    task = create_task(app).si(
        execute_step_args_packed=pack_value(arguments), executable_dict=context.reconstructable_job.to_dict()
    )

    def send(delivery: str) -> None:
        task.apply_async(queue=queue, priority=priority, task_id=delivery)

    return send


def _result_of(app: Any, delivery: str) -> Mapping[str, Any]:
    result: Mapping[str, Any] = app.backend.get_task_meta(delivery, cache=False)
    return result
