"""``batch-llm run`` through every prefix, against the simulator that plays all, under faults."""

from __future__ import annotations

import json
import sys
from decimal import Decimal

import pytest

from batch_llm._engine import course
from batch_llm.cli import main
from batch_llm.providers.table import AZURE, PROVIDERS
from batch_llm.simulator.server import Simulator

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

#: Faults after which what was billed is told, or nothing was billed.
TOLD = "retry_after=ms&pschema=0.1&ptruncate=0.06&prefuse=0.02&pfilter=0.02&p500=0.05&pmidway=0.05"
#: Those after which a lane is slow for a while: in one mode, they are the same in all.
SLOWING = "p429=0.03&p502=0.03&p503=0.03&p529=0.02"
#: Faults after which nobody here can know what was billed.
UNTOLD = "preset=0.1&pgarbage=0.1"
KINDS = "cached=0.25&reasoning=0.5"
OLD_AZURE = "azure, older addresses"
#: What follows the simulator's host in the address that the provider's variable tells.
BEHIND_HOST = {"anthropic": "", "google": "", "mistral": "/mistral", "groq": "", AZURE: ""}
PREFIXES = [*PROVIDERS, OLD_AZURE]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
ELSEWHERE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "unit": {"enum": ["duck", "egg"]}},
    "required": ["n", "unit"],
    "additionalProperties": False,
}
ROWS = 30
#: USD per million tokens: in, in from a cache, out.
PRICES = (Decimal(1), Decimal("0.25"), Decimal(4))


def conversation(n):
    """Return the messages of a row: some of several turns, some with pictures."""
    messages = [{"role": "system", "content": "Be brief."}]
    if n % 3 == 0:
        messages += [
            {"role": "user", "content": f"A duck lays {n} eggs a day."},
            {"role": "assistant", "content": "Noted."},
        ]
    question = f"How many eggs are {n} and {n}?"
    if n % 5 == 0:
        picture = ELSEWHERE if n % 2 else PICTURE
        return [
            *messages,
            {"role": "user", "content": [{"type": "text", "text": question}, picture]},
        ]
    return [*messages, {"role": "user", "content": question}]


def server_of(prefix):
    """Return the option by which a simulator plays a server that wants no key."""
    return f"server={prefix if PROVIDERS.get(prefix, PROVIDERS[AZURE]).is_local else 'hosted'}"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command and returns its summary and its results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    # Faults come by chance: to wait for a second after each would prove nothing.
    monkeypatch.setattr(
        course, "wait_before_retry", lambda *_, suggested=None, **__: suggested or 0
    )
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))

    def run(running, prefix, *arguments, rows):
        name = AZURE if prefix == OLD_AZURE else prefix
        provider, root = PROVIDERS[name], running.base_url.removesuffix("/v1")
        monkeypatch.setenv(provider.url_variable, root + BEHIND_HOST.get(name, "/v1"))
        if not provider.is_local:
            monkeypatch.setenv(provider.key_variable, "any-key-will-do")
        if prefix == OLD_AZURE:
            monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "prices.toml").write_text(
            f'["{name}:some-model"]\ninput = 1\ncache_read = 0.25\noutput = 4\n'
        )
        given = ["batch-llm", "run", "rows.jsonl", "-m", f"{name}:some-model", "--progress", "none"]
        given += ["--json", "--prices", "prices.toml", "-s", "max_tokens=200", *arguments]
        monkeypatch.setattr(sys, "argv", given)
        code = main()
        said = capsys.readouterr()
        assert code in {0, 1}, said.err
        results = [
            json.loads(line)
            for file in (tmp_path / "rows.results.jsonl", tmp_path / "rows.failed.jsonl")
            if file.exists()
            for line in file.read_text().splitlines()
        ]
        return json.loads(said.out.splitlines()[-1]), results

    return run


MODES = {
    "plain": ([], [{"id": f"a{n}", "messages": conversation(n)} for n in range(ROWS)]),
    "choices": (
        ["--choices", "ham,spam", "--prompt", "Which? {{ text }}"],
        [{"id": f"a{n}", "text": f"Win {n} ducks!"} for n in range(ROWS)],
    ),
    "schema": (
        ["--schema", "schema.json", "--prompt", "Count: {{ text }}"],
        [{"id": f"a{n}", "text": f"{n} ducks and {n} eggs"} for n in range(ROWS)],
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_row_has_one_result_and_the_bill_is_the_providers(command, prefix, mode):
    arguments, rows = MODES[mode]
    slowing = SLOWING if mode == "plain" else "p429=0"
    with Simulator(f"fast?seed=5&{TOLD}&{KINDS}&{slowing}&{server_of(prefix)}") as running:
        done, results = command(running, prefix, *arguments, rows=rows)
        stats = running.stats()

    assert sorted(row["id"] for row in results) == sorted(row["id"] for row in rows)
    good = [row["output"] for row in results if row.get("status") == "ok"]
    assert done["succeeded"] == len(good) >= ROWS * 0.8
    assert done["failures"].keys() <= {"content_filter", "truncated", "server_error"}
    assert sum(stats.faults.values()) >= 3
    if mode == "choices":
        assert set(good) == {"ham", "spam"}
    elif mode == "schema":
        assert all(isinstance(one["n"], int) and one["unit"] in {"duck", "egg"} for one in good)
    (used,) = done["usage"]
    assert (used["calls"], used["unmeasured_calls"]) == (stats.answers, 0)
    assert used["input_tokens"] == stats.input_tokens
    assert used["output_tokens"] == stats.output_tokens
    assert used["cache_read_tokens"] == stats.cached_tokens
    assert stats.cached_tokens > 0
    fresh, cached, out = PRICES
    millionths = (stats.input_tokens - stats.cached_tokens) * fresh + stats.cached_tokens * cached
    assert Decimal(done["cost_usd"]) == (millionths + stats.output_tokens * out) / 10**6


@pytest.mark.parametrize("prefix", PREFIXES)
def test_no_row_is_lost_where_answers_are_cut_off(command, prefix):
    arguments, rows = MODES["choices"]
    with Simulator(f"fast?seed=5&{UNTOLD}&{server_of(prefix)}") as running:
        done, results = command(running, prefix, *arguments, rows=rows)
        stats = running.stats()

    assert sorted(row["id"] for row in results) == sorted(row["id"] for row in rows)
    assert done["succeeded"] == ROWS
    lost = stats.faults["preset"] + stats.faults["pgarbage"]
    assert lost >= 3
    # What those calls cost is not known, and said so.
    assert done["unmeasured_calls"] == lost
    (used,) = done["usage"]
    assert used["calls"] + lost == stats.answers
    assert 0 < used["input_tokens"] < stats.input_tokens
