"""Every error this package raises on purpose.

    BatchLLMError
    ├── ConfigError (also ValueError)             a setting has an impossible value
    ├── DuplicateItemError (also ValueError)      an item id was used before in this run
    ├── MissingExtraError (also ImportError)      an optional package is not installed
    ├── UnknownModelError (also ValueError)       no such provider, or no model in the name
    ├── MissingKeyError                           the provider's key is not in the environment
    ├── InputError                                a file or flag cannot be used; nothing was sent
    ├── OutputExistsError                         an output file is there already
    │   └── OutputInUseError                      another process is writing it
    ├── OutputLostError                           a result could not be written; the run stops
    │   └── OutputGoneError                       its file was removed or replaced meanwhile
    ├── StoreError                                a result could not be saved; the run stops
    ├── LedgerError                               a ledger cannot be opened, read or written
    │   ├── LedgerInUseError                      another process has it
    │   └── SettingsChangedError                  its run was made with other settings
    ├── CacheError                                a cache of answers cannot be opened or changed
    ├── RowsFailedError                           asked for: some rows of a run have no output
    ├── SourceError                               the iterable of items failed in mid-run
    └── ItemError                                 one attempt of one item failed; the run goes on
        ├── AttemptTimeoutError (also TimeoutError)  the attempt took too long
        ├── RateLimitedTooOftenError              refused so often that waiting longer is pointless
        ├── LimitPauseError                       the limit opens again later than one will wait
        ├── LaneStoppedError                      the lane refuses everything; it was not sent
        ├── UnknownPriceError                     money is capped, and the call has no known price
        ├── UnsupportedRequestError               the format has no place for a part of it
        ├── CallCancelledError                    the call cancelled itself
        ├── AbandonedError                        the run was stopped while the item was in flight
        └── ProviderError                         the provider answered, but not with a good answer
            ├── StatusError                       HTTP status 400 or above
            │   └── SettingRefusedError           … for a setting that the next call goes without
            ├── TransportError (also ConnectionError)  no answer: refused, reset, cut off
            ├── MalformedResponseError            an answer, but not in the provider's format
            ├── BadOutputError                    the model's text does not fit the output schema
            ├── TruncatedError                    the model hit its token limit in mid-answer
            ├── ContextLengthError                the conversation filled the model's context
            ├── RefusedError                      the model declined to answer
            └── ContentFilteredError              the provider's filter withheld the answer

A message answers three questions: what happened, with the values that caused it; what was
expected; what to do next. ``args`` always equal the constructor's arguments, so errors survive
``pickle`` and ``copy``; the sentence is built in ``__str__``.

Exceptions carry no accounting: tokens spent on a failed attempt travel in the attempt's record.
"""

from __future__ import annotations

from typing import Any


class BatchLLMError(Exception):
    """Base of every error raised on purpose by this package.

    Attributes:
        partial: When the error ended a run: the ``BatchResult`` of the items that were finished.
            None otherwise, and from a stream, which has handed its results out already.
    """

    partial: Any = None


class ConfigError(BatchLLMError, ValueError):
    """A setting has a value that cannot work.

    Attributes:
        setting: The field's name.
        value: What it was.
        expected: The bound, worded to follow "must be".
    """

    def __init__(self, setting: str, value: object, expected: str) -> None:
        super().__init__(setting, value, expected)
        self.setting = setting
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.setting} must be {self.expected}, got {self.value!r}."


class DuplicateItemError(BatchLLMError, ValueError):
    """Two items of one run have the same id."""

    def __init__(self, item_id: str) -> None:
        super().__init__(item_id)
        self.item_id = item_id

    def __str__(self) -> str:
        return (
            f"item_id {self.item_id!r} is already in this run. Results are matched by id, so "
            "each item needs an id of its own."
        )


