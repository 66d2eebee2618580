"""Requests of many threads over one set of members, without a thread of its own.

Whoever wants output and finds none decodes one round for everybody (``rounds``) and leaves to each
caller what is his; errors surface in the caller whose request they end. Who comes while a round
runs waits for its end and takes what it brought. ``admission`` says who takes part.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import torch

from langchain_ensemble.decoding.admission import Estimate, Kept, Limits, Line, Ticket, kv_bytes
from langchain_ensemble.decoding.loop import Loop
from langchain_ensemble.decoding.records import Answer, Finish, Piece, TokenRecord, Usage
from langchain_ensemble.decoding.rounds import run_round
from langchain_ensemble.decoding.served import Served
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Held, Task
from langchain_ensemble.decoding.turnstile import Turnstile
from langchain_ensemble.errors import OverloadedError

PATIENCE = 0.005
"""Seconds until a caller looks again where nothing can run before others read or end."""


class Engine:
    """Admits requests and runs them together, a round at a time.

    Attributes:
        lock: Held while a round runs.
        limits: How much is done at once.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        """Start with no request."""
        self.lock = Turnstile()
        self.limits = limits or Limits()
        self._line = Line(self.limits)
        self._came: deque[Ticket] = deque()
        self._rounds = 0
        self._leftovers: deque[Callable[[], None]] = deque()

    def admit(self, task: Task) -> Decoding:
        """Take a request in; nothing is run before its first step.

        Args:
            task: The request.

        Returns:
            The request, to be stepped and closed.

        Raises:
            MemoryLimitError: Its caches can never fit ``kv_cache_gb``.
        """
        return self._begin(task, Ticket(), lambda: kv_bytes(task))

    def visit(self, estimate: Estimate) -> Visit:
        """Take in a request that is decoded in several phases.

        Args:
            estimate: Bytes of KV caches that all of it may need.

        Returns:
            The request; its phases share one place among all requests.
        """
        return Visit(self, estimate)

    def keep(self, kept: Kept) -> None:
        """Count caches that nobody needs to ``kv_cache_gb`` too; they give way to requests."""
        self._line.kept = kept

    def _begin(self, task: Task, ticket: Ticket, estimate: Estimate) -> Decoding:
        if self.limits.kv_bytes is not None and not ticket.phases:
            ticket.needed = estimate()
            self._line.check(ticket.needed)
        served = Served(task)
        ticket.phases = [*(one for one in ticket.phases if not one.over), served]
        return Decoding(self, ticket, served)

    def pump(self, ticket: Ticket, served: Served) -> None:
        """Bring a request forward: one round at most is run, or waited for.

        Args:
            ticket: The request's place.
            served: What its caller wants output of.
        """
        if not ticket.asked:
            ticket.asked = True
            self._came.append(ticket)
        if not self.lock.enter(served.heard):
            return
        try:
            idle = not self._round()
        finally:
            self.lock.leave()
        self.tidy()
        if idle and not served.heard():
            time.sleep(PATIENCE)

    def later(self, work: Callable[[], None]) -> None:
        """Do something that touches the members when nobody runs them; now, if possible.

        Never waits, whoever calls it: the garbage collector may, in the middle of a round.
        """
        self._leftovers.append(work)
        self.tidy()

    def tidy(self) -> None:
        """Do what was left for later, unless somebody is inside, who will."""
        while self._leftovers and self.lock.try_enter():
            try:
                self._clear()
            finally:
                self.lock.leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the members for oneself, between two rounds."""
        with self.lock:
            self._clear()
            yield
        self.tidy()

    @torch.inference_mode()
    def _clear(self) -> None:
        while self._leftovers:
            self._leftovers.popleft()()
        self._line.remove_ended()

    def _round(self) -> bool:
        """Run one round; says whether anything ran."""
        self._clear()
        self._line.expire()
        while self._came:
            ticket = self._came.popleft()
            if not ticket.ready:  # closed before it ran
                continue
            try:
                self._line.join(ticket)
            except OverloadedError as error:
                for one in ticket.phases:
                    one.fail(error)
        running = self._line.next_round()
        self._rounds += 1
        try:
            run_round(running, self._rounds)
        finally:
            self._line.remove_ended()
        return bool(running)


class Visit:
    """One request of several phases: they share one place, which it keeps until it is closed."""

    def __init__(self, engine: Engine, estimate: Estimate) -> None:
        """Come; nothing is asked for yet."""
        self._engine, self._estimate = engine, estimate
        self._ticket = Ticket(stays=True)
        self._gone = weakref.finalize(self, _end, engine, self._ticket)
        self._gone.atexit = False

    def admit(self, task: Task) -> Decoding:
        """Take a phase in; nothing is run before its first step.

        Args:
            task: The phase.

        Returns:
            The phase, to be stepped and closed.

        Raises:
            MemoryLimitError: The request's caches can never fit ``kv_cache_gb``.
        """
        return self._engine._begin(task, self._ticket, self._estimate)

    def free(self, held: Iterable[Held | None]) -> None:
        """Free sessions that no phase will take over."""
        for one in held:
            if one is not None:
                self._engine.later(one.session.close)

    def close(self) -> None:
        """Give up the place and what is being decoded."""
        self._gone()


def _end(engine: Engine, ticket: Ticket) -> None:
    """End a request of several phases."""
    ticket.over = True
    for served in ticket.phases:
        _drop(engine, served)


def _drop(engine: Engine, served: Served) -> None:
    """End a decoding."""
    served.given_up = True
    engine.later(served.close)


class Decoding:
    """One decoding while it runs. ``close`` is safe from any thread."""

    def __init__(self, engine: Engine, ticket: Ticket, served: Served) -> None:
        """Keep the request; the engine does not, so that one that is dropped ends."""
        self._engine, self._ticket, self._served = engine, ticket, served
        self._gone = weakref.finalize(self, _drop, engine, served)
        self._gone.atexit = False

    @property
    def _loop(self) -> Loop:
        return self._served.loop

    @property
    def done(self) -> bool:
        """Whether every row has finished and was read, or the request was closed."""
        return self._served.over

    @property
    def rows(self) -> list[Row]:
        """The rows as they stand, [prompt × n]; to be read, not changed."""
        return self._loop.rows

    def step(self) -> list[Piece]:
        """Take what one step has brought; where there is nothing yet, decode a round for all.

        Returns:
            The rows' new text; empty when the request is done, and while it waits.

        Raises:
            DeadlineError: ``timeout`` passed, maybe while the request waited.
            OverloadedError: It would have to wait, and ``max_queue`` requests do.
            MemoryLimitError: The device is out of memory; the caches of this request are freed.
        """
        served = self._served
        if served.over or served.given_up:
            return []
        if not served.heard():
            self._engine.pump(self._ticket, served)
        try:
            while served.remarks:
                self._task.warn(served.remarks.popleft())
        except BaseException:  # where warnings are errors
            self.close()
            raise
        if served.unread:
            return served.unread.popleft()
        if served.error is not None and not served.given_up:
            error, served.error = served.error, None
            self.close()
            raise error
        return []

    @property
    def _task(self) -> Task:
        return self._served.task

    def usage(self) -> list[Usage]:
        """Counts of every row."""
        return self._loop.usage()

    def kept(self, row: int, voices: int | None = None) -> list[Held]:
        """Give away the sessions of a finished row (``keep=True``), one a voice.

        Args:
            row: Row number.
            voices: How many, main's first; None: all.

        Returns:
            What each voice has read; it belongs to the caller, or to the task it is handed to.

        Raises:
            ConfigError: Nothing is kept of that row.
        """
        with self._engine.lock:
            return self._loop.kept(row, voices)

    def close(self) -> None:
        """Stop and free the caches, kept ones too; a round that runs does it at its end."""
        self._gone()

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
