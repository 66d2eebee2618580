"""A KV cache whose rows have lengths of their own; roll-back is a smaller number.

The only file that touches transformers' cache classes. It knows slots; it knows nothing of tokens,
tokenizers or prompts.

A layer owns one buffer ``[B, H, capacity, D]`` that grows in steps, so that no decode step copies
what is cached; it may have more rows than a forward runs, which are the first. How a forward's
columns become slots is in :mod:`~langchain_ensemble.members.blocks`.

To add rows: :meth:`RaggedCache.put` copies rows of another cache to row numbers of one's own
choice; :meth:`RaggedCache.take` copies rows out. Whoever forwards then passes ids and lengths for
all rows up to the last, empty ids for those that have nothing to run.

The static form (:class:`Slab`) is the same cache over buffers of a fixed number of rows and slots,
which stay where they are until either is too small: the shapes of a forward over it depend on
nothing else, so that it can be captured. Pads and idle rows write to its trash slot, which lies
behind all that a query can see.

Departure from transformers: layers with a sliding or chunked window keep all slots and get a window
in their mask instead. Roll-back is then exact past the window too; the price is memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from langchain_ensemble.members.blocks import Block

GRAIN = 64
"""Capacity is a multiple of this many slots."""

NOTHING = Block(torch.zeros(0, 0), torch.zeros(0, 0), None, None, 0, None)
"""The block of a cache that no forward has used."""


class Layout:
    """What a cache and its layers share about the forward that runs now.

    Layers do not know their cache: without a cycle, one that nobody holds is gone at once.

    Attributes:
        block: Where its columns go.
        capacity: Slots that the buffers have, or will have after the next update.
        longest: Tokens in the longest row before the block.
    """

    __slots__ = ("block", "capacity", "longest")

    def __init__(self) -> None:
        """Nothing runs."""
        self.block = NOTHING
        self.capacity = 0
        self.longest = 0


class RaggedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, written by slot."""

    is_croppable = True
    is_sliding = False

    def __init__(self, cache: RaggedCache) -> None:
        """Belong to a cache, whose block says where the next keys go."""
        super().__init__()
        self.layout = cache.layout

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
        block, capacity = self.layout.block, self.layout.capacity
        if self.keys.shape[2] < capacity:
            self.keys = _grow(self.keys, capacity)
            self.values = _grow(self.values, capacity)
        rows = key_states.shape[0]
        keys, values = self.keys, self.values
        if keys.shape[0] > rows:
            keys, values = keys.narrow(0, 0, rows), values.narrow(0, 0, rows)
        if block.start is not None:
            count = key_states.shape[2]
            keys.narrow(2, block.start, count).copy_(key_states)
            values.narrow(2, block.start, count).copy_(value_states)
        else:
            _write(keys, key_states, block)
            _write(values, value_states, block)
        return keys.narrow(2, 0, block.visible), values.narrow(2, 0, block.visible)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what a query can see."""
        return self.layout.block.visible, 0

    def get_seq_length(self) -> int:
        """Tokens cached before the present block, in the longest row."""
        return self.layout.longest

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


def _grow(buffer: Tensor, capacity: int) -> Tensor:
    """A buffer with more slots."""
    grown = buffer.new_zeros((*buffer.shape[:2], capacity, buffer.shape[3]))
    grown[:, :, : buffer.shape[2]] = buffer
    return grown


def _write(buffer: Tensor, new: Tensor, block: Block) -> None:
    """Put new states [B, H, q, D] into the slots of their rows."""
    rows, slots = cast(Tensor, block.rows), cast(Tensor, block.slots)
    if rows.device != buffer.device:  # a model that lies on several devices
        rows, slots = rows.to(buffer.device), slots.to(buffer.device)
    buffer[rows, :, slots] = new.transpose(1, 2)


class RaggedCache(Cache):  # type: ignore[misc]
    """The cache of all layers, for B rows of lengths of their own.

    Attributes:
        layout: Of the forward that runs now; set it with :meth:`open` before each forward.
    """

    def __init__(self) -> None:
        """Start empty; layers come with the first forward."""
        super().__init__(layers=[])
        self.layout = Layout()

    @property
    def capacity(self) -> int:
        """Slots that the buffers have, or will have after the next update."""
        return self.layout.capacity

    @capacity.setter
    def capacity(self, slots: int) -> None:
        self.layout.capacity = slots

    def open(
        self, ids: Sequence[Sequence[int]], lengths: Sequence[int], device: torch.device
    ) -> Block:
        """Lay out the next forward and make room for it."""
        layout = self.layout
        layout.block = block = Block.plan(ids, lengths, device)
        layout.longest = max(lengths)
        needed = layout.longest + block.ids.shape[1]
        if needed > layout.capacity:
            layout.capacity = -(-(needed + needed // 4) // GRAIN) * GRAIN
        return block

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's block."""
        while len(self.layers) <= layer_idx:
            self.layers.append(RaggedLayer(self))
        layer: RaggedLayer = self.layers[layer_idx]
        return layer.update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in the longest row before the present block."""
        return self.layout.longest

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of what a query can see."""
        return self.layout.block.visible, 0

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
            self.layers.extend(RaggedLayer(self) for _ in other.layers)
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
    capacity = max(capacity, buffer.shape[2])  # a slab's has its trash slots behind
    if len(buffer) < needed or buffer.shape[2] < capacity:
        wanted = max(needed, 2 * len(buffer)) if len(buffer) < needed else len(buffer)
        grown = buffer.new_zeros((wanted, buffer.shape[1], capacity, buffer.shape[3]))
        grown[: len(buffer), :, : buffer.shape[2]] = buffer
        buffer = grown
    places = torch.tensor([list(rows), list(at)], dtype=torch.long, device=buffer.device)
    buffer[places[1], :, :keep] = other[places[0], :, :keep]
    buffer[places[1], :, keep:] = 0  # what another row left: a masked NaN would still be one
    return buffer