class MissingExtraError(BatchLLMError, ImportError):
    """A feature was asked for whose optional package is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(feature, extra)
        self.feature = feature
        self.extra = extra

    def __str__(self) -> str:
        return (
            f"{self.feature} needs an extra: uv add 'batch-llm[{self.extra}]'  "
            f"(pip install 'batch-llm[{self.extra}]')"
        )


class UnknownModelError(BatchLLMError, ValueError):
    """A model name cannot be resolved.

    Attributes:
        model: The name as given.
        reason: One sentence: what is wrong with it.
        suggestion: A name that may have been meant, or None.
    """

    def __init__(self, model: str, reason: str, suggestion: str | None = None) -> None:
        super().__init__(model, reason, suggestion)
        self.model = model
        self.reason = reason
        self.suggestion = suggestion

    def __str__(self) -> str:
        hint = f" Did you mean {self.suggestion}?" if self.suggestion else ""
        return f'Unknown model "{self.model}". {self.reason}{hint}'


class MissingKeyError(BatchLLMError):
    """A provider's key is not in the environment."""

    def __init__(self, provider: str, variable: str) -> None:
        super().__init__(provider, variable)
        self.provider = provider
        self.variable = variable

    def __str__(self) -> str:
        return (
            f"No key for {self.provider}: it reads {self.variable} from the environment. "
            f"Run: export {self.variable}=…"
        )


class InputError(BatchLLMError):
    """The input, or a flag, cannot be used as it is. Nothing was sent."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


class OutputExistsError(BatchLLMError):
    """An output file is there already, and may hold answers that were paid for.

    Attributes:
        path: The file.
        flag: The command's flag that names another one; empty where code names it.
    """

    def __init__(self, path: str, flag: str = "--output") -> None:
        super().__init__(path, flag)
        self.path = path
        self.flag = flag

    def __str__(self) -> str:
        other = f"Name another with {self.flag}" if self.flag else "Name another"
        way = "--overwrite" if self.flag else "overwrite=True"
        return f"{self.path} exists. {other}, or replace it: {way}."


class OutputInUseError(OutputExistsError):
    """Another process is writing an output file. Nothing was changed."""

    def __str__(self) -> str:
        return f"another process is writing {self.path}. Wait for its end, or name another file" + (
            f" with {self.flag}." if self.flag else "."
        )


class OutputLostError(BatchLLMError):
    """A result could not be written. Everything before it is in the file."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        if self.path == "-":
            return (
                f"a result could not be written to standard output: {self.reason}. "
                "The run was stopped; the rows before it are there."
            )
        return (
            f"a result could not be written to {self.path}: {self.reason}. The run was stopped; "
            "the rows before it are in the file."
        )


class OutputGoneError(OutputLostError):
    """A file of results is not at its path any more: somebody removed or replaced it."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "it was removed or replaced")
        self.args = (path,)

    def __str__(self) -> str:
        return (
            f"{self.path} was removed or replaced while it was written; it does not hold all "
            "rows. Where the run has a ledger, the same command again writes what is missing, "
            "and sends nothing twice."
        )


class StoreError(BatchLLMError):
    """A result could not be saved. The run stops; what was accepted before is safe."""

    def __init__(self, item_id: str, reason: str) -> None:
        super().__init__(item_id, reason)
        self.item_id = item_id
        self.reason = reason

    def __str__(self) -> str:
        return f"The result of item {self.item_id!r} could not be saved: {self.reason}"


class LedgerError(BatchLLMError):
    """A ledger cannot be opened, read or written. What it had accepted before is in it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"the ledger {self.path} cannot be used: {self.reason}"


class LedgerInUseError(LedgerError):
    """Another process has the ledger open for writing. Nothing was changed.

    Attributes:
        process: The other process's number, or None where it is not known.
    """

    def __init__(self, path: str, process: int | None) -> None:
        super().__init__(path, "another process runs it")
        self.args = (path, process)
        self.process = process

    def __str__(self) -> str:
        who = f"process {self.process}" if self.process else "another process"
        return f"{who} is running {self.path}. Wait for its end, or stop it first."


