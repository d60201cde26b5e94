"""What providers say when something is wrong, as errors of ours. Pure functions.

Bodies are hostile: they are cut, and no key that was sent or that looks like one is repeated. What
an error means to a run is for ``strategies.http_errors``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.exceptions import MalformedResponseError, StatusError
from batch_llm.strategies.http_errors import named_status

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXCERPT_CHARACTERS = 200
_MAX_KEPT_BODY_BYTES = 100_000
#: What looks like a key, wherever a server repeats it.
_KEY_LIKE = re.compile(
    rb"(?<![A-Za-z0-9])(sk|rk|pk|gsk|xai|csk|fw)[-_][A-Za-z0-9_*-]{8,}"
    rb"|(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{8,}|(?<=Bearer )[^\s\"]{8,}"
)
_HIDDEN = b"[key]"
#: Shorter ones are placeholders for servers that want any key; they may be ordinary words.
_MIN_SECRET_CHARACTERS = 8


def malformed(reason: str, body: bytes, secret: str) -> MalformedResponseError:
    """Say that a success came with a body that is no answer; its beginning is shown."""
    text = _without_keys(body[:_MAX_KEPT_BODY_BYTES], secret)[:_EXCERPT_CHARACTERS]
    return MalformedResponseError(reason, text.decode("utf-8", "replace"))


def inner_status(trouble: Any) -> int:
    """Return the status that an error inside a 200 would have had outside."""
    return named_status(trouble) or 500


def status_error(
    status: int, headers: Mapping[str, str], body: bytes, secret: str, trouble: Any = None
) -> StatusError:
    """Build the error of a body.

    Args:
        status: The HTTP status, or the one that is meant.
        headers: Of the answer.
        body: As it came.
        secret: The key that was sent.
        trouble: The body's error object, when that is not at the top.
    """
    body = _without_keys(body[:_MAX_KEPT_BODY_BYTES], secret)
    decoded: Any
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = body.decode("utf-8", "replace")
    message, code = "", None
    inner = decoded[0] if isinstance(decoded, list) and len(decoded) == 1 else decoded
    if isinstance(inner, dict):
        inner = inner.get("error") or (trouble if trouble is not None else inner)
    else:
        inner = decoded
    if isinstance(inner, dict):
        message, code = _words(inner), _code(inner)
    elif inner is not None:
        message = str(inner)[:_EXCERPT_CHARACTERS]
    if 300 <= status < 400 and not message:
        message = "the server redirects; the base URL is wrong"
    return StatusError(status, message, code, _plain(headers), decoded)


def _words(error: dict[str, Any]) -> str:
    message = error.get("message")
    if not message and isinstance(detail := error.get("detail"), str | list):
        if isinstance(detail, list):  # of a validation, one for each place
            detail = "; ".join(
                f"{'.'.join(map(str, one.get('loc') or ()))}: {one.get('msg')}".lstrip(": ")
                for one in detail[:5]
                if isinstance(one, dict)
            )
        return detail[:_EXCERPT_CHARACTERS]
    return str(message or "")


def _code(error: dict[str, Any]) -> str | None:
    """Return the most telling of an error's names."""
    details = error.get("details")
    told = details.get("error_code") if isinstance(details, dict) else None
    code = error.get("code")
    if type(code) is int and isinstance(error.get("status"), str):  # Google's name for it
        code = error["status"]
    found = told or code or error.get("type")
    return str(found) if found is not None else None


def _without_keys(body: bytes, secret: str) -> bytes:
    if len(secret) >= _MIN_SECRET_CHARACTERS:
        body = body.replace(secret.encode(), _HIDDEN)
    return _KEY_LIKE.sub(_HIDDEN, body)


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    """Copy headers to a dict of clean text: bytes that are none came as lone surrogates."""
    return {
        name.lower(): value.encode("utf-8", "replace").decode() for name, value in headers.items()
    }
