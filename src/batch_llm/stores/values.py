"""Values of results as a ledger keeps them: plain text and numbers, whatever they were."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.base import WorkItemResult
from batch_llm.core.plain import as_plain
from batch_llm.core.usage import MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.stores.base import Record

#: What looks like a key, in an error of some SDK.
_KEY_LIKE = re.compile(r"(?<![A-Za-z0-9])(sk|rk|pk|gsk|xai)-[A-Za-z0-9_*-]{8,}|(?<=Bearer )\S{8,}")
_HIDDEN = "[key]"


class DamagedTextError(ValueError):
    """A text that should be JSON is none. Whoever knows of which file it is says that."""

    def __init__(self, error: ValueError) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return f"the file is damaged; `batch-llm verify` says more ({self.error})"


def clean(text: object) -> str | None:
    """Return text that can be written as UTF-8 and holds nothing like a key; None for None."""
    if text is None:
        return None
    found = text if isinstance(text, str) else str(text)
    if not found.isascii():
        found = found.encode("utf-8", "backslashreplace").decode()
    return _KEY_LIKE.sub(_HIDDEN, found)


def plain_usage(usage: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the token counts of ``usage`` alone: a hook may have left anything there."""
    if usage and _are_counts(usage):
        return dict(usage)
    return {
        str(kind): min(value, MOST_TOKENS)
        for kind, value in (usage or {}).items()
        if isinstance(value, int) and value >= 0
    }


def _are_counts(usage: Mapping[str, Any]) -> bool:
    for kind, value in usage.items():
        if kind.__class__ is not str or value.__class__ is not int or not 0 <= value <= MOST_TOKENS:
            return False
    return True


#: Input and output tokens, all kinds as JSON where there are others, and all as JSON.
UsageColumns = tuple[int | None, int | None, str | None, str]


def usage_columns(usage: Mapping[str, Any] | None) -> UsageColumns:
    """Return input and output tokens, all kinds as JSON where there are others, and all as JSON."""
    if usage is not None and len(usage) == 3:
        get = usage.get
        sent, got, total = get("input_tokens"), get("output_tokens"), get("total_tokens")
        if (
            sent.__class__ is got.__class__ is total.__class__ is int
            and sent >= 0 <= got
            and sent + got == total <= MOST_TOKENS
        ):
            text = f'{{"input_tokens":{sent},"output_tokens":{got},"total_tokens":{total}}}'
            return sent, got, None, text
    plain = usage if usage and _are_counts(usage) else plain_usage(usage)
    text = to_json(plain)
    return plain.get("input_tokens"), plain.get("output_tokens"), text, text


def usage_from(sent: int | None, got: int | None, further: str | None) -> dict[str, int] | None:
    """Read what ``usage_columns`` has returned."""
    if further is not None:
        return dict(from_json(further))
    if sent is None or got is None:
        return None
    return {"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got}


def key_of(item_id: str) -> str | bytes:
    """Return what stands for an id in a file: itself, if UTF-8 can hold it."""
    if item_id.isascii():
        return item_id
    try:
        item_id.encode()
    except UnicodeEncodeError:
        return item_id.encode("utf-8", "surrogatepass")
    return item_id


def id_of(key: str | bytes) -> str:
    """Return the id that a key stands for."""
    return key if isinstance(key, str) else key.decode("utf-8", "surrogatepass")


def to_json(value: Any) -> str:
    """Write a value as JSON. A pydantic model is written as its fields.

    Raises:
        TypeError: It is no plain data.
        ValueError: It holds itself.
    """
    try:
        return _encode(value).decode()
    except (UnicodeEncodeError, OverflowError):  # half a character; a number of more than 64 bits
        return json.dumps(value, default=_fields)


def from_json(text: str | None) -> Any:
    """Read what ``to_json`` wrote.

    Raises:
        DamagedTextError: It is no JSON.
    """
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        try:
            return json.loads(text)
        except ValueError as error:
            raise DamagedTextError(error) from error


def _fields(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return as_plain(value) if dump is None else dump(mode="json")


_encode = msgspec.json.Encoder(enc_hook=_fields).encode


def reused(record: Record) -> WorkItemResult[Any, Any]:
    """Return a record as the result that it was."""
    result: WorkItemResult[Any, Any] = WorkItemResult(
        record.item_id,
        record.error is None,
        record.output,
        record.error,
        None,
        dict(record.usage),
        record.safety_ratings,
    )
    result.error_code, result.attempts = record.error_code, record.attempts
    result.duration_seconds, result.model = record.seconds, record.model
    result.response_body, result.is_reused = record.response_body, True
    return result