class CacheError(BatchLLMError):
    """A cache of answers cannot be opened or changed. The answers in it are as they were."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"the cache {self.path} cannot be used: {self.reason}"


class SettingsChangedError(LedgerError):
    """A run goes on only with the settings that it was made with. Nothing was changed.

    Attributes:
        differences: By setting: what it was, and what it is now.
    """

    def __init__(self, path: str, differences: dict[str, tuple[str, str]]) -> None:
        super().__init__(path, "its run was made with other settings")
        self.args = (path, differences)
        self.differences = differences

    def __str__(self) -> str:
        return (
            f"{self.shown}\n\nAnother name (or store) is another run; overwrite=True starts this "
            "one anew, and keeps its old ledger."
        )

    @property
    def shown(self) -> str:
        """What is different, without what to do about it."""
        width = max(map(len, self.differences), default=0)
        of_before = max((len(before) for before, _ in self.differences.values()), default=0)
        lines = [
            f"    {name:<{width}}   {before:<{of_before}}  →  {after}"
            for name, (before, after) in self.differences.items()
        ]
        return "\n".join([f"{self.path} was made with other settings", "", *lines])


class RowsFailedError(BatchLLMError):
    """Some rows of a run have no usable output. ``partial`` is the run's result.

    Attributes:
        rows: All of the run.
        codes: The failed ones by code.
        first: The first of them: its id and error, as text of strangers.
    """

    def __init__(self, rows: int, codes: dict[str, int], first: str) -> None:
        super().__init__(rows, codes, first)
        self.rows = rows
        self.codes = codes
        self.first = first

    def __str__(self) -> str:
        reasons = ", ".join(f"{code} {count}" for code, count in self.codes.items())
        failed = sum(self.codes.values())
        return f"{failed} of {self.rows} rows failed ({reasons}); the first is {self.first}"


class SourceError(BatchLLMError):
    """The iterable that gives the items raised. Its error is the ``__cause__``.

    Items that it had given before were finished first.

    Attributes:
        given: Items taken from the iterable before it failed.
        reason: The iterable's error, as text.
    """

    def __init__(self, given: int, reason: str) -> None:
        super().__init__(given, reason)
        self.given = given
        self.reason = reason

    def __str__(self) -> str:
        return f"The source of items failed after {self.given} items: {self.reason}"


class ItemError(BatchLLMError):
    """One attempt of one item failed. Other items are unaffected."""


class AttemptTimeoutError(ItemError, TimeoutError):
    """An attempt took longer than it may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"No answer within {self.seconds:g} s."


class RateLimitedTooOftenError(ItemError):
    """The provider refused an item so often that waiting longer is pointless.

    The last refusal is the ``__cause__``.
    """

    def __init__(self, refusals: int, last_error: str) -> None:
        super().__init__(refusals, last_error)
        self.refusals = refusals
        self.last_error = last_error

    def __str__(self) -> str:
        return (
            f"Rate limited {self.refusals} times, the last time with {self.last_error}. "
            "Raise RetryConfig.max_rate_limits to wait longer, or lower the concurrency."
        )


class LimitPauseError(ItemError):
    """A limit (one per day, say) lets no call in for longer than the run will wait.

    Attributes:
        lane: The lane's name; empty where there is one only.
        seconds: Until the next call.
        reason: The dimension that is used up, or what else closed the lane.
    """

    def __init__(self, lane: str, seconds: float, reason: str = "") -> None:
        super().__init__(lane, seconds, reason)
        self.lane = lane
        self.seconds = seconds
        self.reason = reason

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return (
            f"The limits of {self.lane or 'the provider'} allow the next call in "
            f"{self.seconds:,.0f} s{reason}, longer than the longest pause. Run what is left "
            "later, or raise --longest-pause (ProcessorConfig.longest_pause_seconds)."
        )


class LaneStoppedError(ItemError):
    """A lane refused so many items in a row that nothing more is sent there.

    The item says nothing of itself: it was not sent, and is tried again when the run goes on.

    Attributes:
        model: The lane's model, or whatever else it is called.
        code: How it refuses: a value of ``strategies.errors.ErrorCode``.
        in_a_row: Items that were refused so.
        last_error: The last refusal: hostile text.
        remedy: What to do about it.
    """

    def __init__(
        self, model: str, code: str, in_a_row: int, last_error: str, remedy: str = ""
    ) -> None:
        super().__init__(model, code, in_a_row, last_error, remedy)
        self.model = model
        self.code = code
        self.in_a_row = in_a_row
        self.last_error = last_error
        self.remedy = remedy

    def __str__(self) -> str:
        remedy = f" {self.remedy}" if self.remedy else ""
        return (
            f"{self.model or 'the provider'} refuses everything ({self.code}, {self.in_a_row} in a "
            f"row), the last time with {self.last_error.rstrip('.')}.{remedy}"
        )


