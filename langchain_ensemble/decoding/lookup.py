"""Prompt look-up: what followed the last time these ids came, in the prompt or in the answer.

Costs a dictionary look-up a token. The number of ids it proposes follows how many of its last ones
were chosen, down to none for a while.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 3
"""Ids that must have come before, in this order."""

LONGEST = 7
"""Ids proposed at most."""

REST = 16
"""Tokens without a proposal after one of which nothing was chosen; doubles every time."""


class Lookup:
    """One row's prompt and answer in main's ids, indexed by their last few."""

    def __init__(self, ids: Sequence[int]) -> None:
        """Index what is there."""
        self._ids: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}
        self._length, self._rest, self._asleep = 3, REST, 0
        self.take(0, ids)

    def take(self, kept: int, new: Sequence[int]) -> None:
        """Follow main's ids.

        Args:
            kept: How many stay.
            new: The ids after them.
        """
        del self._ids[kept:]
        for token in new:
            # an n-gram is found only once something has followed it
            if len(self._ids) >= GRAM:
                self._last[tuple(self._ids[-GRAM:])] = len(self._ids)
            self._ids.append(token)
        self._asleep -= len(new)

    def propose(self) -> list[int]:
        """Ids that followed the last time, maybe none."""
        if self._asleep > 0 or len(self._ids) < GRAM:
            return []
        at = self._last.get(tuple(self._ids[-GRAM:]))
        if at is None:
            return []
        return self._ids[at : at + self._length]

    def judge(self, proposed: int, chosen: int) -> None:
        """Tell how many of some proposed ids were chosen."""
        if chosen == 0:
            self._asleep, self._rest = self._rest, 2 * self._rest
        else:
            self._rest = REST
        self._length = min(LONGEST, max(2, self._length + 1 if chosen == proposed else chosen + 1))
