"""What every ledger must do, as a suite of tests that you can run on your own.

    from batch_llm.testing.ledgers import LedgerSuite

    class TestMyLedger(LedgerSuite):
        @pytest.fixture
        def reopen(self, tmp_path):
            return lambda: MyLedger(tmp_path / "run")

``reopen()`` opens the same ledger each time; the one before was closed.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from batch_llm.base import LLMWorkItem, WorkItemResult
from batch_llm.exceptions import DuplicateItemError, LedgerError, StoreError
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.stores.base import Attempt, ItemState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batch_llm.stores.base import Ledger

_USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
_GOOD = Attempt(1, 0.0, 0.5, _USAGE)
_ODD_IDS = ["", "a", "a'b\"c", "ä\u2028\x00", "half \ud800", "x" * 5000, "row-1", "-1", "NULL"]


def _result(item_id: str, **fields: Any) -> WorkItemResult[Any, Any]:
    told: dict[str, Any] = {"success": True, "output": "out", "token_usage": dict(_USAGE)}
    found: WorkItemResult[Any, Any] = WorkItemResult(item_id, **(told | fields))
    found.attempts = fields.get("attempts", 1)
    return found


async def _save(ledger: Ledger, result: WorkItemResult[Any, Any], *history: Attempt) -> None:
    saved = ledger.finish(result, history or (_GOOD,))
    if saved is not None:
        await saved


async def _done(ledger: Ledger, *item_ids: str, **fields: Any) -> None:
    """Bring items to their results."""
    for item_id in item_ids:
        assert ledger.start(item_id, b"one") is None
    await asyncio.gather(*[_save(ledger, _result(one, **fields)) for one in item_ids])


def _content(ledger: Ledger, item_id: str) -> bytes | None:
    record = ledger.find(item_id)
    return None if record is None else record.content


def _in_run(ledger: Ledger, act: Callable[[], Awaitable[None]]) -> None:
    """Do something within a run, in an event loop."""

    async def run() -> None:
        begun = ledger.begin_run(keeps_ids=True)
        if begun is not None:
            await begun
        try:
            await act()
        finally:
            ledger.end_run()

    asyncio.run(run())


class LedgerSuite:
    """Subclass it with a fixture ``reopen``."""

    def test_a_result_is_kept_and_given_out_for_the_same_content(
        self, reopen: Callable[[], Ledger]
    ) -> None:
        """A second run gets what the first one saved, whole."""
        with reopen() as ledger:

            async def first() -> None:
                output = {"a": [1, None, "ü\x00", "\ud800"]}
                await _done(ledger, "a", output=output, model="m", response_body=b"{}")

            _in_run(ledger, first)
        with reopen() as ledger:

            async def second() -> None:
                kept = ledger.start("a", b"one")
                assert kept is not None
                assert (kept.success, kept.is_reused, kept.attempts) == (True, True, 1)
                assert kept.output == {"a": [1, None, "ü\x00", "\ud800"]}
                assert kept.token_usage == _USAGE
                assert (kept.model, kept.response_body) == ("m", b"{}")

            _in_run(ledger, second)

    def test_changed_content_is_asked_again(self, reopen: Callable[[], Ledger]) -> None:
        """The new result replaces the old one."""
        with reopen() as ledger:
            _in_run(ledger, lambda: _done(ledger, "a"))

            async def second() -> None:
                assert ledger.start("a", b"two") is None
                await _save(ledger, _result("a", output="new"))

            _in_run(ledger, second)
            assert [one.output if one else None for one in ledger.look_up([("a", b"two")])] == [
                "new"
            ]
            assert ledger.look_up([("a", b"one"), ("b", b"one")]) == [None, None]

    def test_any_text_is_an_id(self, reopen: Callable[[], Ledger]) -> None:
        """Ids come back as they went in, in the order of their start."""
        with reopen() as ledger:
            _in_run(ledger, lambda: _done(ledger, *_ODD_IDS))
        with reopen() as ledger:
            assert [record.item_id for record in ledger.records(ItemState.DONE)] == _ODD_IDS

    def test_an_id_is_used_once_in_a_run(self, reopen: Callable[[], Ledger]) -> None:
        """In work, finished or given out: each refuses a second start."""
        with reopen() as ledger:
            _in_run(ledger, lambda: _done(ledger, "kept"))

            async def act() -> None:
                await _done(ledger, "done")
                ledger.start("running", b"")
                ledger.start("kept", b"one")
                for item_id in ("done", "running", "kept"):
                    try:
                        ledger.start(item_id, b"one")
                    except DuplicateItemError:
                        continue
                    raise AssertionError(item_id)

            _in_run(ledger, act)

    def test_only_an_item_in_work_gets_a_result_and_only_one(
        self, reopen: Callable[[], Ledger]
    ) -> None:
        """Anything else is refused, and nothing changes."""
        with reopen() as ledger:

            async def act() -> None:
                await _done(ledger, "done")
                ledger.start("given up", b"one")
                ledger.forget("given up", [])
                for item_id in ("done", "given up", "unknown"):
                    try:
                        await _save(ledger, _result(item_id, output="other"))
                    except StoreError:
                        continue
                    raise AssertionError(item_id)

            _in_run(ledger, act)
            found = ledger.find("done")
            assert found is not None
            assert found.output == "out"
            assert ledger.counts()[ItemState.DONE] == 1

    def test_what_was_in_work_is_tried_again(self, reopen: Callable[[], Ledger]) -> None:
        """Given up or cut off, it has no result; what its attempts cost stays booked."""
        with reopen() as ledger:

            async def first() -> None:
                ledger.start("given up", b"one")
                late = Attempt(1, 0.0, 1.0, _USAGE, "timeout", "late", change="asked anew")
                ledger.forget("given up", [late])
                ledger.start("cut off", b"one")

            _in_run(ledger, first)
        with reopen() as ledger:
            _in_run(ledger, lambda: _done(ledger, "given up", "cut off"))
            codes = [attempt.error_code for attempt in ledger.attempts("given up")]
            assert ledger.attempts("given up")[0].change == "asked anew"
            assert codes == ["timeout", None]
            assert ledger.counts()[ItemState.DONE] == 2

    def test_an_item_may_start_again_right_after_it_was_given_up(
        self, reopen: Callable[[], Ledger]
    ) -> None:
        """Before the ledger has had time to write anything."""
        with reopen() as ledger:

            async def act() -> None:
                for _ in range(3):
                    ledger.start("a", b"one")
                    ledger.forget("a", [_GOOD])
                await _done(ledger, "a")

            _in_run(ledger, act)
            assert len(ledger.attempts("a")) == 4
            assert ledger.counts()[ItemState.DONE] == 1

    def test_a_retry_can_say_what_failed_items_are_to_be_asked(
        self, reopen: Callable[[], Ledger]
    ) -> None:
        """It stands for their content until they are started; others keep theirs."""
        with reopen() as ledger:
            failed = {"success": False, "error": "E: x", "error_code": "timeout", "output": None}
            _in_run(ledger, lambda: _done(ledger, "a", **failed))
            _in_run(ledger, lambda: _done(ledger, "b"))
            assert ledger.retry(content=b"marked") == 1
        with reopen() as ledger:
            assert [_content(ledger, one) for one in ("a", "b")] == [b"marked", b"one"]
            _in_run(ledger, lambda: _done(ledger, "a"))
            assert _content(ledger, "a") == b"one"

    def test_failures_of_the_item_are_kept_until_retry(self, reopen: Callable[[], Ledger]) -> None:
        """Others, and those without a call, are tried again by themselves."""
        with reopen() as ledger:

            async def first() -> None:
                for code in ("timeout", "truncated", "auth"):
                    await _done(ledger, code, success=False, error="E: no", error_code=code)
                await _done(
                    ledger, "no call", success=False, error="E", error_code="bad", attempts=0
                )

            _in_run(ledger, first)
        with reopen() as ledger:
            assert ledger.retry({"truncated"}) == 1

            async def second() -> None:
                kept = ledger.start("timeout", b"one")
                assert kept is not None
                assert (kept.success, kept.error, kept.error_code) == (False, "E: no", "timeout")
                for item_id in ("truncated", "auth", "no call"):
                    assert ledger.start(item_id, b"one") is None
                    ledger.forget(item_id, [])

            _in_run(ledger, second)
            assert ledger.retry() == 1
            assert ledger.counts()[ItemState.PENDING] == 4

    def test_an_output_that_is_no_plain_data_is_refused_alone(
        self, reopen: Callable[[], Ledger]
    ) -> None:
        """Other results of the same moment are saved."""
        with reopen() as ledger:

            async def act() -> None:
                for item_id in ("good", "bad"):
                    ledger.start(item_id, b"one")
                good = ledger.finish(_result("good"), [_GOOD])
                try:
                    await _save(ledger, _result("bad", output=object()))
                except StoreError as error:
                    assert "plain data" in str(error)  # noqa: PT017
                else:
                    raise AssertionError("saved")
                if inspect.isawaitable(good):
                    await good

            _in_run(ledger, act)
            assert ledger.counts()[ItemState.DONE] == 1

    def test_the_manifest_is_plain_data_under_names(self, reopen: Callable[[], Ledger]) -> None:
        """What is noted again replaces what was noted."""
        with reopen() as ledger:
            assert ledger.manifest() == {}
            ledger.note({"a": {"b": [1]}, "c": "x"})
            ledger.note({"c": None})
        with reopen() as ledger:
            assert ledger.manifest() == {"a": {"b": [1]}, "c": None}

    def test_one_run_at_a_time(self, reopen: Callable[[], Ledger]) -> None:
        """A second one is refused."""
        with reopen() as ledger:

            async def act() -> None:
                try:
                    begun = ledger.begin_run(keeps_ids=True)
                    if begun is not None:
                        await begun
                except LedgerError:
                    return
                raise AssertionError("begun")

            _in_run(ledger, act)

    def test_nothing_like_a_key_is_kept(self, reopen: Callable[[], Ledger]) -> None:
        """SDKs repeat keys in their errors."""
        with reopen() as ledger:

            async def act() -> None:
                error = "AuthError: bad key sk-abcdefgh12345678"
                ledger.start("a", b"one")
                attempt = Attempt(1, 0.0, 1.0, None, "bad", error)
                await _save(ledger, _result("a", success=False, error=error), attempt)

            _in_run(ledger, act)
            record = ledger.find("a")
            assert record is not None
            (attempt,) = ledger.attempts("a")
            assert record.error == attempt.error == "AuthError: bad key [key]"
            assert attempt.usage is None

    def test_a_processor_calls_only_for_what_has_no_result(
        self, reopen: Callable[[], Ledger]
    ) -> None:
        """The first run fails for some; the second gives out what is kept, whatever the order."""
        calls: list[str] = []

        def items(count: int) -> list[LLMWorkItem[Any, Any, Any]]:
            def item(number: int) -> LLMWorkItem[Any, Any, Any]:
                async def call(_attempt: int, _timeout: float) -> tuple[Any, Any]:
                    calls.append(str(number))
                    await asyncio.sleep(0)
                    return number, {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}

                return LLMWorkItem(str(number), direct_call=call, context=number)

            return [item(number) for number in range(count)]

        for count, expected in ((20, 20), (30, 10), (30, 0)):
            calls.clear()
            with reopen() as ledger:
                built: ParallelBatchProcessor[Any, Any, Any] = ParallelBatchProcessor(store=ledger)
                result = asyncio.run(built.process(reversed(items(count))))
            assert len(calls) == expected
            assert result.succeeded == count
            assert sorted(one.output or 0 for one in result.results) == list(range(count))
            assert all(one.output == one.context for one in result.results)
            assert sum(one.is_reused for one in result.results) == count - expected
