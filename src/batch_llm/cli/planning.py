"""``check`` and ``plan``: what a run will take, said before it is sent."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.cli import estimate
from batch_llm.cli.caches import foresee
from batch_llm.cli.command import check_outputs_are_free, check_paths
from batch_llm.cli.display import clock, limit_name, short
from batch_llm.cli.estimate import KnownLimit, Sample
from batch_llm.cli.execution import run_plan
from batch_llm.cli.exit_codes import ExitCode
from batch_llm.core.prices import ModelUsage, usd
from batch_llm.core.text import counted, safe
from batch_llm.providers.registry import resolve, resolve_pool, split_model
from batch_llm.providers.table import is_simulator
from batch_llm.runs.plan import Plan
from batch_llm.runs.pools import check_price, check_settings
from batch_llm.simulator import parse_profile
from batch_llm.stores.limit_memory import LimitMemory, limits_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from decimal import Decimal

    from batch_llm._engine.statistics import Statistics
    from batch_llm.base import WorkItemResult
    from batch_llm.cli.caches import Foreseen
    from batch_llm.cli.command import Command
    from batch_llm.cli.estimate import Estimate
    from batch_llm.inputs import Row
    from batch_llm.providers.registry import Endpoint

#: Answers of a pilot that are shown; all are in its file.
MOST_SHOWN = 5
_NEVER_CALLED = "http://127.0.0.1:1/v1"


class Pilot:
    """Rows that were sent to learn what the others will take, and what came of them.

    With a ledger the results are kept there, and the run does not send these rows again.
    """

    def __init__(self, plan: Plan, command: Command, count: int) -> None:
        output, failed = pilot_paths(command)
        check_paths(command.input, [output, failed])
        self.samples: list[Sample] = []
        self.shown: list[tuple[str, str]] = []
        self.succeeded = self.reused = 0
        self.used = ModelUsage(model="")
        #: Where the results are.
        self.output = output if command.ledger is None else f"the ledger {command.ledger}"
        own = dataclasses.replace(
            command,
            output=output,
            failed=failed,
            as_json=False,
            quiet=True,
            progress="none",
            # The run itself will note where its results go.
            facts={"flags": command.facts["flags"]} if "flags" in command.facts else {},
        )
        self._plan = plan.pilot(count, own)
        self.code, self.statistics = run_plan(self._plan, own, pilot=self._take)

    def _take(self, result: WorkItemResult[Any, Row]) -> None:
        assert result.context is not None  # noqa: S101 - each item comes with its row
        if not result.attempts:
            return  # not sent: it says nothing of what others will take
        usage = result.token_usage
        characters = self._plan.request_for(result.context).characters
        self.samples.append(
            Sample(characters, usage.get("input_tokens", 0), usage.get("output_tokens", 0))
        )
        self.used.add(usage)
        self.succeeded += result.success
        self.reused += result.is_reused
        if len(self.shown) < MOST_SHOWN:
            answer = result.output if result.success else result.error
            text = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
            self.shown.append((result.item_id, text))

    def facts(self, command: Command) -> dict[str, Any]:
        """Return what it brought, for programs. The cost is that of the rows sent now."""
        known = command.prices.bill(self.statistics.usage).known_usd
        return {
            "rows": len(self.samples),
            "succeeded": self.succeeded,
            "failed": len(self.samples) - self.succeeded,
            "reused": self.reused,
            "input_tokens": self.used.input_tokens,
            "output_tokens": self.used.output_tokens,
            "cost_usd": None if known is None else f"{known:f}",
            "output": self.output,
        }


def pilot_paths(command: Command) -> tuple[str, str]:
    """Return where a pilot's results and its failed rows go: beside those of the run."""
    stem = Path(command.output).name.removesuffix(".jsonl").removesuffix(".results")
    folder = Path(command.output).parent
    if command.output == "-":
        stem, folder = Path(command.input).stem.strip("-") or "stdin", Path()
    failed = Path(command.failed)
    return (
        str(folder / f"{stem}.pilot.jsonl"),
        str(failed.with_name(f"{failed.stem}.pilot{failed.suffix}")),
    )


def run_check(command: Command) -> ExitCode:
    """Check everything that can be, send nothing, and say what the run will take."""
    plan, endpoints = _checked(command)
    return _tell(plan, command, endpoints, None)


