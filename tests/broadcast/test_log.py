"""The numbered messages of a group: who gets what he missed, and when it cannot be had."""

from hypothesis import given
from hypothesis import strategies as st

from asgi_enhance.broadcast.log import Entry, GroupLog, Position, Verdict
from asgi_enhance.broadcast.policy import History


def a_log(size: int = 3, ttl: float = 60.0, meta_ttl: float = 600.0, messages: int = 0) -> GroupLog:
    log = GroupLog(History(size=size, ttl=ttl, meta_ttl=meta_ttl), "e", 0.0)
    for number in range(1, messages + 1):
        log.publish(b"%d" % number, 0.0)
    return log


def test_offsets_grow_by_one_within_an_epoch() -> None:
    log = a_log()
    assert [log.publish(b"a", 0.0), log.publish(b"b", 0.0)] == [(1, True), (2, True)]
    assert log.position == Position("e", 2)


def test_a_returning_client_gets_exactly_what_came_after_his_position() -> None:
    assert a_log(messages=3).since(Position("e", 1), 0.0) == [Entry(2, b"2"), Entry(3, b"3")]


def test_a_client_who_has_seen_everything_misses_nothing() -> None:
    assert a_log(messages=3).since(Position("e", 3), 0.0) == []


def test_a_client_whose_next_message_was_dropped_gets_none_of_the_rest() -> None:
    log = a_log(size=2, messages=4)
    assert log.since(Position("e", 2), 0.0) == [Entry(3, b"3"), Entry(4, b"4")]
    assert log.since(Position("e", 1), 0.0) is None


def test_another_epoch_cannot_be_continued() -> None:
    assert a_log(messages=3).since(Position("f", 3), 0.0) is None


def test_a_position_from_the_future_cannot_be_continued() -> None:
    assert a_log(messages=3).since(Position("e", 4), 0.0) is None


def test_messages_are_forgotten_after_the_ttl_and_the_count_is_not() -> None:
    log = a_log(ttl=10.0, messages=2)
    assert log.entries(10.0) == [Entry(1, b"1"), Entry(2, b"2")]
    assert log.entries(10.1) == []
    assert log.since(Position("e", 1), 10.1) is None
    assert log.since(Position("e", 2), 10.1) == []
    assert log.publish(b"3", 11.0) == (3, True)
    assert log.entries(11.0) == [Entry(3, b"3")]


def test_the_count_is_forgotten_after_its_own_ttl() -> None:
    log = a_log(meta_ttl=600.0, messages=1)
    assert not log.expired(600.0)
    assert log.expired(600.1)
    assert a_log().expired(0.0)  # there is nothing to remember


def test_a_known_idempotency_key_gives_the_first_offset() -> None:
    log = a_log()
    assert log.publish(b"a", 0.0, "k") == (1, True)
    assert log.publish(b"a", 0.0, "k") == (1, False)
    assert log.publish(b"a", 0.0, "other") == (2, True)
    assert [entry.offset for entry in log.entries(0.0)] == [1, 2]


def test_idempotency_keys_are_as_many_as_messages_and_live_as_long() -> None:
    log = a_log(size=2, ttl=10.0)
    for key in "abc":
        log.publish(b"x", 0.0, key)
    assert log.publish(b"x", 0.0, "c") == (3, False)
    assert log.publish(b"x", 0.0, "a") == (4, True)
    assert log.publish(b"x", 11.0, "a") == (5, True)


def test_the_next_message_is_the_next_offset_of_the_same_epoch() -> None:
    log = a_log(messages=2)
    assert log.judge(Position("e", 3)) is Verdict.NEXT
    assert log.judge(Position("e", 2)) is Verdict.SEEN
    assert log.judge(Position("e", 4)) is Verdict.GAP
    assert log.judge(Position("f", 3)) is Verdict.GAP


def test_positions_are_written_and_read_back() -> None:
    assert Position.parse(str(Position("abc", 12))) == Position("abc", 12)
    for text in (
        "",
        "12",
        ":12",
        "e:",
        "e:-1",
        "e:1.0",
        "e:x",
        "e:٣",
        "e:" + "9" * 19,
        "e" * 33 + ":1",
        "e:f:1",
        "e\n:1",
        "é:1",
    ):
        assert Position.parse(text) is None, text


@given(size=st.integers(1, 5), published=st.integers(0, 12), seen=st.integers(0, 12))
def test_a_client_gets_all_he_missed_or_none(size: int, published: int, seen: int) -> None:
    log = a_log(size=size, messages=published)
    missed = log.since(Position("e", seen), 0.0)
    if missed is None:
        assert seen > published or published - seen > size
    else:
        assert [entry.offset for entry in missed] == list(range(seen + 1, published + 1))
