"""Small stand-ins that the tests share."""

from __future__ import annotations

import asyncio

from batch_llm import (
    BaseMiddleware,
    BaseObserver,
    DefaultErrorClassifier,
    ErrorInfo,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitStrategy,
    RetryConfig,
)
from batch_llm.core.request import Request
from batch_llm.providers.base import LaneFacts, Outcome

USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


class RateLimited(Exception):
    """A refusal, with the wait that the provider asked for."""

    def __init__(self, wait=None):
        super().__init__("slow down")
        self.wait = wait


class PermanentError(Exception):
    """An error that no attempt heals."""


class Classifier:
    """Knows the errors above, and calls the rest retryable."""

    def classify(self, exception, /):
        if isinstance(exception, RateLimited):
            return ErrorInfo(True, True, False, "rate_limit", exception.wait)
        if isinstance(exception, PermanentError):
            return ErrorInfo(False, False, False, "bad_request")
        if isinstance(exception, TimeoutError):
            return ErrorInfo(True, False, True, "timeout")
        if isinstance(exception, ValueError):
            return ErrorInfo(True, False, False, "validation_error")
        return ErrorInfo(True, False, False, "unknown")


class Ramp(RateLimitStrategy):
    """Fixed cooldowns and a fixed ramp, with a record of what was asked."""

    def __init__(self, cooldown=10.0, ramp_items=0, ramp_delay=1.0):
        self.cooldown, self.ramp_items, self.ramp_delay = cooldown, ramp_items, ramp_delay
        self.consecutive = []
        self.ramp_counts = []

    async def on_rate_limit(self, worker_id, consecutive_count):
        self.consecutive.append(consecutive_count)
        return self.cooldown

    def should_apply_slow_start(self, items_since_resume):
        self.ramp_counts.append(items_since_resume)
        return items_since_resume < self.ramp_items, self.ramp_delay


class Script:
    """A direct call that does, for its n-th call, what the n-th step says; then it succeeds.

    A step is an exception to raise, a number of seconds to sleep, or anything else: the output.
    Each call takes ``delay`` seconds before that.
    """

    def __init__(self, *steps, usage=USAGE, delay=0.0):
        self.steps = list(steps)
        self.usage = usage
        self.delay = delay
        self.times = []
        self.attempts = []

    async def __call__(self, attempt, timeout):
        self.times.append(asyncio.get_running_loop().time())
        self.attempts.append(attempt)
        if self.delay:
            await asyncio.sleep(self.delay)
        step = self.steps.pop(0) if self.steps else "ok"
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
            step = "ok"
        return step, self.usage


class Recorder(BaseObserver):
    """Keeps every event."""

    def __init__(self):
        self.events = []

    async def on_event(self, event, data, /):
        self.events.append((event.value, data))

    def names(self):
        return [name for name, _ in self.events]

    def data(self, name):
        return [data for event, data in self.events if event == name]


class Tracer(BaseMiddleware):
    """Writes each hook's call into a shared list."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    async def before_process(self, work_item, /):
        self.calls.append(f"{self.name}.before")
        return work_item

    async def after_process(self, result, /):
        self.calls.append(f"{self.name}.after")
        return result

    async def on_error(self, work_item, error, /):
        self.calls.append(f"{self.name}.error")


def processor(**arguments):
    """A processor whose waits are exact and short."""
    arguments.setdefault("error_classifier", Classifier())
    config = arguments.get("config")
    learns = config is not None and (config.limits is not None or config.concurrency == "auto")
    if not learns and not (config is not None and config.rate_limit.is_asked_for):
        arguments.setdefault("rate_limit_strategy", Ramp())
    built = ParallelBatchProcessor(**arguments)
    if config is None:
        built.config.retry = RetryConfig(jitter=False)
    return built


def item(item_id, call, **fields):
    return LLMWorkItem(item_id=item_id, direct_call=call, **fields)


async def run_one(call, **arguments):
    """Process one item and return its result."""
    result = await processor(**arguments).process([item("a", call)])
    assert result.total_items == 1
    return result.results[0]


class Refusing(DefaultErrorClassifier):
    """Knows the errors of providers, and the refusals of the fakes."""

    def classify(self, exception, /):
        if isinstance(exception, RateLimited):
            return Classifier().classify(exception)
        return super().classify(exception)


class Models:
    """Answers requests, each model a lane of its own.

    ``behaviour(model, place)`` returns the error of a call, or None; ``calls`` has, of each, when,
    which model and which place.
    """

    def __init__(self, behaviour=lambda _model, _place: None, *, places=1, seconds=0.5, facts=None):
        self.calls = []
        self.peak = self.in_flight = 0
        self._behaviour = behaviour
        self._seconds = seconds
        self._facts = facts or LaneFacts(places=places)

    def lane(self, one, /):
        return one.request.model.partition(":")[2]

    def facts(self, _, /):
        return self._facts

    async def call(self, one, attempt, /):
        model = self.lane(one)
        self.calls.append((asyncio.get_running_loop().time(), model, attempt.place))
        error = self._behaviour(model, attempt.place)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(0.05 if error else self._seconds)
        finally:
            self.in_flight -= 1
        return Outcome(error=error) if error else Outcome("ok", USAGE)

    def processor(self, **config):
        config.setdefault("retry", RetryConfig(jitter=False))
        return ParallelBatchProcessor(
            config=ProcessorConfig(progress_interval=0, **config),
            error_classifier=Refusing(),
            requests=self,
        )

    def of(self, model):
        """The times of a model's calls."""
        return [at for at, name, _ in self.calls if name == model]

    def at(self, place):
        """The times of a place's calls."""
        return [at for at, _, number in self.calls if number == place]


def asked(model, name, **fields):
    """Make an item that is a request."""
    return LLMWorkItem(f"{model} {name}", request=Request.of(f"sim:{model}", "hi"), **fields)
