"""The simulator as a server: in a thread, in a process of its own, or in the foreground."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from batch_llm.exceptions import ConfigError
from batch_llm.simulator.addresses import sdk_url
from batch_llm.simulator.app import IF_UNREAD, RESET, SimulatorApp
from batch_llm.simulator.profile import Profile, parse_profile

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from batch_llm.simulator.account import Stats
    from batch_llm.simulator.billed import BilledCall

HOST = "127.0.0.1"
_LOOPBACK = (HOST, "localhost")
_BACKLOG = 4096
#: Longer than clients keep idle connections, so that it is never we who close one just as they
#: send: that would be a fault that nobody asked for.
_KEEP_ALIVE_SECONDS = 600
#: With this, closing a socket resets the connection instead of ending it in order.
_LINGER_ZERO = struct.pack("ii", 1, 0)
#: Linux' name of a connection's state after a reset; after an orderly end it is another.
_TCP_CLOSE = 7


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, plus ASGI extensions.

    One resets the connection. The other finds out whether an answer was collected. A client that
    hangs up, or is killed, before an answer is whole has not collected it. When it goes while a
    part of the answer is still in its socket, unread, its system resets the connection instead of
    ending it; so it does when the answer comes to a socket that is closed. And a client that sends
    another call has read the answer before.
    """

    _if_unread: Callable[[], None] | None = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._if_unread = None
        self.scope["extensions"] = {RESET: self._reset, IF_UNREAD: self._watch}  # type: ignore[dict-item]

    def connection_lost(self, exc: Exception | None) -> None:
        if_unread, self._if_unread = self._if_unread, None
        if if_unread is not None:
            is_whole = self.cycle.response_complete
            if not is_whole or exc is not None or was_reset(self.transport):
                if_unread()
        super().connection_lost(exc)

    def _watch(self, if_unread: Callable[[], None]) -> None:
        if self.cycle.disconnected:
            if_unread()
        else:
            self._if_unread = if_unread

    def _reset(self) -> None:
        raw = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.transport.abort()


def was_reset(transport: asyncio.Transport) -> bool:
    """Tell whether the other side has reset a connection that is over.

    Where its end was read first, and the reset came after it, asyncio tells of the end alone. The
    system knows more, where it can be asked.
    """
    what = getattr(socket, "TCP_INFO", None)
    if what is None:
        return False
    try:
        state = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, what, 1)
    except (OSError, AttributeError):
        return False
    return bool(state[0] == _TCP_CLOSE)


def _open_socket(port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ConfigError("port", port, "from 0 to 65535")
    # With the protocol named, asyncio turns Nagle's algorithm off. Without it (0), an answer
    # waits 40 ms between its head and its body for the client's delayed acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, f"port {port} on {HOST} cannot be used: {error.strerror}"
        ) from None
    return listener


def _url(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}/v1"


def _server(app: SimulatorApp) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="critical",  # broken-off answers are on purpose
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
            server_header=False,
            proxy_headers=False,
        )
    )


class Simulator:
    """A simulator in a thread of this process, for tests and notebooks.

    Use it as a context manager, or ``start`` and ``stop`` it.

    Args:
        profile: A ``Profile``, or text such as ``"fast?rpm=500&p429=0.05"``.
        port: 0 picks a free one.
        seed: Instead of the profile's own, unless None.

    Attributes:
        base_url: ``http://127.0.0.1:PORT/v1`` from ``start`` on, for OpenAI's SDK; empty before.

    Raises:
        ConfigError: The profile is impossible.
    """

    def __init__(
        self, profile: str | Profile = "fast", *, port: int = 0, seed: int | None = None
    ) -> None:
        chosen = parse_profile(profile) if isinstance(profile, str) else profile
        if seed is not None:
            chosen = dataclasses.replace(chosen, seed=seed)
        self._app = SimulatorApp(chosen)
        self._port = port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start serving, with nothing remembered; returns when calls are accepted.

        Raises:
            ConfigError: The port is no port number.
            OSError: The port is in use.
        """
        if self._thread is not None:
            return self
        # Calls that come before the thread runs wait in the backlog; none is refused.
        listener = _open_socket(self._port)
        self.base_url = _url(listener)
        self._app.reset()
        self._server = server = _server(self._app)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(server.serve([listener])),
            name="batch-llm-simulator",
            daemon=True,
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving; open calls are cut off after a second."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
            self._server = self._thread = None

    def sdk_url(self, provider: str) -> str:
        """Return the base URL for the SDK of a provider.

        Args:
            provider: ``openai``, ``anthropic``, ``google``, ``mistral`` or ``groq``.
        """
        return sdk_url(self.base_url, provider)

    def stats(self) -> Stats:
        """Return what was done so far; still there after ``stop``."""
        return self._app.stats()

    def billed_calls(self) -> list[BilledCall] | None:
        """Return what was billed, call by call; None without the option ``log=on``."""
        return self._app.billed_calls()

    def reset(self) -> None:
        """Forget everything: counts, limits, conversations."""
        self._app.reset()


class SimulatorProcess:
    """A simulator in a process of its own, so that it takes no time from this one.

    It ends when this process does, however that ends: it watches the pipe between the two.

    Args:
        profile: Text such as ``"flaky?seed=7"``.
        port: 0 picks a free one.

    Attributes:
        base_url: ``http://127.0.0.1:PORT/v1`` from ``start`` on, for OpenAI's SDK; empty before.

    Raises:
        ConfigError: The profile is impossible; no process was started.
    """

    def __init__(self, profile: str = "fast", *, port: int = 0) -> None:
        parse_profile(profile)
        self._profile = profile
        self._port = port
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the process; returns when calls are accepted.

        Raises:
            OSError: It ended at once, most likely because the port is in use; its own words are
                on standard error.
        """
        if self._process is not None:
            return self
        options = ["--profile", self._profile, "--port", str(self._port)]
        self._process = subprocess.Popen(  # noqa: S603 - our own module, our own arguments
            [sys.executable, "-m", "batch_llm.simulator", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, which still needs its provider
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self.base_url = self._process.stdout.readline().strip()
        if not self.base_url:
            self.stop()
            raise OSError(f"the simulator {self._profile!r} (port {self._port}) did not start")
        return self

    def sdk_url(self, provider: str) -> str:
        """Return the base URL for the SDK of a provider.

        Args:
            provider: ``openai``, ``anthropic``, ``google``, ``mistral`` or ``groq``.
        """
        return sdk_url(self.base_url, provider)

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def serve(
    profile: str, *, port: int = 0, host: str = HOST, on_started: Callable[[str], None]
) -> None:
    """Serve in the foreground, on the loopback address only, until SIGINT or SIGTERM.

    Args:
        profile: Text such as ``"fast?rpm=500"``.
        port: 0 picks a free one.
        host: ``127.0.0.1`` or ``localhost``, which are the same; no other is served.
        on_started: Called with the base URL as soon as calls are accepted.

    Raises:
        ConfigError: The profile, the port or the host is impossible.
        OSError: The port is in use.
    """
    if host not in _LOOPBACK:
        raise ConfigError("host", host, f"{' or '.join(_LOOPBACK)}: it answers any key")
    app = SimulatorApp(parse_profile(profile))
    listener = _open_socket(port)
    try:
        on_started(_url(listener))
        _server(app).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()
