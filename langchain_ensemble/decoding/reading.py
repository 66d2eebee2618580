"""Teacher forcing: one voice's logits before every one of main's ids of a given text.

One pass over the voice's canonical ids of the whole text, plus the short tails where its
tokenization of a prefix differs from that of the whole. A full member re-reads from its last half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_ensemble.decoding.protocols import Voice
from langchain_ensemble.decoding.state import Track
from langchain_ensemble.members.base import MemberPrompt, MemberSession

TAILS_AT_ONCE = 16


@dataclass(frozen=True)
class Stand:
    """Where a voice stands before one of main's ids.

    Attributes:
        kept: How many ids of the whole text it has read.
        tail: Ids after those, where the prefix is spelled differently.
    """

    kept: int
    tail: tuple[int, ...] = ()


def stands(
    voice: Voice,
    prompt: MemberPrompt,
    text: str,
    main_ids: Sequence[int],
    positions: Sequence[int | None],
) -> tuple[list[int], list[Stand | None]]:
    """Plan what one voice has to read.

    Args:
        voice: The voice.
        prompt: Its prompt.
        text: The text to be scored.
        main_ids: Main's canonical ids of it.
        positions: Bytes of the text before each of main's ids; None inside a character.

    Returns:
        The voice's ids of the whole text, and where it stands before each of main's ids (None: it
        has no say there).
    """
    if voice.verbatim:
        return list(main_ids), [Stand(k) for k in range(len(main_ids))]
    lead = int(prompt.text_start and voice.vocabulary.dummy_prefix)
    whole = voice.vocabulary.encode(" " * lead + text).ids
    track = Track(voice.vocabulary, lead=lead)
    data = text.encode()
    found: list[Stand | None] = []
    agree = 0
    for number, position in enumerate(positions):
        if position is None:
            found.append(None)
            continue
        if number:  # before main's first id nothing is read, not even a lead
            kept, _ = track.take(data[:position].decode())
            agree = min(agree, kept)
        while agree < min(len(track.ids), len(whole)) and track.ids[agree] == whole[agree]:
            agree += 1
        found.append(Stand(agree, tuple(track.ids[agree:])))
    return whole, found


class Reader:
    """Reads one voice's ids once, in order, and gives logits where they are asked for."""

    def __init__(self, voice: Voice, prompt: MemberPrompt, ids: Sequence[int]) -> None:
        """Prepare to read.

        Args:
            voice: The voice.
            prompt: Its prompt.
            ids: Its ids of the whole text.
        """
        self._member = voice.member
        self._ids = [*prompt.ids, *ids]
        self._prompt = prompt
        self._base = len(prompt.ids)
        self._start = 0  # index in ids of the first cached one
        self._read = 0  # index in ids of the next to read
        self._session: MemberSession | None = None
        self._rows: dict[int, Tensor] = {}  # ids read -> logits [V_i]
        self.windows = 1

    def logits(self, wanted: Sequence[Stand | None]) -> Tensor:
        """Logits before each position.

        Args:
            wanted: Where the voice stands, in reading order; None rows come back as zeros.

        Returns:
            [N, V_i] float32.
        """
        present = [s for s in wanted if s is not None]
        if present:
            self._read_to(
                self._base + max(s.kept for s in present),
                margin=max(len(s.tail) for s in present),
                oldest=self._base + min(s.kept for s in present),
            )
        out: list[Tensor | None] = [
            None if s is None or s.tail else self._rows[self._base + s.kept] for s in wanted
        ]
        late = [(n, s) for n, s in enumerate(wanted) if s is not None and s.tail]
        for at in range(0, len(late), TAILS_AT_ONCE):
            group = late[at : at + TAILS_AT_ONCE]
            for (n, _), row in zip(group, self._tails([s for _, s in group]), strict=True):
                out[n] = row
        if present:
            last = self._base + min(present[-1].kept, self._read - self._base)
            self._rows = {k: v for k, v in self._rows.items() if k >= last - 64}
        blank = torch.zeros(self._member.logits_width, device=self._member.device)
        return torch.stack([blank if row is None else row for row in out])

    def close(self) -> None:
        """Free the cache."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _read_to(self, end: int, margin: int, oldest: int) -> None:
        """Read ids up to ``end``, starting over where the context is full."""
        limit = self._member.context
        if self._session is None:
            self._session = self._member.session()
            row = self._session.prefill([self._prompt])
            self._read = self._base
            self._rows[self._read] = row[0]
        while self._read < end:
            room = end - self._read
            if limit is not None:
                room = min(room, limit - margin - (self._read - self._start))
                if room <= 0:
                    self._start_over(limit, oldest)
                    continue
            fresh = self._ids[self._read : self._read + room]
            logits = self._session.step([fresh], keep=None)[0]  # [q, V_i]
            for k in range(len(fresh)):
                self._rows[self._read + 1 + k] = logits[k - len(fresh)]
            self._read += len(fresh)
        if limit is not None and self._read - self._start + margin > limit:
            self._start_over(limit, oldest)

    def _start_over(self, limit: int, oldest: int) -> None:
        """Re-read the last half of a full context."""
        assert self._session is not None  # _read_to() opened it
        self._session.close()
        half = max(1, limit // 2)
        self._start = max(self._start + 1, min(self._read, oldest) - half)
        self._session = self._member.session()
        window = MemberPrompt(tuple(self._ids[self._start : self._read]))
        self._rows.setdefault(self._read, self._session.prefill([window])[0])
        self.windows += 1

    def _tails(self, group: Sequence[Stand]) -> Tensor:
        """Logits after each tail, [G, V_i]."""
        assert self._session is not None  # _read_to() opened it
        fork = self._session.fork([0] * len(group))
        fork.truncate([self._base + s.kept - self._start for s in group])
        logits = fork.step([list(s.tail) for s in group])[:, -1]
        fork.close()
        return logits
