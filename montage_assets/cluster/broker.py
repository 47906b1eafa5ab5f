"""What runs and queue workers tell each other through Redis, besides the steps themselves.

Belongs here: who works on which queues, who holds which step, which deliveries of a step no longer count. Does not
belong here: the queues' configuration and what follows from a lost step (`queues`), or what a worker does (`worker`).

A worker renews a lease on every step it has; a lease that runs out means that the worker is gone. Kubernetes tells a
dead node in the same way, and it needs no clock that two machines would have to agree on.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from montage_assets.cluster.errors import ClusterError

if TYPE_CHECKING:
    from montage_assets.settings import Settings

REMEMBERED_S = 7 * 24 * 3600
"""How long a delivery that no longer counts is remembered, and the longest that one step may take."""

RESERVED = "waits at"
RUNNING = "runs on"

_WORKER = "montage:worker:"
_LEASE = "montage:lease:"
_GIVEN_UP = "montage:given-up:"
_RETRY_EVERY_S = 1.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class LiveWorker:
    """A worker that is at work: its name (`<type>-<process>@<host>`), its type, its queues, its steps at a time."""

    name: str
    kind: str
    queues: tuple[str, ...]
    concurrency: int


class BrokerAwayError(Exception):
    """Redis does not answer at the moment."""


class Broker:
    """Redis as far as runs and workers share knowledge there. Every method may raise BrokerAwayError."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url
        self.lease_s = settings.worker_lease_s
        try:
            self._redis = _client(self._url)
        except ValueError as error:
            raise ClusterError(
                f"REDIS_URL is {shown(self._url)!r}, which is no address of a Redis ({error}); it looks like "
                "redis://host:6379/0, or rediss:// for TLS"
            ) from None

    def require(self) -> None:
        """Raise ClusterError with one line when Redis cannot be used."""
        try:
            with _away():
                self._redis.ping()
        except BrokerAwayError as error:
            raise ClusterError(
                f"Redis at {shown(self._url)} cannot be used ({error}); start it, or set REDIS_URL to where it is"
            ) from None

    def announce(self, worker: LiveWorker) -> None:
        """Let everyone know of a worker for the length of a lease."""
        with _away():
            self._redis.set(_WORKER + worker.name, json.dumps(asdict(worker)), px=self._lease_ms)

    def sign_off(self, name: str) -> None:
        """Let everyone know that a worker has ended."""
        with _away():
            self._redis.delete(_WORKER + name)

    def live_workers(self) -> list[LiveWorker]:
        """The workers that have announced themselves within a lease, by name."""
        with _away():
            keys = sorted(self._redis.scan_iter(match=f"{_WORKER}*", count=1000))
            found = [value for value in (self._redis.mget(keys) if keys else ()) if value]
        documents = [json.loads(value) for value in found]
        return [LiveWorker(**{**document, "queues": tuple(document["queues"])}) for document in documents]

    def steps_in(self, queue: str) -> int:
        """How many steps wait in a queue for a worker to take them."""
        with _away():
            return sum(self._redis.llen(name) for name in _lists_of(queue))

    def is_in(self, queue: str, delivery: str) -> bool:
        """Whether a delivery still waits in a queue."""
        wanted = delivery.encode()
        with _away():
            return any(wanted in message for name in _lists_of(queue) for message in self._redis.lrange(name, 0, -1))

    def lease_on(self, delivery: str) -> str | None:
        """Who has a delivery and what it does there (`waits at ...`, `runs on ...`), None when nobody has it."""
        with _away():
            lease = self._redis.get(_LEASE + delivery)
        return None if lease is None else lease.decode()

    def leases(self) -> list[str]:
        """All leases there are: who waits at or runs what."""
        with _away():
            keys = list(self._redis.scan_iter(match=f"{_LEASE}*", count=1000))
            return sorted(value.decode() for value in (self._redis.mget(keys) if keys else ()) if value)

    def renew(self, leases: Iterable[tuple[str, str]]) -> None:
        """Renew the leases (delivery, holder) that a worker has, where no other one has taken them."""
        with _away():
            for delivery, holder in leases:
                before = self._redis.get(_LEASE + delivery)
                if before is None or before.decode() == holder or _is_promoted(before.decode(), holder):
                    self._redis.set(_LEASE + delivery, holder, px=self._lease_ms)

    def begin(self, delivery: str, worker: str, process: int) -> bool:
        """Take the lease on a delivery that is about to be worked on in a process of a worker.

        False when the delivery no longer counts, or somebody is at work on it: a broker may deliver twice.
        """
        running = f"{RUNNING} {worker} ({process})"
        with _away():
            if self._redis.exists(_GIVEN_UP + delivery):
                return False
            before = self._redis.get(_LEASE + delivery)
            if before is not None and before.decode() not in (running, f"{RESERVED} {worker}"):
                return False
            self._redis.set(_LEASE + delivery, running, px=self._lease_ms)
        return True

    def finish(self, delivery: str) -> None:
        """A delivery has been worked on to its end: nobody is to begin it again."""
        self.give_up(delivery)
        with _away():
            self._redis.delete(_LEASE + delivery)

    def give_up(self, delivery: str) -> None:
        """A delivery no longer counts: whoever has it or comes to have it leaves it alone."""
        with _away():
            self._redis.set(_GIVEN_UP + delivery, 1, ex=REMEMBERED_S)

    @property
    def _lease_ms(self) -> int:
        return round(self.lease_s * 1000)


def patiently(ask: Callable[[], Answer], sleep: Callable[[float], None] = time.sleep) -> Answer:
    """What `ask` answers, once Redis is there to answer."""
    while True:
        try:
            return ask()
        except BrokerAwayError:
            sleep(_RETRY_EVERY_S)


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return url.rpartition("@")[2]
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def waits_at(worker: str) -> str:
    """The holder of a step that a worker has and has not begun."""
    return f"{RESERVED} {worker}"


def runs_on(worker: str, process: int) -> str:
    """The holder of a step that is worked on in a process of a worker."""
    return f"{RUNNING} {worker} ({process})"


def _is_promoted(before: str, holder: str) -> bool:
    """The same worker has begun what it had."""
    return before.startswith(RESERVED) and holder.startswith(before.replace(RESERVED, RUNNING, 1) + " (")


def _client(url: str) -> Any:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        url, socket_connect_timeout=3, socket_timeout=10, health_check_interval=25, retry=Retry(NoBackoff(), 0)
    )


def _lists_of(queue: str) -> list[str]:
    """The lists that kombu's Redis transport keeps one queue in: one per step of priority."""
    from kombu.transport.redis import PRIORITY_STEPS, Channel

    return [f"{queue}{Channel.sep}{step}" if step else queue for step in PRIORITY_STEPS]


@contextlib.contextmanager
def _away() -> Iterator[None]:
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise BrokerAwayError(str(error).strip().splitlines()[0] if str(error) else type(error).__name__) from None
