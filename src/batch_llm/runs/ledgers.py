"""Where a brief's ledger is, whether it is the ledger of this brief, and what is noted in it."""

from __future__ import annotations

import os
import platform
import sqlite3
from datetime import UTC, datetime
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.core.request import Settings
from batch_llm.core.schema import OutputSchema
from batch_llm.exceptions import (
    ConfigError,
    InputError,
    LedgerError,
    SettingsChangedError,
)
from batch_llm.runs.brief import Brief
from batch_llm.runs.recipe import Variant, plain_settings, read_settings
from batch_llm.runs.settings_changes import differences, digest_of, settings_of, shape_facts
from batch_llm.stores.sqlite import SqliteLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from batch_llm.stores.base import Ledger

FOLDER = Path(".batch-llm")
RUNS = FOLDER / "runs"
_SUFFIX = ".sqlite"
#: Of a ledger's files; the first one is the ledger itself.
_PARTS = ("", "-wal", "-shm", "-calls", "-rows", "-output")
_LONGEST_NAME = 100


def default_ledger(source: str, output: str) -> str:
    """Return where the ledger of a run is: named after its output, in the folder where it runs."""
    path = Path(output)
    if output == "-" or (path.exists() and not path.is_file()):  # a device
        output = f"{'stdin' if source == '-' else source}.stdout"
    relative = os.path.relpath(output)
    name = Path(relative).name
    if name != relative:
        name = f"{name}-{blake2b(relative.encode(errors='replace'), digest_size=3).hexdigest()}"
    return str(RUNS / f"{name}{_SUFFIX}")


def name_of(ledger: str | Path) -> str:
    """Return how a run is called: its ledger's name, or the path where it lies elsewhere."""
    path = Path(ledger)
    return path.name.removesuffix(_SUFFIX) if path.parent == RUNS else str(path)


def find_ledger(run: str | None) -> Path:
    """Find the ledger of a run of this folder by name, by path, or the one used last.

    Raises:
        InputError: There is none.
    """
    if run is None:
        found = all_ledgers()
        if not found:
            raise InputError(f"there is no run here: {RUNS} has no ledger")
        return found[0]
    for path in (RUNS / f"{run}{_SUFFIX}", Path(run)):
        if path.is_file():
            return path
    raise InputError(
        f"there is no run {run} here\n\n  batch-llm ls   lists the runs of this folder"
    )


def all_ledgers() -> list[Path]:
    """Return the ledgers of this folder, the one used last first."""
    return sorted(RUNS.glob(f"*{_SUFFIX}"), key=lambda path: -path.stat().st_mtime)


def named_ledger(name: str) -> str:
    """Return where the ledger of a run of this name is.

    Raises:
        ConfigError: The name cannot be that of a file.
    """
    is_good = name and len(name) <= _LONGEST_NAME and not name.startswith((".", "-"))
    if not is_good or not name.isprintable() or any(char in name for char in "/\\:"):
        raise ConfigError("name", name, "a word without slashes, such as nightly-labels")
    return str(RUNS / f"{name}{_SUFFIX}")


