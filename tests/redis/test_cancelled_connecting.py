import asyncio

from asgi_enhance.redis.address import Address
from asgi_enhance.redis.dial import Dialer, hang_up
from asgi_enhance.testing.servers import RedisServer


async def test_a_cancellation_while_connecting_is_never_lost(redis_server: RedisServer) -> None:
    """redis-py may swallow one; a task that went on to listen would keep its event loop from ending."""
    dialer = Dialer(Address.parse(redis_server.url).options, timeout=2)
    lost = []
    for turns in range(40):
        for _ in range(5):
            task = asyncio.create_task(dialer.connect())
            for _ in range(turns):
                await asyncio.sleep(0)
            asked = task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await hang_up(task.result())
                if asked:
                    lost.append(turns)
    assert lost == []
