"""Workers that add up: through Redis, through a directory, with one of them dead, with Redis away."""

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from time import thread_time, time
from typing import Any

import msgspec
import pytest

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.errors import ConfigError, RedisUnavailable
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.metrics.share import DirectoryShare, RedisShare
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import Lifetime, WebSocket, request, websocket_scope
from asgi_enhance.testing.servers import RedisCluster

OK: Message = {"type": "http.response.start", "status": 200, "headers": []}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    if scope["path"] == "/broken":
        raise LookupError
    await send(OK)
    await send({"type": "http.response.body", "body": b"hello"})


Worker = Callable[..., MetricsMiddleware]


@pytest.fixture
async def worker(redis: RedisManager) -> AsyncIterator[Worker]:
    """Makes workers that share a Redis, and stops them at the end as servers do."""
    made: list[MetricsMiddleware] = []

    def make(manager: RedisManager = redis, interval: float = 30, **options: Any) -> MetricsMiddleware:
        collector = MetricsCollector(redis=manager, interval=interval, registry=None, **options)
        made.append(MetricsMiddleware(app, collector=collector))
        return made[-1]

    yield make
    for layer in made:
        await layer.collector.aclose()


async def shipped(layer: MetricsMiddleware) -> None:
    share = layer.collector._share
    assert share is not None
    await share.ship(layer.collector.totals())


async def text(layer: MetricsMiddleware, query: str = "") -> str:
    return (await request(layer, f"/metrics{query}")).body.decode()


async def test_any_worker_answers_for_all(worker: Worker) -> None:
    one, two = worker(), worker()
    one.collector.watch("cache", {"hits": 3, "misses": 1})
    two.collector.watch("cache", {"hits": 1, "misses": 3})
    for _ in range(3):
        await request(one)
    for _ in range(4):
        await request(two)
    with pytest.raises(LookupError):
        await request(two, "/broken")
    await shipped(two)
    metrics = await one.collector.get_metrics()
    assert metrics["workers"] == 2
    assert metrics["requests"]["total"] == 8
    assert metrics["requests"]["errors"] == 1
    assert metrics["requests"]["bytes_sent"] == 35
    assert metrics["latency"]["1m"]["count"] == metrics["latency"]["start"]["count"] == 8
    assert metrics["exceptions"] == [{"route": "<unmatched>", "type": "LookupError", "count": 1}]
    assert metrics["redis"] == {"state": "available"}
    assert metrics["cache"] == {"hits": 4, "misses": 4, "hit_ratio": 0.5}
    assert (await one.collector.get_metrics(scope="process"))["requests"]["total"] == 3


async def test_a_counter_that_has_not_counted_yet_is_shown_as_zero(worker: Worker) -> None:
    one = worker()
    one.collector.watch("cache", {"hits": 0})
    assert "asgi_enhance_cache_hits_total 0\n" in await text(one)


