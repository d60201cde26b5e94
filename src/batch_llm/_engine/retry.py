"""Try one item until it has an answer, is hopeless, or is out of attempts.

This layer makes the attempts, one after the other, and waits between them. What follows from a
failed one is in ``course.py``. It does not know what a call does; when an attempt may start is the
gate's business.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from batch_llm._engine.course import Course
from batch_llm.exceptions import LaneStoppedError, LimitPauseError, UnknownPriceError
from batch_llm.providers.base import Outcome
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from batch_llm._engine.calls import MakeCall
    from batch_llm._engine.course import Rules
    from batch_llm._engine.gate import Gate
    from batch_llm._engine.pool import Worker
    from batch_llm._engine.progress import Progress
    from batch_llm._engine.statistics import Counts
    from batch_llm._engine.stops import Stops
    from batch_llm.base import LLMWorkItem


class Retrier:
    """Makes the attempts of items, one item at a time per worker.

    Args:
        make_call: Makes one call, and settles it.
        gate: Lets calls in.
        rules: What the attempts of all items go by.
        counts: Of the run.
        stops: Knows the lanes to which nothing is sent any more.
    """

    def __init__(
        self, *, make_call: MakeCall, gate: Gate, rules: Rules, counts: Counts, stops: Stops
    ) -> None:
        self._make_call = make_call
        self._gate = gate
        self._rules = rules
        self._counts = counts
        self._stops = stops
        self._leaves_overloaded = ErrorCode.OVERLOADED in rules.falls_back_on

    async def answer(
        self, item: LLMWorkItem[Any, Any, Any], worker: Worker, progress: Progress
    ) -> Outcome:
        """Return the first good outcome, or the last bad one.

        Raises:
            asyncio.CancelledError: Passed on at once; the gate's ticket was handed back.
        """
        course, gate, ended = Course(item, self._rules), self._gate, None
        try:
            while True:
                if worker.is_cancelled:  # no further call is wanted
                    raise asyncio.CancelledError
                if item.agent_factory is not None:
                    course.make_agent()
                if self._stops.stopped or self._leaves_overloaded:
                    self._leave_lanes(course)
                ticket = gate.enter_now(course.asked, is_retry=course.is_retry)
                if ticket is None:
                    ticket = await self._wait_to_enter(course, worker)
                    if ticket is None:
                        continue
                attempt = course.next_try(gate.place(ticket))
                ended = await self._make_call(course.asked, worker, ticket, attempt, progress)
                if ended.code is None:
                    if self._stops.in_a_row:
                        self._stops.note_success(course.asked)
                    if course.is_plain:
                        return ended.outcome
                    progress.changes = course.changes
                    return course.concluded(ended.outcome)
                follows = course.after(ended)
                progress.error_code, progress.changes = course.code, course.changes
                if isinstance(follows, Outcome):
                    return follows
                self._counts.retries_by_code[ended.code.value] += 1
                if follows > 0 and not worker.is_cancelled:
                    await _wait(follows, worker)
        except LaneStoppedError as error:
            progress.error_code = ErrorCode.CANCELLED
            return Outcome(error=error)
        except LimitPauseError as error:
            progress.error_code = ErrorCode.QUOTA
            return Outcome(error=error)
        except UnknownPriceError as error:
            progress.error_code = ErrorCode.BAD_REQUEST
            return Outcome(error=error)
        finally:
            # An error's traceback leads back to this frame. What the frame holds of the error would
            # keep the item alive until the garbage collector comes.
            attempt = ended = follows = course = None  # type: ignore[assignment]

    def _leave_lanes(self, course: Course) -> None:
        """Ask elsewhere, as long as the lane is stopped, or too busy for one that has a fallback.

        Raises:
            LaneStoppedError: It is stopped, and there is nobody else to ask.
        """
        while True:
            stopped = self._stops.of(course.asked)
            if stopped is not None:
                if not course.leaves_lane(ErrorCode(stopped.code)):
                    raise LaneStoppedError(*stopped.args)
            elif not (
                self._leaves_overloaded
                and self._gate.is_overloaded(course.asked)
                and course.leaves_lane(ErrorCode.OVERLOADED)
            ):
                return

    async def _wait_to_enter(self, course: Course, worker: Worker) -> Any | None:
        """Wait for a ticket; None when somebody else is to be asked.

        Raises:
            asyncio.CancelledError: Nothing is held.
            LimitPauseError: It would take too long, and there is nobody else to ask.
        """
        worker.is_waiting = True
        try:
            ticket = await self._gate.enter(course.asked, is_retry=course.is_retry)
        except LimitPauseError:
            if not course.leaves_lane(ErrorCode.QUOTA):
                raise
            return None
        finally:
            worker.is_waiting = False
        if self._stops.stopped and self._stops.of(course.asked) is not None:  # while it waited
            self._gate.leave(ticket, was_sent=False)
            return None
        return ticket


async def _wait(seconds: float, worker: Worker) -> None:
    """Wait between two attempts, while another worker stands in."""
    worker.is_waiting = True
    try:
        with worker.parking():
            await asyncio.sleep(seconds)
    finally:
        worker.is_waiting = False
