"""What the command's exit status says."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """0 only when every row succeeded."""

    OK = 0
    SOME_FAILED = 1
    REFUSED = 2  # bad flags, input, key or model; nothing was sent
    STOPPED_BY_LIMIT = 3
    PROVIDER_REFUSES = 4
    BUG = 70
    CANNOT_WRITE = 74  # rows were sent, but a result could not be written
    HUNG_UP = 129  # the terminal was closed
    INTERRUPTED = 130
    TERMINATED = 143
