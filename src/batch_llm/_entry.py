"""Where the ``batch-llm`` command begins: from here on Ctrl-C is one line, and never a traceback.

Only the command imports this: it takes over SIGINT as soon as it is read, unless somebody else has.
"""

from __future__ import annotations

# No more than this, all of it loaded with Python: each module is time in which Ctrl-C shows a
# traceback. `signal` loads `enum` and its like, which take longer than all else here.
import os
import sys
from _signal import (  # type: ignore[import-not-found]
    SIGINT,
    default_int_handler,
    getsignal,
    signal,
)

INTERRUPTED = "Interrupted."


def leave(number: int, frame: object) -> None:  # noqa: ARG001
    """End the process at once: nothing is open that could be lost.

    While modules load, a ``KeyboardInterrupt`` comes out of other people's code, as something else
    at times; while Python ends, as "Exception ignored in …".
    """
    if sys.stderr is not None:  # else it was closed, and 2 may be the number of any file
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


_is_ours = getsignal(SIGINT) is default_int_handler
if _is_ours:
    signal(SIGINT, leave)


def main() -> int:
    """Run the command line; return its exit code."""
    from batch_llm.cli import main as run_command

    code = run_command(on_loaded=_raise_from_now_on)
    if _is_ours:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):  # nobody reads it; or it is closed
                continue
        signal(SIGINT, leave)
    return code


def _raise_from_now_on() -> None:
    """Let Ctrl-C be the command's own affair."""
    if _is_ours:
        signal(SIGINT, default_int_handler)
