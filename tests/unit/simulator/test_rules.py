"""How each provider counts: what is taken, when, and what is given back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.simulator import Profile
from batch_llm.simulator.account import Account
from batch_llm.simulator.anthropic_messages import ANTHROPIC
from batch_llm.simulator.gemini import GEMINI
from batch_llm.simulator.groq import GROQ
from batch_llm.simulator.mistral import MISTRAL
from batch_llm.simulator.openai_chat import OPENAI_CHAT
from batch_llm.simulator.refusals import Refusal
from batch_llm.simulator.rules import CHARGES, RULES

#: 100 tokens of input.
PROMPT = "<<echo>>" + "x" * (97 * 4 - 8)
FORMATS = {
    "openai": OPENAI_CHAT,
    "anthropic": ANTHROPIC,
    "google": GEMINI,
    "mistral": MISTRAL,
    "groq": GROQ,
}


def call(provider, cap=None, prompt=PROMPT):
    if provider == "google":
        fields = {"contents": [{"parts": [{"text": prompt}]}]}
        if cap is not None:
            fields["generationConfig"] = {"maxOutputTokens": cap}
        return GEMINI.read(json.dumps(fields).encode(), "m")
    fields = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    if cap is not None or provider == "anthropic":
        fields["max_tokens"] = cap or 4000
    return FORMATS[provider].read(json.dumps(fields).encode(), "")


def remaining(account, kind="tokens"):
    return dict(account._limits)[kind].remaining()


def visited(account, provider, asked):
    """Let a call in, answer it and settle it; return what was left at each step."""
    wire = FORMATS[provider]
    visit = account.admit(wire, asked, 0.0)
    steps = [remaining(account)]
    answer, _ = account.answer(wire, asked, 0.0)
    account.settle(wire, visit, answer, 0.0, 0.0)
    return [*steps, remaining(account)]


@pytest.mark.parametrize(
    ("charge", "steps"),
    [
        ("asked", [800, 800]),
        ("settled", [800, 805]),
        ("sum", [700, 805]),
        ("input", [900, 900]),
        ("used", [900, 805]),
    ],
)
def test_tokens_are_counted_as_the_profile_says(charge, steps):
    account = Account(Profile(tpm=1000, charge=charge), 0.0)
    asked = call("openai", 200)
    answer, _ = account.answer(OPENAI_CHAT, asked, 0.0)
    assert (answer.input_tokens, answer.output_tokens) == (100, 95)

    assert visited(account, "openai", asked) == steps


@pytest.mark.parametrize(
    ("provider", "steps"),
    [
        ("openai", [900, 900]),
        ("anthropic", [900, 850]),
        ("google", [900, 900]),
        ("mistral", [900, 850]),
        ("groq", [850, 850]),
    ],
)
def test_tokens_are_counted_as_the_provider_does(provider, steps):
    account = Account(Profile(tpm=1000), 0.0, provider)
    assert visited(account, provider, call(provider, 50)) == steps


@pytest.mark.parametrize("charge", ["settled", "sum"])
def test_a_failed_call_gives_everything_back(charge):
    account = Account(Profile(tpm=1000, charge=charge, p500=1), 0.0)
    asked = call("openai", 500)
    visit = account.admit(OPENAI_CHAT, asked, 0.0)
    with pytest.raises(Refusal):
        account.answer(OPENAI_CHAT, asked, 0.0)
    account.settle(OPENAI_CHAT, visit, None, 0.0, 0.0)

    assert remaining(account) == 1000
    assert visit.headers["x-ratelimit-remaining-tokens"] == "1000"


def test_the_headers_are_those_of_the_moment_of_the_answer():
    account = Account(Profile(tpm=600, charge="settled"), 0.0)
    asked = call("openai", 500)
    visit = account.admit(OPENAI_CHAT, asked, 0.0)
    assert visit.headers["x-ratelimit-remaining-tokens"] == "100"
    answer, _ = account.answer(OPENAI_CHAT, asked, 0.0)

    account.settle(OPENAI_CHAT, visit, answer, 10.0, 0.0)

    # 100 left, 100 refilled in 10 seconds, and what was not used given back.
    left = 200 + 500 - answer.input_tokens - answer.output_tokens
    assert visit.headers["x-ratelimit-remaining-tokens"] == str(left)


def test_what_is_read_from_a_cache_does_not_count_as_input():
    account = Account(Profile(itpm=1000, cached=0.5), 0.0, "anthropic")
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": PROMPT}]}
    key = [(b"x-api-key", b"any")]
    asked = account.read(ANTHROPIC, key, json.dumps(body).encode())
    account.admit(ANTHROPIC, asked, 0.0)

    assert (asked.input_tokens, asked.cached_tokens) == (100, 50)
    assert remaining(account, "input_tokens") == 950


def test_output_needs_one_token_and_is_taken_with_the_answer():
    account = Account(Profile(otpm=60), 0.0, "anthropic")
    asked = call("anthropic", 90)
    visit = account.admit(ANTHROPIC, asked, 0.0)
    assert remaining(account, "output_tokens") == 60
    answer, _ = account.answer(ANTHROPIC, asked, 0.0)
    account.settle(ANTHROPIC, visit, answer, 0.0, 0.0)

    with pytest.raises(Refusal) as caught:
        account.admit(ANTHROPIC, asked, 0.0)
    # 30 too many, and one: 31 seconds at one a second.
    assert caught.value.headers["retry-after"] == "31"
    account.admit(ANTHROPIC, asked, 31.0)


@pytest.mark.parametrize("provider", RULES)
def test_a_day_counts_what_the_provider_counts(provider):
    wire = FORMATS[provider]
    account = Account(Profile(rpd=1, p500=1), 0.0, provider)
    asked = call(provider)
    account.admit(wire, asked, 0.0)
    with pytest.raises(Refusal):
        account.answer(wire, asked, 0.0)

    if provider == "openai":  # good answers only
        account.admit(wire, asked, 0.0)
    else:
        with pytest.raises(Refusal) as caught:
            account.admit(wire, asked, 0.0)
        assert caught.value.status == 429


def test_groqs_day_refills_all_day():
    account = Account(Profile(rpd=24), 0.0, "groq")
    for _ in range(24):
        account.admit(GROQ, call("groq"), 0.0)

    with pytest.raises(Refusal) as caught:
        account.admit(GROQ, call("groq"), 1800.0)
    assert caught.value.headers["retry-after"] == "1800"
    assert caught.value.headers["x-ratelimit-reset-requests"] == "23h30m0s"
    account.admit(GROQ, call("groq"), 3600.0)


def test_mistrals_minutes_are_fixed_and_openais_are_not():
    for provider, waits in (("mistral", 30.0), ("openai", 30.0)):
        account = Account(Profile(rpm=2), 0.0, provider)
        wire = FORMATS[provider]
        account.admit(wire, call(provider), 0.0)
        account.admit(wire, call(provider), 0.0)
        with pytest.raises(Refusal):
            account.admit(wire, call(provider), waits - 1)
        if provider == "openai":  # one has trickled in
            account.admit(wire, call(provider), waits)
        else:
            with pytest.raises(Refusal):
                account.admit(wire, call(provider), waits)
            account.admit(wire, call(provider), 60.0)


def test_a_profile_can_say_that_refused_calls_count_as_the_provider_has_it():
    left = {}
    for provider in RULES:
        account = Account(Profile(rpm=60, slots=1, rejects="own"), 0.0, provider)
        wire = FORMATS[provider]
        account.admit(wire, call(provider), 0.0)
        with pytest.raises(Refusal):
            account.admit(wire, call(provider), 0.0)
        left[provider] = remaining(account, "requests")

    assert left == {"openai": 58, "anthropic": 59, "google": 59, "mistral": 59, "groq": 59}


def test_the_size_of_a_prompt_is_limited_and_that_of_a_body():
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": PROMPT}]}).encode()
    key = [(b"authorization", b"Bearer x")]
    for profile, status in ((Profile(context=99), 400), (Profile(largest=len(body) - 1), 413)):
        account = Account(profile, 0.0)
        with pytest.raises(Refusal) as caught:
            account.read(OPENAI_CHAT, key, body)
        assert (caught.value.status, account.stats().invalid) == (status, 1)
    for profile in (Profile(context=100), Profile(largest=len(body))):
        Account(profile, 0.0).read(OPENAI_CHAT, key, body)


def test_every_rule_is_one_that_a_profile_could_choose():
    for rules in RULES.values():
        assert rules.charge in CHARGES
        Profile(
            charge=rules.charge,
            window=rules.window,
            rejects=rules.rejects,
            retry_after=rules.retry_after,
        )


@given(
    st.sampled_from(CHARGES),
    st.sampled_from(["bucket", "fixed", "sliding"]),
    st.lists(st.tuples(st.integers(1, 90), st.booleans()), max_size=12),
    st.randoms(use_true_random=False),
)
def test_in_whatever_order_calls_end_the_account_is_right(charge, window, calls, dice):
    account = Account(Profile(tpm=100_000, charge=charge, window=window), 0.0)
    visits = []
    for cap, is_good in calls:
        asked = call("openai", cap)
        visits.append((account.admit(OPENAI_CHAT, asked, 0.0), is_good))
    dice.shuffle(visits)
    expected = 100_000
    for visit, is_good in visits:
        asked = visit.call
        answer = OPENAI_CHAT.complete(asked, None, 0.0) if is_good else None
        account.settle(OPENAI_CHAT, visit, answer, 0.0, 0.0)
        spent = answer.input_tokens + answer.output_tokens if answer is not None else 0
        expected -= {
            "asked": max(asked.input_tokens, asked.max_tokens),
            "settled": spent,
            "sum": spent,
            "input": asked.input_tokens,
            "used": spent if is_good else asked.input_tokens,
        }[charge]

    assert remaining(account) == expected
