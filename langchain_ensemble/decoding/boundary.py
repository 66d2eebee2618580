"""Open boundaries: the probability that a member ends a token where main does.

Where main's tokens are finer than an auxiliary's, the auxiliary would be asked what follows half
a token. For member i and the answer's bytes ``s[:L]``

    c_i = W_L / sum over b < L of W_b * sum_{u startswith s[b:L]} p_i(u | s[:b])

over the last boundaries ``b`` the member visited; ``W_b`` is the probability of the bytes up to
``b`` with a token ending there, summed over the visited paths: ``W_L = sum_b W_b p_i(s[b:L] | b)``.
The inner sums are differences of one running sum over the byte-sorted keys of a row the member
already has, so no forward is added. c_i = 1 where tokenizers are equal (no tracker is made).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.decoding.protocols import SortedKeysLike
from langchain_ensemble.fusion.base import MemberDistribution

BOUNDARIES = 8


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
        self._sums: Tensor | None = None  # [B, slots, K + 1] float64
        self._path: Tensor | None = None  # [B, slots] float64, log W_b

    def observe(
        self,
        distribution: MemberDistribution,
        answers: Sequence[bytes | bytearray],
        active: Sequence[bool],
    ) -> Tensor:
        """Note a new boundary in every active row and weigh it.

        Args:
            distribution: The member's dense distribution after each row's answer.
            answers: Bytes of every row's answer as the member holds them, a lead included.
            active: Rows in which the member stands at the end of the answer.

        Returns:
            [B] float32, c_i of every row (1 in rows that are not active).
        """
        device = distribution.logprobs.device
        if self._sums is None or self._path is None:
            rows, width = len(answers), len(self._keys.order)
            self._sums = torch.zeros(rows, BOUNDARIES, width + 1, device=device).double()
            self._path = torch.zeros(rows, BOUNDARIES, dtype=torch.float64, device=device)
        lookups = [
            self._look_up(row, answer) if on else None
            for row, (answer, on) in enumerate(zip(answers, active, strict=True))
        ]
        weighed, path = self._weigh(lookups)
        self._record(distribution, answers, active, path)
        return weighed

    def _look_up(self, row: int, answer: bytes | bytearray) -> list[tuple[int, int, int, int]]:
        """(slot, low, high, exact + 1 or 0) of every visited boundary before the answer's end."""
        found = []
        for position, slot in self._visited[row]:
            if position >= len(answer):
                continue
            span = bytes(answer[position:])
            low, high = self._keys.range(span)
            exact = self._keys.position(span)
            found.append((slot, low, high, 0 if exact is None else exact + 1))
        return found

    def _weigh(
        self, lookups: list[list[tuple[int, int, int, int]] | None]
    ) -> tuple[Tensor, Tensor]:
        """(c [B] float32, log W_L [B] float64) from the looked-up ranges."""
        sums, path = self._tensors()
        device = sums.device
        index = torch.zeros(len(lookups), BOUNDARIES, 4, dtype=torch.long)
        used = torch.zeros(len(lookups), BOUNDARIES, dtype=torch.bool)
        for row, found in enumerate(lookups):
            for column, entry in enumerate(found or ()):
                index[row, column] = torch.tensor(entry)
                used[row, column] = True
        index, used = index.to(device), used.to(device)
        slot, low, high, exact = index.unbind(-1)  # [B, 8] each
        rows = torch.arange(len(lookups), device=device)[:, None]
        through = (sums[rows, slot, high] - sums[rows, slot, low]).clamp_min(0)
        ends = (sums[rows, slot, exact] - sums[rows, slot, (exact - 1).clamp_min(0)]).clamp_min(0)
        ends = torch.where(exact > 0, ends, 0.0)
        start = path[rows, slot]
        masked = torch.where(used, start, -torch.inf)
        whole = (masked + through.log()).logsumexp(-1)  # [B]
        ended = (masked + ends.log()).logsumexp(-1)
        # No path reaches this position (the start, or bytes that no key of the member spells): no
        # key can be open here either, so the member stands at a boundary and the paths start anew.
        fresh = whole == -torch.inf
        c = torch.where(fresh, 1.0, (ended - whole).exp().clamp(0.0, 1.0))
        return c.float(), torch.where(fresh, 0.0, ended)

    def _record(
        self,
        distribution: MemberDistribution,
        answers: Sequence[bytes | bytearray],
        active: Sequence[bool],
        path: Tensor,
    ) -> None:
        """Keep the running sum of each active row as its newest boundary."""
        sums, paths = self._tensors()
        rows = [row for row, on in enumerate(active) if on]
        if not rows:
            return
        order = self._keys.order.to(sums.device)
        probs = distribution.logprobs[rows][:, order].double().exp()
        running = probs.cumsum(-1)  # [R, K]
        for number, row in enumerate(rows):
            position = len(answers[row])
            self._visited[row] = [(p, s) for p, s in self._visited[row] if p != position]
            slot = self._next[row] % BOUNDARIES
            self._next[row] += 1
            self._visited[row] = [(p, s) for p, s in self._visited[row] if s != slot]
            self._visited[row].append((position, slot))
            sums[row, slot, 1:] = running[number]
            paths[row, slot] = path[row]

    def _tensors(self) -> tuple[Tensor, Tensor]:
        assert self._sums is not None  # observe() made them
        assert self._path is not None
        return self._sums, self._path

    def mark(self) -> Any:
        """Remember the boundaries."""
        sums = None if self._sums is None else self._sums.clone()
        path = None if self._path is None else self._path.clone()
        return [list(v) for v in self._visited], list(self._next), sums, path

    def rollback(self, mark: Any) -> None:
        """Return to a mark (rows must be the same)."""
        visited, following, sums, path = mark
        self._visited, self._next = [list(v) for v in visited], list(following)
        self._sums = None if sums is None else sums.clone()
        self._path = None if path is None else path.clone()

    def select(self, rows: list[int]) -> None:
        """Keep, drop, reorder or repeat rows."""
        self._visited = [list(self._visited[r]) for r in rows]
        self._next = [self._next[r] for r in rows]
        if self._sums is not None and self._path is not None:
            self._sums, self._path = self._sums[rows], self._path[rows]
