"""A run by its name: what its ledger knows, whichever process made it."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, Unpack

from batch_llm.core.request import Settings
from batch_llm.exceptions import ConfigError
from batch_llm.runs.blocking import LoopThread, end
from batch_llm.runs.handle import RunHandle
from batch_llm.runs.ledgers import brief_of, find_ledger, name_of, retry_failed
from batch_llm.runs.options import PaceOptions, pace_of, settings_from
from batch_llm.runs.plan import Plan
from batch_llm.runs.pools import check_model
from batch_llm.runs.prepared import Prepared
from batch_llm.stores.base import ItemState
from batch_llm.stores.file_lock import holder_of
from batch_llm.stores.sqlite import SqliteLedger
from batch_llm.stores.values import reused
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from batch_llm.base import WorkItemResult
    from batch_llm.runs.results import RunResult

_POLL_SECONDS = 1.0


class AttachedRun:
    """A run's ledger: look at it, make failed rows pending, go on with it, wait for its end.

    Looking does not disturb a process that runs it. Outputs are plain data: a ledger has no types.

    Args:
        path: The ledger's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """How the run is called."""
        return name_of(self.path)

    @property
    def is_running(self) -> bool:
        """Whether a process runs it at this moment, this one or another."""
        return holder_of(self.path.resolve()) is not None

    def _open(self) -> SqliteLedger:
        return SqliteLedger(self.path, read_only=True)

    def manifest(self) -> dict[str, Any]:
        """Return what is noted of the run: its settings, retries, versions."""
        with self._open() as ledger:
            return ledger.manifest()

    def counts(self) -> dict[ItemState, int]:
        """Count its rows by state. Rows that were never started are not known to it."""
        with self._open() as ledger:
            return ledger.counts()

    def results(self) -> Iterator[WorkItemResult[Any, None]]:
        """Give the results of finished rows, those that failed among them."""
        return self._records(ItemState.DONE, ItemState.FAILED)

    def failed(self) -> Iterator[WorkItemResult[Any, None]]:
        """Give the results of failed rows."""
        return self._records(ItemState.FAILED)

    def _records(self, *states: ItemState) -> Iterator[WorkItemResult[Any, None]]:
        with self._open() as ledger:
            for record in ledger.records(*states):
                yield reused(record)

    def find(self, item_id: str) -> WorkItemResult[Any, None] | None:
        """Return a row's result; None where it has none."""
        with self._open() as ledger:
            record = ledger.find(item_id)
        is_finished = record is not None and record.state in {ItemState.DONE, ItemState.FAILED}
        return reused(record) if record is not None and is_finished else None

    def retry(
        self,
        only: Collection[str] | None = None,
        *,
        settings: Mapping[str, Any] | Settings | None = None,
        model: str | None = None,
    ) -> int:
        """Make failed rows pending: they are sent when the run goes on.

        Args:
            only: Those with these codes; None for all.
            settings: Instead of the run's, for these rows alone: ``{"max_tokens": 2000}``.
            model: The same for the model.

        Returns:
            Their number.

        Raises:
            ConfigError: There is no such code, or a setting cannot be.
            UnknownModelError: There is no such model.
            MissingKeyError: There is no key for it.
            LedgerInUseError: The run goes on at this moment.
        """
        if only is not None and (isinstance(only, str) or not set(only) <= set(ErrorCode)):
            raise ConfigError("only", only, f"a list of some of {', '.join(ErrorCode)}")
        if model is not None:
            brief = self.manifest().get("brief") or {}
            check_model(model, brief.get("model", model), brief.get("base_url"))
        found = settings if isinstance(settings, Settings) else settings_from(settings or {})
        with SqliteLedger(self.path) as ledger:
            return retry_failed(ledger, only, settings=found, model=model)

    async def submit(self, **pace: Unpack[PaceOptions]) -> RunHandle[Any]:
        """Go on with the run in the background, with what it was made with.

        That is possible where its rows are in a file; otherwise give the same call again.

        Args:
            pace: How fast and how far this time.

        Raises:
            InputError: Its rows are not in a file, or that cannot be read.
            LedgerInUseError: The run goes on at this moment.
        """
        prepared = await asyncio.to_thread(self._prepare, pace)
        return RunHandle(prepared)

    def _prepare(self, pace: PaceOptions) -> Prepared:
        with self._open() as ledger:
            brief = brief_of(ledger, str(self.path), has_server=pace.get("base_url") is not None)
        changes = pace_of(pace)
        changes["base_url"] = changes["base_url"] or brief.base_url
        brief = dataclasses.replace(brief, **changes)
        return Prepared(brief, Plan(brief, uses_index=True))

    async def resume(self, **pace: Unpack[PaceOptions]) -> RunResult[Any]:
        """Go on with the run and return all its results, see ``submit``."""
        handle = await self.submit(**pace)
        try:
            return await handle.result()
        except asyncio.CancelledError:
            await handle.abandon()
            raise

    def resume_sync(self, **pace: Unpack[PaceOptions]) -> RunResult[Any]:
        """Do the same without await."""
        with LoopThread() as thread:
            handle = thread.call(self.submit(**pace))
            return thread.call(handle.result(), lambda count: end(handle, count))

    async def wait(self, *, poll_seconds: float = _POLL_SECONDS) -> dict[ItemState, int]:
        """Wait until no process runs it, and return its counts."""
        while self.is_running:  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(poll_seconds)
        return self.counts()

    def wait_sync(self, *, poll_seconds: float = _POLL_SECONDS) -> dict[ItemState, int]:
        """Do the same without await."""
        with LoopThread() as thread:
            return thread.call(self.wait(poll_seconds=poll_seconds))


def attach(run: str | Path | None = None) -> AttachedRun:
    """Open a run: by its name, as ``batch-llm ls`` calls it; by its ledger's path; or the last one.

    Raises:
        InputError: There is none.
        LedgerError: It cannot be read.
    """
    path = find_ledger(None if run is None else str(run))
    found = AttachedRun(path)
    found.counts()
    return found
