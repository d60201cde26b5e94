from __future__ import annotations

import json

import pytest

from batch_llm import (
    BadOutputError,
    LLMWorkItem,
    Request,
    Settings,
    StatusError,
    TransportError,
    UnknownModelError,
)
from batch_llm.core.schema import OutputSchema
from batch_llm.providers.base import DEPARTURE, Try
from batch_llm.providers.registry import resolve, resolve_pool
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import Response

ANSWER = b'{"model":"m-1","choices":[{"message":{"content":"Lima"},"finish_reason":"stop"}]}'
ENDPOINT = resolve("openai-chat:m", environ={"OPENAI_API_KEY": "sk-0123456789"})


class Wire:
    """A transport that keeps what is sent and gives one answer."""

    def __init__(self, answer=Response(200, {}, ANSWER)):  # noqa: B008 - frozen
        self.answer = answer
        self.sent = []

    async def post(self, url, headers, body, /):
        self.sent.append((url, headers, json.loads(body)))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def aclose(self):
        pass


def item(model="openai-chat:m", **fields):
    return LLMWorkItem("1", request=Request.of(model, "Capital of Peru?", **fields))


def attempt(number=1, previous=None):
    return Try(number, 60.0, previous, {})


async def test_a_request_goes_out_and_its_answer_comes_back():
    wire = Wire()

    outcome = await RequestCaller(ENDPOINT, wire).call(item(), attempt())

    assert (outcome.output, outcome.model, outcome.error) == ("Lima", "m-1", None)
    url, headers, body = wire.sent[0]
    assert url == "https://api.openai.com/v1/chat/completions"
    assert headers["authorization"] == "Bearer sk-0123456789"
    assert body["model"] == "m"


async def test_the_endpoint_decides_the_name_of_the_limit():
    wire = Wire()
    elsewhere = resolve("openai-chat:m", base_url="http://h/v1", environ={})
    limited = item(settings=Settings(max_tokens=5))

    await RequestCaller(ENDPOINT, wire).call(limited, attempt())
    await RequestCaller(elsewhere, wire).call(limited, attempt())

    assert wire.sent[0][2]["max_completion_tokens"] == 5
    assert wire.sent[1][2]["max_tokens"] == 5


async def test_the_attempt_picks_the_temperature():
    wire = Wire()
    warm = item(settings=Settings(temperature=(0.0, 0.9)))

    await RequestCaller(ENDPOINT, wire).call(warm, attempt(2))

    assert wire.sent[0][2]["temperature"] == 0.9


@pytest.mark.parametrize(
    ("previous", "turns"), [(BadOutputError("{", "no"), 3), (TimeoutError(), 1), (None, 1)]
)
async def test_only_an_answer_that_did_not_fit_is_shown_to_the_model(previous, turns):
    wire = Wire()

    await RequestCaller(ENDPOINT, wire).call(item(), attempt(2, previous))

    assert len(wire.sent[0][2]["messages"]) == turns


async def test_an_answer_that_does_not_fit_is_in_the_outcome():
    choosing = item(output=OutputSchema.choices("Quito", "Bogotá"))

    outcome = await RequestCaller(ENDPOINT, Wire()).call(choosing, attempt())

    assert isinstance(outcome.error, BadOutputError)


async def test_the_key_is_struck_out_of_what_the_server_says():
    wire = Wire(Response(401, {}, b'{"error":{"message":"Bad key: of-my-own-making"}}'))
    endpoint = resolve("openai-chat:m", environ={"OPENAI_API_KEY": "of-my-own-making"})

    outcome = await RequestCaller(endpoint, wire).call(item(), attempt())

    assert isinstance(outcome.error, StatusError)
    assert "making" not in repr(outcome.error)


async def test_an_exchange_that_failed_raises():
    with pytest.raises(TransportError, match="cut off"):
        await RequestCaller(ENDPOINT, Wire(TransportError("cut off"))).call(item(), attempt())


async def test_each_model_can_have_an_endpoint_of_its_own_resolved_once():
    wire, asked = Wire(), []

    def endpoint_of(model):
        asked.append(model)
        return resolve(model, base_url=f"http://{model[-1]}/v1", environ={})

    caller = RequestCaller(endpoint_of, wire)
    for model in ("openai-chat:a", "openai-chat:b", "openai-chat:a"):
        await caller.call(item(model), attempt())

    assert [url for url, _, _ in wire.sent] == [
        f"http://{host}/v1/chat/completions" for host in "aba"
    ]
    assert asked == ["openai-chat:a", "openai-chat:b"]


async def test_a_refusals_limit_headers_are_read_however_soon_it_comes():
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1s",
    }
    wire = Wire(Response(200, headers, ANSWER))
    caller = RequestCaller(ENDPOINT, wire)
    assert (await caller.call(item(), attempt())).limits is not None
    assert (await caller.call(item(), attempt())).limits is None  # just looked at

    wire.answer = Response(429, headers, b"{}")

    assert (await caller.call(item(), attempt())).limits["requests"].remaining == 0


