"""Teacher forcing: one voice's logits before every one of main's ids of a given text.

One pass over the voice's canonical ids of the whole text, plus the short tails where its
tokenization of a prefix differs from that of the whole. A full member re-reads from its last half.
What the prefix cache knows of the prompt is not read again, and the prompt is left there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START, state_after
from langchain_ensemble.decoding.prefixes import PrefixCache
from langchain_ensemble.decoding.protocols import ByteTrieLike, Voice
from langchain_ensemble.decoding.state import Track
from langchain_ensemble.members.base import MemberPrompt, MemberSession

TAILS_AT_ONCE = 16

TAIL_BYTES = 2**30
"""Copies of what was read, one a tail, take so much together at most."""


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


def byte_stands(
    voice: Voice, lead: int, text: str, whole: Sequence[int]
) -> tuple[list[Stand | None], list[int]]:
    """Plan what one voice has to read that is heard byte by byte.

    Args:
        voice: The voice, which takes its own canonical ids.
        lead: Whether it begins the text with a space that is no byte of it.
        text: The text to be scored.
        whole: Its ids of lead and text.

    Returns:
        Where it stands before every byte of lead and text, inside a character on the keys of its
        bytes (None: there are none), and the UTF-8 states there.
    """
    track = Track(voice.vocabulary, lead=lead)
    found: list[Stand | None] = [Stand(0)] * lead
    states = [START] * lead
    agree = 0
    for number, char in enumerate(text):
        if number or lead:
            kept, _ = track.take(text[:number])
            agree = min(agree, kept)
        while agree < min(len(track.ids), len(whole)) and track.ids[agree] == whole[agree]:
            agree += 1
        tail = track.ids[agree:]
        found.append(Stand(agree, tuple(tail)))
        states.append(START)
        data = char.encode()
        for inside in range(1, len(data)):
            part = data[:inside]
            ids = _partial(voice.trie, part)
            found.append(None if ids is None else Stand(agree, (*tail, *ids)))
            states.append(state_after(part))
    return found, states


def _partial(trie: ByteTrieLike | None, part: bytes) -> list[int] | None:
    """Ids of the first bytes of a character, the longest keys first."""
    assert trie is not None  # the fusion asked for paths
    ids: list[int] = []
    while part:
        sizes = range(len(part), 0, -1)
        size = next((n for n in sizes if trie.position(part[:n]) is not None), 0)
        at = trie.position(part[:size])
        if at is None:
            return None
        ids.append(int(trie.order[at]))
        part = part[size:]
    return ids


class Reader:
    """Reads one voice's ids once, in order, and gives logits where they are asked for."""

    def __init__(
        self,
        voice: Voice,
        prompt: MemberPrompt,
        ids: Sequence[int],
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            voice: The voice.
            prompt: Its prompt.
            ids: Its ids of the whole text.
            prefixes: What was read before; None: the prompt is read here.
        """
        self._member = voice.member
        self._ids = [*prompt.ids, *ids]
        self._prompt, self._prefixes = prompt, prefixes
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
        copied = self._member.kv_bytes * (self._read - self._start)
        together = max(1, min(TAILS_AT_ONCE, TAIL_BYTES // max(1, copied)))
        for at in range(0, len(late), together):
            group = late[at : at + together]
            for (n, _), row in zip(group, self._tails([s for _, s in group]), strict=True):
                out[n] = row
        if present:
            last = self._base + min(present[-1].kept, self._read - self._base)
            self._rows = {k: v for k, v in self._rows.items() if k >= last - 64}
        blank = torch.zeros(self._member.logits_width, device=self._member.device)
        return torch.stack([blank if row is None else row for row in out])

    def close(self) -> None:
        """Free the cache, or leave what was read of the prompt to others."""
        session, self._session = self._session, None
        if session is None:
            return
        prompt = self._prompt
        if self._prefixes is None or self._start or prompt.encoder_ids is not None:
            session.close()
        else:
            read = min([len(prompt.ids), *session.lengths])
            self._prefixes.put(self._member, None, session, prompt.ids[:read])

    def _read_to(self, end: int, margin: int, oldest: int) -> None:
        """Read ids up to ``end``, starting over where the context is full."""
        limit = self._member.context
        if self._session is None:
            self._session = self._open()
        while self._read < end:
            room = end - self._read
            if limit is not None:
                room = min(room, limit - margin - (self._read - self._start))
                room = max(room, self._base - self._read)  # the prompt fits, without a margin
                if room <= 0:
                    self._start_over(limit, oldest)
                    continue
            fresh = self._ids[self._read : self._read + room]
            wanted = min(len(fresh), self._read + len(fresh) + 1 - self._base)
            logits = self._session.step([fresh], keep=wanted)[0]  # [wanted, V_i]
            self._read += len(fresh)
            for k in range(wanted):
                self._rows[self._read - k] = logits[-1 - k]
        if limit is not None and self._read - self._start + margin > limit:
            self._start_over(limit, oldest)

    def _open(self) -> MemberSession:
        """A session with the prompt, or with what is known of it: all but its last id at most."""
        if self._prefixes is not None and self._prompt.encoder_ids is None:
            known = self._prefixes.take(self._member, None, self._prompt.ids)
            if known is not None:
                self._read = known.lengths[0]
                return known
        session = self._member.session()
        self._read = self._base
        self._rows[self._read] = session.prefill([self._prompt])[0]
        return session

    def _start_over(self, limit: int, oldest: int) -> None:
        """Re-read the last half of a full context."""
        self.close()
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
