"""What a command is to do: the brief, where its results go, and what is shown of it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.core.parquet import load_parquet
from batch_llm.exceptions import ConfigError, InputError, OutputExistsError
from batch_llm.outputs.parquet import rows_of_parquet
from batch_llm.runs.brief import Brief
from batch_llm.runs.ledgers import default_ledger, keepable_url, name_of, named_ledger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.cli.flags import Flags

_TABLES = {".csv", ".tsv"}
_NOT_WRITTEN = {".arrow", ".feather", ".xlsx", ".xls", ".db", ".sqlite", ".gz", ".zip"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Brief):
    """A brief with what only the command line knows."""

    output: str = "results.jsonl"
    failed: str = "failed.jsonl"
    order: str = "done"
    overwrite: bool = False
    progress: str = "auto"
    as_json: bool = False
    quiet: bool = False


def default_paths(source: str, output: str | None) -> tuple[str, str]:
    """Return where results and failed rows go, as far as nobody says.

    Failed rows stand beside the results, in a table when the input is one.
    """
    table = Path(source).suffix.lower()
    suffix = table if table in _TABLES else ".jsonl"
    if output is None:
        stem = "" if source == "-" else f"{Path(source).stem}."
        return f"{stem}results.jsonl", f"{stem}failed{suffix}"
    if output == "-":
        return output, f"{'' if source == '-' else f'{Path(source).stem}.'}failed{suffix}"
    path = Path(output)
    stem = path.stem.removesuffix(".results").removesuffix("results")
    failed = f"{stem}.failed{suffix}" if stem else f"failed{suffix}"
    return output, str(path.with_name(failed) if path.name else path / failed)


def paths_for(
    source: str, output: str | None, failed: str | None, *, is_new: bool
) -> tuple[str, str]:
    """Return where results and failed rows go; of a new run, to files that are not there yet."""
    if is_new and output is None:
        found = fresh_paths(Path(source).name if source != "-" else "stdin.jsonl")
    else:
        found = default_paths(source, output)
    return found[0], failed or found[1]


def ledger_for(flags: Flags, source: str, output: str) -> str | None:
    """Return where the ledger of a command's run is; None for none.

    Raises:
        ConfigError: Flags contradict each other, or the name cannot be that of a file.
        InputError: A new run is wanted where there is one.
    """
    given = {"--name": flags.name, "--store": flags.store, "--no-store": flags.no_store or None}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(" and ".join(names), "both", "given one at a time")
    if flags.new and flags.overwrite:
        raise ConfigError("--new and --overwrite", "both", "given one at a time")
    if flags.no_store:
        return None
    ledger = flags.store
    if ledger is None:
        ledger = named_ledger(flags.name) if flags.name else default_ledger(source, output)
    if flags.new and Path(ledger).exists():
        raise InputError(
            f"there is a run {name_of(ledger)} already; --new wants another --output or --name"
        )
    return ledger


#: Flags that say how a run is begun or shown, and nothing of what it is.
_NOT_KEPT = {"overwrite", "new", "progress", "json", "quiet", "verbose", "name", "store", "plot"}


def flags_to_keep(flags: Flags, source: str, output: str, failed: str) -> dict[str, Any]:
    """Return a command's flags as ``resume`` needs them. A server's address may hold a password."""
    kept = {name: value for name, value in vars(flags).items() if name not in _NOT_KEPT}
    url = kept["base_url"]
    kept["base_url"] = keepable_url(url)
    return kept | {
        "has_hidden_url": kept["base_url"] != url,
        "input": source,
        "output": output,
        "failed": failed,
    }


def fresh_paths(source: str) -> tuple[str, str]:
    """Return paths for the results and the failed rows of ``source`` at which nothing is yet."""
    path, number = Path(source), 1
    while True:
        stem = f"{path.stem}.{number}" if number > 1 else path.stem
        output, failed = default_paths(str(path.with_name(f"{stem}{path.suffix}")), None)
        results, rows = path.with_name(output), path.with_name(failed)
        is_known = Path(default_ledger(source, str(results))).exists()
        if not results.exists() and not rows.exists() and not is_known:
            return str(results), str(rows)
        number += 1


def check_paths(source: str, outputs: Iterable[str], ledger: str | None = None) -> None:
    """Refuse to write over the input, twice into one file, or in a shape that is not written.

    Args:
        source: The input.
        outputs: The results' file, and that of the failed rows.
        ledger: The ledger's file.

    Raises:
        InputError: One of the paths cannot be.
        MissingExtraError: A Parquet file is wanted, and pyarrow is not installed.
    """
    seen = {_identity(source)} if source != "-" else set()
    if ledger is not None:
        if _identity(ledger) in seen:
            raise InputError(f"{ledger} is used twice: as --store and as input")
        seen.add(_identity(ledger))
    for number, path in enumerate(outputs):
        if path == "-":
            continue
        suffix = Path(path).suffix.lower()
        if suffix in _NOT_WRITTEN:
            raise InputError(f"{path}: results are written as .jsonl, .csv, .tsv or .parquet")
        if suffix == ".parquet":
            if number == 1:
                raise InputError(f"{path}: failed rows are written as .jsonl, .csv or .tsv")
            load_parquet()  # missing, it is said before anything is sent
        for one in (path, rows_of_parquet(path)) if suffix == ".parquet" else (path,):
            if _identity(one) in seen:
                raise InputError(
                    f"{one} is used twice: input, --output, --failed and --store must differ"
                )
            seen.add(_identity(one))
        if Path(path).is_dir():
            file = Path(path) / Path(default_paths(source, None)[number]).name
            raise InputError(f"{path} is a folder; name a file, such as {file}")
        if not Path(path).resolve().parent.is_dir():
            raise InputError(f"the folder of {path} does not exist")


def _identity(path: str) -> object:
    """Return what two names of one file share; hard links are such names too."""
    try:
        found = Path(path).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path} is a link that leads back to itself") from None
        return Path(path).resolve()
    # Devices are written by many at once.
    return (found.st_dev, found.st_ino) if Path(path).is_file() else Path(path).resolve()


def _holds_data(path: str) -> bool:
    """Return whether something is at a path that must not be written over."""
    file = Path(path)
    return file.exists() and not (file.is_char_device() or file.is_fifo())


def check_outputs_are_free(command: Command) -> None:
    """Refuse to write over results that no ledger knows.

    Raises:
        OutputExistsError: A file is there.
    """
    files = [(command.output, "--output"), (command.failed, "--failed")]
    if Path(command.output).suffix.lower() == ".parquet":
        files.append((rows_of_parquet(command.output), "--output"))
    for path, flag in files:
        if path != "-" and _holds_data(path) and not command.overwrite:
            raise OutputExistsError(path, flag)