async def test_exemplars_are_those_of_the_worker_that_answers(worker: Worker) -> None:
    one = worker(exemplars=True)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    await request(one, headers=[(b"traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode())])
    accept = [(b"accept", b"application/openmetrics-text; version=1.0.0")]
    assert trace in (await request(one, "/metrics", headers=accept)).body.decode()


async def test_shipping_twice_adds_nothing_twice(worker: Worker) -> None:
    layer = worker()
    await request(layer)
    for _ in range(3):
        await shipped(layer)
    await request(layer)
    assert (await layer.collector.get_metrics())["requests"]["total"] == 2


async def test_slots_that_ended_since_the_last_shipment_are_shipped(worker: Worker) -> None:
    layer = worker(interval=3600)
    ring = layer.collector._ring
    now = int(time())
    for age in range(100, -1, -10):
        ring.turn(now - age)
        ring.current.add(("GET", "/"), [10], 1, 0, 0.5)
    await shipped(layer)
    other = worker()
    assert (await other.collector.get_metrics())["latency"]["5m"]["count"] == 11


async def test_a_counter_that_began_again_takes_nothing_back(worker: Worker) -> None:
    layer = worker()
    backends = {"http://a": {"requests": 50}}
    layer.collector.watch("backend", backends, label="backend")
    await shipped(layer)
    backends["http://a"] = {"requests": 3}
    assert (await layer.collector.get_metrics())["backend"] == {"http://a": {"requests": 53}}


async def test_gauges_add_up_unless_they_are_averaged(worker: Worker) -> None:
    one, two = worker(), worker()
    for layer, in_flight, latency in ((one, 3, 0.25), (two, 4, 0.75)):
        backends = {"http://a": {"in_flight": in_flight, "latency": latency}}
        layer.collector.watch("backend", backends, label="backend", gauges=["in_flight"], averaged=["latency"])
    await shipped(two)
    assert (await one.collector.get_metrics())["backend"] == {"http://a": {"in_flight": 7, "latency": 0.5}}


async def test_a_batch_whose_fate_was_unknown_is_added_once(worker: Worker) -> None:
    layer = worker()
    await request(layer)
    share = layer.collector._share
    assert isinstance(share, RedisShare)
    merge = share._merge

    async def added_but_not_heard(**options: Any) -> None:
        await merge(**options)
        raise RedisUnavailable("lost the answer", maybe_executed=True)

    share._merge = added_but_not_heard  # type: ignore[assignment]
    with pytest.raises(RedisUnavailable):
        await share.ship(layer.collector.totals())
    share._merge = merge
    await request(layer)
    assert (await layer.collector.get_metrics())["requests"]["total"] == 2


async def test_sockets_of_all_workers_add_up(worker: Worker) -> None:
    one, two = worker(), worker()
    async with WebSocket(one, websocket_scope("/")) as a, WebSocket(two, websocket_scope("/")) as b:
        await a.accepted()
        await b.accepted()
        await shipped(two)
        sockets = (await one.collector.get_metrics())["websockets"]
        assert (sockets["active"], sockets["accepted"]) == (2, 2)
        a.leave()
        b.leave()
        await a.ended()
        await b.ended()
    await shipped(two)
    sockets = (await one.collector.get_metrics())["websockets"]
    assert (sockets["active"], sockets["accepted"], sockets["routes"][0]["closed"]) == (0, 2, {"1005": 2})


async def test_what_a_worker_that_left_has_counted_stays_and_its_gauges_go(worker: Worker) -> None:
    one, two = worker(), worker()
    async with Lifetime(one):
        async with Lifetime(two):
            await request(two)
            await shipped(two)
            both = await text(one)
            assert both.count("asgi_enhance_process_memory_bytes{worker=") == 2
        after = await text(one)
        assert after.count("asgi_enhance_process_memory_bytes{worker=") == 1
        assert (await one.collector.get_metrics())["requests"]["total"] == 1


async def test_a_silent_worker_is_dead_after_a_while(worker: Worker, redis: RedisManager) -> None:
    one, two = worker(), worker()
    await request(two)
    await shipped(two)
    share = one.collector._share
    assert isinstance(share, RedisShare)
    workers = share._key("workers")
    (name,) = await redis.execute("HKEYS", workers)
    report = await redis.execute("HGET", workers, name)
    long_ago = int(report.partition(b" ")[0]) - 3600
    await redis.execute("HSET", workers, name, b"%d " % long_ago + report.partition(b" ")[2])
    metrics = await one.collector.get_metrics()
    assert metrics["workers"] == 1
    assert metrics["requests"]["total"] == 1


async def test_workers_with_other_buckets_are_not_mixed(worker: Worker) -> None:
    one, two = worker(), worker(buckets=(1, 2))
    await request(two)
    await shipped(two)
    assert (await one.collector.get_metrics())["requests"]["total"] == 0


async def test_the_page_says_which_process_when_asked(worker: Worker) -> None:
    one, two = worker(), worker()
    await request(two)
    await shipped(two)
    assert "http_server_request_duration_seconds_count" in await text(one)
    assert "http_server_request_duration_seconds_count" not in await text(one, "?scope=process")


async def test_what_cannot_be_read_back_is_a_failure_of_the_metrics_and_no_error_for_who_asks(
    worker: Worker, redis: RedisManager
) -> None:
    layer = worker()
    await request(layer)
    share = layer.collector._share
    assert isinstance(share, RedisShare)
    await redis.execute("HSET", share._key("totals"), "not a record", b"garbage")
    assert (await layer.collector.get_metrics())["requests"]["total"] == 1
    assert layer.collector.errors == 1


async def test_a_worker_ships_by_itself_while_it_runs(worker: Worker) -> None:
    one, two = worker(interval=0.01), worker()
    async with Lifetime(one):
        await request(one)
        async with asyncio.timeout(5):
            while (await two.collector.get_metrics())["requests"]["total"] != 1:  # noqa: ASYNC110 - in another worker
                await asyncio.sleep(0.01)


def test_redis_and_a_collector_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="redis"):
        MetricsMiddleware(app, collector=MetricsCollector(), redis="redis://localhost")


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as running:
        yield running


async def test_a_cluster_adds_up_too(cluster: RedisCluster) -> None:
    async with RedisManager(cluster.url, prefix="metrics-test") as manager:
        one, two = (MetricsMiddleware(app, collector=MetricsCollector(redis=manager, interval=30)) for _ in range(2))
        async with one.collector, two.collector:
            await request(two)
            await shipped(two)
            assert (await one.collector.get_metrics())["requests"]["total"] == 1


WORKER = """
import asyncio, sys
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.testing.driver import request
from prometheus_client import Counter

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"hello"})

async def main():
    orders = Counter("orders", "Orders.")
    layer = MetricsMiddleware(app)
    for _ in range(int(sys.argv[1])):
        await request(layer)
        orders.inc()
    metrics = await layer.collector.get_metrics()
    print((await request(layer, "/metrics")).body.decode())
    sys.stdout.flush()

asyncio.run(main())
"""


def test_without_redis_the_directory_of_prometheus_client_is_where_workers_meet(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    outputs = []
    for count in (2, 5):
        done = subprocess.run(
            [sys.executable, "-c", WORKER, str(count)], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(done.stdout)
    (line,) = [
        line for line in outputs[1].splitlines() if line.startswith("http_server_request_duration_seconds_count")
    ]
    assert line.endswith(" 7")  # the first worker is dead; what it has counted stays
    assert "orders_total 7.0" in outputs[1]
    assert outputs[1].count("asgi_enhance_process_memory_bytes{worker=") == 1


async def test_a_file_is_written_once_at_a_time(tmp_path: Path) -> None:
    share = DirectoryShare(tmp_path, fingerprint="")
    local = MetricsCollector(registry=None).totals()
    for _ in range(10):
        await asyncio.gather(*(share.ship(local) for _ in range(8)))


async def test_a_directory_of_many_endpoints_never_holds_the_loop_for_long(tmp_path: Path) -> None:
    collector = MetricsCollector(registry=None)
    for number in range(90):
        slot = collector._ring.current
        for endpoint in range(500):
            slot.add(("GET", f"/route/{endpoint}"), [10], 1, 0, 0.5)
        collector._ring.turn(time() - (90 - number) * 10)
    local = collector.totals()
    share = DirectoryShare(tmp_path, fingerprint="")
    worst, last, running = 0.0, thread_time(), True

    async def watch() -> None:
        nonlocal worst, last
        while running:
            now = thread_time()
            worst, last = max(worst, now - last), now
            await asyncio.sleep(0)

    gc.disable()
    try:
        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)
        totals = await share.gather(local, (1.0,))
        running = False
        await watcher
    finally:
        gc.enable()
    assert sum(len(slot.endpoints) for slot in totals.slots) > 40_000
    assert worst < 0.02, f"the loop was held for {worst:.3f} s of CPU"


def test_a_record_comes_back_as_what_it_was() -> None:
    from asgi_enhance.metrics.policy import DURATION_BUCKETS, RequestLabels
    from asgi_enhance.metrics.series import RequestSeries
    from asgi_enhance.metrics.state import request_record, restore
    from asgi_enhance.metrics.totals import Totals
    from asgi_enhance.metrics.window import Slot

    series = RequestSeries(RequestLabels("GET", 'a"b\nü', "200"), DURATION_BUCKETS)
    series.pending += (0.01, 0.02, 3, 4, 0.3, 20.0, 5, 6)
    series.fold(Slot(1))
    name, record = request_record(series)
    totals = Totals(began=0.0)
    restore(totals, name, msgspec.msgpack.decode(msgspec.msgpack.encode(record)), DURATION_BUCKETS)
    (back,) = totals.requests
    for field in ("labels", "received", "sent"):
        assert getattr(back, field) == getattr(series, field)
    for field in ("duration", "first_byte"):
        for part in ("count", "total", "buckets", "sketch"):
            assert getattr(getattr(back, field), part) == getattr(getattr(series, field), part)
