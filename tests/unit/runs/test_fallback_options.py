from __future__ import annotations

import pytest

from batch_llm.exceptions import ConfigError
from batch_llm.runs.brief import Brief
from batch_llm.runs.options import brief_from


def brief(**options):
    return brief_from(["hi"], "openai-chat:small", None, options)


def test_fallbacks_reach_the_brief():
    found = brief(fallbacks=["openai-chat:big"], fallback_on=["quota"], max_tokens_cap=9)

    assert (found.fallbacks, found.fallback_on, found.max_tokens_cap) == (
        ("openai-chat:big",),
        ("quota",),
        9,
    )


def test_a_text_in_the_place_of_a_list_is_read_as_the_flag_would_be():
    found = brief(keys="A", fallbacks="openai-chat:big, sim:slow", fallback_on="quota,auth")

    assert found.keys == ("A",)
    assert found.fallbacks == ("openai-chat:big", "sim:slow")
    assert found.fallback_on == ("quota", "auth")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"fallback_on": ["speed"]}, "fallback_on"), ({"max_tokens_cap": -1}, "max_tokens_cap")],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        brief(**options)


def test_servers_and_keys_that_are_given_are_those_of_their_provider():
    given = Brief(input="-", model="vllm:a", base_url="http://h/v1", keys=("K",))

    assert given.places_of("vllm:b") == {"base_urls": "http://h/v1", "keys": ("K",)}
    assert given.places_of("openai:b") == {}
    assert Brief(input="-", model="sim:fast", base_url="http://h/v1").places_of("sim:slow") == {}
