"""One LLM call under way: its run, and what its answers have said so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from langchain_core.outputs import GenerationChunk, LLMResult

from langchain_ensemble.adapter.outputs import Transcript, whole_result
from langchain_ensemble.adapter.running import Run, Stepped
from langchain_ensemble.adapter.telling import Telling

if TYPE_CHECKING:
    from langchain_ensemble.decoding.records import Piece


class Answers:
    """Enter ``run``, :meth:`step` while it goes on, take chunks or the :meth:`result`."""

    def __init__(
        self, start: Callable[[], Stepped], telling: Telling, prompts: Sequence[str], *, n: int
    ) -> None:
        """Keep how to start; nothing runs before the first step.

        Args:
            start: Gives the decoding.
            telling: What the call wants to be told.
            prompts: What is asked.
            n: Answers to each.
        """
        self.run = Run(start)
        self._name, self._n = telling.model_name, n
        self._rows = [Transcript(telling, prompt, self.run) for prompt in prompts for _ in range(n)]

    def step(self) -> bool:
        """Decode one step; False: there is none left.

        Raises:
            AbstainedError: There is none left, and the members are not sure enough of an answer.
        """
        return self._add(self.run.step())

    async def astep(self) -> bool:
        """Decode one step, as :meth:`step`, in the loop's default executor."""
        return self._add(await self.run.astep())

    def _add(self, pieces: Iterable[Piece] | None) -> bool:
        for piece in pieces or ():
            self._rows[piece.row].add(piece)
        if pieces is None:
            for row in self._rows:
                row.refuse()
        return pieces is not None

    def chunk(self) -> GenerationChunk | None:
        """Take out what the one answer of a stream has said since the last time."""
        return self._rows[0].next_chunk(self.run.usage)

    def result(self) -> LLMResult:
        """Give the finished answers."""
        return whole_result(self._rows, self.run.usage, self._n, self._name)
