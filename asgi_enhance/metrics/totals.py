"""Everything there is to show, of one process or of several added up."""

from dataclasses import dataclass, field

from asgi_enhance.metrics.series import RequestSeries, SocketSeries
from asgi_enhance.metrics.stats import Row
from asgi_enhance.metrics.window import Slot


@dataclass(slots=True)
class Totals:
    began: float
    workers: int = 0
    active: dict[str, int] = field(default_factory=dict)
    requests: list[RequestSeries] = field(default_factory=list)
    sockets: list[SocketSeries] = field(default_factory=list)
    exceptions: dict[tuple[str, str], int] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
