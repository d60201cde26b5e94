"""The command that runs a run's failed rows."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from batch_llm.cli.command import fresh_paths
from batch_llm.runs.ledgers import name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_llm.cli.command import Command

#: Flags that say what is left to do does not share with what was done.
_NOT_REPEATED = {
    "-o": 1,
    "--output": 1,
    "--failed": 1,
    "--limit": 1,
    "--format": 1,
    "--overwrite": 0,
}


def next_command(command: Command, input_format: str, words: Sequence[str]) -> str:
    """Return the command that runs the failed rows.

    With a ledger, it goes on with the run; otherwise it is this one, with their file as input.
    What it must not share with this run is said outright, whatever the settings files say.

    Args:
        command: Of the run that ends.
        input_format: As it was found.
        words: The run's own command, behind ``run``.
    """
    if command.ledger is not None:
        return f"batch-llm retry {shlex.quote(name_of(Path(command.ledger)))}"
    kept = _repeated(command, words)
    output, failed = fresh_paths(command.failed)
    kept += ["-o", output, "--failed", failed]
    if command.format is not None:
        kept += ["--format", _format_of_failed(command, input_format)]
    return shlex.join(["batch-llm", "run", *kept])


def _repeated(command: Command, words: Sequence[str]) -> list[str]:
    """Return the words that the next command shares, with the failed rows as input."""
    kept: list[str] = []
    arguments, is_replaced = iter(words), False
    for word in arguments:
        name, equals, _ = word.partition("=")
        if name in _NOT_REPEATED:
            if _NOT_REPEATED[name] and not equals:
                next(arguments, None)
        elif word.startswith("-o"):  # -oFILE
            continue
        elif word == command.input and not is_replaced:
            kept.append(command.failed)
            is_replaced = True
        else:
            kept.append(word)
    return kept


def _format_of_failed(command: Command, input_format: str) -> str:
    suffix = Path(command.failed).suffix.lower().removeprefix(".")
    if suffix in {"csv", "tsv"}:
        return suffix
    return {"txt": "prompt", "csv": "rows", "tsv": "rows"}.get(input_format, input_format)