async def test_the_limits_of_each_place_are_looked_at_however_busy_the_others_are():
    headers = {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "99",
        "x-ratelimit-reset-requests": "1s",
    }
    pool = resolve_pool("openai-chat:m", keys=("A", "B"), environ={"A": "one", "B": "two"})
    caller = RequestCaller(pool, Wire(Response(200, headers, ANSWER)))

    seen = [await caller.call(item(), Try(1, 60.0, None, {}, place)) for place in (0, 0, 1, 1)]

    assert [one.limits is not None for one in seen] == [True, False, True, False]


def exchange(item_, endpoint=ENDPOINT):
    return RequestCaller(endpoint, Wire()).exchange(item_)


def test_an_exchange_is_known_by_what_is_sent_and_where_to():
    elsewhere = resolve("openai-chat:m", base_url="http://h/v1", environ={})
    schema = OutputSchema.choices("a", "b")
    others = [
        exchange(item(settings=Settings(max_tokens=5))),
        exchange(item(settings=Settings(temperature=(0.0, 0.5)))),
        exchange(item(settings=Settings(temperature=(0.0, 0.7)))),
        exchange(item(output=schema)),
        exchange(item(), resolve("openai-chat:n", environ={"OPENAI_API_KEY": "x"})),
        exchange(item(), elsewhere),
        exchange(item(), resolve("vllm:m", base_url="http://h/v1", environ={})),
    ]

    assert len({exchange(item()), *others}) == 1 + len(others)


def test_neither_the_id_nor_the_key_nor_the_place_in_a_pool_is_in_an_exchange():
    other_id = LLMWorkItem("2", request=item().request)
    other_key = resolve("openai-chat:m", environ={"OPENAI_API_KEY": "sk-9876543210"})

    assert exchange(item()) == exchange(other_id) == exchange(item(), other_key)
    assert exchange(item()) == exchange(item(), [ENDPOINT, other_key])


def test_an_exchange_that_cannot_be_told_is_none():
    def resolve_nothing(model):
        raise UnknownModelError(model, "No such provider.")

    odd = item(settings=Settings(extra={"x": object()}))

    assert RequestCaller(resolve_nothing, Wire()).exchange(item()) is None
    assert exchange(odd) is None


async def test_an_answer_can_be_read_again_as_what_is_asked_for_now():
    caller = RequestCaller(ENDPOINT, Wire())
    outcome = await caller.call(item(), attempt())

    assert outcome.answer == ANSWER
    assert caller.read_again(item(), outcome.answer).output == "Lima"
    shaped = item(output=OutputSchema.choices("Lima", "Cusco"))
    assert caller.read_again(shaped, outcome.answer).output == "Lima"
    misfit = item(output=OutputSchema.choices("Cusco", "Puno"))
    assert isinstance(caller.read_again(misfit, outcome.answer).error, BadOutputError)


async def test_an_answer_is_kept_as_a_body_only_where_that_is_wanted():
    plain, keeping = (RequestCaller(ENDPOINT, Wire(), keep_bodies=keeps) for keeps in (False, True))

    assert (await plain.call(item(), attempt())).body is None
    assert plain.read_again(item(), ANSWER).body is None
    assert (await keeping.call(item(), attempt())).body == ANSWER
    assert keeping.read_again(item(), ANSWER).body == ANSWER


async def test_an_answer_that_repeats_the_key_is_not_to_be_kept():
    leaky = ANSWER.replace(b"Lima", b"your key is sk-0123456789")

    outcome = await RequestCaller(ENDPOINT, Wire(Response(200, {}, leaky))).call(item(), attempt())

    assert outcome.error is None
    assert outcome.answer is None


class Departures:
    """What is taken down of a call, in order."""

    def __init__(self):
        self.told = []

    def goes(self):
        self.told.append("goes")

    def took(self, usage):
        self.told.append(usage["output_tokens"])


USED = ANSWER[:-1] + b',"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'


class TellingWire(Wire):
    can_be_watched = True

    async def post(self, url, headers, body, watch=None, /):
        response = await super().post(url, headers, body)
        if watch is not None:
            watch.leaves()
            watch.answered(response.status, response.headers, response.body)
        return response


@pytest.mark.parametrize(
    ("wire", "told"),
    [
        (TellingWire(Response(200, {}, USED)), ["goes", 4]),
        (TellingWire(), ["goes"]),
        (Wire(), []),
    ],
)
async def test_a_call_is_taken_for_sent_unless_its_transport_tells_when_it_is(wire, told):
    taken, one = Departures(), attempt()
    one.memory[DEPARTURE] = taken

    outcome = await RequestCaller(ENDPOINT, wire).call(item(), one)

    assert outcome.output == "Lima"
    assert taken.told == told
    assert one.memory == {}, "it is of this call alone"


async def test_a_call_that_nobody_takes_down_goes_out_as_well():
    wire = TellingWire()
    outcome = await RequestCaller(ENDPOINT, wire).call(item(), attempt())
    assert (outcome.output, len(wire.sent)) == ("Lima", 1)
