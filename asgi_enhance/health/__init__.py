"""Health: who is alive, who is ready, and what their checks say; for probes and for people."""

from asgi_enhance.health import checks
from asgi_enhance.health.checks import Check
from asgi_enhance.health.core import Health
from asgi_enhance.health.layer import HealthApp, HealthMiddleware
from asgi_enhance.health.policy import Phase, Result, Status

__all__ = ["Check", "Health", "HealthApp", "HealthMiddleware", "Phase", "Result", "Status", "checks"]
