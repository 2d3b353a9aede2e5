import dataclasses

import pytest

from asgi_enhance import ConfigError, Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({}) == Settings()
    assert Settings.from_env({"API_CACHE_TTL": " "}).cache_ttl == 300


def test_every_variable_is_read() -> None:
    settings = Settings.from_env(
        {
            "REDIS_URL": "redis://127.0.0.1:6379/3",
            "API_LOAD_BALANCER_BACKENDS": "http://127.0.0.1:8001, http://127.0.0.1:8002 ,",
            "API_RATE_LIMIT_DEFAULT": "10",
            "API_RATE_LIMIT_WINDOW": "1",
            "API_CACHE_TTL": "5",
            "ASGI_ENHANCE_PREFIX": "shop",
            "ASGI_ENHANCE_TRUSTED_PROXIES": "10.0.0.0/8,unix",
        }
    )
    assert settings == Settings(
        redis_url="redis://127.0.0.1:6379/3",
        backends=("http://127.0.0.1:8001", "http://127.0.0.1:8002"),
        rate_limit=10,
        rate_limit_window=1,
        cache_ttl=5,
        prefix="shop",
        trusted_proxies=("10.0.0.0/8", "unix"),
    )


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_CACHE_TTL", "7")
    assert Settings.from_env().cache_ttl == 7


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("API_RATE_LIMIT_DEFAULT", "many", "whole number"),
        ("API_RATE_LIMIT_DEFAULT", "0", "whole number"),
        ("API_RATE_LIMIT_WINDOW", "-1", "whole number"),
        ("API_CACHE_TTL", "²", "whole number"),
        ("API_CACHE_TTL", "9" * 30, "from 1 to"),
        ("API_LOAD_BALANCER_BACKENDS", "127.0.0.1:8001", "http://"),
        ("API_LOAD_BALANCER_BACKENDS", "ftp://127.0.0.1", "http://"),
        ("API_LOAD_BALANCER_BACKENDS", "http://[::1", "http://"),
        ("ASGI_ENHANCE_TRUSTED_PROXIES", "nginx", "10.0.0.0/8"),
        ("ASGI_ENHANCE_TRUSTED_PROXIES", "10.0.0.0/8,*", "10.0.0.0/8"),
    ],
)
def test_a_bad_value_is_named_with_its_variable_and_what_was_expected(variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        Settings.from_env({variable: value})
    assert variable in str(error.value)
    assert repr(value) in str(error.value)
    assert expected in str(error.value)


def test_a_password_is_never_shown() -> None:
    assert "secret" not in repr(Settings.from_env({"REDIS_URL": "redis://:secret@127.0.0.1:6379"}))
    with pytest.raises(ConfigError, match="REDIS_URL") as error:
        Settings.from_env({"REDIS_URL": "secret@127.0.0.1"})
    assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match="without a login") as error:
        Settings.from_env({"API_LOAD_BALANCER_BACKENDS": "http://ada:secret@127.0.0.1:8001"})
    assert "secret" not in str(error.value)


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().cache_ttl = 1  # type: ignore[misc]
