"""Where the believed limits are from: told, seen in headers, remembered, or still searched."""

from __future__ import annotations


class Belief:
    """Where the believed limits are from.

    Args:
        is_told: Whether the user told any.
    """

    __slots__ = (
        "is_by_window",
        "is_first",
        "is_recalled",
        "is_searching",
        "is_told",
        "sees_headers",
    )

    def __init__(self, *, is_told: bool) -> None:
        self.is_told = is_told
        #: Whether headers tell limits, and are believed.
        self.sees_headers = False
        #: Whether the limits were found to be counted by the minute.
        self.is_by_window = False
        #: Whether all that is known was remembered, and nothing has confirmed or refuted it.
        self.is_recalled = False
        #: Whether a rate is searched upwards, from the first refusal until the limit is enclosed.
        self.is_searching = False
        #: Whether no call was refused yet, and nothing is remembered.
        self.is_first = True

    @property
    def knows_limits(self) -> bool:
        """Whether there is nothing to search."""
        return (
            self.is_told
            or self.sees_headers
            or self.is_by_window
            or (self.is_recalled and not self.is_searching)
        )
