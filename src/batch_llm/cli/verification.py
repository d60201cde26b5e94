"""``verify``: a run's ledger against its input, its schema and its output file. Nothing is sent."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.cli.costs import problem_of_note, tokens_spent
from batch_llm.cli.exit_codes import ExitCode
from batch_llm.cli.inspection import NO_SETTINGS, calls_under_way, noted_bill
from batch_llm.cli.summary import wrapped
from batch_llm.core.text import counted, safe
from batch_llm.exceptions import BadOutputError, BatchLLMError
from batch_llm.inputs import Source
from batch_llm.outputs import cell
from batch_llm.runs.ledgers import RUNS, name_of, variants_of
from batch_llm.runs.plan import Plan, chunks, look_up
from batch_llm.stores.base import ItemState
from batch_llm.stores.sqlite import SqliteLedger
from batch_llm.stores.values import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batch_llm.cli.command import Command
    from batch_llm.core.schema import OutputSchema
    from batch_llm.stores.base import Record

_MOST_PROBLEMS = 10
_TABLES = {".csv", ".tsv", ".parquet"}


class Problems:
    """What is wrong: all of it counted, the first of it kept."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = 0

    def add(self, text: str) -> None:
        """Note a problem."""
        self.count += 1
        if self.count <= _MOST_PROBLEMS:
            self.shown.append(text)


def verify_run(path: Path, command: Command | None) -> int:
    """Check a run's ledger, and its input and output where they are known; 1 if something is wrong.

    Args:
        path: The ledger.
        command: What made it; None where that cannot be told any more.
    """
    problems = Problems()
    with SqliteLedger(path, read_only=True) as ledger:
        for problem in ledger.problems():
            problems.add(f"ledger: {problem}")
        if not problems.count:
            counts = ledger.counts()
            print(
                f"{safe(name_of(path))}: {counts[ItemState.DONE]:,} done, "
                f"{counts[ItemState.FAILED]:,} failed"
            )
            spent = ledger.spent_in_all()
            print("\n".join(wrapped(f"  tokens    {tokens_spent(spent)}")))
            if (under_way := calls_under_way(ledger)) is not None:
                print("\n".join(wrapped(f"  {under_way}")))
            bill = noted_bill(ledger)
            wrong = None if bill is None else problem_of_note(bill, spent)
            if wrong is not None:
                problems.add(wrong)
            if not ledger.manifest().get("settings") and path.parent == RUNS:
                problems.add(f"ledger: {NO_SETTINGS}")
            if command is not None:
                _compare(ledger, command, problems)
    for text in problems.shown:
        print(f"  {safe(text)}")
    if problems.count > len(problems.shown):
        print(f"  … and {problems.count - len(problems.shown):,} more")
    print(counted(problems.count, "problem") if problems.count else "all is well")
    return ExitCode.SOME_FAILED if problems.count else ExitCode.OK


def _compare(ledger: SqliteLedger, command: Command, problems: Problems) -> None:
    """Compare a ledger with the input that it answers and the file that its answers are in."""
    plan = Plan(command)
    again = f"`batch-llm resume {name_of(ledger.path)}`"
    variants = variants_of(ledger)
    missing = changed = 0
    answered: dict[str, bytes] = {}
    for chunk in chunks(plan.items()):
        for found in look_up(ledger, chunk, variants, finds_changes=True):
            record = found.record
            changed += found.is_changed
            missing += record is None and not found.is_changed
            if record is not None and record.state is ItemState.DONE:
                _check_shape(record, command.shape, problems)
                answered[record.item_id] = _mark(record.output)
    if missing:
        has = "row has" if missing == 1 else "rows have"
        problems.add(f"{command.input}: {missing:,} {has} no result; {again} sends what is left")
    if changed:
        rows = "row changed since it was" if changed == 1 else "rows changed since they were"
        problems.add(f"{command.input}: {changed:,} {rows} answered")
    output = Path(command.output)
    if command.output == "-" or (output.exists() and not output.is_file()):
        return
    if not output.is_file():
        problems.add(f"{command.output} is not there; {again} makes it again")
        return
    is_batch = plan.source.format == "openai-batch"
    id_column = plan.source.id_column or "id"
    _compare_output(output, answered, id_column, again, problems, is_batch=is_batch)


def _check_shape(record: Record, shape: OutputSchema | None, problems: Problems) -> None:
    if shape is None:
        return
    text = record.output if isinstance(record.output, str) else to_json(record.output)
    try:
        shape.parse(text)
    except BadOutputError as error:
        problems.add(f"ledger: the output of {record.item_id} does not fit: {error.problem}")


def _compare_output(
    output: Path,
    answered: dict[str, bytes],
    id_column: str,
    again: str,
    problems: Problems,
    *,
    is_batch: bool,
) -> None:
    is_table = output.suffix.lower() in _TABLES
    seen: set[str] = set()
    for number, record in _table(output, problems) if is_table else _lines(output):
        item_id = record.get(id_column)
        where = f"{output}:{number}"
        if item_id is None or (not is_batch and "output" not in record):
            problems.add(f"{where} is torn, or no result")
            continue
        item_id = str(item_id)
        if item_id in seen:
            problems.add(f"{where} is a second result of {item_id}")
        elif item_id not in answered:
            problems.add(f"{where} is no result of this run: {item_id}")
        elif not is_batch and _mark(record["output"]) != answered[item_id]:
            problems.add(f"{where} has another output for {item_id} than the ledger")
        seen.add(item_id)
    lost = len(answered.keys() - seen)
    if lost:
        problems.add(f"{output} lacks {lost:,} results; {again} writes it anew")


def _lines(output: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with output.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeError):
                record = None
            yield number, record if isinstance(record, dict) else {}


def _table(output: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for record in Source(str(output)):  # what it finds wrong with an id, we find too
            yield record.line, record.data or {}
    except BatchLLMError as error:
        problems.add(str(error))


def _mark(output: Any) -> bytes:
    """Return a digest of what a file holds of an output."""
    text = cell(output).encode("utf-8", "replace")
    return blake2b(text, digest_size=8).digest()
