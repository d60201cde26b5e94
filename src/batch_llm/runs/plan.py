"""A brief's input, read through and found good before anything is sent."""

from __future__ import annotations

import contextlib
import copy
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from batch_llm.core.text import counted, safe
from batch_llm.exceptions import InputError
from batch_llm.inputs import Problem, Row, Source
from batch_llm.providers.callables import CallByMode
from batch_llm.providers.requests import content_of
from batch_llm.runs.indexed_input import open_index
from batch_llm.runs.recipe import Recipe, has_numbered_columns
from batch_llm.runs.row_index import Facts
from batch_llm.stores.base import ItemState, is_settled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batch_llm.base import LLMWorkItem
    from batch_llm.core.request import Request
    from batch_llm.inputs.blocks import Block
    from batch_llm.runs.brief import Brief
    from batch_llm.runs.indexed_input import IndexedInput
    from batch_llm.runs.recipe import RowSource, Variant
    from batch_llm.stores.base import Ledger, Record

    Item = LLMWorkItem[Any, Any, Row]

MAX_SHOWN = 10
_SETTLED = (ItemState.DONE, ItemState.FAILED)
_CHUNK = 100


class Survey(NamedTuple):
    """How much of a brief's input its ledger has done already.

    Attributes:
        rows: All.
        kept: Rows whose answer is kept.
        failed: Rows whose failure is kept.
        changed: Rows that have a result, but ask something else now; they are sent again.
    """

    rows: int
    kept: int = 0
    failed: int = 0
    changed: int = 0

    @property
    def left(self) -> int:
        """Rows to be sent."""
        return self.rows - self.kept - self.failed


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Part items into lists of some, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


class Found(NamedTuple):
    """What a ledger knows of a row.

    Attributes:
        item: The row, as it is to be asked: in the variant in which it was last.
        record: Its result, where that is kept.
        is_changed: Whether it has a result, but asked something else then.
    """

    item: Item
    record: Record | None
    is_changed: bool = False


def look_up(
    ledger: Ledger,
    chunk: Sequence[Item],
    variants: Sequence[Variant] = (),
    *,
    finds_changes: bool = False,
) -> list[Found]:
    """Look rows up in a ledger.

    Args:
        ledger: It.
        chunk: The rows, as the brief asks them.
        variants: What they may have been asked with in a retry.
        finds_changes: Whether to tell rows that have changed from new ones; that takes longer.
    """
    contents = [content_of_item(item) for item in chunk]
    records = ledger.look_up(
        (item.item_id, content) for item, content in zip(chunk, contents, strict=True)
    )
    is_plain = not (variants or finds_changes)
    return [
        Found(item, record)
        if record is not None or is_plain
        else _known_otherwise(ledger, item, content, variants)
        for item, content, record in zip(chunk, contents, records, strict=True)
    ]


def _known_otherwise(
    ledger: Ledger, item: Item, content: bytes, variants: Sequence[Variant]
) -> Found:
    """Find a row that is not settled as the brief asks it: in a variant, changed, or not at all."""
    before = ledger.find(item.item_id)
    if before is None or before.content == content:
        return Found(item, None)
    for variant in variants if item.request is not None else ():
        assert item.request is not None  # noqa: S101 - see above
        request = variant.of(item.request)
        if before.content in {variant.mark, content_of(item.item_id, request)}:
            item.request = request
            is_kept = is_settled(before.state, before.error_code, before.attempts)
            return Found(item, before if is_kept else None)
    return Found(item, None, before.state in _SETTLED)


def content_of_item(item: Item) -> bytes:
    """Return the digest of what an item asks, as the engine's store gets it."""
    if item.request is None:
        return CallByMode().content(item)
    return content_of(item.item_id, item.request)


