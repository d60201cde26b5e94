"""``python -m batch_llm.simulator PROFILE``: serve until standard input ends."""

from __future__ import annotations

import os
import signal
import sys
import threading

from batch_llm.simulator.server import serve


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _announce(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    threading.Thread(target=_end_with_parent, daemon=True).start()


serve(sys.argv[1] if len(sys.argv) > 1 else "fast", on_started=_announce)
