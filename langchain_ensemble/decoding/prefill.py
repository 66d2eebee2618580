"""Reading the prompts of one request: a piece at a time, and nothing twice.

A piece is one forward of at most ``session.chunk`` columns, so that other requests can take steps
in between. What several prompts begin with alike is read once and copied; what an earlier request
has read comes from the prefix cache; what a phase of the same answer has read is handed in.

Members whose state cannot be rolled back (``session.chunk`` is None) read whole prompts in one
piece, each prompt by itself, and nothing of theirs is kept for others.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from langchain_ensemble.decoding.handover import rewind
from langchain_ensemble.decoding.prefixes import USEFUL, Offer, shared_length
from langchain_ensemble.decoding.stopwatch import Stopwatch
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.members.base import MemberPrompt, MemberSession

Rows = Sequence[Sequence[int]]


class Prefill:
    """Reads the prompts of one request with all its voices.

    Attributes:
        readers: One a voice.
    """

    def __init__(self, task: Task, watches: Sequence[Stopwatch]) -> None:
        """Keep what is to be read; nothing is run yet.

        Args:
            task: The request; what its voices hold belongs to the readers.
            watches: One a voice.
        """
        self.readers = [Reader(task, place, watch) for place, watch in enumerate(watches)]

    @property
    def done(self) -> bool:
        """Whether every voice has read its prompts."""
        return all(reader.logits is not None for reader in self.readers)

    def read_on(self) -> None:
        """Read one piece on every device: devices work side by side, voices on one in turn."""
        busy: set[torch.device] = set()
        for reader in self.readers:
            if reader.logits is None and reader.device not in busy:
                busy.add(reader.device)
                reader.read_on()


class Reader:
    """Reads the prompts of one voice.

    Attributes:
        device: Where the voice runs.
        session: What was read so far; None before the first piece.
        logits: [B, V_i] float32 after the prompts, one row an answer; None until all is read.
        cached: Ids of each prompt that came from the prefix cache.
    """

    def __init__(self, task: Task, place: int, watch: Stopwatch) -> None:
        """Keep what is to be read; nothing is run yet.

        Args:
            task: The request.
            place: Which of its voices reads.
            watch: Counts the time of the forwards.
        """
        self._member = task.voices[place].member
        self._held = None if task.held is None else task.held[place]
        self._prompts = [prompt[place] for prompt in task.prompts]
        self._n, self._watch = task.request.n, watch
        self._prefixes, self._salt = task.prefixes, task.request.cache_salt
        self.device = self._member.device
        self.session: MemberSession | None = None if self._held is None else self._held.session
        self.logits: Tensor | None = None
        self.cached = 0
        self._pieces = self._read()

    def read_on(self) -> None:
        """Read one piece."""
        next(self._pieces, None)

    def known(self) -> Offer | None:
        """What the first row holds, None: nothing yet."""
        if self.session is None or not self.session.lengths:
            return None
        ids = self._prompts[0].ids if self._held is None else self._held.ids
        return Offer(self.session, 0, ids, min(len(ids), self.session.lengths[0]))

    def _read(self) -> Iterator[None]:
        """Read everything, with a pause between two pieces."""
        prompts = [prompt.ids for prompt in self._prompts]
        if self._held is not None:
            known, session = rewind(self._held, prompts[0]), self._held.session
            self._held = None
            logits = yield from self._extend(session, prompts, known)
        else:
            session = self.session = self._member.session()
            if self._whole(session):  # it also refuses what cannot be read at all
                with self._watch.running():
                    logits = session.prefill(self._prompts)
            else:
                session, known = yield from self._begin(session, prompts)
                logits = yield from self._extend(session, prompts, known)
        if self._n > 1:
            repeat = [row for row in range(len(prompts)) for _ in range(self._n)]
            session.select(repeat)
            logits = logits[repeat]
        self.logits = logits

    def _whole(self, session: MemberSession) -> bool:
        """Whether the prompts have to be read at once."""
        room = self._member.context
        return session.chunk is None or any(
            not prompt.ids
            or prompt.encoder_ids is not None
            or (room is not None and len(prompt.ids) > room)
            for prompt in self._prompts
        )

    def _begin(
        self, session: MemberSession, prompts: Rows
    ) -> Generator[None, None, tuple[MemberSession, int]]:
        """Open the rows with what is known of all prompts, or read once.

        Returns:
            The session, and how many ids each of its rows holds; with 0 it has no rows yet.
        """
        first, *others = prompts
        if others:
            alike = min(shared_length(first, other) for other in others)
            alike = min(alike, *(len(prompt) - 1 for prompt in prompts))
            if alike < USEFUL:
                return session, 0
            first = first[: alike + 1]  # the last id is not read yet
        if self._prefixes is not None:
            before = 0
            while (read := self._prefixes.coming(self._member, self._salt, first)) > before:
                before = read
                yield  # another request is reading the same
            taken = self._prefixes.take(self._member, self._salt, first)
            if taken is not None:
                session.close()
                session = self.session = taken
                self.cached = taken.lengths[0]
        if others:
            if self.cached < len(first) - 1:
                yield from self._extend(session, [first[:-1]], self.cached)
                yield
            session.select([0] * len(prompts))
            return session, len(first) - 1
        return session, self.cached

    def _extend(
        self, session: MemberSession, rows: Rows, known: int
    ) -> Generator[None, None, Tensor]:
        """Run what follows the first ``known`` ids of every row; at least one id of each.

        Returns:
            Logits after the last id of each row, [rows, V_i].
        """
        widest = max(len(row) for row in rows)
        fits = self._member.context is None or widest <= self._member.context
        chunk = session.chunk if fits and session.chunk else widest - known
        end = known + ((widest - known) % chunk or chunk)
        logits: Tensor | None = None
        while True:
            new = [row[known:end] for row in rows]
            with self._watch.running():
                if session.lengths:
                    after = session.step(new)[:, -1]
                else:
                    after = session.prefill([MemberPrompt(tuple(ids)) for ids in new])
            if logits is not None and not all(new):  # a shorter prompt keeps its last logits
                moved = torch.tensor([bool(ids) for ids in new], device=after.device)
                after = torch.where(moved[:, None], after, logits)
            logits = after
            if end >= widest:
                return logits
            known, end = end, end + chunk
            yield
