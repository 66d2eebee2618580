"""One chat call under way: its run, and what its answers have said so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_ensemble.adapter.replies import Reply, chat_result
from langchain_ensemble.adapter.running import Run, Stepped
from langchain_ensemble.adapter.telling import Telling

if TYPE_CHECKING:
    from langchain_ensemble.decoding.records import Piece


class Turn:
    """Enter ``run``, :meth:`step` while it goes on, take :meth:`chunks` or the :meth:`result`."""

    def __init__(
        self,
        start: Callable[[], tuple[Stepped, str]],
        telling: Telling,
        prompt: str,
        *,
        n: int,
    ) -> None:
        """Keep how to start; nothing runs before the first step.

        Args:
            start: Gives the decoding, and what identifies members and settings.
            telling: What the call wants to be told.
            prompt: The conversation as text, for traces.
            n: Answers.
        """
        self.run = Run(self._started)
        self._start = start
        self._fingerprint = ""
        self._model_name = telling.model_name
        self._replies = [Reply(telling, prompt, self.run) for _ in range(n)]

    def _started(self) -> Stepped:
        decoding, self._fingerprint = self._start()
        return decoding

    def step(self) -> bool:
        """Decode one step; False: there is none left.

        Raises:
            ContextOverflowError: The conversation does not fit a member.
            AbstainedError: There is none left, and the members are not sure enough.
        """
        return self._add(self.run.step())

    async def astep(self) -> bool:
        """Decode one step, as :meth:`step`, in the loop's default executor."""
        return self._add(await self.run.astep())

    def _add(self, pieces: Iterable[Piece] | None) -> bool:
        for piece in pieces or ():
            self._replies[piece.row].add(piece)
        if pieces is None:
            for reply in self._replies:
                reply.refuse()
        return pieces is not None

    def chunks(self) -> list[ChatGenerationChunk]:
        """Take out what the one answer of a stream has said since the last time."""
        return self._replies[0].chunks(self.run.usage, self._fingerprint)

    def result(self) -> ChatResult:
        """Give the finished answers."""
        return chat_result(self._replies, self.run.usage, self._fingerprint, self._model_name)
