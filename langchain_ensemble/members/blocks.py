"""Where the ids of a forward go: columns, positions, slots, masks, and the buckets of their sizes.

A block is right-aligned: row ``b`` with ``n_b`` of ``q`` columns has its pads on the left. Column
``j`` of row ``b`` has position ``lengths[b] + j - (q - n_b)``; a pad has position 0 and is written
where nothing looks: behind the row's last valid slot, which the next block overwrites, or into the
trash slot of static buffers. A query sees the slots up to its own position, so causality alone
masks stale slots and pads.

The layout is plain Python, as the numbers are few, and goes to the device in one copy; masks are
made there from the positions, once a forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_ensemble.members.attention import NO_MASK, repeat_rows

ROWS = (1, 2, 4, 8, 16, 32, 64)
"""Rows of a static forward; idle ones write to the trash slot."""

COLUMNS = (1, 2, 4, 8)
"""Columns of a static forward."""

SHORTEST = 512
"""Slots of the smallest static forward; the next has twice as many."""


@dataclass(frozen=True)
class Block:
    """Where one forward's ``q`` columns go.

    Attributes:
        ids: Token ids, [B, q], int64; pads are 0.
        positions: Position of every column, [B, q], int64.
        slots: Slot that every column is written to, [B, q], int64; None where ``start`` says it.
        rows: Row numbers, [B, q], int64, beside ``slots``.
        visible: Slots that a query can see at most: the longest row after this block.
        start: First slot when all rows write the same contiguous slots, else None.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor | None
    rows: Tensor | None
    visible: int
    start: int | None

    @classmethod
    def plan(
        cls, ids: Sequence[Sequence[int]], lengths: Sequence[int], device: torch.device
    ) -> Block:
        """Lay out a block.

        Args:
            ids: New ids, one list a row; the block is as wide as the longest.
            lengths: Tokens already cached, one a row.
            device: Where the index tensors live.
        """
        counts = [len(row) for row in ids]
        q, start = max(counts), lengths[0]
        if min(counts) < q or lengths.count(start) < len(lengths):
            planes = layout(ids, lengths, q)
            four = to_device(planes, (4, len(ids), q), device)
            visible = max([n + c for n, c in zip(lengths, counts, strict=True)])
            return cls(four[0], four[1], four[2], four[3], visible, None)
        columns = list(range(start, start + q))
        if device.type == "cpu":  # nothing to copy: two small tensors are the fastest
            two = torch.tensor(ids), torch.tensor([columns] * len(ids))
            return cls(two[0], two[1], None, None, start + q, start)
        flat = [token for row in ids for token in row] + columns * len(ids)
        both = to_device(flat, (2, len(ids), q), device)
        return cls(both[0], both[1], None, None, start + q, start)

    def hides_nothing(self, kind: str, width: int | None) -> bool:
        """Whether a mask would say no more than causality, for attention over [0, visible)."""
        if self.start is None or (self.start > 0 and self.ids.shape[1] > 1):
            return False
        return kind == "full" or width is None or self.visible <= width

    def mask(self, kind: str, width: int | None) -> Tensor:
        """Which slots each column sees.

        Args:
            kind: ``"full"``, ``"sliding"`` or ``"chunked"``.
            width: Window or chunk of the latter two.

        Returns:
            Bool [B, 1, q, visible]; every column sees at least one slot.
        """
        slot = torch.arange(self.visible, device=self.positions.device)
        query = self.positions[:, None, :, None]  # [B, 1, q, 1]
        seen = slot <= query
        if kind == "sliding" and width is not None:
            seen &= slot > query - width
        elif kind == "chunked" and width is not None:
            seen &= slot // width == query // width
        return seen


def layout(
    ids: Sequence[Sequence[int]],
    lengths: Sequence[int],
    q: int,
    rows: int = 0,
    trash: int | None = None,
) -> list[int]:
    """Ids, positions, slots and row numbers of a block, one plane after the other.

    Args:
        ids: New ids of each row.
        lengths: Tokens that each row has cached.
        q: Columns.
        rows: Rows of the block if it has more than ids; the others are idle.
        trash: Slot for pads and idle rows; None: pads go behind their row's last valid slot.

    Returns:
        4 * rows * q numbers.
    """
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for row, length in zip(ids, lengths, strict=True):
        end = length + len(row)
        if pads := q - len(row):
            tokens += [0] * pads
            positions += [0] * pads
            slots += range(end, end + pads) if trash is None else [trash] * pads
        tokens += row
        positions += range(length, end)
        slots += range(length, end)
    rows = max(rows, len(ids))
    if idle := (rows - len(ids)) * q:
        tokens += [0] * idle
        positions += [0] * idle
        slots += [trash or 0] * idle
    return [*tokens, *positions, *slots, *(row for row in range(rows) for _ in range(q))]


def to_device(flat: list[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers as one int64 tensor, in one copy that nobody waits for."""
    host = torch.tensor(flat, pin_memory=device.type == "cuda").view(shape)
    return host if device.type == "cpu" else host.to(device, non_blocking=True)


def bucket(size: int, sizes: Sequence[int]) -> int | None:
    """The smallest of some sizes that is large enough, None if none is."""
    return next((s for s in sizes if s >= size), None)


def slot_bucket(slots: int) -> int:
    """Slots of the static forward that sees so many."""
    size = SHORTEST
    while size < slots:
        size *= 2
    return size


@dataclass(frozen=True)
class MaskPlan:
    """Which masks a model wants: one for all layers, or one for each layer type.

    Attributes:
        kinds: Layer type → (kind, width); the key ``""`` stands for all layers.
        additive: Float masks (eager attention) instead of bool ones (sdpa).
        groups: Query heads that share a key where our own attention runs, else None: float masks,
            repeated once a forward for the heads of a group, and none where nothing is hidden.
    """

    kinds: dict[str, tuple[str, int | None]]
    additive: bool
    groups: int | None = None

    def build(self, block: Block, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Masks of one block, as ``forward(attention_mask=...)`` takes them."""
        made = {name: self._one(block, dtype, *kind) for name, kind in self.kinds.items()}
        return made.get("", made)

    def _one(self, block: Block, dtype: torch.dtype, kind: str, width: int | None) -> Tensor:
        if self.groups is not None and block.hides_nothing(kind, width):
            return NO_MASK
        seen = block.mask(kind, width)
        if self.groups is None and not self.additive:
            return seen
        low = torch.finfo(dtype).min if self.groups is None else -torch.inf
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, low)
        return mask if self.groups is None else repeat_rows(mask, self.groups)
