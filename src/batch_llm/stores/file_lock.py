"""A lock that one process holds and that its end frees, however it ends."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from batch_llm.exceptions import LedgerInUseError

if TYPE_CHECKING:
    from typing import IO

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_while_open(file: IO[bytes]) -> bool:
    """Keep other processes that ask from writing a file, until it is closed; readers may read it.

    Returns:
        False where another one has it. Where files cannot be locked so, nobody is kept from it.
    """
    if sys.platform == "win32":  # there a lock keeps readers out
        return True
    try:
        _take(file.fileno())
    except BlockingIOError:
        return False
    except OSError:  # a network drive, say
        return True
    return True


class FileLock:
    """Holds ``<path>.lock`` until ``release``.

    The file itself stays: who removed it would let two processes lock two files of one name.

    Args:
        path: The file that is protected.

    Raises:
        LedgerInUseError: Another process, or another lock of this one, holds it.
        OSError: The folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = Path(f"{path}.lock").open("a+b")  # noqa: SIM115 - held until `release`
        try:
            _take(self._file.fileno())
        except (BlockingIOError, PermissionError):
            self._file.seek(0)
            owner = self._file.read(20).strip()
            self._file.close()
            raise LedgerInUseError(str(path), int(owner) if owner.isdigit() else None) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def release(self) -> None:
        """Let others have it."""
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()


def holder_of(path: Path) -> int | None:
    """Return the number of the process that holds a path's lock; None where none does.

    Takes no lock itself: a process that begins at this moment is not refused.
    """
    try:
        owner = Path(f"{path}.lock").read_bytes()[:20].strip()
    except OSError:
        return None
    if not owner.isdigit():
        return None
    number = int(owner)
    if sys.platform == "win32":  # there, to ask whether a process lives may end it
        return number
    try:
        os.kill(number, 0)
    except ProcessLookupError:  # killed; the lock went with it
        return None
    except PermissionError:
        pass
    return number
