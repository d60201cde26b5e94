"""What to do: a run's input, what is asked about each row, how fast, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from batch_llm.core.prices import Prices
from batch_llm.core.request import Settings
from batch_llm.providers.table import is_simulator

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from batch_llm.core.config import Limits
    from batch_llm.core.schema import OutputSchema
    from batch_llm.runs.answering_agent import AnsweringAgent


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """What to do. The flags of ``run`` or the arguments of ``runs.run``, understood."""

    #: A file, ``-`` for standard input, or what the rows are called that are no file.
    input: str
    model: str
    base_url: str | None = None
    format: str | None = None
    columns: tuple[str, ...] | None = None
    id_column: str | None = None
    limit: int | None = None
    prompt: str | None = None
    system: str | None = None
    #: The column with a picture for each row.
    image: str | None = None
    settings: Settings = field(default_factory=Settings)
    shape: OutputSchema | None = None
    #: Who answers the rows, instead of requests; and its model, where it is not asked of its own.
    agent: AnsweringAgent | None = None
    agent_model: str | None = None
    bad_rows: str = "stop"
    concurrency: int | Literal["knee"] | None = None
    ignore_slots: bool = False
    limits: Limits | None = None
    longest_pause_seconds: float | None = None
    keys: tuple[str, ...] = ()
    forget_limits: bool = False
    timeout_seconds: float = 120.0
    hedge: bool = False
    retries: int = 5
    fallbacks: tuple[str, ...] = ()
    fallback_on: tuple[str, ...] | None = None
    max_tokens_cap: int | None = None
    prices: Prices = field(default_factory=Prices)
    max_cost_usd: Decimal | None = None
    max_tokens_total: int | None = None
    deadline_seconds: float | None = None
    max_failed: int | None = None
    max_failed_share: float | None = None
    #: The folder of the answers of earlier runs; None uses none.
    cache: str | None = None
    cache_expires_seconds: float | None = None
    dedupe: bool = True
    #: Counts a text's tokens; None estimates them from characters.
    count_tokens: Callable[[str], int] | None = None
    #: Where the run's pace is drawn; None draws nothing.
    plot: str | None = None
    #: The ledger's file; None keeps none.
    ledger: str | None = None
    #: What is noted of the brief in the ledger, beside its settings.
    facts: dict[str, Any] = field(default_factory=dict)

    def places_of(self, model: str) -> dict[str, Any]:
        """Return the servers and keys of a model: those that were given, if its provider is that.

        A model of another provider goes to that provider's own address, with its usual key.
        """
        provider = model.partition(":")[0]
        if provider != self.model.partition(":")[0] or is_simulator(provider):
            return {}
        return {"base_urls": self.base_url, "keys": self.keys}
