"""Files that hold no rows as they are: told by their first bytes, with the way to make rows of one.

Read as lines they would be thousands of bad ones, and none of them would say what is the matter.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import msgspec

from batch_llm.core.text import safe
from batch_llm.exceptions import InputError
from batch_llm.inputs.lines import BOM

if TYPE_CHECKING:
    from pathlib import Path

_LOOKED_AT = 1 << 16
_NO_LINES_OF_JSON = {".csv", ".tsv", ".tab", ".txt"}
#: The first bytes, what it is, and what makes a file of rows of it.
_KINDS = (
    (b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip -c {file} > FILE"),
    (b"BZh91AY&SY", "compressed by bzip2", "unpack it: bunzip2 -c {file} > FILE"),
    (b"\xfd7zXZ\0", "compressed by xz", "unpack it: unxz -c {file} > FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it: unzstd -c {file} > FILE"),
    (b"PK\x03\x04", "a ZIP archive, as Excel's files are", "unpack it, or save its sheet as CSV"),
    (b"PAR1\x15", "a Parquet file", "read it as one: --format parquet"),
    (b"SQLite format 3\0", "an SQLite database", "export its rows as CSV"),
    (b"\xff\xfe", "UTF-16", "make it UTF-8: iconv -f UTF-16 -t UTF-8 {file} > FILE"),
    (b"\xfe\xff", "UTF-16", "make it UTF-8: iconv -f UTF-16 -t UTF-8 {file} > FILE"),
)


def check_holds_rows(path: Path, name: str, format: str | None, suffix: str) -> None:  # noqa: A002
    """Refuse a file that cannot hold rows as it is.

    Args:
        path: The file.
        name: How it is called in errors.
        format: What it is said to be; None: nobody says.
        suffix: Of its name.

    Raises:
        InputError: It says what it is, and what to do.
        OSError: The file cannot be read.
    """
    if format == "parquet" or (format is None and suffix == ".parquet"):
        return  # whoever reads it says what is wrong with it
    with path.open("rb") as file:
        beginning = file.read(_LOOKED_AT)
    for mark, kind, remedy in _KINDS:
        if beginning.startswith(mark):
            raise _refusal(name, kind, remedy)
    is_other = suffix in _NO_LINES_OF_JSON if format is None else format in {"csv", "tsv", "txt"}
    if not is_other and _is_array(beginning):
        remedy = "make it lines: jq -c '.[]' {file} > FILE.jsonl"
        raise _refusal(name, "one JSON array, and not a record on each line", remedy)


def _refusal(name: str, kind: str, remedy: str) -> InputError:
    shown = safe(name, 200)
    return InputError(f"{shown} is {kind}; {remedy.format(file=shlex.quote(shown))}")


def _is_array(beginning: bytes) -> bool:
    """Tell whether a list begins that is more than the first of several lines."""
    text = beginning.removeprefix(BOM).lstrip()
    if not text.startswith(b"["):
        return False
    first, _, rest = text.partition(b"\n")
    try:
        msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True
    return not rest.strip()
