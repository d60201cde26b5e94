"""Who goes first, and where: priorities, shares, pools of places, pauses, memory."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from batch_llm import (
    ConfigError,
    DefaultErrorClassifier,
    Limits,
    LLMWorkItem,
    MockAgent,
    MockResult,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
    StatusError,
    TransportError,
)
from batch_llm.core.request import Request
from batch_llm.providers.base import LaneFacts, Outcome
from batch_llm.stores.limit_memory import VARIABLE, LimitMemory
from batch_llm.strategies import FixedDelayStrategy
from batch_llm.strategies.admission.known_limits import Known
from fakes import USAGE, Classifier, RateLimited, item


class Both(DefaultErrorClassifier):
    """Knows the errors of providers, and the refusals of the fakes."""

    def classify(self, exception, /):
        if isinstance(exception, RateLimited):
            return Classifier().classify(exception)
        return super().classify(exception)


def learning(**config):
    config.setdefault("retry", RetryConfig(jitter=False))
    return ParallelBatchProcessor(
        config=ProcessorConfig(progress_interval=0, **config), error_classifier=Both()
    )


def now():
    return asyncio.get_running_loop().time()


_DICE = random.Random(1)
#: Seconds of answers, so mixed that the number of calls in flight says nothing: of a few that come
#: again and again as many are in flight each time, and a rate is taken for a limit on that.
MIXED = [_DICE.uniform(0.2, 3.0) for _ in range(1000)]


class Pool:
    """Answers requests; a place's answers are told by ``behaviour(place)``."""

    def __init__(self, places, behaviour, remembered_as=(), latencies=(0.5,)):
        self.calls = []
        self._latencies = itertools.cycle(latencies)
        self._facts = LaneFacts(places=places, remembered_as=remembered_as)
        self._behaviour = behaviour

    def lane(self, _):
        return "model"

    def facts(self, _):
        return self._facts

    async def call(self, _, attempt):
        self.calls.append((now(), attempt.place))
        error = self._behaviour(attempt.place)
        await asyncio.sleep(0.1 if isinstance(error, RateLimited) else next(self._latencies))
        return Outcome(error=error) if error else Outcome("ok", USAGE)

    def processor(self, **config):
        return ParallelBatchProcessor(
            config=ProcessorConfig(progress_interval=0, **config),
            error_classifier=Both(),
            requests=self,
        )

    def places(self):
        return [place for _, place in self.calls]


def requests(count):
    return [LLMWorkItem(str(n), request=Request.of("sim:x", "hi")) for n in range(count)]


async def test_of_those_that_wait_the_highest_priority_goes_first():
    started = []

    def call(name):
        async def call(attempt, timeout):
            started.append(name)
            await asyncio.sleep(1.0)
            return "ok", USAGE

        return call

    names = ["first", "low", "middle", "high", "middle too"]
    ranks = {"low": -1, "high": 5}
    items = [item(name, call(name), priority=ranks.get(name, 0)) for name in names]
    await learning(concurrency=1, max_workers=9, limits=Limits(requests_per_minute=6)).process(
        items[:1]
    )
    started.clear()
    built = learning(limits=Limits(requests_per_minute=60, burst_seconds=1.0))
    await built.process(items)

    assert started == ["first", "high", "middle", "middle too", "low"]


@pytest.mark.parametrize("priority", ["high", None, 1.5, True])
def test_a_priority_is_a_whole_number(priority):
    with pytest.raises(ValueError, match="priority must be a whole number; 'a' has another"):
        item("a", None or USAGE.get, priority=priority)


@pytest.mark.parametrize("tokens", [-1, "many", 1.5])
def test_estimated_tokens_are_whole_and_not_negative(tokens):
    with pytest.raises(ValueError, match="estimated tokens must be >= 0"):
        item("a", USAGE.get, estimated_output_tokens=tokens)


async def test_told_sizes_are_what_a_token_limit_is_kept_with():
    times = []

    async def call(attempt, timeout):
        times.append(now())
        return "ok", {"input_tokens": 900, "output_tokens": 100}

    built = learning(limits=Limits(tokens_per_minute=60_000, burst_seconds=1.0))
    sizes = {"estimated_input_tokens": 900, "estimated_output_tokens": 100}
    await built.process([item(str(n), call, **sizes) for n in range(5)])

    assert times == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0], abs=0.01)


