"""Guesses: drafts that no voice has made, by look-up or by a small model."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_ensemble.decoding.caches import Change
from langchain_ensemble.decoding.draft import Draft
from langchain_ensemble.decoding.draft_model import DraftModel
from langchain_ensemble.decoding.lookup import Lookup
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Task


class Guesser:
    """Whoever guesses in the rows of one request."""

    def __init__(self, task: Task, rows: Sequence[Row]) -> None:
        """Index every row's prompt and answer in main's ids.

        Args:
            task: The request.
            rows: The rows that run.
        """
        n = task.request.n
        self._main = task.voices[0].vocabulary
        self._lookups: dict[int, Lookup] = {}
        self._prompts: dict[int, int] = {}
        for row in rows:
            prompt = task.prompts[row.number // n][0].ids
            self._lookups[row.number] = Lookup([*prompt, *row.tracks[0].ids])
            self._prompts[row.number] = len(prompt)
        self._model = None if task.draft is None else DraftModel(task.draft, rows, n)
        # by row number: keys guessed and chosen of a guess that runs, and whether it was looked up
        self._open: dict[int, tuple[list[int], bool]] = {}

    def guess(self, drafts: Sequence[Draft]) -> list[tuple[Draft, list[int]]]:
        """Guess what comes in rows that have no draft.

        Args:
            drafts: Those of the rows.

        Returns:
            Drafts and main's ids for them, where there is a guess; tell :meth:`guessed` of each.
        """
        found, rest = [], []
        for draft in drafts:
            keys = self._lookups[draft.row.number].propose()
            self._open[draft.row.number] = ([0, 0], bool(keys))
            if keys:
                found.append((draft, keys))
            elif draft.row.records and not draft.row.fragment:
                rest.append(draft)
        if self._model is not None and rest:
            texts = self._model.guess([draft.row for draft in rest])
            for draft in rest:
                if draft.row.number in texts:
                    found.append((draft, self._main.encode(texts[draft.row.number]).ids))
        return found

    def guessed(self, row: int, count: int) -> None:
        """Note that a guess of ``count`` keys was put into a row's draft."""
        self._open[row][0][0] = count

    def settle(self, row: int, change: Change, *, agreed: bool) -> None:
        """Follow main's ids of a row's answer.

        Args:
            row: Row number.
            change: What a key changed in them.
            agreed: Whether it was the one that was drafted.
        """
        kept, new = change
        self._lookups[row].take(self._prompts[row] + kept, new)
        counts, looked_up = self._open.get(row, ([0, 0], True))
        if counts[0] == 0:
            return
        counts[1] += agreed
        if not agreed or counts[1] == counts[0]:
            self._open.pop(row)
            if looked_up:
                self._lookups[row].judge(*counts)
            elif self._model is not None:
                self._model.judge(row, *counts)

    def select(self, rows: Sequence[int]) -> None:
        """Keep the rows of these numbers."""
        if self._model is not None:
            self._model.select(rows)

    def close(self) -> None:
        """Free what the draft model holds."""
        if self._model is not None:
            self._model.close()
