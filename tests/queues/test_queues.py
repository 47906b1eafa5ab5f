"""Which worker serves what, which delivery counts, and what is told when Redis cannot be used."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

import pytest

from montage_assets.cluster.broker import Broker, LiveWorker, runs_on, shown, waits_at
from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.queues import _redis_priority, nobody_serves, queues_to_serve, steps_at_a_time
from montage_assets.media.errors import MediaError
from montage_assets.settings import Settings
from tests.queues.farm import COMMAND
from tests.redis_server import RedisServer

CLOSED = "redis://:secret@127.0.0.1:1/0"


@pytest.fixture
def broker(redis_server: RedisServer) -> Broker:
    return Broker(Settings(redis_url=redis_server.url, worker_lease_s=1))


def test_each_type_serves_its_own_queues_and_stands_in_for_types_that_are_not_there() -> None:
    assert queues_to_serve("cpu", ["cpu"]) == ("analyze", "encode", "upscale")
    assert queues_to_serve("cpu", ["cpu", "gpu", "cgpu"]) == ("analyze",)
    assert queues_to_serve("gpu", ["gpu", "cpu"]) == ("encode", "analyze", "upscale")
    assert queues_to_serve("gpu", ["gpu", "cgpu"]) == ("encode", "analyze")
    assert queues_to_serve("cgpu", ["cgpu"]) == ("upscale",)


def test_any_mix_of_cpu_and_gpu_workers_serves_every_queue() -> None:
    for there in (["cpu"], ["gpu"], ["cpu", "gpu"], ["cpu", "cgpu"], ["gpu", "cgpu"], ["cpu", "gpu", "cgpu"]):
        served = {queue for kind in there for queue in queues_to_serve(kind, there)}  # type: ignore[arg-type]
        assert served == {"analyze", "encode", "upscale"}, there


def test_who_waits_for_a_worker_is_told_which_one_to_start() -> None:
    assert nobody_serves("encode") == (
        "no worker serves the queue encode; start one with WORKER_TYPE=gpu montage worker"
    )


def test_urgent_runs_and_steps_that_others_wait_for_come_first() -> None:
    plan, shard = _redis_priority(5, "proxies.plan_shards"), _redis_priority(5, "proxies.make[shard_1]")
    assert plan < shard
    assert _redis_priority(9, "proxies.make[shard_1]") < shard < _redis_priority(1, "proxies.make[shard_1]")
    assert {_redis_priority(99, "a"), _redis_priority(-99, "a[b]")} == {0, 9}


def test_a_delivery_is_begun_once_and_never_after_it_was_given_up(broker: Broker) -> None:
    assert broker.begin("one", "cpu-1@a", 11)
    assert broker.lease_on("one") == runs_on("cpu-1@a", 11)
    assert not broker.begin("one", "cpu-2@b", 22)
    assert not broker.begin("one", "cpu-1@a", 12)
    broker.finish("one")
    assert not broker.begin("one", "cpu-2@b", 22)
    broker.give_up("two")
    assert not broker.begin("two", "cpu-1@a", 11)


def test_what_a_worker_has_and_has_not_begun_is_its_own(broker: Broker) -> None:
    broker.renew([("one", waits_at("cpu-1@a"))])
    broker.renew([("one", waits_at("cpu-2@b"))])
    assert broker.lease_on("one") == waits_at("cpu-1@a")
    assert not broker.begin("one", "cpu-2@b", 22)
    assert broker.begin("one", "cpu-1@a", 11)
    broker.renew([("one", runs_on("cpu-1@a", 11))])
    assert broker.lease_on("one") == runs_on("cpu-1@a", 11)


def test_workers_are_counted_by_the_queues_they_serve(broker: Broker, redis_server: RedisServer) -> None:
    settings = Settings(redis_url=redis_server.url)
    assert steps_at_a_time(settings, "encode") == 0
    here = LiveWorker("gpu-1@a", "gpu", ("encode", "analyze"), 2)
    broker.announce(here)
    broker.announce(replace(here, name="cpu-2@b", kind="cpu", queues=("analyze",), concurrency=4))
    assert steps_at_a_time(settings, "encode") == 2
    assert steps_at_a_time(settings, "analyze") == 6
    broker.sign_off("gpu-1@a")
    assert [worker.name for worker in broker.live_workers()] == ["cpu-2@b"]
    assert steps_at_a_time(Settings(redis_url=CLOSED), "analyze") == 0


def test_a_redis_that_is_not_there_is_one_line_without_its_password() -> None:
    with pytest.raises(ClusterError, match=r"^Redis at redis://127\.0\.0\.1:1/0 cannot be used \(.*refused.*\); start"):
        Broker(Settings(redis_url=CLOSED)).require()
    result = subprocess.run(
        [*COMMAND, "worker"], env={**os.environ, "REDIS_URL": CLOSED}, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("montage: Redis at redis://127.0.0.1:1/0 cannot be used")
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr


def test_an_address_that_is_no_redis_is_told_with_an_example() -> None:
    with pytest.raises(ClusterError, match=r"REDIS_URL is 'http://queue', which is no address of a Redis"):
        Broker(Settings(redis_url="http://queue"))
    assert shown("rediss://user:secret@queue:6380/3") == "rediss://queue:6380/3"


def test_the_environment_of_the_original_worker_is_understood() -> None:
    settings = Settings.from_environment(
        {
            "WORKER_MODE": "distributed", "TASK_TYPE": "upscale", "TASK_ID": "t-1", "WORKER_TYPE": "cgpu",
            "WORKER_CONCURRENCY": "4", "REDIS_URL": "redis://redis.montage-ai:6379", "DISTRIBUTED_MODE": "true",
        }
    )  # fmt: skip
    assert (settings.worker_until_idle, settings.worker_task, settings.worker_name) == (True, "upscale", "t-1")
    assert (settings.worker_type, settings.worker_concurrency) == ("cgpu", 4)
    assert settings.executor == "celery"
    assert not Settings.from_environment({"WORKER_MODE": "true"}).worker_until_idle
    with pytest.raises(MediaError, match=r"TASK_TYPE is 'render'; set it to one of analyze, encode, upscale"):
        Settings.from_environment({"TASK_TYPE": "render"})
    with pytest.raises(MediaError, match="WORKER_MODE is 'cluster'"):
        Settings.from_environment({"WORKER_MODE": "cluster"})
