"""Drive one request's decoding, from the caller's thread or from an executor's.

There is no background thread: whoever wants output pumps :meth:`Run.step`, so errors surface in
the caller at once and nothing goes on when nobody reads. A run may be closed at any moment, also
while a step (or the loading before the first) is under way in another thread: that thread frees
the cache as soon as its step ends.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from langchain_ensemble.adapter.faults import translated

if TYPE_CHECKING:
    from langchain_ensemble.decoding.records import Piece, Usage


class Stepped(Protocol):
    """What is pumped: one request's decoding, or one chat turn."""

    @property
    def done(self) -> bool:
        """Whether every row has finished, or it was closed."""

    def step(self) -> list[Piece]:
        """Go one step on."""

    def usage(self) -> list[Usage]:
        """One entry a row."""

    def close(self) -> None:
        """Stop and free everything; again is free."""


class Run:
    """One request. Use as a (possibly async) context manager, then call ``step`` or ``astep``.

    Attributes:
        usage: One entry a row, once the last piece was given.
        begun: When decoding began, by ``time.perf_counter``: behind the loading of weights.
    """

    def __init__(self, start: Callable[[], Stepped]) -> None:
        """Keep how to start; nothing runs before the first step."""
        self._start = start
        self._decoding: Stepped | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.usage: list[Usage] = []
        self.begun = 0.0

    def step(self) -> list[Piece] | None:
        """Decode one step.

        Returns:
            New text, maybe none; None when every row has finished or the run was closed.
        """
        with self._lock, translated():  # prompts are read at the first step, thoughts later
            pieces = None if self._closed else self._advance()
        if self._closed:
            self.close()
        return pieces

    def _advance(self) -> list[Piece] | None:
        if self._decoding is None:
            self._decoding = self._start()
            self.begun = time.perf_counter()
        if self._decoding.done:
            self._finish(self._decoding)
            return None
        pieces = self._decoding.step()
        if self._decoding.done:
            self._finish(self._decoding)
        return pieces

    def _finish(self, decoding: Stepped) -> None:
        if not self.usage:
            self.usage = decoding.usage()

    async def astep(self) -> list[Piece] | None:
        """Decode one step in the loop's default executor; as :meth:`step`."""
        return await asyncio.get_running_loop().run_in_executor(None, self.step)

    def close(self) -> None:
        """Stop and free the cache; at once, or when the step under way in another thread ends."""
        self._closed = True
        if self._lock.acquire(blocking=False):
            try:
                if self._decoding is not None:
                    self._decoding.close()
            finally:
                self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        closing = asyncio.get_running_loop().run_in_executor(None, self.close)
        await asyncio.shield(closing)  # a second cancellation does not stop the closing