async def test_runs_that_share_a_processor_share_its_limits_by_weight():
    counts = {"light": 0, "heavy": 0}

    def call(name):
        async def call(attempt, timeout):
            counts[name] += 1
            await asyncio.sleep(0.1)
            return "ok", USAGE

        return call

    built = learning(limits=Limits(requests_per_minute=600, burst_seconds=1.0))
    runs = [
        asyncio.create_task(
            built.process([item(f"{name} {n}", call(name)) for n in range(400)], weight=weight)
        )
        for name, weight in (("light", 1.0), ("heavy", 3.0))
    ]
    await asyncio.sleep(40)
    seen = dict(counts)
    results = await asyncio.gather(*runs)

    assert 390 <= sum(seen.values()) <= 420
    assert seen["heavy"] / seen["light"] == pytest.approx(3.0, rel=0.15)
    assert [one.succeeded for one in results] == [400, 400]


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
async def test_an_impossible_weight_is_refused(weight):
    with pytest.raises(ConfigError, match="weight must be > 0"):
        await learning().process([], weight=weight)


async def test_with_a_cooldown_a_second_run_is_refused():
    async def call(attempt, timeout):
        await asyncio.sleep(1.0)
        return "ok", USAGE

    built = ParallelBatchProcessor(rate_limit_strategy=FixedDelayStrategy())
    running = asyncio.create_task(built.process([item("a", call)]))
    await asyncio.sleep(0.1)

    with pytest.raises(RuntimeError, match="in a run already"):
        await built.process([item("b", call)])
    assert (await running).succeeded == 1


async def test_a_pool_is_filled_by_what_each_place_has_left():
    pool = Pool(2, lambda _: None)

    limits = Limits(requests_per_minute=60, burst_seconds=5.0)
    await pool.processor(limits=limits).process(requests(40))

    assert pool.places().count(0) == pool.places().count(1) == 20
    assert now() == pytest.approx((40 - 2 * 5) / 2 + 0.5, abs=1.1)  # twice as fast as one


async def test_a_place_that_fails_for_good_is_set_aside_and_costs_no_attempt():
    pool = Pool(2, lambda place: StatusError(401, "bad key") if place == 0 else None)

    result = await pool.processor(
        max_workers=1, retry=RetryConfig(max_attempts=1), limits=Limits()
    ).process(requests(60))

    assert result.succeeded == 60
    assert pool.places().count(0) <= 3  # once, and then probed


async def test_a_place_that_was_set_aside_is_used_again_when_it_is_well():
    pool = Pool(2, lambda place: StatusError(401, "bad key") if place == 0 and now() < 20 else None)

    await pool.processor(max_workers=1, limits=Limits()).process(requests(200))

    late = [place for at, place in pool.calls if at > 40]
    assert late.count(0) > len(late) / 4


async def test_when_all_places_fail_the_items_fail_at_once():
    pool = Pool(3, lambda _: StatusError(401, "bad key"))

    result = await pool.processor(max_workers=1, limits=Limits()).process(requests(20))

    assert {one.error_code for one in result.results} == {"auth", "cancelled"}
    assert now() < 20


async def test_an_item_whose_limit_opens_too_late_fails_and_so_do_those_that_wait():
    async def call(attempt, timeout):
        await asyncio.sleep(0.1)
        if now() > 1.0:
            raise RateLimited(3600.0)
        return "ok", USAGE

    built = learning(
        limits=Limits(requests_per_minute=120, burst_seconds=1.0), longest_pause_seconds=60.0
    )
    result = await built.process([item(str(n), call) for n in range(10)])

    assert now() < 10
    assert {one.error_code for one in result.results} == {None, "quota"}
    failed = [one for one in result.results if not one.success]
    assert failed[0].error.startswith("LimitPauseError: The limits of the provider allow the next")


async def test_without_a_longest_pause_tomorrow_is_waited_for():
    calls = []

    async def call(attempt, timeout):
        calls.append(now())
        if len(calls) == 1:
            raise RateLimited(50_000.0)
        return "ok", USAGE

    result = await learning().process([item("a", call)])

    assert result.succeeded == 1
    assert calls[1] == pytest.approx(50_000.0, abs=1.0)


