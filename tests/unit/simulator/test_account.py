from __future__ import annotations

import contextlib
import json

import pytest

from batch_llm.simulator import Profile
from batch_llm.simulator.account import Account
from batch_llm.simulator.openai_chat import OPENAI_CHAT
from batch_llm.simulator.refusals import Refusal


def call(content="hi", **fields):
    messages = [{"role": "user", "content": content}]
    body = json.dumps({"model": "gpt-x", "messages": messages} | fields).encode()
    return OPENAI_CHAT.read(body, "")


def refusal(account, now=0.0, **fields):
    with pytest.raises(Refusal) as caught:
        account.admit(OPENAI_CHAT, call(**fields), now)
    return caught.value, json.loads(caught.value.body)["error"]


def test_both_limits_are_passed_or_none():
    account = Account(Profile(rpm=10, tpm=100, burst=60), 0.0)
    account.admit(OPENAI_CHAT, call(max_tokens=80), 0.0)

    told, error = refusal(account, max_tokens=30)

    assert (told.status, error["type"], error["code"]) == (429, "tokens", "rate_limit_exceeded")
    assert "Limit 100, Used 80, Requested 30. Please try again in 6s." in error["message"]
    assert told.headers["retry-after"] == "6"
    # The refused call took nothing from the other limit.
    assert told.headers["x-ratelimit-remaining-requests"] == "9"
    assert told.headers["x-ratelimit-remaining-tokens"] == "20"
    assert told.headers["x-ratelimit-reset-tokens"] == "48s"


def test_the_limits_are_told_on_success_too():
    headers = Account(Profile(rpm=10), 0.0).admit(OPENAI_CHAT, call(), 0.0).headers

    assert headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6s",
    }


@pytest.mark.parametrize(
    ("how", "headers"),
    [("header", {"retry-after": "1"}), ("ms", {"retry-after-ms": "500"}), ("none", {})],
)
def test_a_wait_is_told_as_the_profile_says(how, headers):
    account = Account(Profile(rpm=120, burst=0, retry_after=how), 0.0)
    account.admit(OPENAI_CHAT, call(), 0.0)

    told, _ = refusal(account)

    assert {name: told.headers[name] for name in told.headers if "retry" in name} == headers


@pytest.mark.parametrize(("rejects", "wait"), [("free", "500ms"), ("count", "1s")])
def test_refused_calls_use_up_the_limit_if_the_profile_says_so(rejects, wait):
    account = Account(Profile(rpm=60, burst=0, rejects=rejects, retry_after="none"), 0.0)
    account.admit(OPENAI_CHAT, call(), 0.0)
    refusal(account, 0.5)

    _, error = refusal(account, 0.5)

    assert f"try again in {wait}." in error["message"]


def test_headers_can_be_left_out_and_the_wait_stays():
    account = Account(Profile(rpm=10, burst=0, headers="off"), 0.0)

    assert account.admit(OPENAI_CHAT, call(), 0.0).headers == {}
    told, _ = refusal(account)
    assert told.headers == {"retry-after": "6"}


def passing(account, until, step=0.01):
    """Return when calls passed of a client that tries every ``step`` seconds."""
    times = []
    for number in range(round(until / step)):
        now = 100.0 + number * step
        with contextlib.suppress(Refusal):
            account.admit(OPENAI_CHAT, call(), now)
            times.append(number * step)
    return times


def test_limits_change_after_the_time_told_counted_from_the_first_call():
    account = Account(Profile(rpm=600, burst=0, change=(10, 0.5)), 0.0)

    times = passing(account, 20.0)

    before = [at for at in times if at < 10]
    assert (len(before), len(times) - len(before)) == (100, 50)
    assert account.stats().refused == 2000 - len(times)
    headers = account.admit(OPENAI_CHAT, call(), 200.0).headers
    assert headers["x-ratelimit-limit-requests"] == "300"


def test_a_change_does_not_wait_for_a_call():
    account = Account(Profile(tpm=600, burst=60, change=(10, 2)), 0.0)
    account.admit(OPENAI_CHAT, call(max_tokens=600), 0.0)

    headers = account.admit(
        OPENAI_CHAT, call(), 40.0
    ).headers  # 10 s at 10 a second, 30 s at 20, less 4

    assert headers["x-ratelimit-remaining-tokens"] == "696"
    assert headers["x-ratelimit-limit-tokens"] == "1200"


