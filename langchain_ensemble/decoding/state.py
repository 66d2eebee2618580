"""What one row knows: its answer's bytes, and every voice's own ids for the same bytes.

Transactional: everything is append-only between a ``mark`` and its ``rollback``, so that drafts
can be taken back. No tensors, no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from langchain_ensemble.constraints.stop import StopScanner
from langchain_ensemble.constraints.utf8 import START, complete_length, state_after
from langchain_ensemble.decoding.protocols import VocabularyLike
from langchain_ensemble.decoding.records import Finish, TokenRecord


@dataclass
class Track:
    """One voice's ids for the answer of one row.

    Attributes:
        vocabulary: The voice's vocabulary.
        lead: 1 where the voice's tokenizer begins a text with a space that is no byte of it.
        ids: Ids after the prompt.
        ends: Where their bytes end, counted with the lead.
        canonical: Whether ``ids`` are the canonical encoding of ``text``.
        text: The complete text that ``ids`` spell, lead included.
        unknown: Characters that reached the voice as its unk id.
    """

    vocabulary: VocabularyLike
    lead: int = 0
    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    canonical: bool = True
    text: str = ""
    unknown: int = 0

    def append(self, token_id: int, num_bytes: int) -> tuple[int, list[int]]:
        """Take one id as it is. Returns (kept, new ids)."""
        kept = len(self.ids)
        self.ids.append(token_id)
        self.ends.append((self.ends[-1] if self.ends else 0) + num_bytes)
        self.canonical = False
        return kept, [token_id]

    def take(self, text: str) -> tuple[int, list[int]]:
        """Take a longer text in the voice's own canonical ids.

        Args:
            text: The whole answer so far, complete characters only, without the lead.

        Returns:
            How many ids stay, and the ids that follow them.
        """
        text = " " * self.lead + text
        if self.canonical:
            if text == self.text:
                return len(self.ids), []
            kept, new, ends = self.vocabulary.extend(
                self.ids, self.ends, self.text, text[len(self.text) :]
            )
        else:
            whole = self.vocabulary.encode(text)
            self.unknown = whole.unknown
            kept = 0
            for old, fresh in zip(self.ids, whole.ids, strict=False):
                if old != fresh:
                    break
                kept += 1
            new, ends = whole.ids[kept:], whole.ends[kept:]
        self.ids[kept:] = new
        self.ends[kept:] = ends
        self.text, self.canonical = text, True
        return kept, list(new)


@dataclass
class Row:
    """One answer while it is being decoded.

    Attributes:
        number: Row number in the request.
        tracks: One a voice, main first.
        stops: The row's stop strings.
        one_voice: Whether main's raw ids are taken unmasked (any bytes may come).
        answer: All bytes chosen so far, without a lead.
        records: One a decode step.
        utf8: State of the UTF-8 automaton after ``answer``.
        given: Bytes that were handed out as text.
        scanned: Bytes searched for stop strings without a match.
        finish: How the row ended, None while it runs.
    """

    number: int
    tracks: list[Track]
    stops: StopScanner
    one_voice: bool = False
    answer: bytearray = field(default_factory=bytearray)
    records: list[TokenRecord] = field(default_factory=list)
    utf8: int = START
    given: int = 0
    scanned: int = 0
    finish: Finish | None = None

    @property
    def fragment(self) -> bool:
        """Whether the answer ends inside a character."""
        return self.utf8 != START

    @property
    def complete(self) -> int:
        """Bytes of the answer before an unfinished character."""
        return complete_length(self.answer)

    def starts_apart(self, place: int) -> bool:
        """Whether the answer has not begun and main and a voice begin a text differently.

        One begins with a space that is no byte of the text, the other does not: their first keys
        cannot be compared, so the voice abstains once.
        """
        return not self.records and self.tracks[place].lead != self.tracks[0].lead

    def held_by(self, place: int) -> bytes:
        """The answer's bytes as one voice holds them: with its lead, once it has begun."""
        return b" " * self.tracks[place].lead + self.answer if self.records else b""

    def text(self, start: int, end: int) -> str:
        """Decode some complete bytes; bytes that can never be text show as U+FFFD (one voice)."""
        errors = "replace" if self.one_voice else "strict"
        return self.answer[start:end].decode("utf-8", errors=errors)

    def extend(self, data: bytes) -> None:
        """Append the chosen key's bytes and look for stop strings."""
        self.answer += data
        self.utf8 = state_after(data, self.utf8)
        if self.one_voice:
            self.utf8 = START  # nothing is masked: any byte may follow any other
        found = self.stops.find(self.answer, self.scanned)
        self.scanned = len(self.answer)
        if found is not None:
            at, stop = found
            del self.answer[max(at, self.given) :]
            self.finish = Finish("stop", stop=stop)

    def release(self) -> str:
        """Hand out the text that can no longer change: complete characters, no possible stop."""
        end = self.complete
        if self.finish is None:
            end = min(end, len(self.answer) - self.stops.held(self.answer))
            end = complete_length(self.answer[:end])
        if end <= self.given:
            return ""
        text = self.text(self.given, end)
        self.given = end
        return text

    def close(self, finish: Finish) -> None:
        """End the row; left-over bytes of an unfinished character are named, not given."""
        left = bytes(self.answer[self.complete :])
        self.finish = Finish(finish.reason, finish.stop, left, finish.full_member)

    def mark(self) -> Any:
        """Remember the state."""
        tracks = [(list(t.ids), list(t.ends), t.canonical, t.text, t.unknown) for t in self.tracks]
        here = (self.utf8, self.given, self.scanned, self.finish)
        return bytes(self.answer), len(self.records), here, tracks

    def rollback(self, mark: Any) -> None:
        """Return to a remembered state; only text not yet given can be taken back."""
        answer, steps, (self.utf8, self.given, self.scanned, self.finish), tracks = mark
        self.answer = bytearray(answer)
        del self.records[steps:]
        for track, saved in zip(self.tracks, tracks, strict=True):
            ids, ends, track.canonical, track.text, track.unknown = saved
            track.ids, track.ends = list(ids), list(ends)
