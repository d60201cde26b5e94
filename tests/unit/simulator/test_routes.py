from __future__ import annotations

import pytest

from batch_llm.simulator.addresses import ADDRESSES, api_url, sdk_url
from batch_llm.simulator.anthropic_messages import ANTHROPIC
from batch_llm.simulator.gemini import GEMINI, GEMINI_ARRAY, GEMINI_STREAM
from batch_llm.simulator.groq import GROQ
from batch_llm.simulator.mistral import MISTRAL
from batch_llm.simulator.openai_chat import OPENAI_CHAT
from batch_llm.simulator.openai_responses import OPENAI_RESPONSES
from batch_llm.simulator.routes import CALLS, find

VERSION = [(b"anthropic-version", b"2023-06-01")]
GOOGLE_KEY = [(b"x-goog-api-key", b"x")]


def route_of(path):
    return CALLS.get(path) or find("POST", path, [], b"")


@pytest.mark.parametrize(
    ("path", "wire"),
    [
        ("/v1/chat/completions", OPENAI_CHAT),
        ("/chat/completions", OPENAI_CHAT),
        ("/v1/responses", OPENAI_RESPONSES),
        ("/v1/messages", ANTHROPIC),
        ("/anthropic/v1/messages", ANTHROPIC),
        ("/mistral/v1/chat/completions", MISTRAL),
        ("/openai/v1/chat/completions", GROQ),
        ("/groq/openai/v1/chat/completions", GROQ),
    ],
)
def test_calls_have_their_addresses(path, wire):
    assert route_of(path) == (wire, "call", "")
    assert find("GET", path, [], b"") == (wire, "method", "")


@pytest.mark.parametrize("start", ["/v1", "/v1beta", "/google/v1", "/google/v1beta"])
def test_gemini_has_the_model_in_the_path(start):
    path = f"{start}/models/gemini-x:generateContent"
    stream = f"{start}/models/gemini-x:streamGenerateContent"

    assert find("POST", path, [], b"") == (GEMINI, "call", "gemini-x")
    assert find("POST", stream, [], b"alt=sse") == (GEMINI_STREAM, "call", "gemini-x")
    assert find("POST", stream, [], b"") == (GEMINI_ARRAY, "call", "gemini-x")
    assert find("POST", f"{start}/models/x:countTokens", [], b"") == (GEMINI, "count", "x")
    assert find("GET", path, [], b"") == (GEMINI, "method", "")
    assert find("POST", f"{start}/models/x:dance", [], b"").kind == "lost"


@pytest.mark.parametrize(
    ("path", "headers", "query", "wire"),
    [
        ("/v1/models", [], b"", OPENAI_CHAT),
        ("/models", [], b"", OPENAI_CHAT),
        ("/v1/models", VERSION, b"", ANTHROPIC),
        ("/v1/models", GOOGLE_KEY, b"", GEMINI),
        ("/v1/models", [], b"key=x", GEMINI),
        ("/v1beta/models", [], b"", GEMINI),
        ("/anthropic/v1/models", [], b"", ANTHROPIC),
        ("/mistral/v1/models", [], b"", MISTRAL),
        ("/openai/v1/models", [], b"", GROQ),
    ],
)
def test_lists_of_models_are_told_apart_by_headers(path, headers, query, wire):
    assert find("GET", path, headers, query) == (wire, "models", "")
    assert find("GET", f"{path}/a/b", headers, query) == (wire, "model", "a/b")
    assert find("PUT", path, headers, query) == (wire, "method", "")


@pytest.mark.parametrize(
    ("path", "wire"),
    [
        ("/v1/messages/count_tokens", ANTHROPIC),
        ("/v1/responses/input_tokens", OPENAI_RESPONSES),
    ],
)
def test_tokens_are_counted_at_addresses_of_their_own(path, wire):
    assert find("POST", path, [], b"") == (wire, "count", "")


@pytest.mark.parametrize("path", ["/", "/v1/nothing", "/v1/modelsandmore", "/v2/models"])
def test_other_addresses_are_lost(path):
    assert find("GET", path, [], b"").kind == "lost"


def test_base_urls_lead_to_the_addresses():
    base = "http://127.0.0.1:1/v1"
    paths = {api_url(base, provider) + end for provider in ADDRESSES for end in
             ("/chat/completions", "/responses", "/messages")}  # fmt: skip
    found = {route_of(path.removeprefix("http://127.0.0.1:1")).wire for path in paths}

    assert found >= {OPENAI_CHAT, OPENAI_RESPONSES, ANTHROPIC, MISTRAL, GROQ}
    assert sdk_url(base, "mistral") == "http://127.0.0.1:1/mistral"
    assert api_url(base, "google") == "http://127.0.0.1:1/v1beta"
