"""Google's official SDK takes the simulator for the Gemini API."""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import ExitStack
from enum import Enum

import httpx2
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel

from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator

WEATHER = types.FunctionDeclaration(
    name="get_weather",
    parameters=types.Schema(
        type=types.Type.OBJECT,
        properties={"city": types.Schema(type=types.Type.STRING)},
        required=["city"],
    ),
)
TOOLS = [types.Tool(function_declarations=[WEATHER])]


class Kind(Enum):
    TOWN = "town"
    VILLAGE = "village"


class City(BaseModel):
    name: str
    people: int
    districts: list[str]
    kind: Kind
    mayor: str | None


def new_client(running, *, key="any", **options):
    settings = {"base_url": running.sdk_url("google"), "timeout": 10_000}
    return genai.Client(api_key=key, http_options=settings | options)


@pytest.fixture
def client():
    """Return a function that opens clients, which are closed after the test."""
    with ExitStack() as stack:
        yield lambda *where, **options: stack.enter_context(new_client(*where, **options))


def ask(api, prompt="Capital of Peru?", *, model="gemini-x", **config):
    return api.models.generate_content(model=model, contents=prompt, config=config or None)


@pytest.fixture(scope="module")
def api(server):
    with new_client(server) as opened:
        yield opened


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_an_answer_has_all_that_the_sdk_reads(api):
    answer = ask(api, system_instruction="Be short.", temperature=0.2)

    assert answer.text.startswith(f"Answer {answer_digest('Capital of Peru?')}: ")
    assert answer.model_version == "gemini-x"
    assert answer.response_id
    (candidate,) = answer.candidates
    assert (candidate.finish_reason, candidate.index) == (types.FinishReason.STOP, 0)
    assert candidate.content.role == "model"
    ratings = {rating.category: rating.probability for rating in candidate.safety_ratings}
    assert len(ratings) == 4
    assert set(ratings.values()) == {types.HarmProbability.NEGLIGIBLE}
    usage = answer.usage_metadata
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count
    assert (usage.thoughts_token_count, usage.cached_content_token_count) == (None, None)
    # Nothing tells of limits, and no id of the request.
    headers = answer.sdk_http_response.headers
    assert not [name for name in headers if "ratelimit" in name or "request-id" in name]


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_both_versions_of_the_api_are_served(server, version, client):
    api = client(server, api_version=version)

    assert ask(api).text
    assert "".join(
        chunk.text for chunk in api.models.generate_content_stream(model="gemini-x", contents="hi")
    )


def test_a_conversation_goes_on(api):
    chat = api.chats.create(model="gemini-x")
    first = chat.send_message("Capital of Peru?")
    again = chat.send_message("And of Chile?")

    assert again.text.startswith(f"Answer {answer_digest('And of Chile?')}: ")
    assert again.usage_metadata.prompt_token_count > first.usage_metadata.prompt_token_count


def test_images_are_taken_and_counted(api, image):
    part = types.Part.from_bytes(data=image, mime_type="image/png")
    answer = ask(api, ["What is it?", part])

    assert answer.text.startswith(f"Answer {answer_digest('What is it?')}: ")
    alone = ask(api, "What is it?").usage_metadata.prompt_token_count
    assert answer.usage_metadata.prompt_token_count == alone + 258


def test_structured_answers_fit_their_schema(api):
    kind = {"response_mime_type": "application/json"}
    parsed = ask(api, "A city", **kind, response_schema=City).parsed
    several = ask(api, "Cities", **kind, response_schema=list[City]).parsed
    plain = ask(api, "A city", **kind, response_json_schema=City.model_json_schema()).text
    word = ask(api, "A kind", response_mime_type="text/x.enum", response_schema=Kind).text
    loose = ask(api, "A city", **kind).text

    assert isinstance(parsed, City)
    assert all(isinstance(one, City) for one in several)
    City.model_validate_json(plain)
    assert json.loads(word) in {"town", "village"}
    assert isinstance(json.loads(loose), dict)


