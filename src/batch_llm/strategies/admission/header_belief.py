"""What responses' headers say of one budget, as far as it can be believed.

Headers are as old as the call that brought them, and shared by all who use the key. The limit that
they tell is believed at once, less room than thought quickly, more room slowly. Whether the limit
is a bucket's or counts minutes, the way that their reset moves shows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from batch_llm.strategies.admission.others import Others
from batch_llm.strategies.admission.window_guess import FEWEST_VOTES, MOST_VOTES
from batch_llm.strategies.costs import FIELDS
from batch_llm.strategies.dimensions import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.costs import Cost

#: Calls arrive closer together than they were sent, now and then: of a bucket that headers show so
#: many of the largest calls are not used, or this share.
CALLS_HELD_BACK, SHARE_HELD_BACK = 2.0, 0.2
#: Sightings of a reset that stands still while the remainder moves, until it is a fixed window.
VOTES_FOR_WINDOW = 3
#: A sighting counts when a bucket's reset would have moved by so much; a window that ends so close
#: to a whole one after the first charge is a sliding one.
VOTE_SECONDS, SLIDING_SECONDS = 0.7, 1.0
#: What headers show to be less than thought is believed by this share of the difference at a time;
#: what they show to be more, by this one.
LESS_SHARE, MORE_SHARE = 0.5, 0.2
#: What others took of a sliding minute is seen from headers whose call was sent so few seconds ago,
#: when it is more than this share of the limit.
FOREIGN_SECONDS, FOREIGN_SHARE = 1.0, 0.05
#: Others count who take this share of the limit. Where what calls take is estimated, so many must
#: have been answered, because the first estimates may be wrong by more than that; and the bucket
#: must hold so many of the largest calls. One that holds fewer requests than this is empty after
#: each call of our own: what is left of it tells nothing of others.
TAKEN_SHARE, FEWEST_ANSWERS, FEWEST_CALLS, FEWEST_REQUESTS = 0.03, 100, 8.0, 4.0
#: Of a limit that others use too, so many of the largest calls may be sent at once, or what the
#: rate sends in so many seconds.
CALLS_AT_ONCE, SECONDS_AT_ONCE = 2.0, 0.1
#: A refusal that shows so many of the largest calls left does not come from this limit.
CALLS_LEFT = 2.0
#: A reset in whole seconds may be rounded up by so much.
ROUNDED_SECONDS = 1.0
#: When answers have told nothing for so long, nobody knows whether others are there still.
SILENT_SECONDS = 10.0


class LimitHeader(NamedTuple):
    """What a response says of one dimension.

    Attributes:
        limit: Per minute, or per day.
        remaining: Left at the provider when it answered.
        reset_seconds: Until the window ends, or until the bucket is full again.
    """

    limit: float
    remaining: float
    reset_seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether it can be believed: servers that count nothing send -1 and 0."""
        is_limit = 0 < self.limit < math.inf and self.remaining >= 0
        return is_limit and 0 <= self.reset_seconds < math.inf


