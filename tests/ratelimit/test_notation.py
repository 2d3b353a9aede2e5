"""How rates are written."""

import pytest
from limits import parse_many

from asgi_enhance.errors import ConfigError
from asgi_enhance.ratelimit.notation import parse, quotas
from asgi_enhance.ratelimit.policy import SECOND, Quota


def test_a_rate_with_a_burst() -> None:
    assert quotas("100/minute burst 20", "api") == (Quota(100, 60 * SECOND, 20, "api"),)


def test_a_burst_of_nothing_is_a_config_error_in_a_mapping_too() -> None:
    with pytest.raises(ConfigError, match="burst"):
        quotas({"requests": 10, "window": 60, "burst": 0})


def test_without_a_burst_the_limit_may_come_at_once() -> None:
    assert quotas("100/minute")[0].burst == 100


def test_quotas_without_a_name_have_that_of_the_rule_they_are_given_to() -> None:
    assert [quota.name for quota in quotas(Quota(1, SECOND), "api")] == ["api"]
    assert [quota.name for quota in quotas((Quota(1, SECOND), Quota(9, 60 * SECOND)), "api")] == ["api-1s", "api-60s"]
    assert [quota.name for quota in quotas(Quota(1, SECOND, name="own"), "api")] == ["own"]


def test_two_quotas_of_the_same_name_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="the same name"):
        quotas((Quota(1, SECOND), Quota(9, SECOND)))


def test_several_rates_are_told_apart_by_their_windows() -> None:
    assert [quota.name for quota in quotas("10/second; 1000/hour", "api")] == ["api-1s", "api-3600s"]


@pytest.mark.parametrize(
    "text",
    ["100/minute", "100 per minute", "7/5 minutes", "10/second;1000/hour", "1/day, 2/month | 3/year", "5 PER 2 HOURS"],
)
def test_what_limits_reads_is_read_alike(text: str) -> None:
    ours = [(quota.limit, quota.window) for quota in parse(text)]
    assert ours == [(item.amount, item.get_expiry() * SECOND) for item in parse_many(text)]


@pytest.mark.parametrize(
    ("text", "seconds"), [("5/s", 1), ("5/2 min", 120), ("5/h", 3600), ("5/d", 86_400), ("5/w", 604_800)]
)
def test_units_may_be_short(text: str, seconds: int) -> None:
    assert quotas(text)[0].window == seconds * SECOND


@pytest.mark.parametrize(
    "limits",
    [
        "0/minute",
        "100/0minute",
        "100/minute burst 0",
        "100/minute burst 101",
        "5/fortnight",
        "1.5/second",
        "-5/second",
        "5",
        "",
        "5/minute;",
        "5/second, 6/second",
        "9" * 5000 + "/second",
        {"requests": 0, "window": 60},
        {"requests": 5, "window": 0},
        {"requests": 5, "window": float("nan")},
        {"requests": 5.5, "window": 60},
        {"requests": True, "window": 60},
        {"requests": 5},
        {"requests": 5, "window": 60, "brust": 3},
        (),
        None,
        5,
    ],
)
def test_what_is_not_a_limit_is_a_config_error(limits: object) -> None:
    with pytest.raises(ConfigError):
        quotas(limits)  # type: ignore[arg-type]


def test_a_mapping_may_have_fractions_of_a_second() -> None:
    assert quotas({"requests": 5, "window": 0.25}) == (Quota(5, 250_000),)


@pytest.mark.parametrize("name", ["", "naïve", "line\nbreak"])
def test_a_name_that_no_header_field_can_carry_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        quotas("5/minute", name)
