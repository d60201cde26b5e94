"""Looks at runs that were made: ``ls``, ``show``, ``export``, ``verify``. Nothing here sends."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.cli.exit_codes import ExitCode
from batch_llm.cli.job import check_paths
from batch_llm.cli.ledgers import all_ledgers, find_ledger, name_of
from batch_llm.cli.plan import Plan, chunks, look_up
from batch_llm.core.text import safe
from batch_llm.exceptions import BatchLLMError, InputError
from batch_llm.inputs import Row
from batch_llm.outputs import Finished, ResultWriter
from batch_llm.stores.base import ItemState, Record
from batch_llm.stores.sqlite import SqliteLedger

if TYPE_CHECKING:
    from batch_llm.cli.job import Job

_SETTLED = (ItemState.DONE, ItemState.FAILED)
_MOST_PROBLEMS = 10


def finished(record: Record, row: Row) -> Finished:
    """Return a row with what a ledger knows of it."""
    return Finished(
        row=row,
        output=record.output,
        error=record.error,
        error_code=record.error_code,
        model=record.model,
        input_tokens=record.usage.get("input_tokens", 0),
        output_tokens=record.usage.get("output_tokens", 0),
        attempts=record.attempts,
        seconds=record.seconds,
        body=record.response_body,
    )


def list_runs(*, as_json: bool) -> int:
    """Print a line for each run of this folder."""
    rows = []
    for path in all_ledgers():
        row: dict[str, Any] = {"run": name_of(path)}
        try:
            with SqliteLedger(path, read_only=True) as ledger:
                manifest = ledger.manifest()
                row |= {str(state): count for state, count in ledger.counts().items()}
                row["model"] = (manifest.get("settings") or {}).get("model")
        except BatchLLMError as error:
            row["error"] = str(error)
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        rows.append(row | {"changed": changed.isoformat(timespec="seconds")})
    if as_json:
        print(json.dumps({"schema": 1, "runs": rows}))
        return ExitCode.OK
    for row in rows:
        facts = (
            f"cannot be read: {safe(row['error'])}"
            if "error" in row
            else f"{row['done']:>9,} done {row['failed']:>7,} failed  {safe(row['model'])}"
        )
        print(f"{safe(row['run']):<32} {row['changed'][:16].replace('T', ' ')}  {facts}")
    if not rows:
        print("no runs here")
    return ExitCode.OK


def show_run(run: str | None, *, failed: bool, item_id: str | None, settings: bool) -> int:
    """Print what a run's ledger knows of it, or of one row."""
    path = find_ledger(run)
    with SqliteLedger(path, read_only=True) as ledger:
        if item_id is not None:
            return _show_item(ledger, item_id)
        if settings:
            for name, value in (ledger.manifest().get("settings") or {}).items():
                print(f"{safe(name):<14} {safe(value)}")
            return ExitCode.OK
        if failed:
            for record in ledger.records(ItemState.FAILED):
                print(f"{safe(record.item_id)}  {safe(record.error_code)}  {safe(record.error)}")
            return ExitCode.OK
        counts = ledger.counts()
        codes: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for record in ledger.records(*_SETTLED):
            tokens.update(record.usage)
            if record.state is ItemState.FAILED:
                codes[record.error_code or "unknown"] += 1
        print(f"{safe(name_of(path))}\n")
        for state, count in counts.items():
            print(f"  {state:<9} {count:>9,}")
        for code, count in codes.most_common():
            print(f"    {safe(code):<20} {count:>7,}")
        print(f"  tokens    {tokens['input_tokens']:,} in, {tokens['output_tokens']:,} out")
        if counts[ItemState.FAILED]:
            print(f"\n  batch-llm retry {safe(name_of(path))}   runs the failed rows again")
    return ExitCode.OK


