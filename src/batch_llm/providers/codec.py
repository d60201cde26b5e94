"""What a codec is: pure functions between a request and one provider's wire format. No network.

The body that a codec makes is what a live call sends; what comes back, status, headers and body,
it turns into an ``Outcome``. Where calls go and with which key is for ``registry``, how they get
there for ``transport``, what an error means for ``strategies``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from batch_llm.core.request import LENGTH_FIELDS
from batch_llm.exceptions import BadOutputError
from batch_llm.providers.base import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.core.request import Request, Settings


class Codec(ABC):
    """One wire format. Immutable, and equal to another that writes and reads the same."""

    __slots__ = ()

    @abstractmethod
    def path(self, model: str, /) -> str:
        """Return the path of a model's calls behind the base URL, with its leading slash."""

    @abstractmethod
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

    @abstractmethod
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

    def document(self, body: bytes, /) -> bytes:
        """Return a good answer's body as one JSON document, however it came."""
        return body


def wire_model(request: Request, model: str | None) -> str:
    """Return the model's name on the wire."""
    return model if model is not None else request.model.partition(":")[2]


def complaint(feedback: BadOutputError) -> str:
    """Return what the model is told about its answer before."""
    return (
        f"Your answer cannot be used: {feedback.problem}. "
        "Answer again, with nothing but the corrected answer."
    )


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
