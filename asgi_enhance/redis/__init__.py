"""One Redis for all layers: batched commands, deadlines, a breaker, scripts and lasting subscriptions.

Importing this does not import redis-py; constructing a `RedisManager` does.
"""

from asgi_enhance.redis.manager import RedisManager
from asgi_enhance.redis.script import Script
from asgi_enhance.redis.subscribe import Subscription

__all__ = ["RedisManager", "Script", "Subscription"]
