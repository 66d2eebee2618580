"""Open boundaries: the probability that a member ends a token where main does.

Where main's tokens are finer than an auxiliary's, the auxiliary would be asked what follows half
a token. For member i and the answer's bytes ``s[:L]``

    c_i = W_L / sum over b < L of W_b * sum_{u startswith s[b:L]} p_i(u | s[:b])

over the last boundaries ``b`` the member visited; ``W_b`` is the probability of the bytes up to
``b`` with a token ending there, summed over the visited paths: ``W_L = sum_b W_b p_i(s[b:L] | b)``.
The keys that start with given bytes stand side by side in byte order, so each inner sum is a slice
of a row the member already has; no forward is added. Sums are taken of logarithms: what main chose
may be as good as impossible for the member. c_i = 1 where tokenizers are equal (no tracker).

A row is kept in byte order with the sums of its blocks and of blocks of blocks, so that any slice
is at most :data:`PARTS` pieces of at most cube root of K numbers. All rows and boundaries are read
at once, in slots whose number never changes; the host sends their places in one small tensor.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from langchain_ensemble.decoding.protocols import SortedKeysLike
from langchain_ensemble.decoding.ranges import PARTS, Layout, NodeLayout, weigh_slots
from langchain_ensemble.fusion.base import MemberDistribution

BOUNDARIES = 8

SLOTS = BOUNDARIES + 1
"""Slots of a row; the last is written by rows that have no new boundary, and never read."""

HEAD = 3
"""What comes before a row's places: the row, the slot that is written, where that is."""

Visited = tuple[int, int]
"""Where in the answer a boundary is, and its slot."""

Span = tuple[int, int, int, int | None]
"""A boundary's slot, the range of keys that are open from there, and the one that ends here."""


