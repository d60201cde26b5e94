"""What to do: the flags of ``run``, understood."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from batch_llm.core.prices import Prices
from batch_llm.core.request import Settings
from batch_llm.exceptions import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from batch_llm.core.config import Limits
    from batch_llm.core.schema import OutputSchema

_TABLES = {".csv", ".tsv"}
_NOT_WRITTEN = {".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".db", ".sqlite", ".gz", ".zip"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do. The flags of ``run``, understood."""

    input: str
    model: str
    base_url: str | None = None
    format: str | None = None
    columns: tuple[str, ...] | None = None
    id_column: str | None = None
    limit: int | None = None
    prompt: str | None = None
    system: str | None = None
    settings: Settings = field(default_factory=Settings)
    shape: OutputSchema | None = None
    bad_rows: str = "stop"
    output: str = "results.jsonl"
    failed: str = "failed.jsonl"
    order: str = "done"
    overwrite: bool = False
    concurrency: int | Literal["knee"] | None = None
    asks_servers: bool = True
    limits: Limits | None = None
    longest_pause: float | None = None
    keys: tuple[str, ...] = ()
    forgets_limits: bool = False
    timeout: float = 120.0
    hedges: bool = False
    retries: int = 5
    fallbacks: tuple[str, ...] = ()
    fallback_on: tuple[str, ...] | None = None
    max_tokens_cap: int | None = None
    prices: Prices = field(default_factory=Prices)
    max_cost: Decimal | None = None
    max_tokens_total: int | None = None
    deadline: float | None = None
    fail_over: tuple[float, bool] | None = None
    progress: str = "auto"
    as_json: bool = False
    quiet: bool = False
    #: The ledger's file; None keeps none.
    ledger: str | None = None
    #: What ``resume`` needs to make this job again.
    flags: dict[str, Any] = field(default_factory=dict)

    def places_of(self, model: str) -> dict[str, Any]:
        """Return the servers and keys of a model: those that were given, if its provider is that.

        A fallback of another provider goes to that provider's own address, with its usual key.
        """
        if model.partition(":")[0] != self.model.partition(":")[0]:
            return {}
        return {"base_urls": self.base_url, "keys": self.keys}


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
    return output, str(path.with_name(f"{stem}.failed{suffix}" if stem else f"failed{suffix}"))


def fresh_paths(source: str) -> tuple[str, str]:
    """Return paths for the results and the failed rows of ``source`` at which nothing is yet."""
    path, number = Path(source), 1
    while True:
        stem = f"{path.stem}.{number}" if number > 1 else path.stem
        output, failed = default_paths(str(path.with_name(f"{stem}{path.suffix}")), None)
        results, rows = path.with_name(output), path.with_name(failed)
        if not results.exists() and not rows.exists():
            return str(results), str(rows)
        number += 1


def check_paths(source: str, outputs: Iterable[str], ledger: str | None = None) -> None:
    """Refuse to write over the input, twice into one file, or in a shape that is not written.

    Raises:
        InputError: One of the paths cannot be.
    """
    seen = {_identity(source)} if source != "-" else set()
    if ledger is not None:
        if _identity(ledger) in seen:
            raise InputError(f"{ledger} is used twice: as --store and as input")
        seen.add(_identity(ledger))
    for path in outputs:
        if path == "-":
            continue
        if Path(path).suffix.lower() in _NOT_WRITTEN:
            raise InputError(f"{path}: results are written as .jsonl, .csv or .tsv")
        if _identity(path) in seen:
            raise InputError(
                f"{path} is used twice: input, --output, --failed and --store must differ"
            )
        seen.add(_identity(path))
        if not Path(path).resolve().parent.is_dir():
            raise InputError(f"the folder of {path} does not exist")


def _identity(path: str) -> object:
    """Return what two names of one file share; hard links are such names too."""
    try:
        found = Path(path).stat()
    except OSError:
        return Path(path).resolve()
    # Devices are written by many at once.
    return (found.st_dev, found.st_ino) if Path(path).is_file() else Path(path).resolve()
