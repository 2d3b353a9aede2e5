"""What waits for a slow connection: the bounds, and each policy when they are reached."""

import pytest

from asgi_enhance.broadcast.outbox import Outbox, OutboxFull
from asgi_enhance.broadcast.policy import SlowConsumer
from asgi_enhance.broadcast.wire import Frame


def frame(name: str, size: int = 1, key: str | None = None) -> Frame:
    return Frame({"type": "test", "name": name}, size, key)


def fill(policy: SlowConsumer, *frames: Frame, messages: int = 2, size: int = 100) -> tuple[list[str], list[str]]:
    """What is left in the outbox, and what was dropped."""
    outbox = Outbox(policy, messages, size)
    dropped = [each.message["name"] for one in frames for each in outbox.push(one)]
    left = [outbox.pop().message["name"] for _ in range(len(outbox))]
    assert outbox.size == 0
    return left, dropped


def test_disconnect_gives_up_when_the_next_one_does_not_fit() -> None:
    with pytest.raises(OutboxFull):
        fill("disconnect", frame("a"), frame("b"), frame("c"))
    with pytest.raises(OutboxFull):
        fill("disconnect", frame("a", 60), frame("b", 41))
    assert fill("disconnect", frame("a", 60), frame("b", 40)) == (["a", "b"], [])


def test_drop_oldest_makes_room() -> None:
    assert fill("drop-oldest", frame("a"), frame("b"), frame("c")) == (["b", "c"], ["a"])
    assert fill("drop-oldest", frame("a", 60), frame("b", 40), frame("c", 90)) == (["c"], ["a", "b"])


def test_what_is_larger_than_the_outbox_is_never_taken() -> None:
    assert fill("drop-oldest", frame("a"), frame("b", 101)) == ([], ["a", "b"])
    assert fill("drop-newest", frame("a"), frame("b", 101)) == (["a"], ["b"])


def test_drop_newest_keeps_what_waits() -> None:
    assert fill("drop-newest", frame("a"), frame("b"), frame("c")) == (["a", "b"], ["c"])


def test_latest_per_key_replaces_what_waits_under_the_same_key() -> None:
    old, new = frame("old", key="price"), frame("new", key="price")
    assert fill("latest-per-key", old, frame("x", key="size"), new) == (["x", "new"], ["old"])


def test_latest_per_key_drops_the_oldest_when_it_is_still_full() -> None:
    assert fill("latest-per-key", frame("a", key="1"), frame("b"), frame("c")) == (["b", "c"], ["a"])


def test_keys_mean_nothing_to_the_other_policies() -> None:
    assert fill("drop-newest", frame("a", key="1"), frame("b", key="1")) == (["a", "b"], [])


def test_an_answer_is_taken_beyond_the_bounds() -> None:
    outbox = Outbox("disconnect", 1, 100)
    outbox.push(frame("a"))
    assert outbox.push(frame("answer"), bounded=False) == []
    assert len(outbox) == 2
