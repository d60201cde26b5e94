"""The ``batch-llm`` command."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def main(on_loaded: Callable[[], None] = lambda: None) -> int:
    """Run the command line; return its exit code.

    Args:
        on_loaded: Called when the commands are loaded: from then on Ctrl-C may raise.
    """
    try:
        return _main(on_loaded)
    except KeyboardInterrupt:  # outside of a run, which listens to signals
        print("Interrupted.", file=sys.stderr)
        return 130


def _main(on_loaded: Callable[[], None]) -> int:
    from cyclopts.exceptions import CycloptsError

    from batch_llm.cli.app import app
    from batch_llm.cli.exit_codes import ExitCode
    from batch_llm.exceptions import BatchLLMError

    on_loaded()
    try:
        _load_dotenv()
        _check_settings()
        code = app(exit_on_error=False, print_error=True)
        return int(code) if isinstance(code, int) else ExitCode.OK
    except CycloptsError:
        return ExitCode.REFUSED
    except BatchLLMError as error:
        from batch_llm.exceptions import OutputLostError, StoreError

        _explain(error)
        is_lost = isinstance(error, OutputLostError | StoreError)
        return ExitCode.CANNOT_WRITE if is_lost else ExitCode.REFUSED
    except BrokenPipeError:
        # Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except OSError as error:
        _explain(error)
        return ExitCode.REFUSED
    except Exception:  # noqa: BLE001 - the last line of defence: a bug is told as one, and its trace is kept
        _report_bug()
        return ExitCode.BUG


def _explain(error: Exception) -> None:
    """Say what happened and what to do, with the way to try it without any provider."""
    import contextlib

    from batch_llm.core.text import safe
    from batch_llm.exceptions import (
        CacheError,
        LedgerError,
        LedgerInUseError,
        MissingKeyError,
        OutputGoneError,
        OutputLostError,
        SettingsChangedError,
        StoreError,
        UnknownModelError,
    )

    lines = str(error)
    if isinstance(error, OSError) and error.strerror:
        used = f"{error.filename} cannot be used: " if error.filename else ""
        lines = f"{used}{error.strerror}"
    if isinstance(error, SettingsChangedError):
        resume = f"batch-llm resume {error.path}"
        width = len(resume)
        lines = error.shown + (
            f"\n\n  {'--new':<{width}}   starts a new run beside it (with -o: another one)\n"
            f"  {'--overwrite':<{width}}   starts anew, in its place\n"
            f"  {resume}   continues with the old settings"
        )
    elif isinstance(error, LedgerError) and not isinstance(error, LedgerInUseError):
        lines += (
            "\n\n  --store PATH   keeps the ledger elsewhere"
            "\n  --no-store     keeps none; the run cannot be continued then"
        )
        if "damaged" in error.reason:
            lines += "\n  --overwrite    starts anew in its place, and keeps it as .old"
    elif isinstance(error, CacheError):
        lines += "\n\n  --cache FOLDER   uses another one; without it, every row is sent"
        if "damaged" in error.reason:
            lines += f"\n  rm {error.path}*   removes it; its answers are asked for again"
    elif isinstance(error, StoreError):
        lines += "\n\n  the same command again goes on, once that is put right"
    elif isinstance(error, OutputLostError) and not isinstance(error, OutputGoneError):
        lines += "\n\n  where the run has a ledger, the same command again writes the rest"
    if isinstance(error, UnknownModelError):
        hint = f" Did you mean {error.suggestion}?" if error.suggestion else ""
        lines = (
            f'unknown model "{safe(error.model)}"\n\n  {error.reason}{hint}\n\n'
            "  batch-llm models           lists the names known to this version\n"
            "  --model sim:fast           tries it without any provider"
        )
    elif isinstance(error, MissingKeyError):
        lines = (
            f"no key for {error.provider}\n\n"
            f"  {error.provider} reads {error.variable} from the environment, or from ./.env\n"
            f"    export {error.variable}=…\n\n"
            "  --model sim:fast           tries it without a key"
        )
    # Line by line: names of files, columns and models are other people's text.
    with contextlib.suppress(OSError):  # nobody there to read it: the exit code still says it
        print("\n".join(map(safe, f"error: {lines}".split("\n"))), file=sys.stderr)


def _load_dotenv() -> None:
    from pathlib import Path

    if Path(".env").is_file():
        from dotenv import load_dotenv

        from batch_llm.exceptions import InputError

        try:
            load_dotenv(".env", override=False)
        except UnicodeDecodeError:
            raise InputError(".env is not UTF-8; its settings cannot be read") from None


def _check_settings() -> None:
    """Refuse settings that nothing reads: a slip there is as silent as it is dear."""
    import dataclasses
    import difflib
    import tomllib
    from pathlib import Path

    from batch_llm.cli.flags import SECOND_NAMES, Flags
    from batch_llm.exceptions import InputError
    from batch_llm.stores.limit_memory import VARIABLE

    names = [*(one.name for one in dataclasses.fields(Flags)), *SECOND_NAMES]
    known = [*(f"BATCH_LLM_{name.upper()}" for name in names), VARIABLE]
    for name in os.environ:
        if name.startswith("BATCH_LLM_") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{name} is no setting{hint}")
    path = Path("batch-llm.toml")
    if not path.exists():
        return
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    for name, value in found.items():
        if isinstance(value, dict):
            raise InputError(f"{path} has a table [{name}]; its settings stand at the top")


def _report_bug() -> None:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="batch-llm-bug-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exc(file=file)
    print(f"error: this is a bug in batch-llm; its trace is in {file.name}", file=sys.stderr)
