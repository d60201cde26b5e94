from __future__ import annotations

import sys
import types
from typing import ClassVar

import pytest

from batch_llm import ConfigError, MissingKeyError, UnknownModelError
from batch_llm.providers.registry import (
    open_endpoint,
    resolve,
    resolve_pool,
    split_model,
)
from batch_llm.providers.table import PROVIDERS

KEY = "sk-0123456789"
WITH_KEY = {"OPENAI_API_KEY": KEY}


def test_a_model_goes_to_its_providers_api_with_its_key():
    endpoint = resolve("openai-chat:gpt-5", environ=WITH_KEY)

    assert (endpoint.provider, endpoint.model) == ("openai-chat", "gpt-5")
    assert endpoint.url == "https://api.openai.com/v1/chat/completions"
    assert endpoint.headers["authorization"] == f"Bearer {KEY}"
    assert endpoint.codec.length_field == "max_completion_tokens"


def test_the_name_of_a_model_may_hold_colons():
    assert split_model("openai-chat:ft:gpt-5:me") == ("openai-chat", "ft:gpt-5:me")


def test_an_endpoint_never_shows_its_key_or_a_password():
    endpoint = resolve("openai-chat:m", base_url="http://me:hush@h/v1", environ=WITH_KEY)

    assert KEY not in repr(endpoint)
    assert "hush" not in repr(endpoint)


def test_a_name_and_password_in_the_base_url_go_into_the_header_instead_of_the_key():
    endpoint = resolve("openai-chat:m", base_url="http://me:hu%40sh@h/v1", environ=WITH_KEY)

    assert endpoint.url == "http://h/v1/chat/completions"
    assert endpoint.headers["authorization"] == "Basic bWU6aHVAc2g="  # me:hu@sh
    assert endpoint.secret == "hu@sh"


def test_a_compatible_server_needs_no_key():
    endpoint = resolve("openai-chat:m", base_url="http://h:8000/v1/", environ={})

    assert endpoint.url == "http://h:8000/v1/chat/completions"
    assert "authorization" not in endpoint.headers
    assert endpoint.codec.length_field == "max_tokens"


def test_a_compatible_server_gets_the_key_that_there_is():
    endpoint = resolve("openai-chat:m", base_url="http://h/v1", environ=WITH_KEY)

    assert endpoint.headers["authorization"] == f"Bearer {KEY}"


def test_the_environment_moves_the_api_and_an_argument_goes_before_it():
    environ = WITH_KEY | {"OPENAI_BASE_URL": "http://moved/v1"}

    assert resolve("openai-chat:m", environ=environ).url == "http://moved/v1/chat/completions"
    assert (
        resolve("openai-chat:m", base_url="http://h/v1", environ=environ).url
        == "http://h/v1/chat/completions"
    )


def test_the_providers_own_url_given_by_hand_is_still_the_provider():
    own = resolve("openai-chat:m", base_url="https://api.openai.com/v1/", environ=WITH_KEY)

    assert own.codec.length_field == "max_completion_tokens"


def test_a_query_in_the_base_url_stays_at_the_end():
    endpoint = resolve("openai-chat:m", base_url="http://h/v1?api-version=2", environ={})

    assert endpoint.url == "http://h/v1/chat/completions?api-version=2"


@pytest.mark.parametrize(
    "base_url",
    ["localhost:8000", "h/v1", "ftp://h", "http://", "http://h:x/", "http://a b/", "http://h/\nx"],
)
def test_a_base_url_that_is_none_is_refused_at_once(base_url):
    with pytest.raises(ConfigError, match="base_url must be"):
        resolve("openai-chat:m", base_url=base_url, environ={})


def test_a_base_url_is_the_part_before_the_path_and_a_password_in_it_is_not_shown():
    with pytest.raises(ConfigError, match="before /chat/completions") as caught:
        resolve("openai-chat:m", base_url="http://me:hush@h/v1/chat/completions", environ={})

    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-1\n2", "sk-\x00", "schlüssel"])
def test_a_key_that_http_cannot_carry_is_refused_without_being_shown(key):
    with pytest.raises(ConfigError, match="OPENAI_API_KEY must be") as caught:
        resolve("openai-chat:m", environ={"OPENAI_API_KEY": key})

    assert key not in str(caught.value)


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEY": "  "}])
def test_without_a_key_the_variable_is_named(environ):
    with pytest.raises(MissingKeyError, match="OPENAI_API_KEY"):
        resolve("openai-chat:m", environ=environ)


@pytest.mark.parametrize(
    ("model", "reason", "suggestion"),
    [
        ("gpt-5", "names no provider", "openai:gpt-5"),
        ("claude-haiku-5-5", "names no provider", "anthropic:claude-haiku-5-5"),
        ("gemini-2.5-pro", "names no provider", "google:gemini-2.5-pro"),
        ("openai-chat/gpt-5", "with a colon", "openai-chat:gpt-5"),
        ("bedrock:claude", "agents can use it", None),
        ("opnai:gpt-5", "No provider is called", "openai:gpt-5"),
        ("openai-chatt:gpt-5", "No provider is called", "openai-chat:gpt-5"),
        ("OpenAI-Chat:gpt-5", "No provider is called", "openai-chat:gpt-5"),
        ("simm:fast", "No provider is called", "sim:fast"),
        ("antropic:claude", "No provider is called", "anthropic:claude"),
        ("bedrok:claude", "No provider is called", None),
        ("qqq:m", "No provider is called", None),
        ("openai-chat:", "missing after the colon", None),
        ("", "names no provider", "openai:"),
    ],
)
def test_a_name_that_cannot_be_resolved_says_why_and_what_was_meant(model, reason, suggestion):
    with pytest.raises(UnknownModelError, match=reason) as caught:
        resolve(model, environ=WITH_KEY)

    assert caught.value.suggestion == suggestion


