"""Which format an input has, told by its suffix and its first record."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Literal, get_args

Format = Literal["openai-batch", "chat", "prompt", "rows", "csv", "tsv", "txt"]

FORMATS: tuple[Format, ...] = get_args(Format)
_BY_SUFFIX: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".txt": "txt"}


def format_of_suffix(name: str) -> Format | None:
    """Return the format that a file name settles; None for JSON lines, whose record decides."""
    return _BY_SUFFIX.get(PurePath(name).suffix.lower())


def format_of_record(record: object) -> Format:
    """Return the format of a decoded JSON line."""
    if isinstance(record, str):
        return "prompt"
    if not isinstance(record, dict):
        return "rows"
    if "custom_id" in record and "body" in record:
        return "openai-batch"
    if isinstance(record.get("messages"), list):
        return "chat"
    return "prompt" if "prompt" in record else "rows"


def foreign_format(record: Any) -> str | None:
    """Return the name of a batch format that this version knows but cannot run, or None."""
    if not isinstance(record, dict):
        return None
    if "custom_id" in record and isinstance(record.get("params"), dict):
        return "Anthropic"
    if "key" in record and isinstance(record.get("request"), dict):
        return "Gemini"
    return None
