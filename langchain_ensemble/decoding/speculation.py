"""When a request drafts: it begins plainly, drafts where that pays, and says what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from langchain_ensemble.decoding.caches import Caches, Change
from langchain_ensemble.decoding.drafts import Drafts
from langchain_ensemble.decoding.gates import Gatekeeper
from langchain_ensemble.decoding.guesses import Guesser
from langchain_ensemble.decoding.pace import Pace
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Chosen, Task
from langchain_ensemble.decoding.verify import Proposed


class Speculation:
    """A request's drafts, while it has any.

    Attributes:
        drafted: Keys that were drafted so far.
        accepted: Those of them that the fusion chose.
    """

    def __init__(self, task: Task, caches: Caches) -> None:
        """Begin without drafts.

        Raises:
            ConfigError: A gate that these members cannot have.
        """
        gate = Gatekeeper(task.request.gate, task.voices, task.key_bytes)
        gate.check(task.weigh_boundaries)
        self._task, self._caches = task, caches
        self._pace = Pace(task.request.speculation)
        self._drafts: Drafts | None = None
        self.drafted = self.accepted = 0

    def keep_pace(self, rows: Sequence[Row]) -> None:
        """Begin to draft, or give it up, as the request's pace says; between two rounds."""
        wanted = self._pace.drafting and all(row.records for row in rows)
        if wanted and self._drafts is None:
            guesser = Guesser(self._task, rows)
            self._drafts = Drafts(self._task, rows, self._caches, guesser)
        elif not wanted:
            self.level()

    def standing(self) -> tuple[Sequence[int], Sequence[Tensor]]:
        """Places of the rows whose next key can be chosen, and every voice's logits there.

        Main's logits alone where none of these rows needs the others: where a gate asks main only.
        """
        if self._drafts is None:
            return range(len(self._caches.logits[0])), self._caches.logits
        at = self._drafts.ready
        if at:
            return at, self._drafts.logits(at)
        at = self._drafts.passing
        return at, self._drafts.logits(at, voices=1) if at else ()

    def proposed(self, at: Sequence[int]) -> Sequence[Proposed | None]:
        """What was drawn from a known distribution for some rows' next key; empty: nothing."""
        return () if self._drafts is None else self._drafts.proposed(at)

    def credited(
        self, question: Question | None, chosen: Sequence[Chosen]
    ) -> tuple[Sequence[int], Sequence[Chosen]]:
        """Note which keys were drafted before they were chosen.

        Args:
            question: What was asked, None: nothing.
            chosen: One choice a row of it.

        Returns:
            The rows' places and their choices.
        """
        at = question.at if question is not None else ()
        if self._drafts is None:
            return at, chosen
        told = []
        for b, pick in zip(at, chosen, strict=True):
            drafted = pick.record is not None and self._drafts.next_key(b) == pick.key
            record = replace(pick.record, drafted=True) if drafted and pick.record else None
            told.append(pick if record is None else replace(pick, record=record))
        return at, told

    def settle(self, b: int, key: int, changes: Sequence[Change]) -> None:
        """Note that a row got a key; see :meth:`Drafts.settle`."""
        if self._drafts is not None:
            self._drafts.settle(b, key, changes)

    def cached(self, b: int, kept: Sequence[int]) -> list[int]:
        """How many ids of a row's answer are right in each voice's cache, ``kept`` at most."""
        if self._drafts is None:
            return list(kept)
        return [min(pair) for pair in zip(kept, self._drafts.valid(b), strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows."""
        if self._drafts is not None:
            self._drafts.select(rows)

    def submit(self, plans: Sequence[Sequence[Change]], turn: int | None = None) -> None:
        """Start what is to be read next: by one voice with drafts, else by all.

        Args:
            plans: [row][voice], what the rows' new keys changed; not read with drafts.
            turn: Whose turn it is, see :meth:`Drafts.submit`.
        """
        if self._drafts is None:
            self._caches.submit(plans)
            return
        self._drafts.take_proposals()
        if not self._drafts.ready and not self._drafts.passing:
            self._drafts.submit(turn)

    def collect(self) -> None:
        """Take what the voices say next."""
        if self._drafts is None:
            self._caches.collect()
        else:
            self._drafts.collect()

    def level(self) -> None:
        """Give drafts up: every voice reads to the end of every answer."""
        if self._drafts is not None:
            self._drafts.level()
            self.drop()

    def drop(self) -> None:
        """Forget the drafts; the caches are rolled back by the caller, or not used any more."""
        if self._drafts is not None:
            self._drafts.close()
            self.drafted += self._drafts.drafted
            self.accepted += self._drafts.accepted
            self._drafts = None

    def note(self, tokens: float, seconds: float) -> None:
        """Tell what a round cost; see :meth:`Pace.note`."""
        self._pace.note(tokens, seconds)