class Slab:
    """Static buffers of all layers: so many rows and slots, and a trash slot behind them.

    Attributes:
        keys: One [rows, H, slots + GRAIN, D] a layer.
        values: The same.
        rows: Rows.
        slots: Slots that queries can see; the number of the trash slot.
    """

    def __init__(self, like: RaggedCache, rows: int, slots: int) -> None:
        """Make empty buffers for the layers of a cache."""
        self.rows, self.slots = rows, slots
        with torch.inference_mode(False):  # inference tensors could be written in no other mode
            self.keys = [_empty(layer.keys, rows, slots) for layer in like.layers]
            self.values = [_empty(layer.values, rows, slots) for layer in like.layers]

    def holds(self, cache: RaggedCache) -> bool:
        """Whether a cache still lives here; it leaves when its buffers are replaced."""
        return len(cache.layers) == len(self.keys) and all(
            layer.keys is key for layer, key in zip(cache.layers, self.keys, strict=True)
        )

    def adopt(self, cache: RaggedCache, rows: int, keep: int) -> None:
        """Copy rows of a cache here and let it live here from now on.

        Args:
            cache: The cache.
            rows: Its first rows that are in use.
            keep: Slots that hold something.
        """
        with torch.inference_mode(False), torch.no_grad():
            for layer, keys, values in zip(cache.layers, self.keys, self.values, strict=True):
                for old, new in ((layer.keys, keys), (layer.values, values)):
                    new[:rows, :, :keep] = old[:rows, :, :keep]
                    new[:rows, :, keep:] = 0  # what another left: a masked NaN would still be one
                layer.keys, layer.values = keys, values
        cache.capacity = self.slots

    def view(self, rows: int) -> RaggedCache:
        """The first rows as a cache of their own over the same memory."""
        cache = RaggedCache()
        cache.capacity = self.slots
        for keys, values in zip(self.keys, self.values, strict=True):
            layer = RaggedLayer(cache)
            layer.keys, layer.values = keys[:rows], values[:rows]
            layer.is_initialized = True
            cache.layers.append(layer)
        return cache


def _empty(like: Tensor, rows: int, slots: int) -> Tensor:
    """Zeros for a slab; idle rows read them before anything is written."""
    shape = (rows, like.shape[1], slots + GRAIN, like.shape[3])
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


def plain_cache(config: Any) -> Any:
    """The cache that ``generate`` would give a model."""
    return DynamicCache(config=config)


def can_crop(state: Any) -> bool:
    """Whether a state of transformers' own forgets its last tokens exactly."""
    return isinstance(state, DynamicCache) and all(type(x) is DynamicLayer for x in state.layers)
