"""Whole runs from Python, against a real simulator: what the command does, with values."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from decimal import Decimal

import pytest
from pydantic import BaseModel

import batch_llm as bl
from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator
from batch_llm.stores import ItemState

MODEL = "openai-chat:x"


class Review(BaseModel):
    label: str


@pytest.fixture
def simulator():
    with Simulator("fast") as running:
        yield running


@pytest.fixture
def there(simulator, tmp_path, monkeypatch):
    """Return what sends a run to the simulator; ledgers go to the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    return {"model": MODEL, "base_url": simulator.base_url}


def questions(count):
    return [{"id": f"q{n}", "prompt": f"Question {n}?"} for n in range(count)]


def is_answered(result, text):
    return result.success and answer_digest(text) in result.output


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("streams", [True, False])
def test_a_generator_may_fill_the_same_mapping_for_each_row(there, is_async, streams):
    def rows():
        row = {}
        for n in range(50):
            row["prompt"] = f"Question {n}?"
            yield row

    async def rows_later():
        for row in rows():
            yield row

    given = rows_later() if is_async else rows()
    ask = bl.stream_sync if streams else bl.run_sync
    results = list(ask(given, **there))

    assert {result.context["prompt"] for result in results} == {f"Question {n}?" for n in range(50)}
    assert all(is_answered(result, result.context["prompt"]) for result in results)


@pytest.mark.parametrize("kind", ["texts", "mappings", "messages", "generator", "async", "file"])
async def test_rows_of_every_kind_get_their_answers_in_their_order(there, tmp_path, kind):
    texts = [f"Question {n}?" for n in range(20)]
    rows = {
        "texts": lambda: texts,
        "mappings": lambda: [{"prompt": text, "kept": [1]} for text in texts],
        "messages": lambda: [[{"role": "user", "content": text}] for text in texts],
        "generator": lambda: (text for text in texts),
        "async": lambda: as_async(texts),
        "file": lambda: tmp_path / "in.jsonl",
    }
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, texts)))

    results = await bl.run(rows[kind](), **there)

    assert len(results) == 20
    assert all(is_answered(one, text) for one, text in zip(results, texts, strict=True))
    assert [one.item_id for one in results] == [f"row-{n}" for n in range(1, 21)]
    if kind == "mappings":
        assert results[3].context == {"prompt": "Question 3?", "kept": [1]}


async def collect(results, seen):
    async for result in results:
        seen.append(result)


async def as_async(values):
    for value in values:
        yield value


async def test_typed_answers_are_of_their_type_again_when_they_are_reused(there, simulator):
    rows = [{"text": f"Text {n}"} for n in range(10)]
    asked = {"prompt": "Judge: {{ text }}", "schema": Review, "name": "judge"}

    first = await bl.run(rows, **there, **asked)
    again = await bl.run(rows, **there, **asked)

    assert all(isinstance(one.output, Review) for one in [*first, *again])
    assert [one.output for one in again] == [one.output for one in first]
    assert (first.reused, again.reused, again.cost_usd) == (0, 10, Decimal(0))
    assert simulator.stats().calls == 10


async def test_the_same_call_again_sends_only_what_is_new_or_changed(there, simulator):
    await bl.run(questions(20), **there, name="n")
    rows = list(reversed(questions(22)))
    rows[5]["prompt"] = "Changed?"

    again = await bl.run(rows, **there, name="n")

    assert simulator.stats().calls == 23
    assert again.reused == again.statistics.reused == 19
    assert (again.statistics.processed, again.statistics.succeeded) == (22, 22)
    assert all(is_answered(one, row["prompt"]) for one, row in zip(again, rows, strict=True))


