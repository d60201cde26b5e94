"""Settings that a model turns out to refuse, where its name did not tell: temperature and top_p.

The first calls fail; they are tried again without the setting, and all later ones go without it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from batch_llm.exceptions import SettingRefusedError, StatusError

if TYPE_CHECKING:
    from batch_llm.core.request import Request

logger = logging.getLogger("batch_llm.requests")

_SAMPLING = ("temperature", "top_p")
#: OpenAI's codes for a parameter, or a value of one, that a model does not take.
_CODES = ("unsupported_parameter", "unsupported_value")
_STATUSES = (400, 422)
_REFUSED = (
    r"(?:not support|unsupported|not available|not allowed|not permitted|not accept|deprecated"
    r"|only be set to|only the default|unknown (?:name|field|parameter)|unrecognized)"
)
_NAMED = r"(?<![a-z_])(?P<{}>temperature|top_?p)(?![a-z_])"
#: In one sentence, the setting and that it is refused: "`temperature` is deprecated for this
#: model", "Unsupported parameter: 'top_p'".
_IN_WORDS = re.compile(
    rf"{_NAMED.format('before')}[^.\n]{{0,120}}{_REFUSED}"
    rf"|{_REFUSED}[^.\n]{{0,80}}{_NAMED.format('after')}",
    re.IGNORECASE,
)
_MOST_READ = 2000


class RefusedSettings:
    """Remembers which endpoints take no sampling settings."""

    def __init__(self) -> None:
        self._endpoints: set[int] = set()

    def applied(self, request: Request, endpoint: object) -> Request:
        """Return what is sent to an endpoint: the request, or it without what is refused there."""
        if not self._endpoints or id(endpoint) not in self._endpoints:
            return request
        return replace(request, settings=replace(request.settings, temperature=None, top_p=None))

    def learn(self, error: Exception, request: Request, endpoint: object, model: str) -> Exception:
        """Look at a failure; return it, or one that says that the next call will be another.

        Args:
            error: What came back.
            request: What was sent.
            endpoint: Where; kept for as long as this object.
            model: Its model's name.
        """
        settings = request.settings
        if settings.temperature is None and settings.top_p is None:
            return error
        name = refused_setting(error)
        if name is None or not isinstance(error, StatusError):
            return error
        if id(endpoint) not in self._endpoints:
            self._endpoints.add(id(endpoint))
            logger.warning("The model %r refuses %s; calls go without it from now on.", model, name)
        return SettingRefusedError(*error.args)


def refused_setting(error: Exception) -> str | None:
    """Return the sampling setting that a model does not take at all; None for any other failure.

    OpenAI names it in a field of its own. Others say it in words; a value that is out of bounds is
    another failure, in words and in OpenAI's codes.
    """
    if not isinstance(error, StatusError) or error.status not in _STATUSES:
        return None
    body = error.body.get("error") if isinstance(error.body, dict) else None
    param = body.get("param") if isinstance(body, dict) else None
    if isinstance(param, str):
        return param if param in _SAMPLING and error.code in _CODES else None
    found = _IN_WORDS.search(error.message[:_MOST_READ])
    if found is None:
        return None
    name = found["before"] or found["after"]
    return "temperature" if name.lower() == "temperature" else "top_p"