def run_planning(command: Command, pilot: int | None) -> ExitCode:
    """Do the same; with a pilot, send so many rows first, and go by what they took."""
    plan, endpoints = _checked(command)
    if pilot is None:
        return _tell(plan, command, endpoints, None)
    done = Pilot(plan, command, pilot)
    _tell(plan, command, endpoints, done)
    return ExitCode.OK if done.code is ExitCode.SOME_FAILED else done.code


def _checked(command: Command) -> tuple[Plan, Sequence[Endpoint]]:
    check_paths(command.input, [command.output, command.failed])
    if command.ledger is None or not Path(command.ledger).exists():
        check_outputs_are_free(command)
    plan = Plan(command)
    if command.agent is not None:
        return plan, _agents_endpoints(command)
    endpoints = _endpoints(command, command.model)
    check_settings(command, endpoints[0])
    check_price(command, endpoints[0])
    for fallback in command.fallbacks:
        check_price(command, _endpoints(command, fallback)[0])
    return plan, endpoints


def _agents_endpoints(command: Command) -> Sequence[Endpoint]:
    """Return what is known of where an agent's calls go, once it has its models."""
    assert command.agent is not None  # noqa: S101 - the caller has looked
    with contextlib.ExitStack() as opened:
        command.agent.open(command, opened)
        check_price(command, command.agent.places[0])
        return command.agent.places


def _endpoints(command: Command, model: str) -> Sequence[Endpoint]:
    provider, name = split_model(model)
    if is_simulator(provider):
        parse_profile(name)
        return [resolve(model, base_url=_NEVER_CALLED)]
    return resolve_pool(model, **command.places_of(model))


def _tell(
    plan: Plan, command: Command, endpoints: Sequence[Endpoint], pilot: Pilot | None
) -> ExitCode:
    endpoint = endpoints[0]
    foreseen = foresee(plan, endpoint)
    found = estimate.make(
        rows=max(1, plan.rows - foreseen.cached),
        characters=plan.characters - foreseen.characters,
        most_output=plan.most_output_tokens,
        model=f"{endpoint.provider}:{endpoint.model}",
        server=endpoint.server,
        prices=command.prices,
        limits=known_limits(command, endpoints, pilot.statistics if pilot else None),
        samples=pilot.samples if pilot else (),
        used=[pilot.used] if pilot else (),
    )
    if command.as_json:
        facts = {
            "schema": 1,
            "rows": plan.rows,
            "bad_rows": len(plan.problems),
            "left_out": plan.left_out,
            "same_rows": foreseen.same,
            "cached_rows": foreseen.cached,
            "format": plan.source.format,
            "columns": plan.source.columns,
            "input_tokens_estimate": found.input_tokens,
            "model": command.model,
            "estimate": msgspec.to_builtins(found) | {"batch_hours": estimate.BATCH_HOURS},
            "pilot": pilot.facts(command) if pilot else None,
        }
        print(msgspec.json.encode(facts).decode())
        return ExitCode.OK
    bad = len(plan.problems) + plan.left_out
    beside = f" beside {counted(bad, f'bad {plan.source.unit}')}" if bad else ""
    rows = counted(plan.rows, "row")
    print(
        f"{safe(plan.source.name)}: {rows} ({plan.source.format}){beside}, {command.model}; "
        "ready to run"
    )
    if pilot is not None:
        print("\n".join(["", *pilot_lines(pilot, command)]))
    lines = foreseen_lines(foreseen, command)
    if foreseen.cached < plan.rows:
        lines += estimate_lines(found)
    print("\n".join(["", *lines]))
    return ExitCode.OK


def known_limits(
    command: Command, endpoints: Sequence[Endpoint], now: Statistics | None
) -> list[KnownLimit]:
    """Return the limits that are told, or were seen in a pilot, or are remembered; the first wins.

    Those of several keys or servers add up.
    """
    found: dict[str, KnownLimit] = {}

    def note(dimension: str, limit: float, source: str) -> None:
        found.setdefault(dimension, KnownLimit(dimension, limit, source))

    if command.limits is not None:
        for name, dimension in _DIMENSIONS.items():
            if (told := getattr(command.limits, name)) is not None:
                note(dimension, told * len(endpoints), "told")
        return list(found.values())
    for dimension, limit, source in _summed(
        (one.dimension, one.limit, one.source) for one in (now.limits if now else ())
    ):
        if source in {"header", "remembered"}:
            note(dimension, limit, source)
    path = limits_file()
    memory = None if path is None or command.forget_limits else LimitMemory(path)
    remembered = []
    for endpoint in endpoints:
        recalled = memory.recall(endpoint.account) if memory and endpoint.account else None
        if recalled is not None:
            remembered += [
                (name, one.limit, "remembered")
                for name, one in recalled[0].items()
                if one.limit is not None
            ]
    for dimension, limit, source in _summed(remembered):
        note(dimension, limit, source)
    return list(found.values())


