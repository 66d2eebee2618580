"""Where the rows of a member's relative representation come from: a table, or hot rows.

A table ``[V, A]`` is kept where it is small enough. Otherwise rows are computed when they are asked
for, and the ones asked for last stay in a buffer of fixed size (tokens are Zipfian: after a while
few rows of a step are new). Either way a step asks once for the rows of all its positions:

    request = rows.request(ids, read)      # which rows, and how many of them must be computed
    rows.fetch(request, missing)           # computes them, in one product; ``missing`` on the host
    rows.weigh(ids, weights); rows(ids)    # reads

``missing`` is the only number that the host must know. Knows embeddings and ids; must not know
distributions or the search.

A row that is kept equals the row computed anew: each is a float32 product of a multiple of
:data:`PRODUCT_ROWS` rows, so that on a CPU a token's row does not depend on what else was missing
with it, to the last bit (elsewhere the product's kernel may round differently by its size).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from langchain_ensemble.fusion.relative import sharpened, unit_rows

PRODUCT_ROWS = 8
"""Rows are computed in multiples of this many: a product of one row rounds differently."""

BLOCK_CELLS = 1 << 25
"""Cells of a temporary, float32 (128 MiB)."""


@dataclass(frozen=True)
class Request:
    """Rows that a step asks for.

    Attributes:
        wanted: [V + 1] bool, the last entry is False; None where every row is there.
        counts: [2] int64: distinct rows asked for, and how many of them must be computed.
    """

    wanted: Tensor | None
    counts: Tensor


class Rows(Protocol):
    """One member's relative rows, on the device of its distribution."""

    mean: Tensor  # [A] mean row

    @property
    def room(self) -> int:
        """How many distinct rows one request may ask for."""

    def request(self, ids: Tensor, read: Tensor) -> Request:
        """Say which rows will be read: ``ids`` [N, k] where ``read`` [N, k]."""

    def fetch(self, request: Request, missing: int) -> None:
        """Make the rows of a request readable until the next one; no host read."""

    def weigh(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of rows, [N, k] ids and [N, k] weights to [N, A] float32.

        Ids that were not asked for read as the mean row (or their own); give them weight 0.
        """

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of ``ids`` [...], as [..., A] float32; valid until the next call."""


class StoredRows:
    """Rows of a table that is kept (and memory-mapped where it came from the disk cache)."""

    def __init__(
        self, table: Tensor, mean: Tensor, device: torch.device, *, least: int = 1
    ) -> None:
        """Keep the table where it is; only rows travel to ``device``.

        Args:
            table: [V, A].
            mean: [A] the mean row.
            device: Where rows are read.
            least: Rows that one position may read.
        """
        self.table = table
        self.mean = mean.float().to(device)
        self._device = device
        self._copies = _Copies(least)

    @property
    def room(self) -> int:
        """Every row is there."""
        return len(self.table)

    def request(self, ids: Tensor, read: Tensor) -> Request:
        """Nothing ever needs to be computed."""
        return Request(None, torch.zeros(2, dtype=torch.int64, device=ids.device))

    def fetch(self, request: Request, missing: int) -> None:
        """Nothing to do."""

    def weigh(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of rows, without a copy of them where the table is float32."""
        if self.table.dtype == torch.float32 and self.table.device == self._device:
            return _weigh(self.table, self._inside(ids), weights)
        return torch.bmm(weights[:, None], self(ids))[:, 0]

    def __call__(self, ids: Tensor) -> Tensor:
        """Look the rows up; ids past the embeddings (never probable) give the last row."""
        return self._copies(self.table, self._inside(ids)).to(self._device).float()

    def _inside(self, ids: Tensor) -> Tensor:
        return ids.clamp_max(len(self.table) - 1).to(self.table.device)


class HotRows:
    """Rows made when they are asked for; the ones used last stay, in a buffer of fixed size.

    Slot 0 of the buffer holds the mean row, which stands for every row that is not there. Which
    token has which slot are index tensors on the device; the least recently used slots go first.
    """

    def __init__(
        self,
        embeddings: Tensor,
        anchor_ids: Tensor,
        mean: Tensor,
        device: torch.device,
        *,
        budget: int,
        least: int = 1,
    ) -> None:
        """Lay out the buffer.

        Args:
            embeddings: [V, D] input embeddings, any float dtype; referred to, not copied.
            anchor_ids: [A] the anchors' ids.
            mean: [A] the mean row.
            device: Where rows are read.
            budget: Bytes for everything that is stored here. Normalised anchor embeddings are kept
                where they take at most half of it; otherwise they are made block by block.
            least: Rows that one position may read, which must fit whatever the budget.
        """
        self._embeddings = embeddings
        self._anchor_ids = anchor_ids.to(embeddings.device)
        self._device = device
        self.mean = mean.float().to(device)
        width, anchors = len(embeddings), len(anchor_ids)
        self._kept: Tensor | None = None
        self._copies = _Copies(least)
        spent = 8 * (width + 1 + anchors) + 4 * anchors
        if device.type == "cpu":
            spent += 4 * anchors * least  # what the copies take
        if 8 * anchors * embeddings.shape[-1] <= budget:
            self._kept = unit_rows(embeddings[self._anchor_ids].to(device))
            spent += 4 * self._kept.numel()
        slots = min(width, max(least, (budget - spent) // (4 * anchors + 16) - 1))
        with torch.inference_mode(mode=False):  # they are written in any mode
            self._buffer = torch.empty(slots + 1, anchors, device=device)  # pages come as it fills
            self._place = torch.zeros(width + 1, dtype=torch.int64, device=device)  # id -> slot
            self._owner = torch.full((slots + 1,), width, device=device)  # slot -> id; or no id
            self._used = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._buffer[0] = self.mean
        self._used[0] = torch.iinfo(torch.int64).max  # never goes
        self._clock = 0

    @property
    def room(self) -> int:
        """Rows that the buffer holds."""
        return len(self._buffer) - 1

    @property
    def stored_bytes(self) -> int:
        """Bytes of everything that is kept (the embeddings are the model's own)."""
        parts = [self._buffer, self._place, self._owner, self._used, self._anchor_ids, self.mean]
        parts += [] if self._kept is None else [self._kept]
        return self._copies.bytes + sum(part.numel() * part.element_size() for part in parts)

    def request(self, ids: Tensor, read: Tensor) -> Request:
        """Mark the rows on the device; nothing is read on the host."""
        width = len(self._embeddings)
        wanted = torch.zeros(width + 1, dtype=torch.bool, device=self._device)
        marks = torch.where(read, ids.clamp_max(width - 1), width)
        wanted = wanted.index_fill(0, marks.reshape(-1), True)
        wanted[width:].fill_(False)
        missing = (wanted & (self._place == 0)).sum()
        return Request(wanted, torch.stack([wanted.sum(), missing]))

    def fetch(self, request: Request, missing: int) -> None:
        """Compute what is missing and put it where the least recently used rows were.

        Args:
            request: At most :attr:`room` distinct rows.
            missing: ``request.counts[1]`` as a number.
        """
        wanted = request.wanted
        assert wanted is not None
        self._clock += 1
        self._used.masked_fill_(wanted[self._owner], self._clock)
        if not missing:
            return
        new = _places(wanted & (self._place == 0), missing)
        slots = self._used.topk(missing, largest=False).indices
        self._place.index_fill_(0, self._owner[slots], 0)
        self._owner.index_copy_(0, slots, new)
        self._place.index_copy_(0, new, slots)
        self._used.index_fill_(0, slots, self._clock)
        size = max(1, BLOCK_CELLS // (len(self.mean) * PRODUCT_ROWS)) * PRODUCT_ROWS
        for at in range(0, missing, size):
            rows = self._computed(new[at : at + size])
            self._buffer.index_copy_(0, slots[at : at + size], rows)

    def weigh(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of rows, read where they lie."""
        return _weigh(self._buffer, self._slots(ids), weights)

    def __call__(self, ids: Tensor) -> Tensor:
        """Copies of the rows; ids past the embeddings (never probable) give the last row."""
        return self._copies(self._buffer, self._slots(ids))

    def _slots(self, ids: Tensor) -> Tensor:
        return self._place[ids.clamp_max(len(self._embeddings) - 1)]

    def _computed(self, ids: Tensor) -> Tensor:
        """Rows of some ids [R], [R, A] float32."""
        short = -len(ids) % PRODUCT_ROWS
        ids = torch.cat([ids, ids[-1:].expand(short)]) if short else ids
        picked = self._embeddings[ids.to(self._embeddings.device)].to(self._device)
        picked = unit_rows(picked)
        if self._kept is not None:
            return sharpened(picked @ self._kept.T)[: len(ids) - short]
        parts = [picked @ block.T for block in self._anchor_blocks()]
        return sharpened(torch.cat(parts, -1))[: len(ids) - short]

    def _anchor_blocks(self) -> Iterator[Tensor]:
        """Normalised anchor embeddings, a block at a time."""
        size = max(1, BLOCK_CELLS // self._embeddings.shape[-1])
        for at in range(0, len(self._anchor_ids), size):
            block = self._embeddings[self._anchor_ids[at : at + size]]
            yield unit_rows(block.to(self._device))


def _places(mask: Tensor, count: int) -> Tensor:
    """Indices [count] of the True entries of a mask [V] that has so many; no host read."""
    rank = torch.where(mask, mask.cumsum(0) - 1, count)  # all others fall off the edge
    order = torch.arange(len(mask), device=mask.device)
    return order.new_empty(count + 1).scatter_(0, rank, order)[:count]


class _Copies:
    """Rows copied out of a table, on a CPU into memory that stays.

    A CPU's allocator gives megabytes back after every step, and fetching them anew costs as much as
    a search. On other devices the allocator keeps them.
    """

    def __init__(self, most: int) -> None:
        """Keep memory for ``most`` rows at most."""
        self._most = most
        self._memory: Tensor | None = None

    @property
    def bytes(self) -> int:
        """What is kept."""
        return 0 if self._memory is None else self._memory.numel() * self._memory.element_size()

    def __call__(self, table: Tensor, places: Tensor) -> Tensor:
        """Rows [..., A], valid until the next call."""
        flat = places.reshape(-1)  # of one index tensor: far faster than advanced indexing
        if table.device.type != "cpu" or len(flat) > self._most:
            rows = table.index_select(0, flat)
        else:
            memory = self._memory
            if memory is None or len(memory) < len(flat):
                with torch.inference_mode(mode=False):
                    memory = table.new_empty(min(self._most, 2 * len(flat)), table.shape[-1])
                self._memory = memory
            rows = torch.index_select(table, 0, flat, out=memory[: len(flat)])
        return rows.reshape(*places.shape, table.shape[-1])


def _weigh(table: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    return functional.embedding_bag(places, table, per_sample_weights=weights, mode="sum")