async def test_a_day_has_its_own_limit():
    times = []

    async def call(attempt, timeout):
        times.append(now())
        return "ok", USAGE

    await learning(limits=Limits(requests_per_day=100)).process(
        [item(str(n), call) for n in range(103)]
    )

    assert times[99] < 60
    assert times[100:] == pytest.approx([864.0, 1728.0, 2592.0], abs=60)


@pytest.mark.parametrize("kind", ["refused", "busy"])
async def test_an_outage_in_mid_run_costs_no_attempt_and_little_more_than_itself(kind):
    calls = []

    async def call(attempt, timeout):
        calls.append((now(), attempt))
        await asyncio.sleep(0.1)
        if 5 <= now() < 35:
            raise (
                TransportError("could not connect to h", was_never_sent=True)
                if kind == "refused"
                else StatusError(503, "busy")
            )
        return "ok", USAGE

    built = learning(
        retry=RetryConfig(max_attempts=2), limits=Limits(requests_per_minute=1200), max_workers=50
    )
    result = await built.process([item(str(n), call) for n in range(2000)])

    assert result.succeeded == 2000
    assert {attempt for _, attempt in calls} == {1}
    assert len([at for at, _ in calls if 10 < at < 35]) < 60
    assert now() < 1.2 * (40 + 30)


async def test_a_server_that_was_never_there_is_not_waited_for():
    async def call(attempt, timeout):
        raise TransportError("could not connect to h", was_never_sent=True)

    result = await learning(retry=RetryConfig(max_attempts=2, jitter=False)).process(
        [item("a", call)]
    )

    assert (result.results[0].attempts, result.results[0].error_code) == (2, "connection")


async def test_a_connection_that_broke_uses_up_an_attempt():
    calls = []

    async def call(attempt, timeout):
        calls.append(attempt)
        if len(calls) == 2:
            raise TransportError("the connection broke")
        return "ok", USAGE

    await learning(max_workers=1).process([item("a", call), item("b", call)])

    assert calls == [1, 1, 2]


async def test_what_was_learned_is_where_the_next_run_starts(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "limits.json"))

    async def run():
        level, at, refused = 20.0, now(), []

        def behaviour(_):
            nonlocal level, at
            level, at = min(20.0, level + (now() - at) * 20.0), now()
            if level < 1:
                refused.append(now())
                return RateLimited()
            level -= 1
            return None

        pool = Pool(1, behaviour, remembered_as=("p:model host",), latencies=MIXED)
        await pool.processor(concurrency="auto").process(requests(1000))
        return len(refused)

    first, second = await run(), await run()

    known, share = LimitMemory(tmp_path / "limits.json").recall("p:model host")
    assert known["requests"].rate == pytest.approx(20.0, rel=0.35)
    assert share == 0.9
    assert second < first


@pytest.mark.parametrize("given", [{"concurrency": 50}, {"max_workers": 50}])
async def test_a_server_without_limits_is_full_soon_where_the_calls_in_flight_are_given(given):
    began = now()

    await Pool(1, lambda _: None, latencies=(0.3,)).processor(**given).process(requests(2000))

    assert now() - began <= 13.0  # at best 12


async def test_nothing_is_remembered_where_that_is_not_wanted(tmp_path, monkeypatch):
    path = tmp_path / "limits.json"
    monkeypatch.setenv(VARIABLE, str(path))
    refusals = iter([RateLimited(), RateLimited()])
    pool = Pool(1, lambda _: next(refusals, None), remembered_as=("p:model host",))

    await pool.processor(concurrency="auto", remember_limits=False).process(requests(20))

    assert not path.exists()


def test_limits_are_learned_unless_a_cooldown_is_asked_for():
    changed = ProcessorConfig()
    changed.rate_limit.cooldown_seconds = 5.0

    assert ProcessorConfig().learns_limits
    assert ProcessorConfig().rate_limit == RateLimitConfig()
    assert not ProcessorConfig(rate_limit=RateLimitConfig()).learns_limits
    assert not changed.learns_limits
    assert ParallelBatchProcessor().rate_limit_strategy is None
    assert ParallelBatchProcessor(rate_limit_cooldown=5.0).rate_limit_strategy is not None


