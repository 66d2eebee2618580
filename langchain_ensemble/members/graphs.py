"""Forwards of fixed shapes: what a member runs again and again is laid out once and replayed.

A decode forward of a 7-8B model launches some 1,500 kernels; at batch 1 the host takes longer to
launch them than the device to run them. A CUDA graph launches all of them at once. It needs shapes
and addresses that never change, so a forward is rounded up to a bucket of rows, columns and visible
slots, over buffers (:class:`~langchain_ensemble.members.kv_cache.Slab`) that stay where they are.

:class:`Region` is what is captured: a function of static tensors only. How it is captured is a
:class:`~langchain_ensemble.members.capture.Capture`. A cache moves into a slab at its first small
block and its slab goes to the next cache when it is dropped, with all that was captured over it.

The first replay is compared with the eager forward. Whatever goes wrong turns static forwards off
for the member, with a warning that names the cause.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, EnsembleWarning
from langchain_ensemble.members.blocks import (
    COLUMNS,
    ROWS,
    Block,
    MaskPlan,
    bucket,
    layout,
    slot_bucket,
)
from langchain_ensemble.members.capture import Capture, Chain, CudaCapture
from langchain_ensemble.members.compiled import Compiled
from langchain_ensemble.members.forward import Engine, run_eager
from langchain_ensemble.members.kv_cache import RaggedCache, Slab

FREE = 2
"""Slabs kept for the next cache; those let go free their memory and their graphs."""

Key = tuple[int, int, int]
"""Rows, columns and visible slots of a static forward."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference of the first replay from the eager forward, as a share of the largest logit;
other dtypes get 0.05."""


class Region:
    """One forward over static tensors: the only thing that is captured or compiled.

    Attributes:
        key: Rows, columns, visible slots.
        inputs: Ids, positions, slots and row numbers, int64 [4, rows, columns]; written before each
            replay.
    """

    def __init__(self, engine: Engine, slab: Slab, key: Key) -> None:
        """Lay out a forward over a slab."""
        rows, columns, visible = self.key = key
        self._engine = engine
        with torch.inference_mode(False):
            self.inputs = torch.zeros((4, rows, columns), dtype=torch.long, device=engine.device)
        self._cache = slab.view(rows)
        ids, positions, slots, numbers = self.inputs
        self._block = Block(ids, positions, slots, numbers, visible, None)
        self._cache.layout.block = self._block
        self._cache.layout.longest = visible - columns  # a number of the bucket's, not of a row's

    def __call__(self) -> Tensor:
        """Logits [rows, columns, V_i] of what the inputs say."""
        engine, block = self._engine, self._block
        output = engine.module(
            input_ids=block.ids,
            attention_mask=cast(MaskPlan, engine.masks).build(block, engine.dtype),
            position_ids=block.positions,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        )
        return cast(Tensor, output.logits)


class Static:
    """The static forwards of one module; see :class:`~langchain_ensemble.members.forward.Engine`.

    Attributes:
        how: What ``Member.forward`` calls it, for messages.
        captured: Regions captured so far.
        replayed: Forwards that were replays.
        off: Why static forwards are off; None: they are on.
    """

    def __init__(self, how: str, capture: Capture) -> None:
        """Start with nothing captured."""
        self.how = how
        self.captured = self.replayed = 0
        self.off: str | None = None
        self._capture = capture
        self._free: list[Slab] = []
        self._replays: weakref.WeakKeyDictionary[Slab, dict[Key, tuple[Region, Any]]] = (
            weakref.WeakKeyDictionary()
        )
        self._homes: weakref.WeakKeyDictionary[RaggedCache, tuple[Slab, Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.RLock()

    def run(
        self,
        engine: Engine,
        cache: RaggedCache,
        ids: Sequence[Sequence[int]],
        lengths: Sequence[int],
        keep: int,
    ) -> Tensor | None:
        """Run a small block by replay; None: it must run eagerly (large, first, or static is off).

        Args, and what comes back, are those of
        :func:`~langchain_ensemble.members.forward.run_eager`. The logits are a copy.
        """
        rows, q = bucket(len(ids), ROWS), max(map(len, ids))
        columns = bucket(q, COLUMNS)
        if self.off is not None or rows is None or columns is None or not _started(cache):
            return None
        key = (rows, columns, slot_bucket(max(lengths) + columns))
        with self._lock, torch.inference_mode(False), torch.no_grad():
            try:
                slab = self._house(cache, key, len(ids), max(lengths))
                region, replay = self._captured(engine, cache, slab, key, ids, lengths)
                _fill(region, slab, ids, lengths)
                logits: Tensor = replay()
            except Exception as error:  # whatever it is, eager forwards still run
                self._give_up(engine.name, error)
                return None
            self.replayed += 1
            return logits[: len(ids), columns - min(keep, q) :].clone()

    def _house(self, cache: RaggedCache, key: Key, rows: int, keep: int) -> Slab:
        """The slab that a cache lives in, after a move where it must be larger."""
        lives = self._homes.get(cache)
        if lives is not None:
            slab, leave = lives
            if slab.holds(cache) and slab.rows >= key[0] and slab.slots >= key[2]:
                return slab
        else:
            leave = None
        slab = self._take(cache, key)
        slab.adopt(cache, rows, keep)
        if leave is not None:
            leave()
        self._homes[cache] = (slab, weakref.finalize(cache, self._free.append, slab))
        return slab

    def _take(self, cache: RaggedCache, key: Key) -> Slab:
        """The smallest free slab that is large enough, or a new one."""
        fitting = [s for s in self._free if s.rows >= key[0] and s.slots >= key[2]]
        if fitting:
            slab = min(fitting, key=lambda s: s.rows * s.slots)
            self._free.remove(slab)
        else:
            slab = Slab(cache, key[0], key[2])
        del self._free[: max(len(self._free) - FREE, 0)]
        return slab

    def _captured(
        self,
        engine: Engine,
        cache: RaggedCache,
        slab: Slab,
        key: Key,
        ids: Sequence[Sequence[int]],
        lengths: Sequence[int],
    ) -> tuple[Region, Callable[[], Tensor]]:
        """A region over a slab and its replay, captured at first use."""
        known = self._replays.setdefault(slab, {})
        if key not in known:
            region = Region(engine, slab, key)
            want = None if self.captured else run_eager(engine, cache, ids, lengths, 1)
            _fill(region, slab, ids, lengths)
            replay = self._capture(region)
            if want is not None:
                _compare(replay()[: len(ids), -1:], want, ids, engine.dtype)
            known[key] = (region, replay)
            self.captured += 1
        return known[key]

    def forget(self) -> None:
        """Forget what was captured: the module is not what it was."""
        with self._lock:
            self._replays.clear()

    def _give_up(self, name: str, error: Exception) -> None:
        """Turn static forwards off and say why, once."""
        self.off = f"{type(error).__name__}: {error}"
        self._replays.clear()
        self._free.clear()
        warnings.warn(
            f"member {name!r}: forward={self.how!r} is off and its forwards run eagerly, which is "
            f"slower ({self.off}). Set forward='eager' to say so yourself",
            EnsembleWarning,
            stacklevel=2,
        )


def _started(cache: RaggedCache) -> bool:
    """Whether all layers have buffers: the first forward of a cache makes them."""
    return bool(cache.layers) and all(layer.is_initialized for layer in cache.layers)


def _fill(region: Region, slab: Slab, ids: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
    """Write the inputs of a region, in one copy that nobody waits for."""
    rows, columns, _ = region.key
    flat = layout(ids, lengths, columns, rows, trash=slab.slots)
    host = torch.tensor(flat, pin_memory=region.inputs.device.type == "cuda")
    region.inputs.copy_(host.view(4, rows, columns), non_blocking=True)


def _compare(got: Tensor, want: Tensor, ids: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
    """Refuse a region whose logits are not the eager forward's."""
    busy = [b for b, row in enumerate(ids) if row]
    difference = float((got[busy] - want[busy]).abs().max())
    largest = float(want[busy].abs().max())
    if not difference <= TOLERANCE.get(dtype, 0.05) * largest:
        raise ArithmeticError(
            f"its logits differ from the eager forward's by {difference:.2g}, of {largest:.2g}"
        )


