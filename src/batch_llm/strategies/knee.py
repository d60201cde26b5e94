"""How many calls a server works on best, searched by what it gets done.

A server that queues refuses nothing: too few calls in flight leave it idle, too many only wait, or
make it thrash. What tells them apart is *goodput*, the work that is done per second; latency alone
does not. Its measure is Little's law: calls in flight times the work of some calls, over the
seconds that they took. Where calls share the server's speed, long and short ones weigh alike in
that ratio, and a few are enough; where they wait in a queue, it takes more. So the ratio's own
error says how many, within bounds, and changes that may be chance are not believed.

First the number of calls is doubled while goodput grows by a quarter, or else halved while it does
not fall; then a tenth less and a quarter more are tried in turn, at longer and longer intervals
while that changes nothing. Only calls that were started beside as many others as are allowed count:
nothing is learned while other limits, or a lack of items, hold the calls back.

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
#: It is halved down to this: the rest is for trials, which cost less.
LEAST_HALVED = 4
#: Trials: this much more is kept when it brings so much, this much less when it costs no more.
MORE, WORTH_MORE = 1.25, 1.03
LESS, WORTH_LESS = 0.9, 0.99
#: A stage is measured with so large a share of the calls in flight at least, and so many in all.
DOUBLING_SHARE, TRIAL_SHARE, LEAST_SAMPLE = 0.25, 0.5, 6
#: It goes on until its relative error is so small, and for so many times the calls in flight at
#: the most.
DOUBLING_ERROR, TRIAL_ERROR = 0.08, 0.01
DOUBLING_CAP, TRIAL_CAP, LEAST_CAP = 4, 2, 48
#: A loss that may be chance is taken, up to this: it shortens the queue. Half as many calls are
#: much less where the calls do not wait, so more of it may be chance then.
MOST_LOSS, MOST_LOSS_HALVED = 0.02, 0.1
#: A gain must be so many errors beyond what it has to be.
SURE = 1.0
#: What was measured before at the number that is kept counts so much less with each new sample.
MEMORY = 0.75
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
    #: It is halved as long as that costs nothing, when the first doubling brought nothing.
    HALVING = auto()
    #: Goodput is measured at the number that is kept.
    BASE = auto()
    #: A tenth less is tried.
    LESS = auto()
    #: A quarter more is tried.
    MORE = auto()


class _Ratio:
    """Work over seconds of some calls, and how far it can be trusted."""

    __slots__ = ("count", "mixed", "seconds", "seconds_squared", "work", "work_squared")

    def __init__(self) -> None:
        self.count = self.work = self.seconds = 0.0
        self.work_squared = self.mixed = self.seconds_squared = 0.0

    def add(self, work: float, seconds: float) -> None:
        """Count a call."""
        self.count += 1
        self.work += work
        self.seconds += seconds
        self.work_squared += work * work
        self.mixed += work * seconds
        self.seconds_squared += seconds * seconds

    def absorb(self, older: _Ratio, share: float) -> None:
        """Count the calls of an older one too, each for less than a whole one."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + share * getattr(older, name))

    @property
    def value(self) -> float:
        """Work per second of a call."""
        return self.work / max(self.seconds, 1e-9)

    @property
    def error(self) -> float:
        """The standard error of ``value``, as a share of it (the delta method)."""
        if self.count <= 1 or self.work <= 0:
            return 0.0
        ratio = self.value
        squares = self.work_squared - 2 * ratio * self.mixed + ratio**2 * self.seconds_squared
        return math.sqrt(max(0.0, squares) * self.count / (self.count - 1)) / self.work


