"""Drafts: keys that might come next, read by the voices before anybody knows whether they do.

Every voice reads the answer and the draft in its own ids and keeps its logits after each key. A
key is *settled* when every voice has said what may come there: the fusion chooses as it always
does, and where it chooses the draft's first key, the draft goes on; else the draft is void and what
the voices have read of it is rolled back. So the answer is that of plain decoding, key by key and
draw by draw, whoever proposed the draft: a proposal is a point mass, accepted with the fused
probability of its key. Only in sampling without a seed, voices that speak main's ids draw their
proposals, and ``verify.py`` accepts more of them: the same distribution, other draws.

Who proposes:

* Members in turns. A voice reads what is new to it, which settles one key, and the best key after
  all it has read is its proposal. Equal members that agree with a share ``a`` of each other's
  proposals then need ``2 - a`` forwards a token, ``N`` members ``N - (N - 1) a``.
* Main alone, behind a gate that fuses few keys but asks all voices (``"safe"``): it drafts a few
  keys, then each of the others reads them all in one forward.
* Where nothing is drafted, a guess: what followed the last time (``lookup.py``), or a small draft
  model (``draft_model.py``). The first voice that reads a guess puts its own key in where it does
  not agree.

Behind a gate that asks main alone (``"threshold"``), a key at which main is sure is settled without
the others: they read it later, together with what follows, when a key is not sure or when they are
:data:`LAG` keys behind. What they would have noted there is noted then (``lagging.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.caches import Caches, Change
from langchain_ensemble.decoding.draft import Draft, Late, Path
from langchain_ensemble.decoding.fusing import voice_distribution
from langchain_ensemble.decoding.gate_rules import sure
from langchain_ensemble.decoding.gates import read_gate
from langchain_ensemble.decoding.guesses import Guesser
from langchain_ensemble.decoding.lagging import catch_up, may_lag
from langchain_ensemble.decoding.proposals import Proposals, Proposer
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.decoding.verify import Proposed

LONGEST = 8
"""Keys of a draft at most."""

LAG = 16
"""Keys that a voice whose open boundaries are weighed may be behind: their logits are kept."""


class Drafts:
    """The drafts of all rows of a request that run, and who reads next.

    Attributes:
        drafted: Keys that were drafted so far.
        accepted: Those of them that were chosen.
        forwards: Forwards of each voice.
    """

    def __init__(self, task: Task, rows: Sequence[Row], caches: Caches, guesser: Guesser) -> None:
        """Begin without drafts; every voice has read each row's answer."""
        self._task, self._caches, self._guesser = task, caches, guesser
        self._gate = read_gate(task.request.gate)
        self._lagging = may_lag(task)
        self._main_leads = self._gate.name == "safe" and len(task.voices) > 1
        self._proposer = Proposer(task)
        self._drafts = [
            Draft(row, [self._path(b, place, row) for place in range(len(task.voices))])
            for b, row in enumerate(rows)
        ]
        self._turn = 0
        self._proposals: Proposals | None = None
        self._pending: tuple[int, list[tuple[int, list[int]]]] | None = None
        self.drafted = self.accepted = 0
        self.forwards = [0] * len(task.voices)

    def _path(self, b: int, place: int, row: Row) -> Path:
        voice, track = self._task.voices[place], row.tracks[place]
        limit = voice.member.context
        return Path(
            track=track,
            shadow=None if voice.verbatim else track.copy(),
            valid=len(track.ids),
            room=None if limit is None else limit - self._caches.prompt_length(b, place),
            queue=[self._caches.logits[place][b]],
            weighed=self._lagging and self._caches.trackers.of(place) is not None,
        )

    # what is settled

    @property
    def ready(self) -> list[int]:
        """Places of the rows of which every voice has said what may come next."""
        return [b for b, draft in enumerate(self._drafts) if draft.ready]

    @property
    def passing(self) -> list[int]:
        """Places of the rows of which main alone decides what comes next, and has read so far."""
        if not self._lagging:
            return []
        read = [b for b, d in enumerate(self._drafts) if d.paths[0].queue and not d.ready]
        unknown = [b for b in read if self._drafts[b].sure is None and not self._drafts[b].inside]
        if unknown:
            (logits,) = self.logits(unknown, voices=1)
            main = voice_distribution(self._task.voices[0], logits, [START] * len(unknown))
            for b, is_sure in zip(unknown, sure(main, self._gate.below).tolist(), strict=True):
                self._drafts[b].sure = is_sure
        return [b for b in read if self._drafts[b].sure or self._drafts[b].inside]

    def logits(self, at: Sequence[int], voices: int | None = None) -> list[Tensor]:
        """The first voices' (None: all voices') logits after the answers of some rows, [n, V_i]."""
        count = len(self._task.voices) if voices is None else voices
        return [
            torch.stack([self._drafts[b].paths[place].queue[0] for b in at])
            for place in range(count)
        ]

    def proposed(self, at: Sequence[int]) -> list[Proposed | None]:
        """What was drawn from a known distribution for some rows' next key."""
        heads = [(d.keys[:1], d.sources[:1]) for d in (self._drafts[b] for b in at)]
        return [
            Proposed(keys[0], sources[0]) if keys and sources[0] is not None else None
            for keys, sources in heads
        ]

    def next_key(self, b: int) -> int | None:
        """The key that is drafted next in a row, None: none is."""
        keys = self._drafts[b].keys
        return keys[0] if keys else None

    def settle(self, b: int, key: int, changes: Sequence[Change]) -> None:
        """Note that a row's answer has got a key.

        Args:
            b: The row's place.
            key: The key.
            changes: What it changed in each voice's ids of the answer.
        """
        draft = self._drafts[b]
        for place, late in draft.pass_by():
            self._catch_up(place, [(b, [late])])
        agreed = draft.settle(key, changes)
        self.accepted += agreed
        self._guesser.settle(draft.row.number, changes[0], agreed=agreed)

    def valid(self, b: int) -> list[int]:
        """How many ids of a row's answer are right in each voice's cache."""
        return [path.cached for path in self._drafts[b].paths]

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows."""
        self._drafts = [self._drafts[row] for row in rows]
        self._guesser.select([draft.row.number for draft in self._drafts])
        if self._proposals is not None:
            self.take_proposals(dict(zip(rows, range(len(rows)), strict=True)))

    # what is proposed

    def take_proposals(self, places: dict[int, int] | None = None) -> None:
        """Put what the last voice proposed at the end of the drafts that still stand.

        Args:
            places: Where rows are now, by where they were when it was asked; None: there.
        """
        made, self._proposals = self._proposals, None
        if made is None or all(self._void(b, void, places) for b, void, _ in made.rows):
            return
        keys = iter(made.keys.tolist())
        for number, ((b, void, first), count) in enumerate(
            zip(made.rows, made.counts, strict=True)
        ):
            own = [next(keys) for _ in range(count)]
            if not self._void(b, void, places):
                source = None if made.sources is None else made.sources[number]
                self._put(self._drafts[b if places is None else places[b]], first, own, source)

    def _void(self, b: int, void: int, places: dict[int, int] | None) -> bool:
        """Whether what was proposed for a row has no draft any more to be put to."""
        place = b if places is None else places.get(b, -1)
        return place < 0 or self._drafts[place].void != void

    def _put(self, draft: Draft, first: int, keys: Sequence[int], source: Tensor | None) -> None:
        """Put a voice's key at the end of a draft, or in the place of the first guess it denies."""
        gone = max(0, draft.settled - first)  # positions of which keys were chosen meanwhile
        first, keys = first + gone - draft.settled, keys[gone:]
        for place, key in enumerate(keys[:-1], start=first):
            if key != draft.keys[place]:
                draft.cut(place)
                keys, source = keys[: place - first + 1], None
                break
        draft.guessed = 0
        if keys and len(draft.keys) == first + len(keys) - 1:
            spelled = self._spelled_by_main(keys[-1])
            self._extend(draft, spelled, source if spelled == [keys[-1]] else None)

    def _spelled_by_main(self, key: int) -> list[int]:
        """A key in main's ids; none for END."""
        main = self._task.voices[0]
        if key < main.member.logits_width:
            return [key] if key >= 0 else []
        text = _text(self._task.key_bytes[key])
        return [] if text is None else main.vocabulary.encode(text).ids

    def _extend(self, draft: Draft, keys: Sequence[int], source: Tensor | None = None) -> int:
        """Put keys at the end of a draft, as far as every voice can follow; says how many."""
        taken, limit = 0, self._task.request.max_tokens
        done = len(draft.row.records) + 1
        alone = len(self._task.voices) == 1
        if draft.row.fragment:
            return 0
        for key in keys:
            full = len(draft.keys) >= LONGEST
            over = limit is not None and done + len(draft.keys) >= limit
            text = "" if alone else _text(self._task.key_bytes[key])
            if full or over or text is None or not draft.add(key, text, source):
                break
            taken += 1
        self.drafted += taken
        return taken

    # who reads

    def submit(self, turn: int | None = None) -> None:
        """Start the next voice's forward over what is new to it, in all rows.

        Args:
            turn: Whose turn it is among all requests, so that they run the same voice; None: the
                one's after the last.
        """
        bare = [draft for draft in self._drafts if not draft.keys]
        for draft, keys in self._guesser.guess(bare):
            draft.guessed = self._extend(draft, keys)
            self._guesser.guessed(draft.row.number, draft.guessed)
        count = len(self._task.voices)
        self._turn = self._turn if turn is None else turn % count
        for place in self._order(count):
            if self._wanted(place) and self._start(place):
                self._turn = (place + 1) % count
                return

    def _order(self, count: int) -> Sequence[int]:
        """Whom to ask whether it reads next."""
        order = [*range(self._turn, count), *range(self._turn)]
        if not self._main_leads:
            return order
        mains = [(draft, draft.paths[0]) for draft in self._drafts]
        goes_on = any(
            not main.queue or (len(draft.keys) < draft.reach and main.missing()[1])
            for draft, main in mains
        )
        return sorted(order, key=lambda place: (place == 0) != goes_on)

    def _wanted(self, place: int) -> bool:
        """Whether some row waits for a voice; where voices may lag, else it reads later."""
        if not self._lagging or place == 0:
            return True
        paths = [(draft, draft.paths[place]) for draft in self._drafts]
        return any(
            path.behind >= LAG or (draft.sure is False and not path.queue) for draft, path in paths
        )

    def _start(self, place: int) -> bool:
        """Start one voice, if it has anything to read."""
        plans = [draft.paths[place].missing() for draft in self._drafts]
        if not any(ids for _, ids, _ in plans):
            return False
        keep = max(len(ids) - wanted[0] + 1 for _, ids, wanted in plans if ids)
        kept = [at if ids else None for at, ids, _ in plans]
        self._caches.start(place, kept, [ids for _, ids, _ in plans], keep)
        self._pending = (place, [(len(ids), wanted) for _, ids, wanted in plans])
        self.forwards[place] += 1
        return True

    def collect(self) -> None:
        """Take the logits of the forward that was started, and its proposals."""
        if self._pending is None:
            return
        (place, plans), self._pending = self._pending, None
        logits = self._caches.take(place)  # [B, keep, V_i]
        keep = logits.shape[1]
        read, late = [], []
        for b, (draft, (count, wanted)) in enumerate(zip(self._drafts, plans, strict=True)):
            path = draft.paths[place]
            told = [logits[b, keep - count + end - 1] for end in wanted]
            if count:
                before = len(path.queue)
                late.append((b, path.take(told)))
                new = len(path.queue) - before
                read += [(b, new if draft.guessed else 1)] if new else []
        self._catch_up(place, late)
        if len(self._task.voices) > 1 and read:
            self._proposals = self._propose(place, read)

    def _catch_up(self, place: int, late: Sequence[tuple[int, list[Late]]]) -> None:
        """Let a voice note, row by row, what it would have noted where it was not asked."""
        tracker, voice = self._caches.trackers.of(place), self._task.voices[place]
        if tracker is not None:
            rows = [(b, self._drafts[b].row, told) for b, told in late if told]
            catch_up(tracker, voice, place, rows)

    def _propose(self, place: int, read: Sequence[tuple[int, int]]) -> Proposals:
        """A voice's best keys after the last positions of each row."""
        drafts = [(b, self._drafts[b], count) for b, count in read]
        queues = [(draft.paths[place].queue, count) for _, draft, count in drafts]
        rows = [
            (b, draft.void, draft.settled + len(queue) - count)
            for (b, draft, count), (queue, _) in zip(drafts, queues, strict=True)
        ]
        asked = [one for queue, count in queues for one in queue[-count:]]
        return self._proposer.propose(place, rows, [count for _, count in read], asked)

    def close(self) -> None:
        """Free what was made for guesses."""
        self._guesser.close()

    def level(self) -> None:
        """Forget all drafts and let every voice read to the end of the answers."""
        for draft in self._drafts:
            draft.cut(0)
        for place in range(len(self._task.voices)):
            while self._start(place):  # again where it spelled differently meanwhile
                self.collect()
            self._caches.logits[place] = torch.stack(
                [draft.paths[place].queue[0] for draft in self._drafts]
            )
        self._proposals = None


def _text(data: bytes | None) -> str | None:
    """A key's text; None where it is no whole text."""
    try:
        return data.decode() if data else None
    except UnicodeDecodeError:
        return None
