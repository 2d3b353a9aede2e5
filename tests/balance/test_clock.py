import uvloop

from asgi_enhance import LoadBalanceApp
from asgi_enhance.testing.driver import request


def test_a_quick_answer_is_measured_in_less_than_milliseconds_on_uvloop_too(backend_url: str) -> None:
    """Its own time stands still within a millisecond: all quick backends would look alike."""
    app = LoadBalanceApp([backend_url])

    async def ask() -> list[float]:
        latencies = []
        for _ in range(5):
            await request(app, "/x")
            latencies.append(app.balancer.report()[backend_url]["latency"])
        await app.balancer.close()
        return latencies

    latencies = uvloop.run(ask())
    assert all(latencies)
    assert any(round(latency, 3) != latency for latency in latencies)