def resolve_forward(name: str, how: str | None, device: torch.device, ragged: bool) -> str:
    """What ``Member.forward`` means for a member.

    Args:
        name: Member's name, for messages.
        how: The setting.
        device: Where its ids go.
        ragged: Whether its rows run in one cache; if not they are replayed, always eagerly.

    Raises:
        ConfigError: CUDA graphs were asked for elsewhere.
    """
    if how == "graphs" and device.type != "cuda":
        raise ConfigError(
            f"member {name!r} is on {str(device)!r}; forward='graphs' needs a CUDA device. Use "
            "forward='eager', forward='compiled', or leave it out"
        )
    if not ragged and how in ("graphs", "compiled"):
        warnings.warn(
            f"member {name!r}: forward={how!r} needs rows in one cache; this model's are run one "
            "by one, eagerly",
            EnsembleWarning,
            stacklevel=2,
        )
    if not ragged:
        return "eager"
    return how or ("graphs" if device.type == "cuda" else "eager")


def static_forward(how: str, device: torch.device) -> Static | None:
    """Make the static forwards of a module.

    Args:
        how: ``"eager"``, ``"graphs"`` or ``"compiled"`` (on CUDA: compiled, then captured).
        device: Where its ids go.

    Returns:
        None for ``"eager"``.
    """
    return None if how == "eager" else Static(how, _capture(how, device))


def capture_between(forwards: Sequence[tuple[str, torch.device]]) -> Capture | None:
    """How what lies between the forwards of some members is captured: as they are.

    Args:
        forwards: How each member's run, and where.

    Returns:
        None where some run eagerly, or not on one device.
    """
    hows, devices = {how for how, _ in forwards}, {device for _, device in forwards}
    if "eager" in hows or len(devices) > 1:
        return None
    return _capture("compiled" if hows == {"compiled"} else "graphs", *devices)


def _capture(how: str, device: torch.device) -> Capture:
    """Compile, or capture, or first the one and then the other."""
    captures: list[Capture] = [Compiled(device)] if how == "compiled" else []
    if device.type == "cuda":
        captures.append(CudaCapture(device))
    return Chain(*captures)


def shared_forward(made: dict[str, Any], how: str, device: torch.device) -> Static | None:
    """The static forwards that all sessions over the same weights share.

    Args:
        made: Those made so far, by ``how``; a new one is put there.
        how: As for :func:`static_forward`.
        device: As for :func:`static_forward`.
    """
    if how == "eager":
        return None
    if how not in made:
        made.setdefault(how, static_forward(how, device))
    found: Static = made[how]
    return found