async def test_other_settings_are_refused_and_overwrite_begins_anew(there, simulator):
    await bl.run(questions(3), **there, name="n")

    with pytest.raises(bl.SettingsChangedError) as caught:
        await bl.run(questions(3), **there, name="n", settings={"temperature": 0.5})
    anew = await bl.run(
        questions(3), **there, name="n", settings={"temperature": 0.5}, overwrite=True
    )

    assert caught.value.differences == {"temperature": ("-", "0.5")}
    assert "overwrite=True" in caught.value.__notes__[0]
    assert anew.reused == 0
    assert simulator.stats().calls == 6


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([], {}, "there are no rows"),
        ({"prompt": "x"}, {}, "put one row into a list"),
        ("no-file.jsonl", {}, "one prompt is a list"),
        ([{"text": "x"}], {}, "prompt='Classify {{ column }}' makes one"),
        ([{"text": "x"}], {"prompt": "{{ txt }}"}, "did you mean {{ text }}?"),
        (["x", 3], {}, "expected a text, a mapping or messages, got a value of type int"),
        (["x", 3], {}, 'bad_rows="fail"'),
        (["x", 3], {}, "the input, row 2  invalid_row"),
        ([{"id": 1, "prompt": "x"}] * 2, {}, '"1" is already in row 1'),
        (["x"], {"max_cost_usd": 1}, "max_cost_usd cannot be kept: no price"),
        (["x"], {"max_cost_usd": 1}, "Price(input=0.25, output=2)})   gives its price"),
        (["x"], {"bad_rows": "ignore"}, "bad_rows must be one of"),
        (["x"], {"retries": -1}, "retries must be >= 0"),
        (["x"], {"name": "a/b"}, "name must be a word without slashes"),
        (["x"], {"store": "."}, "store must be a file"),
        (["x"], {"settings": {"stream": True}}, "settings must be settings"),
        (["x"], {"max_failed": 1, "max_failed_share": 0.1}, "given one at a time"),
    ],
)
async def test_what_cannot_work_is_refused_before_anything_is_sent(
    there, simulator, rows, options, said
):
    with pytest.raises((bl.BatchLLMError, TypeError)) as caught:
        await bl.run(rows, **there, **options)

    assert said in str(caught.value)
    assert "--" not in str(caught.value)
    assert simulator.stats().calls == 0


async def test_an_argument_that_there_is_not_is_named(there):
    with pytest.raises(TypeError, match="no argument 'promt'; did you mean prompt\\?"):
        await bl.run(["x"], **there, promt="y")


async def test_bad_rows_can_be_failed_results_in_their_places(there):
    results = await bl.run(["a", 3, "c"], **there, bad_rows="fail")

    assert [one.success for one in results] == [True, False, True]
    assert results[1].error_code == "bad_request"
    with pytest.raises(bl.RowsFailedError, match=r"1 of 3 rows failed \(bad_request 1\)") as caught:
        results.raise_for_failures()
    assert caught.value.partial is results


async def test_a_cap_leaves_a_result_for_each_row_and_a_higher_one_goes_on(there, simulator):
    asked = {"name": "n", "settings": {"max_tokens": 30}, "concurrency": 2}

    capped = await bl.run(questions(40), **there, **asked, max_tokens_total=500)
    whole = await bl.run(questions(40), **there, **asked)

    assert len(capped) == 40
    assert 0 < capped.not_done < 40
    assert "stopped" in capped.summary()
    assert {one.error_code for one in capped.failures} == {"cancelled"}
    assert whole.succeeded == 40
    assert whole.reused == 40 - capped.not_done


@pytest.mark.parametrize("way", ["run", "stream"])
async def test_a_run_that_a_cap_stops_has_all_kept_results(there, simulator, way):
    asked = {**there, "name": "n"}
    await bl.run(questions(300), **asked)
    rows = [{"id": f"n{n}", "prompt": f"New {n}?"} for n in range(400)] + questions(300)

    if way == "run":
        results = list(await bl.run(rows, **asked, max_tokens_total=1))
    else:
        results = [one async for one in bl.stream(rows, **asked, max_tokens_total=1)]

    kept = [one for one in results if one.is_reused]
    assert [one.item_id for one in kept] == [f"q{n}" for n in range(300)]
    assert all(is_answered(one, f"Question {n}?") for n, one in enumerate(kept))
    assert {one.error_code for one in results if not one.success} == {"cancelled"}
    assert simulator.stats().calls == 300


async def test_a_stream_reads_no_further_than_there_is_room(there):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield f"Question {taken}?"

    seen = []
    results = bl.stream(endless(), **there, concurrency=4, buffer=4)
    async for result in results:
        seen.append(result.item_id)
        if len(seen) == 30:
            break
    await results.aclose()

    assert len(set(seen)) == 30
    assert taken < 30 + 60


async def test_a_stream_raises_what_its_rows_raise_after_those_before(there):
    async def rows():
        for n in range(7):
            yield f"Question {n}?"
        raise OSError("the queue is gone")

    seen = []
    with pytest.raises(OSError, match="the queue is gone"):
        await collect(bl.stream(rows(), **there), seen)

    assert [one.success for one in seen] == [True] * 7


