"""A vocabulary's keys as a tree of bytes, in index tensors; the mass below every node of it.

Keys stand in byte order, so the keys that start with given bytes are one range of them. Distinct
ranges are the nodes of a compressed tree: a *column* is a key's position ``0 .. K-1`` (the range of
that key alone), or ``K .. K+I-1`` (a range of several keys); the last column is nothing. Knows
tensors only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trie:
    """The nodes of one vocabulary, int64.

    Attributes:
        order: [K] the id of each key in byte order.
        part: [P] columns that inner nodes are made up of, round by round: a round's parts are keys
            and inner nodes of earlier rounds.
        part_of: [P] the column of the inner node that each is a part of.
        rounds: Where each round ends.
        inner: I, the number of inner nodes.
        depth: [K + I + 1] bytes of a node's label; of the last column 0.
        exact: [K + I + 1] column of the key that a node's label is, else the last column.
        first: [K + I + 1] a key below a node, whose first ``depth`` bytes are the label.
        child_begin: [K + I + 2] where a node's children begin; they end where the next begin.
        child_byte: [C] the byte after the label.
        child_column: [C] where it leads.
        text: Bytes of all keys, one after the other.
        text_begin: [K + 1] where each key begins in ``text``.
    """

    order: Tensor
    part: Tensor
    part_of: Tensor
    rounds: tuple[int, ...]
    inner: int
    depth: Tensor
    exact: Tensor
    first: Tensor
    child_begin: Tensor
    child_byte: Tensor
    child_column: Tensor
    text: Tensor
    text_begin: Tensor

    @property
    def root(self) -> int:
        """The column below which all keys stand: the first inner node."""
        return len(self.order)

    @property
    def nothing(self) -> int:
        """The column that never has any mass."""
        return len(self.order) + self.inner

    def to(self, device: torch.device) -> Trie:
        """The same tree on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if torch.is_tensor(v)}
        return replace(self, **moved)

    def masses(self, rows: Tensor) -> Tensor:
        """Log-mass of every node.

        Only sums of positive numbers relative to the row's best, in float64 where there is such:
        a node of mass 1e-200 keeps all digits.

        Args:
            rows: [n, K] log-probabilities of the keys in byte order.

        Returns:
            [n, K + I + 1] float32.
        """
        top = rows.amax(-1, keepdim=True)
        top = top.masked_fill(top == -torch.inf, 0.0)
        fine = torch.float32 if rows.device.type == "mps" else torch.float64
        each = (rows - top).to(fine).exp()
        mass = torch.nn.functional.pad(each, (0, self.inner))
        one = len(rows) == 1
        mass = mass[0] if one else mass.T.contiguous()  # sums of single numbers are much faster
        begin = 0
        for end in self.rounds:
            parts = mass.index_select(0, self.part[begin:end])
            mass.index_add_(0, self.part_of[begin:end], parts)
            begin = end
        below = (mass[None] if one else mass.T)[:, len(self.order) :].log().float() + top
        return torch.cat([rows, below, rows.new_full((len(rows), 1), -torch.inf)], -1)
