"""``python -m batch_llm.simulator --profile … --port …``: serve until standard input ends.

Prints the base URL on one line when calls are accepted. People use ``batch-llm sim``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading

from batch_llm.simulator.server import serve


def _end_with_parent() -> None:
    # The pipe ends when the parent does, also when it was killed.
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _announce(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m batch_llm.simulator")
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    try:
        serve(options.profile, port=options.port, on_started=_announce)
    except BrokenPipeError:  # the parent is gone already, and nobody will ever call
        return
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    _main()