async def test_a_stream_finds_a_bad_row_when_it_comes(there):
    seen = []
    with pytest.raises(bl.InputError, match="row 3 cannot be used"):
        await collect(bl.stream(iter(["a", "b", None, "d"]), **there), seen)

    failed = [one async for one in bl.stream(iter(["a", "b", None]), **there, bad_rows="fail")]

    assert sorted(one.item_id for one in seen) == ["row-1", "row-2"]
    assert sorted((one.item_id, one.success) for one in failed) == [
        ("row-1", True), ("row-2", True), ("row-3", False),
    ]  # fmt: skip


async def test_a_stream_with_a_ledger_gives_each_result_once_whatever_was_before(there, simulator):
    async for _ in bl.stream(iter(questions(10)), **there, name="s"):
        pass

    again = [one async for one in bl.stream(iter(questions(15)), **there, name="s")]

    assert sorted(one.item_id for one in again) == sorted(f"q{n}" for n in range(15))
    assert sum(one.is_reused for one in again) == 10
    assert simulator.stats().calls == 15


async def test_a_run_in_the_background_can_be_looked_at_and_ended(there, monkeypatch):
    with Simulator("fast?latency=0.2") as slow:
        there["base_url"] = slow.base_url
        handle = await bl.submit(questions(100), **there, concurrency=4, name="b")
        while handle.statistics().succeeded < 4:
            await asyncio.sleep(0.01)
        assert bl.attach("b").is_running
        handle.cancel()
        result = await handle.result()

    assert handle.is_done
    assert len(result) == 100
    assert 4 <= result.succeeded < 100
    assert result.stop_reason == "it was cancelled"
    assert slow.stats().calls == result.succeeded  # those in flight were waited for
    assert not bl.attach("b").is_running


async def test_a_cancelled_run_abandons_its_calls_and_keeps_what_was_finished(there):
    with Simulator("fast?latency=0.1") as slow:
        there["base_url"] = slow.base_url
        running = asyncio.create_task(bl.run(questions(100), **there, concurrency=4, name="c"))
        while slow.stats().calls < 12:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    counts = bl.attach("c").counts()
    assert 0 < counts[ItemState.DONE] <= slow.stats().calls
    assert counts[ItemState.RUNNING] == 0


async def test_failed_rows_are_retried_with_another_model_and_settings(there):
    with Simulator("fast?prefuse=0.5&seed=3") as moody:
        there["base_url"] = moody.base_url
        first = await bl.run(questions(20), **there, name="r")
    failed = {one.item_id for one in first.failures}
    assert 0 < len(failed) < 20
    run = bl.attach("r")

    assert run.retry(["timeout"]) == 0
    assert run.retry(["content_filter"], settings={"max_tokens": 77}, model="sim:fast") == len(
        failed
    )
    healed = await bl.run(questions(20), **there, name="r")
    kept = await bl.run(questions(20), **there, name="r")

    assert {one.item_id for one in healed if not one.is_reused} == failed
    assert {one.model for one in healed if one.item_id in failed} == {"fast"}
    assert {one.model for one in healed if one.item_id not in failed} == {"x"}
    assert kept.reused == 20
    noted = run.manifest()["retries"][-1]
    assert (noted["model"], noted["rows"]) == ("sim:fast", len(failed))
    assert noted["settings"]["max_tokens"] == 77
    with pytest.raises(bl.ConfigError, match="only must be a list of some of"):
        run.retry(["nonsense"])


async def test_a_run_over_a_file_is_resumed_by_its_name_alone(there, tmp_path, simulator):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in questions(30)))
    capped = await bl.run(
        path, **there, name="f", schema=["yes", "no"], settings={"max_tokens": 20},
        max_tokens_total=300, concurrency=2,
    )  # fmt: skip
    assert 0 < capped.not_done < 30

    done = await bl.attach("f").resume(concurrency=8)

    assert done.succeeded == 30
    assert {one.output for one in done} <= {"yes", "no"}
    assert done.reused == 30 - capped.not_done
    await bl.run(questions(2), **there, name="rows")
    with pytest.raises(bl.InputError, match="its rows are not here"):
        await bl.attach("rows").resume()


