"""A KV cache whose rows have lengths of their own; roll-back is a smaller number.

The only file that touches transformers' cache classes. It knows slots, positions and masks; it
knows nothing of tokens, tokenizers or prompts.

A layer owns one buffer ``[B, H, capacity, D]`` that grows in steps, so that no decode step copies
what is cached. A *block* of new ids is right-aligned: row ``b`` with ``n_b`` of ``q`` columns has
its pads on the left. Column ``j`` of row ``b`` has position ``lengths[b] + j - (q - n_b)``; a pad
is written behind the row's last valid slot, where nothing looks and the next block overwrites it.
A query sees the slots up to its own position: causality alone masks stale slots and pads.

Departure from transformers: layers with a sliding or chunked window keep all slots and get a window
in their mask instead. Roll-back is then exact past the window too; the price is memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

GRAIN = 64
"""Capacity is a multiple of this many slots."""


@dataclass(frozen=True)
class Block:
    """Where one forward's ``q`` columns go.

    Attributes:
        positions: Position of every column, [B, q], int64, pads at 0 or more.
        slots: Slot that every column is written to, [B, q], int64.
        visible: Slots that a query can see at most: the longest row after this block.
        start: First slot when all rows write the same contiguous slots, else None.
    """

    positions: Tensor
    slots: Tensor
    visible: int
    start: int | None

    @classmethod
    def plan(cls, lengths: Sequence[int], counts: Sequence[int], device: torch.device) -> Block:
        """Lay out a block.

        Args:
            lengths: Tokens already cached, one a row.
            counts: New ids, one a row; the block is as wide as the largest.
            device: Where the index tensors live.
        """
        q = max(counts)
        start = torch.tensor(lengths)[:, None]  # [B, 1]
        new = torch.tensor(counts)[:, None]
        offset = torch.arange(q)[None, :] - (q - new)  # [B, q], negative in pads
        slots = start + torch.where(offset >= 0, offset, offset + q)
        even = min(counts) == q and len(set(lengths)) == 1
        return cls(
            positions=(start + offset).clamp_(min=0).to(device),
            slots=slots.to(device),
            visible=max(n + c for n, c in zip(lengths, counts, strict=True)),
            start=lengths[0] if even else None,
        )

    def mask(self, kind: str, width: int | None) -> Tensor:
        """Which slots each column sees.

        Args:
            kind: ``"full"``, ``"sliding"`` or ``"chunked"``.
            width: Window or chunk of the latter two.

        Returns:
            Bool [B, 1, q, visible]; every column sees at least one slot.
        """
        slot = torch.arange(self.visible, device=self.positions.device)
        query = self.positions[:, :, None]  # [B, q, 1]
        seen = slot <= query
        if kind == "sliding" and width is not None:
            seen &= slot > query - width
        elif kind == "chunked" and width is not None:
            seen &= slot // width == query // width
        return seen[:, None]


class RaggedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, written by slot."""

    is_croppable = True
    is_sliding = False

    def __init__(self, cache: RaggedCache) -> None:
        """Belong to a cache, whose block says where the next keys go."""
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start with no slots; the first update grows them."""
        self.keys = key_states.new_zeros((*key_states.shape[:2], 0, key_states.shape[3]))
        self.values = value_states.new_zeros((*value_states.shape[:2], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a block's keys and values; return all that is visible, [B, H, visible, D].

        The buffers may have more rows than the block: the first B are run.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        block = self.cache.block
        self.keys = _write(self.keys, key_states, block, self.cache.capacity)
        self.values = _write(self.values, value_states, block, self.cache.capacity)
        rows = len(key_states)
        return self.keys[:rows, :, : block.visible], self.values[:rows, :, : block.visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what a query can see."""
        return self.cache.block.visible, 0

    def get_seq_length(self) -> int:
        """Tokens cached before the present block, in the longest row."""
        return self.cache.longest

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


def _write(buffer: Tensor, new: Tensor, block: Block, capacity: int) -> Tensor:
    """Put new states [B, H, q, D] into their slots, growing the buffer when needed."""
    if buffer.shape[2] < capacity:
        grown = buffer.new_zeros((*buffer.shape[:2], capacity, buffer.shape[3]))
        grown[:, :, : buffer.shape[2]] = buffer
        buffer = grown
    if block.start is not None:
        buffer[: len(new), :, block.start : block.start + new.shape[2]] = new
    else:
        rows = torch.arange(new.shape[0], device=buffer.device)[:, None]
        buffer[rows, :, block.slots.to(buffer.device)] = new.transpose(1, 2)
    return buffer


