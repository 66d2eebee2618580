"""One row's draft: keys that might come next, and what every voice has read of them.

No model and no choice: only which ids belong to which key, which of them are cached, and whose
logits are at hand. A draft ends where a voice would spell what it has read anew: its tokenization
of the prefix must begin its tokenization of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from langchain_ensemble.decoding.caches import Change
from langchain_ensemble.decoding.state import Row, Track


@dataclass
class Path:
    """What one voice has read of one row's answer and draft.

    Attributes:
        track: Its ids of the answer.
        shadow: Its ids of answer and draft; None for a voice that takes main's ids as they are.
        valid: How many ids of its cache are right, after the prompt.
        room: How many ids fit after the prompt, None: no limit.
        queue: Its logits after the answer, after the draft's first key, …, as far as it has read.
        steps: Ids that each key of the draft adds.
    """

    track: Track
    shadow: Track | None
    valid: int
    room: int | None
    queue: list[Tensor]
    steps: list[list[int]] = field(default_factory=list)

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
        ends = self._ends()
        wanted = ends[len(self.queue) :]
        if not wanted:
            return self.valid, [], []
        # logits that are wanted after an id that is cached: the id is run once more
        start = min(self.valid, wanted[0] - 1)
        ids = list(self.track.ids[start:])
        for end, step in zip(ends, self.steps, strict=False):
            ids += step[max(0, start - end) :]
        return start, ids, [end - start for end in wanted]

    def has_read(self) -> None:
        """Note that everything that was missing is cached."""
        self.valid = self._ends()[-1]

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
    """

    row: Row
    paths: list[Path]
    keys: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    sources: list[Tensor | None] = field(default_factory=list)
    void: int = 0
    settled: int = 0
    guessed: int = 0

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
        if self.keys and self.keys[0] == key:
            del self.keys[0], self.texts[0], self.sources[0]
            for path in self.paths:
                del path.queue[0], path.steps[0]
            return True
        self.void += 1
        self.keys, self.texts, self.sources = [], [], []
        for path, (kept, new) in zip(self.paths, changes, strict=True):
            path.reset(kept, moved=bool(new))
        return False