def test_a_run_is_resumed_and_waited_for_without_await(there, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in questions(30)))
    capped = bl.run_sync(
        path, **there, name="f", settings={"max_tokens": 20}, max_tokens_total=300, concurrency=2
    )
    assert 0 < capped.not_done < 30
    run = bl.attach("f")

    done = run.resume_sync(concurrency=8)

    assert (done.succeeded, done.reused) == (30, 30 - capped.not_done)
    assert run.wait_sync()[ItemState.DONE] == 30


def test_a_run_of_the_command_is_the_run_of_python(there, tmp_path, simulator):
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in questions(12)))
    command = ["run", "q.jsonl", "-m", MODEL, "--base-url", there["base_url"], "--name", "both"]
    done = subprocess.run(
        [sys.executable, "-m", "batch_llm", *command], cwd=tmp_path, check=False,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    found = bl.run_sync("q.jsonl", **there, name="both")

    assert found.reused == 12
    assert simulator.stats().calls == 12
    assert {one.item_id for one in bl.attach("both").results()} == {f"q{n}" for n in range(12)}
    assert is_answered(bl.attach("both").find("q3"), "Question 3?")
    assert bl.attach("both").find("nobody") is None


async def test_what_cannot_await_works_where_a_loop_runs_already(there):
    assert bl.run_sync(["Peru?"], **there).succeeded == 1
    assert len(list(bl.stream_sync((f"{n}?" for n in range(30)), **there))) == 30
    handle = bl.submit_sync(questions(30), **there)
    assert handle.result().succeeded == 30
    assert handle.statistics().succeeded == 30
    assert handle.result() is handle.result()


def test_no_thread_is_left_behind(there):
    before = set(threading.enumerate())

    bl.run_sync(["a"], **there)
    for _ in bl.stream_sync(iter(["a", "b", "c"]), **there):
        break
    with pytest.raises(bl.InputError):
        bl.submit_sync([], **there)

    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to one process")
def test_ctrl_c_waits_for_calls_in_flight_saves_them_and_interrupts(tmp_path):
    script = """
        import batch_llm as bl
        rows = [{"id": str(n), "prompt": f"Question {n}?"} for n in range(200)]
        try:
            bl.run_sync(rows, model="sim:fast?latency=0.3", concurrency=5, name="i")
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    ledger = tmp_path / ".batch-llm/runs/i.sqlite"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if ledger.exists() and done_in(ledger) >= 5:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)

    assert out == "interrupted\n", error
    assert "Traceback" not in error
    assert 5 <= done_in(ledger) < 200
    assert bl.attach(ledger).counts()[ItemState.RUNNING] == 0


def done_in(ledger):
    try:
        return bl.attach(ledger).counts()[ItemState.DONE]
    except bl.LedgerError:  # its schema is not there yet
        return 0


def test_results_are_written_with_the_columns_of_the_rows(there, tmp_path):
    rows = [{"id": f"q{n}", "prompt": "x", "stars": n} for n in range(4)]
    results = bl.run_sync(rows, **there)

    for name in ("o.jsonl", "o.csv", "o.parquet"):
        results.write(tmp_path / name)

    written = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [(row["id"], row["stars"], row["status"]) for row in written] == [
        (f"q{n}", n, "ok") for n in range(4)
    ]
    with pytest.raises(bl.OutputExistsError, match=r"exists\. Name another, .* overwrite=True\."):
        results.write(tmp_path / "o.csv")
    results.write(tmp_path / "o.csv", overwrite=True)
    again = bl.run_sync(tmp_path / "o.parquet", **there)
    assert [one.context["stars"] for one in again] == [0, 1, 2, 3]
    assert not (tmp_path / "o.parquet.rows.jsonl").exists()


@pytest.mark.parametrize("name", [None, "halves"])
def test_a_row_with_half_a_character_fails_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["Good?", "half \ud800 of one", "Good, too?"]

    results = bl.run_sync(rows, model="sim:fast", name=name)

    assert [result.success for result in results] == [True, False, True]
    assert results[1].error_code == "bad_request"
    assert results[1].attempts == 1
    assert r"'\ud800'" in results[1].error


def test_a_run_works_with_a_counter_of_ones_own():
    seen = []

    def count(text):
        seen.append(text)
        return len(text)

    results = bl.run_sync(["one", "two"], model="sim:fast", count_tokens=count)

    assert results.statistics.succeeded == 2
    assert {"one", "two"} <= set(seen)