def test_functions_are_called(api):
    must = {"function_calling_config": {"mode": "ANY"}}
    answer = ask(api, tools=TOOLS, tool_config=must)
    (call,) = answer.function_calls
    history = [
        types.Content(role="user", parts=[types.Part(text="use get_weather")]),
        answer.candidates[0].content,
        types.Content(
            role="user",
            parts=[types.Part.from_function_response(name="get_weather", response={"t": 21})],
        ),
    ]
    later = ask(api, history, tools=TOOLS)

    assert (call.name, set(call.args)) == ("get_weather", {"city"})
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    assert later.text
    assert ask(api, "use get_weather", tools=TOOLS).function_calls
    assert not ask(api, "hi", tools=TOOLS).function_calls


def test_the_sdk_calls_python_functions_by_itself(api):
    asked = []

    def get_weather(city: str) -> str:
        """Return the weather."""
        asked.append(city)
        return "21 degrees"

    answer = ask(api, "use get_weather", tools=[get_weather])

    assert len(asked) == 1
    assert answer.text


def test_a_stream_gives_the_same_answer_in_pieces(api):
    whole = ask(api)
    chunks = list(api.models.generate_content_stream(model="gemini-x", contents="Capital of Peru?"))

    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert len(chunks) > 5
    assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP
    assert {chunk.candidates[0].finish_reason for chunk in chunks[:-1]} == {None}
    assert chunks[-1].usage_metadata == whole.usage_metadata


def test_without_events_a_stream_is_an_array(server):
    body = json.dumps({"contents": [{"parts": [{"text": "Capital of Peru?"}]}]}).encode()
    url = f"{server.sdk_url('google')}/v1beta/models/gemini-x:streamGenerateContent?key=any"
    with urllib.request.urlopen(urllib.request.Request(url, data=body)) as answer:
        chunks = json.loads(answer.read())

    text = "".join(chunk["candidates"][0]["content"]["parts"][0]["text"] for chunk in chunks)
    assert text.startswith(f"Answer {answer_digest('Capital of Peru?')}: ")


# Where aiohttp is there, the SDK uses it, in a way that aiohttp warns of.
@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")
async def test_the_async_client_works_too(server):
    async with new_client(server).aio as api:
        answer = await api.models.generate_content(model="gemini-x", contents="hi")
        stream = await api.models.generate_content_stream(model="gemini-x", contents="hi")
        text = "".join([chunk.text async for chunk in stream])

    assert answer.text == text


def test_models_are_listed_and_tokens_counted(api):
    assert [model.name for model in api.models.list()] == [
        "models/fast", "models/flaky", "models/slow",
    ]  # fmt: skip
    assert api.models.get(model="fast").name == "models/fast"
    counted = api.models.count_tokens(model="gemini-x", contents="Capital of Peru?")
    assert counted.total_tokens == ask(api).usage_metadata.prompt_token_count


@pytest.mark.parametrize(
    ("fault", "kind", "code", "status"),
    [
        ("p408", errors.ClientError, 408, "CANCELLED"),
        ("p429", errors.ClientError, 429, "RESOURCE_EXHAUSTED"),
        ("pquota", errors.ClientError, 429, "RESOURCE_EXHAUSTED"),
        ("p500", errors.ServerError, 500, "INTERNAL"),
        ("p503", errors.ServerError, 503, "UNAVAILABLE"),
        ("p504", errors.ServerError, 504, "DEADLINE_EXCEEDED"),
        ("p529", errors.ServerError, 503, "RESOURCE_EXHAUSTED"),
    ],
)
def test_errors_are_the_sdks_own(api, fault, kind, code, status):
    with pytest.raises(kind) as caught:
        ask(api, f"<<{fault}>> hi")

    error = caught.value
    assert type(error) is kind
    assert (error.code, error.status) == (code, status)
    assert error.details["error"]["code"] == code
    assert error.details["error"]["message"] == error.message
    assert isinstance(error.response, httpx2.Response)
    assert str(error) == f"{code} {status}. {error.details}"
    assert not hasattr(error, "status_code")
    assert not hasattr(error, "body")
    assert not [name for name in error.response.headers if name.startswith("retry")]


def details_of(error):
    return {one["@type"].rpartition(".")[2]: one for one in error.details["error"]["details"]}


