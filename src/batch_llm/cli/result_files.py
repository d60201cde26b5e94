"""The two files of results, and the order in which rows reach them."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from batch_llm.outputs import FailedWriter, Finished, ResultWriter
from batch_llm.outputs.notes import OutputNotes, intact_parts, move_together
from batch_llm.outputs.writers import FIELDS
from batch_llm.runs.kept_parts import keep_parts

if TYPE_CHECKING:
    from batch_llm.cli.command import Command
    from batch_llm.inputs import Row
    from batch_llm.outputs.notes import Part
    from batch_llm.runs.passing import Passing
    from batch_llm.runs.plan import Plan
    from batch_llm.stores.sqlite import SqliteLedger

#: With ``--order input``: finished rows that wait for an earlier one.
MAX_HELD = 10_000
_TABLES = {".csv", ".tsv"}
#: Behind the name of the ledger: what is noted of the output.
_SUFFIX = "-output"
#: Under which the ledger says which notes are the last.
_NOTED_AS = "output_notes"


class ResultFiles:
    """The file of results and that of failed rows.

    Args:
        plan: Whose rows they hold.
        command: Says where they are.
        ledger: What they hold is in it too, so they may be replaced; None: they must not be there.
        passing: What of the rows is done; None: all are written.
    """

    def __init__(
        self,
        plan: Plan,
        command: Command,
        ledger: SqliteLedger | None = None,
        passing: Passing | None = None,
    ) -> None:
        overwrite = command.overwrite or ledger is not None
        self.failed = FailedWriter(command.failed, columns=plan.columns, overwrite=overwrite)
        kept, notes = _begin_notes(plan, command, ledger, passing)
        self.results = ResultWriter(
            command.output,
            is_batch=plan.source.format == "openai-batch",
            columns=plan.columns,
            overwrite=overwrite,
            kept=(sum(part.size for part in kept), sum(len(part.lines()) for part in kept)),
            notes=notes,
        )
        self._keeps_order = command.order == "input"
        self._due: deque[int] = deque()
        self._held: dict[int, Finished] = {}
        self.has_reader = True
        self._has_room = asyncio.Event()

    async def expect(self, row: Row) -> None:
        """Note a row's place; wait while too many finished rows wait for an earlier one.

        That one is in work already, so it always comes.
        """
        if not self._keeps_order:
            return
        while len(self._held) >= MAX_HELD:
            self._has_room.clear()
            await self._has_room.wait()
        self._due.append(row.line)

    def write(self, finished: Finished, *, is_kept: bool = False) -> None:
        """Write a row's result, as soon as its turn has come.

        Args:
            finished: It.
            is_kept: Whether it is an earlier session's: then some are written together.
        """
        if not self._keeps_order:
            self._put(finished, is_kept=is_kept)
            return
        self._held[finished.row.line] = finished
        while self._due and self._due[0] in self._held:
            self._put(self._held.pop(self._due.popleft()))
        self._has_room.set()

    def _put(self, finished: Finished, *, is_kept: bool = False) -> None:
        if finished.error is None:
            try:
                self.results.write(finished, is_kept=is_kept)
            except BrokenPipeError:  # of standard output; whoever read it wants no more
                self.has_reader = False
        else:
            self.failed.write(finished.row, finished.error)

    def write_held(self) -> None:
        """Write what still waits for earlier rows: those will not come any more."""
        held, self._held = self._held, {}
        for row in sorted(held.values(), key=lambda one: one.row.line):
            self._put(row)

    def end_order(self) -> None:
        """Write what still waits for earlier rows, and from now on each row as it comes."""
        self.write_held()
        self._keeps_order = False

    def close(self) -> None:
        """Write what is left, and make all rows durable."""
        self.write_held()
        try:
            self.results.close()
        finally:
            self.failed.close()


def _begin_notes(
    plan: Plan, command: Command, ledger: SqliteLedger | None, passing: Passing | None
) -> tuple[list[Part], OutputNotes | None]:
    """Return the parts of an output that are left as they are, and who notes what is written."""
    if ledger is None:
        return [], None
    path, output = Path(f"{ledger.path}{_SUFFIX}"), Path(command.output)
    is_growing = command.output != "-" and output.suffix.lower() != ".parquet"
    if (
        passing is None
        or plan.indexed is None
        or not is_growing
        or (output.exists() and not output.is_file())
    ):
        path.unlink(missing_ok=True)
        return [], None
    key, before = _key(plan, command), ledger.manifest().get(_NOTED_AS) or ""
    layout_before, layout = (one.hex() for one in plan.indexed.layouts)
    parts = intact_parts(path, output, before, key + layout_before)
    placed = keep_parts(
        passing,
        parts,
        keeps_order=command.order == "input",
        has_header=output.suffix.lower() in _TABLES,
    )
    move_together(output, placed)
    kept = [part for _, part in placed]
    token = secrets.token_hex(8)
    notes = OutputNotes(path, token, key + layout, kept, plan.source.has_changed)
    ledger.note({_NOTED_AS: token})
    return kept, notes


def _key(plan: Plan, command: Command) -> str:
    """Return whatever, beside rows and results, decides how an output looks."""
    source, columns = plan.source, plan.columns
    if Path(command.output).suffix.lower() not in _TABLES:
        columns = sorted(name for name in columns if name in FIELDS or name.startswith("input_"))
    version = metadata.version("batch-llm")
    return repr((version, command.order, source.format, source.id_column, columns))
