"""What one row knows: its answer's bytes, and every voice's own ids for the same bytes.

Transactional: everything is append-only between a ``mark`` and its ``rollback``, so that drafts
can be taken back. No tensors, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_ensemble.constraints.stop import StopScanner
from langchain_ensemble.constraints.utf8 import START, complete_length, state_after
from langchain_ensemble.decoding.grammars import GrammarState
from langchain_ensemble.decoding.online import noted
from langchain_ensemble.decoding.protocols import PairTableLike, VocabularyLike
from langchain_ensemble.decoding.records import Finish, TokenRecord


@dataclass
class Track:
    """One voice's ids for the answer of one row.

    Attributes:
        vocabulary: The voice's vocabulary.
        pairs: The voice's ids for every union key, if it has any.
        lead: 1 where the voice's tokenizer begins a text with a space that is no byte of it.
        text: The complete text that ``spelled`` spells, lead included.
        spelled: The canonical ids of ``text``.
        ends: Where their bytes end.
        ids: What the voice reads after its prompt: ``spelled``, or main's ids taken as they are.
        agreed: How many of ``ids`` are known to be those of ``spelled``.
    """

    vocabulary: VocabularyLike
    pairs: PairTableLike | None = None
    lead: int = 0
    text: str = ""
    spelled: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    ids: list[int] = field(init=False)
    agreed: int = 0

    def __post_init__(self) -> None:
        """Read what is spelled, until an id is taken as it is."""
        self.ids = self.spelled

    @property
    def unspelled(self) -> int:
        """How many of the canonical ids are the unk id."""
        unk = self.vocabulary.unk_id
        return 0 if unk is None else self.spelled.count(unk)

    def append(self, token_id: int) -> tuple[int, list[int]]:
        """Take one id as it is. Returns (kept, new ids)."""
        if self.ids is self.spelled:
            self.ids, self.agreed = list(self.spelled), len(self.spelled)
        self.ids.append(token_id)
        return len(self.ids) - 1, [token_id]

    def take(self, text: str, key: int | None = None) -> tuple[int, list[int]]:
        """Take a longer text in the voice's own canonical ids.

        Args:
            text: The whole answer so far, complete characters only, without the lead.
            key: The union key that was appended, where its text is all that is new.

        Returns:
            How many ids stay, and the ids that follow them.
        """
        text = " " * self.lead + text
        verbatim = self.ids is not self.spelled
        kept, new, ends = self._respell(text, key)
        self.spelled[kept:] = new
        self.ends[kept:] = ends
        self.text = text
        if not verbatim:
            return kept, list(new)
        same = min(kept, self.agreed)
        kept = same + _common(self.ids[same:], self.spelled[same:])
        self.ids, self.agreed = list(self.spelled), len(self.spelled)
        return kept, self.ids[kept:]

    def copy(self) -> Track:
        """The same ids, to go their own way."""
        made = Track(self.vocabulary, self.pairs, self.lead, self.text)
        made.spelled[:], made.ends[:] = self.spelled, self.ends
        return made

    def follow(self, other: Track, kept: int) -> None:
        """Take over what another track of the same voice spells; ``kept`` ids are the same."""
        self.spelled[kept:], self.ends[kept:] = other.spelled[kept:], other.ends[kept:]
        self.text = other.text

    def try_append(self, text: str, key: int) -> list[int] | None:
        """Take a longer text where that leaves the ids before it alone.

        Args:
            text: What is appended, whole characters.
            key: The union key that it is.

        Returns:
            The ids that follow; None (and nothing changes) where earlier ones would be rewritten,
            or none follows.
        """
        text = self.text + text
        kept, new, ends = self._respell(text, key)
        if kept < len(self.spelled) or not new:
            return None
        self.spelled += new
        self.ends += ends
        self.text = text
        return list(new)

    def drop(self, count: int, chars: int) -> None:
        """Forget the last ``count`` ids, which are the last ``chars`` characters."""
        if count:
            del self.spelled[-count:], self.ends[-count:]
        self.text = self.text[: len(self.text) - chars]

    def _respell(self, text: str, key: int | None) -> tuple[int, list[int], list[int]]:
        """(kept, new ids, new ends) of a longer text."""
        before = (self.spelled, self.ends, self.text)
        if key is not None and self.pairs is not None:
            return self.pairs.append(*before, key)
        if len(text) > len(self.text):
            return self.vocabulary.extend(*before, text[len(self.text) :])
        return len(self.spelled), [], []


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    for number, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return number
    return min(len(a), len(b))


@dataclass
class Row:
    """One answer while it is being decoded.

    Attributes:
        number: Row number in the request.
        tracks: One a voice, main first.
        stops: The row's stop strings.
        one_voice: Whether main's raw ids are taken unmasked (any bytes may come).
        grammar: The answer's place in its grammar, None: anything goes.
        answer: All bytes chosen so far, without a lead.
        records: One a decode step.
        utf8: State of the UTF-8 automaton after ``answer``.
        given: Bytes that were handed out as text.
        scanned: Bytes searched for stop strings.
        ignored_stop: The first stop string that stood inside an unfinished grammar.
        finish: How the row ended, None while it runs.
        regard: How well each voice said the answer so far (``online.py``), where that is asked for.
    """

    number: int
    tracks: list[Track]
    stops: StopScanner
    one_voice: bool = False
    grammar: GrammarState | None = None
    answer: bytearray = field(default_factory=bytearray)
    records: list[TokenRecord] = field(default_factory=list)
    utf8: int = START
    given: int = 0
    scanned: int = 0
    ignored_stop: str | None = None
    finish: Finish | None = None
    regard: tuple[float, ...] = ()

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

    def held_by(self, place: int, end: int | None = None) -> bytes:
        """The answer's bytes as one voice holds them: with its lead, once it has begun.

        Args:
            place: The voice.
            end: How many bytes of the answer; None: all.
        """
        return b" " * self.tracks[place].lead + self.answer[:end] if self.records else b""

    def text(self, start: int, end: int) -> str:
        """Decode some complete bytes; bytes that can never be text show as U+FFFD (one voice)."""
        errors = "replace" if self.one_voice else "strict"
        return self.answer[start:end].decode("utf-8", errors=errors)

    def note(self, record: TokenRecord, evidence: Sequence[float]) -> None:
        """Keep what was chosen, and how well each voice said it; evidence may be empty."""
        self.records.append(record)
        self.regard = noted(self.regard, evidence)

    def extend(self, data: bytes) -> None:
        """Append the chosen key's bytes and look for stop strings.

        A stop string ends the answer where what stands before it is whole; inside an unfinished
        grammar it is ignored.
        """
        if self.grammar is not None:
            self.grammar.advance(data, self.answer)
        self.answer += data
        self.utf8 = state_after(data, self.utf8)
        if self.one_voice:
            self.utf8 = START  # nothing is masked: any byte may follow any other
        for at, stop in self.stops.matches(self.answer, self.scanned):
            if self.grammar is not None and not self.grammar.completed_by(self.answer[:at]):
                self.ignored_stop = self.ignored_stop or stop
                continue
            del self.answer[max(at, self.given) :]
            self.finish = Finish("stop", stop=stop)
            break
        self.scanned = len(self.answer)

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
        cut = finish.reason == "length" and self.grammar is not None and not self.grammar.may_end
        self.finish = replace(finish, dropped=left, unfinished=finish.unfinished or cut)

    def mark(self) -> Any:
        """Remember the state."""
        tracks = [
            (t.text, list(t.spelled), list(t.ends), None if t.ids is t.spelled else list(t.ids))
            for t in self.tracks
        ]
        here = (self.utf8, self.given, self.scanned, self.ignored_stop, self.finish, self.regard)
        place = None if self.grammar is None else self.grammar.mark()
        return bytes(self.answer), len(self.records), here, place, tracks

    def rollback(self, mark: Any) -> None:
        """Return to a remembered state; only text not yet given can be taken back."""
        answer, steps, here, place, tracks = mark
        self.utf8, self.given, self.scanned, self.ignored_stop, self.finish, self.regard = here
        if self.grammar is not None:
            self.grammar.rollback(place)
        self.answer = bytearray(answer)
        del self.records[steps:]
        for track, (text, spelled, ends, ids) in zip(self.tracks, tracks, strict=True):
            track.text, track.spelled, track.ends = text, list(spelled), list(ends)
            track.ids = track.spelled if ids is None else list(ids)
            track.agreed = 0