def test_a_wait_is_told_in_the_body_and_a_days_quota_by_its_name_alone(api):
    with pytest.raises(errors.ClientError) as limited:
        ask(api, "<<p429>> hi")
    with pytest.raises(errors.ClientError) as used_up:
        ask(api, "<<pquota>> hi")

    minute, day = details_of(limited.value), details_of(used_up.value)
    assert minute["RetryInfo"]["retryDelay"] == "0.300s"
    # Misleading: the day is far from over.
    assert day["RetryInfo"]["retryDelay"] == "18s"
    assert minute["QuotaFailure"]["violations"][0]["quotaId"] == (
        "GenerateRequestsPerMinutePerProjectPerModel"
    )
    assert day["QuotaFailure"]["violations"][0] == {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
        "quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
        "quotaDimensions": {"location": "global", "model": "gemini-x"},
        "quotaValue": "250",
    }
    assert "links" in day["Help"]
    for error in (limited.value, used_up.value):
        assert error.message.startswith("You exceeded your current quota, please check your plan")


@pytest.mark.parametrize(
    ("options", "code", "status", "reason"),
    [
        ({"key": "invalid"}, 400, "INVALID_ARGUMENT", "API_KEY_INVALID"),
        ({"key": "forbidden"}, 403, "PERMISSION_DENIED", "CONSUMER_SUSPENDED"),
        ({"model": "missing-1"}, 404, "NOT_FOUND", None),
    ],
    ids=["key", "forbidden", "model"],
)
def test_keys_and_models_are_checked(server, options, code, status, reason, client):
    options = dict(options)
    with pytest.raises(errors.ClientError) as caught:
        ask(client(server, key=options.pop("key", "any")), **options)

    error = caught.value
    assert (error.code, error.status) == (code, status)
    details = error.details["error"].get("details", [{}])
    assert details[0].get("reason") == reason


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens|maxOutputTokens"),
        ({"candidate_count": 9}, "candidateCount: must be at most 8"),
        ({"response_mime_type": "text/yaml"}, "Allowed mimetypes are `text/plain`"),
        ({"response_schema": {"type": "STRING"}}, "only supported with mime type"),
        ({"response_mime_type": "application/json",
          "response_json_schema": {"type": "pasta"}}, "response_schema"),
    ],
    ids=["max", "candidates", "mime", "schema", "bad-schema"],
)  # fmt: skip
def test_bad_calls_are_refused(api, config, message):
    with pytest.raises(errors.ClientError) as caught:
        ask(api, **config)

    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert re.search(message, caught.value.message)


def test_a_prompt_that_is_too_long_is_named(client):
    with (
        Simulator("fast?latency=0&context=10") as running,
        pytest.raises(errors.ClientError) as caught,
    ):
        ask(client(running), "word " * 40)

    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert caught.value.message == (
        "The input token count (53) exceeds the maximum number of tokens allowed (10)."
    )


def test_transport_errors_are_not_wrapped(server, api, client):
    with pytest.raises(httpx2.ReadError):
        ask(api, "<<preset>> hi")
    with pytest.raises(httpx2.ReadTimeout):
        ask(client(server, timeout=200), "<<ptimeout>> hi")
    with pytest.raises(ValueError, match=r"Unterminated|Failed to parse"):
        ask(api, "<<pgarbage>> hi")
    with pytest.raises(errors.ServerError) as caught:
        ask(api, "<<p502>> hi")
    assert caught.value.code == 502
    assert caught.value.details["message"].startswith("<html>")


def test_a_blocked_prompt_has_no_candidates(api):
    answer = ask(api, "<<prefuse>> hi")

    assert answer.candidates is None
    assert answer.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT
    usage = answer.usage_metadata
    assert usage.total_token_count == usage.prompt_token_count


def test_a_blocked_answer_has_no_content(api):
    (candidate,) = ask(api, "<<pfilter>> hi").candidates

    assert candidate.finish_reason == types.FinishReason.SAFETY
    assert candidate.content is None
    assert [rating.category for rating in candidate.safety_ratings if rating.blocked] == [
        types.HarmCategory.HARM_CATEGORY_DANGEROUS_CONTENT
    ]


