"""Models, opened: who sends requests to them, and the connections and simulators behind that.

Where a model is, is for ``registry``; how a call is made, for ``requests``; this holds both
together for as long as they are used, and closes them.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from batch_llm.providers.registry import open_pool
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from batch_llm.providers.registry import Endpoint


class OpenModels:
    """Sends each request to the model that it names.

    Connections, and the simulators of ``sim:`` names, are opened when they are needed. After
    ``aclose`` it can be used again, in another event loop too.

    Attributes:
        caller: Who sends the requests.
    """

    def __init__(self) -> None:
        self._transport = HttpTransport()
        self._opened = ExitStack()
        self.caller = RequestCaller(self._open, self._transport)

    def _open(self, model: str) -> Sequence[Endpoint]:
        return self._opened.enter_context(open_pool(model))

    async def aclose(self) -> None:
        """Close what is open."""
        self.caller.forget()
        self._opened.close()
        await self._transport.aclose()


@asynccontextmanager
async def open_model(
    model: str,
    *,
    base_url: str | None = None,
    keys: Sequence[str] = (),
    ignore_slots: bool = False,
) -> AsyncGenerator[RequestCaller]:
    """Open a model for the requests of a processor: ``ParallelBatchProcessor(requests=)``.

    All its requests are sent to this model, whatever model they name; those of an item's fallback
    to the fallback. A simulator runs until the block is left; connections are closed then.

        async with open_model("openai:gpt-6-luna", keys=["FIRST_KEY", "SECOND_KEY"]) as luna:
            processor = ParallelBatchProcessor(requests=luna)

    Args:
        model: ``"provider:model"``, such as ``"openai:gpt-6-luna"`` or ``"sim:fast"``.
        base_url: Another address, as the provider's SDK takes it (of OpenAI's kind up to ``/v1``);
            several that serve the model: ``URL,URL``.
        keys: Names of variables with keys, used side by side, instead of the provider's usual one.
        ignore_slots: Do not ask a local server how many calls it works on at once.

    Raises:
        UnknownModelError: There is no such model.
        MissingKeyError: There is no key for it.
        ConfigError: An address, a key or a simulator's profile cannot be used.
        OSError: The simulator could not be started.
    """
    transport = HttpTransport()
    with ExitStack() as opened:
        # In another thread: a simulator takes a while to start.
        pool = await asyncio.to_thread(
            opened.enter_context, open_pool(model, base_urls=base_url, keys=keys)
        )
        caller = RequestCaller(
            pool,
            transport,
            ignore_slots=ignore_slots,
            fallback=lambda name: opened.enter_context(open_pool(name)),
        )
        try:
            yield caller
        finally:
            await transport.aclose()
