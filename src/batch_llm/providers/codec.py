"""What a codec is: pure functions between a request and one provider's wire format. No network.

The body that a codec makes is what a live call sends; what comes back, status, headers and body,
it turns into an ``Outcome``. Where calls go and with which key is for ``registry``, how they get
there for ``transport``, what an error means for ``strategies``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from batch_llm.core.plain import as_plain
from batch_llm.core.request import LENGTH_FIELDS
from batch_llm.exceptions import BadOutputError
from batch_llm.providers.base import Outcome
from batch_llm.providers.failures import malformed, status_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batch_llm.core.request import Message, Request, Settings

#: Whose messages are the system's, where a format has them beside the conversation.
_SYSTEM_ROLES: Final = ("system", "developer")
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

to_json = msgspec.json.Encoder(enc_hook=as_plain).encode


class Codec(ABC):
    """One wire format. Immutable, and equal to another that writes and reads the same.

    A format says what is its own: how a body is written (``_body``), and what an answer that was
    read means (``_outcome``). An answer is read into the format's own types; one that does not fit
    them, field by field.
    """

    __slots__ = ()

    #: What an answer of the format is, for people.
    _answer_name: ClassVar[str]
    #: An object without any of these fields is none.
    _answer_fields: ClassVar[frozenset[str]]

    @abstractmethod
    def path(self, model: str, /) -> str:
        """Return the path of a model's calls behind the base URL, with its leading slash."""

    def encode(
        self,
        request: Request,
        /,
        *,
        attempt: int = 1,
        model: str | None = None,
        feedback: BadOutputError | None = None,
    ) -> bytes:
        """Return the body of a call.

        Args:
            request: What to ask.
            attempt: The attempt's number, from 1: it picks the temperature.
            model: The model's name on the wire; default: ``request.model`` without its provider.
            feedback: Why the answer before did not fit: the model is shown it and told.

        Raises:
            UnsupportedRequestError: The format has no place for a part of the request.
        """
        name = model if model is not None else request.model.partition(":")[2]
        return to_json(self._body(request, attempt, name, feedback))

    @abstractmethod
    def _body(
        self, request: Request, attempt: int, model: str, feedback: BadOutputError | None, /
    ) -> dict[str, Any]:
        """Return the body of a call, see ``encode``."""

    def decode(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        request: Request,
        /,
        *,
        secret: str = "",
    ) -> Outcome:
        """Read an answer. What is wrong with it is in the outcome, together with what it cost.

        The output is the text, or what the request's schema makes of it; the list of tool calls, as
        on the wire, when the model answered with those. Never raises.

        Args:
            status: The HTTP status.
            headers: Looked at only when something is wrong.
            body: As it came.
            request: What was asked.
            secret: The key that was sent: no error repeats it, whatever the server says.
        """
        if not 200 <= status < 300:
            return Outcome(error=status_error(status, headers, body, secret))
        answer = self.document(body)
        try:
            found = self._read(answer)
        except _UNREADABLE:
            found = self._salvaged(answer)
            if found is None:
                reason = f"The answer is not {self._answer_name}"
                return Outcome(error=malformed(reason, body, secret))
        return self._outcome(found, headers, answer, request, secret)

    @staticmethod
    @abstractmethod
    def _read(answer: bytes, /) -> Any:
        """Read an answer into the format's types.

        Raises:
            msgspec.DecodeError: It does not fit them.
        """

    def _salvaged(self, answer: bytes) -> Any:
        """Read what does not fit, so that an odd field in a place of no matter spoils nothing."""
        try:
            raw = msgspec.json.decode(answer)
        except _UNREADABLE:
            return None
        if isinstance(raw, list) and len(raw) == 1:  # Google's way
            raw = raw[0]
        if not isinstance(raw, dict) or raw.keys().isdisjoint(self._answer_fields):
            return None
        return self._read_fields(raw)

    @staticmethod
    @abstractmethod
    def _read_fields(raw: dict[str, Any], /) -> Any:
        """Read an answer field by field; what is of another kind than it should be is not there."""

    @abstractmethod
    def _outcome(
        self,
        found: Any,
        headers: Mapping[str, str],
        answer: bytes,
        request: Request,
        secret: str,
        /,
    ) -> Outcome:
        """Say what an answer means that was read.

        Args:
            found: What ``_read`` or ``_read_fields`` returned.
            headers: Its headers.
            answer: What it was read from, see ``document``.
            request: What was asked.
            secret: The key that was sent.
        """

    def document(self, body: bytes, /) -> bytes:
        """Return a good answer's body as one JSON document, however it came."""
        return body


def system_apart(messages: Iterable[Message]) -> tuple[list[Message], list[Message]]:
    """Return the messages of the system, and the conversation."""
    system: list[Message] = []
    others: list[Message] = []
    for message in messages:
        (system if message.role in _SYSTEM_ROLES else others).append(message)
    return system, others


def complaint(feedback: BadOutputError) -> str:
    """Return what the model is told about its answer before."""
    return (
        f"Your answer cannot be used: {feedback.problem}. "
        "Answer again, with nothing but the corrected answer."
    )


def correction(feedback: BadOutputError) -> list[dict[str, Any]]:
    """Return the messages that show a model its answer before, and say what is wrong."""
    return [
        {"role": "assistant", "content": feedback.text},
        {"role": "user", "content": complaint(feedback)},
    ]


def text_of(value: Any) -> str | None:
    """Return a text; None for anything else."""
    return value if isinstance(value, str) else None


def other_fields(settings: Settings) -> dict[str, Any]:
    """Return the further fields without those that ``longest_answer`` and ``stops`` read."""
    return {
        name: value
        for name, value in settings.extra.items()
        if name not in LENGTH_FIELDS and name != "stop"
    }


def stops(settings: Settings) -> list[str] | None:
    """Return the sequences that end an answer, wherever the settings have them."""
    if settings.stop is not None:
        return list(settings.stop)
    stop = settings.extra.get("stop")
    if isinstance(stop, str):
        return [stop]
    return stop if isinstance(stop, list) else None


def answered(
    text: str,
    usage: dict[str, int] | None,
    model: str | None,
    request: Request,
    ratings: dict[str, str] | None = None,
) -> Outcome:
    """Return the outcome of a whole answer: its text, or the value that the schema makes of it."""
    if request.output is None:
        return Outcome(text, usage, None, model, ratings)
    try:
        return Outcome(request.output.parse(text), usage, None, model, ratings)
    except BadOutputError as error:
        return Outcome(None, usage, error, model, ratings)
