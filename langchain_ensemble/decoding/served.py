"""One decoding as the engine serves it: its loop, and what its caller has not read yet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from langchain_ensemble.decoding.loop import Loop
from langchain_ensemble.decoding.records import Piece
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.errors import DeadlineError, MemoryLimitError

UNREAD = 32
"""Steps that are decoded ahead of a caller who does not read."""


class Served:
    """A loop that whoever holds the engine's lock may run; its caller only takes what came out.

    Attributes:
        task: The request.
        loop: The request's rows.
        unread: Pieces of each step that the caller has not taken.
        remarks: What the caller has to be warned of.
        error: What ended it, until the caller is told.
        given_up: Whether the caller wants no more of it.
        closed: Whether its caches were freed for that reason.
        rows: Answers that were asked for.
    """

    def __init__(self, task: Task) -> None:
        """Keep the request; nothing runs."""
        self.task = task
        self.remarks: deque[str] = deque()
        self.loop = Loop(replace(task, warn=self.remarks.append))  # said in the caller's thread
        self.unread: deque[list[Piece]] = deque()
        self.error: BaseException | None = None
        self.given_up = False
        self.closed = False
        self.rows = len(self.loop.rows)
        self._finished = self.loop.done
        self._timeout = task.request.timeout
        self._opened = time.monotonic()

    @property
    def live(self) -> bool:
        """Whether there is something left to decode."""
        return not (self._finished or self.given_up)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to decode, to read or to be told."""
        return self.closed or (self._finished and not self.unread and self.error is None)

    @property
    def hungry(self) -> bool:
        """Whether it can be decoded on: its caller reads."""
        return self.live and len(self.unread) < UNREAD

    @property
    def left(self) -> int:
        """Answers that are not finished."""
        return sum(row.finish is None for row in self.loop.rows) if self.live else 0

    def heard(self) -> bool:
        """Whether its caller would find something."""
        return bool(self.unread) or self._finished or self.given_up

    def give(self, pieces: list[Piece]) -> None:
        """Put one step's pieces where the caller finds them."""
        if pieces:
            self.unread.append(pieces)
        self._finished = self.loop.done  # not before: who sees it finished finds its last pieces

    def fail(self, error: BaseException) -> None:
        """End it with an error of its own."""
        self.loop.close()
        self.error = error
        self._finished = True

    def close(self) -> None:
        """Free its caches."""
        self.given_up = True
        self.loop.close()
        self.closed = True

    def expire(self, behind: str) -> None:
        """End it where ``timeout`` has passed while nothing was decoded for it.

        Args:
            behind: What it waits for.
        """
        if self._timeout is None or time.monotonic() < self._opened + self._timeout:
            return
        partial = [row.text(0, row.complete) for row in self.loop.rows]
        told = (
            f"timeout of {self._timeout} s passed while the request waited: {behind}; raise "
            "timeout=, max_concurrent= or kv_cache_gb=, or send fewer at once (what was decoded "
            "before is in .partial)"
        )
        self.fail(DeadlineError(told, partial))

    @contextmanager
    def minded(self) -> Iterator[None]:
        """Keep what goes wrong for the caller of this request; the others go on."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self.fail(self._no_room(error))
        except Exception as error:
            self.fail(error)

    def _no_room(self, error: torch.OutOfMemoryError) -> MemoryLimitError:
        steps = max((len(row.records) for row in self.loop.rows), default=0)
        told = MemoryLimitError(
            f"out of device memory while decoding {self.rows} row(s) at step {steps}: {error}. "
            "Lower the number of prompts per batch, n= or max_tokens=, or put members on "
            "other devices; the ensemble stays usable"
        )
        told.__cause__ = error
        return told
