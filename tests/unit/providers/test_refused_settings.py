from __future__ import annotations

import json
import logging

import pytest

from batch_llm import (
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    Request,
    RetryConfig,
    Settings,
    StatusError,
)
from batch_llm.providers.refused_settings import refused_setting
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import Response

ANSWER = b'{"model":"m-1","choices":[{"message":{"content":"Lima"},"finish_reason":"stop"}]}'
ENDPOINT = resolve(
    "azure:mine", base_url="https://me.openai.azure.com", environ={"AZURE_OPENAI_API_KEY": "k"}
)


def refusal(param="temperature", code="unsupported_value"):
    message = f"Unsupported value: '{param}' does not support 0.5 with this model."
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return json.dumps({"error": error}).encode()


class Fussy:
    """A model that takes no temperature, under a name that does not say so."""

    def __init__(self, param="temperature"):
        self.param = param
        self.sent = []

    async def post(self, url, headers, body, /):
        self.sent.append(json.loads(body))
        if self.param in self.sent[-1]:
            return Response(400, {}, refusal(self.param))
        return Response(200, {}, ANSWER)

    async def aclose(self):
        pass


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def run(wire, count=5, *, retry=None, **settings):
    processor = ParallelBatchProcessor(
        config=ProcessorConfig(max_workers=1, remember_limits=False, retry=retry or RetryConfig()),
        requests=RequestCaller(ENDPOINT, wire),
    )
    chosen = Settings(**settings)
    items = [
        LLMWorkItem(str(n), request=Request.of("azure:mine", f"{n}?", settings=chosen))
        for n in range(count)
    ]
    return await processor.process(items)


@pytest.mark.parametrize("param", ["temperature", "top_p"])
async def test_a_setting_that_is_refused_once_is_left_out_from_then_on(param, caplog):
    wire = Fussy(param)

    with caplog.at_level(logging.WARNING, "batch_llm.requests"):
        results = await run(wire, temperature=0.5, top_p=0.9, max_tokens=7)

    assert results.succeeded == 5
    assert [param in body for body in wire.sent] == [True] + [False] * 5
    assert all(body["max_completion_tokens"] == 7 for body in wire.sent)
    (record,) = caplog.records
    assert f"'mine' refuses {param}" in record.getMessage()


async def test_it_uses_up_no_attempt_of_the_items_in_flight():
    wire = Fussy("temperature")

    results = await run(wire, temperature=0.5, retry=RetryConfig(max_attempts=1))

    assert (results.succeeded, len(wire.sent)) == (5, 6)


async def test_a_refusal_that_has_another_reason_is_final():
    wire = Fussy("max_completion_tokens")

    results = await run(wire, 1, temperature=0.5, max_tokens=7)

    assert (results.failed, len(wire.sent)) == (1, 1)
    assert results.results[0].error_code == "bad_request"


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (StatusError(400, "", "unsupported_value", {}, json.loads(refusal())), "temperature"),
        (StatusError(400, "", "unsupported_parameter", {}, json.loads(refusal("top_p"))), "top_p"),
        (StatusError(400, "", "unsupported_value", {}, json.loads(refusal("stop"))), None),
        (StatusError(400, "", "invalid_value", {}, json.loads(refusal())), None),
        (StatusError(429, "", "unsupported_value", {}, json.loads(refusal())), None),
        (StatusError(400, "", "unsupported_value", {}, "temperature"), None),
        (StatusError(400, "", "unsupported_value", {}, {"error": "temperature"}), None),
        (ValueError("temperature"), None),
    ],
)
def test_only_what_the_provider_says_outright_counts(error, name):
    assert refused_setting(error) == name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("`temperature` is deprecated for this model.", "temperature"),
        ("`temperature` may only be set to 1 when thinking is enabled.", "temperature"),
        ("top_p is not supported by this model", "top_p"),
        ("This model does not support topP", "top_p"),
        ("Argument not supported on this model: temperature", "temperature"),
        ("Invalid JSON payload received. Unknown name \"temperature\" at 'x'", "temperature"),
        ("temperature must be between 0 and 2", None),
        ("temperature: Input should be less than or equal to 1", None),
        ("`temperature` and `top_p` cannot both be specified for this model.", None),
        ("stop is not supported by this model", None),
        ("Images are not supported. The temperature was 0.5.", None),
        ("set_temperature is not supported", None),
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_other_providers_say_it_in_words(words, name, status):
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": words}}

    assert refused_setting(StatusError(status, words, "invalid_request_error", {}, error)) == name
    assert refused_setting(StatusError(500, words, "invalid_request_error", {}, error)) is None
