"""Metrics: requests, connections, percentiles, other cores' counters; Prometheus, OpenMetrics and JSON."""

from asgi_enhance.metrics.core import MetricsCollector
from asgi_enhance.metrics.layer import MetricsMiddleware

__all__ = ["MetricsCollector", "MetricsMiddleware"]
