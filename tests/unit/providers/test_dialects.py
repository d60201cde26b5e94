"""What the relatives of chat completions do otherwise."""

from __future__ import annotations

import json

import pytest

from batch_llm import ContextLengthError, Message, Request, Settings, StatusError
from batch_llm.core.schema import OutputSchema
from batch_llm.providers.registry import resolve
from batch_llm.providers.table import PROVIDERS

FULL = Settings(max_tokens=9, seed=3, temperature=0.5)


def codec(provider):
    return PROVIDERS[provider].codec


def encode(provider, request):
    return json.loads(codec(provider).encode(request))


def answer(message, reason="stop", **more):
    body = {"model": "m-1", "choices": [{"message": message, "finish_reason": reason}]}
    return json.dumps(body | more).encode()


def decode(provider, body):
    return codec(provider).decode(200, {}, body, Request.of(f"{provider}:m", "hi"))


@pytest.mark.parametrize(
    ("provider", "length", "seed"),
    [
        ("openai-chat", "max_completion_tokens", "seed"),
        ("azure", "max_completion_tokens", "seed"),
        ("groq", "max_completion_tokens", "seed"),
        ("cerebras", "max_completion_tokens", "seed"),
        ("mistral", "max_tokens", "random_seed"),
        ("deepseek", "max_tokens", "seed"),
        ("openrouter", "max_tokens", "seed"),
        ("together", "max_tokens", "seed"),
        ("fireworks", "max_tokens", "seed"),
        ("xai", "max_tokens", "seed"),
        ("ollama", "max_tokens", "seed"),
        ("vllm", "max_tokens", "seed"),
    ],
)
def test_each_provider_has_its_own_names(provider, length, seed):
    body = encode(provider, Request.of(f"{provider}:m", "hi", settings=FULL))

    assert (body[length], body[seed], body["temperature"]) == (9, 3, 0.5)
    assert len(body) == 5


@pytest.mark.parametrize(("provider", "role"), [("openai-chat", "developer"), ("groq", "system")])
def test_developers_are_the_system_where_nobody_knows_them(provider, role):
    request = Request(f"{provider}:m", (Message("developer", "Be brief."), Message("user", "hi")))

    assert encode(provider, request)["messages"][0]["role"] == role


def test_a_server_without_schemas_is_asked_for_json_and_the_model_is_told_the_schema():
    request = Request.of("deepseek:m", "hi", output=OutputSchema.choices("ham", "spam"))

    body = encode("deepseek", request)

    assert body["response_format"] == {"type": "json_object"}
    assert '"enum": ["ham", "spam"]' in body["messages"][0]["content"]
    assert body["messages"][1] == {"role": "user", "content": "hi"}


def test_only_openais_own_models_refuse_temperatures():
    for provider, is_sent in (("openai-chat", False), ("azure", False), ("groq", True)):
        request = Request.of(f"{provider}:gpt-5", "hi", settings=FULL)
        assert ("temperature" in encode(provider, request)) == is_sent


def test_deepseeks_cache_hits_are_input():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_cache_hit_tokens": 4,
        "prompt_cache_miss_tokens": 6,
    }

    outcome = decode("deepseek", answer({"content": "x"}, usage=usage))

    assert outcome.usage["input_tokens"] == 10
    assert outcome.usage["cache_read_tokens"] == 4


@pytest.mark.parametrize(("total", "output"), [(15, 5), (18, 8), (19, 5)])
def test_thoughts_that_are_counted_beside_the_answer_are_output(total, output):
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": total,
        "completion_tokens_details": {"reasoning_tokens": 3},
    }

    outcome = decode("xai", answer({"content": "x"}, usage=usage))

    assert outcome.usage["output_tokens"] == output
    assert outcome.usage["reasoning_tokens"] == 3


def test_mistrals_thoughts_are_no_part_of_the_answer():
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "Lima"},
    ]

    assert decode("mistral", answer({"content": content})).output == "Lima"


def test_a_full_context_is_told_from_a_length_that_was_asked_for():
    error = decode("mistral", answer({"content": "half"}, "model_length")).error

    assert isinstance(error, ContextLengthError)
    assert error.text == "half"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (json.dumps({"error": {"code": 502, "message": "upstream"}}).encode(), 502),
        (json.dumps({"error": {"code": 402, "message": "no credits"}}).encode(), 402),
        (answer({"content": "ha"}, "error"), 500),
        (json.dumps({"choices": [{"error": {"code": 429, "message": "slow"},
                                  "finish_reason": "error", "message": {"content": ""}}]}).encode(),
         429),
    ],
)  # fmt: skip
def test_openrouters_errors_come_inside_of_a_200(body, status):
    error = decode("openrouter", body).error

    assert isinstance(error, StatusError)
    assert error.status == status


KEY = "sk-0123456789"


