"""Guesses: drafts that no voice has made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from langchain_ensemble.decoding.caches import Change
from langchain_ensemble.decoding.draft import Draft
from langchain_ensemble.decoding.lookup import Lookup
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.members.base import MemberPrompt


class Guesser:
    """Look-ups of the rows of a request, by row number."""

    def __init__(self, rows: Sequence[Row], prompts: Sequence[MemberPrompt]) -> None:
        """Index every row's prompt and answer in main's ids.

        Args:
            rows: The rows that run.
            prompts: Main's prompts of these rows.
        """
        self._lookups: dict[int, Lookup] = {}
        self._prompts: dict[int, int] = {}
        self._open: dict[int, list[int]] = {}  # guessed and chosen keys of a guess that runs
        for row, prompt in zip(rows, prompts, strict=True):
            self._lookups[row.number] = Lookup([*prompt.ids, *row.tracks[0].ids])
            self._prompts[row.number] = len(prompt.ids)

    def guess(self, drafts: Iterable[Draft]) -> list[tuple[Draft, list[int]]]:
        """Guess what comes in rows that have no draft.

        Args:
            drafts: Those of the rows.

        Returns:
            Drafts and main's ids for them, where there is a guess.
        """
        found = [(draft, self._lookups[draft.row.number].propose()) for draft in drafts]
        return [(draft, keys) for draft, keys in found if keys]

    def guessed(self, row: int, count: int) -> None:
        """Note that a guess of ``count`` keys was put into a row's draft."""
        if count:
            self._open[row] = [count, 0]

    def settle(self, row: int, change: Change, *, agreed: bool) -> None:
        """Follow main's ids of a row's answer.

        Args:
            row: Row number.
            change: What a key changed in them.
            agreed: Whether it was the one that was drafted.
        """
        kept, new = change
        self._lookups[row].take(self._prompts[row] + kept, new)
        running = self._open.get(row)
        if running is None:
            return
        running[1] += agreed
        if not agreed or running[1] == running[0]:
            self._lookups[row].judge(*self._open.pop(row))
