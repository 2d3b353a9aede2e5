"""Load balancing: a reverse proxy for HTTP and WebSocket, as an ASGI app and as a core to call."""

from asgi_enhance.balance.backend import Backend
from asgi_enhance.balance.core import LoadBalancer
from asgi_enhance.balance.headers import Forwarding
from asgi_enhance.balance.hedge import Hedge
from asgi_enhance.balance.layer import LoadBalanceApp
from asgi_enhance.balance.options import Ejection, HealthCheck, Limits, Retries, Timeouts
from asgi_enhance.balance.sticky import Sticky

__all__ = [
    "Backend",
    "Ejection",
    "Forwarding",
    "HealthCheck",
    "Hedge",
    "Limits",
    "LoadBalanceApp",
    "LoadBalancer",
    "Retries",
    "Sticky",
    "Timeouts",
]
