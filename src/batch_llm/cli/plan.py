"""A job's input, read through and found good before anything is sent."""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from batch_llm.base import LLMWorkItem
from batch_llm.core.request import Request, Settings
from batch_llm.core.text import safe
from batch_llm.exceptions import InputError
from batch_llm.inputs import Problem, Row, Source, Template
from batch_llm.providers import openai
from batch_llm.providers.requests import content_of
from batch_llm.stores.base import ItemState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batch_llm.cli.job import Job
    from batch_llm.stores.base import Record
    from batch_llm.stores.sqlite import SqliteLedger

    Item = LLMWorkItem[Any, Any, Row]

MAX_SHOWN = 10
_CHAT_URL = "/v1/chat/completions"


_SETTLED = (ItemState.DONE, ItemState.FAILED)
_CHUNK = 100


class Survey(NamedTuple):
    """How much of a job's input its ledger has done already.

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


def look_up(ledger: SqliteLedger, chunk: Sequence[Item]) -> list[Record | None]:
    """Return the results that a ledger keeps for these items."""
    return ledger.look_up((item.item_id, _content(item)) for item in chunk)


def _content(item: Item) -> bytes:
    assert item.request is not None  # noqa: S101 - rows are requests
    return content_of(item.item_id, item.request)


class Plan:
    """A job whose input has been read through once and found good.

    Raises:
        InputError: It is not; the message shows the places.
        ConfigError: A flag is wrong.
        OSError: A file cannot be read.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._template = Template(job.prompt) if job.prompt is not None else None
        self._system = Template(job.system) if job.system is not None else None
        numbered = any(t is not None and t.is_numbered for t in (self._template, self._system))
        self.source = Source(
            job.input,
            format=job.format,
            columns=job.columns,
            has_header=False if numbered else None,
            id_column=job.id_column,
            limit=job.limit,
        )
        self._check_columns()
        self.rows = self.characters = 0
        self._bounded_rows = self._most_output = 0
        self._chosen: frozenset[int] | None = None
        self._names: dict[str, None] = dict.fromkeys(self.source.columns)
        self.problems: list[Problem] = []
        self._read_through()

    def _check_columns(self) -> None:
        source = self.source
        self._check_flags_are_used()
        if not source.columns:
            return  # not one good record: what is wrong with them says more
        has_prompts = source.format not in {"rows", "csv", "tsv"} or "prompt" in source.columns
        if self._template is None and not has_prompts:
            columns = ", ".join(safe(column, 40) for column in source.columns)
            raise InputError(
                f"{source.name} has rows of columns, so it needs a prompt\n\n"
                f"  columns: {columns}\n"
                "  --prompt 'Classify {{ column }}' makes one from each row"
            )
        for template in (self._template, self._system):
            problem = template.check(source.columns, source.name) if template else None
            if problem:
                raise InputError(problem)
        if self.job.id_column and self.job.id_column not in source.columns:
            raise InputError(
                f'{source.name} has no column "{safe(self.job.id_column)}" for the ids'
            )

    def _check_flags_are_used(self) -> None:
        """Refuse flags that this shape of input would leave without effect."""
        job, shape = self.job, self.source.format
        flags: dict[str, bool] = {}
        if shape == "openai-batch":
            flags = {
                "--prompt": job.prompt is not None,
                "--system": job.system is not None,
                "--schema or --choices": job.shape is not None,
                "--set": job.settings != Settings(),
            }
        elif shape == "chat" and job.prompt is None:
            flags = {"--system": job.system is not None}
        given = ", ".join(name for name, is_given in flags.items() if is_given)
        if given:
            raise InputError(
                f"{self.source.name} has whole requests ({shape}), which {given} cannot change\n\n"
                "  Leave the flag out, or put it into each line's own request."
            )

    def _read_through(self) -> None:
        count = 0
        for record in self.source:
            if isinstance(record, Problem):
                count += 1
                self.problems.append(record)
                continue
            try:
                request = self.request_for(record)
            except ValueError as error:
                self.problems.append(
                    Problem(
                        record.line,
                        "invalid_row",
                        safe(error),
                        data=record.data,
                        item_id=record.item_id,
                    )
                )
                continue
            self.rows += 1
            self._names.update(dict.fromkeys(record.data))
            self.characters += characters_of(request)
            asked = request.settings.max_tokens
            self._bounded_rows += asked is not None
            self._most_output = max(self._most_output, asked or 0)
        if not self.rows and not self.problems:
            raise InputError(f"{self.source.name} is empty; there is nothing to send")
        if self.problems and self.job.bad_rows == "stop":
            raise InputError(self._explain())
        if self.job.bad_rows == "skip":
            self.problems = []

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
        noun = "line" if bad == 1 else "lines"
        lines = [f"{name} has {bad} bad {noun} of {bad + self.rows}; nothing was sent", ""]
        for problem in self.problems[:MAX_SHOWN]:
            lines += [problem.render(name), ""]
        if bad > MAX_SHOWN:
            lines += [f"  … and {bad - MAX_SHOWN} more", ""]
        lines += [
            "Fix the lines, or run with --bad-rows fail to record them as failed",
            "rows and send the rest (--bad-rows skip leaves them out).",
        ]
        return "\n".join(lines)

    def request_for(self, row: Row) -> Request:
        """Make a row's request.

        Raises:
            ValueError: The row does not give one.
        """
        job, data = self.job, row.data
        if self.source.format == "openai-batch":
            provider = job.model.partition(":")[0]
            return openai.read({"model": "-"} | _batch_body(data), provider)
        if self.source.format == "chat" and self._template is None:
            request = openai.read(
                {"model": "-", "messages": data.get("messages")} | _wire(job), "chat"
            )
            # The wire knows JSON schemas only; a choice comes back as the bare name.
            return request if job.shape is None else replace(request, output=job.shape)
        if self._template is not None:
            prompt = self._template.render(data)
        else:
            prompt = data.get("prompt")  # type: ignore[assignment]
            if not isinstance(prompt, str):
                raise ValueError("`prompt` must be a text")
        system = self._system.render(data) if self._system is not None else None
        return Request.of(job.model, prompt, system=system, output=job.shape, settings=job.settings)

    @property
    def most_output_tokens(self) -> int | None:
        """What one row may write at the most; None where a row does not say."""
        return self._most_output if self._bounded_rows == self.rows else None

    def pilot(self, count: int, job: Job) -> Plan:
        """Return a plan of ``count`` of the rows, spread evenly over the input.

        Args:
            count: How many; all where there are not so many.
            job: The same job, with files of its own for what comes back.
        """
        count = min(count, self.rows)
        due = {position * self.rows // count for position in range(count)}
        chosen = (row.line for number, row in enumerate(self.rows_as_given()) if number in due)
        plan = copy.copy(self)
        plan.job, plan.rows, plan.problems = job, count, []
        plan._chosen = frozenset(chosen)  # noqa: SLF001 - of our own kind
        return plan

    def rows_as_given(self) -> Iterator[Row]:
        """Give the good rows, reading the input once more."""
        for record in self.source:
            if isinstance(record, Row) and (self._chosen is None or record.line in self._chosen):
                with contextlib.suppress(ValueError):
                    self.request_for(record)
                    yield record

    def survey(self, ledger: SqliteLedger) -> Survey:
        """Read the input once more, and find out how much of it the ledger has done already."""
        kept = failed = changed = 0
        for chunk in chunks(self.items()):
            for item, record in zip(chunk, look_up(ledger, chunk), strict=True):
                if record is None:
                    before = ledger.find(item.item_id)
                    changed += (
                        before is not None
                        and before.state in _SETTLED
                        and before.content != _content(item)
                    )
                elif record.state is ItemState.DONE:
                    kept += 1
                else:
                    failed += 1
        return Survey(self.rows, kept, failed, changed)

    def items(self) -> Iterator[LLMWorkItem[Any, Any, Row]]:
        """Give the good rows as items, reading the input a second time."""
        for record in self.source:
            if isinstance(record, Row) and (self._chosen is None or record.line in self._chosen):
                with contextlib.suppress(ValueError):  # found before, and told
                    yield LLMWorkItem(
                        record.item_id, request=self.request_for(record), context=record
                    )


def characters_of(request: Request) -> int:
    """Count the characters of a request's messages."""
    return sum(
        len(message.content) if isinstance(message.content, str) else 0
        for message in request.messages
    )


def _batch_body(line: dict[str, Any]) -> dict[str, Any]:
    body = line.get("body")
    if not isinstance(body, dict):
        raise ValueError("`body` must be an object")  # noqa: TRY004 - bad input, not a bug
    url = line.get("url", _CHAT_URL)
    if not isinstance(url, str) or not url.endswith("/chat/completions"):
        raise ValueError(f"`url` is {url!r}; this version sends {_CHAT_URL} only")
    if body.get("stream"):
        raise ValueError("`stream` cannot be used: a row has one whole answer")
    return body


def _wire(job: Job) -> dict[str, Any]:
    """Return the settings and the shape of a job, as fields of a wire body."""
    body: dict[str, Any] = json.loads(
        openai.CHAT.encode(Request.of("x:-", "-", output=job.shape, settings=job.settings))
    )
    del body["messages"], body["model"]
    return body