class UnknownPriceError(ItemError):
    """Money is capped, and nobody knows what a call of this model costs. It was not sent."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return (
            f"No price is known for {self.model or 'items without a model name'}, so a cap on cost "
            "cannot be kept; the call was not sent. Give its price (--prices FILE, "
            "ProcessorConfig.prices), or cap tokens instead (--max-tokens-total, max_tokens_total)."
        )


class UnsupportedRequestError(ItemError):
    """A provider's wire format has no place for a part of the request. It was not sent.

    Attributes:
        wire_format: The format's name.
        part: What has no place in it.
    """

    def __init__(self, wire_format: str, part: str) -> None:
        super().__init__(wire_format, part)
        self.wire_format = wire_format
        self.part = part

    def __str__(self) -> str:
        return (
            f"{self.wire_format} has no place for {self.part}; the request was not sent. "
            "Leave it out, or use a model of another provider."
        )


class CallCancelledError(ItemError):
    """The call raised ``CancelledError`` although nobody had cancelled it from outside."""

    def __str__(self) -> str:
        return "The call cancelled itself."


class AbandonedError(ItemError):
    """The run was stopped without waiting for this item."""

    def __str__(self) -> str:
        return "The run was stopped before this item had its answer."


class ProviderError(ItemError):
    """The provider's side of an attempt failed."""


class StatusError(ProviderError):
    """The provider answered with an HTTP status of 400 or above, or an error inside a 200.

    Attributes:
        status: The HTTP status.
        message: The provider's message, as sent: hostile text.
        code: The provider's error code or type, or None.
        headers: Response headers with lower-case names.
        body: The decoded JSON body, or the text where it is not JSON.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        body: Any = None,
    ) -> None:
        super().__init__(status, message, code, headers, body)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}
        self.body = body

    @property
    def status_code(self) -> int:
        """The HTTP status, by the name that SDK exceptions use."""
        return self.status

    def __str__(self) -> str:
        code = f" ({self.code})" if self.code else ""
        return f"HTTP {self.status}{code}: {self.message}"


class SettingRefusedError(StatusError):
    """The model refuses a temperature or top_p. It is tried again without."""

    def __str__(self) -> str:
        return f"{super().__str__()} (tried again without it)"


class TransportError(ProviderError, ConnectionError):
    """There was no complete answer: refused, reset or cut off.

    Attributes:
        reason: What failed.
        was_never_sent: Whether there was no connection, so that the call cannot have cost anything.
    """

    def __init__(self, reason: str, was_never_sent: bool = False) -> None:  # noqa: FBT001, FBT002
        super().__init__(reason, was_never_sent)
        self.reason = reason
        self.was_never_sent = was_never_sent

    def __str__(self) -> str:
        return self.reason


class MalformedResponseError(ProviderError):
    """A success status came with a body that is not the provider's format."""

    def __init__(self, reason: str, excerpt: str = "") -> None:
        super().__init__(reason, excerpt)
        self.reason = reason
        self.excerpt = excerpt

    def __str__(self) -> str:
        return f"{self.reason}: {self.excerpt!r}" if self.excerpt else self.reason


class BadOutputError(ProviderError):
    """The model's answer does not fit the output schema.

    Attributes:
        text: What the model wrote.
        problem: What is wrong with it, worded so that the model can be told.
    """

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(text, problem)
        self.text = text
        self.problem = problem

    def __str__(self) -> str:
        return f"The answer does not fit the schema: {self.problem}"


class TruncatedError(ProviderError):
    """The model reached its token limit before the end of its answer.

    Attributes:
        text: The answer so far.
        max_tokens: The limit that was asked for, or None.
    """

    def __init__(self, text: str, max_tokens: int | None = None) -> None:
        super().__init__(text, max_tokens)
        self.text = text
        self.max_tokens = max_tokens

    def __str__(self) -> str:
        limit = f" of {self.max_tokens} tokens" if self.max_tokens else ""
        return (
            f"The answer was cut off at the limit{limit} after {len(self.text)} characters. "
            "Raise max_tokens."
        )


class ContextLengthError(ProviderError):
    """Prompt and answer together filled the model's context before the end of the answer.

    Attributes:
        text: The answer so far.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return (
            f"The model's context was full after {len(self.text)} characters of the answer. "
            "Shorten the prompt, or use a model with a longer context."
        )


class RefusedError(ProviderError):
    """The model declined to answer."""

    def __init__(self, refusal: str) -> None:
        super().__init__(refusal)
        self.refusal = refusal

    def __str__(self) -> str:
        return f"The model refused: {self.refusal}"


class ContentFilteredError(ProviderError):
    """The provider's content filter withheld the answer."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"The content filter withheld the answer{': ' + self.detail if self.detail else '.'}"
