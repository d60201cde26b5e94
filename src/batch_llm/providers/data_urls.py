"""``data:`` URLs: pictures inside of a request."""

from __future__ import annotations

from base64 import b64encode
from typing import NamedTuple
from urllib.parse import unquote_to_bytes


class Held(NamedTuple):
    """What a ``data:`` URL holds.

    Attributes:
        media_type: Such as ``image/png``.
        base64: The bytes, in base64.
    """

    media_type: str
    base64: str


def split_data_url(url: str) -> Held | None:
    """Return what a ``data:`` URL holds; None for any other URL."""
    if url[:5].lower() != "data:":
        return None
    head, _, data = url[5:].partition(",")
    media_type, *parameters = head.split(";")
    media_type = media_type.strip() or "text/plain"
    if "base64" in (parameter.strip().lower() for parameter in parameters):
        return Held(media_type, data)
    return Held(media_type, b64encode(unquote_to_bytes(data)).decode())
