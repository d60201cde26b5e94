"""What exceptions say that carry no status: strangers that only quote a provider's answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from batch_llm.strategies.default_classifier import DefaultErrorClassifier, status_of
from batch_llm.strategies.http_errors import judge_status

if TYPE_CHECKING:
    from batch_llm.strategies.errors import ErrorInfo

#: Longer texts are cut before they are searched.
_MOST_CHARACTERS = 20_000


class WordedErrorClassifier(DefaultErrorClassifier):
    """Judges as the default does; where that finds no status, by the wordings of one provider.

    The default knows every provider's answers and the exceptions of its SDK. These are for code
    that turns them into exceptions of its own: ``RuntimeError("… insufficient_quota …")``.

    Attributes:
        wordings: Patterns, the first that is found counts, with the status that is meant. What the
            pattern has found is taken for the error's code.
    """

    wordings: ClassVar[tuple[tuple[str, int], ...]] = ()
    _patterns: ClassVar[tuple[tuple[re.Pattern[str], int], ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._patterns = tuple(
            (re.compile(pattern, re.IGNORECASE), status) for pattern, status in cls.wordings
        )

    def classify(self, exception: Exception, /) -> ErrorInfo:
        """Return the verdict; unknown errors are retryable."""
        verdict = super().classify(exception)
        if verdict.error_category not in {"unknown", "rate_limit"}:
            return verdict
        try:
            if status_of(exception) is not None or exception.__cause__ is not None:
                return verdict
            text = str(exception)[:_MOST_CHARACTERS]
        except Exception:  # noqa: BLE001 - a stranger's exception may raise when it is looked at
            return verdict
        for pattern, status in self._patterns:
            if match := pattern.search(text):
                return judge_status(status, {"code": match[0].lower(), "message": text})
        return verdict
