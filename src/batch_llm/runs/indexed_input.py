"""An input in blocks, some of which need not be read: see ``row_index``."""

from __future__ import annotations

from array import array
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from batch_llm.inputs import Problem
from batch_llm.inputs.blocks import KnownBlocks
from batch_llm.runs.row_index import WIDTH, Entry, IndexedBlock, RowIndex
from batch_llm.runs.settings_changes import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from batch_llm.inputs import Identifier, Row
    from batch_llm.inputs.blocks import Block, Body
    from batch_llm.runs.brief import Brief
    from batch_llm.runs.recipe import RowSource
    from batch_llm.runs.row_index import Facts

#: Behind the name of the ledger.
SUFFIX = "-rows"
#: Who decides what a row asks.
_DECIDING = ("batch-llm", "jinja2", "msgspec")


def open_index(brief: Brief, source: RowSource) -> IndexedInput | None:
    """Open a brief's input with what is known of it; None where nothing can be."""
    if brief.ledger is None:
        return None
    body = source.body()
    if body is None:
        return None
    versions = [metadata.version(name) for name in _DECIDING]
    settings = settings_of(brief, source.format)
    key = repr((versions, settings, body.dialect, source.id_column))
    index = RowIndex(Path(f"{brief.ledger}{SUFFIX}"), key)
    return IndexedInput(body, index, source.identifier, has_ids=source.id_column is not None)


class IndexedInput:
    """The blocks of an input.

    Args:
        body: Reads them.
        index: What is known of them.
        make_identifier: Makes who gives the rows of one reading their ids.
        has_ids: Whether a column holds the ids.
    """

    def __init__(
        self,
        body: Body,
        index: RowIndex,
        make_identifier: Callable[[], Identifier],
        *,
        has_ids: bool,
    ) -> None:
        self._body, self._index = body, index
        self._make_identifier = make_identifier
        #: Knows the ids of all rows that were read, so that none comes twice.
        self._identifier = make_identifier()
        self.has_ids = has_ids
        #: All blocks, once they were cut.
        self.blocks: list[Block] = []
        #: Of new blocks without a fault, by their offsets.
        self._facts: dict[int, Facts] = {}

    def close(self) -> None:
        """Let go of the files."""
        self._index.close()

    def cut(self) -> Iterator[Block]:
        """Give all blocks in order; the records of new ones stay in memory until the next."""
        for block in self._body.blocks(KnownBlocks(self._index.blocks)):
            self.blocks.append(block)
            yield block
            block.rows = None

    @property
    def lines(self) -> int:
        """How many lines there are, those before the first record among them."""
        return self.blocks[-1].line + self.blocks[-1].lines - 1 if self.blocks else 0

    @property
    def knows_some(self) -> bool:
        """Whether a block need not be read."""
        return any(block.known is not None for block in self.blocks)

    def facts_of(self, block: Block) -> Facts | None:
        """Return what is known of a block's rows; None of a new one."""
        return block.known.facts if isinstance(block.known, Entry) else None

    def note(self, block: Block, facts: Facts) -> None:
        """Note what a new block without a fault holds."""
        self._facts[block.offset] = facts

    def known(self, block: Block) -> IndexedBlock | None:
        """Return a block with all that is kept of it; None of a new one."""
        return self._index.read(block.known) if isinstance(block.known, Entry) else None

    def records(self, block: Block) -> Iterator[Row | Problem]:
        """Give the records of a block; an id that another row has is a problem."""
        rows = self._body.read(block) if block.rows is None else iter(block.rows)
        for number, record in enumerate(rows, block.number):
            yield self._identified(self._identifier, record, number)

    def some(
        self, block: Block, places: Collection[int], *, is_known: bool = True
    ) -> Iterator[Row | Problem]:
        """Give some records of a block.

        Args:
            block: The block.
            places: Their places in it, from 0.
            is_known: Whether it is known that no other row has their ids.
        """
        identifier = self._make_identifier() if is_known else self._identifier
        last = max(places)
        for place, record in enumerate(self._body.read(block)):
            if place in places:
                yield self._identified(identifier, record, block.number + place)
            if place == last:
                return

    @staticmethod
    def _identified(identifier: Identifier, record: Row | Problem, number: int) -> Row | Problem:
        return record if isinstance(record, Problem) else identifier.identify(record, number)

    def settle(self) -> bool:
        """See ``RowIndex.settle``."""
        return self._index.settle(self.blocks)

    @property
    def layouts(self) -> tuple[bytes, bytes]:
        """Under which layout lines were noted until now, and are from now on."""
        return self._index.layout_before, self._index.layout

    def add(self, block: Block, lines: Sequence[int], contents: Sequence[bytes]) -> None:
        """Keep what the rows of a new block ask.

        Args:
            block: The block; nothing is kept of one with a fault, nor when the input was written to
                since it was cut: these may be other rows than its bytes had.
            lines: The line of each row.
            contents: The digest of what each asks.
        """
        facts = self._facts.pop(block.offset, None)
        is_good = block.is_whole and len(contents) == block.records > 0
        if facts is None or not is_good or {len(one) for one in contents} != {WIDTH}:
            return
        if not self._body.is_intact(block):
            return
        starts = [line - block.line for line in lines]
        self._index.add(
            IndexedBlock(
                mark=block.mark,
                digest=block.digest,
                length=block.length,
                lines=block.lines,
                records=block.records,
                number=0 if self.has_ids else block.number,
                line=block.line,
                facts=facts,
                starts=b"" if starts == list(range(len(starts))) else array("I", starts).tobytes(),
                contents=b"".join(contents),
            )
        )
