"""The simulator as a server: in a thread, in a process of its own, or in the foreground."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import uvicorn

from batch_llm.exceptions import ConfigError
from batch_llm.simulator.app import SimulatorApp, Stats
from batch_llm.simulator.profile import Profile, parse_profile

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

HOST = "127.0.0.1"
START_SECONDS = 20.0
_BACKLOG = 4096


def _open_socket(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
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
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="critical",  # broken-off answers are on purpose
            backlog=_BACKLOG,
            timeout_graceful_shutdown=1,
            server_header=False,
        )
    )


class Simulator:
    """A simulator in a thread of this process, for tests and notebooks.

    Use it as a context manager, or ``start`` and ``stop`` it.

    Args:
        profile: A ``Profile``, or text such as ``"fast?rpm=500&p429=0.05"``.
        port: 0 picks a free one.

    Raises:
        ConfigError: The profile is impossible.
        OSError: The port is in use.
    """

    def __init__(self, profile: str | Profile = "fast", *, port: int = 0) -> None:
        self._app = SimulatorApp(parse_profile(profile) if isinstance(profile, str) else profile)
        self._port = port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start serving; returns when calls are accepted."""
        listener = _open_socket(self._port)
        listener.listen(_BACKLOG)
        self.base_url = _url(listener)
        self._server = server = _server(self._app)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(server._serve([listener])),  # noqa: SLF001 - `serve` takes over the signals, which are the main thread's
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

    def stats(self) -> Stats:
        """Return what was done so far."""
        return self._app.stats()

    def reset(self) -> None:
        """Forget everything: counts, limits, conversations."""
        self._app.reset()


class SimulatorProcess:
    """A simulator in a process of its own, so that it takes no time from this one.

    It ends when this process does, however that ends: it watches the pipe between the two.

    Args:
        profile: Text such as ``"flaky?seed=7"``.

    Raises:
        ConfigError: The profile is impossible; no process was started.
    """

    def __init__(self, profile: str = "fast") -> None:
        parse_profile(profile)
        self._profile = profile
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - our own module, our own arguments
            [sys.executable, "-m", "batch_llm.simulator", self._profile],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, which still needs its provider
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self.base_url = self._process.stdout.readline().strip()
        if not self.base_url:
            self.stop()
            raise ConfigError("sim", self._profile, "startable; its process ended at once")
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

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


def serve(profile: str, *, port: int = 0, on_started: Callable[[str], None]) -> None:
    """Serve in the foreground, on the loopback address only, until SIGINT or SIGTERM.

    Args:
        profile: Text such as ``"fast?rpm=500"``.
        port: 0 picks a free one.
        on_started: Called with the base URL as soon as calls are accepted.

    Raises:
        ConfigError: The profile is impossible.
        OSError: The port is in use.
    """
    app = SimulatorApp(parse_profile(profile))
    listener = _open_socket(port)
    listener.listen(_BACKLOG)
    on_started(_url(listener))
    try:
        _server(app).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()
