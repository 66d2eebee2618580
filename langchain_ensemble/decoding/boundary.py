"""Open boundaries: the probability that a member ends a token where main does.

Where main's tokens are finer than an auxiliary's, the auxiliary would be asked what follows half
a token. For member i and the answer's bytes ``s[:L]``

    c_i = W_L / sum over b < L of W_b * sum_{u startswith s[b:L]} p_i(u | s[:b])

over the last boundaries ``b`` the member visited; ``W_b`` is the probability of the bytes up to
``b`` with a token ending there, summed over the visited paths: ``W_L = sum_b W_b p_i(s[b:L] | b)``.
The keys that start with given bytes stand side by side in byte order, so each inner sum is a slice
of a row the member already has; no forward is added. Sums are taken of logarithms: what main chose
may be as good as impossible for the member. c_i = 1 where tokenizers are equal (no tracker).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.decoding.protocols import SortedKeysLike
from langchain_ensemble.fusion.base import MemberDistribution

BOUNDARIES = 8


Span = tuple[int, int, int, int]
"""A visited boundary's slot, the range of keys that start with the bytes since, the exact key."""


class BoundaryTracker:
    """The last boundaries of one member, for B rows."""

    def __init__(self, keys: SortedKeysLike, rows: int) -> None:
        """Start with no boundary.

        Args:
            keys: The member's keys in byte order.
            rows: B.
        """
        self._keys = keys
        self._visited: list[list[tuple[int, int]]] = [[] for _ in range(rows)]  # (position, slot)
        self._next = [0] * rows
        self._rows: Tensor | None = None  # [B, slots, K] log-probabilities in byte order
        self._path: Tensor | None = None  # [B, slots] log W_b up to a constant a row

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
        if self._rows is None or self._path is None:
            blank = distribution.logprobs.new_zeros
            self._rows = blank(len(self._next), BOUNDARIES, len(self._keys.order))
            self._path = blank(len(self._next), BOUNDARIES)
        weighed, path = [], []
        for row, answer, on in zip(at, answers, active, strict=True):
            c, log_w = self._weigh(row, self._look_up(row, answer) if on else [])
            weighed.append(c)
            path.append(log_w)
        self._record(distribution, answers, active, at, torch.stack(path))
        return torch.stack(weighed)

    def _look_up(self, row: int, answer: bytes | bytearray) -> list[Span]:
        """Every visited boundary before the answer's end from which some key is still open."""
        found = []
        for position, slot in self._visited[row]:
            if position >= len(answer):
                continue
            span = bytes(answer[position:])
            low, high = self._keys.range(span)
            if low < high:
                exact = self._keys.position(span)
                found.append((slot, low, high, -1 if exact is None else exact))
        return found

    def _weigh(self, row: int, spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
        """(c, log W_L) of one row."""
        rows, path = self._tensors()
        one, nothing = path.new_ones(()), path.new_zeros(())
        if not spans:  # the start, or bytes that no key of the member spells: no key can be open
            return one, nothing
        through, ends = [], []
        for slot, low, high, exact in spans:
            through.append(path[row, slot] + rows[row, slot, low:high].logsumexp(0))
            if exact >= 0:
                ends.append(path[row, slot] + rows[row, slot, exact])
        whole = torch.stack(through).logsumexp(0)
        ended = torch.stack(ends).logsumexp(0) if ends else torch.full_like(whole, -torch.inf)
        lost = whole == -torch.inf  # no path leads here: the paths start anew
        c = torch.where(lost, one, (ended - whole).exp().clamp(0.0, 1.0))
        # Only differences count: keep the newest sum at 0, so that long answers lose no digits.
        base = torch.where(lost, nothing, whole)
        path[row] -= base
        return c, torch.where(lost, nothing, ended - base)

    def _record(
        self,
        distribution: MemberDistribution,
        answers: Sequence[bytes | bytearray],
        active: Sequence[bool],
        at: Sequence[int],
        path: Tensor,
    ) -> None:
        """Keep each active row as its newest boundary."""
        rows, paths = self._tensors()
        order = self._keys.order.to(rows.device)
        for place, row in enumerate(at):
            if not active[place]:
                continue
            position = len(answers[place])
            slot = self._next[row] % BOUNDARIES
            self._next[row] += 1
            kept = [(p, s) for p, s in self._visited[row] if p != position and s != slot]
            self._visited[row] = [*kept, (position, slot)]
            rows[row, slot] = distribution.logprobs[place, order]
            paths[row, slot] = path[place]

    def _tensors(self) -> tuple[Tensor, Tensor]:
        assert self._rows is not None  # observe() made them
        assert self._path is not None
        return self._rows, self._path

    def mark(self) -> Any:
        """Remember the boundaries."""
        rows = None if self._rows is None else self._rows.clone()
        path = None if self._path is None else self._path.clone()
        return [list(v) for v in self._visited], list(self._next), rows, path

    def rollback(self, mark: Any) -> None:
        """Return to a mark (rows must be the same)."""
        visited, following, rows, path = mark
        self._visited, self._next = [list(v) for v in visited], list(following)
        self._rows = None if rows is None else rows.clone()
        self._path = None if path is None else path.clone()

    def select(self, rows: list[int]) -> None:
        """Keep, drop, reorder or repeat rows."""
        self._visited = [list(self._visited[r]) for r in rows]
        self._next = [self._next[r] for r in rows]
        if self._rows is not None and self._path is not None:
            self._rows, self._path = self._rows[rows], self._path[rows]
