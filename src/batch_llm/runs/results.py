"""What a run gives back: one result per row, in the rows' order, and what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from batch_llm.base import WorkItemResult
from batch_llm.core.prices import usd
from batch_llm.core.text import counted, safe
from batch_llm.exceptions import OutputExistsError, RowsFailedError
from batch_llm.inputs import Row
from batch_llm.outputs import ResultWriter, finished

if TYPE_CHECKING:
    from decimal import Decimal
    from os import PathLike

    from batch_llm._engine.statistics import Statistics
    from batch_llm.core.prices import Bill

T = TypeVar("T")
#: A row as it was given: its columns by name. A text is the column ``prompt``.
RowData = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunResult(Sequence[WorkItemResult[T, RowData]], Generic[T]):
    """All results of a run: one per row, in the order of the rows. A sequence of them.

    Rows that were not sent, because the run was stopped, have a failed result with the code
    ``cancelled``; with a ledger the same call again sends them.

    Attributes:
        results: One per row. Their ``context`` is the row.
        statistics: The numbers of this session: what earlier ones have brought is not in it.
        bill: What this session cost, as far as that is known.
        ledger: The ledger's file; None without one.
        stop_reason: Why it ended early, as a sentence; None when it did not.
        not_done: Rows without a result.
        id_column: The column that holds the ids; None where rows are numbered.
    """

    results: list[WorkItemResult[T, RowData]]
    statistics: Statistics
    bill: Bill
    ledger: str | None = None
    stop_reason: str | None = None
    not_done: int = 0
    id_column: str | None = None

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[WorkItemResult[T, RowData]]:
        return iter(self.results)

    @overload
    def __getitem__(self, index: int) -> WorkItemResult[T, RowData]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[WorkItemResult[T, RowData]]: ...

    def __getitem__(
        self, index: int | slice
    ) -> WorkItemResult[T, RowData] | Sequence[WorkItemResult[T, RowData]]:
        return self.results[index]

    @property
    def succeeded(self) -> int:
        """Rows with a usable output."""
        return sum(result.success for result in self.results)

    @property
    def failures(self) -> list[WorkItemResult[T, RowData]]:
        """The results without a usable output."""
        return [result for result in self.results if not result.success]

    @property
    def reused(self) -> int:
        """Rows whose result an earlier session had brought."""
        return sum(result.is_reused for result in self.results)

    @property
    def cost_usd(self) -> Decimal | None:
        """What this session cost; None where a part of it has no known price."""
        return self.bill.known_usd

    def raise_for_failures(self) -> None:
        """Raise if any row has no usable output.

        Raises:
            RowsFailedError: It says how many and why; ``partial`` is this result.
        """
        failures = self.failures
        if failures:
            first = failures[0]
            error = RowsFailedError(
                len(self.results),
                dict(Counter(one.error_code or "unknown" for one in failures).most_common()),
                f"{first.item_id}: {first.error}",
            )
            error.partial = self
            raise error

    def summary(self) -> str:
        """Say in some lines what came of it."""
        failures = Counter(one.error_code or "unknown" for one in self.failures)
        reasons = ", ".join(f"{safe(code, 40)} {count:,}" for code, count in failures.most_common())
        now, known = self.statistics, self.cost_usd
        unpriced = ", ".join(safe(model, 60) for model in self.bill.unpriced)
        why = f" ({reasons})" if reasons else ""
        more = "+" if self.bill.unmeasured_calls else ""  # as the command marks it
        counts = f"{self.succeeded:,} succeeded, {sum(failures.values()):,} failed{why}"
        lines = [
            f"{counted(len(self.results), 'row')}: {counts}, {self.reused:,} reused",
            f"{now.input_tokens:,} tokens in, {now.output_tokens:,} out, cost "
            + (f"{usd(known)}{more}" if known is not None else f"unknown: no price for {unpriced}"),
            f"{now.elapsed_seconds:.1f} s",
        ]
        if self.stop_reason is not None:
            lines.append(
                f"stopped: {safe(self.stop_reason)}; {counted(self.not_done, 'row')} not done"
            )
        return "\n".join(lines)

    def write(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write all results to a file, failed ones among them, with the rows' own columns.

        Args:
            path: ``.csv``, ``.tsv`` and ``.parquet`` are tables, everything else JSON lines.
            overwrite: Replace a file that is there.

        Raises:
            OutputExistsError: It is there.
            MissingExtraError: A Parquet file is wanted, and pyarrow is not installed.
            OutputLostError: It could not be written.
        """
        columns = list(dict.fromkeys(name for one in self.results for name in one.context or ()))
        try:
            writer = ResultWriter(str(path), columns=columns, overwrite=overwrite)
        except OutputExistsError as error:
            raise type(error)(error.path, flag="") from None
        try:
            for number, result in enumerate(self.results, 1):
                data = result.context or {}
                has_own_id = self.id_column is not None and self.id_column in data
                writer.write(finished(result, Row(result.item_id, number, data, has_own_id)))
        finally:
            writer.close()
