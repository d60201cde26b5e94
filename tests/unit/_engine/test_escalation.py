"""What an item's attempts ask after failures: more, or somebody else."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import (
    BadOutputError,
    ConfigError,
    ContentFilteredError,
    Limits,
    LLMWorkItem,
    MockAgent,
    ParallelBatchProcessor,
    ProcessorConfig,
    RefusedError,
    Request,
    RetryConfig,
    Settings,
    StatusError,
    TransportError,
    TruncatedError,
)
from batch_llm.core.prices import Price, Prices
from batch_llm.providers.base import LaneFacts, Outcome
from batch_llm.stores import MemoryLedger
from fakes import USAGE

BAD = BadOutputError("{}", "a field is missing")
CUT = TruncatedError("so far", 100)
CONTEXT = StatusError(400, "too long", None, {}, {"code": "context_length_exceeded"})


class Asked:
    """Answers by a script for each model: an error, or the answer; then ``ok``."""

    def __init__(self, facts=None, **scripts):
        self.scripts = {name: list(steps) for name, steps in scripts.items()}
        self.calls = []
        self.temperatures = []
        self.feedback = []
        self._facts = facts or {}

    def lane(self, one, /):
        return one.request.model

    def facts(self, one, /):
        return LaneFacts(model=one.request.model, **self._facts)

    def content(self, one, /):
        return one.item_id.encode()

    async def call(self, one, attempt, /):
        model = one.request.model.partition(":")[2]
        settings = one.request.settings
        self.calls.append((model, settings.max_tokens))
        self.temperatures.append(settings.temperature_for(attempt.number))
        self.feedback.append(attempt.previous_error)
        await asyncio.sleep(0.1)
        script = self.scripts.get(model, [])
        step = script.pop(0) if len(script) > 1 else (script[0] if script else "ok")
        if isinstance(step, Exception):
            return Outcome(error=type(step)(*step.args), usage=USAGE)
        return Outcome(step, USAGE, model=model)

    @property
    def models(self):
        return [model for model, _ in self.calls]


def processor(caller, *, fallbacks=(), store=None, attempts=6, limits=None, **retry):
    config = ProcessorConfig(
        progress_interval=0,
        limits=limits,
        fallbacks=fallbacks,
        retry=RetryConfig(jitter=False, max_attempts=attempts, **retry),
    )
    return ParallelBatchProcessor(config=config, requests=caller, store=store)


def ask(name="a", model="small", settings=None, **fields):
    return LLMWorkItem(
        name, request=Request.of(f"x:{model}", f"hi {name}", settings=settings), **fields
    )


async def one(caller, item=None, **options):
    built = processor(caller, **options)
    return (await built.process([item or ask()])).results[0]


async def test_an_answer_that_does_not_fit_is_fed_back_and_then_somebody_else_is_asked():
    caller = Asked(small=[BAD])

    result = await one(caller, fallbacks=("x:big",))

    assert (result.success, result.model, caller.models) == (True, "big", ["small"] * 2 + ["big"])
    assert [type(error) for error in caller.feedback] == [type(None), BadOutputError, type(None)]
    assert result.changes == (
        "the model is told what is wrong with its answer",
        "bad_output: x:big is asked",
    )


async def test_without_a_fallback_a_bad_answer_has_all_attempts():
    caller = Asked(small=[BAD])

    assert (await one(caller, attempts=4)).error_code == "bad_output"
    assert len(caller.calls) == 4


async def test_a_refusal_by_a_limit_does_not_make_the_model_forget_what_was_wrong():
    caller = Asked(small=[BAD, StatusError(429, "slow down", None, {"retry-after": "1"}), "ok"])

    assert (await one(caller)).success
    assert [type(error) for error in caller.feedback] == [
        type(None),
        BadOutputError,
        BadOutputError,
    ]


async def test_each_fallback_has_an_attempt_even_when_none_is_left():
    caller = Asked(small=[StatusError(500, "oops")], big=[StatusError(500, "oops")])

    result = await one(caller, fallbacks=("x:big", "x:biggest"), attempts=1)

    assert (result.success, caller.models) == (True, ["small", "big", "biggest"])


async def test_a_fallback_uses_what_is_left_of_the_attempts():
    caller = Asked(small=[CONTEXT], big=[StatusError(500, "oops")])

    result = await one(caller, fallbacks=("x:big",), attempts=4)

    assert (result.error_code, caller.models) == ("server_error", ["small", "big", "big", "big"])


async def test_an_item_names_its_own_fallbacks_or_none():
    caller = Asked(small=[CONTEXT])

    own = await one(caller, ask(fallbacks=["x:mine"]), fallbacks=("x:big",))
    none = await one(caller, ask(fallbacks=()), fallbacks=("x:big",))

    assert (own.model, none.error_code) == ("mine", "context_length")


@pytest.mark.parametrize("error", [RefusedError("no"), ContentFilteredError()])
async def test_refusals_are_final_unless_somebody_asks_otherwise(error):
    caller = Asked(small=[error])

    final = await one(caller, fallbacks=("x:big",))
    asked = await one(caller, fallbacks=("x:big",), fallback_on=["content_filter"])

    assert (final.error_code, final.attempts) == ("content_filter", 1)
    assert asked.model == "big"


async def test_temperatures_begin_anew_with_a_fallback():
    caller = Asked(small=[BAD], big=[BAD, "ok"])

    await one(caller, ask(settings=Settings(temperature=(0.0, 0.5, 1.0))), fallbacks=("x:big",))

    assert caller.temperatures == [0.0, 0.5, 0.0, 0.5]


async def test_a_cap_that_cut_an_answer_off_is_raised_once_and_said():
    caller = Asked(small=[CUT, "ok"])

    result = await one(caller, ask(settings=Settings(max_tokens=100)))

    assert (result.success, caller.calls) == (True, [("small", 100), ("small", 200)])
    assert result.changes == ("max_tokens 100 → 200",)


async def test_a_cap_is_raised_no_second_time():
    caller = Asked(small=[CUT])

    await one(caller, ask(settings=Settings(max_tokens=100)))

    assert [asked for _, asked in caller.calls] == [100, 200]


async def test_a_fallback_may_correct_its_answer_as_well():
    caller = Asked(small=[BAD], big=[BAD])

    await one(caller, fallbacks=("x:big", "x:biggest"))

    assert caller.models == ["small", "small", "big", "big", "biggest"]


@pytest.mark.parametrize(("cap", "calls"), [(0, [100]), (100, [100]), (4000, [100, 4000])])
async def test_a_cap_is_raised_as_far_as_the_user_allows(cap, calls):
    caller = Asked(small=[CUT])

    result = await one(caller, ask(settings=Settings(max_tokens=100)), max_tokens_cap=cap)

    assert result.error_code == "truncated"
    assert [asked for _, asked in caller.calls] == calls


async def test_an_answer_that_was_cut_off_without_a_cap_is_asked_for_once_more():
    caller = Asked(small=[TruncatedError("so far")])

    assert (await one(caller)).attempts == 2


async def test_a_cap_among_the_other_settings_is_raised_too():
    caller = Asked(small=[CUT, "ok"])

    result = await one(caller, ask(settings=Settings(extra={"max_tokens": 7})))

    assert result.changes == ("max_tokens 7 → 14",)


async def test_a_cap_that_a_model_will_not_have_is_not_why_the_item_failed():
    caller = Asked(small=[CUT, StatusError(400, "max_tokens is too large"), CUT])

    result = await one(caller, ask(settings=Settings(max_tokens=100)))

    assert (result.error_code, result.attempts) == ("truncated", 2)
    assert result.error.startswith("TruncatedError: ")


async def test_what_a_model_will_not_have_is_known_to_the_items_after():
    caller = Asked(small=[CUT, StatusError(400, "max_tokens is too large"), CUT])
    settings = Settings(max_tokens=100)

    async def in_turn():
        yield ask("a", settings=settings)
        await asyncio.sleep(10)
        yield ask("b", settings=settings)

    result = await processor(caller).process(in_turn())

    assert [one.error_code for one in result.results] == ["truncated"] * 2
    assert [asked for _, asked in caller.calls] == [100, 200, 100]


async def test_tokens_are_counted_under_the_model_that_was_asked():
    caller = Asked(small=[CONTEXT])
    built = processor(caller, fallbacks=("x:big",))

    result = await built.process([ask()])

    used = {usage.model: usage.input_tokens for usage in built.statistics().usage}
    assert used == {"x:small": 10, "x:big": 10}
    assert result.results[0].token_usage["input_tokens"] == 20


async def test_a_cap_on_cost_counts_a_fallback_at_its_own_price():
    caller = Asked(small=[CONTEXT])
    prices = Prices({"small": Price(input=1, output=1), "big": Price(input=1000, output=1000)})
    config = ProcessorConfig(
        progress_interval=0, fallbacks=("x:big",), prices=prices, max_cost_usd=0.5
    )

    result = await ParallelBatchProcessor(config=config, requests=caller).process([ask()])

    assert caller.models == ["small"]  # the worst case of the other passes the cap
    assert result.results[0].error_code == "cancelled"


async def test_the_ledger_tells_what_was_changed():
    caller = Asked(small=[CONTEXT])
    ledger = MemoryLedger()

    await one(caller, fallbacks=("x:big",), store=ledger)

    changes = [attempt.change for attempt in ledger.attempts("a")]
    assert changes == [None, "context_length: x:big is asked"]


class Cheap:
    """An agent that fails in its own way."""

    model = "cheap"

    async def run(self, prompt, **_):
        raise ValueError("not what was asked for")


async def test_an_agent_falls_back_on_another_agent():
    item = LLMWorkItem("a", agent=Cheap(), prompt="hi", fallbacks=[MockAgent(latency=0.0)])

    result = await one(None, item)

    assert result.success
    assert result.changes == ("internal: another agent is asked",)


async def test_a_name_is_no_fallback_for_a_strangers_agent():
    item = LLMWorkItem("a", agent=Cheap(), prompt="hi", fallbacks=["x:big"])

    result = await one(None, item)

    assert result.error.startswith("ConfigError: fallbacks must be another agent")


@pytest.mark.parametrize(
    "fields",
    [
        {"agent_factory": lambda _: MockAgent(), "fallbacks": ["x:big"]},
        {"request": Request.of("x:y", "hi"), "fallbacks": [MockAgent()]},
        {"request": Request.of("x:y", "hi"), "fallbacks": "x:big"},
    ],
)
def test_fallbacks_that_the_mode_cannot_have_are_refused(fields):
    with pytest.raises(ValueError, match="fallbacks"):
        LLMWorkItem("a", **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fallback_on": ["rate_limited"]}, "fallback_on must be some of"),
        ({"fallback_on": "quota"}, "fallback_on must be a collection"),
        ({"max_tokens_cap": -1}, "max_tokens_cap must be >= 0, or None"),
    ],
)
def test_settings_of_policies_are_checked(fields, words):
    with pytest.raises(ConfigError, match=words):
        processor(None, **fields)


def test_fallbacks_of_a_run_are_names():
    with pytest.raises(ConfigError, match="fallbacks must be names"):
        processor(None, fallbacks="x:big")


async def test_a_success_between_refusals_keeps_the_lane_going():
    no = StatusError(401, "who are you")
    caller = Asked(small=["ok", *[no] * 15, "ok", *[no] * 15])

    async def in_turn():
        for n in range(32):
            yield ask(str(n))
            await asyncio.sleep(1)

    built = processor(caller)
    await built.process(in_turn())

    assert len(caller.calls) == 32
    assert built.statistics().stopped_lanes == []


async def test_a_lane_that_refuses_everything_is_stopped_and_the_others_go_on(caplog):
    caller = Asked(
        {"keys": ("SECRET_KEY",), "url": "http://here/v1"}, small=[StatusError(401, "who are you")]
    )
    built = processor(caller)
    items = [ask(f"{model}{n}", model) for n in range(100) for model in ("small", "other")]

    async def in_turn():
        for item in items:
            yield item
            await asyncio.sleep(0.2)

    result = await built.process(in_turn())

    assert len(result.results) == 200
    assert caller.models.count("other") == 100
    assert 5 <= caller.models.count("small") <= 25
    (stopped,) = built.statistics().stopped_lanes
    assert (stopped.lane, stopped.model, stopped.code) == ("x:small", "x:small", "auth")
    assert "Check SECRET_KEY: it is not accepted at http://here/v1" in stopped.reason
    assert len([one for one in caplog.records if one.name == "batch_llm.stops"]) == 1


async def test_what_was_not_sent_to_a_stopped_lane_is_tried_again_when_the_run_goes_on():
    ledger = MemoryLedger()
    refusing = Asked(
        small=[StatusError(429, "pay", "insufficient_quota", {}, {"code": "insufficient_quota"})]
    )
    items = [ask(str(n)) for n in range(60)]

    # Under a told limit several calls start at once.
    told = Limits(requests_per_minute=6000)
    built = processor(refusing, store=ledger, limits=told)
    first = await built.process(items)
    healed = Asked()
    second = await processor(healed, store=ledger).process([ask(str(n)) for n in range(60)])

    assert first.succeeded == 0
    assert len(refusing.calls) > 5  # those in flight when it was stopped were refused, too
    assert len(built.statistics().stopped_lanes) == 1
    not_sent = [one for one in first.results if not one.attempts]
    assert {one.error_code for one in not_sent} == {"cancelled"}
    assert not_sent[-1].error.startswith("LaneStoppedError: x:small refuses everything (quota, ")
    assert (second.succeeded, len(healed.calls)) == (60, 60)


async def test_items_of_a_stopped_lane_go_to_the_fallback_where_that_is_asked_for():
    caller = Asked(small=[StatusError(401, "who are you")])
    built = processor(caller, fallbacks=("x:big",), fallback_on=["auth"])

    async def in_turn():
        for n in range(60):
            yield ask(str(n))
            await asyncio.sleep(0.2)

    result = await built.process(in_turn())

    assert (result.succeeded, caller.models.count("small")) == (60, 20)
    assert built.statistics().stopped_lanes[0].lane == "x:small"


async def test_a_run_that_is_refused_as_a_whole_says_so_however_short_it_is():
    built = processor(Asked(small=[StatusError(401, "who are you")]))

    await built.process([ask("a"), ask("b")])

    assert "refuses everything (auth, 2 in a row)" in built.statistics().stopped_lanes[0].reason


async def test_where_nobody_ever_answered_a_few_items_stop_the_lane():
    gone = TransportError("Cannot connect", True)
    caller = Asked({"url": "http://nowhere/v1"}, small=[gone])
    built = processor(caller, attempts=1)

    result = await built.process([ask(str(n)) for n in range(2000)])

    assert len(result.results) == 2000
    assert len(caller.calls) < 2000
    assert (
        "Nothing answers as it should at http://nowhere/v1"
        in built.statistics().stopped_lanes[0].reason
    )


async def test_overload_holds_the_lane_unless_a_fallback_is_asked_for():
    busy = StatusError(503, "busy")
    held, left = Asked(small=[*[busy] * 9, "ok"]), Asked(small=[busy])

    waited = await one(held, fallbacks=("x:big",), attempts=1)
    built = processor(left, fallbacks=("x:big",), fallback_on=["overloaded"], attempts=1)
    started_at = asyncio.get_running_loop().time()
    result = await built.process([ask(str(n)) for n in range(50)])

    assert (waited.success, set(held.models)) == (True, {"small"})
    assert asyncio.get_running_loop().time() < started_at + 300  # those in the queue are probes
    assert result.succeeded == 50
    assert {one.model for one in result.results} == {"big"}


async def test_an_outage_says_since_when():
    caller = Asked(small=["ok"] * 3 + [StatusError(503, "busy")])
    built = processor(caller)
    running = asyncio.create_task(built.process([ask(str(n)) for n in range(60)]))
    await asyncio.sleep(120)

    (pause,) = built.statistics().pauses
    running.cancel()
    await asyncio.wait([running])

    assert pause.reason == "overloaded"
    assert pause.overloaded_since is not None
    assert pause.overloaded_seconds > 60
