"""The real command in a real process, against the real simulator."""

from __future__ import annotations

import http.server
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator
from command import ENVIRON, rows


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(f'{{"question": "Question {n}?"}}\n' for n in range(60)))
    return path


def test_the_demo_recovers_from_every_fault(cli, tmp_path):
    done = cli("demo", "--prompts", "120")

    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "demo.results.jsonl")) == 120
    assert "succeeded       120   100.0 %" in done.stderr
    assert "retried" in done.stderr
    assert done.stdout == ""
    assert "\x1b" not in done.stderr


def test_each_answer_is_on_its_own_row_whatever_fails(cli, tmp_path, questions):
    done = cli("run", "q.jsonl", "--prompt", "{{ question }}", "-m", "sim:flaky", "-o", "o.jsonl")

    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "o.jsonl")
    assert {row["id"] for row in found} == {f"row-{n}" for n in range(1, 61)}
    for row in found:
        assert answer_digest(row["question"]) in row["output"]


def test_a_call_may_take_as_long_as_is_said(cli, tmp_path, questions):
    model = "sim:fast?ptimeout=1&recover=1&hang=600"

    done = cli("run", "q.jsonl", "--prompt", "{{ question }}", "-m", model, "--timeout", "0.5s",
               "--retries", "9", "--json", "-o", "o.jsonl")  # fmt: skip

    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["retries"]["timeout"] >= 60


def test_slow_rows_are_sent_a_second_time_when_asked_for(cli, tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"Question {n}?\n" for n in range(300)))
    model = "sim:fast?ptimeout=0.01&recover=1&latency=0.2&hang=600&seed=1"

    done = cli("run", "a.txt", "-m", model, "--hedge", "--json", "-o", "o.jsonl")

    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    assert (end["succeeded"], end["retries"]) == (300, {})  # none ran out of time
    assert 1 <= end["hedges_won"] <= end["hedged"] <= 15
    assert f"hedged            {end['hedged']} " in done.stderr


def test_choices_on_a_table_without_a_header(cli, tmp_path):
    (tmp_path / "s.tsv").write_text('ham\tsay "hi\nspam\tFREE "prize"\n')

    done = cli("run", "s.tsv", "--prompt", "{{ 2 }}", "--choices", "ham,spam", "--order", "input")

    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "s.results.jsonl")
    assert [row["1"] for row in found] == ["ham", "spam"]
    assert {row["output"] for row in found} <= {"ham", "spam"}