def open_ledger(
    brief: Brief,
    format: str,  # noqa: A002 - the shape of its input
    servers: Sequence[str] = (),
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> SqliteLedger:
    """Open a brief's ledger, new or that of an earlier run of it, and note the brief in it.

    Args:
        brief: The brief; it has a ledger.
        format: The shape of its input.
        servers: Where its calls go, other than to the provider's own address.
        check: Called with what was noted before, empty for a new ledger; what it raises is let
            through, and nothing has changed then.

    Raises:
        LedgerInUseError: Another process runs the brief.
        SettingsChangedError: It was made with other settings.
        LedgerError: It cannot be opened.
    """
    assert brief.ledger is not None  # noqa: S101 - the caller has looked
    path = Path(brief.ledger)
    _make_folder(path)
    ledger = SqliteLedger(path)
    try:
        before, now = ledger.manifest(), settings_of(brief, format)
        if before:
            _check_unchanged(path, before, now, brief)
        if check is not None:
            check(before)
        version = metadata.version("batch-llm")
        facts = {
            "settings": now,
            "digests": {name: digest_of(value) for name, value in now.items()},
            "brief": brief_facts(brief),
            "servers": sorted(set(servers)),
            "version": version,
            "python": platform.python_version(),
            "prices": brief.prices.origin,
            "prices_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        ledger.note(facts | brief.facts | ({} if before else {"made_by_version": version}))
    except BaseException:
        ledger.close()
        raise
    return ledger


def _check_unchanged(
    path: Path, manifest: Mapping[str, Any], now: Mapping[str, str], brief: Brief
) -> None:
    shape_before = (manifest.get("brief") or {}).get("shape")
    found = differences(manifest.get("settings") or {}, now, shape_before, brief.shape)
    if found:
        raise SettingsChangedError(name_of(path), found)


def variants_of(ledger: Ledger) -> list[Variant]:
    """Return the settings that rows of a run were retried with, in their order."""
    return [Variant.from_facts(facts) for facts in ledger.manifest().get("retries") or ()]


def variants_at(path: str | Path) -> list[Variant]:
    """Return the same of the ledger at a path; none where there is none yet."""
    if not Path(path).exists():
        return []
    with SqliteLedger(path, read_only=True) as found:
        return variants_of(found)


def retry_failed(
    ledger: Ledger,
    codes: Collection[str] | None = None,
    *,
    settings: Settings | None = None,
    model: str | None = None,
) -> int:
    """Make failed rows pending, to be asked as they were last, or with other settings.

    The run's own settings stay what they are; the ledger notes what the retried rows are asked
    with.

    Args:
        ledger: The run's.
        codes: Only those that failed so; None for all.
        settings: Replace those of the run that are given here.
        model: Replaces the run's.

    Returns:
        Their number.

    Raises:
        LedgerError: It could not be saved; nothing changed.
    """
    if model is None and (settings is None or settings == Settings()):
        return ledger.retry(codes)
    before = ledger.manifest().get("retries") or []
    variant = Variant(len(before) + 1, settings or Settings(), model)
    # Noted first: a mark without a variant would say nothing.
    ledger.note({"retries": [*before, variant.facts()]})
    count = ledger.retry(codes, variant.mark)
    facts = variant.facts() | {
        "only": sorted(codes or ()),
        "rows": count,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    ledger.note({"retries": [*before, facts]})
    return count


def keepable_url(url: str | None) -> str | None:
    """Return a server's address, unless it may hold a password or a key."""
    return None if url is None or any(mark in url for mark in "@?#") else url


def brief_facts(brief: Brief) -> dict[str, Any]:
    """Return what is asked of which rows as plain data, for who goes on with the run."""
    return {
        "input": brief.input,
        "agent": None if brief.agent is None else brief.agent.name,
        "model": brief.model,
        "base_url": keepable_url(brief.base_url),
        "has_hidden_url": keepable_url(brief.base_url) != brief.base_url,
        "format": brief.format,
        "columns": brief.columns,
        "id_column": brief.id_column,
        "limit": brief.limit,
        "prompt": brief.prompt,
        "system": brief.system,
        "image": brief.image,
        "settings": plain_settings(brief.settings),
        "bad_rows": brief.bad_rows,
        "shape": shape_facts(brief.shape),
    }


def brief_of(ledger: Ledger, path: str, *, has_server: bool = False) -> Brief:
    """Return the brief that a ledger was made by, with paces and limits as nobody had set them.

    Its answers are read as plain data: a ledger has no types.

    Args:
        ledger: It.
        path: Its file.
        has_server: Whether the address of a server is given anew.

    Raises:
        InputError: Its rows are not in a file, or the address of its server was not kept.
    """
    facts = dict(ledger.manifest().get("brief") or {})
    if not facts or facts["input"] == "-" or not Path(facts["input"]).is_file():
        what = "its rows are not here"
    elif facts.pop("agent", None) is not None:
        what = "an agent answers its rows, which is not kept"
    elif facts.pop("has_hidden_url") and not has_server:
        what = "the address of its server was not kept"
    else:
        shape = facts.pop("shape")
        columns = facts.pop("columns")
        settings = read_settings(facts.pop("settings"))
        return Brief(
            **facts,
            columns=None if columns is None else tuple(columns),
            settings=settings,
            shape=None if shape is None else _read_shape(shape),
            ledger=path,
        )
    raise InputError(f"{name_of(path)}: {what}; give the same command again to continue")


def _read_shape(facts: Mapping[str, Any]) -> OutputSchema:
    shape = OutputSchema.json_schema(facts["schema"], facts["name"], is_strict=facts["is_strict"])
    choice = facts["schema"].get("properties", {}).get("choice", {})
    names = choice.get("enum", ()) if isinstance(choice, dict) else ()
    if len(set(names)) > 1 and all(isinstance(name, str) and name.strip() for name in names):
        choices = OutputSchema.choices(*names)
        return choices if choices == shape else shape
    return shape


def _make_folder(path: Path) -> None:
    if path.parent != RUNS:
        return
    try:
        RUNS.mkdir(parents=True, exist_ok=True)
        ignore = FOLDER / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", "utf-8")
    except OSError as error:
        raise LedgerError(str(path), error.strerror or str(error)) from error


def put_aside(path: Path) -> None:
    """Keep the ledger that is replaced as ``.old``: it holds answers that were paid for.

    A damaged one too, with all that belongs to it: a log of changes left behind would meet the
    new one.

    Raises:
        LedgerInUseError: Somebody runs it.
        LedgerError: It is no ledger, or cannot be reached.
    """
    try:
        with SqliteLedger(path):  # its log of changes is taken in
            pass
    except LedgerError as error:
        if type(error.__cause__) is not sqlite3.DatabaseError:  # damaged: nobody can run it
            raise
    for part in _PARTS:
        try:
            Path(f"{path}{part}").replace(f"{path}.old{part}")
        except FileNotFoundError:  # what an earlier one had is not this one's
            Path(f"{path}.old{part}").unlink(missing_ok=True)
