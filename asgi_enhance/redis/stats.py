"""What a manager counts, in plain integers."""

from dataclasses import dataclass


@dataclass(slots=True)
class RedisStats:
    """Counters since the manager was made, over all event loops."""

    commands: int = 0  # handed to a connection
    writes: int = 0  # batches they went out in
    errors: int = 0  # answered with an error by the server
    unavailable: int = 0  # failed because Redis was away or too slow
    refused: int = 0  # of these, at once by the open breaker
    repeated: int = 0  # idempotent or unsent commands sent again after a connection broke
    redirected: int = 0  # MOVED and ASK followed
    connects: int = 0  # connections made
    connect_failures: int = 0
    lost: int = 0  # connections that broke or timed out
    outages: int = 0  # of these, after which Redis was not there again at once, the same as before
    opened: int = 0  # times a breaker opened
    scripts_loaded: int = 0  # scripts sent in full
    messages: int = 0  # received by subscriptions
    gaps: int = 0  # times a subscription's connection had to be made anew