_DIMENSIONS = {
    "requests_per_minute": "requests",
    "tokens_per_minute": "tokens",
    "input_tokens_per_minute": "input_tokens",
    "output_tokens_per_minute": "output_tokens",
    "requests_per_day": "requests_per_day",
}


def _summed(limits: Iterable[tuple[str, float, str]]) -> list[tuple[str, float, str]]:
    sums: dict[tuple[str, str], float] = {}
    for dimension, limit, source in limits:
        sums[dimension, source] = sums.get((dimension, source), 0.0) + limit
    return [(dimension, limit, source) for (dimension, source), limit in sums.items()]


def pilot_lines(pilot: Pilot, command: Command) -> list[str]:
    """Return what a pilot brought, with the first of its answers."""
    bill = command.prices.bill(pilot.statistics.usage)
    cost = "unknown" if bill.known_usd is None else usd(bill.known_usd)
    rows, used = len(pilot.samples), pilot.used
    sent = f"{counted(rows - pilot.reused, 'row')} sent"
    if pilot.reused:
        sent += f", {pilot.reused:,} known from before"
    took = f"{short(used.input_tokens)} tokens in, {short(used.output_tokens)} out"
    failed = rows - pilot.succeeded
    lines = [
        f"  pilot     {sent}: {pilot.succeeded:,} ok, {failed:,} failed, cost {cost}",
        f"            {took}; all results in {safe(pilot.output)}",
    ]
    if command.ledger is not None:
        lines.append("            `run` with the same output does not send these rows again")
    return lines + [f"            {safe(name, 20)}: {safe(text, 60)}" for name, text in pilot.shown]


def foreseen_lines(foreseen: Foreseen, command: Command) -> list[str]:
    """Return which rows need no call of their own, in words."""
    lines = []
    if foreseen.cached:
        rows = "1 row is" if foreseen.cached == 1 else f"{foreseen.cached:,} rows are"
        lines.append(
            f"  cached    {rows} answered by {safe(command.cache or '')}; not in the numbers below"
        )
    if foreseen.same:
        rows = "1 row asks" if foreseen.same == 1 else f"{foreseen.same:,} rows ask"
        lines.append(
            f"  same      {rows} what another row asks; not sent while that one is in flight\n"
            "            (--no-dedupe sends each)"
        )
    return lines


def estimate_lines(found: Estimate) -> list[str]:
    """Return an estimate in words; what is not known is said."""
    got = found.output_tokens
    if found.is_from_pilot and got.high is not None:
        low, high = short(got.low), short(got.high)
        output = f"{low} to {high} out, 9 times in 10" if low != high else f"about {high} out"
    elif got.high is not None:
        output = f"up to {short(got.high)} out (max_tokens)"
    else:
        output = "out unknown\n            (`plan --pilot 20` finds out; -s max_tokens=… bounds it)"
    lines = [
        f"  tokens    about {short(found.input_tokens)} in, {output}",
        f"  cost      {_range(found.cost_usd)}",
    ]
    if found.batch_cost_usd is not None:
        lines.append(f"            {_range(found.batch_cost_usd)} as batch jobs")
    if found.seconds is None or found.limit is None:
        time = "unknown: no limit is told or remembered (--rpm, --tpm)"
    else:
        name = limit_name(found.limit.dimension)
        limit = f"{name} {short(found.limit.limit)} ({found.limit.source})"
        time = (
            f"{clock(found.seconds)} at the least, by {limit}"
            if found.seconds
            else f"as long as the calls take; {limit} holds none of them up"
        )
    lines.append(f"  time      {time}")
    if found.batch_cost_usd is not None:
        lines.append(f"            within {estimate.BATCH_HOURS} h as batch jobs")
    return lines


def _range(cost: tuple[Decimal, Decimal | None] | None) -> str:
    if cost is None:
        return "unknown: no price for this model (--prices FILE gives one)"
    low, high = cost
    if high is None:
        return f"{usd(low)} for the input, and what the output costs"
    return usd(low) if usd(low) == usd(high) else f"{usd(low)} to {usd(high)}"
