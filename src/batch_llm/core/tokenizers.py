"""Counts tokens where the user has a tokenizer: the only place that knows of one.

Nobody needs one: without it tokens are estimated from characters, and answers make the estimate
fit. Nothing is ever downloaded here.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from batch_llm.exceptions import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm.core.request import Request

#: What chat formats add to each message, and to the whole, as OpenAI counts it.
TOKENS_PER_MESSAGE, TOKENS_PER_REQUEST = 3, 3

_LOADING = threading.Lock()


class _NotHereError(Exception):
    """Stands in the way of a download."""


def open_tokenizer(name: str, setting: str = "count_tokens") -> Callable[[str], int]:
    """Return what counts a text's tokens, from tiktoken's own files on this machine.

    Args:
        name: An encoding (``o200k_base``), or a model that tiktoken knows.
        setting: What the name was given as.

    Raises:
        MissingExtraError: tiktoken is not installed.
        ConfigError: It knows no such name, or the encoding's file is not on this machine.
    """
    try:
        import tiktoken
        import tiktoken.load
    except ImportError:
        raise MissingExtraError(f"{setting} {name}", "tiktoken") from None
    if name not in tiktoken.list_encoding_names():
        try:
            name = tiktoken.encoding_name_for_model(name)
        except KeyError:
            known = ", ".join(sorted(tiktoken.list_encoding_names()))
            raise ConfigError(setting, name, f"a model of OpenAI's, or one of {known}") from None

    def refuse(blobpath: str) -> bytes:
        raise _NotHereError(blobpath)

    with _LOADING:
        # tiktoken fetches what it does not find, and has no setting against it.
        download, tiktoken.load.read_file = tiktoken.load.read_file, refuse
        try:
            encoding = tiktoken.get_encoding(name)
        except _NotHereError:
            raise ConfigError(
                setting,
                name,
                "an encoding whose file is on this machine, because batch-llm downloads none: "
                f"once, run python -c \"import tiktoken; tiktoken.get_encoding('{name}')\" "
                "(TIKTOKEN_CACHE_DIR says where the file is kept)",
            ) from None
        finally:
            tiktoken.load.read_file = download
    encode = encoding.encode_ordinary
    return lambda text: len(encode(text))


def count_request(request: Request, count: Callable[[str], int]) -> int:
    """Return a request's input tokens: its messages' texts, and what the chat format adds."""
    return sum(count(text) for text in request.texts) + (
        TOKENS_PER_MESSAGE * len(request.messages) + TOKENS_PER_REQUEST
    )
