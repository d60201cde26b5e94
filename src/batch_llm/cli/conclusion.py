"""The end of a run: its exit code, and what is said of it to people and to programs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.cli.costs import bill_note, bill_of_run, cost_record
from batch_llm.cli.exit_codes import ExitCode
from batch_llm.cli.next_command import next_command
from batch_llm.cli.progress import say, tell
from batch_llm.cli.summary import summary_lines
from batch_llm.core.text import counted
from batch_llm.exceptions import LedgerError
from batch_llm.runs.ledgers import name_of
from batch_llm.stores.base import NOT_OF_THE_ITEM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm._engine.statistics import Statistics
    from batch_llm.cli.command import Command
    from batch_llm.cli.result_files import ResultFiles
    from batch_llm.core.prices import Bill
    from batch_llm.runs.plan import Plan, Survey
    from batch_llm.runs.session import Session
    from batch_llm.stores.sqlite import SqliteLedger

#: How the settings that end a run are called here.
_FLAGS = {
    "max_cost_usd": "--max-cost",
    "max_tokens_total": "--max-tokens-total",
    "deadline_seconds": "--deadline",
    "max_failed": "--max-failed",
    "max_failed_share": "--max-failed",
}
#: Caps that stand for the run with all its sessions: with the same one it ends at once.
_SPENDING = ("max_cost_usd", "max_tokens_total")

#: Of the signals that end a run; SIGHUP is not there on Windows.
_CODES: dict[int | None, ExitCode] = {
    signal.SIGTERM: ExitCode.TERMINATED,
    getattr(signal, "SIGHUP", None): ExitCode.HUNG_UP,
}


def code_of_stop(session: Session, *, has_reader: bool) -> ExitCode | None:
    """Return what the code is where a session ended itself early; None where it did not.

    Args:
        session: The session.
        has_reader: Whether somebody takes the results still: who leaves early has had enough.
    """
    if not has_reader:
        return ExitCode.OK
    if session.refusal:
        return ExitCode.PROVIDER_REFUSES
    return None if session.stop_reason is None else ExitCode.STOPPED_BY_LIMIT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What is known when a run has ended.

    Attributes:
        command: What was to be done.
        plan: The rows.
        survey: How many of them there were to do.
        session: What has sent them.
        ledger: Where their results are, or None.
        writers: The files of results, or None.
        signal: What stopped it, or None.
        has_reader: Whether somebody takes the results still.
        not_sent: Rows in the file of failed ones that were not sent.
        examples: By code, the first error of a row; a stranger's words.
    """

    command: Command
    plan: Plan
    survey: Survey
    session: Session
    ledger: SqliteLedger | None
    writers: ResultFiles | None
    signal: int | None
    has_reader: bool
    not_sent: int
    examples: Mapping[str, str]

    def tell(self) -> ExitCode:
        """Say how the run has ended, note its bill, and return its code."""
        command, now = self.command, self.session.statistics()
        bad, left = len(self.plan.problems), self._left(now)
        code = self._exit_code(now, bad or left or self.survey.failed)
        bill = bill_of_run(command.prices, now)
        self._note(now, bill)
        record = self._record(now, code, left, bad) | cost_record(bill)
        if command.as_json:
            tell(record)
        self._tell_stops(now)
        if command.quiet:
            self._tell_failed(code, bad)
            return code
        if command.progress == "json":
            say(json.dumps({"schema": 1} | record))
            return code
        self._tell_summary(now, left, bad, bill)
        self._tell_files(bad)
        if (left or code is ExitCode.PROVIDER_REFUSES) and self.ledger is not None:
            self._tell_how_to_go_on(now, self.ledger)
        self._tell_changes()
        return code

    def _left(self, now: Statistics) -> int:
        """Return the rows that have no result yet."""
        return self.survey.left - now.processed + now.failures_by_code.get("cancelled", 0)

    def _note(self, now: Statistics, bill: Bill) -> None:
        """Write the bill down in the ledger."""
        if self.ledger is not None:
            noted = bill_note(now, bill, self.ledger.session, self.command.prices.origin)
            with contextlib.suppress(LedgerError):  # a full disk: the bill is still in the attempts
                self.ledger.note({"bill": noted})

    def _tell_stops(self, now: Statistics) -> None:
        """Say what ended the run early, or parts of it."""
        session = self.session
        if session.refusal:
            say(f"error: {session.refusal}")
        for stopped in now.stopped_lanes:
            if stopped.reason != session.refusal:  # a fallback took over
                say(f"warning: {stopped.reason}")
        if now.stopped_by is not None:
            say(f"stopped by {_FLAGS[now.stopped_by]}: {now.stop_reason}")
        if session.pause is not None:
            say(f"error: {session.pause}")

    def _tell_failed(self, code: ExitCode, bad: int) -> None:
        """Say in a line, where nothing else is said, that rows have failed and where they are."""
        failed = bad if self.writers is None else self.writers.failed.rows
        if failed and code is ExitCode.SOME_FAILED:
            say(f"error: {counted(failed, 'row')} failed, see {self.command.failed}")

    def _tell_summary(self, now: Statistics, left: int, bad: int, bill: Bill) -> None:
        session = self.session
        was_stopped = (
            self.signal is not None or not self.has_reader or session.stop_reason is not None
        )
        verb = "Stopped after" if was_stopped else "Done in"
        say(f"{verb} {now.elapsed_seconds:.1f} s  {self.command.model}")
        summary = summary_lines(
            now,
            not_done=left,
            cancelled=now.failures_by_code.get("cancelled", 0),
            bad_rows=bad,
            left_out=self.plan.left_out,
            reused=self.survey.kept,
            failed_before=self.survey.failed,
            bill=bill,
            examples={} if session.refusal or session.pause else self.examples,  # those said it
        )
        say("\n" + "\n".join(summary) + "\n")

    def _tell_files(self, bad: int) -> None:
        command, writers = self.command, self.writers
        if writers is None:
            return
        if command.output != "-":
            say(f"  results   {command.output} ({counted(writers.results.rows, 'row')})")
        if writers.failed.rows:
            not_sent = f", {self.not_sent:,} of them not sent" if self.not_sent else ""
            rows = counted(writers.failed.rows, "row")
            say(f"  failed    {command.failed} ({rows}{not_sent})")
            goes_on = self.ledger is not None and bool(self.session.refusal)
            are_kept = set(self.session.statistics().failures_by_code) - NOT_OF_THE_ITEM
            if writers.failed.rows > bad and (are_kept or not goes_on):  # else tried again then
                say(f"  next      {next_command(command, self.plan.source.format, sys.argv[2:])}")
        if command.plot is not None and Path(command.plot).exists():
            say(f"  plot      {command.plot}")

    def _tell_how_to_go_on(self, now: Statistics, ledger: SqliteLedger) -> None:
        again = f"batch-llm resume {shlex.quote(name_of(ledger.path))}"
        if now.stopped_by in _SPENDING:
            say(f"  continue  {again} {_FLAGS[now.stopped_by]} MORE  (or the command with it)")
        else:
            say(f"  continue  {again}  (or the same command again)")

    def _tell_changes(self) -> None:
        """Say what somebody else has done to the files meanwhile."""
        if self.plan.source.has_changed():
            say(f"\nwarning: {self.command.input} changed while it was read; check its rows")
        if self.ledger is not None and not self.ledger.path.exists():
            say(
                f"\nwarning: {self.ledger.path} was removed while the run went on; "
                "its answers are in the results alone"
            )

    def _record(self, now: Statistics, code: ExitCode, left: int, bad: int) -> dict[str, Any]:
        """Return the run's end for programs, without its bill."""
        return {
            "event": "done",
            "exit_code": int(code),
            "succeeded": now.succeeded,
            "failed": now.failed - now.failures_by_code.get("cancelled", 0),
            "reused": self.survey.kept,
            "failed_before": self.survey.failed,
            "cached": now.cached,
            "shared": now.shared,
            "bad_rows": bad,
            "left_out": self.plan.left_out,
            "not_done": left,
            "retries": now.retries_by_code,
            "failures": now.failures_by_code,
            "input_tokens": now.input_tokens,
            "output_tokens": now.output_tokens,
            "usage": msgspec.to_builtins(now.usage),
            "usage_before": msgspec.to_builtins(now.usage_before),
            "usage_at_most": msgspec.to_builtins(now.usage_at_most),
            "usage_likely": msgspec.to_builtins(now.usage_likely),
            "stopped_by": now.stopped_by,
            "stop_reason": now.stop_reason,
            "hedged": now.hedged,
            "hedges_won": now.hedges_won,
            "hedge_tokens_lost": now.hedge_tokens_lost,
            "stopped_lanes": msgspec.to_builtins(now.stopped_lanes),
            "limits": msgspec.to_builtins(now.limits),
            "seconds": round(now.elapsed_seconds, 3),
            "output": self.command.output,
        }

    def _exit_code(self, now: Statistics, without_answer: int) -> ExitCode:
        if self.signal is not None:
            return _CODES.get(self.signal, ExitCode.INTERRUPTED)
        stopped = code_of_stop(self.session, has_reader=self.has_reader)
        if stopped is not None:
            return stopped
        return ExitCode.SOME_FAILED if now.failed or without_answer else ExitCode.OK
