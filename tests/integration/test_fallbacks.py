"""Fallbacks, caps and refusals of the real command, against the real simulator."""

from __future__ import annotations

import json
import sqlite3

import pytest

from batch_llm.simulator.server import Simulator
from command import rows

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}},
    "required": ["label"],
    "additionalProperties": False,
}
PRICES = '["sim:fast"]\ninput = 1\noutput = 1\n'


@pytest.fixture
def cli(cli, tmp_path):
    lines = [json.dumps({"prompt": f"Question {n}?"}) for n in range(60)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "p.toml").write_text(PRICES)

    return cli


def test_rows_that_one_model_cannot_answer_are_answered_by_the_next(cli, tmp_path):
    done = cli(
        "run", "q.jsonl", "-m", "sim:fast?pschema=1", "--schema", "schema.json", "--fallback",
        "sim:fast?pschema=1&seed=1,sim:fast?seed=2", "--prices", "p.toml", "--json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    calls = {usage["model"]: usage["calls"] for usage in told["usage"]}
    assert calls == {
        "sim:fast?pschema=1": 120,
        "sim:fast?pschema=1&seed=1": 120,
        "sim:fast?seed=2": 60,
    }
    spent = sum(usage["input_tokens"] + usage["output_tokens"] for usage in told["usage"])
    assert float(told["cost_usd"]) == pytest.approx(spent / 1e6)
    ledger = sqlite3.connect(tmp_path / ".batch-llm/runs/q.results.jsonl.sqlite")
    found = dict(ledger.execute("SELECT change, count(*) FROM changes GROUP BY change"))
    ledger.close()
    assert found == {
        "the model is told what is wrong with its answer": 120,
        "bad_output: sim:fast?pschema=1&seed=1 is asked": 60,
        "bad_output: sim:fast?seed=2 is asked": 60,
    }


@pytest.mark.parametrize(("cap", "attempts"), [("0", 1), ("4k", 2)])
def test_a_cap_is_raised_as_far_as_the_flag_says(cli, tmp_path, cap, attempts):
    done = cli(
        "run", "q.jsonl", "-s", "max_tokens=1", "--max-tokens-cap", cap, "--limit", "5"
    )  # fmt: skip

    assert done.returncode == (1 if cap == "0" else 0), done.stderr
    if cap == "4k":
        assert {row["attempts"] for row in rows(tmp_path / "q.results.jsonl")} == {attempts}
        assert "  max_tokens 1 → 4000\n" in cli("show", "--id", "row-1").stdout


def test_what_is_left_goes_to_the_fallback_when_the_key_is_refused(cli, tmp_path):
    command = ["run", "q.jsonl", "-m", "openai-chat:x", "--fallback", "sim:fast"]
    with Simulator("fast") as simulator:
        key = {"OPENAI_API_KEY": "invalid", "OPENAI_BASE_URL": simulator.base_url}
        usual = cli(*command, "-o", "a.jsonl", env=key)
        done = cli(*command, "-o", "b.jsonl", "--fallback-on", "auth", env=key)

    assert usual.returncode == 4
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "b.jsonl")) == 60
    assert "warning: openai-chat:x refuses everything (auth, " in done.stderr


def test_a_fallback_of_the_same_provider_is_at_the_same_server(cli):
    with Simulator("fast?pfilter=1") as simulator:
        done = cli(
            "run", "q.jsonl", "-m", "vllm:x", "--fallback", "vllm:y", "--limit", "5",
            "--fallback-on", "content_filter", "--base-url", simulator.base_url,
            "--ignore-slots", env={"VLLM_API_KEY": "any"},
        )  # fmt: skip
        calls = simulator.stats().calls

    assert done.returncode == 1, done.stderr
    assert calls == 10


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--fallback", "opnai-chat:x"], 'unknown model "opnai-chat:x"'),
        (["--fallback", "openai-chat:x"], "no key for openai-chat"),
        (["--fallback", "sim:fast", "--fallback-on", "speed"], "fallback_on must be some of"),
        (["--max-tokens-cap", "-1"], "--max-tokens-cap must be >= 0"),
        (["--fallback", "sim:fast", "--max-cost", "1"], "no price is known for sim:fast"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_flags_that_cannot_be_are_refused_before_anything_is_sent(cli, command, flags, words):
    done = cli(command, "q.jsonl", *flags)

    assert done.returncode == 2
    assert words in done.stderr
