"""A store that remembers only for as long as the process lives."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.exceptions import DuplicateItemError, LedgerError, StoreError
from batch_llm.stores.base import Attempt, ItemState, Record
from batch_llm.stores.values import clean, from_json, plain_usage, reused, to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from batch_llm.base import WorkItemResult


class MemoryStore:
    """Keeps the ids of items in work and, where wanted, of finished ones.

    Args:
        keep_ids: Remember the ids of finished items, so that none is used again. Without it,
            memory is bounded by the items in work, and only those are protected.
    """

    def __init__(self, *, keep_ids: bool = True) -> None:
        self._keep_ids = keep_ids
        self._running: set[str] = set()
        self._finished: set[str] = set()

    compares_content = False

    def begin_run(self, *, keeps_ids: bool) -> None:
        """Nothing needs to be done: one instance serves one run."""

    def end_run(self) -> None:
        """Nothing needs to be done."""

    def start(self, item_id: str, content: bytes, /) -> None:  # noqa: ARG002
        """Note that an item is in work.

        Raises:
            DuplicateItemError: An item of this id is in work or has a result. Nothing changed.
        """
        if item_id in self._running or item_id in self._finished:
            raise DuplicateItemError(item_id)
        self._running.add(item_id)

    def forget(self, item_id: str, history: Sequence[Attempt], /) -> None:  # noqa: ARG002
        """Make an item pending again."""
        self._running.discard(item_id)

    def finish(
        self,
        result: WorkItemResult[Any, Any],
        history: Sequence[Attempt],  # noqa: ARG002
        /,
    ) -> None:
        """Note that an item has its result; it is as safe at once as it will ever be.

        Raises:
            StoreError: The item is not in work. Nothing changed.
        """
        try:
            self._running.remove(result.item_id)
        except KeyError:
            raise StoreError(result.item_id, "it is not in work") from None
        if self._keep_ids:
            self._finished.add(result.item_id)


class MemoryLedger:
    """A ledger that several runs of one process can share: the twin of ``SqliteLedger``, for tests.

    Results come back as they would from a file: outputs as plain data.
    """

    compares_content = True

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._attempts: dict[str, list[Attempt]] = {}
        self._manifest: dict[str, Any] = {}
        self._is_in_run = self._is_closed = self._keeps_ids = False
        #: Items that got their result in this run, and ones whose result was given out.
        self._finished: set[str] = set()
        self._reused: set[str] = set()
        self._clock_offset = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End its use."""
        self.end_run()
        self._is_closed = True

    def begin_run(self, *, keeps_ids: bool) -> None:
        """Get ready for a run in the current event loop.

        Raises:
            LedgerError: Another run uses the ledger, or it was closed.
        """
        if self._is_in_run or self._is_closed:
            raise LedgerError("in memory", "it is in a run already, or was closed")
        self._clock_offset = datetime.now(UTC).timestamp() - asyncio.get_running_loop().time()
        self._is_in_run, self._keeps_ids = True, keeps_ids
        self._finished.clear()
        self._reused.clear()
        for record in list(self._records.values()):
            if record.state is ItemState.RUNNING:
                self._set_state(record, ItemState.PENDING)

    def end_run(self) -> None:
        """Let another run begin."""
        self._is_in_run = False

    def start(self, item_id: str, content: bytes, /) -> WorkItemResult[Any, Any] | None:
        """Note that an item is in work, unless there is its result for this content.

        Raises:
            DuplicateItemError: An item of this id is in work or has a result in this run.
            StoreError: The ledger is in no run.
        """
        if not self._is_in_run:
            raise StoreError(item_id, "the ledger is in no run")
        record = self._records.get(item_id)
        is_running = record is not None and record.state is ItemState.RUNNING
        if is_running or item_id in self._finished or item_id in self._reused:
            raise DuplicateItemError(item_id)
        if record is not None and record.content == content and record.is_settled:
            if self._keeps_ids:
                self._reused.add(item_id)
            return reused(record)
        self._records[item_id] = Record(item_id=item_id, content=content, state=ItemState.RUNNING)
        return None

    def forget(self, item_id: str, history: Sequence[Attempt], /) -> None:
        """Make an item pending again, and book the attempts that were made."""
        record = self._records.get(item_id)
        if record is not None and record.state is ItemState.RUNNING:
            self._set_state(record, ItemState.PENDING)
            self._book(item_id, history)

    def finish(self, result: WorkItemResult[Any, Any], history: Sequence[Attempt], /) -> None:
        """Keep an item's only result.

        Raises:
            StoreError: The item is not in work, or its output is no plain data. Nothing changed.
        """
        item_id = result.item_id
        record = self._records.get(item_id)
        if not self._is_in_run or record is None or record.state is not ItemState.RUNNING:
            raise StoreError(item_id, "it is not in work")
        try:
            output = from_json(to_json(result.output)) if result.success else None
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(item_id, f"{error}; return what JSON can hold") from error
        self._records[item_id] = Record(
            item_id=item_id,
            content=record.content,
            state=ItemState.DONE if result.success else ItemState.FAILED,
            output=output,
            error=None if result.success else clean(result.error or "failed"),
            error_code=result.error_code,
            model=clean(result.model),
            usage=plain_usage(result.token_usage),
            attempts=result.attempts,
            seconds=result.duration_seconds,
            safety_ratings=result.gemini_safety_ratings,
            response_body=result.response_body,
        )
        self._finished.add(item_id)
        self._book(item_id, history)

    def _book(self, item_id: str, history: Sequence[Attempt]) -> None:
        booked = self._attempts.setdefault(item_id, [])
        for attempt in history:
            usage = None if attempt.usage is None else plain_usage(attempt.usage)
            started_at = attempt.started_at + self._clock_offset
            error = clean(attempt.error)
            booked.append(
                msgspec.structs.replace(attempt, started_at=started_at, usage=usage, error=error)
            )

    def _set_state(self, record: Record, state: ItemState) -> None:
        self._records[record.item_id] = Record(
            item_id=record.item_id, content=record.content, state=state
        )

    def manifest(self) -> dict[str, Any]:
        """Return what is noted of the run as a whole; empty for a new one."""
        return dict(self._manifest)

    def note(self, facts: Mapping[str, Any], /) -> None:
        """Add to the manifest."""
        self._manifest.update({name: from_json(to_json(value)) for name, value in facts.items()})

    def counts(self) -> dict[ItemState, int]:
        """Count the items by state; each state has an entry."""
        states = [record.state for record in self._records.values()]
        return {state: states.count(state) for state in ItemState}

    def look_up(self, items: Iterable[tuple[str, bytes]], /) -> list[Record | None]:
        """Return, for each id and content, the result that would be kept, or None."""
        found = ((self._records.get(item_id), content) for item_id, content in items)
        return [
            record if record and record.content == content and record.is_settled else None
            for record, content in found
        ]

    def find(self, item_id: str, /) -> Record | None:
        """Return what is known of an item."""
        return self._records.get(item_id)

    def records(self, *states: ItemState) -> Iterator[Record]:
        """Give all items in these states, in the order in which they were first started."""
        return iter([record for record in self._records.values() if record.state in states])

    def attempts(self, item_id: str, /) -> list[Attempt]:
        """Return all attempts of an item, those of earlier runs first."""
        return list(self._attempts.get(item_id, ()))

    def retry(self, codes: Collection[str] | None = None, content: bytes | None = None) -> int:
        """Make failed items pending, so that they are tried again."""
        failed = [
            record
            for record in self.records(ItemState.FAILED)
            if codes is None or record.error_code in codes
        ]
        for record in failed:
            if content is not None:
                record = msgspec.structs.replace(record, content=content)  # noqa: PLW2901
            self._set_state(record, ItemState.PENDING)
        return len(failed)
