from __future__ import annotations

import asyncio
import json
import statistics

import pytest

from batch_llm.simulator import Profile
from batch_llm.simulator.app import SimulatorApp


def latencies(profile, count=2000):
    app = SimulatorApp(profile)
    return [app._draw_latency() for _ in range(count)]


def test_without_a_tail_every_answer_takes_the_same_time():
    assert set(latencies(Profile(latency=0.2))) == {0.2}


def test_a_tail_spreads_the_latency_around_its_median():
    drawn = latencies(Profile(latency=0.2, tail=1.0))

    assert 0.18 < statistics.median(drawn) < 0.22
    assert max(drawn) > 2.0


def test_the_same_seed_draws_the_same_latencies():
    assert latencies(Profile(tail=1, seed=1)) == latencies(Profile(tail=1, seed=1))
    assert latencies(Profile(tail=1, seed=1)) != latencies(Profile(tail=1, seed=2))


BODIES = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"model": "m", "input": "hi"},
    "/v1/messages": {
        "model": "m",
        "max_tokens": 99,
        "messages": [{"role": "user", "content": "hi"}],
    },
    "/v1beta/models/m:generateContent": {"contents": [{"parts": [{"text": "hi"}]}]},
    "/mistral/v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
    },
    "/openai/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


async def ask(app, path, prompt="hi", method="POST", **fields):
    """Call an application directly; returns status, headers and body."""
    body = json.dumps(BODIES.get(path, {}) | fields).replace('"hi"', json.dumps(prompt)).encode()
    sent = []

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        sent.append(message)

    key = [(b"authorization", b"Bearer x")]
    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"", "headers": key,
        "extensions": {},
    }  # fmt: skip
    await app(scope, receive, send)
    text = b"".join(message.get("body", b"") for message in sent[1:])
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, text


def new_app(**options):
    loop = asyncio.get_running_loop()
    return SimulatorApp(Profile(**({"latency": 0.0} | options)), clock=loop.time)


async def test_each_provider_has_an_account_of_its_own_and_all_have_one_bill():
    app = new_app(rpm=1)
    first = {path: (await ask(app, path))[0] for path in BODIES}
    again = {path: (await ask(app, path))[0] for path in BODIES}

    # Chat and responses are the same provider's.
    assert list(first.values()) == [200, 429, 200, 200, 200, 200]
    assert set(again.values()) == {429}
    stats = app.stats()
    assert (stats.calls, stats.successes, stats.refused) == (12, 5, 7)
    assert stats.providers == {
        "openai": 4, "anthropic": 2, "google": 2, "mistral": 2, "groq": 2,
    }  # fmt: skip


async def test_a_stream_is_settled_when_it_has_ended():
    app = new_app(tpm=1000, charge="settled")
    cap = {"max_tokens": 400}
    _, headers, _ = await ask(app, "/v1/chat/completions", stream=True, **cap)
    _, later, _ = await ask(app, "/v1/chat/completions", **cap)
    used = app.stats().input_tokens + app.stats().output_tokens

    # It was told before the first piece, when all of it was reserved.
    assert headers["x-ratelimit-remaining-tokens"] == "600"
    assert later["x-ratelimit-remaining-tokens"] == str(1000 - used)


async def test_an_answer_that_is_an_error_is_not_billed_unless_it_was_streamed():
    app = new_app()
    for path in ("/v1/chat/completions", "/v1/responses"):
        status, _, body = await ask(app, path, "<<pmidway>> hi")
        assert (status, json.loads(body)["error"] is not None) == (200, True)
    stats = app.stats()
    assert (stats.answers, stats.output_tokens, stats.faults) == (0, 0, {"pmidway": 2})

    await ask(app, "/v1/messages", "<<pmidway>> hi", stream=True)
    stats = app.stats()
    assert (stats.answers, stats.successes) == (1, 0)


async def test_a_fault_that_a_prompt_asks_for_takes_the_place_of_others():
    app = new_app(p500=1)

    assert (await ask(app, "/v1/messages", "<<p529>> hi"))[0] == 529
    assert (await ask(app, "/v1/messages", "<<pasta>> hi"))[0] == 500


@pytest.mark.parametrize("told", ["true", "false"])
async def test_error_answers_can_tell_the_sdks_what_to_do(told):
    app = new_app(should_retry=told)
    for path in BODIES:
        _, headers, _ = await ask(app, path, "<<p503>> hi")
        assert headers["x-should-retry"] == told
        _, headers, _ = await ask(app, path)
        assert "x-should-retry" not in headers


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v1/nothing", {"error": {"message": "Invalid URL (POST /v1/nothing)"}}),
        ("/anthropic/v1/nothing", {"error": {"type": "not_found_error", "message": "Not Found"}}),
        ("/v1beta/nothing", {"error": {"status": "NOT_FOUND"}}),
        ("/mistral/v1/nothing", {"message": "no Route matched with those values"}),
        ("/openai/v1/nothing", {"error": {"code": "unknown_url"}}),
    ],
)
async def test_lost_callers_are_told_in_the_words_of_the_provider(path, told):
    status, _, body = await ask(new_app(), path)

    answer = json.loads(body)
    assert status == 404
    for name, value in told.items():
        if isinstance(value, dict):
            assert value.items() <= answer[name].items()
        else:
            assert answer[name] == value


async def test_looks_at_what_is_there_are_no_calls():
    app = new_app()
    for path in ("/v1/models", "/v1beta/models", "/mistral/v1/models", "/openai/v1/models/fast"):
        assert (await ask(app, path, method="GET"))[0] == 200
    assert (await ask(app, "/v1/messages/count_tokens", **BODIES["/v1/messages"]))[0] == 200

    assert app.stats().calls == 0