def _show_item(ledger: SqliteLedger, item_id: str) -> int:
    record = ledger.find(item_id)
    if record is None:
        raise InputError(f"{name_of(ledger.path)} has no row {safe(item_id)}")
    print(f"{safe(record.item_id)}  {record.state}  {safe(record.model or '')}")
    for attempt in ledger.attempts(item_id):
        at = datetime.fromtimestamp(attempt.started_at, UTC).isoformat(" ", "seconds")
        verdict = attempt.error_code or "ok"
        usage = attempt.usage or {}
        spent = f"{usage.get('input_tokens', '?')} in, {usage.get('output_tokens', '?')} out"
        if attempt.change:
            print(f"  {safe(attempt.change)}")
        print(
            f"  attempt {attempt.number}  {at}  {attempt.seconds:.2f} s  {safe(verdict)}  {spent}"
            f"  {safe(attempt.error or '')}".rstrip()
        )
    if record.state is ItemState.DONE:
        print(safe(msgspec.json.encode(record.output).decode("utf-8", "replace"), 2000))
    return ExitCode.OK


def export_run(run: str | None, output: str, *, overwrite: bool) -> int:
    """Write a run's results to a file."""
    path = find_ledger(run)
    check_paths(str(path), [output])
    with SqliteLedger(path, read_only=True) as ledger:
        writer = ResultWriter(output, overwrite=overwrite)
        try:
            for record in ledger.records(*_SETTLED):
                writer.write(finished(record, Row(record.item_id, 0, {})))
        finally:
            writer.close()
    if output != "-":
        print(f"{safe(output)}: {writer.rows:,} rows")
    return ExitCode.OK


def verify_run(path: Path, job: Job | None) -> int:
    """Check a run's ledger, and its input and output where they are known; 1 if something is wrong.

    Args:
        path: The ledger.
        job: What made it; None where that cannot be told any more.
    """
    with SqliteLedger(path, read_only=True) as ledger:
        problems = [f"ledger: {problem}" for problem in ledger.problems()]
        if not problems:
            counts = ledger.counts()
            print(f"{safe(name_of(path))}: {counts[ItemState.DONE]:,} done, "
                  f"{counts[ItemState.FAILED]:,} failed")  # fmt: skip
            if job is not None:
                problems += _compared(ledger, job)
    for problem in problems[:_MOST_PROBLEMS]:
        print(f"  {safe(problem)}")
    if len(problems) > _MOST_PROBLEMS:
        print(f"  … and {len(problems) - _MOST_PROBLEMS} more")
    print("all is well" if not problems else f"{len(problems)} problems")
    return ExitCode.SOME_FAILED if problems else ExitCode.OK


def _compared(ledger: SqliteLedger, job: Job) -> list[str]:
    """Compare a ledger with the input that it answers and the file that its answers are in."""
    plan = Plan(job)
    problems: list[str] = []
    missing, answered = 0, set()
    for chunk in chunks(plan.items()):
        for item, record in zip(chunk, look_up(ledger, chunk), strict=True):
            if record is None:
                missing += 1
            elif record.state is ItemState.DONE:
                answered.add(item.item_id)
    if missing:
        problems.append(f"{job.input}: {missing:,} rows have no result, or changed since")
    output = Path(job.output)
    if job.output == "-" or (output.exists() and not output.is_file()):
        return problems
    if not output.is_file():
        return [*problems, f"{job.output} is not there; `batch-llm resume` makes it again"]
    if output.suffix.lower() not in {".csv", ".tsv"}:
        problems += _compared_lines(output, answered, plan.source.id_column or "id")
    return problems


def _compared_lines(output: Path, answered: set[str], id_column: str) -> list[str]:
    problems: list[str] = []
    seen: set[str] = set()
    with output.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = msgspec.json.decode(line)
                item_id = str(record[id_column])
            except (msgspec.DecodeError, KeyError, TypeError, UnicodeError):
                problems.append(f"{output}:{number} is torn, or no result")
                continue
            if item_id in seen:
                problems.append(f"{output}:{number} is a second result of {item_id}")
            elif item_id not in answered:
                problems.append(f"{output}:{number} is no result of this run: {item_id}")
            seen.add(item_id)
    lost = len(answered - seen)
    if lost:
        problems.append(f"{output} lacks {lost:,} results; `batch-llm resume` writes it anew")
    return problems
