"""Everything that a request keeps on devices: KV caches, last logits, open boundaries, generators.

One transactional state beside the rows: what is advanced can be marked and rolled back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.decoding.devices import Devices
from langchain_ensemble.decoding.handover import put_away
from langchain_ensemble.decoding.prefill import Prefill
from langchain_ensemble.decoding.prefixes import Offer
from langchain_ensemble.decoding.stopwatch import Stopwatch
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.decoding.trackers import Trackers
from langchain_ensemble.errors import MemoryLimitError
from langchain_ensemble.members.base import LoadedMember, MemberPrompt, MemberSession, Pending

Change = tuple[int, list[int]]
"""How many ids of a row's answer stay in a voice's cache, and the ids to run after them."""


@dataclass(eq=False)
class Mark:
    """A remembered state of the device side.

    Attributes:
        lengths: [voice][row] cached ids at the mark.
        floors: [voice][row] shortest length since; what lies above was overwritten.
        logits: Last logits of each voice.
        trackers: Open boundaries of each voice.
        generators: State of each row's generator.
    """

    lengths: list[list[int]]
    floors: list[list[int]]
    logits: list[Tensor]
    trackers: list[Any]
    generators: list[Tensor]


class Caches:
    """The device side of one request; rows are those that still run.

    Attributes:
        logits: [B, V_i] float32 after the last id of each row, one a voice.
        trackers: Open boundaries of each voice.
        cached: Ids of each prompt that came from the prefix cache, one a voice.
        generators: One a row, None when greedy.
    """

    def __init__(self, task: Task, generators: list[torch.Generator] | None) -> None:
        """Start empty, or with what some voices have read before."""
        self._task = task
        self._voices = task.voices
        self._sessions: list[MemberSession] = []
        self._prompts: list[Sequence[MemberPrompt]] = []  # [row][voice]
        self._prompt_lengths: list[list[int]] = []  # [row][voice]
        self._marks: weakref.WeakSet[Mark] = weakref.WeakSet()
        self._watches = [Stopwatch(voice.member.device) for voice in task.voices]
        self._reading: Prefill | None = Prefill(task, self._watches)
        self._devices = Devices()
        self._pending: list[tuple[int, list[list[int]], Pending]] = []
        self.cached = [0] * len(task.voices)
        self.logits: list[Tensor] = []
        self.trackers = Trackers((), 0, weigh=False)
        self.generators = generators

    @property
    def seconds(self) -> list[float]:
        """How long each voice's forwards took, prefill included."""
        return [watch.seconds for watch in self._watches]

    @property
    def opened(self) -> bool:
        """Whether the prompts were read."""
        return bool(self._sessions)

    def prefill(self) -> None:
        """Read one piece of the prompts; :attr:`opened` once all is read."""
        if self._reading is None:
            return
        if self._task.rating is not None and not self._task.rating.done:
            self._task.rating.read_on(self._task.warn)
            return
        if self._task.prefixes is not None:  # here and not before: the engine's lock is held
            self._task.prefixes.watch(self)
        with self._releasing():
            self._reading.read_on()
        if not self._reading.done:
            return
        readers, self._reading = self._reading.readers, None
        self._prompts = [p for p in self._task.prompts for _ in range(self._task.request.n)]
        self._prompt_lengths = [[len(p.ids) for p in prompt] for prompt in self._prompts]
        weigh = self._task.weigh_boundaries
        self.trackers = Trackers(self._voices, len(self._prompts), weigh=weigh)
        for reader in readers:
            assert reader.session is not None
            assert reader.logits is not None
            self._sessions.append(reader.session)
            self.logits.append(reader.logits)
        self.cached = [reader.cached for reader in readers]

    def offers(self, member: LoadedMember, salt: str | None) -> Iterator[Offer]:
        """What a member has read of the prompts, for others to copy."""
        if salt != self._task.request.cache_salt:
            return
        for place, voice in enumerate(self._voices):
            if voice.member is not member:
                continue
            if self._reading is not None:
                known = self._reading.readers[place].known()
                yield from () if known is None else (known,)
            elif self._sessions:
                for row, prompt in enumerate(self._prompts):
                    ids = prompt[place].ids
                    yield Offer(self._sessions[place], row, ids, len(ids))

    @contextmanager
    def _releasing(self) -> Iterator[None]:
        """Where memory runs out, give up what was kept for later requests."""
        try:
            yield
        except (MemoryLimitError, torch.OutOfMemoryError):
            self.close(keep=False)
            if self._task.prefixes is not None:
                self._task.prefixes.clear()
            raise

    def submit(self, changes: Sequence[Sequence[Change]]) -> None:
        """Roll back where a spelling changed and start the new ids, all voices side by side.

        Args:
            changes: [row][voice].
        """
        for place, session in enumerate(self._sessions):
            fresh = [change[place][1] for change in changes]
            kept = [
                prompt[place] + change[place][0] if change[place][1] else length
                for prompt, change, length in zip(
                    self._prompt_lengths, changes, session.lengths, strict=True
                )
            ]
            self._truncate(place, kept)
            with self._releasing(), self._watches[place].running():
                if any(fresh):
                    self._pending.append((place, fresh, session.submit(fresh)))

    def start(
        self, place: int, kept: Sequence[int | None], fresh: list[list[int]], keep: int
    ) -> None:
        """Roll one voice back and start its forward; :meth:`take` gives the logits.

        Args:
            place: The voice.
            kept: How many ids of each row's answer stay; None: all that is cached.
            fresh: The ids to run after them, maybe none.
            keep: How many last positions of each row are wanted.
        """
        session = self._sessions[place]
        lengths = [
            old if n is None else prompt[place] + n
            for n, prompt, old in zip(kept, self._prompt_lengths, session.lengths, strict=True)
        ]
        self._truncate(place, lengths)
        with self._releasing(), self._watches[place].running():
            self._pending.append((place, fresh, session.submit(fresh, keep)))

    def take(self, place: int) -> Tensor:
        """Logits of the forward that was started, [B, keep, V_i], right-aligned."""
        ((_, _, work),) = self._pending
        self._pending = []
        with self._releasing(), self._watches[place].running():
            return self._sessions[place].collect(work)

    def prompt_length(self, b: int, place: int) -> int:
        """Ids of a row's prompt in a voice's cache."""
        return self._prompt_lengths[b][place]

    def _truncate(self, place: int, lengths: list[int]) -> None:
        self._sessions[place].truncate(lengths)
        for mark in self._marks:
            floors = zip(mark.floors[place], lengths, strict=True)
            mark.floors[place] = [min(floor, length) for floor, length in floors]

    def collect(self) -> None:
        """Take the logits of what was submitted."""
        pending, self._pending = self._pending, []
        tasks = [
            (self._voices[place].member.device, partial(self._gather, place, work))
            for place, _, work in pending
        ]
        with self._releasing():
            gathered = self._devices.run(tasks)
        for (place, fresh, _), logits in zip(pending, gathered, strict=True):
            if not all(fresh):  # a row without new ids keeps its last logits
                moved = torch.tensor([bool(new) for new in fresh], device=logits.device)
                logits = torch.where(moved[:, None], logits, self.logits[place])
            self.logits[place] = logits

    def _gather(self, place: int, work: Pending) -> Tensor:
        """One voice's logits after the last id of each row, [B, V_i]."""
        with self._watches[place].running():
            return self._sessions[place].collect(work)[:, -1]

    def ahead(self, ids: Sequence[int]) -> Tensor | None:
        """Main's logits before each of some ids, in every row; nothing of it stays.

        Args:
            ids: Ids that might come next.

        Returns:
            [B, q, V] float32; None where some row has no room for them.
        """
        session, limit = self._sessions[0], self._voices[0].member.context
        first = self.logits[0][:, None]
        if limit is not None and max(session.lengths) + len(ids) > limit:
            return None
        if len(ids) == 1:
            return first
        before = session.mark()
        try:
            after = session.step([ids[:-1]] * len(first), keep=None)
        finally:
            session.rollback(before)
        return torch.cat([first, after], 1)

    def hand_over(self, row: int, kept: Sequence[int]) -> list[MemberSession]:
        """Take a finished row's sessions out, one a voice.

        Args:
            row: The row.
            kept: How many ids of its answer are right in each voice's cache.
        """
        lengths = [n + k for n, k in zip(self._prompt_lengths[row], kept, strict=True)]
        taken = self._sessions
        if len(self._prompt_lengths) > 1:
            taken = [session.fork([row]) for session in taken]
        else:
            self._sessions, self.logits = [], []
            self.trackers = Trackers((), 0, weigh=False)
        for session, length in zip(taken, lengths, strict=True):
            session.truncate([length])
        return taken

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows; finished rows occupy nothing. Marks of the old rows are void."""
        self._marks.clear()
        self._prompts = [self._prompts[r] for r in rows]
        self._prompt_lengths = [self._prompt_lengths[r] for r in rows]
        if self.generators is not None:
            self.generators = [self.generators[r] for r in rows]
        for place, session in enumerate(self._sessions):
            with self._releasing():
                session.select(rows)
            self.logits[place] = self.logits[place][list(rows)]
        self.trackers.select(rows)

    def mark(self) -> Mark:
        """Remember the state; the mark lives as long as the caller holds it."""
        lengths = [list(session.lengths) for session in self._sessions]
        mark = Mark(
            lengths=lengths,
            floors=[list(row) for row in lengths],
            logits=list(self.logits),
            trackers=self.trackers.mark(),
            generators=[g.get_state() for g in self.generators or ()],
        )
        self._marks.add(mark)
        return mark

    def rollback(self, mark: Mark, ids: Sequence[Sequence[Sequence[int]]]) -> None:
        """Return to a mark (rows must be the same).

        Args:
            mark: The mark.
            ids: [row][voice] ids of the answer at the mark; what was overwritten is run again.
        """
        self.logits = list(mark.logits)
        for place, session in enumerate(self._sessions):
            floors, lengths = mark.floors[place], mark.lengths[place]
            session.truncate(floors)
            lost = [
                list(row[place][floor - prompt[place] : length - prompt[place]])
                for row, prompt, floor, length in zip(
                    ids, self._prompt_lengths, floors, lengths, strict=True
                )
            ]
            if any(lost):
                session.step(lost)
            mark.floors[place] = list(lengths)
        self.trackers.rollback(mark.trackers)
        for generator, state in zip(self.generators or (), mark.generators, strict=True):
            generator.set_state(state)

    def close(self, keep: bool = True) -> None:
        """Put the caches away, those too that were handed in.

        Args:
            keep: Whether later requests may have what was read of the first prompt.
        """
        if self._task.rating is not None:
            self._task.rating.close()
        sessions, reading = self._sessions, self._reading
        self._sessions, self.logits, self._reading = [], [], None
        self.trackers = Trackers((), 0, weigh=False)
        self._pending = []
        self._devices.close()
        for place, session in enumerate(sessions):
            if keep:  # the answer may be half taken in, the prompt is whole
                put_away(self._task, place, session, self._prompts[0][place].ids)
            else:
                session.close()
        for place, reader in enumerate(reading.readers if reading is not None else ()):
            known = reader.known()
            if keep and known is not None:
                put_away(self._task, place, known.session, known.prompt[: known.read])
            elif reader.session is not None:
                reader.session.close()