def test_a_long_answer_is_cut_at_the_limit(api):
    for answer in (ask(api, max_output_tokens=3), ask(api, "<<ptruncate>> hi")):
        assert answer.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    assert ask(api, max_output_tokens=3).usage_metadata.candidates_token_count == 3


def test_a_cut_call_of_a_function_is_none(api):
    must = {"function_calling_config": {"mode": "ANY"}}
    answer = ask(api, tools=TOOLS, tool_config=must, max_output_tokens=1)

    assert answer.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    assert not answer.function_calls


@pytest.mark.parametrize(
    ("fault", "reason"), [("prefuse", None), ("pfilter", types.FinishReason.SAFETY)]
)
def test_streams_can_be_blocked_too(api, fault, reason):
    stream = api.models.generate_content_stream(model="gemini-x", contents=f"<<{fault}>> hi")
    (chunk,) = stream

    assert not chunk.text
    assert (chunk.candidates[0].finish_reason if chunk.candidates else None) == reason


def test_an_error_in_mid_stream_is_raised(api):
    stream = api.models.generate_content_stream(model="gemini-x", contents="<<pmidway>> hi")
    with pytest.raises(errors.ServerError) as caught:
        list(stream)
    assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")

    stream = api.models.generate_content_stream(model="gemini-x", contents="<<pgarbage>> hi")
    with pytest.raises(errors.UnknownApiResponseError):
        list(stream)


def test_the_parts_of_the_usage_are_told(client):
    with Simulator("fast?latency=0&cached=0.5&reasoning=2") as running:
        usage = ask(client(running), "word " * 78).usage_metadata
        starved = ask(client(running), "word " * 78, max_output_tokens=20)
        stats = running.stats()

    assert (usage.prompt_token_count, usage.cached_content_token_count) == (100, 50)
    # Unlike elsewhere, the answer does not include its thought.
    assert usage.thoughts_token_count == 2 * usage.candidates_token_count
    assert usage.total_token_count == (
        100 + usage.candidates_token_count + usage.thoughts_token_count
    )
    assert starved.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    assert starved.text is None
    assert starved.usage_metadata.thoughts_token_count == 20
    assert stats.output_tokens == 3 * usage.candidates_token_count + 20


def test_input_tokens_are_limited_and_the_longest_answer_is_not(client):
    with Simulator("fast?latency=0&tpm=600") as running:
        api = client(running)
        ask(api, "x" * 4 * 497, max_output_tokens=8000)
        with pytest.raises(errors.ClientError) as caught:
            ask(api, "x" * 4 * 197)
        stats = running.stats()

    told = details_of(caught.value)
    (violation,) = told["QuotaFailure"]["violations"]
    assert violation["quotaId"] == "GenerateContentInputTokensPerModelPerMinute"
    assert violation["quotaValue"] == "600"
    # 100 are missing, at 10 a second.
    assert 8 < float(told["RetryInfo"]["retryDelay"].removesuffix("s")) <= 10
    assert stats.refused == 1


def test_requests_a_day_are_counted_failed_ones_too(client):
    with Simulator("fast?latency=0&rpd=2") as running:
        api = client(running)
        ask(api)
        with pytest.raises(errors.ServerError):
            ask(api, "<<p500>> hi")
        with pytest.raises(errors.ClientError) as caught:
            ask(api)

    told = details_of(caught.value)
    assert told["QuotaFailure"]["violations"][0]["quotaValue"] == "2"
    assert "PerDay" in told["QuotaFailure"]["violations"][0]["quotaId"]
    assert told["RetryInfo"]["retryDelay"] == "18s"


def test_the_sdk_repeats_nothing_unless_it_is_told_to(server, stats, client):
    with pytest.raises(errors.ServerError):
        ask(client(server), "<<p503>> hi")
    assert stats()["calls"] == 1

    eager = client(server, retry_options={"attempts": 2, "initial_delay": 0.01, "jitter": 0.01})
    with pytest.raises(errors.ServerError):
        ask(eager, "<<p503>> hi")
    assert stats()["calls"] == 3
