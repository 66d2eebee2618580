"""Who may step when: requests of many threads over one set of members.

Each caller pumps its own request under one lock, so that errors surface in the caller and no
background thread exists. Requests take turns step by step; a stream that nobody reads holds
memory, but blocks nobody.
"""

from __future__ import annotations

import threading
from typing import Self

import torch

from langchain_ensemble.decoding.loop import Loop
from langchain_ensemble.decoding.records import Answer, Finish, Piece, TokenRecord, Usage
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Held, Task
from langchain_ensemble.errors import MemoryLimitError


class Engine:
    """Admits requests; one step of one request runs at a time."""

    def __init__(self) -> None:
        """Start with no request."""
        self.lock = threading.Lock()

    def admit(self, task: Task) -> Decoding:
        """Take a request in; nothing is run before its first step."""
        return Decoding(self, task)


class Decoding:
    """One request while it is decoded. ``close`` is safe from any thread."""

    def __init__(self, engine: Engine, task: Task) -> None:
        """Keep the request."""
        self._engine = engine
        self._task = task
        self._loop = Loop(task)

    @property
    def done(self) -> bool:
        """Whether every row has finished, or the request was closed."""
        return self._loop.done

    @property
    def rows(self) -> list[Row]:
        """The rows as they stand, [prompt × n]; to be read, not changed."""
        return self._loop.rows

    def step(self) -> list[Piece]:
        """Decode one more key in every unfinished row.

        Returns:
            The rows' new text; empty when the request is done.

        Raises:
            DeadlineError: ``timeout`` passed.
            MemoryLimitError: The device is out of memory; the caches of this request are freed.
        """
        with self._engine.lock:
            try:
                return self._loop.step()
            except torch.OutOfMemoryError as error:
                rows, steps = self._size()
                self._loop.close()
                raise MemoryLimitError(
                    f"out of device memory while decoding {rows} row(s) at step {steps}: {error}. "
                    "Lower the number of prompts per batch, n= or max_tokens=, or put members on "
                    "other devices; the ensemble stays usable"
                ) from error
            except BaseException:
                self._loop.close()
                raise

    def _size(self) -> tuple[int, int]:
        rows = self._loop.rows
        return len(rows), max((len(row.records) for row in rows), default=0)

    def usage(self) -> list[Usage]:
        """Counts of every row."""
        return self._loop.usage()

    def kept(self, row: int) -> list[Held]:
        """Give away the sessions of a finished row (``keep=True``), one a voice.

        Args:
            row: Row number.

        Returns:
            What each voice has read; it belongs to the caller, or to the task it is handed to.

        Raises:
            ConfigError: Nothing is kept of that row.
        """
        with self._engine.lock:
            return self._loop.kept(row)

    def close(self) -> None:
        """Stop and free the caches, kept ones too; waits for a step that is running."""
        with self._engine.lock:
            self._loop.close()

    def __enter__(self) -> Self:
        """Use as a context that always frees the caches."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the caches."""
        self.close()

    def answers(self) -> list[list[Answer]]:
        """Decode to the end.

        Returns:
            [prompt][n] answers.
        """
        count = len(self._loop.rows)
        texts: list[list[str]] = [[] for _ in range(count)]
        tokens: list[list[TokenRecord]] = [[] for _ in range(count)]
        finishes: list[Finish] = [Finish("length")] * count
        while not self.done:
            for piece in self.step():
                texts[piece.row].append(piece.text)
                tokens[piece.row].extend(piece.tokens)
                if piece.finish is not None:
                    finishes[piece.row] = piece.finish
        rows = [
            Answer("".join(text), tuple(records), finish, usage)
            for text, records, finish, usage in zip(
                texts, tokens, finishes, self.usage(), strict=True
            )
        ]
        n = self._task.request.n
        return [rows[at : at + n] for at in range(0, count, n)]
