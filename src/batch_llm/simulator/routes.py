"""From an address to the wire format that is spoken there. All providers are on one port."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batch_llm.simulator.anthropic_messages import ANTHROPIC
from batch_llm.simulator.azure import AZURE
from batch_llm.simulator.fields import header
from batch_llm.simulator.gemini import GEMINI, GEMINI_ARRAY, GEMINI_STREAM
from batch_llm.simulator.groq import GROQ
from batch_llm.simulator.mistral import MISTRAL
from batch_llm.simulator.openai_chat import OPENAI_CHAT
from batch_llm.simulator.openai_responses import OPENAI_RESPONSES

if TYPE_CHECKING:
    from batch_llm.simulator.fields import Headers
    from batch_llm.simulator.wire import WireFormat


class Route(NamedTuple):
    """What is at an address.

    Attributes:
        wire: How it speaks.
        kind: ``call``, ``count`` (the tokens of a call), ``models`` or ``model``; ``lost`` where
            there is nothing, ``method`` where another method would do.
        model: The name of the model, where it stands in the path.
    """

    wire: WireFormat
    kind: str
    model: str = ""


#: POST to these is a call.
CALLS: dict[str, Route] = {
    path: Route(wire, "call")
    for wire, paths in (
        (OPENAI_CHAT, ("/v1/chat/completions", "/chat/completions")),
        (OPENAI_RESPONSES, ("/v1/responses", "/responses")),
        (ANTHROPIC, ("/v1/messages", "/anthropic/v1/messages")),
        (MISTRAL, ("/mistral/v1/chat/completions",)),
        (GROQ, ("/groq/openai/v1/chat/completions",)),
        (AZURE, ("/azure/openai/v1/chat/completions",)),
    )
    for path in paths
}
#: Groq's and Azure's: Azure's calls have the header ``api-key``.
_SHARED = "/openai/v1/chat/completions"
#: Azure's older addresses; the name of the deployment, which is the model's, stands between them.
_DEPLOYMENTS = ("/openai/deployments/", "/azure/openai/deployments/")
_DEPLOYMENT_END = "/chat/completions"
#: POST to these counts the tokens of a call.
_COUNTS = {
    "/v1/responses/input_tokens": OPENAI_RESPONSES,
    "/responses/input_tokens": OPENAI_RESPONSES,
    "/v1/messages/count_tokens": ANTHROPIC,
    "/anthropic/v1/messages/count_tokens": ANTHROPIC,
}
_METHODS = {
    "generateContent": Route(GEMINI, "call"),
    "streamGenerateContent": Route(GEMINI_STREAM, "call"),
    "countTokens": Route(GEMINI, "count"),
}
#: What an address begins with, and whose it is.
_PREFIXES: tuple[tuple[str, WireFormat], ...] = (
    ("/anthropic/v1", ANTHROPIC),
    ("/mistral/v1", MISTRAL),
    ("/groq/openai/v1", GROQ),
    ("/azure/openai/v1", AZURE),
    ("/openai/v1", GROQ),
    ("/google/v1beta", GEMINI),
    ("/google/v1", GEMINI),
    ("/v1beta", GEMINI),
)


def find(method: str, path: str, headers: Headers, query: bytes) -> Route:
    """Return what is at an address."""
    if method == "POST" and path in _COUNTS:
        return Route(_COUNTS[path], "count")
    if path == _SHARED:
        kind = "call" if method == "POST" else "method"
        return Route(AZURE if header(headers, b"api-key") else GROQ, kind)
    if path.startswith(_DEPLOYMENTS):
        return _deployment(method, path, query)
    wire, rest = _owner(path, headers, query)
    name, colon, action = rest.removeprefix("/models/").partition(":")
    if rest.startswith("/models/") and colon and action in _METHODS:
        if method != "POST":
            return Route(wire, "method")
        route = _METHODS[action]
        if route.wire is GEMINI_STREAM and b"alt=sse" not in query:
            route = Route(GEMINI_ARRAY, "call")
        return route._replace(model=name)
    if method == "GET" and rest == "/models":
        return Route(wire, "models")
    if method == "GET" and rest.startswith("/models/"):
        return Route(wire, "model", rest.removeprefix("/models/"))
    return Route(wire, "method" if path in CALLS or rest == "/models" else "lost")


def _deployment(method: str, path: str, query: bytes) -> Route:
    """Return what is at one of Azure's older addresses, which want a version."""
    name = path.partition("/deployments/")[2].removesuffix(_DEPLOYMENT_END)
    if not name or not path.endswith(_DEPLOYMENT_END) or b"api-version=" not in query:
        return Route(AZURE, "lost")
    return Route(AZURE, "call", name) if method == "POST" else Route(AZURE, "method")


def _owner(path: str, headers: Headers, query: bytes) -> tuple[WireFormat, str]:
    """Return who speaks at a path, and what is left of it.

    What several providers have at the same path is told apart by their headers.
    """
    for prefix, wire in _PREFIXES:
        if path.startswith(prefix + "/"):
            return wire, path.removeprefix(prefix)
    rest = path.removeprefix("/v1")
    if path in CALLS:
        return CALLS[path].wire, rest
    if ":" in rest or header(headers, b"x-goog-api-key") or b"key=" in query:
        return GEMINI, rest
    if header(headers, b"anthropic-version"):
        return ANTHROPIC, rest
    return OPENAI_CHAT, rest