def test_every_suggestion_can_be_resolved():
    for model in ("gpt-5", "openai-chat/m", "opnai:m", "sim-antropic:m"):
        with pytest.raises(UnknownModelError) as caught:
            split_model(model)
        split_model(caught.value.suggestion)


def test_a_simulated_model_never_gets_the_users_key():
    endpoint = resolve("sim:flaky?rpm=5", base_url="http://127.0.0.1:1/v1", environ=WITH_KEY)

    assert (endpoint.provider, endpoint.model) == ("sim", "flaky?rpm=5")
    assert KEY not in str(endpoint.headers)
    assert endpoint.secret == ""


def test_a_simulated_model_needs_a_running_simulator():
    with pytest.raises(UnknownModelError, match="has not been started"):
        resolve("sim:fast", environ={})


class SimulatorProcess:
    """Stands in for the simulator's process."""

    running: ClassVar[list[str]] = []

    def __init__(self, profile):
        self.profile = profile
        self.base_url = "http://127.0.0.1:1/v1"

    def __enter__(self):
        self.running.append(self.profile)
        return self

    def __exit__(self, *error):
        self.running.remove(self.profile)


@pytest.fixture
def simulator(monkeypatch):
    module = types.ModuleType("batch_llm.simulator.server")
    module.SimulatorProcess = SimulatorProcess
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return SimulatorProcess


def test_opening_a_simulated_model_runs_its_simulator_for_as_long(simulator):
    with open_endpoint("sim:flaky?rpm=5", environ={}) as endpoint:
        assert simulator.running == ["flaky?rpm=5"]
        assert endpoint.url == "http://127.0.0.1:1/v1/chat/completions"

    assert simulator.running == []


def test_opening_a_simulated_model_elsewhere_starts_nothing(simulator):
    with open_endpoint("sim:fast", base_url="http://h:1/v1", environ={}) as endpoint:
        assert endpoint.url.startswith("http://h:1/")
        assert simulator.running == []


def test_opening_another_model_starts_nothing(simulator):
    with open_endpoint("openai-chat:m", environ=WITH_KEY) as endpoint:
        assert endpoint.provider == "openai-chat"
        assert simulator.running == []


def test_every_row_of_the_table_can_be_resolved():
    for name, provider in PROVIDERS.items():
        assert name == provider.name
        environ = {provider.key_variable: KEY}
        if not provider.base_url:
            environ[provider.url_variable] = "https://me.example"
        assert resolve(f"{name}:m", environ=environ).provider == name


SECRET = "gsk_0123456789abcdef"


@pytest.mark.parametrize("given", [SECRET, f"A_KEY,{SECRET}", "sk-abc", "", "A KEY"])
def test_a_key_where_its_variable_should_stand_is_not_repeated(given):
    with pytest.raises(ConfigError, match="keys must be names of variables") as caught:
        resolve_pool("openai-chat:m", keys=given.split(","), environ={"A_KEY": "x"})

    assert SECRET not in str(caught.value) + repr(caught.value)


def test_the_same_place_twice_is_refused_without_its_password():
    url = "http://user:pass-word-1@h.example/v1"

    for base_urls, keys, told in (
        (f"{url},{url}", (), "base_url must be addresses"),
        (f"{url}, {url}/", (), "base_url must be addresses"),
        ("http://h.example/v1,http://h.example/v1", ("A", "C"), "base_url must be addresses"),
        (None, ("A", "B"), "got 'the same key in A and B'"),
        (None, ("A", "A"), "got 'A twice'"),
    ):
        with pytest.raises(ConfigError, match=told) as caught:
            resolve_pool(
                "openai-chat:m",
                base_urls=base_urls,
                keys=keys,
                environ={"A": "x", "B": "x", "C": "y"},
            )
        assert "pass-word-1" not in repr(caught.value)


def test_a_pool_is_each_server_with_each_key_in_the_order_given():
    found = resolve_pool(
        "openai-chat:m",
        base_urls="http://a/v1, http://b/v1",
        keys=("A", " B"),
        environ={"A": "x", "B": "y"},
    )

    assert [(one.url[:8], one.secret) for one in found] == [
        ("http://a", "x"), ("http://a", "y"), ("http://b", "x"), ("http://b", "y"),
    ]  # fmt: skip


def test_keys_may_be_one_text_as_the_addresses_are():
    pool = resolve_pool("openai-chat:m", keys="A, B", environ={"A": "x", "B": "y"})

    assert [one.key_variable for one in pool] == ["A", "B"]


def test_two_keys_are_two_places_whatever_header_carries_them():
    environ = {"A": "first-key", "B": "second-key", "C": "first-key"}

    pool = resolve_pool("google:m", keys=("A", "B"), environ=environ)

    assert [one.headers["x-goog-api-key"] for one in pool] == ["first-key", "second-key"]
    with pytest.raises(ConfigError, match="all different"):
        resolve_pool("google:m", keys=("A", "C"), environ=environ)
