"""What is wrong with a call, as data: each wire format says it in its own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

#: Keys and models by which a caller asks for trouble; every other one is good.
BAD_KEY, FORBIDDEN_KEY, MISSING_MODEL = b"invalid", b"forbidden", "missing"
TROUBLING_KEYS = (BAD_KEY, FORBIDDEN_KEY)
_JSON = b"application/json"


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """An answer with an error status.

    Args:
        status: The HTTP status.
        message: For people.
        body: What is sent.
        headers: Further headers.
        request_id: The id that stands in the body too; empty where none does.
        kind: The body's content type.
    """

    def __init__(
        self,
        status: int,
        message: str,
        body: bytes,
        headers: dict[str, str] | None = None,
        request_id: bytes = b"",
        kind: bytes = _JSON,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.headers = headers or {}
        self.request_id = request_id
        self.kind = kind


class Flaw(Exception):  # noqa: N818 - a finding; each format turns it into a refusal
    """What is wrong with a call's body, before a format says it in its words.

    Args:
        kind: ``json``, ``missing``, ``type``, ``value``, ``empty``, ``below``, ``above``,
            ``schema`` or ``other``.
        where: The field, such as ``messages[0].role``; empty for the whole body.
        expected: The type, the bound, or the values that would do.
        value: What was there instead.
        message: For people, where the rest does not say it.
    """

    def __init__(
        self, kind: str, where: str = "", expected: str = "", value: Any = None, message: str = ""
    ) -> None:
        super().__init__(message or f"{kind}: {where}")
        self.kind = kind
        self.where = where
        self.expected = expected
        self.value = value
        self.message = message


class Trouble(NamedTuple):
    """An error answer, as data.

    Attributes:
        status: HTTP's.
        kind: What a format calls its ``type`` or ``status``.
        code: What it calls its code or reason.
        text: For people; may name ``{model}``, ``{tokens}``, ``{most}``, ``{method}``, ``{path}``.
    """

    status: int
    kind: str | None
    code: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Excess:
    """What a call was too much for.

    Attributes:
        kind: The limit: ``requests``, ``tokens``, ``input_tokens`` or ``output_tokens`` per minute,
            or ``requests_a_day``.
        model: The model's name.
        limit: What may pass.
        used: What has passed.
        asked: What the call counts.
        seconds: Until it may pass.
        retry_after: How to say that: ``header``, ``decimal``, ``ms``, ``date`` or
            ``none``.
        now: Seconds since 1970.
    """

    kind: str
    model: str
    limit: float
    used: float
    asked: int
    seconds: float
    retry_after: str
    now: float = 0.0
