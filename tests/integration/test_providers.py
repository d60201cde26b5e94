"""Requests in each provider's own format, over sockets, against the simulator that plays it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal

import pytest

from batch_llm import (
    FixedDelayStrategy,
    Image,
    LLMWorkItem,
    Message,
    ParallelBatchProcessor,
    Price,
    Prices,
    ProcessorConfig,
    Request,
    RetryConfig,
    Settings,
    Text,
)
from batch_llm.classifiers import DefaultErrorClassifier
from batch_llm.core.schema import OutputSchema
from batch_llm.exceptions import TransportError
from batch_llm.providers.base import Try
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport
from batch_llm.simulator.server import Simulator
from batch_llm.strategies.errors import code_of

#: Faults after which the answer, and with it what it cost, still arrives; or nothing is billed.
TOLD = (
    "retry_after=ms&p429=0.01&p408=0.01&p500=0.04&p502=0.02&p503=0.01&p504=0.01&pschema=0.1"
    "&ptruncate=0.1&prefuse=0.03&pfilter=0.02"
)
KINDS = "cached=0.3&cache_writes=0.2&reasoning=0.5"
PROVIDERS = ("openai", "openai-chat", "anthropic", "google", "mistral", "groq")
KEYS = [f"{name}_API_KEY" for name in ("OPENAI", "ANTHROPIC", "GOOGLE", "MISTRAL", "GROQ")]
TELL_WRITES = ("anthropic",)
CHOICES = OutputSchema.choices("good", "bad")
classify = DefaultErrorClassifier().classify


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def simulator():
    with Simulator("fast?hang=0.2") as running:
        yield running


def prefix(provider):
    return "sim" if provider == "openai-chat" else f"sim-{provider}"


def endpoint_at(running, provider, model="m"):
    return resolve(f"{prefix(provider)}:{model}", base_url=running.base_url)


async def ask(running, provider, prompt="hi", *, model="m", key=None, **more):
    """Make one call; return its outcome, or what it raised as one."""
    endpoint = endpoint_at(running, provider, model)
    if key is not None:
        environ = dict.fromkeys(KEYS, key)
        base_url = running.sdk_url(provider.removesuffix("-chat"))
        endpoint = resolve(f"{provider}:{model}", base_url=base_url, environ=environ)
    transport = HttpTransport()
    messages = more.pop("messages", (Message("user", prompt),))
    request = Request("x:m", messages, more.pop("settings", Settings()), more.pop("output", None))
    try:
        item = LLMWorkItem("1", request=request)
        return await RequestCaller(endpoint, transport).call(item, Try(1, 5.0, None, {}))
    finally:
        await transport.aclose()


async def run(running, provider, count=300, *, shape=None, **settings):
    transport = HttpTransport()
    chosen = {"retry": RetryConfig(max_attempts=4, initial_wait=0.01), "max_workers": 32}
    processor = ParallelBatchProcessor(
        config=ProcessorConfig(**chosen | {"remember_limits": False} | settings),
        requests=RequestCaller(endpoint_at(running, provider), transport),
        rate_limit_strategy=FixedDelayStrategy(cooldown=0.01, delay_between_requests=0.0),
    )
    items = [
        LLMWorkItem(
            str(n),
            request=Request.of(
                "x:m", f"Tell me of {n}.", output=shape, settings=Settings(max_tokens=200)
            ),
        )
        for n in range(count)
    ]
    try:
        results = await processor.process(items)
    finally:
        await transport.aclose()
    return results, processor.statistics(), running.stats()


@pytest.mark.parametrize("shape", [None, CHOICES], ids=["text", "schema"])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_our_tokens_and_bill_are_the_providers_under_faults(provider, shape):
    with Simulator(f"fast?seed=3&{TOLD}&{KINDS}") as running:
        results, now, stats = await run(running, provider, shape=shape)

    assert sum(stats.faults.values()) > 40
    assert results.succeeded > 200
    (used,) = now.usage
    assert used.calls == stats.answers
    assert (used.input_tokens, used.output_tokens) == (stats.input_tokens, stats.output_tokens)
    assert used.cache_read_tokens == stats.cached_tokens
    # Who tells nothing of what was written to a cache, or thought, bills it as any other.
    written = stats.written_tokens if provider in TELL_WRITES else 0
    assert used.cache_write_tokens == written
    assert used.reasoning_tokens == (0 if provider == "mistral" else stats.reasoning_tokens)
    assert used.unmeasured_calls == stats.faults["p408"] + stats.faults["p504"]
    prices = Prices({used.model: Price(input=1, output=4, cache_read="0.1", cache_write="1.25")})
    plain = stats.input_tokens - stats.cached_tokens - written
    # USD per million: 1 in, 0.10 from a cache, 1.25 to it, 4 out.
    millionths = plain + stats.cached_tokens / Decimal(10) + written * Decimal("1.25")
    millionths += 4 * stats.output_tokens
    assert prices.bill(now.usage).usd == millionths / 10**6


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_the_answer_comes_back_to_its_question(simulator, provider):
    outcome = await ask(simulator, provider, "<<echo>>Lima, Peru")

    assert (outcome.output, outcome.error) == ("Lima, Peru", None)
    assert outcome.usage["input_tokens"] > 0


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_conversation_with_pictures_is_understood(simulator, provider):
    picture = "data:image/png;base64,iVBORw0KGgo="
    messages = (
        Message("system", "Be brief."),
        Message("user", (Text("What is this?"), Image(picture))),
        Message("assistant", "A dog."),
        Message("user", "<<echo>>And this?"),
    )

    with_picture = await ask(simulator, provider, messages=messages)
    without = await ask(simulator, provider, messages=(*messages[:1], *messages[2:]))

    assert with_picture.output == "And this?"
    assert with_picture.usage["input_tokens"] > without.usage["input_tokens"] + 50


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    "shape",
    [
        CHOICES,
        OutputSchema.of(list[int]),
        OutputSchema.json_schema(
            {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        ),
    ],
    ids=["choices", "type", "open"],
)
async def test_answers_conform_to_the_schema(simulator, provider, shape):
    outcome = await ask(simulator, provider, output=shape)

    assert outcome.error is None
    assert outcome.output is not None


VERDICTS = {
    "p429": "rate_limited",
    "p408": "timeout",
    "p500": "server_error",
    "p502": "server_error",
    "p503": "overloaded",
    "p504": "timeout",
    "p529": "overloaded",
    "pquota": "quota",
    "preset": "connection",
    "pgarbage": "server_error",
    "pschema": "bad_output",
    "ptruncate": "truncated",
    "prefuse": "content_filter",
    "pfilter": "content_filter",
}
#: Where a provider says it otherwise.
OTHERWISE = {
    # Told by its body to slow down; the status is a 503.
    ("google", "p529"): "rate_limited",
    ("mistral", "p529"): "rate_limited",
    # Out of capacity in its flex tier.
    ("groq", "p529"): "server_error",
    # A limit of tokens per day, that opens again in minutes.
    ("groq", "pquota"): "rate_limited",
    # Refuses in plain words, which only a reader can tell.
    ("mistral", "prefuse"): None,
    ("groq", "prefuse"): None,
    ("mistral", "pfilter"): "server_error",
    ("groq", "pfilter"): None,
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("fault", VERDICTS)
async def test_each_failure_means_the_same_from_every_provider(simulator, provider, fault):
    expected = OTHERWISE.get((provider, fault), VERDICTS[fault])
    shape = CHOICES if fault == "pschema" else None

    try:
        error = (await ask(simulator, provider, f"<<{fault}>> Say so.", output=shape)).error
    except TransportError as broken:
        error = broken

    found = None if error is None else code_of(classify(error).error_category).value
    assert found == expected, error


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_an_unknown_model_and_a_bad_key_stop_everything(simulator, provider):
    unknown = await ask(simulator, provider, model="missing-1")
    keyless = await ask(simulator, provider, key="invalid")

    assert classify(unknown.error).error_category == "not_found"
    assert classify(keyless.error).error_category == "auth"
    assert not classify(keyless.error).is_retryable


QUOTAS = {
    "openai": ["insufficient_quota", "billing_hard_limit_reached", "credit_balance_exhausted",
               "organization_spend_limit_exceeded", "project_spend_limit_exceeded",
               "organization_usage_limit_exceeded"],
    "anthropic": ["credit", "billing_error", "contract_spend_limit_reached",
                  "enforced_spend_limit_reached"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("provider", "way"), [(name, way) for name, ways in QUOTAS.items() for way in ways]
)
async def test_every_way_of_being_out_of_credit_is_final(simulator, provider, way):
    error = (await ask(simulator, provider, f"<<pquota:{way}>>")).error

    info = classify(error)
    assert (info.error_category, info.is_retryable, info.suggested_wait) == ("quota", False, None)


async def test_groqs_413_is_final_although_it_tells_a_wait():
    with Simulator("fast?tpm=200") as running:
        await ask(running, "groq", "long " * 2000)  # an untouched limit lets it pass
        error = (await ask(running, "groq", "long " * 2000)).error

    assert (error.status, error.code) == (413, "rate_limit_exceeded")
    assert not classify(error).is_retryable


@pytest.mark.parametrize("provider", ["openai", "openai-chat"])
async def test_an_error_inside_of_a_200_is_an_error(simulator, provider):
    error = (await ask(simulator, provider, "<<pmidway>>")).error

    assert error is not None
    assert classify(error).is_retryable


async def test_a_long_answer_of_anthropic_is_streamed_and_the_same(simulator):
    settings = Settings(max_tokens=30_000)

    streamed = await ask(simulator, "anthropic", "Tell me.", settings=settings)
    whole = await ask(simulator, "anthropic", "Tell me.")

    assert (streamed.output, streamed.error) == (whole.output, None)
    assert streamed.usage["total_tokens"] == whole.usage["total_tokens"]


async def test_a_kept_answer_that_was_streamed_is_one_document(simulator):
    transport = HttpTransport()
    request = Request.of("x:m", "<<echo>>Lima", settings=Settings(max_tokens=30_000))
    caller = RequestCaller(endpoint_at(simulator, "anthropic"), transport, keep_bodies=True)
    try:
        item = LLMWorkItem("1", request=request)
        outcome = await caller.call(item, Try(1, 5.0, None, {}))
    finally:
        await transport.aclose()

    kept = json.loads(outcome.body)
    assert (kept["type"], kept["content"][0]["text"]) == ("message", "Lima")
    assert caller.read_again(item, outcome.answer).output == "Lima"


async def test_a_stream_of_anthropic_that_ends_with_an_error_is_one(simulator):
    settings = Settings(max_tokens=30_000)

    error = (await ask(simulator, "anthropic", "<<pmidway>>", settings=settings)).error

    assert classify(error).is_retryable
    assert code_of(classify(error).error_category).value in {"overloaded", "server_error"}


async def test_a_streamed_schema_is_put_together(simulator):
    settings = Settings(max_tokens=30_000)

    for model in ("claude-sonnet-4-5", "claude-3-7-sonnet"):
        outcome = await ask(simulator, "anthropic", model=model, output=CHOICES, settings=settings)
        assert outcome.output in {"good", "bad"}


async def test_geminis_ratings_reach_the_result(simulator):
    transport = HttpTransport()
    processor = ParallelBatchProcessor(
        requests=RequestCaller(endpoint_at(simulator, "google"), transport),
        config=ProcessorConfig(remember_limits=False),
    )
    try:
        results = await processor.process([LLMWorkItem("1", request=Request.of("x:m", "Tell me."))])
    finally:
        await transport.aclose()

    ratings = results.results[0].gemini_safety_ratings
    assert ratings
    assert all(name.startswith("HARM_CATEGORY_") for name in ratings)


async def test_geminis_ratings_of_a_withheld_answer_reach_its_result(simulator):
    transport = HttpTransport()
    processor = ParallelBatchProcessor(
        requests=RequestCaller(endpoint_at(simulator, "google"), transport),
        config=ProcessorConfig(remember_limits=False),
    )
    try:
        results = await processor.process(
            [LLMWorkItem("1", request=Request.of("x:m", "<<pfilter>>"))]
        )
    finally:
        await transport.aclose()

    (result,) = results.results
    assert (result.success, result.error_code) == (False, "content_filter")
    assert result.gemini_safety_ratings


@pytest.mark.parametrize(
    ("provider", "dimensions"),
    [
        ("openai", {"requests", "tokens"}),
        ("openai-chat", {"requests", "tokens"}),
        ("anthropic", {"requests", "input_tokens", "output_tokens"}),
        ("mistral", {"requests", "tokens"}),
        ("groq", {"requests_per_day", "tokens"}),
    ],
)
async def test_limits_are_read_from_each_providers_headers(provider, dimensions):
    options = "rpm=500&tpm=100k&rpd=100k&itpm=50k&otpm=10k"
    with Simulator(f"fast?{options}") as running:
        outcome = await ask(running, provider, settings=Settings(max_tokens=50))

    assert set(outcome.limits) == dimensions
    told = {name: one.limit for name, one in outcome.limits.items()}
    assert told.get("requests", 500) == 500
    assert told.get("requests_per_day", 100_000) == 100_000


COMMAND = [
    sys.executable,
    "-m",
    "batch_llm",
    "run",
    "rows.txt",
    "--progress",
    "none",
    "--overwrite",
]


def command(tmp_path, *arguments, **environ):
    (tmp_path / "rows.txt").write_text("".join(f"Number {n}?\n" for n in range(30)))
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    output = tmp_path / "rows.results.jsonl"
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    return done, rows


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "mistral", "groq"])
def test_the_command_runs_each_format_against_a_simulator_of_its_own(tmp_path, provider):
    done, rows = command(tmp_path, "-m", f"sim-{provider}:flaky?seed=2", "--choices", "good,bad")

    assert done.returncode in {0, 1}, done.stderr
    assert len(rows) >= 28
    assert {row["output"] for row in rows} == {"good", "bad"}
    assert all(row["input_tokens"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("provider", "variable"),
    [("anthropic", "ANTHROPIC_BASE_URL"), ("google", "GOOGLE_GEMINI_BASE_URL"),
     ("groq", "GROQ_BASE_URL"), ("mistral", "MISTRAL_BASE_URL"), ("openai", "OPENAI_BASE_URL")],
)  # fmt: skip
def test_the_command_goes_where_the_providers_own_variable_says(
    simulator, tmp_path, provider, variable
):
    key = {"google": "GEMINI"}.get(provider, provider.upper()) + "_API_KEY"

    done, rows = command(
        tmp_path, "-m", f"{provider}:m", **{variable: simulator.sdk_url(provider), key: "any-key"}
    )

    assert done.returncode == 0, done.stderr
    assert len(rows) == 30
    assert set(simulator.stats().providers) == {provider}


@pytest.mark.parametrize("command_", ["run", "check"])
def test_a_setting_that_has_no_place_is_refused_before_anything_is_sent(tmp_path, command_):
    (tmp_path / "rows.txt").write_text("a\n")
    arguments = ["rows.txt", "-m", "anthropic:claude-haiku-4-5", "-s", "seed=7"]
    done = subprocess.run(
        [sys.executable, "-m", "batch_llm", command_, *arguments],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ANTHROPIC_API_KEY": "any"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "has no place for a seed; nothing was sent" in done.stderr