class HeaderBelief:
    """Keeps one budget in step with the headers of its lane's responses."""

    __slots__ = (
        "_budget",
        "_last",
        "_limit_sent_at",
        "_refuses",
        "is_shared",
        "kept_seconds",
        "others",
    )

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        #: When the latest call was sent whose answer told the limit.
        self._limit_sent_at = -math.inf
        #: The last sighting: when the reset was due, what remained, when its call was sent.
        self._last: tuple[float, float, float] | None = None
        #: So many seconds of the rate are kept back: ``headroom.py``.
        self.kept_seconds = 0.0
        #: Who else uses the limit.
        self.others = Others()
        #: Whether they use so much of it that only a part is used here.
        self.is_shared = False
        #: Whether the last refusal may come from this limit, by its own headers.
        self._refuses = True

    @property
    def shows_others(self) -> bool:
        """Whether others use so much of this limit that what is left is not ours alone."""
        budget = self._budget
        if not self.others.answers:
            return False  # refusals alone would never show that they have gone
        if budget.holds < FEWEST_REQUESTS * budget.largest:
            return False
        is_estimated = budget.name != REQUESTS
        if is_estimated and (
            self.others.answers < FEWEST_ANSWERS or budget.holds < FEWEST_CALLS * budget.largest
        ):
            return False
        if budget.windows.votes > 0:
            return False  # a window's limit does not come back by the second
        return self.others.are_there(TAKEN_SHARE * budget.ceiling, budget.largest)

    @property
    def keeps_pace(self) -> bool:
        """Whether what others leave sets the pace: a refusal says nothing of the limit's rate."""
        return self.is_shared and not self.others.is_small and self._refuses

    def sync(
        self,
        now: float,
        sent_at: float,
        spent_then: float,
        pending_then: float,
        header: LimitHeader,
        *,
        is_refused: bool = False,
        is_shared: bool = False,
    ) -> bool:
        """Believe a response's headers, as far as they can be: they are as old as its call.

        Args:
            now: The time.
            sent_at: When the call was sent.
            spent_then: ``spent`` at that time, the call itself included.
            pending_then: ``pending`` at that time.
            header: What the response says.
            is_refused: Whether it is a refusal.
            is_shared: Whether another limit shows that others use the lane's limits too.

        Returns:
            Whether the limit is news.
        """
        budget = self._budget
        limit, remaining, reset = header
        if limit != budget.limit and sent_at < self._limit_sent_at:
            return False  # a late answer: a call that was sent later has told another limit
        self._limit_sent_at = max(self._limit_sent_at, sent_at)
        spent_since = budget.spent - spent_then
        if budget.told is not None and limit > budget.told:
            # The told limit is the ceiling; what the provider has left can only lower the level.
            self.stop_sharing()
            budget.drain(now, max(0.0, remaining - spent_since))
            return False
        is_news = budget.source != "header" or budget.limit != limit
        if is_news:
            self._take_limit(now, limit, remaining - spent_since - pending_then)
        if not budget.is_window and not budget.is_sliding:
            # A bucket's reset is the time until it is full, which tells how much it holds.
            holds = remaining + reset * budget.ceiling
            holds -= min(CALLS_HELD_BACK * budget.largest, SHARE_HELD_BACK * holds)
            budget.capacity = budget.holds = min(limit, max(holds, budget.largest, 1.0))
            budget.level = min(budget.level, budget.capacity)
        deadline = sent_at + reset
        self._vote(sent_at, deadline, header, spent_then - pending_then)
        if budget.is_window or budget.is_sliding:
            self.stop_sharing()
        budget.refill(now)
        if budget.is_window:
            if now < deadline:
                budget.reset_at = deadline
                charged_since = budget.charged - spent_then + pending_then
                self._follow(remaining - charged_since, 0.0, may_rise=not budget.is_shut)
            return is_news
        if budget.is_sliding and budget.log is not None:
            budget.capacity = limit
            if now - sent_at < FOREIGN_SECONDS:  # others use the same key
                charged_since = budget.charged - spent_then + pending_then
                used = budget.log.used_then(now, sent_at) - charged_since
                foreign = limit - used - remaining
                if foreign > FOREIGN_SHARE * limit:
                    budget.log.charge(now, LESS_SHARE * foreign)
            return is_news
        others = self.others
        if is_refused:
            self._refuses = remaining < CALLS_LEFT * budget.largest
        else:
            others.note_answer(now - sent_at)
        holds = budget.holds
        if reset > 0 and reset % 1 == 0:  # what it may not hold, nobody else has taken
            least = remaining + max(0.0, reset - ROUNDED_SECONDS) * budget.ceiling
            holds = min(holds, least)
        others.note(sent_at, remaining, spent_then - pending_then, holds, budget.ceiling)
        if is_shared or self.shows_others:
            self._share(now)
        else:
            self.stop_sharing()
            came_back = budget.rate * (max(0.0, now - sent_at) - self.kept_seconds)
            self._follow(remaining - spent_since + came_back, pending_then)
        budget.keep_to_told()
        return is_news

    def _take_limit(self, now: float, limit: float, left: float) -> None:
        """Believe a limit that is news; what is left of it only where none was known."""
        budget = self._budget
        was_known = budget.source == "header"
        budget.refill(now)
        budget.limit, budget.source = limit, "header"
        budget.ceiling = budget.rate = budget.peak = limit / budget.window_seconds
        budget.capacity = limit
        if not was_known:
            budget.level = left
        budget.level = min(budget.level, budget.capacity)

    def _follow(self, room: float, pending_then: float, *, may_rise: bool = True) -> None:
        """Bring the level nearer to the room that headers show.

        Args:
            room: What is left, as far as headers tell.
            pending_then: So much of it calls in flight may still take: there may be less.
            may_rise: Whether more than thought is believed.
        """
        budget = self._budget
        room = min(budget.capacity, room)
        if room < budget.level:
            budget.level += LESS_SHARE * (room - budget.level)
        elif may_rise and room - pending_then > budget.level:
            budget.level += MORE_SHARE * (room - pending_then - budget.level)

    def _share(self, now: float) -> None:
        """Keep to our part of a limit that others use too."""
        budget, self.is_shared = self._budget, True
        budget.refill(now)
        charged = budget.charged
        pace = self.others.pace(now, charged, budget.holds, budget.ceiling, budget.largest)
        budget.pace = pace
        at_once = max(CALLS_AT_ONCE * budget.largest, SECONDS_AT_ONCE * pace * budget.rate)
        budget.capacity = min(budget.holds, at_once)
        budget.level = min(budget.level, budget.capacity)

    def stop_sharing(self) -> None:
        """Use all that is left again."""
        if self.is_shared:
            budget, self.is_shared = self._budget, False
            budget.pace = 1.0
            if not (budget.is_window or budget.is_sliding):
                budget.capacity = budget.holds

    def note_silent(self, now: float) -> None:
        """Take in an answer that says nothing of the limit."""
        if self.is_shared and now > self.others.seen_at + SILENT_SECONDS:
            self.stop_sharing()

    def _vote(
        self, sent_at: float, deadline: float, header: LimitHeader, charged_then: float
    ) -> None:
        """Tell a fixed window from a bucket: its reset stands still while the remainder moves."""
        budget = self._budget
        limit, remaining, _ = header
        if budget.is_sliding:
            return
        if self._last is None:
            self._last = (deadline, remaining, sent_at)
            return
        last_deadline, last_remaining, last_at = self._last
        # Since the last one a bucket's deadline moved by the time that what was taken needs to come
        # back, and a window's not at all, or by whole windows.
        as_bucket = (last_remaining - remaining) * budget.window_seconds / limit + sent_at - last_at
        if abs(as_bucket) < VOTE_SECONDS:
            return
        moved = deadline - last_deadline
        half = budget.window_seconds / 2
        off_window = abs((moved + half) % budget.window_seconds - half)
        vote = 1 if off_window < abs(moved - as_bucket) else -1
        budget.windows.votes = max(FEWEST_VOTES, min(MOST_VOTES, budget.windows.votes + vote))
        self._last = (deadline, remaining, sent_at)
        if budget.windows.votes >= VOTES_FOR_WINDOW:
            if abs(deadline - budget.charged_at - budget.window_seconds) < SLIDING_SECONDS:
                budget.is_sliding = True
                return
            if not budget.is_window:
                budget.charged_at_reset = charged_then - max(0.0, limit - remaining)
                budget.level += budget.pending  # a minute lets in what it has room for now
                budget.reset_at = deadline  # even a past one: the next refill moves it on
                budget.capacity = limit  # until then it was read as a bucket's
            budget.is_window = True
        elif budget.windows.votes < 0 and budget.is_window:
            budget.windows.become_bucket()


def used_up(cost: Cost, headers: Mapping[str, LimitHeader] | None) -> str | None:
    """Return the dimension that a refusal's headers show to be used up, if it is one."""
    short = [
        name
        for name, header in (headers or {}).items()
        if header.is_sound and name in FIELDS and header.remaining < cost[FIELDS[name]]
    ]
    return short[0] if len(short) == 1 else None
