"""What a request is called: its method, status and error as labels whose values no client can choose.

The rules, after OpenTelemetry's HTTP semantic conventions:

- A method outside RFC 9110, 5789 and QUERY is `_OTHER`.
- `error_type` is the class of the exception when the app raised before its response was finished, else the status of a
  5xx response, else empty. A status that has gone out stays the label, whatever happens after it.
- No response at all counts as the 500 that servers send for it. A client that left, or a request that was cancelled,
  before there was a status counts as 499 (nginx), never as 500: nobody failed.
- A close code of a WebSocket is a label as it is when RFC 6455 or the app chose it, and a class when the client did.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from asgi_enhance.asgi.messages import CLIENT_GONE

OTHER = "_OTHER"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY", OTHER)

CANCELLED = "cancelled"
DISCONNECTED = "disconnected"
NO_RESPONSE = "no_response"
INCOMPLETE = "incomplete_response"

DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds, as the conventions advise for http.server.request.duration."""

CONNECTION_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
"""Seconds, for what is meant to last: WebSocket connections and event streams."""

LONGEST_LABEL = 200
"""Characters of a label value; the rest is cut."""


@dataclass(frozen=True, slots=True)
class RequestLabels:
    """One series of requests. `stream` sets event streams apart: they last as long as the client likes."""

    method: str
    route: str
    status: str
    error: str = ""
    stream: bool = False

    @property
    def failed(self) -> bool:
        """Whether the server, not the client, is to blame."""
        return self.status.startswith("5") or self.error not in ("", CANCELLED, DISCONNECTED)

    def as_labels(self) -> Mapping[str, str]:
        return {
            "http_request_method": self.method,
            "http_route": self.route,
            "http_response_status_code": self.status,
            "error_type": self.error,
        }


def outcome(status: int, error: str) -> tuple[str, str]:
    """The labels `http_response_status_code` and `error_type`; `status` is 0 if nothing was sent."""
    if status:
        return str(status), error or (str(status) if status >= 500 else "")
    if error in (CANCELLED, DISCONNECTED):
        return str(CLIENT_GONE), error
    return "500", error or NO_RESPONSE


def close_code(code: int, *, chosen_by_client: bool) -> str:
    """The label `websocket_close_code`."""
    if 1000 <= code <= 1015 or (not chosen_by_client and 3000 <= code <= 4999):
        return str(code)
    return f"{code // 1000}xxx" if 3000 <= code <= 4999 else OTHER


def label_value(text: str) -> str:
    """Text that every encoder takes: bounded, and without the lone surrogates of undecodable input."""
    return text[:LONGEST_LABEL].encode("utf-8", "replace").decode()


_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})(?:-|$)")


def sampled_trace(traceparent: bytes | None) -> str | None:
    """The trace id of a W3C traceparent, if it is recorded: what nobody can look up is no exemplar."""
    match = _TRACEPARENT.match(traceparent) if traceparent else None
    if match is None or not int(match[2], 16) & 1 or match[1] == b"0" * 32:
        return None
    return match[1].decode("ascii")
