"""Sessions that go from one phase of an answer to the next, so that nothing is read twice.

What no phase takes goes to the prefix cache, for the requests to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from langchain_ensemble.decoding.prefixes import shared_length
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Held, Task
from langchain_ensemble.errors import ConfigError, MemoryLimitError
from langchain_ensemble.members.base import MemberSession


def rewind(held: Held, ids: Sequence[int]) -> int:
    """Bring a session back to what it has in common with a prompt.

    Args:
        held: A session with one row. Its last id before the prompt's end is dropped where the
            prompt adds nothing, because the logits after it are wanted.
        ids: What the row shall hold; at least one id.

    Returns:
        How many ids the row holds now.

    Raises:
        ConfigError: The session does not hold what ``held`` says, or the prompt is empty.
    """
    session = held.session
    if session.lengths != [len(held.ids)] or not ids:
        raise ConfigError(
            f"a held session has rows of lengths {session.lengths}, its ids are {len(held.ids)}, "
            f"the prompt has {len(ids)} ids; it must have one row of just those ids, and a prompt"
        )
    kept = min(shared_length(held.ids, ids), len(ids) - 1)
    session.truncate([kept])
    return kept


def put_away(
    task: Task, place: int, session: MemberSession, ids: Sequence[int], row: int = 0
) -> None:
    """Keep what a voice has read for later requests, or free it.

    Args:
        task: The request.
        place: The voice.
        session: What it has read; it is not the caller's any more.
        ids: What a row of it begins with.
        row: That row.
    """
    if task.prefixes is None:
        session.close()
        return
    task.prefixes.put(task.voices[place].member, task.request.cache_salt, session, ids, row)


class Kept:
    """Sessions of finished rows, until the next phase takes them or the request is closed."""

    def __init__(self, task: Task) -> None:
        """Start with none."""
        self._task = task
        self._rows: dict[int, list[Held]] = {}

    def wants(self, row: int) -> bool:
        """Whether a row's sessions are of use once it has finished.

        Args:
            row: Row number. Of several answers to one prompt, later requests get the first.
        """
        prefixes = self._task.prefixes
        known = prefixes is not None and prefixes.max_bytes > 0 and row % self._task.request.n == 0
        return self._task.keep or known

    def put(
        self,
        row: Row,
        counts: Sequence[int],
        hand_over: Callable[[], list[MemberSession]],
    ) -> None:
        """Keep a finished row's sessions, for the next phase or for later requests.

        Args:
            row: The row.
            counts: How many ids of its answer each voice's cache holds.
            hand_over: Gives its sessions, one a voice.
        """
        task = self._task
        prompt = task.prompts[row.number // task.request.n]
        ids = [
            (*own.ids, *track.ids[:count])
            for own, track, count in zip(prompt, row.tracks, counts, strict=True)
        ]
        try:
            sessions = hand_over()
        except (MemoryLimitError, torch.OutOfMemoryError):
            if task.keep or task.prefixes is None:
                raise
            task.prefixes.clear()  # nobody asked for a copy
            return
        if task.keep:
            self._rows[row.number] = [Held(s, i) for s, i in zip(sessions, ids, strict=True)]
            return
        for place, session in enumerate(sessions):
            put_away(task, place, session, ids[place])

    def take(self, row: int, voices: int | None = None) -> list[Held]:
        """Give one row's sessions away; they belong to the caller from now on.

        Args:
            row: Row number.
            voices: How many, main's first; the others are put away. None: all.

        Returns:
            What each voice has read.

        Raises:
            ConfigError: Nothing is kept of that row.
        """
        if row not in self._rows:
            raise ConfigError(
                f"nothing is kept of answer {row}: it is running, was closed or taken before, or "
                "the task has keep=False"
            )
        held = self._rows.pop(row)
        taken = len(held) if voices is None else voices
        for place in range(taken, len(held)):
            put_away(self._task, place, held[place].session, held[place].ids)
        return held[:taken]

    def close(self) -> None:
        """Put away what nobody took."""
        for held in self._rows.values():
            for place, one in enumerate(held):
                put_away(self._task, place, one.session, one.ids)
        self._rows = {}
