"""Looks at runs that were made: ``ls``, ``show``, ``export``. Nothing here sends."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec

from batch_llm.cli.command import check_paths
from batch_llm.cli.costs import bill_of_spent, cost_summary, tokens_spent
from batch_llm.cli.exit_codes import ExitCode
from batch_llm.cli.summary import wrapped
from batch_llm.core.prices import Prices
from batch_llm.core.text import counted, safe
from batch_llm.exceptions import BatchLLMError, InputError
from batch_llm.inputs import Row
from batch_llm.outputs import ResultWriter, finished
from batch_llm.runs.ledgers import all_ledgers, find_ledger, name_of, variants_of
from batch_llm.stores.base import ItemState, Spent
from batch_llm.stores.file_lock import holder_of
from batch_llm.stores.sqlite import SqliteLedger
from batch_llm.stores.values import reused

_MOST_MODELS = 10
#: Of a ledger whose manifest was emptied, or of one that a processor made and no run.
NO_SETTINGS = (
    "nothing says what it was made with; the run's command, given again, notes that, and keeps the "
    "rows that ask what they asked"
)
#: A ledger knows the rows of its input that were read so far.
_UNREAD = "   rows that were not read yet are not among them"
_WAS_RUNNING = "   in work when the process ended; they are sent again"
_SETTLED = (ItemState.DONE, ItemState.FAILED)


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
                row["has_settings"] = bool(manifest.get("settings"))
        except BatchLLMError as error:
            row["error"] = str(error)
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).astimezone()
        rows.append(row | {"changed": changed.isoformat(timespec="seconds")})
    if as_json:
        print(json.dumps({"schema": 1, "runs": rows}))
        return ExitCode.OK
    for row in rows:
        facts = (
            f"cannot be read: {safe(row['error'])}"
            if "error" in row
            else f"{row['done']:>9,} done {row['failed']:>7,} failed  {_model_of(row)}"
        )
        print(f"{safe(row['run']):<32} {row['changed'][:16].replace('T', ' ')}  {facts}")
    if not rows:
        print("no runs here")
    return ExitCode.OK


def _model_of(row: dict[str, Any]) -> str:
    return safe(row["model"]) if row["has_settings"] else "its settings are gone: see `verify`"


def show_run(run: str | None, *, failed: bool, item_id: str | None, settings: bool) -> int:
    """Print what a run's ledger knows of it, or of one row."""
    path = find_ledger(run)
    with SqliteLedger(path, read_only=True) as ledger:
        if item_id is not None:
            return _show_item(ledger, item_id)
        if settings:
            return _show_settings(ledger)
        if failed:
            for record in ledger.records(ItemState.FAILED):
                print(f"{safe(record.item_id)}  {safe(record.error_code)}  {safe(record.error)}")
            return ExitCode.OK
        counts = ledger.counts()
        codes: Counter[str] = Counter()
        models: Counter[str] = Counter()
        for record in ledger.records(*_SETTLED):
            if record.model is not None:
                models[record.model] += 1
            if record.state is ItemState.FAILED:
                codes[record.error_code or "unknown"] += 1
        print(f"{safe(name_of(path))}\n")
        notes = {}
        if counts[ItemState.PENDING] or counts[ItemState.RUNNING]:
            notes[ItemState.PENDING] = _UNREAD
        if counts[ItemState.RUNNING] and holder_of(path.resolve()) is None:
            notes[ItemState.RUNNING] = _WAS_RUNNING
        for state, count in counts.items():
            print(f"  {state:<9} {count:>9,}{notes.get(state, '')}")
        for code, count in codes.most_common():
            print(f"    {safe(code):<20} {count:>7,}")
        spent = ledger.spent_in_all()
        print("\n".join(wrapped(f"  tokens    {tokens_spent(spent)}")))
        if (under_way := calls_under_way(ledger)) is not None:
            print("\n".join(wrapped(f"  {under_way}")))
        bill = noted_bill(ledger)
        cost = safe(bill["text"]) if bill is not None else _cost_of(ledger, spent)
        print("\n".join(wrapped(f"  cost      {cost}")))
        for model, count in models.most_common(_MOST_MODELS):
            print(f"  answered by {safe(model, 60)}  {count:,}")
        if counts[ItemState.FAILED]:
            print(f"\n  batch-llm retry {safe(name_of(path))}   runs the failed rows again")
    return ExitCode.OK


