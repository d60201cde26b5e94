"""How many calls a server works on best, searched by what it gets done.

A server that queues refuses nothing: too few calls in flight leave it idle, too many only wait, or
make it thrash. What tells them apart is *goodput*, the work that is done per second; latency alone
does not. Its measure is Little's law: calls in flight times the work of some calls, over the
seconds that they took. Long and short calls weigh alike in that ratio, so a few calls are enough.

First the number of calls is doubled while goodput grows by a quarter; then a tenth less and a
quarter more are tried in turn, at longer and longer intervals while that changes nothing. Only
calls that were started beside as many others as are allowed count: nothing is learned while other
limits, or a lack of items, hold the calls back.

Pure arithmetic: no clock, no I/O, O(1) per call. What it reaches is in ``docs/local-servers.md``.
"""

from __future__ import annotations

import math
from enum import Enum, auto

#: Calls in flight at the start, where nothing is known of the server.
FIRST_CALLS = 16
#: The number is doubled on and on while goodput grows so much.
GROWTH = 1.25
#: The last doubling is kept when it brought at least this.
WORTH_DOUBLING = 1.05
#: Trials: this much more is kept when it brings so much, this much less when it costs no more.
MORE, WORTH_MORE = 1.25, 1.03
LESS, WORTH_LESS = 0.9, 0.99
#: A stage is measured with so large a share of the calls in flight, or so many at least.
DOUBLING_SHARE, TRIAL_SHARE, LEAST_SAMPLE = 0.25, 0.5, 6
#: Samples that are left out after a trial that failed; twice as many after each further one.
FIRST_REST, LONGEST_REST = 1, 64
#: A quarter more is given up early when, over so many calls, what comes out falls below so much of
#: what it may: at first only the old calls end, each slowed down by the new ones.
COLLAPSE, COLLAPSE_SHARE, COLLAPSE_SAMPLE = 0.9, 0.25, 48
#: Reading a token of the prompt takes so much of the work of writing one.
PROMPT_TOKEN_WORK = 0.15


def work_of(input_tokens: float, output_tokens: float) -> float:
    """Return how much a call did; 1 where its tokens are not known."""
    return output_tokens + PROMPT_TOKEN_WORK * input_tokens or 1.0


class _Stage(Enum):
    #: The number of calls is doubled as long as that is worth it.
    DOUBLING = auto()
    #: Goodput is measured at the number that is kept.
    BASE = auto()
    #: A tenth less is tried.
    LESS = auto()
    #: A quarter more is tried.
    MORE = auto()


class Knee:
    """Searches the number of calls in flight from which on more bring nothing.

    Args:
        now: The time.
        first: Calls in flight at the start.
        most: Calls in flight at the most.
        is_near: Whether ``first`` is known to be about right: then it is not doubled.
    """

    __slots__ = (
        "_began_at",
        "_ended",
        "_goodput",
        "_is_less_next",
        "_kept",
        "_most",
        "_rest",
        "_rests",
        "_sample",
        "_seconds",
        "_stage",
        "_work",
        "_work_ended",
        "concurrency",
    )

    def __init__(
        self, now: float, first: int = FIRST_CALLS, most: float = math.inf, *, is_near: bool = False
    ) -> None:
        self._most = most
        #: Calls that may be in flight now, a trial included.
        self.concurrency = self._kept = max(1, int(min(first, most)))
        #: The goodput at the number that is kept; 0 before it was measured.
        self._goodput = 0.0
        self._is_less_next = True
        #: Samples to wait until the next trial; and after the next failed one, by its kind.
        self._rest = 0
        self._rests = {_Stage.LESS: FIRST_REST, _Stage.MORE: FIRST_REST}
        self._begin(now, _Stage.BASE if is_near else _Stage.DOUBLING, self.concurrency)

    @property
    def known(self) -> int:
        """Calls in flight that are kept to: no trial."""
        return self._kept

    def note_end(self, now: float, started_at: float, others: int, work: float) -> None:
        """Note that a call ended.

        Args:
            now: The time.
            started_at: When it was sent.
            others: Calls in flight beside it then.
            work: What it did; 0 when nothing came of its time.
        """
        self._ended += 1
        self._work_ended += work
        if started_at >= self._began_at and others + 1 >= self.concurrency:
            self._sample += 1
            self._work += work
            self._seconds += now - started_at
            share = DOUBLING_SHARE if self._stage is _Stage.DOUBLING else TRIAL_SHARE
            if self._sample >= max(LEAST_SAMPLE, share * self.concurrency):
                self._conclude(now)
                return
        if self._stage is _Stage.MORE and self._has_collapsed(now):
            self._fail(now)

    def _begin(self, now: float, stage: _Stage, concurrency: int) -> None:
        self._stage = stage
        self.concurrency = concurrency
        self._began_at = now
        self._ended = self._sample = 0
        self._work = self._work_ended = self._seconds = 0.0

    def _conclude(self, now: float) -> None:
        """Judge a stage that has its sample."""
        goodput = self.concurrency * self._work / max(self._seconds, 1e-9)
        if self._stage is _Stage.DOUBLING:
            self._conclude_doubling(now, goodput)
        elif self._stage is _Stage.BASE:
            self._goodput = goodput
            self._try_next(now)
        elif goodput >= self._goodput * (WORTH_MORE if self._stage is _Stage.MORE else WORTH_LESS):
            self._rests[self._stage] = FIRST_REST
            self._keep(goodput)
            self._try(now, self._stage)
        else:
            self._fail(now)

    def _conclude_doubling(self, now: float, goodput: float) -> None:
        before, is_first = self._goodput, not self._goodput
        if not is_first and goodput < WORTH_DOUBLING * before:
            self._fail(now)
            return
        self._keep(goodput)
        doubled = int(min(2 * self._kept, self._most))
        if doubled > self._kept and (is_first or goodput >= GROWTH * before):
            self._begin(now, _Stage.DOUBLING, doubled)
        else:
            self._begin(now, _Stage.BASE, self._kept)

    def _keep(self, goodput: float) -> None:
        self._kept, self._goodput = self.concurrency, goodput

    def _has_collapsed(self, now: float) -> bool:
        """Tell early that a step up made the server thrash."""
        if self._ended < max(COLLAPSE_SAMPLE, COLLAPSE_SHARE * self._kept):
            return False
        rate = self._work_ended / max(now - self._began_at, 1e-9)
        return rate < COLLAPSE * self._goodput * self._kept / self.concurrency

    def _fail(self, now: float) -> None:
        """Go back to the number that is kept, and rest."""
        if self._stage is not _Stage.DOUBLING:
            self._rest = self._rests[self._stage]
            self._rests[self._stage] = min(LONGEST_REST, 2 * self._rest)
            self._is_less_next = self._stage is _Stage.MORE
        self._begin(now, _Stage.BASE, self._kept)

    def _try_next(self, now: float) -> None:
        if self._rest:
            self._rest -= 1
            self._begin(now, _Stage.BASE, self._kept)
        else:
            self._try(now, _Stage.LESS if self._is_less_next else _Stage.MORE)

    def _try(self, now: float, stage: _Stage) -> None:
        kept = self._kept
        if stage is _Stage.LESS:
            tried = min(kept - 1, round(LESS * kept))
        else:
            tried = max(kept + 1, round(MORE * kept))
        if 1 <= tried <= self._most:
            self._begin(now, stage, tried)
        else:
            self._is_less_next = not self._is_less_next
            self._begin(now, _Stage.BASE, kept)
