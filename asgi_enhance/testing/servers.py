"""Real servers for tests: a private Redis or Valkey, a Sentinel, a Cluster; to stop, pause, kill and start again."""

from asgi_enhance.testing.redis_cluster import RedisCluster, SentinelServer
from asgi_enhance.testing.redis_server import RedisServer, ServerError, find_program, free_port, wait_until

__all__ = [
    "RedisCluster",
    "RedisServer",
    "SentinelServer",
    "ServerError",
    "find_program",
    "free_port",
    "wait_until",
]
