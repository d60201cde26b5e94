from __future__ import annotations

import dataclasses

import pytest

from batch_llm import BaseMiddleware, WorkItemResult
from fakes import USAGE, PermanentError, Script, Tracer, item, run_one


async def test_before_hooks_run_in_order_and_after_hooks_in_reverse():
    calls = []

    await run_one(Script(), middlewares=[Tracer("a", calls), Tracer("b", calls)])

    assert calls == ["a.before", "b.before", "b.after", "a.after"]


async def test_hooks_run_once_per_item_and_not_per_attempt():
    calls = []

    await run_one(Script(ValueError(), ValueError()), middlewares=[Tracer("a", calls)])

    assert calls == ["a.before", "a.after"]


async def test_errors_go_to_on_error_in_reverse():
    calls = []

    await run_one(Script(PermanentError()), middlewares=[Tracer("a", calls), Tracer("b", calls)])

    assert calls == ["a.before", "b.before", "b.error", "a.error"]


class Skip(BaseMiddleware):
    async def before_process(self, work_item, /):
        return None


async def test_a_skipped_item_keeps_its_id_and_context():
    from fakes import processor

    call = Script()
    result = await processor(middlewares=[Skip()]).process([item("a", call, context=7)])

    assert result.results[0].error == "Skipped by middleware"
    assert (result.results[0].item_id, result.results[0].context) == ("a", 7)
    assert call.times == []


class Substitute(BaseMiddleware):
    async def on_error(self, work_item, error, /):
        self.attached = error.__dict__["_failed_token_usage"]
        return WorkItemResult("another id", success=True, output="instead")


async def test_a_substituted_result_counts_as_a_success_under_the_items_own_id():
    error = PermanentError("no")
    error.usage = USAGE
    substitute = Substitute()

    result = await run_one(Script(error), middlewares=[substitute])

    assert (result.item_id, result.success, result.output) == ("a", True, "instead")
    assert result.token_usage == USAGE
    assert substitute.attached == USAGE


class Broken(BaseMiddleware):
    async def before_process(self, work_item, /):
        raise RuntimeError("broken hook")

    async def after_process(self, result, /):
        raise RuntimeError("broken hook")

    async def on_error(self, work_item, error, /):
        raise RuntimeError("broken hook")


class Nonsense(BaseMiddleware):
    async def after_process(self, result, /):
        return None

    async def on_error(self, work_item, error, /):
        return "nonsense"


@pytest.mark.parametrize("middleware", [Broken(), Nonsense()])
@pytest.mark.parametrize("steps", [[], [PermanentError()]])
async def test_a_broken_hook_is_logged_and_passed_over(middleware, steps, caplog):
    result = await run_one(Script(*steps), middlewares=[middleware])

    assert result.success == (not steps)
    assert "passed over" in caplog.text


class Rename(BaseMiddleware):
    async def before_process(self, work_item, /):
        return dataclasses.replace(work_item, item_id="changed")

    async def after_process(self, result, /):
        return dataclasses.replace(result, item_id="changed", output="changed")


@pytest.mark.parametrize("steps", [[], [PermanentError()]])
async def test_no_hook_can_move_a_result_to_another_id(steps):
    result = await run_one(Script(*steps), middlewares=[Rename()])

    assert result.item_id == "a"
