"""The official OpenAI SDK takes the simulator for the service."""

from __future__ import annotations

import openai
import pytest
from pydantic import BaseModel

from batch_llm.simulator import Profile, answer_digest
from batch_llm.simulator.server import Simulator, SimulatorProcess

QUESTION = [{"role": "user", "content": "Capital of Peru?"}]


def ask(profile, *, key="any", timeout=10.0, **arguments):
    with Simulator(profile) as simulator:
        client = openai.OpenAI(
            base_url=simulator.base_url, api_key=key, max_retries=0, timeout=timeout
        )
        with client:
            return client.chat.completions.create(
                **({"model": "gpt-x", "messages": QUESTION} | arguments)
            )


def test_an_answer_has_all_that_the_sdk_reads():
    answer = ask("fast")

    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "gpt-x"
    assert answer.choices[0].finish_reason == "stop"
    assert answer_digest("Capital of Peru?") in answer.choices[0].message.content
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == 0
    assert answer._request_id.startswith("req_")


def test_several_choices_can_be_asked_for():
    assert [choice.index for choice in ask("fast", n=3).choices] == [0, 1, 2]


class City(BaseModel):
    name: str
    people: int
    districts: list[str]


def test_structured_answers_fit_their_schema():
    with (
        Simulator("fast") as simulator,
        openai.OpenAI(base_url=simulator.base_url, api_key="any") as client,
    ):
        parsed = client.chat.completions.parse(
            model="gpt-x", messages=QUESTION, response_format=City
        )

    assert isinstance(parsed.choices[0].message.parsed, City)


def test_a_long_answer_is_cut_at_the_limit():
    choice = ask("fast", max_tokens=2).choices[0]

    assert choice.finish_reason == "length"


@pytest.mark.parametrize(
    ("profile", "kind", "status", "code"),
    [
        (Profile(p429=1), openai.RateLimitError, 429, "rate_limit_exceeded"),
        (Profile(pquota=1), openai.RateLimitError, 429, "insufficient_quota"),
        (Profile(p500=1), openai.InternalServerError, 500, None),
        (Profile(p503=1), openai.InternalServerError, 503, "server_is_overloaded"),
        (Profile(p529=1), openai.InternalServerError, 529, "overloaded"),
    ],
)
def test_error_answers_raise_the_sdks_own_classes(profile, kind, status, code):
    with pytest.raises(kind) as caught:
        ask(profile)

    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.request_id.startswith("req_")


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        ({"key": "invalid"}, openai.AuthenticationError, "invalid_api_key"),
        ({"model": "missing-1"}, openai.NotFoundError, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, None),
        ({"max_tokens": 0}, openai.BadRequestError, None),
    ],
)
def test_bad_calls_are_refused_as_the_service_does(arguments, kind, code):
    with pytest.raises(kind) as caught:
        ask("fast", **arguments)

    assert caught.value.code == code


def test_a_broken_connection_is_one_for_the_sdk():
    with pytest.raises(openai.APIConnectionError):
        ask(Profile(preset=1))


def test_a_held_back_answer_is_a_timeout_for_the_sdk():
    with pytest.raises(openai.APITimeoutError):
        ask(Profile(ptimeout=1), timeout=0.3)


def test_refusals_and_filters_look_like_the_services():
    refused = ask(Profile(prefuse=1)).choices[0]
    filtered = ask(Profile(pfilter=1)).choices[0]

    assert "cannot assist" in refused.message.refusal
    assert refused.message.content is None
    assert filtered.finish_reason == "content_filter"


def test_limits_are_told_in_headers_and_kept():
    with (
        Simulator("fast?rpm=2&burst=60") as simulator,
        openai.OpenAI(base_url=simulator.base_url, api_key="any", max_retries=0) as client,
    ):
        raw = client.chat.completions.with_raw_response
        headers = raw.create(model="x", messages=QUESTION).headers
        raw.create(model="x", messages=QUESTION)
        with pytest.raises(openai.RateLimitError) as caught:
            raw.create(model="x", messages=QUESTION)
        stats = simulator.stats()

    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert headers["x-ratelimit-reset-requests"] == "30s"
    assert 29 <= int(caught.value.response.headers["retry-after"]) <= 30
    assert (stats.calls, stats.answers, stats.refused) == (3, 2, 1)


def test_the_sdks_own_retries_recover():
    with (
        Simulator("fast?p500=0.9&recover=2") as simulator,
        openai.OpenAI(base_url=simulator.base_url, api_key="any", max_retries=3) as client,
    ):
        assert client.chat.completions.create(model="x", messages=QUESTION).choices


def test_models_are_listed():
    with (
        Simulator("fast") as simulator,
        openai.OpenAI(base_url=simulator.base_url, api_key="any") as client,
    ):
        assert "fast" in [model.id for model in client.models.list()]


def test_a_simulator_process_ends_with_its_block():
    with SimulatorProcess("fast") as simulator:
        process = simulator._process
        with openai.OpenAI(base_url=simulator.base_url, api_key="any") as client:
            assert client.chat.completions.create(model="x", messages=QUESTION).choices

    assert process.poll() is not None


def test_a_port_in_use_is_named():
    with Simulator("fast") as simulator:
        port = int(simulator.base_url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1 cannot be used"):
            Simulator("fast", port=port).start()
