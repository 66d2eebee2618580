"""Sums over ranges of a long row in a few fixed pieces: the row, and sums of its blocks.

Of logarithms, so that a range of tiny probabilities loses no digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import Trie

LEVELS = 3
"""A row itself, sums of its blocks, sums of blocks of those."""

PARTS = 2 * LEVELS - 1
"""Pieces of a slice at most: a beginning and an end on each level, one on the last."""


class Layout:
    """Where a row's numbers are: every level in blocks of ``base``, then one that is never set."""

    def __init__(self, size: int) -> None:
        """Choose the smallest base that holds a row.

        Args:
            size: K, keys of a row.
        """
        base = max(2, round(size ** (1 / LEVELS)))
        while base**LEVELS < size:
            base += 1
        self.base = base
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        at = 0
        for _ in range(LEVELS):
            self.offsets.append(at)
            self.sizes.append(size)
            size = -(-size // base)
            at += size * base
        self.nothing = at
        self.width = at + 1

    def parts(self, low: int, high: int) -> list[int]:
        """Starts and ends, one after the other, of the pieces that make up ``[low, high)``."""
        found: list[int] = []
        base = self.base
        for offset in self.offsets:
            if high - low <= base:
                return [*found, offset + low, offset + high] if low < high else found
            left, right = -(-low // base) * base, high // base * base
            if low < left:
                found += (offset + low, offset + left)
            if right < high:
                found += (offset + right, offset + high)
            low, high = left // base, right // base
        return found

    def filled(self, rows: Tensor) -> Tensor:
        """Rows [n, K] with the sums of their blocks, [n, width]."""
        whole = rows.new_full((len(rows), self.width), -torch.inf)
        whole[:, : rows.shape[1]] = rows
        for level in range(1, LEVELS):
            begin, end, size = self.offsets[level - 1], self.offsets[level], self.sizes[level]
            blocks = whole[:, begin:end].reshape(len(rows), size, self.base)
            whole[:, end : end + size] = blocks.logsumexp(-1)
        return whole


class NodeLayout:
    """Where a row's numbers are: one for every node of the keys' tree, then one never set."""

    base = 1

    def __init__(self, trie: Trie) -> None:
        """Take the tree.

        Args:
            trie: The keys as a tree.
        """
        self._trie = trie
        self.nothing = trie.nothing
        self.width = trie.nothing + 1

    def filled(self, rows: Tensor) -> Tensor:
        """Rows [n, K] with the masses of all nodes, [n, width]."""
        return self._trie.masses(rows)


def weigh_slots(
    flat: Tensor, path: Tensor, exact: Tensor, parts: Tensor, base: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weigh a boundary of n rows, each with some slots of earlier ones.

    Args:
        flat: All that is remembered.
        path: [n, slots or more] log-probabilities of the paths to the boundaries.
        exact: [n, slots] where the key that ends here is.
        parts: [n, slots, PARTS, 2] where the pieces of the open keys begin and end.
        base: Length of a piece at most.

    Returns:
        c [n], the paths with the newest sum at 0, so that long answers lose no digits, and the new
        boundary's log W [n].
    """
    index = parts[..., :1] + torch.arange(base, device=flat.device)  # [n, slots, PARTS, base]
    open_keys = flat.take(index).masked_fill(index >= parts[..., 1:], -torch.inf)
    to_here = path[:, : exact.shape[-1]]
    through = (open_keys + to_here[:, :, None, None]).flatten(1).logsumexp(-1)  # [n]
    ended = (to_here + flat.take(exact)).logsumexp(-1)
    # The start, bytes that no key spells, or no path leads here: the paths start anew.
    lost = through == -torch.inf
    base_line = through.masked_fill(lost, 0.0)
    new = (ended - base_line).masked_fill(lost, 0.0)
    return new.exp().clamp_max(1.0), path - base_line[:, None], new
