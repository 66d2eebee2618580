"""Whether drafting pays, from what both ways of decoding cost this request so far.

A draft changes no answer, so this may look at the clock: the time of a token is measured plainly,
then with drafts, and the faster way goes on. The slower way is tried again after pauses that
double, so that a try that fails costs less and less of the whole.
"""

from __future__ import annotations

from typing import Literal

PLAIN = 6
"""Decode steps that tell what a plain one costs."""

TRIAL = 8
"""Rounds that tell what drafting costs."""

PAUSE = 32
"""Tokens before a way that lost is tried again; doubles every time."""

BEHIND = 1.5
"""A trial this much slower than plain steps is broken off at half its length."""


class Pace:
    """Chooses between plain steps and drafts for one request."""

    def __init__(self, mode: Literal["auto", "off", "on"]) -> None:
        """Begin plainly, unless drafts are asked for.

        Args:
            mode: ``"on"`` and ``"off"`` do not look at the clock.
        """
        self._mode = mode
        self._seconds: dict[bool, float] = {}  # of a token, with drafts and without
        self._spent, self._tokens, self._rounds = 0.0, 0.0, 0
        self._pause = PAUSE
        self._next = PLAIN
        self.drafting = mode == "on"

    def note(self, tokens: float, seconds: float) -> None:
        """Count one round.

        Args:
            tokens: Keys that were settled, a row.
            seconds: What it took.
        """
        if self._mode != "auto":
            return
        self._spent += seconds
        self._tokens += tokens
        self._rounds += 1
        if self.drafting:
            self._judge()
        elif self._tokens >= self._next:
            self._turn(True)

    def _judge(self) -> None:
        """Go on with drafts while they are faster; half a trial is enough where they are not."""
        plain = self._seconds[False]
        cost = self._spent / max(self._tokens, 0.5)
        hopeless = self._rounds >= TRIAL // 2 and cost > BEHIND * plain
        if self._rounds < TRIAL and not hopeless:
            return
        if cost >= plain:
            self._turn(False)
            self._next, self._pause = self._pause, 2 * self._pause
        else:
            self._spent, self._tokens, self._rounds = self._spent / 2, self._tokens / 2, TRIAL // 2

    def _turn(self, drafting: bool) -> None:
        self._seconds[self.drafting] = self._spent / max(self._tokens, 0.5)
        self.drafting = drafting
        self._spent, self._tokens, self._rounds = 0.0, 0.0, 0