class RaggedCache(Cache):  # type: ignore[misc]
    """The cache of all layers, for B rows of lengths of their own.

    Attributes:
        block: Layout of the forward that runs now; set it with :meth:`open` before each forward.
        capacity: Slots that the buffers have, or will have after the next update.
        longest: Tokens in the longest row before the block.
    """

    def __init__(self) -> None:
        """Start empty; layers come with the first forward."""
        super().__init__(layers=[])
        self.block = Block(torch.zeros(0, 0), torch.zeros(0, 0), 0, None)
        self.capacity = 0
        self.longest = 0

    def open(self, lengths: Sequence[int], counts: Sequence[int], device: torch.device) -> Block:
        """Lay out the next forward and make room for it."""
        self.block = Block.plan(lengths, counts, device)
        self.longest = max(lengths)
        needed = self.longest + max(counts)
        if needed > self.capacity:
            self.capacity = -(-(needed + needed // 4) // GRAIN) * GRAIN
        return self.block

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's block."""
        while len(self.layers) <= layer_idx:
            self.layers.append(RaggedLayer(self))
        keys, values = self.layers[layer_idx].update(key_states, value_states)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in the longest row before the present block."""
        return self.longest

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of what a query can see."""
        return self.block.visible, 0

    def take(self, rows: Sequence[int], keep: int) -> RaggedCache:
        """Copy some rows into a new cache.

        Args:
            rows: Row numbers, in any order, with repeats.
            keep: Slots that hold something.
        """
        taken = RaggedCache()
        taken.capacity = -(-max(keep, 1) // GRAIN) * GRAIN if self.layers else 0
        for layer in self.layers:
            copy = RaggedLayer(taken)
            if layer.is_initialized:
                copy.keys = _take(layer.keys, rows, keep, taken.capacity)
                copy.values = _take(layer.values, rows, keep, taken.capacity)
                copy.is_initialized = True
            taken.layers.append(copy)
        return taken

    def put(self, other: RaggedCache, rows: Sequence[int], at: Sequence[int], keep: int) -> None:
        """Copy rows of another cache into rows of this one, which grows where it must.

        Args:
            other: The cache to copy from; it stays as it is.
            rows: Its rows.
            at: Where each goes; rows that do not exist yet are made, by doubling.
            keep: Slots of ``other`` that hold something.
        """
        if not self.layers:
            self.layers = [RaggedLayer(self) for _ in other.layers]
        self.capacity = max(self.capacity, -(-max(keep, 1) // GRAIN) * GRAIN)
        for mine, its in zip(self.layers, other.layers, strict=True):
            if its.is_initialized:
                if not mine.is_initialized:
                    mine.lazy_initialization(its.keys[:0], its.values[:0])
                mine.keys = _put(mine.keys, its.keys, rows, at, keep, self.capacity)
                mine.values = _put(mine.values, its.values, rows, at, keep, self.capacity)


def _take(buffer: Tensor, rows: Sequence[int], keep: int, capacity: int) -> Tensor:
    """Copy rows of [B, H, capacity, D] into a fresh buffer."""
    index = torch.tensor(list(rows), dtype=torch.long, device=buffer.device)
    fresh = buffer.new_zeros((len(rows), buffer.shape[1], capacity, buffer.shape[3]))
    fresh[:, :, :keep] = buffer[:, :, :keep].index_select(0, index)
    return fresh


def _put(
    buffer: Tensor, other: Tensor, rows: Sequence[int], at: Sequence[int], keep: int, capacity: int
) -> Tensor:
    """Copy rows of [_, H, _, D] into a buffer, or into a larger one that takes its place."""
    needed = max(at) + 1
    if len(buffer) < needed or buffer.shape[2] < capacity:
        wanted = max(needed, 2 * len(buffer)) if len(buffer) < needed else len(buffer)
        grown = buffer.new_zeros((wanted, buffer.shape[1], capacity, buffer.shape[3]))
        grown[: len(buffer), :, : buffer.shape[2]] = buffer
        buffer = grown
    places = torch.tensor([list(rows), list(at)], dtype=torch.long, device=buffer.device)
    buffer[places[1], :, :keep] = other[places[0], :, :keep]
    buffer[places[1], :, keep:] = 0  # what another row left: a masked NaN would still be one
    return buffer


@dataclass(frozen=True)
class MaskPlan:
    """Which masks a model wants: one for all layers, or one for each layer type.

    Attributes:
        kinds: Layer type → (kind, width); the key ``""`` stands for all layers.
        additive: Float masks (eager attention) instead of bool ones (sdpa).
    """

    kinds: dict[str, tuple[str, int | None]]
    additive: bool

    def build(self, block: Block, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Masks of one block, as ``forward(attention_mask=...)`` takes them."""
        made: dict[str, Tensor] = {}
        for layer_type, (kind, width) in self.kinds.items():
            mask = block.mask(kind, width)
            if self.additive:
                low = torch.finfo(dtype).min
                mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
                    ~mask, low
                )
            made[layer_type] = mask
        return made.get("", made)


def plain_cache(config: Any) -> Any:
    """The cache that ``generate`` would give a model."""
    return DynamicCache(config=config)


def can_crop(state: Any) -> bool:
    """Whether a state of transformers' own forgets its last tokens exactly."""
    return isinstance(state, DynamicCache) and all(type(x) is DynamicLayer for x in state.layers)