@dataclass(eq=False)
class Mark:
    """A remembered state.

    Attributes:
        visited: Boundaries of every row.
        following: How many boundaries every row has had.
        path: [B, SLOTS] log-probabilities of the paths; None before the first boundary.
        undo: What was in the slots that were written since, oldest first.
    """

    visited: list[list[Visited]]
    following: list[int]
    path: Tensor | None
    undo: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class BoundaryTracker:
    """The last boundaries of one member, for B rows."""

    def __init__(self, keys: SortedKeysLike, rows: int, layout: NodeLayout | None = None) -> None:
        """Start with no boundary.

        Args:
            keys: The member's keys in byte order.
            rows: B.
            layout: What is kept of a row; None: what sums over ranges of keys need.
        """
        self._keys = keys
        ranges = Layout(len(keys.order))
        self._layout: Layout | NodeLayout = ranges if layout is None else layout
        self._parts = ranges.parts
        ends = [self._layout.nothing] * BOUNDARIES  # of the first slot: as empty as any
        self._blank = array("q", [0] * HEAD + ends + [0] * (2 * PARTS * BOUNDARIES))
        self._visited: list[list[Visited]] = [[] for _ in range(rows)]
        self._next = [0] * rows
        self._flat: Tensor | None = None  # [B * SLOTS * width + base] log-probabilities
        self._path: Tensor | None = None  # [B, SLOTS] log W_b up to a constant a row
        self._marks: weakref.WeakSet[Mark] = weakref.WeakSet()
        self._bare: set[int] = set()  # slots of all rows whose blocks are not summed
        self._written: Tensor | int | None = None  # slots of all rows that are to be written

    def observe(
        self,
        distribution: MemberDistribution,
        answers: Sequence[bytes | bytearray],
        active: Sequence[bool],
        at: Sequence[int],
    ) -> Tensor:
        """Note a new boundary in every active row and weigh it.

        Args:
            distribution: The member's dense distribution after each row's answer, n rows.
            answers: Bytes of every row's answer as the member holds them, a lead included.
            active: Rows in which the member stands at the end of the answer.
            at: Which of the tracker's rows these are.

        Returns:
            [n] float32, c_i of every row (1 in rows that are not active).
        """
        logprobs = distribution.logprobs
        weight = self.weigh(answers, active, at, logprobs.device)
        self.keep(logprobs)
        return weight

    def weigh(
        self,
        answers: Sequence[bytes | bytearray],
        active: Sequence[bool],
        at: Sequence[int],
        device: torch.device,
    ) -> Tensor:
        """The first half of :meth:`observe`: c_i follows from what was kept before.

        Args:
            answers: As there.
            active: As there.
            at: As there.
            device: Where the member's distributions are.

        Returns:
            [n] float32, c_i; :meth:`keep` must follow.
        """
        flat, whole = self._tensors(device)
        if len(at) == 1:
            return self._weigh_one(at[0], answers[0], active[0])[None]
        self._sum_blocks()
        places = array("q")
        for row, answer, on in zip(at, answers, active, strict=True):
            self._plan(places, row, answer, on)
        plan = torch.frombuffer(places, dtype=torch.int64).to(device).view(len(at), -1)
        rows, slot, self._written = plan[:, 0], plan[:, 1:2], plan[:, 2]
        path = whole.index_select(0, rows)
        weight, path, new = weigh_slots(
            flat,
            path,
            plan[:, HEAD : HEAD + BOUNDARIES],
            plan[:, HEAD + BOUNDARIES :].view(len(at), BOUNDARIES, PARTS, 2),
            self._layout.base,
        )
        whole.index_copy_(0, rows, path.scatter_(1, slot, new[:, None]))
        return weight

    def keep(self, logprobs: Tensor) -> None:
        """The second half of :meth:`observe`: keep what is open from the new boundaries.

        Args:
            logprobs: [n, V_i] the member's dense log-probabilities after the answers.
        """
        target, self._written = self._written, None
        if target is None:
            return  # one row, in which the member does not stand at the end
        flat, _ = self._tensors(logprobs.device)
        width, order = self._layout.width, self._order(logprobs.device)
        stored = flat[: len(self._next) * SLOTS * width].view(-1, width)
        if isinstance(target, int):  # no sums of blocks: one row reads slices
            for mark in self._marks:
                place = torch.tensor([target], device=flat.device)
                mark.undo.append((place, stored[target : target + 1].clone()))
            torch.index_select(logprobs[0], 0, order, out=stored[target, : len(order)])
            self._bare.add(target)
            return
        for mark in self._marks:
            mark.undo.append((target, stored.index_select(0, target)))
        stored.index_copy_(0, target, self._layout.filled(logprobs.index_select(1, order)))

    def _plan(self, places: array[int], row: int, answer: bytes | bytearray, on: bool) -> None:
        """Append one row's places: what is read of every slot, and which slot is written."""
        width, first = self._layout.width, row * SLOTS
        start = len(places) + HEAD
        places.extend(self._blank)
        slot = BOUNDARIES
        if on:
            for where, low, high, found in self._alive(row, answer):
                base = (first + where) * width
                if found is not None:
                    places[start + where] = base + found
                at = start + BOUNDARIES + 2 * PARTS * where
                for number in self._parts(low, high):
                    places[at] = base + number
                    at += 1
            slot = self._visit(row, len(answer))
        places[start - HEAD] = row
        places[start - 2] = slot
        places[start - 1] = first + slot

    def _alive(self, row: int, answer: bytes | bytearray) -> list[Span]:
        """Boundaries from which a key is still open; none of the others will have one again."""
        found, kept = [], []
        for begin, where in self._visited[row]:
            if begin >= len(answer):
                continue
            span = bytes(answer[begin:])
            low, high = self._keys.range(span)
            if low < high:
                kept.append((begin, where))
                found.append((where, low, high, self._keys.position(span)))
        self._visited[row] = kept
        return found

    def _visit(self, row: int, position: int) -> int:
        """Take the next slot for a boundary at a position."""
        slot = self._next[row] % BOUNDARIES
        self._next[row] += 1
        kept = [(p, s) for p, s in self._visited[row] if s != slot]
        self._visited[row] = [*kept, (position, slot)]
        return slot

    def _weigh_one(self, row: int, answer: bytes | bytearray, on: bool) -> Tensor:
        """:meth:`weigh` for one row: slices instead of fixed slots."""
        assert self._flat is not None
        assert self._path is not None
        if not on:
            return self._path.new_ones(())
        nothing, path = self._layout.nothing, self._path[row]
        spans = self._alive(row, answer) or [(0, nothing, nothing + 1, None)]  # a sum of nothing
        new = self._new_path(self._flat, path, row * SLOTS, spans)
        slot = self._visit(row, len(answer))
        self._written = row * SLOTS + slot
        path[slot] = new
        return new.exp().clamp_max(1.0)

    def _new_path(self, flat: Tensor, path: Tensor, first: int, spans: Sequence[Span]) -> Tensor:
        """Shift a row's paths so that the newest sum is at 0; the new boundary's log W, a number.

        Args:
            flat: All that is remembered.
            path: [SLOTS] log-probabilities of the row's paths.
            first: The row's first slot in ``flat``.
            spans: What is open, from one boundary or more.
        """
        width, nothing = self._layout.width, self._layout.nothing
        starts = [(first + where) * width for where, *_ in spans]
        exact = [
            start + (nothing if found is None else found)
            for start, (*_, found) in zip(starts, spans, strict=True)
        ]
        if len(spans) == 1:  # nearly always
            (start,), ((where, low, high, _),) = starts, spans
            to_here = path[where]
            through = flat[start + low : start + high].logsumexp(0) + to_here
            ended = flat[exact[0]] + to_here
        else:
            lengths = [high - low for _, low, high, _ in spans]
            ends = list(accumulate(lengths))
            shifts = [
                start + low - (end - length)  # segments, laid end to end
                for start, (_, low, *_), end, length in zip(
                    starts, spans, ends, lengths, strict=True
                )
            ]
            rows = [shifts, lengths, [where for where, *_ in spans], exact]
            plan = torch.tensor(rows, device=flat.device)
            to_these = path.take(plan[2])
            shift = plan[0].repeat_interleave(plan[1], output_size=ends[-1])
            paths = to_these.repeat_interleave(plan[1], output_size=ends[-1])
            index = torch.arange(ends[-1], device=flat.device) + shift
            through = (flat.take(index) + paths).logsumexp(0)
            ended = (flat.take(plan[3]) + to_these).logsumexp(0)
        lost = through == -torch.inf
        base_line = through.masked_fill(lost, 0.0)
        path -= base_line
        return (ended - base_line).masked_fill(lost, 0.0)

    def _sum_blocks(self) -> None:
        """Sum the blocks of what was stored without."""
        if not self._bare or self._flat is None:
            return
        width = self._layout.width
        stored = self._flat[: len(self._next) * SLOTS * width].view(-1, width)
        bare = torch.tensor(sorted(self._bare), device=stored.device)
        keys = stored.index_select(0, bare)[:, : len(self._keys.order)]
        stored.index_copy_(0, bare, self._layout.filled(keys))
        self._bare = set()

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is remembered, made at the first boundary."""
        if self._flat is None or self._path is None:
            rows = len(self._next)
            size = rows * SLOTS * self._layout.width + self._layout.base  # a piece may reach over
            self._flat = torch.full((size,), -torch.inf, device=device)
            self._path = torch.zeros((rows, SLOTS), device=device)
        return self._flat, self._path

    def _order(self, device: torch.device) -> Tensor:
        """The keys' ids in byte order, on a device."""
        if self._keys.order.device != device:
            self._keys.order = self._keys.order.to(device)
        return self._keys.order

    def mark(self) -> Mark:
        """Remember the boundaries; the mark lives as long as the caller holds it."""
        path = None if self._path is None else self._path.clone()
        mark = Mark([list(v) for v in self._visited], list(self._next), path)
        self._marks.add(mark)
        return mark

    def rollback(self, mark: Mark) -> None:
        """Return to a mark (rows must be the same)."""
        self._visited, self._next = [list(v) for v in mark.visited], list(mark.following)
        if self._flat is not None:
            stored = self._flat[: len(self._next) * SLOTS * self._layout.width]
            for target, old in reversed(mark.undo):
                stored.view(-1, self._layout.width).index_copy_(0, target, old)
                self._bare.update(target.tolist())
        mark.undo.clear()
        if self._path is not None:
            self._path = self._path.new_zeros(self._path.shape)
            if mark.path is not None:
                self._path.copy_(mark.path)

    def select(self, rows: list[int]) -> None:
        """Keep, drop, reorder or repeat rows. Marks of the old rows are void."""
        self._marks.clear()
        self._visited = [list(self._visited[r]) for r in rows]
        old = len(self._next)
        self._bare = set(range(len(rows) * SLOTS)) if self._bare else set()
        self._next = [self._next[r] for r in rows]
        if self._flat is not None and self._path is not None:
            index = torch.tensor(rows, device=self._path.device)
            each = SLOTS * self._layout.width
            kept = self._flat[: old * each].view(old, each).index_select(0, index).flatten()
            self._flat = torch.cat([kept, kept.new_full((self._layout.base,), -torch.inf)])
            self._path = self._path.index_select(0, index)
