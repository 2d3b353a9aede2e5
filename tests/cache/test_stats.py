"""Everything that happens is counted, once."""

from dataclasses import asdict
from typing import Any

from asgi_enhance.cache import Cache, CacheMiddleware
from asgi_enhance.cache.stats import CacheStats
from asgi_enhance.testing.driver import request
from tests.cache.origin import Answer, Clock, Origin, fields, until

LINE = "Cache-Control: max-age=60, stale-while-revalidate=60"


async def test_what_happens_is_counted(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer(LINE, 'ETag: "a"'), Answer(LINE, status=304), Answer(LINE, status=304), Answer())
    layer = CacheMiddleware(origin, cache=cache)
    counted: list[dict[str, int]] = []

    def since() -> dict[str, int]:
        counted.append({name: number for name, number in asdict(cache.stats).items() if name not in CacheStats.GAUGES})
        before, now = counted[-2:] if len(counted) > 1 else ({}, counted[-1])
        return {name: grown for name, number in now.items() if (grown := number - before.get(name, 0))}

    await request(layer, "/")
    assert since() == {"misses": 1, "stored": 1}
    await request(layer, "/")
    assert since() == {"hits": 1}
    clock.step(200)
    await request(layer, "/")
    assert since() == {"validations": 1, "not_modified": 1, "stored": 1}
    clock.step(70)
    await request(layer, "/")
    await until(lambda: cache.stats.stored == 3)
    assert since() == {
        "hits": 1,
        "stale_hits": 1,
        "refreshes": 1,
        "validations": 1,
        "not_modified": 1,
        "stored": 1,
    }
    await request(layer, "/", headers=fields("Content-Length: 1"))
    assert since() == {"bypasses": 1}
    await request(layer, "/", method="POST")
    assert since() == {"invalidations": 1}
    await request(layer, "/")
    assert since() == {"misses": 1, "refused": 1}
    await cache.purge(tags=["a", "b"], everything=True)
    assert since() == {"purges": 3}
    await cache.get("value")
    assert since() == {"value_misses": 1}
    await cache.get_or_compute("value", lambda: 1)
    assert since() == {"value_misses": 1, "computations": 1}
    await cache.get("value")
    assert since() == {"value_hits": 1}