def noted_bill(ledger: SqliteLedger) -> dict[str, Any] | None:
    """Return the bill as the last session has noted it; None where that did not get to its end."""
    bill: dict[str, Any] | None = ledger.manifest().get("bill")
    return bill if bill is not None and bill["session"] == ledger.session else None


def calls_under_way(ledger: SqliteLedger) -> str | None:
    """Say how many calls are noted that are in no sum yet; None where there are none."""
    left = ledger.not_booked_yet()
    if not left:
        return None
    calls = "1 call is" if len(left) == 1 else f"{len(left):,} calls are"
    if holder_of(ledger.path.resolve()) is not None:
        return f"          {calls} under way"
    told = sum(note.usage is not None for note in left)
    known = f", {told:,} of them with known tokens" if told else ""
    again = f"`batch-llm resume {safe(name_of(ledger.path))}`"
    return f"          {calls} cut off by a kill{known}; {again} books them"


def _cost_of(ledger: SqliteLedger, spent: Spent) -> str:
    """Return what all calls have cost, by the prices that the run was last given."""
    file = (ledger.manifest().get("flags") or {}).get("prices")
    try:
        prices = Prices() if file is None else Prices.from_file(file)
    except (BatchLLMError, OSError):
        return f"unknown: its prices in {safe(file)} cannot be read"
    return cost_summary(bill_of_spent(prices, spent))


def _show_settings(ledger: SqliteLedger) -> int:
    manifest = ledger.manifest()
    if not manifest.get("settings"):
        print(NO_SETTINGS)
    for name, value in (manifest.get("settings") or {}).items():
        print(f"{safe(name):<14} {safe(value)}")
    servers = ", ".join(manifest.get("servers") or ())
    if servers:
        print(f"{'server':<14} {safe(servers)}")
    for name, title in (("version", "batch-llm"), ("python", "python"), ("prices", "prices")):
        if name in manifest:
            print(f"{title:<14} {safe(manifest[name])}")
    for facts in manifest.get("retries") or ():
        changes = dict(facts["settings"])
        changes |= changes.pop("extra", {})
        if facts["model"] is not None:
            changes["model"] = facts["model"]
        listed = ", ".join(f"{name}={value}" for name, value in changes.items())
        rows = counted(facts.get("rows", 0), "row")
        print(
            f"retry {facts['number']:<8} {facts.get('at', '')}  {rows} "
            f"({', '.join(facts.get('only') or ['failed'])}) with {safe(listed)}"
        )
    return ExitCode.OK


def _show_item(ledger: SqliteLedger, item_id: str) -> int:
    record = ledger.find(item_id)
    if record is None:
        run = name_of(ledger.path)
        raise InputError(f"{run} has no row {safe(item_id)}, or has not read it yet")
    print(f"{safe(record.item_id)}  {record.state}  {safe(record.model or '')}")
    for variant in variants_of(ledger):
        if record.content == variant.mark:
            print(f"  waits for retry {variant.number} (`show --settings`)")
    for attempt in ledger.attempts(item_id):
        at = datetime.fromtimestamp(attempt.started_at, UTC).astimezone().isoformat(" ", "seconds")
        verdict = attempt.error_code or "ok"
        if not attempt.number:  # it was another row's answer, or the cache's
            print(f"  no call    {at}  {safe(verdict)}  {safe(attempt.error or '')}".rstrip())
            continue
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
                writer.write(finished(reused(record), Row(record.item_id, 0, {})))
        finally:
            writer.close()
    if output != "-":
        print(f"{safe(output)}: {counted(writer.rows, 'row')}")
    return ExitCode.OK
