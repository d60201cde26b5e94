"""Full speed under limits that nobody told us: when may the next call start?

The controller (``controller.py``) is for one lane (provider, account, model family), without any
I/O: the caller brings the clock, asks ``wait`` before each call, and tells what became of it. No
operation depends on how many calls there were, but for weighing a refusal: that grows with the
logarithm of the calls since the last one. The parts, and how they work together:

- Each dimension of the limits is a budget (``budgets.py``; of sliding minutes, ``windows.py``), and
  a call starts when all of a lane's (``lane_budgets.py``) have its cost (``strategies/costs.py``):
  it gets a grant (``grants.py``).
- Headers with limits are believed over everything else (``lane_headers.py``, of one budget
  ``header_belief.py``), unless they promise more than is let in (``overstated.py``), or far less
  (``understated.py``); they also show others on the same key (``others.py``), and calls that come
  a moment too soon (``headroom.py``).
- Only so many calls may be in doubt at a time (``doubt.py``): a start is fast, a refusal cheap.
- The first refusal of an epoch (``epochs.py``) cuts the rates once (``cuts.py``), whatever comes
  late; then they grow again (``rates.py``). Limits that nobody told are searched
  (``first_refusal.py``, ``rate_search.py``) by what explains the last refusals (``evidence.py``,
  ``stretches.py``); later cuts enclose them (``enclosure.py``). Which of several told limits
  refused: ``blame.py``. Which of several that nobody told is the scarce one, and its rate over many
  refusals: ``scarce.py``.
- Where the limits are known from: ``belief.py``. How users tell them, how they are shown, and what
  is kept for the next run: ``known_limits.py``.
- What Retry-After tells of an unknown limit's rate (``retry_after.py``): bounds and likely values
  (``retry_hints.py``). Where it is exact, the moments that it names measure the rate
  (``ready_points.py``, ``exact_rate.py``).
- A refusal closes the gate for as long as Retry-After says (``closed_gate.py``). How long it stays
  closed shows limits that are counted by the minute (``closure.py``, ``window_guess.py``).
- What a told ceiling has beyond the bucket that refused is tried now and then
  (``ceiling_room.py``).
- Refusals that say nothing of a rate: a limit on calls in flight (``slots.py``), chance
  (``chance.py``, by ``chance_belief.py``, ``fallen_rates.py`` and ``second_calls.py``), an
  overloaded or absent provider (``overload.py``).

Words, beside those of ``docs/admission.md``: a volley is a refusal and those that come behind it of
calls that had been sent already; a stretch is what was let in from one refusal to the next, point
by point, and a round the same in three numbers. Chance is refusals at random. A rate is by the
second, a limit by the minute or the day.

What it reaches on the test bench is in ``docs/admission.md``.
"""

from __future__ import annotations

from batch_llm.strategies.admission.controller import Admission

__all__ = ["Admission"]
