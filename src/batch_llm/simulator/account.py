"""What a provider knows about its customer: limits, quota, faults to come, and the bill.

Pure: the time is an argument, nothing is sent.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from batch_llm.simulator.faults import Faults
from batch_llm.simulator.limits import MINUTE, FixedWindow, Limit, make_limit
from batch_llm.simulator.local_server import USUAL_SLOTS, Line, Page, page
from batch_llm.simulator.openai_chat import (
    Call,
    Completion,
    Refusal,
    check_key,
    fault,
    go_duration,
    out_of_quota,
    rate_limited,
    too_many_at_once,
    unavailable,
)

if TYPE_CHECKING:
    from batch_llm.simulator.profile import Profile


class Stats(msgspec.Struct, frozen=True):
    """What a simulator has done since it started or was last reset.

    When nothing is in flight, ``calls`` is the sum of ``successes``, ``refused``, ``invalid``,
    ``given_up`` and all ``faults``. A client that hangs up while its answer is being made is
    billed, as a provider would; one that hangs up on a held-back answer (``ptimeout``) is not.

    Attributes:
        calls: Chat calls received.
        successes: Calls with a good answer.
        answers: Calls answered with a completion, spoilt ones included: the ones that are billed.
        refused: Calls refused by a limit of the profile.
        invalid: Calls refused for their key, model or body.
        faults: Faults by the name of their option.
        input_tokens: Billed, of all answers.
        output_tokens: The same.
        peak_in_flight: Calls at the same time at the most.
        peak_in_work: The same without those that waited for a slot.
        given_up: Calls whose client hung up while they waited for a slot.
        looks: Requests for what the server tells of itself, by path.
    """

    calls: int
    successes: int
    answers: int
    refused: int
    invalid: int
    faults: dict[str, int]
    input_tokens: int
    output_tokens: int
    peak_in_flight: int
    peak_in_work: int
    given_up: int
    looks: dict[str, int]


@dataclass(slots=True)
class _Counts:
    calls: int = 0
    successes: int = 0
    answers: int = 0
    refused: int = 0
    invalid: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    peak_in_flight: int = 0
    given_up: int = 0
    looks: Counter[str] = field(default_factory=Counter)


class Account:
    """Everything that a reset forgets.

    Args:
        profile: How the provider behaves.
        now: The time in seconds from which ``down``, days and fixed windows count.
    """

    def __init__(self, profile: Profile, now: float) -> None:
        self._profile = profile
        self._started = now
        self._counts = _Counts()
        self._granted = 0
        self._in_work = 0
        #: The calls that were let in: in work, or in the queue of a server that has one.
        self.line = Line(_slots_that_queue(profile), profile.tps)
        self._latest = now
        #: None before the first call: it starts the time that is left.
        self._changes_at: float | None = None
        self._faults = Faults(profile)
        self._day: FixedWindow | None = None
        if profile.rpd:
            self._day = FixedWindow(profile.rpd * MINUTE / profile.day, now, profile.day)
        self._limits: list[tuple[str, Limit]] = []
        for kind, per_minute in (("requests", profile.rpm), ("tokens", profile.tpm)):
            limit = make_limit(per_minute, profile.window, profile.burst, now)
            if limit is not None:
                self._limits.append((kind, limit))

    def arrive(self, in_flight: int) -> None:
        """Count a call; ``in_flight`` of them are here now."""
        self._counts.calls += 1
        self._counts.peak_in_flight = max(self._counts.peak_in_flight, in_flight)

    def read(self, authorization: bytes, body: bytes) -> Call:
        """Check a call's key and body.

        Raises:
            Refusal: One of them is wrong.
        """
        try:
            if self._profile.is_hosted:
                check_key(authorization)
            return Call(body)
        except Refusal:
            self._counts.invalid += 1
            raise

    def admit(self, call: Call, now: float) -> dict[str, str]:
        """Let a call pass all limits or none. One that was let in is to be released.

        Returns:
            The headers that tell of the limits.

        Raises:
            Refusal: The provider is down, the account is out of credit, or a limit is reached.
        """
        self._notice(now)
        start, end = self._profile.down
        if start <= now - self._started < end:
            self._counts.faults["down"] += 1
            raise unavailable()
        if self._profile.quota_after and self._granted >= self._profile.quota_after:
            self._counts.faults["quota_after"] += 1
            raise out_of_quota()
        return self._pass_limits(call, now)

    def release(self) -> None:
        """Note that a call which was let in is no longer in work."""
        self._in_work -= 1

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

    def _pass_limits(self, call: Call, now: float) -> dict[str, str]:
        amounts = {"requests": 1, "tokens": call.reserved_tokens}
        refusal = self._refusal(call, amounts, now)
        if refusal is None:
            for kind, limit in self._limits:
                limit.take(amounts[kind], now)
            self._in_work += 1
            return self._limit_headers()
        self._counts.refused += 1
        if self._profile.rejects == "count":
            for kind, limit in self._limits:
                limit.charge(amounts[kind], now)
        refusal.headers |= self._limit_headers()
        raise refusal

    def _refusal(self, call: Call, amounts: dict[str, int], now: float) -> Refusal | None:
        """Return what the limit says that takes longest, or None when all let the call pass."""
        profile = self._profile
        # All of them, whatever is refused first: it brings each up to this moment.
        waits = [(limit.wait_for(amounts[kind], now), kind, limit) for kind, limit in self._limits]
        if self._day is not None and (wait := self._day.wait_for(1, now)) > 0:
            limit = profile.rpd
            how = profile.retry_after
            return rate_limited("requests_a_day", call, wait, how, limit=limit, used=limit)
        if profile.is_hosted and profile.slots and self._in_work >= profile.slots:
            return too_many_at_once(profile.slots)
        wait, kind, tightest = max(waits, key=lambda one: one[0], default=(0.0, "", None))
        if tightest is None or wait <= 0:
            return None
        used = tightest.limit - tightest.remaining()
        how = profile.retry_after
        return rate_limited(kind, call, wait, how, limit=tightest.limit, used=used)

    def _limit_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        if self._profile.headers == "off":
            return headers
        for kind, limit in self._limits:
            headers[f"x-ratelimit-limit-{kind}"] = f"{limit.limit:.0f}"
            headers[f"x-ratelimit-remaining-{kind}"] = str(limit.remaining())
            headers[f"x-ratelimit-reset-{kind}"] = go_duration(limit.reset_seconds())
        return headers

    def answer(self, call: Call, now_unix: float) -> tuple[Completion, str | None]:
        """Return the answer, and the name of the fault that spoils it or its delivery.

        Args:
            call: A call that was admitted.
            now_unix: Seconds since 1970.

        Raises:
            Refusal: The fault is an error answer, or nothing conforms to the schema.
        """
        name = self._faults.next_for(call.conversation)
        if name == "pschema" and call.schema is None:
            name = None
        refusal = None if name is None else fault(name, call, self._profile.retry_after)
        if refusal is not None:
            self._count(name)
            raise refusal
        try:
            completion = Completion(call, name, now_unix)
        except Refusal:
            self._counts.invalid += 1
            raise
        self._count(name)
        return completion, name

    def _count(self, fault_name: str | None) -> None:
        if fault_name is None:
            # Counted here, not when answered: calls in flight must not exceed the quota.
            self._granted += 1
            if self._day is not None:
                self._day.take(1, self._latest)
        else:
            self._counts.faults[fault_name] += 1

    def bill(self, completion: Completion, fault_name: str | None) -> None:
        """Count an answer that is about to be sent."""
        counts = self._counts
        counts.answers += 1
        counts.successes += fault_name is None
        counts.input_tokens += completion.input_tokens
        counts.output_tokens += completion.output_tokens

    def stats(self) -> Stats:
        """Return what was done so far; from any thread."""
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
            peak_in_flight=counts.peak_in_flight,
            peak_in_work=self.line.peak_in_work,
            given_up=counts.given_up,
            looks=dict(counts.looks),
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


def _slots_that_queue(profile: Profile) -> float:
    if profile.is_hosted:
        return math.inf
    return profile.slots or USUAL_SLOTS[profile.server]
