"""What a processor has counted, in plain integers."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(slots=True)
class Stats:
    """Counters since the start; the first block are the present values.

    connections:      open connections in this process.
    groups:           groups known in this process.
    outbox_bytes:     bytes that wait in all outboxes.

    connected:        connections taken so far.
    refused:          connections refused: limits, origin, authentication, drain.
    published:        messages given to send_to_client, broadcast_to_group and broadcast_all here.
    deliveries:       messages handed to connections.
    queued:           messages that had to wait in an outbox.
    dropped:          messages dropped from outboxes by policy.
    slow_disconnects: connections closed because their outbox was full or their socket stuck.
    idle_disconnects: connections closed because a client that pinged has stopped.
    send_errors:      sends that failed: the client was gone.
    received:         inbound messages.
    rejected:         inbound messages answered with an error.
    throttled:        times a connection was not read because it sent too fast.
    handler_errors:   handlers that raised or took too long.
    resumed:          joins that continued from a client's position.
    resets:           joins and gaps that could not be continued: messages may be lost.
    duplicates:       messages from Redis that had been seen.
    gaps:             times a group had to be caught up from its history.
    remote_failures:  messages that reached this process only, because Redis was away.
    """

    GAUGES: ClassVar = ("connections", "groups", "outbox_bytes")

    connections: int = 0
    groups: int = 0
    outbox_bytes: int = 0
    connected: int = 0
    refused: int = 0
    published: int = 0
    deliveries: int = 0
    queued: int = 0
    dropped: int = 0
    slow_disconnects: int = 0
    idle_disconnects: int = 0
    send_errors: int = 0
    received: int = 0
    rejected: int = 0
    throttled: int = 0
    handler_errors: int = 0
    resumed: int = 0
    resets: int = 0
    duplicates: int = 0
    gaps: int = 0
    remote_failures: int = 0
