"""One thread that acts for everyone: what was put in meanwhile is one group, done at once."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterator

T = TypeVar("T")

#: A group has so many at the most: each of them waits for the whole of it.
_MOST_AT_ONCE = 2000


class GroupThread(Generic[T]):
    """Hands what was put in to ``act``, in order, in groups, in a thread of its own.

    Args:
        name: The thread's.
        act: Does a group whole or not at all; raises when it could not.
        settle: Called in the event loop with each group and the error, or None. Not called for
            groups that were put in without a loop, or whose loop is closed by then.
        linger_seconds: How long a group's first member waits for others.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[list[T]], None],
        settle: Callable[[list[T], BaseException | None], None],
        *,
        linger_seconds: float,
    ) -> None:
        self._act = act
        self._settle = settle
        self._linger_seconds = linger_seconds
        self._waiting: list[T] = []
        self._lock = threading.Lock()
        self._has_work = threading.Condition(self._lock)
        self._is_idle = threading.Condition(self._lock)
        self._is_acting = False
        self._hurries = threading.Event()
        self._is_closing = False
        #: Set once, by the thread; read by everyone.
        self.error: BaseException | None = None
        self._loop: AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def attach(self, loop: AbstractEventLoop) -> None:
        """Settle in this loop from now on."""
        self._loop = loop

    def put(self, entry: T) -> None:
        """Accept an entry; its turn comes."""
        with self._has_work:
            self._waiting.append(entry)
            if len(self._waiting) == 1:
                self._has_work.notify()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Do nothing while the block lasts, and everything that was put in before it first."""
        with self._has_work:
            while (self._waiting or self._is_acting) and self.error is None:
                self._hurries.set()
                self._is_idle.wait()
            self._hurries.clear()
            yield

    def close(self) -> None:
        """Do what is left, and end the thread."""
        with self._has_work:
            self._is_closing = True
            self._has_work.notify()
        self._hurries.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._has_work:
                while not self._waiting and not self._is_closing:
                    self._has_work.wait()
                if not self._waiting:
                    return
            self._hurries.wait(self._linger_seconds)
            with self._has_work:
                group = self._waiting[:_MOST_AT_ONCE]
                del self._waiting[:_MOST_AT_ONCE]
                self._is_acting = True
            if self.error is None:
                try:
                    self._act(group)
                except Exception as error:  # noqa: BLE001 - whatever it is, who waits must hear it
                    self.error = error
            self._tell(group)
            with self._has_work:
                self._is_acting = False
                if not self._waiting or self.error is not None:
                    self._is_idle.notify_all()

    def _tell(self, group: list[T]) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._settle, group, self.error)
