"""The open boundaries of all voices of one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from langchain_ensemble.decoding.boundary import BoundaryTracker
from langchain_ensemble.decoding.path_tracker import tracker_of
from langchain_ensemble.decoding.protocols import Voice
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.fusion.base import MemberDistribution


class Trackers:
    """One tracker a voice, None where its boundaries need not be known."""

    def __init__(self, voices: Sequence[Voice], rows: int, *, weigh: bool) -> None:
        """Start with no boundary.

        Args:
            voices: The voices, main first.
            rows: B, rows that run.
            weigh: Whether open boundaries are weighed.
        """
        self._devices = [voice.member.device for voice in voices]
        self._each = [tracker_of(voice, rows, weigh=weigh) for voice in voices]

    def of(self, place: int) -> BoundaryTracker | None:
        """One voice's."""
        return self._each[place]

    def weighed(self) -> tuple[bool, ...]:
        """Voices whose boundaries are known."""
        return tuple(tracker is not None for tracker in self._each)

    def boundaries(
        self, rows: Sequence[Row], distributions: Sequence[MemberDistribution], at: Sequence[int]
    ) -> list[Tensor | None]:
        """c_i [n] of every voice that could be asked what follows half a token; else None."""
        found = self.weigh(rows, at)
        self.keep([one.logprobs for one in distributions])
        return found

    def weigh(self, rows: Sequence[Row], at: Sequence[int]) -> list[Tensor | None]:
        """:meth:`boundaries` before the voices are heard; :meth:`keep` must follow.

        Args:
            rows: n rows.
            at: Each row's place among those that run.
        """
        here = [not row.fragment for row in rows]
        return [
            None
            if tracker is None
            else tracker.weigh([r.held_by(place) for r in rows], here, at, device)
            for place, (tracker, device) in enumerate(zip(self._each, self._devices, strict=True))
        ]

    def keep(self, logprobs: Sequence[Tensor | None]) -> None:
        """Keep [n, V_i] log-probabilities of each voice that was weighed."""
        for tracker, said in zip(self._each, logprobs, strict=True):
            if tracker is not None and said is not None:
                tracker.keep(said)

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows."""
        for tracker in self._each:
            if tracker is not None:
                tracker.select(list(rows))

    def mark(self) -> list[Any]:
        """Remember the state."""
        return [None if tracker is None else tracker.mark() for tracker in self._each]

    def rollback(self, mark: Sequence[Any]) -> None:
        """Return to a mark."""
        for tracker, saved in zip(self._each, mark, strict=True):
            if tracker is not None:
                tracker.rollback(saved)
