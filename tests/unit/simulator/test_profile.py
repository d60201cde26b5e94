from __future__ import annotations

import dataclasses

import pytest

from batch_llm.exceptions import ConfigError
from batch_llm.simulator import PROFILES, Profile, parse_profile
from batch_llm.simulator.profile import FAULTS


def test_a_profile_is_read_from_one_line():
    profile = parse_profile("fast?rpm=500&tpm=100k&p429=0.05&seed=7&window=fixed&down=5-20")

    assert profile == dataclasses.replace(
        PROFILES["fast"],
        rpm=500, tpm=100_000, p429=0.05, seed=7, window="fixed", down=(5, 20),
    )  # fmt: skip


def test_a_change_is_a_time_and_a_factor():
    assert parse_profile("fast?rpm=10&change=7.5:0.5").change == (7.5, 0.5)


@pytest.mark.parametrize(
    ("text", "number"), [("1.5M", 1_500_000), ("10k", 10_000), ("10K", 10_000), ("7", 7)]
)
def test_numbers_may_be_short(text, number):
    assert parse_profile(f"fast?tpm={text}").tpm == number


def test_a_limit_may_be_a_fraction():
    assert parse_profile("fast?rpm=0.5&tpm=12.5").rpm == 0.5
    assert parse_profile("fast?rpm=0.5&tpm=12.5").tpm == 12.5


def test_a_name_alone_is_that_profile():
    assert {name: parse_profile(name) for name in PROFILES} == PROFILES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsat", "profile must be one of fast, slow, flaky .did you mean fast"),
        ("fast?rmp=1", r"one that docs/simulator.md lists \(did you mean rpm\?\), got 'rmp'"),
        ("fast?wxyz=1", "option must be one of latency, per_token, .*, seed, got"),
        ("fast?rpm=many", "rpm must be a number such as 500"),
        ("fast?rpm", "rpm must be a number such as 500"),
        ("fast?p429=2", "p429 must be a probability"),
        ("fast?rpm=-1", "rpm must be a finite number >= 0"),
        ("fast?latency=nan", "latency must be a finite number >= 0"),
        ("fast?window=fixd", "window must be own, bucket, fixed or sliding .did you mean fixed"),
        ("fast?headers=no", "headers must be on or off"),
        ("fast?change=10", "change must be AT:FACTOR"),
        ("fast?change=10:0", "change must be AT:FACTOR, AT in seconds, FACTOR above 0"),
        ("fast?change=-1:2", "change must be AT:FACTOR"),
        ("fast?day=0", "day must be above 0 seconds"),
        ("fast?rpd=1.5", "rpd must be a whole number"),
        ("fast?slots=-1", "slots must be a finite number >= 0"),
        ("fast?rejects=x", "rejects must be own, free or count"),
        ("fast?retry_after=x", "retry_after must be own, header, decimal, ms, date or none"),
        ("fast?recover=1.5", "recover must be a whole number"),
        ("fast?down=5", "down must be START-END"),
        ("fast?down=9-5", "down must be START-END"),
        ("fast?down=a-5", "down must be a number"),
        ("fast?p429=0.6&p500=0.6", "the sum of all p… must be 1 or less"),
    ],
)
def test_an_impossible_profile_says_why(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_profile(text)


def test_probabilities_may_add_up_to_exactly_one():
    tenths = dict.fromkeys(
        ("p429", "p500", "p503", "p529", "preset", "pgarbage", "pschema", "ptruncate"), 0.1
    )

    assert len(Profile(**tenths, prefuse=0.1, pfilter=0.1).chances(FAULTS)) == 10


def test_only_flaky_has_faults_and_none_that_last():
    assert [name for name, profile in PROFILES.items() if profile.chances(FAULTS)] == ["flaky"]
    assert not PROFILES["flaky"].chances(["prefuse", "pfilter", "pquota"])
