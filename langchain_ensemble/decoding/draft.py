"""One row's draft: keys that might come next, and what every voice has read of them.

No model and no choice: only which ids belong to which key, which of them are cached, and whose
logits are at hand. A draft ends where a voice would spell what it has read anew: its tokenization
of the prefix must begin its tokenization of the whole.

Behind a gate that asks nobody but main, main goes on without the others. What they are then *owed*
is read later, several ids at once: the positions at which their open boundaries are weighed, each
in the ids of its own time, so that they end up where they would be had they read every key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from langchain_ensemble.decoding.caches import Change
from langchain_ensemble.decoding.state import Row, Track

REACH = 5
"""Keys that main drafts on before the others read, at most, where it drafts for all."""


Position = tuple[int, int]
"""Where a position is in a voice's ids, and in the answer's bytes."""

Late = tuple[int, Tensor]
"""Where in the answer's bytes a position is, and a voice's logits there."""


@dataclass
class Spelling:
    """How a voice spelled the answer before it spelled it anew, with positions to read in it.

    Attributes:
        ids: Its ids of the answer, after the prompt.
        owed: The positions.
        kept: How many of the ids begin the next spelling too.
    """

    ids: list[int]
    owed: list[Position]
    kept: int


@dataclass
class Path:
    """What one voice has read of one row's answer and draft.

    Attributes:
        track: Its ids of the answer.
        shadow: Its ids of answer and draft; None for a voice that takes main's ids as they are.
        valid: How many ids of its cache are right, after the prompt; those of the first earlier
            spelling, if there is one.
        room: How many ids fit after the prompt, None: no limit.
        queue: Its logits after the answer, after the draft's first key, …, as far as it has read.
        weighed: Whether its open boundaries are weighed, so that it is owed what it has not read.
        steps: Ids that each key of the draft adds.
        owed: Positions before the answer's end that it has not read.
        earlier: The same in earlier spellings, oldest first.
        end: How many ids the answer had at its last key.
    """

    track: Track
    shadow: Track | None
    valid: int
    room: int | None
    queue: list[Tensor]
    weighed: bool = False
    steps: list[list[int]] = field(default_factory=list)
    owed: list[Position] = field(default_factory=list)
    earlier: list[Spelling] = field(default_factory=list)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        """Stand at the end of the answer."""
        self.end = len(self.track.ids)

    @property
    def behind(self) -> int:
        """How many positions it is owed."""
        return len(self.owed) + sum(len(one.owed) for one in self.earlier)

    @property
    def cached(self) -> int:
        """How many ids of the answer are right in its cache."""
        return min(self.valid, len(self.track.ids), *(one.kept for one in self.earlier))

    def add(self, key: int, text: str) -> bool:
        """Read one more key, where its ids follow those before and there is room for them."""
        step = [key] if self.shadow is None else self.shadow.try_append(text, key)
        if step is None:
            return False
        self.steps.append(step)
        if self.room is None or self._ends()[-1] <= self.room:
            return True
        self.cut(len(self.steps) - 1, len(text))
        return False

    def cut(self, keys: int, chars: int) -> None:
        """Keep ``keys`` keys of the draft; ``chars`` characters go."""
        end = self._ends()[keys]
        lost = sum(map(len, self.steps[keys:]))
        if self.shadow is not None:
            self.shadow.drop(lost, chars)
        del self.steps[keys:], self.queue[keys + 1 :]
        self.valid = min(self.valid, end)

    def reset(self, kept: int, *, moved: bool) -> None:
        """Forget the draft.

        Args:
            kept: How many ids of the answer are those that they were.
            moved: Whether ids were added; else the voice stands where it stood.
        """
        if self.shadow is not None and self.owed and self.owed[-1][0] > kept:
            self.earlier.append(Spelling(self.shadow.spelled[: self.end], self.owed, kept))
            self.owed = []
        elif self.earlier:
            self.earlier[-1].kept = min(self.earlier[-1].kept, kept)
        if not self.earlier:
            self.valid = min(self.valid, kept)
        self.steps = []
        self.queue = [] if moved else self.queue[:1]
        if self.shadow is not None:
            self.shadow.follow(self.track, kept)

    def missing(self) -> tuple[int, list[int], list[int]]:
        """What is still to be read.

        Returns:
            How many cached ids stay, the ids to run after them, and how many of these precede each
            position that has no logits yet.
        """
        if self.earlier:
            told = self.earlier[0]
            wanted = [end for end, _ in told.owed]
            start = min(self.valid, wanted[0] - 1)
            return start, told.ids[start : wanted[-1]], [end - start for end in wanted]
        ends = self._ends()
        wanted = [end for end, _ in self.owed] + ends[len(self.queue) :]
        if not wanted:
            return self.valid, [], []
        # logits that are wanted after an id that is cached: the id is run once more
        start = min(self.valid, wanted[0] - 1)
        ids = list(self.track.ids[start:])
        for end, step in zip(ends, self.steps, strict=False):
            ids += step[max(0, start - end) :]
        return start, ids, [end - start for end in wanted]

    def take(self, logits: Sequence[Tensor]) -> list[Late]:
        """Note that what was missing is cached.

        Args:
            logits: Those at the positions that :meth:`missing` gave.

        Returns:
            What it was owed; the rest is in the queue.
        """
        if self.earlier:
            told = self.earlier.pop(0)
            self.valid = min(told.owed[-1][0], told.kept)
            return [(at, row) for (_, at), row in zip(told.owed, logits, strict=True)]
        owed, self.owed = self.owed, []
        self.queue += logits[len(owed) :]
        self.valid = self._ends()[-1]
        return [(at, row) for (_, at), row in zip(owed, logits, strict=False)]

    def _ends(self) -> list[int]:
        """Where the answer and each key of the draft end, in ids."""
        ends = [len(self.track.ids)]
        for step in self.steps:
            ends.append(ends[-1] + len(step))
        return ends


@dataclass
class Draft:
    """One row's draft.

    Attributes:
        row: The row.
        paths: One a voice, main first.
        keys: Union keys (with one voice main's raw ids) that might come next.
        texts: Their texts.
        sources: What each of them was drawn from, None: it is a point mass.
        void: How often a draft of this row was void; proposals made before are too.
        settled: How many keys the answer has got since there are drafts.
        guessed: How many keys at the draft's start come from a guess that no voice has read yet.
        sure: Whether main alone decides what comes next; None: not known.
        reach: How far main drafts on before the others read, where it drafts for all.
        agreed: How many keys were chosen as they were drafted since one was not.
        at: Bytes of the answer at its last key.
        inside: Whether that is inside a character.
    """

    row: Row
    paths: list[Path]
    keys: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    sources: list[Tensor | None] = field(default_factory=list)
    void: int = 0
    settled: int = 0
    guessed: int = 0
    sure: bool | None = None
    reach: int = REACH
    agreed: int = 0
    at: int = field(init=False)
    inside: bool = field(init=False)

    def __post_init__(self) -> None:
        """Stand at the end of the answer."""
        self.at, self.inside = len(self.row.answer), self.row.fragment

    @property
    def ready(self) -> bool:
        """Whether every voice has said what may come after the answer."""
        return all(path.queue for path in self.paths)

    def add(self, key: int, text: str, source: Tensor | None = None) -> bool:
        """Put one key at the end, if every voice can follow."""
        for place, path in enumerate(self.paths):
            if not path.add(key, text):
                for other in self.paths[:place]:
                    other.cut(len(self.keys), len(text))
                return False
        self.keys.append(key)
        self.texts.append(text)
        self.sources.append(source)
        return True

    def cut(self, keys: int) -> None:
        """Keep ``keys`` keys."""
        chars = sum(map(len, self.texts[keys:]))
        for path in self.paths:
            path.cut(keys, chars)
        del self.keys[keys:], self.texts[keys:], self.sources[keys:]

    def settle(self, key: int, changes: Sequence[Change]) -> bool:
        """Note that the answer has got a key.

        Args:
            key: The key.
            changes: What it changed in each voice's ids of the answer.

        Returns:
            Whether it was the draft's first; else the draft is void.
        """
        self.settled += 1
        good = bool(self.keys) and self.keys[0] == key
        if good:
            self.agreed += 1
            del self.keys[0], self.texts[0], self.sources[0]
            for path in self.paths:
                del path.queue[:1], path.steps[0]
        else:
            self.void += 1
            self.keys, self.texts, self.sources = [], [], []
            for path, (kept, new) in zip(self.paths, changes, strict=True):
                path.reset(kept, moved=bool(new))
        if not good or self.agreed >= self.reach:
            self.reach, self.agreed = max(1, min(REACH, self.agreed + 1)), 0
        self.sure = None
        self.at, self.inside = len(self.row.answer), self.row.fragment
        for path in self.paths:
            path.end = len(path.track.ids)
        return good

    def pass_by(self) -> list[tuple[int, Late]]:
        """Note that a key is chosen here without the voices that have not read so far.

        Returns:
            Places of the voices that have, but were not asked, and what they say; weighed ones.
        """
        if self.ready or self.inside:  # all are asked, or nobody but main could be
            return []
        heard = []
        for place, path in enumerate(self.paths):
            if path.weighed and path.queue:
                heard.append((place, (self.at, path.queue[0])))
            elif path.weighed:
                path.owed.append((path.end, self.at))
        return heard