def test_the_number_of_calls_follows_the_limits_unless_it_is_given():
    assert ProcessorConfig().max_workers == 5
    assert ProcessorConfig().is_auto
    assert ProcessorConfig(max_workers=5).most_in_flight == 5
    assert ProcessorConfig(rate_limit=RateLimitConfig()).most_in_flight == 5
    with_strategy = ParallelBatchProcessor(rate_limit_strategy=FixedDelayStrategy())
    assert with_strategy.config.most_in_flight == 5


def remembering(tmp_path, monkeypatch, known):
    """Let a run find what an earlier one is said to have learned."""
    path = tmp_path / "limits.json"
    monkeypatch.setenv(VARIABLE, str(path))
    memory = LimitMemory(path)
    memory.save({"p:model host": {"requests": known}, "another": {"requests": known}})
    return memory


async def test_a_remembered_limit_that_no_answer_confirms_is_forgotten(tmp_path, monkeypatch):
    memory = remembering(tmp_path, monkeypatch, Known(600.0, 10.0, 600.0))
    pool = Pool(1, lambda _: None, remembered_as=("p:model host",))

    built = pool.processor(concurrency="auto")
    await built.process(requests(50))

    (known,) = built.statistics().limits
    assert (known.limit, known.source) == (600.0, "remembered")
    assert LimitMemory(tmp_path / "limits.json").recall("p:model host") is None
    assert memory.recall("another") is not None


async def test_a_rate_at_which_many_calls_were_refused_is_not_remembered(tmp_path, monkeypatch):
    remembering(tmp_path, monkeypatch, Known(None, 1000.0, 1000.0))
    turns = itertools.count()
    pool = Pool(
        1,
        lambda _: RateLimited(0.01) if next(turns) % 4 == 0 else None,
        remembered_as=("p:model host",),
    )

    await pool.processor(concurrency="auto").process(requests(300))

    assert LimitMemory(tmp_path / "limits.json").recall("p:model host") is None


async def test_where_no_call_was_answered_what_was_known_stays(tmp_path, monkeypatch):
    remembering(tmp_path, monkeypatch, Known(600.0, 10.0, 600.0))
    pool = Pool(
        1,
        lambda _: TransportError("could not connect to h", was_never_sent=True),
        remembered_as=("p:model host",),
    )

    await pool.processor(concurrency="auto").process(requests(3))

    assert LimitMemory(tmp_path / "limits.json").recall("p:model host") is not None


async def test_a_remembered_rate_that_is_far_too_high_is_corrected_within_seconds(
    tmp_path, monkeypatch
):
    """Ten times the truth: a bucket of 100 a second and as many at once, without headers."""
    remembering(tmp_path, monkeypatch, Known(None, 1000.0, 1000.0))
    level, at, refused = 100.0, 0.0, []

    def behaviour(_):
        nonlocal level, at
        level, at = min(100.0, level + (now() - at) * 100.0), now()
        if level < 1:
            refused.append(now())
            return RateLimited((1 - level) / 100.0)
        level -= 1
        return None

    pool = Pool(1, behaviour, remembered_as=("p:model host",), latencies=(1.0,))
    result = await pool.processor(concurrency="auto").process(requests(4000))

    assert result.succeeded == 4000
    assert now() < 1.1 * (3900 / 100 + 1)
    assert len([moment for moment in refused if moment > 20]) < 0.03 * 2000


class Named:
    """An agent that shows its model."""

    def __init__(self, name):
        self.model = f"openai:{name}"

    async def run(self, prompt, **_):
        await asyncio.sleep(1.0)
        return MockResult("ok")


async def test_each_mode_has_its_models_lane_and_what_shows_none_the_processors_own():
    async def call(attempt, timeout):
        await asyncio.sleep(1.0)
        return "ok", USAGE

    limits = Limits(requests_per_minute=60, burst_seconds=1.0)
    built = ParallelBatchProcessor(config=ProcessorConfig(limits=limits, remember_limits=False))
    modes = [
        {"agent": Named("a")},
        {"agent_factory": lambda _: Named("a")},
        {"agent_factory": lambda _: Named("b")},
        {"agent": MockAgent(latency=1.0)},
        {"direct_call": call},
    ]

    await built.process(
        [LLMWorkItem(f"{n} {k}", **mode) for k in range(10) for n, mode in enumerate(modes)]
    )

    assert {one.lane for one in built.statistics().limits} == {"openai:a", "openai:b", ""}
    assert now() == pytest.approx(20, abs=1.1)  # two times ten share a lane, at one a second
