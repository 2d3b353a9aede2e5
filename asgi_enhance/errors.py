"""Every error the toolkit raises on its own account, under one root."""


class EnhanceError(Exception):
    """The root of all errors raised by asgi_enhance."""


class ConfigError(EnhanceError, ValueError):
    """A constructor or a setting was given something it cannot work with; the message names the argument."""


class RedisUnavailable(EnhanceError, ConnectionError):
    """Redis did not answer in time, could not be reached, or is known to be away.

    `maybe_executed` is true when the command had been handed to the socket: it may have run.
    """

    def __init__(self, message: str, *, maybe_executed: bool = False) -> None:
        super().__init__(message)
        self.maybe_executed = maybe_executed


class CacheError(EnhanceError):
    """A value cannot be cached or read back."""


class RateLimitError(EnhanceError):
    """A limit is exceeded or cannot be decided."""


class LoadBalancerError(EnhanceError):
    """The balancer as a whole cannot serve: no backend is available, or its queues are full."""


class BackendError(EnhanceError):
    """One backend failed: refused, timed out, or answered what is not HTTP."""


class WebSocketError(EnhanceError):
    """A WebSocket connection cannot be added, used or continued."""