def test_so_many_calls_are_in_work_at_the_most():
    account = Account(Profile(slots=2), 0.0)
    account.admit(OPENAI_CHAT, call(), 0.0)
    account.admit(OPENAI_CHAT, call(), 0.0)

    told, error = refusal(account)

    assert (told.status, error["type"], told.headers) == (429, "rate_limit_reached_error", {})
    assert "reached max organization concurrency: 2" in error["message"]
    assert account.stats().refused == 1
    account.release()
    account.admit(OPENAI_CHAT, call(), 0.0)
    refusal(account)


def test_a_call_that_found_no_slot_takes_nothing_from_the_limits():
    account = Account(Profile(slots=1, rpm=10), 0.0)
    account.admit(OPENAI_CHAT, call(), 0.0)

    told, _ = refusal(account, 3.0)

    assert told.headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "3s",
    }


def test_a_call_that_found_no_slot_uses_up_the_limits_if_the_profile_says_so():
    account = Account(Profile(slots=1, rpm=10, rejects="count"), 0.0)
    account.admit(OPENAI_CHAT, call(), 0.0)

    told, _ = refusal(account)

    assert told.headers["x-ratelimit-remaining-requests"] == "8"


def test_good_answers_a_day_are_limited():
    account = Account(Profile(rpd=2, day=500), 100.0)
    for _ in range(2):
        account.admit(OPENAI_CHAT, call(), 168.0)
        account.answer(OPENAI_CHAT, call(), 0.0)

    told, error = refusal(account, 168.0)

    assert (told.status, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert (
        "Rate limit reached for gpt-x in organization org-simulator on requests per day (RPD): "
        "Limit 2, Used 2, Requested 1. Please try again in 7m12s."
    ) in error["message"]
    assert told.headers == {"retry-after": "432"}
    assert account.stats().refused == 1
    account.admit(OPENAI_CHAT, call(), 600.0)


def test_each_day_has_its_own_count():
    account = Account(Profile(rpd=3, day=7), 0.0)
    answered = []
    for now in range(21):
        with contextlib.suppress(Refusal):
            account.admit(OPENAI_CHAT, call(), float(now))
            account.answer(OPENAI_CHAT, call(), 0.0)
            answered.append(now)

    assert answered == [0, 1, 2, 7, 8, 9, 14, 15, 16]


def test_failed_calls_do_not_count_against_the_day():
    account = Account(Profile(rpd=1, p500=1), 0.0)
    for _ in range(3):
        account.admit(OPENAI_CHAT, call(), 0.0)
        with pytest.raises(Refusal):
            account.answer(OPENAI_CHAT, call(), 0.0)

    account.admit(OPENAI_CHAT, call(), 0.0)


def test_a_quota_is_exact_with_calls_in_flight():
    account = Account(Profile(quota_after=2), 0.0)
    for _ in range(2):
        account.admit(OPENAI_CHAT, call(), 0.0)
        account.answer(OPENAI_CHAT, call(), 0.0)  # not billed yet: still in flight

    told, error = refusal(account)

    assert (told.status, error["code"], told.headers) == (429, "insufficient_quota", {})
    assert account.stats().faults == {"quota_after": 1}


def test_an_outage_has_a_beginning_and_an_end():
    account = Account(Profile(down=(5, 20)), 100.0)
    account.admit(OPENAI_CHAT, call(), 104.9)

    told, error = refusal(account, 105.0)

    assert (told.status, error["code"]) == (503, "server_is_overloaded")
    account.admit(OPENAI_CHAT, call(), 120.0)


def test_plain_text_cannot_violate_a_schema():
    account = Account(Profile(pschema=1), 0.0)

    _, fault = account.answer(OPENAI_CHAT, call(), 0.0)

    assert fault is None
    assert account.stats().faults == {}


def test_a_fault_that_is_an_error_is_not_billed():
    account = Account(Profile(p500=1), 0.0)

    with pytest.raises(Refusal):
        account.answer(OPENAI_CHAT, call(), 0.0)

    assert account.stats().faults == {"p500": 1}
    assert account.stats().output_tokens == 0


def test_an_impossible_schema_counts_as_invalid_only():
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "pasta"}}}
    account = Account(Profile(ptruncate=1), 0.0)

    with pytest.raises(Refusal):
        account.answer(OPENAI_CHAT, call(response_format=shape), 0.0)

    assert (account.stats().invalid, account.stats().faults) == (1, {})