class Knee:
    """Searches the number of calls in flight from which on more bring nothing.

    Args:
        now: The time.
        first: Calls in flight at the start.
        most: Calls in flight at the most.
        is_near: Whether ``first`` is known to be about right: then it is not doubled.
    """

    __slots__ = (
        "_base",
        "_began_at",
        "_ended",
        "_ended_at",
        "_error",
        "_goodput",
        "_has_doubled",
        "_is_less_next",
        "_kept",
        "_most",
        "_rest",
        "_rests",
        "_sample",
        "_stage",
        "_work_ended",
        "concurrency",
    )

    def __init__(
        self, now: float, first: int = FIRST_CALLS, most: float = math.inf, *, is_near: bool = False
    ) -> None:
        self._most = most
        #: Calls that may be in flight now, a trial included.
        self.concurrency = self._kept = max(1, int(min(first, most)))
        #: The goodput at the number that is kept, 0 before it was measured; and its error.
        self._goodput = self._error = 0.0
        self._base = _Ratio()
        self._has_doubled = False
        self._is_less_next = True
        #: Samples to wait until the next trial; and after the next failed one, by its kind.
        self._rest = 0
        #: When a call last ended in this stage.
        self._ended_at = now
        self._rests = {_Stage.LESS: FIRST_REST, _Stage.MORE: FIRST_REST}
        self._begin(now, _Stage.BASE if is_near else _Stage.DOUBLING, self.concurrency)

    @property
    def known(self) -> int | None:
        """Calls in flight that are kept to, no trial; None before anything was measured."""
        return self._kept if self._goodput else None

    def note_end(self, now: float, started_at: float, others: int, work: float) -> None:
        """Note that a call ended.

        Args:
            now: The time.
            started_at: When it was sent.
            others: Calls in flight beside it then.
            work: What it did; 0 when nothing came of its time.
        """
        if now > self._ended_at:  # those that ended at the same moment are judged together
            if self._stage is _Stage.MORE and self._has_collapsed():
                self._fail(now)
            self._ended_at = now
        self._ended += 1
        self._work_ended += work
        if started_at >= self._began_at and others + 1 >= self.concurrency:
            self._sample.add(work, now - started_at)
            if self._is_enough():
                self._conclude(now)

    def _begin(self, now: float, stage: _Stage, concurrency: int) -> None:
        self._stage = stage
        self.concurrency = concurrency
        self._began_at = now
        self._ended_at = now
        self._ended = 0
        self._work_ended = 0.0
        self._sample = _Ratio()

    def _is_enough(self) -> bool:
        """Tell whether the stage's sample can be judged."""
        count, error = self._sample.count, self._sample.error
        if self._stage in {_Stage.DOUBLING, _Stage.HALVING}:
            if count < max(LEAST_SAMPLE, DOUBLING_SHARE * self.concurrency):
                return False
            best = self.concurrency * self._sample.value * (1 + 2 * error)
            is_doubling = self._stage is _Stage.DOUBLING
            is_lost = best < (WORTH_DOUBLING if is_doubling else WORTH_LESS) * self._goodput
            cap = max(LEAST_CAP, DOUBLING_CAP * self.concurrency)
            return error <= DOUBLING_ERROR or is_lost or count >= cap
        if count < max(LEAST_SAMPLE, TRIAL_SHARE * self.concurrency):
            return False
        return error <= TRIAL_ERROR or count >= max(LEAST_CAP, TRIAL_CAP * self.concurrency)

    def _conclude(self, now: float) -> None:
        """Judge a stage that has its sample."""
        goodput = self.concurrency * self._sample.value
        error = math.hypot(self._sample.error, self._error)
        if self._stage is _Stage.DOUBLING:
            self._conclude_doubling(now, goodput, error)
        elif self._stage is _Stage.BASE:
            self._sample.absorb(self._base, MEMORY)
            self._keep()
            self._try_next(now)
        elif self._stage is _Stage.MORE:
            least = self._goodput * (WORTH_MORE + SURE * error)
            self._judge(now, is_good=goodput > 0 and goodput >= least)
        else:
            is_trial = self._stage is _Stage.LESS
            loss = min(MOST_LOSS if is_trial else MOST_LOSS_HALVED, error)
            is_good = goodput >= self._goodput * min(WORTH_LESS, 1 - loss)
            if is_trial:
                self._judge(now, is_good=is_good)
            elif is_good:
                self._keep()
                self._halve(now)
            else:
                self._begin(now, _Stage.BASE, self._kept)

    def _judge(self, now: float, *, is_good: bool) -> None:
        """Keep to a number that was tried and go on in its direction, or go back."""
        if not is_good:
            self._fail(now)
            return
        self._rests[self._stage] = FIRST_REST
        self._keep()
        self._try(now, self._stage)

    def _conclude_doubling(self, now: float, goodput: float, error: float) -> None:
        before, is_first = self._goodput, not self._base.count
        if is_first and not goodput:  # nothing gets done at all: fewer, then
            self._keep()
            self._halve(now)
            return
        if not is_first and goodput < before * (WORTH_DOUBLING + SURE * error):
            if self._has_doubled:
                self._begin(now, _Stage.BASE, self._kept)
            else:
                self._halve(now)
            return
        self._keep()
        self._has_doubled = not is_first
        doubled = int(min(2 * self._kept, self._most))
        if doubled > self._kept and (is_first or goodput >= GROWTH * before):
            self._begin(now, _Stage.DOUBLING, doubled)
        else:
            self._is_less_next = False  # it was still worth something
            self._begin(now, _Stage.BASE, self._kept)

    def _halve(self, now: float) -> None:
        halved = self._kept // 2
        if halved >= LEAST_HALVED:
            self._begin(now, _Stage.HALVING, halved)
        else:
            self._begin(now, _Stage.BASE, self._kept)

    def _keep(self) -> None:
        """Keep to the number that was measured."""
        self._kept, self._base = self.concurrency, self._sample
        self._goodput, self._error = self._kept * self._base.value, self._base.error

    def _has_collapsed(self) -> bool:
        """Tell early that a step up made the server thrash."""
        if self._ended < max(COLLAPSE_SAMPLE, COLLAPSE_SHARE * self._kept):
            return False
        rate = self._work_ended / max(self._ended_at - self._began_at, 1e-9)
        return rate < COLLAPSE * self._goodput * self._kept / self.concurrency

    def _fail(self, now: float) -> None:
        """Go back from a trial to the number that is kept, and rest."""
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
