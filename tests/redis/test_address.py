"""What a URL says, and what is said of a bad one."""

import pytest

from asgi_enhance.errors import ConfigError
from asgi_enhance.redis import RedisManager
from asgi_enhance.redis.address import Address, without_password


def test_a_single_server() -> None:
    address = Address.parse("redis://joe:s3cret@example.org:7000/4?protocol=3")
    assert address.kind == "single"
    assert dict(address.options) == {
        "username": "joe",
        "password": "s3cret",
        "host": "example.org",
        "port": 7000,
        "db": 4,
        "protocol": 3,
    }


def test_sentinels_their_service_and_the_database() -> None:
    address = Address.parse("redis+sentinel://:pw@a:1,b,[::1]:3/orders/2?sentinel_password=other")
    assert (address.kind, address.service) == ("sentinel", "orders")
    assert address.seeds == (("a", 1), ("b", 26379), ("::1", 3))
    assert dict(address.options) == {"password": "pw", "db": 2, "sentinel_password": "other"}


def test_what_stands_in_the_query_is_no_login() -> None:
    address = Address.parse("redis+cluster://a:1?client_name=me@home")
    assert address.seeds == (("a", 1),)
    assert dict(address.options) == {"client_name": "me@home"}


def test_the_seeds_of_a_cluster() -> None:
    address = Address.parse("rediss+cluster://joe:pw@a:1,b?ssl_check_hostname=no")
    assert (address.kind, address.seeds) == ("cluster", (("a", 1), ("b", 6379)))
    assert address.options["ssl_check_hostname"] is False
    assert address.options["connection_class"].__name__ == "SSLConnection"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "must start with"),
        ("http://localhost", "must start with"),
        ("redis://localhost:port", "port"),
        ("redis://localhost/zero", "database"),
        ("redis://localhost?protocol=4", "protocol"),
        ("redis://localhost?no_such_option=1", "no_such_option"),
        ("redis+sentinel://localhost:26379", "service"),
        ("redis+sentinel:///main", "not a host"),
        ("redis+cluster://localhost/3", "database 0"),
    ],
)
def test_a_bad_url_is_a_config_error_that_names_it(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match="url") as caught:
        RedisManager(url)
    assert said in str(caught.value)
    assert without_password(url) in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://joe:s3cret@localhost/nan",
        "htp://joe:s3cret@localhost",
        "redis://localhost/nan?password=s3cret",
        "redis+sentinel://joe:s3cret@a,b?sentinel_password=s3cret",
        "redis+cluster://joe:s3cr@t-s3cret@a,b:x",
        "redis://joe:s3cret@localhost?protocol=4",
        "redis://joe:s3cret/x@localhost",
        "redis://joe:1/s3cret@localhost",
        "redis://joe:s3cret\u2100@localhost",
        "redis+cluster://joe:s3cret/x@localhost",
        "redis+sentinel://:s3cret?x@localhost/main",
        "redis://localhost:s3cret",
        "redis+sentinel://localhost:s3cret/x/main",
        "redis://s3cret@localhost/nan",
    ],
)
def test_no_message_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisManager(url)
    assert "s3cret" not in str(caught.value)
    assert "localhost" in str(caught.value) or "a,b" in str(caught.value)


def test_the_password_is_all_that_is_hidden() -> None:
    hidden = without_password("redis://joe:s3cret@h:1/0?protocol=3&password=x")
    assert hidden == "redis://joe:***@h:1/0?protocol=3&password=***"
    assert without_password("redis+cluster://h:1,g/0?a=b:c") == "redis+cluster://h:1,g/0?a=b:c"
    assert without_password("redis://[::1]:1") == "redis://[::1]:1"
    assert without_password("unix:///run/redis.sock?db=1") == "unix:///run/redis.sock?db=1"