@pytest.mark.parametrize(
    ("model", "url", "header"),
    [
        ("openai:m", "https://api.openai.com/v1/responses", "authorization"),
        ("openai-chat:m", "https://api.openai.com/v1/chat/completions", "authorization"),
        ("anthropic:m", "https://api.anthropic.com/v1/messages", "authorization"),
        (
            "google:m",
            "https://generativelanguage.googleapis.com/v1/models/m:generateContent",
            "x-goog-api-key",
        ),
        ("mistral:m", "https://api.mistral.ai/v1/chat/completions", "authorization"),
        ("groq:m", "https://api.groq.com/openai/v1/chat/completions", "authorization"),
        ("deepseek:m", "https://api.deepseek.com/chat/completions", "authorization"),
        ("openrouter:a/b", "https://openrouter.ai/api/v1/chat/completions", "authorization"),
        ("together:m", "https://api.together.xyz/v1/chat/completions", "authorization"),
        (
            "fireworks:accounts/f/models/m",
            "https://api.fireworks.ai/inference/v1/chat/completions",
            "authorization",
        ),
        ("xai:m", "https://api.x.ai/v1/chat/completions", "authorization"),
        ("cerebras:m", "https://api.cerebras.ai/v1/chat/completions", "authorization"),
        ("azure:m", "https://me.openai.azure.com/openai/v1/chat/completions", "api-key"),
    ],
)
def test_each_provider_has_its_address_and_its_header_for_the_key(model, url, header):
    provider = PROVIDERS[model.partition(":")[0]]
    environ = {provider.key_variable: KEY}
    if not provider.base_url:
        environ[provider.url_variable] = "https://me.openai.azure.com/"

    endpoint = resolve(model, environ=environ)

    assert (endpoint.url, endpoint.server) == (url, "")
    assert endpoint.headers[header] == (f"Bearer {KEY}" if header == "authorization" else KEY)
    assert sum(KEY in value for value in endpoint.headers.values()) == 1


def test_anthropic_is_told_the_version_of_its_format():
    endpoint = resolve("anthropic:m", environ={"ANTHROPIC_API_KEY": KEY})

    assert endpoint.headers["anthropic-version"] == "2026-10-21"


@pytest.mark.parametrize(
    ("model", "base_url", "url"),
    [
        ("anthropic:m", "http://h:1", "http://h:1/v1/messages"),
        ("anthropic:m", "http://h:1/v1/", "http://h:1/v1/messages"),
        ("anthropic:m", "http://h:1/proxy?k=1", "http://h:1/proxy/v1/messages?k=1"),
        ("google:m", "http://h:1", "http://h:1/v1/models/m:generateContent"),
        ("google:m", "http://h:1/v1beta", "http://h:1/v1beta/models/m:generateContent"),
        ("mistral:m", "http://h:1", "http://h:1/v1/chat/completions"),
        ("groq:m", "http://h:1", "http://h:1/openai/v1/chat/completions"),
        ("groq:m", "http://h:1/openai/v1", "http://h:1/openai/v1/chat/completions"),
        ("openai:m", "http://h:1/v1", "http://h:1/v1/responses"),
        ("deepseek:m", "http://h:1", "http://h:1/chat/completions"),
        ("azure:m", "http://h:1/openai/v1", "http://h:1/openai/v1/chat/completions"),
    ],
)
def test_an_address_is_what_the_providers_sdk_takes(model, base_url, url):
    assert resolve(model, base_url=base_url, environ={}).url == url


def test_azures_older_surface_has_an_address_for_each_model():
    environ = {
        "AZURE_OPENAI_API_KEY": KEY,
        "AZURE_OPENAI_ENDPOINT": "https://me.openai.azure.com",
        "OPENAI_API_VERSION": "2024-10-21",
    }

    endpoint = resolve("azure:my gpt", environ=environ)

    assert endpoint.url == (
        "https://me.openai.azure.com/openai/deployments/my%20gpt/chat/completions"
        "?api-version=2024-10-21"
    )


def test_googles_version_can_be_told():
    environ = {"GEMINI_API_KEY": KEY, "GOOGLE_GENAI_API_VERSION": "v1alpha",
               "GOOGLE_GEMINI_BASE_URL": "http://h:1"}  # fmt: skip

    assert resolve("google:m", environ=environ).url == (
        "http://h:1/v1alpha/models/m:generateContent"
    )


def test_the_key_is_looked_for_under_all_the_names_that_the_sdks_know():
    both = {"GEMINI_API_KEY": "second", "GOOGLE_API_KEY": "first"}

    assert resolve("google:m", environ=both).secret == "first"
    assert resolve("google:m", environ={"GEMINI_API_KEY": "second"}).secret == "second"
    assert resolve("anthropic:m", environ={"ANTHROPIC_AUTH_TOKEN": "t"}).secret == "t"


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("sim:fast", "http://127.0.0.1:1/v1/chat/completions"),
        ("sim-openai:fast", "http://127.0.0.1:1/v1/responses"),
        ("sim-anthropic:fast", "http://127.0.0.1:1/v1/messages"),
        ("sim-google:fast", "http://127.0.0.1:1/v1beta/models/fast:generateContent"),
        ("sim-mistral:fast", "http://127.0.0.1:1/mistral/v1/chat/completions"),
        ("sim-groq:fast", "http://127.0.0.1:1/openai/v1/chat/completions"),
    ],
)
def test_a_simulator_plays_each_provider_and_never_gets_the_users_key(model, url):
    environ = {"ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": KEY, "GOOGLE_API_KEY": KEY,
               "GROQ_API_KEY": KEY}  # fmt: skip

    endpoint = resolve(model, base_url="http://127.0.0.1:1/v1", environ=environ)

    assert endpoint.url == url
    assert KEY not in str(endpoint.headers)
    assert (endpoint.account, endpoint.server, endpoint.secret) == (None, "", "")
