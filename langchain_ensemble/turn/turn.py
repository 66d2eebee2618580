"""The phases of a turn in their order: think, answer, call.

A phase hands its caches to the next, so that no member reads a text twice. Thinking and calls are
one member's alone and raw; the answer is fused.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Self

from langchain_ensemble.chat.splitter import Splitter
from langchain_ensemble.decoding.engine import Decoding, Visit
from langchain_ensemble.decoding.records import Finish, Piece, Usage
from langchain_ensemble.decoding.task import Held, Task
from langchain_ensemble.errors import DeadlineError
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.turn.counts import Count, reused_ids
from langchain_ensemble.turn.tasks import TurnTasks

Pieces = Generator[list[Piece], None, None]
Thought = Generator[list[Piece], None, tuple[list[MemberPrompt], list[Held | None]]]


class Turn:
    """One request of a chat, with the face of one decoding. ``close`` is safe from any thread."""

    def __init__(self, tasks: TurnTasks, visit: Visit) -> None:
        """Keep the request; nothing runs before the first step.

        Args:
            tasks: The phases' tasks.
            visit: Takes them into the engine as one request.

        Raises:
            ConfigError: ``thinking=`` asks members to think that cannot.
        """
        self._tasks, self._visit = tasks, visit
        self._thinkers = tasks.thinkers()
        self._counts = [Count() for _ in range(tasks.answers)]
        self._texts = [""] * tasks.answers
        self._unfinished = set(range(tasks.answers))
        self._running: list[Decoding] = []
        self._lock = threading.Lock()
        self._flow = self._phases()

    @property
    def done(self) -> bool:
        """Whether every answer has finished, or the turn was closed."""
        return not self._unfinished

    def usage(self) -> list[Usage]:
        """Counts of every answer, over its phases."""
        return [count.usage for count in self._counts]

    def step(self) -> list[Piece]:
        """Decode one more step of the phase that runs.

        Returns:
            New text, thoughts or fragments of calls; empty when the turn is done.

        Raises:
            DeadlineError: ``timeout`` passed; carries the answers' text.
        """
        with self._lock:
            if self.done:
                return []
            try:
                pieces = next(self._flow, [])
            except DeadlineError as error:
                self._end()
                told = (  # the error of a phase knows what was left of the time
                    f"timeout of {self._tasks.timeout} s passed; raise timeout= or lower "
                    "max_tokens= (the partial text is in .partial)"
                )
                raise DeadlineError(told, list(self._texts)) from error
            except BaseException:
                self._end()
                raise
            for piece in pieces:
                self._texts[piece.row] += piece.text if piece.channel == "text" else ""
                if piece.finish is not None:
                    self._unfinished.discard(piece.row)
            if self.done:
                self._end()
            return pieces

    def close(self) -> None:
        """Stop and free the caches of every phase; waits for a step that is running."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._unfinished = set()
        self._flow.close()
        for decoding in self._running:
            decoding.close()
        self._visit.close()
        self._running = []

    def __enter__(self) -> Self:
        """Use as a context that always frees the caches."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the caches."""
        self.close()

    # phases

    def _phases(self) -> Pieces:
        if not self._thinkers:
            yield from self._answer(range(self._tasks.answers), self._tasks.prompts(), None)
            return
        for answer in range(self._tasks.answers):
            prompts, held = yield from self._think(answer)
            yield from self._answer([answer], prompts, held)

    def _think(self, answer: int) -> Thought:
        """Let the thinkers think side by side."""
        tasks = self._tasks
        decodings = {place: self._begin(tasks.think(place, answer)) for place in self._thinkers}
        thoughts = dict.fromkeys(decodings, "")
        while not all(decoding.done for decoding in decodings.values()):
            pieces = []
            for place, decoding in decodings.items():
                for piece in [] if decoding.done else decoding.step():
                    thoughts[place] += piece.text
                    thinker = tasks.views[place].name
                    pieces.append(Piece(answer, piece.text, channel="thought", member=thinker))
            yield pieces
        prompts = tasks.prompts(thoughts)  # may refuse, so before any session changes hands
        held: list[Held | None] = [None] * len(prompts)
        for place, decoding in decodings.items():
            (held[place],) = decoding.kept(0)
            self._counts[answer].add_thought(decoding.usage()[0], main=place == 0)
        return prompts, held

    def _answer(
        self,
        answers: Sequence[int],
        prompts: Sequence[MemberPrompt],
        held: list[Held | None] | None,
    ) -> Pieces:
        """Decode some answers together; those that open a call go on alone."""
        tasks = self._tasks
        if tasks.must_call and not tasks.fused_calls:
            own = self._first(held)
            for answer in answers:  # several only where nobody thinks, and so nothing is held
                yield from self._call(answer, prompts[0], own, opened=False)
            return
        opened: dict[int, tuple[int, ...]] = {}
        splitters = [tasks.text_splitter() for _ in answers]
        task = tasks.answer(answers, prompts, held)
        decoding = self._begin(task)
        while not decoding.done:
            out: list[Piece] = []
            for piece in decoding.step():
                if piece.finish is not None and piece.finish.opened is not None:
                    opened[piece.row] = piece.finish.opened
                    piece = replace(piece, finish=None)
                out += _split(splitters[piece.row], piece, answers[piece.row])
            self._count(decoding, task, answers)
            yield out
        for row, ids in opened.items():
            (own,) = decoding.kept(row, 1)
            yield from self._call(answers[row], MemberPrompt((*own.ids, *ids)), own, opened=True)

    def _call(
        self, answer: int, prompt: MemberPrompt, held: Held | None, *, opened: bool
    ) -> Pieces:
        """Let main decode its calls alone."""
        tasks = self._tasks
        left = tasks.steps_left(self._counts[answer].steps)
        if left == 0:
            self._visit.free([held])
            yield [Piece(answer, "", finish=Finish("length", unfinished=True))]
            return
        splitter = tasks.call_splitter(opened=opened)
        task = tasks.call(answer, prompt, held, opened=opened, steps=left)
        decoding = self._begin(task)
        while not decoding.done:
            out = [p for piece in decoding.step() for p in _split(splitter, piece, answer)]
            self._count(decoding, task, [answer])
            yield out

    def _begin(self, task: Task) -> Decoding:
        decoding = self._visit.admit(task)
        self._running.append(decoding)
        return decoding

    def _count(self, decoding: Decoding, task: Task, answers: Sequence[int]) -> None:
        """Add what a phase has cost, once it has finished."""
        if decoding.done:
            reused = reused_ids(task)
            for answer, usage in zip(answers, decoding.usage(), strict=True):
                self._counts[answer].add(usage, reused)

    def _first(self, held: Sequence[Held | None] | None) -> Held | None:
        """Main's session; the others' are not needed any more."""
        self._visit.free((held or ())[1:])
        return held[0] if held else None


def _split(splitter: Splitter, piece: Piece, answer: int) -> list[Piece]:
    """One piece of an answer as text, fragments of calls, or both."""
    text, calls = splitter.feed(piece.text)
    if piece.finish is not None:
        rest, last = splitter.finish(piece.finish.reason == "stop" and not piece.finish.unfinished)
        text, calls = text + rest, [*calls, *last]
    pieces = [replace(piece, row=answer, text=text, finish=None)]
    if calls:
        pieces.append(Piece(answer, "", channel="call", calls=tuple(calls)))
    pieces[-1] = replace(pieces[-1], finish=piece.finish)
    return pieces
