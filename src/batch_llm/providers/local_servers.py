"""How many calls a server on the user's own machines works on at once, asked before the first.

Nobody else is asked: a hosted provider tells its limits with its answers. Four requests go out at
a time, to llama.cpp's ``/props``, vLLM's ``/metrics``, ``/v1/models`` and Ollama's
``/api/version``; what has no good answer after a moment counts as none. What servers answer is
hostile text: its size and its numbers are bounded, and nothing in it can fail a run.

Shapes: llama.cpp ``tools/server/README.md``, vLLM ``docs/design/metrics.md`` (its ``max_num_seqs``
is in no metric so far, and taken where a label of that name appears), Ollama ``docs/api.md``.
"""

from __future__ import annotations

import asyncio
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from batch_llm.exceptions import BatchLLMError
from batch_llm.providers.base import Capacity
from batch_llm.strategies.knee import FIRST_CALLS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.providers.registry import Endpoint
    from batch_llm.providers.transport import Looker

#: For all questions together.
ASK_SECONDS = 2.0
#: Of an answer so much is read: vLLM's metrics are a few hundred kilobytes.
MOST_BYTES = 1 << 20
#: More than any server works on; what claims more is no number of slots.
MOST_SLOTS = 65_536
#: vLLM's usual ``max_num_seqs``: it is 256 on most GPUs.
VLLM_SLOTS = 256
#: Where the number is searched, the search starts here: Ollama works on 1 to 4 at once.
OLLAMA_FIRST_CALLS = 4

_PROPS, _METRICS, _MODELS, _OLLAMA = "/props", "/metrics", "/v1/models", "/api/version"
_VLLM_SLOTS = re.compile(rb'^vllm:[^\n]{0,4000}?[{,]max_num_seqs="([0-9]{1,6})"', re.MULTILINE)
_VLLM = re.compile(rb"^vllm:", re.MULTILINE)
#: Names of machines that no public provider has.
_LOCAL_NAMES = (".localhost", ".local", ".lan", ".internal", ".home.arpa")


def is_local_host(host: str | None) -> bool:
    """Tell whether a host is one of the user's own: this machine, a private address or name.

    Names are not looked up.
    """
    if not host:
        return False
    host = host.rstrip(".").lower()
    try:
        return not ip_address(host.partition("%")[0]).is_global
    except ValueError:
        return "." not in host or host.endswith(_LOCAL_NAMES)


async def ask_capacity(looker: Looker, endpoint: Endpoint) -> Capacity | None:
    """Find out how many calls the server of an endpoint works on at once.

    Takes ``ASK_SECONDS`` at the most and never raises, but when it is cancelled.

    Returns:
        None where nothing of ours is to hold the calls back: the simulator of a hosted provider.
    """
    urls = _urls(endpoint.base_url)
    tasks = {
        asyncio.ensure_future(_look(looker, url, endpoint.headers)): path
        for path, url in urls.items()
    }
    answers: dict[str, bytes] = {}
    try:
        await asyncio.sleep(0)  # the client's first step loads its library, which takes a while
        async with asyncio.timeout(ASK_SECONDS):
            waiting = set(tasks)
            while waiting and told_slots(answers) is None:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                answers |= {tasks[task]: task.result() for task in done}
    except TimeoutError:
        pass
    finally:
        late = [task for task in tasks if task.cancel()]
        if late:
            await asyncio.wait(late)
    return read_capacity(answers)


def read_capacity(answers: Mapping[str, bytes]) -> Capacity | None:
    """Return what a server's answers say, by path; empty ones say nothing."""
    slots = told_slots(answers)
    if slots is not None:
        return Capacity(slots, "server")
    owners = _owners(answers.get(_MODELS, b""))
    if "vllm" in owners or _VLLM.search(answers.get(_METRICS, b"")):
        return Capacity(VLLM_SLOTS, "assumed")
    if "simulator" in owners:
        return None
    version = _json(answers.get(_OLLAMA, b""))
    is_ollama = isinstance(version, dict) and isinstance(version.get("version"), str)
    return Capacity(OLLAMA_FIRST_CALLS if is_ollama else FIRST_CALLS, "searched")


def told_slots(answers: Mapping[str, bytes]) -> int | None:
    """Return the number that a server tells outright."""
    props = _json(answers.get(_PROPS, b""))
    if isinstance(props, dict):
        slots = props.get("total_slots")
        if isinstance(slots, int) and not isinstance(slots, bool) and 1 <= slots <= MOST_SLOTS:
            return slots
    found = [int(number) for number in _VLLM_SLOTS.findall(answers.get(_METRICS, b""))]
    slots = max(found, default=0)
    return slots if 1 <= slots <= MOST_SLOTS else None


def _urls(base_url: str) -> dict[str, str]:
    """Return where to ask, by what is asked; a query, which may hold a key, is left out."""
    parts = urlsplit(base_url)
    base = parts.path.rstrip("/")
    root = base.removesuffix("/v1")
    paths = {
        _PROPS: f"{root}/props",
        _METRICS: f"{root}/metrics",
        _MODELS: f"{base}/models",
        _OLLAMA: f"{root}/api/version",
    }
    return {
        name: parts._replace(path=path, query="", fragment="").geturl()
        for name, path in paths.items()
    }


async def _look(looker: Looker, url: str, headers: Mapping[str, str]) -> bytes:
    """Return a good answer's body, or nothing."""
    try:
        response = await looker.get(url, headers, MOST_BYTES)
    except BatchLLMError:
        return b""
    return response.body if response.status == 200 else b""


def _json(body: bytes) -> Any:
    if not body:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _owners(body: bytes) -> set[str]:
    """Return who the models that a server lists are owned by: the kind of server, as a rule."""
    listed = _json(body)
    models = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(models, list):
        return set()
    owners = (model.get("owned_by") for model in models[:1000] if isinstance(model, dict))
    return {owner for owner in owners if isinstance(owner, str)}
