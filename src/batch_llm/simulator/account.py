"""What a provider knows about its customer: limits, quota, faults to come, and the bill.

Pure: the time is an argument, nothing is sent. Whose words are used is said by the wire format.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from batch_llm.simulator.answers import fault_of
from batch_llm.simulator.billed import Billed, BilledCall, Uncollected
from batch_llm.simulator.completions import NO_SHARES, Shares
from batch_llm.simulator.faults import Faults
from batch_llm.simulator.limits import MINUTE, Bucket, FixedWindow, Limit, make_limit
from batch_llm.simulator.local_server import USUAL_SLOTS, Line, Page, page
from batch_llm.simulator.profile import FAULTS
from batch_llm.simulator.refusals import Excess, Flaw, Refusal
from batch_llm.simulator.rules import RULES, owed, reserved
from batch_llm.simulator.wire import CLAIMED_LIMIT, CLAIMED_WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm.simulator.calls import Call
    from batch_llm.simulator.completions import Completion
    from batch_llm.simulator.fields import Headers
    from batch_llm.simulator.profile import Profile
    from batch_llm.simulator.wire import WireFormat


class Stats(msgspec.Struct, frozen=True):
    """What a simulator has done since it started or was last reset.

    When nothing is in flight, ``calls`` is the sum of ``successes``, ``refused``, ``invalid``,
    ``given_up`` and all ``faults``. A client that hangs up while its answer is being made is
    billed, as a provider would; one that hangs up on a held-back answer (``ptimeout``) is not.

    Attributes:
        calls: Calls received, of all providers.
        successes: Calls with a good answer.
        answers: Calls answered with a completion, spoilt ones included: the ones that are billed.
        refused: Calls refused by a limit of the profile.
        invalid: Calls refused for their key, model or body.
        faults: Faults by the name of their option.
        input_tokens: Billed, of all answers; those read from or written to a cache included.
        output_tokens: The same; thought included.
        cached_tokens: The part of the input that was read from a cache.
        written_tokens: The part of the input that was written to one.
        reasoning_tokens: The part of the output that was thought.
        peak_in_flight: Calls at the same time at the most.
        peak_in_work: The same without those that waited for a slot.
        given_up: Calls whose client hung up while they waited for a slot.
        uncollected: Of what is billed, the answers that nobody has collected, by model: the client
            hung up, or was killed, before it had read them.
        looks: Requests for what the server tells of itself, by path.
        providers: Calls received, by whose format they came in.
        sdk_retries: Calls that an SDK had repeated by itself, where it says so: those of OpenAI,
            Anthropic and Groq do.
    """

    calls: int
    successes: int
    answers: int
    refused: int
    invalid: int
    faults: dict[str, int]
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    written_tokens: int
    reasoning_tokens: int
    peak_in_flight: int
    peak_in_work: int
    given_up: int
    uncollected: dict[str, Uncollected]
    looks: dict[str, int]
    providers: dict[str, int]
    sdk_retries: int


@dataclass(slots=True)
class Counts:
    """What all accounts of a simulator count together; see ``Stats``."""

    calls: int = 0
    successes: int = 0
    answers: int = 0
    refused: int = 0
    invalid: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    reasoning_tokens: int = 0
    peak_in_flight: int = 0
    given_up: int = 0
    billed: Billed = field(default_factory=lambda: Billed(keeps_all=False))
    looks: Counter[str] = field(default_factory=Counter)
    providers: Counter[str] = field(default_factory=Counter)
    sdk_retries: int = 0


@dataclass(slots=True)
class Visit:
    """A call that was let in.

    Attributes:
        call: What it asks.
        reserved: What it has taken from tokens per minute.
        at: When.
        headers: What the limits are after it.
    """

    call: Call
    reserved: int
    at: float
    headers: dict[str, str]


class Account:
    """What one provider knows, and a reset forgets.

    Args:
        profile: How the provider behaves.
        now: The time in seconds from which ``down``, days and fixed windows count.
        provider: Which one it is.
        counts: Where to count; shared by the accounts of a simulator.
        line: The calls that were let in; shared too.
    """

    def __init__(
        self,
        profile: Profile,
        now: float,
        provider: str = "openai",
        counts: Counts | None = None,
        line: Line | None = None,
    ) -> None:
        self._profile = profile
        self._started = now
        self._provider = provider
        self._counts = counts or Counts()
        self._granted = 0
        self._in_work = 0
        #: The calls that were let in: in work, or in the queue of a server that has one.
        self.line = line or make_line(profile)
        self._latest = now
        #: None before the first call: it starts the time that is left.
        self._changes_at: float | None = None
        self._faults = Faults(profile)
        shares = Shares(profile.cached, profile.cache_writes, profile.reasoning)
        self._shares = NO_SHARES if shares == NO_SHARES else shares
        self._rules = rules = RULES[provider]
        self._charge = rules.charge if profile.charge == "own" else profile.charge
        self._counts_rejects = _own(profile.rejects, rules.rejects) == "count"
        self._retry_after = _own(profile.retry_after, rules.retry_after)
        window = _own(profile.window, rules.window)
        self._limits: list[tuple[str, Limit]] = []
        for kind, per_minute in (
            ("requests", profile.rpm),
            ("tokens", profile.tpm),
            ("input_tokens", profile.itpm),
            ("output_tokens", profile.otpm),
        ):
            limit = make_limit(per_minute, window, profile.burst, now)
            if limit is not None:
                self._limits.append((kind, limit))
        self._day = _day(profile, rules.day, now)
        self._told = self._limits
        if self._day is not None:
            self._told = [("requests_a_day", self._day), *self._limits]
        self._is_hosted = profile.is_hosted
        self._largest = profile.largest or math.inf
        self._context = profile.context or math.inf
        self._cached = profile.cached
        self._slots = profile.slots if profile.is_hosted else 0
        #: Whether anything can refuse a call, but for outages and credit.
        self._is_limited = bool(self._told) or bool(self._slots)
        self._refuses_large = rules.refuses_large
        #: Whether input and output are limited each.
        self._splits = bool(profile.itpm or profile.otpm)
        #: Whether anything is left to be counted when the answer is there.
        self.settles = bool(profile.otpm) or (
            bool(profile.tpm) and self._charge in {"settled", "sum", "used"}
        )

    def arrive(self, in_flight: int, headers: Headers) -> None:
        """Count a call; ``in_flight`` of them are here now."""
        counts = self._counts
        for name, value in headers:
            if name == b"x-stainless-retry-count" and value != b"0":
                counts.sdk_retries += 1
        counts.calls += 1
        counts.providers[self._provider] += 1
        counts.peak_in_flight = max(counts.peak_in_flight, in_flight)

    def read(
        self,
        wire: WireFormat,
        headers: Headers,
        body: bytes,
        query: bytes = b"",
        model: str = "",
    ) -> Call:
        """Check a call's key and body.

        Args:
            wire: How it is written.
            headers: Of the request.
            body: Of the request.
            query: Of the request.
            model: The name in its path, where it has one there.

        Raises:
            Refusal: One of them is wrong.
        """
        try:
            if self._is_hosted:
                wire.check_key(headers, query)
            if len(body) > self._largest:
                raise wire.trouble("too_large", most=self._profile.largest)
            call = wire.read(body, model)
            tokens = call.input_tokens
            if tokens > self._context:
                most = self._profile.context
                raise wire.trouble("context", model=call.model, tokens=tokens, most=most)
        except Refusal:
            self._counts.invalid += 1
            raise
        if self._cached:
            call.cached_tokens = int(tokens * self._cached)
        return call

    def admit(self, wire: WireFormat, call: Call, now: float, now_unix: float = 0.0) -> Visit:
        """Let a call pass all limits or none. One that was let in is to be released.

        Args:
            wire: How it is written.
            call: What ``read`` returned.
            now: On the account's clock.
            now_unix: The same moment in seconds since 1970, for dates on the wire.

        Raises:
            Refusal: The provider is down, the account is out of credit, or a limit is reached.
        """
        self._notice(now)
        start, end = self._profile.down
        if start <= now - self._started < end:
            self._counts.faults["down"] += 1
            raise self._advised(wire.trouble("p503"))
        if self._profile.quota_after and self._granted >= self._profile.quota_after:
            self._counts.faults["quota_after"] += 1
            raise self._advised(wire.out_of_quota(self._profile.quota, call.model))
        return self._pass_limits(wire, call, now, now_unix)

    def release(self) -> None:
        """Note that a call which was let in is no longer in work."""
        self._in_work -= 1

    def settle(
        self, wire: WireFormat, visit: Visit, done: Completion | None, now: float, now_unix: float
    ) -> None:
        """Count what is known only when the answer is there, and bring the headers up to date.

        Only where the account ``settles``.

        Args:
            wire: How it is written.
            visit: The call.
            done: Its answer; None where it failed.
            now: On the account's clock.
            now_unix: The same moment in seconds since 1970.
        """
        input_tokens = 0 if done is None else done.input_tokens
        output_tokens = 0 if done is None else done.output_tokens
        for kind, limit in self._limits:
            amount = 0
            if kind == "tokens":
                amount = owed(self._charge, visit.reserved, input_tokens, output_tokens)
            elif kind == "output_tokens":
                amount = output_tokens
            if amount > 0:
                limit.take(amount, now)
            elif amount < 0:
                limit.give(-amount, visit.at, now)
            else:
                limit.refresh(now)
        visit.headers = self._limit_headers(wire, now_unix)
        if done is not None and visit.headers:
            visit.headers |= wire.cost_headers(done)

    def _notice(self, now: float) -> None:
        """Note a call's time, and change the limits when theirs has come."""
        self._latest = now
        at, factor = self._profile.change
        if self._changes_at is None:
            self._changes_at = now + at if factor != 1 else math.inf
        if now >= self._changes_at:
            for _, limit in self._limits:
                limit.change(limit.limit * factor, self._changes_at)
            self._changes_at = math.inf

    def _pass_limits(self, wire: WireFormat, call: Call, now: float, now_unix: float) -> Visit:
        if not self._is_limited:
            self._in_work += 1
            return Visit(call, 0, now, {})
        tokens = reserved(self._charge, call)
        amounts = {"requests": 1, "tokens": tokens}
        if self._splits:
            amounts["input_tokens"] = call.input_tokens - call.cached_tokens
            amounts["output_tokens"] = 1
        refusal = self._refusal(wire, call, amounts, now, now_unix)
        if self._splits:
            amounts["output_tokens"] = 0  # one must be left; they are counted when they are there
        if refusal is None:
            for kind, limit in self._limits:
                limit.take(amounts[kind], now)
            if self._day is not None and not self._rules.counts_answers:
                self._day.take(1, now)
            self._in_work += 1
            return Visit(call, tokens, now, self._limit_headers(wire, now_unix))
        self._counts.refused += 1
        if self._counts_rejects:
            for kind, limit in self._limits:
                limit.charge(amounts[kind], now)
        refusal.headers |= self._limit_headers(wire, now_unix)
        raise refusal

    def _refusal(
        self, wire: WireFormat, call: Call, amounts: dict[str, int], now: float, now_unix: float
    ) -> Refusal | None:
        """Return what the limit says that takes longest, or None when all let the call pass."""
        # All of them, whatever is refused first: it brings each up to this moment.
        waits = [(limit.wait_for(amounts[kind], now), kind, limit) for kind, limit in self._limits]
        if self._day is not None and (day_wait := self._day.wait_for(1, now)) > 0:
            excess = self._excess("requests_a_day", call, 1, day_wait, now_unix)
            return wire.limited(excess)
        if self._slots and self._in_work >= self._slots:
            return wire.trouble("busy", most=self._slots)
        if self._refuses_large:
            for _, kind, limit in waits:
                if kind == "tokens" and amounts[kind] > limit.most:
                    about = self._excess(
                        kind, call, amounts[kind], limit.reset_seconds(), now_unix, limit
                    )
                    return wire.too_large_for(about)
        wait, kind, tightest = max(waits, key=_first, default=_NO_WAIT)
        if tightest is None or wait <= 0:
            return None
        excess = self._excess(kind, call, amounts[kind], wait, now_unix, tightest)
        return wire.limited(excess)

    def _excess(
        self,
        kind: str,
        call: Call,
        asked: int,
        seconds: float,
        now_unix: float,
        limit: Limit | None = None,
    ) -> Excess:
        size = float(self._profile.rpd) if limit is None else limit.limit
        used = size if limit is None else limit.limit - limit.remaining()
        how = self._retry_after
        return Excess(kind, call.model, size, used, asked, seconds, how, now_unix)

    def _limit_headers(self, wire: WireFormat, now_unix: float) -> dict[str, str]:
        if not self._told or self._profile.headers == "off":
            return {}
        return wire.limit_headers(self._told, now_unix)

    def answer(
        self, wire: WireFormat, call: Call, now_unix: float
    ) -> tuple[Completion, str | None]:
        """Return the answer, and the name of the fault that spoils it or its delivery.

        Args:
            wire: How the call was written.
            call: One that was admitted.
            now_unix: Seconds since 1970.

        Raises:
            Refusal: The fault is an error answer, or nothing conforms to the schema.
        """
        name = self._faults.next_for(call.conversation)
        word = self._profile.quota
        if "<<p" in call.prompt:
            asked, of_what = fault_of(call.prompt)
            if asked in FAULTS:
                name, word = asked, of_what or word
        if name is not None:
            name = self._possible(wire, name, call)
            refusal = None if name is None else self._fault(wire, name, word, call, now_unix)
            if refusal is not None:
                self._count(name)
                raise self._advised(refusal)
        try:
            completion = wire.complete(call, name, now_unix, self._shares)
        except Flaw as flaw:
            self._counts.invalid += 1
            raise wire.flawed(flaw) from None
        self._count(name)
        return completion, name

    @staticmethod
    def _possible(wire: WireFormat, name: str, call: Call) -> str | None:
        if name == "pschema" and call.schema is None:
            return None
        if name == "pmidway" and not wire.knows_midway(call):
            return None
        return name

    def _fault(
        self, wire: WireFormat, name: str, word: str, call: Call, now_unix: float
    ) -> Refusal | None:
        """Return the error answer of a fault, or None where the fault is not an error answer."""
        if name == "p429":
            claimed = float(CLAIMED_LIMIT)
            how = self._retry_after
            return wire.limited(
                Excess(
                    "requests", call.model, claimed, claimed, 1, CLAIMED_WAIT_SECONDS, how, now_unix
                )
            )
        if name == "pquota":
            return wire.out_of_quota(word, call.model)
        if name == "p502" or name in wire.troubles:
            return wire.trouble(name, model=call.model)
        return None

    def _advised(self, refusal: Refusal) -> Refusal:
        if self._profile.should_retry != "none":
            refusal.headers["x-should-retry"] = self._profile.should_retry
        return refusal

    def _count(self, fault_name: str | None) -> None:
        if fault_name is None:
            # Counted here, not when answered: calls in flight must not exceed the quota.
            self._granted += 1
            if self._day is not None and self._rules.counts_answers:
                self._day.take(1, self._latest)
        else:
            self._counts.faults[fault_name] += 1

    def bill(
        self,
        completion: Completion,
        fault_name: str | None,
        call: Call,
        headers: Headers | None = None,
    ) -> Callable[[], None] | None:
        """Count an answer that is about to be sent, unless an error is all that it holds.

        Returns:
            To be called when it turns out that nobody has collected it; None where nothing is
            billed, or the fault lets nobody collect it.
        """
        if fault_name == "pmidway" and not call.streams:
            return None
        counts = self._counts
        counts.answers += 1
        counts.successes += fault_name is None
        counts.input_tokens += completion.input_tokens
        counts.output_tokens += completion.output_tokens
        counts.cached_tokens += completion.cached_tokens
        counts.written_tokens += completion.written_tokens
        counts.reasoning_tokens += completion.reasoning_tokens
        kept = counts.billed.add(call, completion, headers or [])
        if fault_name == "preset":
            return None
        return lambda: counts.billed.not_collected(call, completion, kept)

    def billed_calls(self) -> list[BilledCall] | None:
        """Return what was billed, call by call; None where that is not kept."""
        return self._counts.billed.calls()

    def stats(self) -> Stats:
        """Return what was done so far by all accounts that count together; from any thread."""
        counts = self._counts
        return Stats(
            calls=counts.calls,
            successes=counts.successes,
            answers=counts.answers,
            refused=counts.refused,
            invalid=counts.invalid,
            faults=dict(counts.faults),
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
            cached_tokens=counts.cached_tokens,
            written_tokens=counts.written_tokens,
            reasoning_tokens=counts.reasoning_tokens,
            peak_in_flight=counts.peak_in_flight,
            peak_in_work=self.line.peak_in_work,
            given_up=counts.given_up,
            uncollected=counts.billed.uncollected(),
            looks=dict(counts.looks),
            providers=dict(counts.providers),
            sdk_retries=counts.sdk_retries,
        )

    def look(self, path: str) -> Page | None:
        """Return what the server tells of itself at a path; None where it tells nothing."""
        if self._profile.is_hosted:
            return None
        self._counts.looks[path] += 1
        return page(self._profile.server, path, self.line)

    def give_up(self) -> None:
        """Count a call whose client hung up before its turn came."""
        self._counts.given_up += 1


_NO_WAIT: tuple[float, str, None] = (0.0, "", None)


def _first(one: tuple[float, str, Limit | None]) -> float:
    return one[0]


def _own(told: str, own: str) -> str:
    return own if told == "own" else told


def _day(profile: Profile, kind: str, now: float) -> FixedWindow | Bucket | None:
    if not profile.rpd:
        return None
    per_minute = profile.rpd * MINUTE / profile.day
    if kind == "bucket":
        return Bucket(per_minute, profile.day, now)
    return FixedWindow(per_minute, now, profile.day)


def make_line(profile: Profile) -> Line:
    """Return the line of a simulator's calls."""
    if profile.is_hosted:
        return Line(math.inf, profile.tps)
    return Line(profile.slots or USUAL_SLOTS[profile.server], profile.tps)
