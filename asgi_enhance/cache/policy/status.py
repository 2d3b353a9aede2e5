"""How it is told: Cache-Status (RFC 9211)."""

from functools import lru_cache
from typing import Final

FORWARDED: Final = {
    "bypass": b"; fwd=bypass",
    "method": b"; fwd=method",
    "miss": b"; fwd=miss",
    "partial": b"; fwd=partial",
    "request": b"; fwd=request",
    "stale": b"; fwd=stale",
    "uri-miss": b"; fwd=uri-miss",
    "vary-miss": b"; fwd=vary-miss",
}


@lru_cache(1024)
def forwarded(
    cache: bytes, why: str, status: int | None, stored: bool, collapsed: bool | None, detail: str | None
) -> bytes:
    """The cache's own part of the field where the app was asked. `collapsed` False: it was tried, in vain.

    `status` is None if the app has failed without an answer.
    """
    parts = [cache, FORWARDED[why]]
    if status is not None:
        parts.append(b"; fwd-status=%d" % status)
    if stored:
        parts.append(b"; stored")
    if collapsed is not None:
        parts.append(b"; collapsed" if collapsed else b"; collapsed=?0")
    if detail is not None:
        parts.append(b"; detail=" + detail.encode("ascii"))
    return b"".join(parts)