def test_batch_lines_come_back_as_batch_lines(cli, tmp_path):
    body = {"model": "x", "messages": [{"role": "user", "content": "<<echo>>hello"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "b.jsonl").write_text(json.dumps(line))

    done = cli("run", "b.jsonl")

    assert done.returncode == 0, done.stderr
    (found,) = rows(tmp_path / "b.results.jsonl")
    assert found["custom_id"] == "a"
    body = found["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "hello"
    assert body["id"].startswith("chatcmpl-")  # the provider's own answer, whole


def test_failed_rows_can_be_run_again_as_they_are(cli, tmp_path, questions):
    first = cli("run", "q.jsonl", "--prompt", "{{ question }}", "-m", "sim:fast?prefuse=0.3")
    assert first.returncode == 1
    failed = rows(tmp_path / "q.failed.jsonl")

    again = cli("run", "q.failed.jsonl", "--prompt", "{{ question }}")

    assert again.returncode == 0, again.stderr
    good, healed = rows(tmp_path / "q.results.jsonl"), rows(tmp_path / "q.failed.results.jsonl")
    assert 0 < len(failed) < 60
    assert len(good) + len(healed) == 60
    assert "content_filter" in first.stderr


def test_the_command_that_is_said_to_be_next_runs_the_failed_rows_under_their_ids(cli, tmp_path):
    (tmp_path / "s.tsv").write_text("".join(f"ham\tText {n}\n" for n in range(1, 41)))
    asked = ["--prompt", "{{ 2 }}", "--limit", "40", "--set", "seed=1"]
    model = ["-m", "sim:fast?prefuse=0.3", "--no-store"]
    first = cli("run", "s.tsv", *asked, "-o", "o.jsonl", *model)
    assert first.returncode == 1, first.stderr
    (line,) = [line for line in first.stderr.splitlines() if line.startswith("  next")]
    words = shlex.split(line.partition("next")[2])
    assert words[:3] == ["batch-llm", "run", "o.failed.tsv"]

    words[words.index("-m") + 1] = "sim:fast"
    again = cli(*words[1:])

    assert again.returncode == 0, again.stderr
    found = rows(tmp_path / "o.jsonl") + rows(tmp_path / "o.failed.results.jsonl")
    assert sorted(row["id"] for row in found) == sorted(f"row-{n}" for n in range(1, 41))
    assert all(row["id"] == f"row-{row['2'].removeprefix('Text ')}" for row in found)


def test_the_next_command_touches_no_earlier_result_whatever_the_settings_say(cli, tmp_path):
    (tmp_path / "batch-llm.toml").write_text('output = "out.jsonl"\noverwrite = true\n')
    (tmp_path / "a.txt").write_text("".join(f"Question {n}\n" for n in range(30)))
    model = ["-m", "sim:fast?prefuse=0.5", "--retries", "0", "--no-store"]
    first = cli("run", "a.txt", "--format", "txt", *model)
    assert first.returncode == 1, first.stderr
    good = (tmp_path / "out.jsonl").read_bytes()
    (line,) = [line for line in first.stderr.splitlines() if line.startswith("  next")]
    words = shlex.split(line.partition("next")[2])
    words[words.index("-m") + 1] = "sim:fast"

    again = cli(*words[1:])

    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == good
    healed = rows(tmp_path / words[words.index("-o") + 1])
    assert len(healed) + len(good.splitlines()) == 30
    assert all(row["prompt"].startswith("Question") for row in healed)


def test_an_id_that_stands_in_another_column_too_is_kept(cli, tmp_path):
    lines = ['{"q": "row-2", "w": "a"}', '{"q": "row-1", "w": "row-2"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))

    cli("run", "a.jsonl", "--prompt", "{{ q }}", "-m", "sim:fast?prefuse=1")

    assert {row["id"] for row in rows(tmp_path / "a.failed.jsonl")} == {"row-1", "row-2"}


def against(simulator, folder, *arguments):
    """Start the command over the questions, asking a simulator."""
    return subprocess.Popen(
        [sys.executable, "-m", "batch_llm", "run", "q.jsonl", "--prompt", "{{ question }}",
         "-m", "openai-chat:x", "--base-url", simulator.base_url, *arguments],
        cwd=folder, env=ENVIRON | {"OPENAI_API_KEY": "any"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_a_signal_ends_the_attempts_of_rows_that_keep_failing(tmp_path, questions):
    with Simulator("fast?p500=1&latency=0.2") as simulator:
        process = against(simulator, tmp_path, "-c", "20", "--retries", "1000")
        try:
            wait_for(lambda: simulator.stats().calls > 60)  # some are tried again
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 130, said


def test_settings_come_from_the_command_line_then_the_environment_then_a_file(cli, tmp_path):
    (tmp_path / "a.txt").write_text("<<echo>>hi")
    (tmp_path / "batch-llm.toml").write_text('output = "t.jsonl"\nretries = 2\nquiet = true\n')
    (tmp_path / "pyproject.toml").write_text('[tool.batch-llm]\nfailed = "p.jsonl"\n')

    assert cli("run", "a.txt").stderr == ""
    cli("run", "a.txt", env={"BATCH_LLM_OUTPUT": "e.jsonl"})
    cli("run", "a.txt", "-o", "c.jsonl", env={"BATCH_LLM_OUTPUT": "e2.jsonl"})

    assert {path.name for path in tmp_path.glob("?.jsonl")} == {"t.jsonl", "e.jsonl", "c.jsonl"}


def test_a_misspelt_setting_in_a_file_is_named_with_its_place(cli, tmp_path):
    (tmp_path / "a.txt").write_text("hi")
    (tmp_path / "batch-llm.toml").write_text('mdel = "sim:fast"\n')

    done = cli("run", "a.txt")

    assert done.returncode == 2
    assert done.stdout == ""
    said = "".join(done.stderr.replace("│", " ").split())
    assert "batch-llm.toml" in said
    assert "Didyoumean--model?" in said


@pytest.mark.parametrize(
    ("toml", "env", "said"),
    [
        ('[run]\nmodel = "sim:fast"\n', {}, "has a table [run]"),
        ("model = \n", {}, "batch-llm.toml cannot be read"),
        ("", {"BATCH_LLM_CONCURENCY": "7"}, "did you mean BATCH_LLM_CONCURRENCY?"),
    ],
)
def test_settings_that_nothing_reads_are_refused(cli, tmp_path, toml, env, said):
    (tmp_path / "a.txt").write_text("hi")
    (tmp_path / "batch-llm.toml").write_text(toml)

    done = cli("run", "a.txt", env=env)

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_rows_are_written_in_the_inputs_order_when_asked(cli, tmp_path, questions):
    done = cli(
        "run", "q.jsonl", "--prompt", "{{ question }}", "-m", "sim:flaky", "--order", "input"
    )

    assert done.returncode == 0, done.stderr
    found = [row["id"] for row in rows(tmp_path / "q.results.jsonl")]
    assert found == [f"row-{n}" for n in range(1, 61)]


def test_progress_as_json_is_records_only(cli, questions):
    done = cli("run", "q.jsonl", "--prompt", "{{ question }}", "--progress", "json")

    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert records[-1]["event"] == "done"
    assert records[-1]["succeeded"] == 60


@pytest.mark.parametrize("told", [[], ["--rpm", "6000"]])
def test_limits_are_learned_from_headers_with_hardly_a_refusal(cli, tmp_path, told):
    (tmp_path / "a.txt").write_text("".join(f"Question {n}\n" for n in range(600)))

    def refused():
        done = cli(
            "run", "a.txt", "-c", "auto", *told, "--json", "--overwrite",
            "-m", "sim:fast?rpm=6000&burst=1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        end = json.loads(done.stdout.splitlines()[-1])
        assert end["succeeded"] == 600
        return end["retries"].get("rate_limited", 0)

    # A process that stands still for a moment is late with its calls, and sends them together: the
    # bucket has room for a second's, and three times in a row is no moment. Without headers some
    # ninety are refused.
    assert any(refused() <= 12 for _ in range(3))


def test_a_limit_that_is_told_is_never_passed(cli, tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"Question {n}\n" for n in range(62)))

    done = cli("run", "a.txt", "--rpm", "60", "--json", "-m", "sim:fast?rpm=60&headers=off")

    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["succeeded"] == 62
    assert end["retries"] == {}  # whoever does not know the limit is refused twice at least


def test_every_told_limit_reaches_admission(cli, tmp_path):
    (tmp_path / "a.txt").write_text("Question\n")

    done = cli(
        "run", "a.txt", "--json",
        "--rpm", "1k", "--tpm", "2M", "--itpm", "3k", "--otpm", "4k", "--rpd", "5k",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])["limits"]
    assert {one["source"] for one in told} == {"told"}
    assert {one["dimension"]: one["limit"] for one in told} == {
        "requests": 1e3,
        "tokens": 2e6,
        "input_tokens": 3e3,
        "output_tokens": 4e3,
        "requests_per_day": 5e3,
    }


def test_a_run_is_drawn_where_that_is_asked_for(cli, tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"Question {n}\n" for n in range(60)))

    done = cli("run", "a.txt", "--plot", "run.svg", "-m", "sim:fast?rpm=600&p503=0.2&recover=1")

    assert done.returncode == 0, done.stderr
    assert re.search(r"^  plot +run\.svg$", done.stderr, re.MULTILINE)
    drawn = (tmp_path / "run.svg").read_text()
    assert "limit (header)" in drawn
    assert "failed otherwise</text>" in drawn

    (tmp_path / "run.svg").unlink()  # it is of one session, and not of the run
    (ledger,) = (tmp_path / ".batch-llm/runs").glob("*.sqlite")
    assert cli("resume", ledger.stem).returncode == 0
    assert not (tmp_path / "run.svg").exists()


def test_standard_input_to_standard_output(cli):
    done = cli("run", "-", "-o", "-", "-q", stdin='{"prompt": "<<echo>>a"}\n"<<echo>>b"\n')

    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["output"] for line in done.stdout.splitlines()) == ["a", "b"]


def test_json_prints_two_records_and_nothing_else(cli, questions):
    done = cli("run", "q.jsonl", "--prompt", "{{ question }}", "--json", "-q")

    launch, end = map(json.loads, done.stdout.splitlines())
    assert (launch["event"], launch["rows"]) == ("launch", 60)
    assert (end["event"], end["succeeded"], end["exit_code"]) == ("done", 60, 0)


BAD = '{"custom_id":"a","body":{"messages":[{"role":"user","content":"x"}]}}\n{"custom_id" 1}\n'
BATCH = BAD.splitlines()[0]
CHAT = '{"messages":[{"role":"user","content":"x"}]}\n'


@pytest.mark.parametrize(
    ("files", "arguments", "said"),
    [
        ({"b.jsonl": BAD}, ["b.jsonl"], "b.jsonl:2:14  invalid_json_line"),
        (
            {"a.csv": "id,text\n1,x\n1,y\n"},
            ["a.csv", "--prompt", "{{ text }}"],
            "already on line 2",
        ),
        (
            {"a.csv": "id,text\n1,x\n"},
            ["a.csv", "--prompt", "{{ txet }}"],
            "did you mean {{ text }}",
        ),
        ({"a.csv": "id,text\n1,x\n"}, ["a.csv"], "needs a prompt"),
        ({"a.txt": "hi"}, ["a.txt", "-m", "opnai:x"], 'No provider is called "opnai"'),
        ({"a.txt": "hi"}, ["a.txt", "-m", "openai-chat:x"], "export OPENAI_API_KEY="),
        ({"a.txt": "hi"}, ["a.txt", "-m", "sim:fsat"], "did you mean fast"),
        ({"a.txt": "hi"}, ["a.txt", "--timeout", "soon"], "--timeout must be a duration"),
        (
            {"a.txt": "hi"},
            ["a.txt", "--concurrency", "0"],
            "--concurrency must be auto, knee, or a whole number",
        ),
        ({"a.txt": "hi"}, ["a.txt", "-o", "a.txt"], "is used twice"),
        (
            {"a.txt": "hi"},
            ["a.txt", "-o", "/"],
            "/ is a folder; name a file, such as /a.results.jsonl",
        ),
        ({"a.txt": "hi"}, ["a.txt", "-o", "."], ". is a folder; name a file"),
        (
            {"a.txt": "hi"},
            ["a.txt", "-o", "b.parquet", "--failed", "b.parquet.rows.jsonl"],
            "b.parquet.rows.jsonl is used twice",
        ),
        ({"a.txt": "hi", "o.jsonl": ""}, ["a.txt", "-o", "o.jsonl"], "o.jsonl exists"),
        ({"a.txt": ""}, ["a.txt"], "is empty"),
        ({"a.txt": "hi"}, ["a.txt", "--limit", "0"], "--limit must be >= 1"),
        ({"p.jsonl": '{"prompt" "a"}\n'}, ["p.jsonl"], "p.jsonl:1:11  invalid_json_line"),
        ({"b.jsonl": BATCH}, ["b.jsonl", "--choices", "a,b"], "--choices cannot change"),
        ({"b.jsonl": BATCH}, ["b.jsonl", "-s", "temperature=0"], "--set cannot change"),
        ({"c.jsonl": CHAT}, ["c.jsonl", "--system", "x"], "--system cannot change"),
        ({"a.txt": "hi"}, ["a.txt", "-s", "temprature=0"], "did you mean temperature"),
        ({"a.txt": "hi"}, ["a.txt", "-s", "n=3"], "one whole answer"),
        ({"a.txt": "hi"}, ["a.txt", "--base-url", "http://127.0.0.1:9/v1"], "--model must be"),
        ({"a.txt": "hi"}, ["a.txt", "-o", "a.xlsx"], "written as .jsonl"),
        ({"a.txt": "hi"}, ["a.txt", "--prompt", " "], "not empty"),
        ({"a.txt": "hi"}, ["a.txt", "-m", "openai/x"], "Did you mean openai:x?"),
        ({"a.txt": "hi"}, ["a.txt", "-m", "sim:fast?foo=1"], "one of latency"),
        ({"a.txt": "hi"}, ["a.txt", "--schema", "no.json"], "no.json cannot be read: No such"),
        ({"a.txt": "hi", "s.json": "{"}, ["a.txt", "--schema", "s.json"], "s.json:1:2 is no JSON"),
        ({"a.txt": "hi", "a.failed.jsonl": ""}, ["a.txt"], "Name another with --failed"),
        ({"b.jsonl": BATCH.replace("}]}", '}],"stream":true}')}, ["b.jsonl"], "`stream`"),
        (
            {"b.jsonl": BATCH.replace('"body"', '"url":"/v1/embeddings","body"')},
            ["b.jsonl"],
            "sends /v1/chat/completions only",
        ),
        ({"a.txt": "hi"}, ["a.txt", "--schema", ":x"], "--schema must be importable"),
        ({"a.txt": "hi", "bm.py": "1/0"}, ["a.txt", "--schema", "bm:x"], "ZeroDivisionError"),
        ({"a.txt": "hi", "s.json": "[1]"}, ["a.txt", "--schema", "s.json"], "must hold an object"),
        ({"a.txt": "hi"}, ["a.txt", "-s", "temperature=true"], "temperature must be a number"),
        ({"a.txt": "hi"}, ["a.txt", "-s", "top_p=1e999"], "top_p must be a number"),
        ({"a.txt": "hi"}, ["a.txt", "--columns", "a,b"], "only tables have columns"),
        (
            {"a.csv": "1,2"},
            ["a.csv", "--columns", "a,a", "--prompt", "{{ a }}"],
            "names that differ",
        ),
        ({"a.txt": "hi", ".env": b"K=caf\xe9"}, ["a.txt"], ".env is not UTF-8"),
        ({}, ["none.txt"], "none.txt is not there"),
        ({"a.txt": "hi"}, ["a.txt", "--nope"], "--nope"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(cli, tmp_path, files, arguments, said):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    done = cli("run", *arguments)

    assert done.returncode == 2, done.stderr
    assert said in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.results.jsonl"))


def test_rows_that_a_run_left_beside_its_parquet_file_can_be_read_and_are_not_replaced(
    cli, tmp_path
):
    rows = tmp_path / "o.parquet.rows.jsonl"
    rows.write_text('{"prompt": "hi"}\n')
    (tmp_path / "a.txt").write_text("hi\n")

    as_input = cli("run", rows.name, "-o", "o.parquet", "--overwrite")
    unknown = cli("run", "a.txt", "-o", "o.parquet")

    assert (as_input.returncode, unknown.returncode) == (2, 2)
    assert f"{rows.name} is used twice" in as_input.stderr
    assert f"{rows.name} exists" in unknown.stderr
    assert rows.read_text() == '{"prompt": "hi"}\n'


def test_a_second_name_of_the_input_is_not_written_over(cli, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "hi"}\n')
    (tmp_path / "b.jsonl").hardlink_to(tmp_path / "a.jsonl")

    done = cli("run", "a.jsonl", "-o", "b.jsonl", "--overwrite")

    assert done.returncode == 2
    assert "is used twice" in done.stderr
    assert (tmp_path / "a.jsonl").read_text() == '{"prompt": "hi"}\n'


def test_nothing_is_removed_before_the_run_can_start(cli, tmp_path):
    (tmp_path / "a.txt").write_text("hi")
    (tmp_path / "old.jsonl").write_text("precious")
    (tmp_path / "folder").mkdir()

    done = cli("run", "a.txt", "-o", "folder", "--failed", "old.jsonl", "--overwrite")

    assert done.returncode == 2
    assert (tmp_path / "old.jsonl").read_text() == "precious"


@pytest.mark.parametrize("flag", ["-o", "--failed"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_folder_is_no_place_for_rows_and_the_way_out_is_said(cli, tmp_path, flag, more):
    (tmp_path / "a.txt").write_text("hi")
    (tmp_path / "folder").mkdir()

    done = cli("run", "a.txt", flag, "folder/", *more)

    name = "a.results.jsonl" if flag == "-o" else "a.failed.jsonl"
    assert done.returncode == 2
    assert done.stderr == f"error: folder/ is a folder; name a file, such as folder/{name}\n"


def test_results_may_be_thrown_away_into_a_device(cli, tmp_path):
    (tmp_path / "a.txt").write_text("hi")

    done = cli("run", "a.txt", "-o", "/dev/null")
    again = cli("run", "a.txt", "-o", "/dev/null")

    assert (done.returncode, again.returncode) == (0, 0), done.stderr + again.stderr
    assert "1 reused, 0 to do" in again.stderr
    assert Path("/dev/null").is_char_device()


def test_failed_rows_may_go_to_a_device(cli, tmp_path):
    (tmp_path / "a.txt").write_text("hi")

    done = cli("run", "a.txt", "-m", "sim:fast?prefuse=1", "--failed", "/dev/null")

    assert done.returncode == 1, done.stderr
    assert Path("/dev/null").is_char_device()


def test_an_input_that_shrinks_in_mid_run_is_no_success(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(f'{{"prompt": "Question {n}?"}}\n' for n in range(3000)))
    process = subprocess.Popen(
        [sys.executable, "-m", "batch_llm", "run", "q.jsonl", "-c", "5",
         "-m", "sim:fast?latency=0.1"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    output = tmp_path / "q.results.jsonl"
    wait_for(lambda: output.exists() and output.stat().st_size)
    path.write_text("")
    _, said = process.communicate(timeout=60)

    assert process.returncode == 1, said
    assert "not done" in said
    assert "changed while it was read" in said


def test_a_row_that_makes_no_prompt_holds_up_no_order(cli, tmp_path):
    lines = [f'{{"id": {n}, "{"txt" if n == 2 else "text"}": "a"}}\n' for n in range(1, 30)]
    (tmp_path / "o.jsonl").write_text("".join(lines))

    done = cli(
        "run", "o.jsonl", "--prompt", "{{ text }}", "--bad-rows", "skip", "--order", "input",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = [row["id"] for row in rows(tmp_path / "o.results.jsonl")]
    assert found == [n for n in range(1, 30) if n != 2]


def test_fatal_failures_end_the_run_only_when_nothing_else_comes_in_between(cli, questions):
    done = cli(
        "run", "q.jsonl", "--prompt", "{{ question }}", "-c", "1", "-m", "sim:fast?pquota=0.6",
        "--json",
    )  # fmt: skip

    assert done.returncode == 1, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["failures"]["quota"] > 20
    assert end["not_done"] == 0


def test_bad_rows_can_be_recorded_and_the_rest_sent(cli, tmp_path):
    (tmp_path / "b.jsonl").write_text(BAD)

    done = cli("run", "b.jsonl", "--bad-rows", "fail")

    assert done.returncode == 1
    assert len(rows(tmp_path / "b.results.jsonl")) == 1
    assert rows(tmp_path / "b.failed.jsonl")[0]["raw"] == '{"custom_id" 1}'
    assert "bad rows          1" in done.stderr

    again = cli("check", "b.failed.jsonl", "--prompt", "{{ raw }}", "-o", "x.jsonl")

    assert again.returncode == 2
    assert "an earlier run could not read this record" in again.stderr


def test_bad_rows_can_be_left_out_and_that_is_said(cli, tmp_path):
    (tmp_path / "b.jsonl").write_text(BAD)

    looked = cli("check", "b.jsonl", "--bad-rows", "skip")
    done = cli("run", "b.jsonl", "--bad-rows", "skip")

    assert "1 row (openai-batch) beside 1 bad line, sim:fast; ready" in looked.stdout
    assert done.returncode == 0, done.stderr
    assert "left out          1            bad rows; neither sent nor written" in done.stderr
    assert not (tmp_path / "b.failed.jsonl").exists()


def test_a_provider_that_refuses_everything_ends_the_run(cli, tmp_path, questions):
    with Simulator("fast") as simulator:
        done = cli(
            "run", "q.jsonl", "--prompt", "{{ question }}", "-m", "openai-chat:x", "-c", "4",
            "--base-url", simulator.base_url, "-q", env={"OPENAI_API_KEY": "invalid"},
        )  # fmt: skip
        calls = simulator.stats().calls

    assert done.returncode == 4
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: openai-chat:x refuses everything (auth, ")
    assert f"Check OPENAI_API_KEY: it is not accepted at {simulator.base_url}" in line
    assert calls < 60


def test_too_many_failures_end_the_run(cli, questions):
    done = cli(
        "run", "q.jsonl", "--prompt", "{{ question }}", "-c", "2", "--max-failed", "5%",
        "-m", "sim:fast?prefuse=1",
    )  # fmt: skip

    assert done.returncode == 3
    assert "--max-failed" in done.stderr


@pytest.mark.parametrize(
    ("signals", "code"), [(["INT"], 130), (["TERM"], 143), (["INT", "INT"], 130)]
)
def test_a_signal_ends_the_run_with_valid_files(tmp_path, questions, signals, code):
    command = ["run", "q.jsonl", "--prompt", "{{ question }}", "-c", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "batch_llm", *command, "-m", "sim:fast?latency=0.6"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    output = tmp_path / "q.results.jsonl"
    deadline = time.monotonic() + 30
    while not (output.exists() and output.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    for name in signals:
        process.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.1)
    _, said = process.communicate(timeout=30)

    assert process.returncode == code, said
    found = rows(output)
    assert 5 <= len(found) < 60
    if len(signals) == 1:  # what was in flight came to its end
        assert len(found) >= int(re.search(r"waiting for (\d+) call", said)[1])
    assert "Stopping: waiting for" in said
    assert f"not done         {60 - len(found)}" in said


def test_a_reader_that_leaves_ends_the_run_quietly(tmp_path, questions):
    process = subprocess.Popen(
        [sys.executable, "-m", "batch_llm", "run", "q.jsonl", "--prompt", "{{ question }}",
         "-o", "-", "--progress", "none", "-c", "1", "-m", "sim:fast?latency=0.05"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()

    said = process.stderr.read()
    process.stderr.close()

    assert process.wait(30) == 0
    assert b"Traceback" not in said
    assert b"Stopped after" in said


def test_records_that_nobody_reads_do_not_end_the_run(tmp_path, questions):
    process = subprocess.Popen(
        [sys.executable, "-m", "batch_llm", "run", "q.jsonl", "--prompt", "{{ question }}",
         "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()

    assert process.wait(30) == 0, said
    assert len(rows(tmp_path / "q.results.jsonl")) == 60


def test_a_choice_over_chat_rows_is_the_bare_name(cli, tmp_path):
    (tmp_path / "c.jsonl").write_text(CHAT)

    done = cli("run", "c.jsonl", "--choices", "ham,spam")

    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "c.results.jsonl")[0]["output"] in {"ham", "spam"}


class _Hostile(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"error":{"message":"\\u001b]0;pwned\\u0007 [/x] \\u202e","code":"\\u001b[31m"}}'
        self.send_response(400)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_no_escape_of_a_provider_reaches_the_terminal(cli, tmp_path):
    (tmp_path / "a.txt").write_text("hi")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hostile) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = cli("run", "a.txt", "-m", "openai-chat:x", "--base-url", url, "-v")
        server.shutdown()

    assert done.returncode == 1
    assert "Attempt 1" in done.stderr
    assert not set(done.stderr) & {"\x1b", "\x07", "\u202e"}


def test_no_escape_of_an_argument_reaches_the_terminal(cli):
    for arguments in (["\x1b[31m.txt"], ["\x1b[31m.txt", "-m", "\x1b]0;x:y"]):
        done = cli("run", *arguments)
        assert done.returncode == 2
        assert "\x1b" not in done.stderr


def test_no_escape_of_a_files_name_reaches_the_terminal(cli, tmp_path):
    (tmp_path / "t\x1b]0;pwn\x07.jsonl").write_text('{"prompt": "a"}\n')

    for command in ("run", "check"):
        done = cli(command, "t\x1b]0;pwn\x07.jsonl", "-m", "sim:fast?prefuse=1")
        assert done.returncode == (1 if command == "run" else 0)
        assert not set(done.stdout + done.stderr) & {"\x1b", "\x07"}


def test_a_signal_in_a_cooldown_does_not_wait_for_its_end(tmp_path, questions):
    with Simulator("fast?rpm=0.1&burst=600&headers=off") as simulator:  # one in ten minutes
        process = against(simulator, tmp_path, "-c", "4")
        try:
            wait_for(lambda: simulator.stats().refused)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 130, said
    assert "not done         59" in said


def test_help_check_models_and_doctor(cli, tmp_path, questions):
    assert "run" in cli("--help").stdout
    checked = cli("check", "q.jsonl", "--prompt", "{{ question }}", "--json")
    assert json.loads(checked.stdout)["rows"] == 60
    listed = cli("models", "--json", env={"OPENAI_API_KEY": "secret-key"}).stdout
    assert json.loads(listed)["models"][0]["has_key"] is True
    examined = cli("doctor", env={"OPENAI_API_KEY": "secret-key"})
    assert examined.returncode == 0
    assert "OPENAI_API_KEY is set" in examined.stdout
    assert "secret-key" not in listed + examined.stdout


def test_a_key_in_dotenv_is_read_and_never_shown(cli, tmp_path):
    (tmp_path / ".env").write_text("OPENAI_API_KEY=invalid\n")
    (tmp_path / "a.txt").write_text("hi")
    with Simulator("fast") as simulator:
        done = cli("run", "a.txt", "-m", "openai-chat:x", "--base-url", simulator.base_url)

    assert done.returncode == 4
    assert "auth 1" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_and_has_its_own_exit_code(cli, questions):
    done = cli("run", "q.jsonl", "--prompt", "{{ question }}", "-o", "/dev/full", "--overwrite")

    assert done.returncode == 74, done.stderr
    assert "could not be written to /dev/full: No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_run_does_not_end_because_nobody_can_hear_it(tmp_path, questions):
    command = [sys.executable, "-m", "batch_llm", "run", questions.name]
    command += ["--prompt", "{{ question }}"]

    def run(*more, **streams):
        return subprocess.run(
            [*command, *more], cwd=tmp_path, stderr=subprocess.PIPE, check=False, **streams
        )

    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([*command, "-o", "out.jsonl"], cwd=tmp_path, stderr=full, check=False)
        refused = subprocess.run([*command, "--rpm", "x"], cwd=tmp_path, stderr=full, check=False)
        mute = run("-o", "two.jsonl", "--json", stdout=full, text=True)

    assert (ran.returncode, refused.returncode) == (0, 2)
    assert len(rows(tmp_path / "out.jsonl")) == 60
    assert mute.returncode == 74, mute.stderr
    assert "standard output: No space left" in mute.stderr


def test_rows_are_not_mixed_with_words_where_standard_error_is_closed(tmp_path, questions):
    command = (
        f"{shlex.quote(sys.executable)} -m batch_llm run q.jsonl --prompt '{{{{ question }}}}'"
    )

    ran = subprocess.run(
        f"{command} -o - 2>&-", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert len([json.loads(line) for line in ran.stdout.splitlines()]) == 60


def test_a_run_that_was_killed_as_it_made_its_ledger_goes_on(cli, tmp_path, questions):
    command = ["run", questions.name, "--prompt", "{{ question }}"]
    (tmp_path / ".batch-llm" / "runs").mkdir(parents=True)
    (tmp_path / ".batch-llm" / "runs" / "q.results.jsonl.sqlite").touch()

    listed, ran = cli("ls"), cli(*command)

    assert listed.returncode == 0, listed.stderr
    assert ran.returncode == 0, ran.stderr
    assert len(rows(tmp_path / "q.results.jsonl")) == 60


@pytest.mark.parametrize("flag", ["-o", "--failed", "--store"])
def test_a_link_that_leads_back_to_itself_is_named(cli, tmp_path, flag):
    (tmp_path / "q.jsonl").write_text('{"id": "a", "prompt": "b"}\n')
    (tmp_path / "circle.jsonl").symlink_to(tmp_path / "circle.jsonl")

    done = cli("run", "q.jsonl", "-m", "sim:fast", flag, "circle.jsonl")

    assert done.returncode == 2
    assert "circle.jsonl is a link that leads back to itself" in done.stderr


def test_a_quiet_run_says_no_more_than_that_rows_failed(cli, tmp_path):
    (tmp_path / "q.txt").write_text("fine\n<<p500>>a\n<<p500>>b\n")

    failed = cli("run", "q.txt", "--quiet", "--retries", "0")
    (tmp_path / "q.txt").write_text("fine\n")
    fine = cli("run", "q.txt", "--quiet", "--overwrite")

    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "error: 2 rows failed, see q.failed.jsonl\n"
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "", "")


def test_a_port_that_is_in_use_is_told_as_such(cli):
    with Simulator("fast") as simulator:
        port = simulator.base_url.rpartition(":")[2].partition("/")[0]
        done = cli("sim", "--port", port)

    assert done.returncode == 2
    assert f"error: port {port} on 127.0.0.1 cannot be used: " in done.stderr
    assert "Errno" not in done.stderr
