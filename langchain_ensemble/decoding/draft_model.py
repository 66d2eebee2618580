"""A small model that drafts: it reads the answer's text in its own ids and goes on greedily.

It has no say. Whatever it drafts is read by all voices and chosen by the fusion, so its tokenizer,
its prompt and its mistakes decide how fast an answer comes and nothing of what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from langchain_ensemble.constraints.utf8 import complete_length
from langchain_ensemble.decoding.protocols import VocabularyLike
from langchain_ensemble.decoding.state import Row, Track
from langchain_ensemble.members.base import LoadedMember, MemberPrompt, MemberSession

LONGEST = 7
"""Ids drafted at most."""


@dataclass(frozen=True)
class DraftVoice:
    """A loaded draft model and what it reads.

    Attributes:
        member: Its weights and view.
        vocabulary: Its vocabulary.
        prompts: Its prompt for every prompt of the request.
    """

    member: LoadedMember
    vocabulary: VocabularyLike
    prompts: Sequence[MemberPrompt] = ()


@dataclass
class _Own:
    """One row as the draft model holds it.

    Attributes:
        number: Row number.
        prompt: Its prompt.
        track: Its ids of the answer.
        valid: How many of them its cache holds.
        length: How many ids it drafts next.
    """

    number: int
    prompt: MemberPrompt
    track: Track
    valid: int = 0
    length: int = 4


class DraftModel:
    """The draft model's cache over all rows of a request."""

    def __init__(self, voice: DraftVoice, rows: Sequence[Row], n: int) -> None:
        """Keep what it will read; nothing is run yet.

        Args:
            voice: The draft model.
            rows: The rows that run.
            n: Answers a prompt.
        """
        self._voice = voice
        self._rows = []
        for row in rows:
            prompt = voice.prompts[row.number // n]
            lead = int(prompt.text_start and voice.vocabulary.dummy_prefix)
            self._rows.append(_Own(row.number, prompt, Track(voice.vocabulary, lead=lead)))
        self._session: MemberSession | None = None

    def guess(self, rows: Sequence[Row]) -> dict[int, str]:
        """Draft what comes next in some rows.

        Args:
            rows: The rows, with whole characters at their ends.

        Returns:
            Row number → text, where there is one.
        """
        wanted = {row.number: row for row in rows}
        asked = [own for own in self._rows if own.number in wanted]
        for own in asked:
            row = wanted[own.number]
            kept, _ = own.track.take(row.text(0, row.complete))
            own.valid = min(own.valid, kept)
        asked = [own for own in asked if self._fits(own)]
        if not asked:
            return {}
        best = self._read(asked)
        said: dict[int, list[int]] = {own.number: [] for own in asked}
        for _ in range(max(own.length for own in asked)):
            going = []
            for own, token in zip(asked, best.tolist(), strict=True):
                if len(said[own.number]) < own.length and self._bytes(token) is not None:
                    said[own.number].append(token)
                    if len(said[own.number]) < own.length:
                        going.append((own, token))
            if not going:
                break
            best = self._run({own.number: [token] for own, token in going})
            asked = [own for own, _ in going]
        texts = {number: self._text(ids) for number, ids in said.items()}
        return {number: text for number, text in texts.items() if text}

    def judge(self, number: int, proposed: int, chosen: int) -> None:
        """Tell how many of some drafted keys were chosen: the next draft is about as long."""
        for own in self._rows:
            if own.number == number:
                longer = own.length + 1 if chosen == proposed else chosen + 1
                own.length = min(LONGEST, max(1, longer))

    def select(self, numbers: Sequence[int]) -> None:
        """Keep the rows of these numbers."""
        kept = [place for place, own in enumerate(self._rows) if own.number in numbers]
        if self._session is not None and len(kept) < len(self._rows):
            self._session.select(kept)
        self._rows = [self._rows[place] for place in kept]

    def close(self) -> None:
        """Free the cache."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _fits(self, own: _Own) -> bool:
        limit = self._voice.member.context
        need = len(own.prompt.ids) + len(own.track.ids) + own.length
        return limit is None or need <= limit

    def _read(self, asked: Sequence[_Own]) -> Tensor:
        """Read what is new of the answers; the best next id of every asked row."""
        if self._session is None:
            session = self._voice.member.session()
            session.prefill([own.prompt for own in self._rows])
            self._session = session
        fresh, lengths = {}, list(self._session.lengths)
        for place, own in enumerate(self._rows):
            if own in asked:
                # the logits after the last id are wanted, so at least that one is run
                start = min(own.valid, len(own.track.ids) - 1)
                lengths[place] = len(own.prompt.ids) + start
                fresh[own.number] = own.track.ids[start:]
                own.valid = len(own.track.ids)
        self._session.truncate(lengths)
        return self._run(fresh)

    def _run(self, fresh: dict[int, list[int]]) -> Tensor:
        """Run ids in some rows; the best next id of those rows."""
        assert self._session is not None  # _read() opened it
        logits = self._session.step([list(fresh.get(own.number, ())) for own in self._rows])
        places = [place for place, own in enumerate(self._rows) if own.number in fresh]
        return logits[places, -1].argmax(-1)

    def _bytes(self, token: int) -> bytes | None:
        """A text id's bytes; None for control ids."""
        vocabulary = self._voice.vocabulary
        if token >= len(vocabulary.token_bytes) or vocabulary.token_roles[token] is not None:
            return None
        return vocabulary.token_bytes[token]

    def _text(self, ids: Sequence[int]) -> str:
        data = b"".join(self._bytes(token) or b"" for token in ids)
        return data[: complete_length(data)].decode("utf-8", errors="ignore")