class Plan:
    """A brief whose input has been read through once and found good.

    Args:
        brief: What to do.
        source: Where the rows come from; None opens the brief's file.
        uses_index: Whether to look only at what no earlier session of the run has read.

    Raises:
        InputError: The input is not good; the message shows the places.
        ConfigError: A setting is wrong.
        OSError: A file cannot be read.
    """

    def __init__(
        self, brief: Brief, source: RowSource | None = None, *, uses_index: bool = False
    ) -> None:
        self.brief = brief
        self.source: RowSource = source or Source(
            brief.input,
            format=brief.format,
            columns=brief.columns,
            has_header=False if has_numbered_columns(brief) else None,
            id_column=brief.id_column,
            limit=brief.limit,
        )
        source = self.source
        self._recipe = Recipe(brief, source.name, source.format, source.columns)
        self.rows = self.characters = 0
        self._bounded_rows = self._most_output = 0
        self._chosen: frozenset[int] | None = None
        self._names: dict[str, None] = dict.fromkeys(source.columns)
        self.problems: list[Problem] = []
        #: Records that cannot be used, of which nothing is written either: as was asked for.
        self.left_out = 0
        #: The input in blocks, some of which are known; None where nothing is known of it.
        self.indexed: IndexedInput | None = None
        if uses_index:
            self.indexed = open_index(brief, source)
        try:
            self._read_through()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of what is known of the input."""
        if self.indexed is not None:
            self.indexed.close()

    def _read_through(self) -> None:
        if self.indexed is None:
            self._add(self._facts_of(self.source))
        else:
            for block in self.indexed.cut():
                self._add(self.indexed.facts_of(block) or self._new_facts(self.indexed, block))
        if not self.rows and not self.problems:
            raise InputError(f"{self.source.name} is empty; there is nothing to send")
        if self.problems and self.brief.bad_rows == "stop":
            if self.indexed is not None:
                Plan(self.brief, self.source)  # raises, with all of them: it knows every id
            raise InputError(self._explain())
        if self.brief.bad_rows == "skip":
            self.left_out, self.problems = len(self.problems), []

    def _new_facts(self, indexed: IndexedInput, block: Block) -> Facts:
        problems = len(self.problems)
        reads_files = self._recipe.reads_files
        named = False

        def records() -> Iterator[Row | Problem]:
            nonlocal named
            for record in indexed.records(block):
                named = named or (isinstance(record, Row) and reads_files(record))
                yield record

        facts = self._facts_of(records() if self.brief.image else indexed.records(block))
        # What a picture is is not said by a row that has its name.
        if len(self.problems) == problems and not named:
            indexed.note(block, facts)
        return facts

    def _facts_of(self, records: Iterable[Row | Problem]) -> Facts:
        """Look at records; note those that cannot be used."""
        names: dict[str, None] = {}
        facts = Facts()
        for record in records:
            if isinstance(record, Problem):
                self.problems.append(record)
                continue
            try:
                request = self.request_for(record)
            except ValueError as error:
                self.problems.append(bad_row(record, error))
                continue
            facts.rows += 1
            names.update(dict.fromkeys(record.data))
            facts.characters += request.characters
            asked = request.settings.longest_answer
            facts.bounded += asked is not None
            facts.longest = max(facts.longest, asked or 0)
        facts.names = list(names)
        return facts

    def _add(self, facts: Facts) -> None:
        self.rows += facts.rows
        self._names.update(dict.fromkeys(facts.names))
        self.characters += facts.characters
        self._bounded_rows += facts.bounded
        self._most_output = max(self._most_output, facts.longest)

    def check_unchanged(self) -> None:
        """Refuse an input that was written to since it was opened.

        Raises:
            InputError: It was.
        """
        if self.source.has_changed():
            raise InputError(
                f"{self.source.name} changed while it was checked; nothing was sent\n\n"
                "  Run the command again when the file is complete."
            )

    @property
    def columns(self) -> list[str]:
        """All columns that any record has, those of records that cannot be used among them."""
        of_problems = [name for problem in self.problems for name in problem.data or ()]
        return list(dict.fromkeys([*self._names, *of_problems]))

    def _explain(self) -> str:
        name, bad = self.source.name, len(self.problems)
        unit = self.source.unit
        found = counted(bad, f"bad {unit}")
        lines = [f"{name} has {found} of {bad + self.rows:,}; nothing was sent", ""]
        for problem in self.problems[:MAX_SHOWN]:
            lines += [problem.render(name, unit), ""]
        if bad > MAX_SHOWN:
            lines += [f"  … and {bad - MAX_SHOWN} more", ""]
        lines += [
            f"Fix the {unit}s, or run with --bad-rows fail to record them as failed",
            "rows and send the rest (--bad-rows skip leaves them out).",
        ]
        return "\n".join(lines)

    def request_for(self, row: Row) -> Request:
        """Make a row's request.

        Raises:
            ValueError: The row does not give one.
        """
        return self._recipe.request_for(row)

    @property
    def most_output_tokens(self) -> int | None:
        """What one row may write at the most; None where a row does not say."""
        return self._most_output if self._bounded_rows == self.rows else None

    def pilot(self, count: int, brief: Brief) -> Plan:
        """Return a plan of ``count`` of the rows, spread evenly over the input.

        Args:
            count: How many; all where there are not so many.
            brief: The same brief, with files of its own for what comes back.
        """
        count = min(count, self.rows)
        due = {position * self.rows // count for position in range(count)}
        chosen = (row.line for number, row in enumerate(self.rows_as_given()) if number in due)
        plan = copy.copy(self)
        plan.brief, plan.rows, plan.problems = brief, count, []
        plan._chosen = frozenset(chosen)  # noqa: SLF001 - of our own kind
        return plan

    def rows_as_given(self) -> Iterator[Row]:
        """Give the good rows, reading the input once more."""
        for item in self.items():
            assert item.context is not None  # noqa: S101 - each item comes with its row
            yield item.context

    def survey(self, ledger: Ledger, variants: Sequence[Variant] = ()) -> Survey:
        """Read the input once more, and find out how much of it the ledger has done already."""
        kept = failed = changed = 0
        for chunk in chunks(self.items()):
            for found in look_up(ledger, chunk, variants, finds_changes=True):
                changed += found.is_changed
                if found.record is None:
                    continue
                if found.record.state is ItemState.DONE:
                    kept += 1
                else:
                    failed += 1
        return Survey(self.rows, kept, failed, changed)

    def items(self, records: Iterable[Row | Problem] | None = None) -> Iterator[Item]:
        """Give the good rows as items, reading the input a second time.

        Args:
            records: Only these; None reads all.
        """
        for record in self.source if records is None else records:
            if isinstance(record, Row) and (self._chosen is None or record.line in self._chosen):
                with contextlib.suppress(ValueError):  # found before, and told
                    yield self._recipe.item_for(record)


def bad_row(row: Row, error: ValueError) -> Problem:
    """Return the problem that a row is from which no request can be made."""
    return Problem(row.line, "invalid_row", safe(error), data=row.data, item_id=row.item_id)
