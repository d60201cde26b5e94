"""Where a job's ledger is, and whether it is the ledger of this job."""

from __future__ import annotations

import os
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.core.text import safe
from batch_llm.exceptions import InputError, LedgerError, OutputExistsError, SettingsChangedError
from batch_llm.stores.sqlite import SqliteLedger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.cli.job import Job
    from batch_llm.cli.plan import Plan

FOLDER = Path(".batch-llm")
RUNS = FOLDER / "runs"
_SUFFIX = ".sqlite"
_SHOWN_CHARACTERS = 40


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


def open_ledger(plan: Plan) -> SqliteLedger:
    """Open a job's ledger, new or that of an earlier run of the same job.

    Raises:
        LedgerInUseError: Another process runs the job.
        SettingsChangedError: It was made with other settings.
        OutputExistsError: It is new, but a file with results is there.
        LedgerError: It cannot be opened.
    """
    job = plan.job
    assert job.ledger is not None  # noqa: S101 - the caller has looked
    path = Path(job.ledger)
    _make_folder(path)
    if job.overwrite and path.exists():
        _put_aside(path)
    if not path.exists():
        check_outputs_are_free(job)
    ledger = SqliteLedger(path)
    try:
        before, now = ledger.manifest(), settings_of(plan)
        if before:
            _check_unchanged(path, before.get("settings") or {}, now)
        if before.get("output") != job.output:
            check_outputs_are_free(job)
        version = metadata.version("batch-llm")
        ledger.note(
            {
                "settings": now,
                "digests": {name: _digest(value) for name, value in now.items()},
                "output": job.output,
                "failed": job.failed,
                "flags": job.flags,
                "version": version,
            }
            | ({} if before else {"made_by_version": version})
        )
    except BaseException:
        ledger.close()
        raise
    return ledger


def _check_unchanged(path: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    differences = _differences(before, now)
    if differences:
        raise SettingsChangedError(name_of(path), differences)


def check_outputs_are_free(job: Job) -> None:
    """Refuse to write over results that no ledger knows.

    Raises:
        OutputExistsError: A file is there.
    """
    for path, flag in ((job.output, "--output"), (job.failed, "--failed")):
        if path != "-" and Path(path).exists() and not job.overwrite:
            raise OutputExistsError(path, flag)


def settings_of(plan: Plan) -> dict[str, str]:
    """Return everything that changes the answers, by name; with what is left out as "-"."""
    job = plan.job
    source = "-" if job.input == "-" else os.path.relpath(job.input)
    found = {
        "input": source,
        "format": plan.source.format,
        "id column": job.id_column or "-",
        "model": job.model,
        "prompt": job.prompt or "-",
        "system": job.system or "-",
        "schema": "-" if job.shape is None else _digest(_shape(job)),
    }
    settings = job.settings
    for name in ("temperature", "max_tokens", "top_p", "seed", "stop"):
        value = getattr(settings, name)
        if value is not None:
            found[name] = repr(value)
    return found | {name: repr(value) for name, value in settings.extra.items()}


def _shape(job: Job) -> str:
    shape = job.shape
    return "" if shape is None else repr((shape.name, shape.is_strict, shape.schema))


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    names = [*now, *(name for name in before if name not in now)]
    pairs = {name: (before.get(name, "-"), now.get(name, "-")) for name in names}
    return {
        safe(name, _SHOWN_CHARACTERS): _shown(*pair)
        for name, pair in pairs.items()
        if pair[0] != pair[1]
    }


def _shown(before: str, now: str) -> tuple[str, str]:
    """Shorten two texts; where that makes them look the same, show their digests."""
    short = (safe(before, _SHOWN_CHARACTERS), safe(now, _SHOWN_CHARACTERS))
    return short if short[0] != short[1] else (_digest(before), _digest(now))


def _digest(text: str) -> str:
    return blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()


def flags_to_keep(flags: Any, source: str) -> dict[str, Any]:
    """Return a command's flags as ``resume`` needs them. A server's address may hold a password."""
    kept = {name: value for name, value in vars(flags).items() if name != "overwrite"}
    url = kept["base_url"]
    kept["has_hidden_url"] = url is not None and any(mark in url for mark in "@?#")
    if kept["has_hidden_url"]:
        kept["base_url"] = None
    return kept | {"input": source}


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


def _put_aside(path: Path) -> None:
    """Keep the ledger that is replaced as ``.old``: it holds answers that were paid for."""
    with SqliteLedger(path):  # nobody runs it, and its log of changes is taken in
        pass
    path.replace(f"{path}.old")
