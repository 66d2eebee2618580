"""Drafts: keys that might come next, read by the voices before anybody knows whether they do.

Every voice reads the answer and the draft in its own ids and keeps its logits after each key. A
key is *settled* when every voice has said what may come there: the fusion chooses as it always
does, and where it chooses the draft's first key, the draft goes on; else the draft is void and what
the voices have read of it is rolled back. So the answer is that of plain decoding, key by key and
draw by draw, whoever proposed the draft.

Members take turns (alternating proposals): a voice reads what is new to it, which settles one key,
and the best key after all it has read is its proposal. Two equal members that agree with a share
``a`` of each other's proposals then need ``2 - a`` forwards a token, ``N`` members
``N - (N - 1) a``.

A draft ends where a voice would spell what it has read anew: its tokenization of the prefix must
begin its tokenization of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from langchain_ensemble.decoding.caches import Caches, Change
from langchain_ensemble.decoding.fusing import keys_of
from langchain_ensemble.decoding.masks import raw_end_ids
from langchain_ensemble.decoding.state import Row, Track
from langchain_ensemble.decoding.task import Task

LONGEST = 8
"""Keys of a draft at most."""


@dataclass
class Path:
    """What one voice has read of one row's answer and draft.

    Attributes:
        track: Its ids of the answer.
        shadow: Its ids of answer and draft; None for a voice that takes main's ids as they are.
        valid: How many ids of its cache are right, after the prompt.
        steps: Ids that each key of the draft adds.
        queue: Its logits after the answer, after the draft's first key, …, as far as it has read.
    """

    track: Track
    shadow: Track | None
    valid: int
    queue: list[Tensor]
    steps: list[list[int]] = field(default_factory=list)

    def reset(self, kept: int) -> None:
        """Forget the draft; of what was cached ``kept`` ids of the answer are right."""
        self.valid = min(self.valid, kept)
        self.steps = []
        if self.shadow is not None:
            self.shadow.follow(self.track, kept)

    def missing(self) -> tuple[int, list[int], list[int]]:
        """What is still to be read.

        Returns:
            How many cached ids stay, the ids to run after them, and how many of these precede each
            position that has no logits yet.
        """
        ends = [len(self.track.ids)]
        for step in self.steps:
            ends.append(ends[-1] + len(step))
        wanted = ends[len(self.queue) :]
        if not wanted:
            return self.valid, [], []
        # logits that are wanted after an id that is cached: the id is run once more
        start = min(self.valid, wanted[0] - 1)
        ids = list(self.track.ids[start:])
        for end, step in zip(ends, self.steps, strict=False):
            ids += step[max(0, start - end) :]
        return start, ids, [end - start for end in wanted]


@dataclass
class RowDraft:
    """One row's draft.

    Attributes:
        row: The row.
        paths: One a voice, main first.
        keys: Union keys (with one voice main's raw ids) that might come next.
        text: Their text.
        void: How often a draft of this row was void; proposals made before are too.
    """

    row: Row
    paths: list[Path]
    keys: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    void: int = 0

    @property
    def ready(self) -> bool:
        """Whether every voice has said what may come after the answer."""
        return all(path.queue for path in self.paths)


@dataclass(frozen=True)
class Proposal:
    """A voice's best keys after all that it has read.

    Attributes:
        rows: Places of the rows.
        voids: Each row's ``void`` when it was asked.
        keys: [n] union keys on the device, -1 where it would end.
    """

    rows: list[int]
    voids: list[int]
    keys: Tensor


class Drafts:
    """The drafts of all rows of a request that run, and who reads next."""

    def __init__(self, task: Task, rows: Sequence[Row], caches: Caches) -> None:
        """Begin without drafts; every voice has read each row's answer."""
        self._task, self._caches = task, caches
        self._rows = [
            RowDraft(
                row,
                [
                    Path(
                        track,
                        None if voice.verbatim else track.copy(),
                        len(track.ids),
                        [caches.logits[place][b]],
                    )
                    for place, (track, voice) in enumerate(
                        zip(row.tracks, task.voices, strict=True)
                    )
                ],
            )
            for b, row in enumerate(rows)
        ]
        self._turn = 0
        self._proposal: Proposal | None = None
        self._pending: tuple[int, list[tuple[int, list[int]]]] | None = None
        self.drafted = self.accepted = self.forwards = 0

    # what is settled

    @property
    def ready(self) -> list[int]:
        """Places of the rows of which every voice has said what may come next."""
        return [b for b, draft in enumerate(self._rows) if draft.ready]

    def logits(self, at: Sequence[int]) -> list[Tensor]:
        """Every voice's logits after the answers of some rows, [n, V_i]."""
        return [
            torch.stack([self._rows[b].paths[place].queue[0] for b in at])
            for place in range(len(self._task.voices))
        ]

    def settle(self, b: int, key: int, changes: Sequence[Change]) -> None:
        """Note that a row's answer has got a key.

        Args:
            b: The row's place.
            key: The key.
            changes: What it changed in each voice's ids of the answer.
        """
        draft = self._rows[b]
        if draft.keys and draft.keys[0] == key:
            self.accepted += 1
            del draft.keys[0], draft.texts[0]
            for path in draft.paths:
                del path.queue[0], path.steps[0]
            return
        draft.void += 1
        draft.keys, draft.texts = [], []
        for path, (kept, new) in zip(draft.paths, changes, strict=True):
            path.reset(kept)
            path.queue = [] if new else path.queue[:1]  # an abstaining voice stands where it stood

    def valid(self, b: int) -> list[int]:
        """How many ids of a row's answer are right in each voice's cache."""
        return [min(path.valid, len(path.track.ids)) for path in self._rows[b].paths]

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows; what was proposed for others is dropped."""
        kept = {row: place for place, row in enumerate(rows)}
        self._rows = [self._rows[row] for row in rows]
        if self._proposal is not None:
            old = self._proposal
            here = [n for n, row in enumerate(old.rows) if row in kept]
            self._proposal = Proposal(
                [kept[old.rows[n]] for n in here], [old.voids[n] for n in here], old.keys[here]
            )

    # what is proposed

    def take_proposals(self) -> None:
        """Put what the last voice proposed at the end of the drafts that still stand."""
        made, self._proposal = self._proposal, None
        if made is None:
            return
        for b, void, key in zip(made.rows, made.voids, made.keys.tolist(), strict=True):
            if key >= 0 and self._rows[b].void == void:
                self.extend(b, [key])

    def extend(self, b: int, keys: Sequence[int]) -> int:
        """Put keys at the end of a row's draft, as far as every voice can follow.

        Args:
            b: The row's place.
            keys: Union keys.

        Returns:
            How many were taken.
        """
        taken = 0
        for key in keys:
            if not self._append(b, key):
                break
            taken += 1
        self.drafted += taken
        return taken

    def _append(self, b: int, key: int) -> bool:
        """Put one key at the end, unless a voice cannot follow."""
        draft, task = self._rows[b], self._task
        row = draft.row
        left = task.request.max_tokens
        if len(draft.keys) >= LONGEST or (
            left is not None and len(row.records) + len(draft.keys) + 1 >= left
        ):
            return False
        alone = len(task.voices) == 1
        if key >= task.voices[0].member.logits_width or row.fragment or not row.records:
            return False
        text = "" if alone else _text(task.key_bytes[key])
        if text is None:
            return False
        whole = "" if alone else row.text(0, row.complete) + "".join(draft.texts) + text
        steps: list[list[int]] = []
        for path in draft.paths:
            step = [key] if path.shadow is None else path.shadow.try_append(whole, key)
            if step is None:
                break
            steps.append(step)
        if len(steps) < len(draft.paths) or not self._room(b, steps):
            for path, step in zip(draft.paths, steps, strict=False):
                if path.shadow is not None:
                    path.shadow.drop(len(step), row.text(0, row.complete) + "".join(draft.texts))
            return False
        for path, step in zip(draft.paths, steps, strict=True):
            path.steps.append(step)
        draft.keys.append(key)
        draft.texts.append(text)
        return True

    def _room(self, b: int, steps: Sequence[list[int]]) -> bool:
        """Whether every voice has positions for a longer draft."""
        for place, (path, step) in enumerate(zip(self._rows[b].paths, steps, strict=True)):
            limit = self._task.voices[place].member.context
            ids = len(path.track.ids) + sum(map(len, path.steps)) + len(step)
            prompt = self._caches.prompt_length(b, place)
            if limit is not None and prompt + ids > limit:
                return False
        return True

    # who reads

    def submit(self) -> None:
        """Start the next voice's forward over what is new to it, in all rows."""
        count = len(self._task.voices)
        for place in (*range(self._turn, count), *range(self._turn)):
            if self._start(place):
                self._turn = (place + 1) % count
                return

    def _start(self, place: int) -> bool:
        """Start one voice, if it has anything to read."""
        plans = [draft.paths[place].missing() for draft in self._rows]
        if not any(ids for _, ids, _ in plans):
            return False
        keep = max(len(ids) - wanted[0] + 1 for _, ids, wanted in plans if ids)
        kept = [at if ids else None for at, ids, _ in plans]
        self._caches.start(place, kept, [ids for _, ids, _ in plans], keep)
        self._pending = (place, [(len(ids), wanted) for _, ids, wanted in plans])
        self.forwards += 1
        return True

    def collect(self) -> None:
        """Take the logits of the forward that was started, and its proposals."""
        if self._pending is None:
            return
        (place, plans), self._pending = self._pending, None
        logits = self._caches.take(place)  # [B, keep, V_i]
        keep = logits.shape[1]
        rows = []
        for b, (draft, (count, wanted)) in enumerate(zip(self._rows, plans, strict=True)):
            path = draft.paths[place]
            path.queue += [logits[b, keep - count + end - 1] for end in wanted]
            if count:
                path.valid = len(path.track.ids) + sum(map(len, path.steps))
                rows.append(b)
        if len(self._task.voices) > 1:
            self._proposal = self._propose(place, rows)

    def _propose(self, place: int, rows: list[int]) -> Proposal:
        """A voice's best key after the draft of each row; where it is END, nothing."""
        voice = self._task.voices[place]
        logits = torch.stack([self._rows[b].paths[place].queue[-1] for b in rows])
        keys, _ = keys_of(voice)
        sayable = (keys.representative >= 0).index_fill(
            0, torch.tensor(raw_end_ids(voice), device=logits.device), True
        )
        best = logits.masked_fill(~sayable, -torch.inf).argmax(-1)
        return Proposal(rows, [self._rows[b].void for b in rows], keys.to_union[best])

    def level(self) -> None:
        """Forget all drafts and let every voice read to the end of the answers."""
        self._proposal = None
        for draft in self._rows:
            draft.keys, draft.texts = [], []
            for path in draft.paths:
                path.reset(len(path.track.ids))
                path.queue = path.queue[:1]
        for place in range(len(self._task.voices)):
            if self._start(place):
                self.collect()
            self._caches.logits[place] = torch.stack(
                [draft.paths[place].queue[0] for draft in self._rows]
            )
        self._proposal = None


def _text(data: bytes | None) -> str | None:
    """A key's text; None where it is no whole text."""
    try:
        return None if not data else data.decode()
    except UnicodeDecodeError:
        return None
