"""One forward of an unmodified model over rows of a ragged cache: block, masks, logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, MemoryLimitError
from langchain_ensemble.members.adapters import adapter_rows
from langchain_ensemble.members.blocks import MaskPlan
from langchain_ensemble.members.kv_cache import RaggedCache


class StaticForward(Protocol):
    """A forward of fixed shapes: captured, compiled, or both."""

    def run(
        self,
        engine: Engine,
        cache: RaggedCache,
        ids: Sequence[Sequence[int]],
        lengths: Sequence[int],
        keep: int,
    ) -> Tensor | None:
        """As :func:`run_eager`; None where this block must run there."""


@dataclass(frozen=True)
class Engine:
    """A module and what a session must know to run it.

    Attributes:
        name: Member's name, for messages.
        module: The transformers model.
        device: Where input ids go.
        dtype: Dtype of the activations.
        width: Columns of the logits.
        context: Positions the model has, None when unknown.
        masks: Masks the model wants; None: its rows must be run one by one.
        static: Runs the small blocks of decoding; None: all forwards are eager.
    """

    name: str
    module: Any
    device: torch.device
    dtype: torch.dtype
    width: int
    context: int | None
    masks: MaskPlan | None
    static: StaticForward | None = None

    def check_room(self, lengths: Sequence[int], counts: Sequence[int]) -> None:
        """Refuse a step that would not fit the context."""
        longest = max((n + c for n, c in zip(lengths, counts, strict=True)), default=0)
        if self.context is not None and longest > self.context:
            raise ConfigError(
                f"member {self.name!r} has {self.context} positions; this step needs {longest}. "
                "Shorten the prompt or lower max_tokens"
            )

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Turn running out of memory into an error that says what was being made."""
        try:
            with torch.no_grad():
                yield
        except torch.OutOfMemoryError as error:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise MemoryLimitError(
                f"member {self.name!r} ran out of memory on {self.device} at {what} ({error}); "
                "use fewer or shorter rows, quantization=, or a smaller dtype"
            ) from error


def run(
    engine: Engine,
    cache: RaggedCache,
    ids: Sequence[Sequence[int]],
    lengths: Sequence[int],
    keep: int,
    adapters: Sequence[str] | None = None,
) -> Tensor:
    """Run one right-aligned block.

    On CUDA this starts work and waits for nothing: one copy to the device, none back.

    Args:
        engine: The model.
        cache: Where keys and values are written.
        ids: New ids of each row.
        lengths: Tokens that each row has cached.
        keep: How many last columns are wanted.
        adapters: Adapter of each row (:data:`~langchain_ensemble.members.adapters.BASE`: none);
            None where all rows run the base.

    Returns:
        Logits [B, keep, V_i] in the model's dtype.
    """
    if adapters is not None:
        with adapter_rows(adapters):
            return run_eager(engine, cache, ids, lengths, keep)
    if engine.static is not None:
        logits = engine.static.run(engine, cache, ids, lengths, keep)
        if logits is not None:
            return logits
    return run_eager(engine, cache, ids, lengths, keep)


def run_eager(
    engine: Engine,
    cache: RaggedCache,
    ids: Sequence[Sequence[int]],
    lengths: Sequence[int],
    keep: int,
) -> Tensor:
    """Run one block of whatever shape; as :func:`run`."""
    block = cache.open(ids, lengths, engine.device)
    output = engine.module(
        input_ids=block.ids,
        attention_mask=cast(MaskPlan, engine.masks).build(block, engine.dtype),
        position_ids=block.positions,
        past_key_values=cache,
        use_cache=True,
        return_dict=True,
        **keep_argument(engine.module, keep),
    )
    logits = cast(Tensor, output.logits)
    return logits if logits.shape[1] == keep else logits[:, -keep:]


def keep_argument(module: Any, keep: int) -> dict[str, int]:
    """``logits_to_keep`` where the model's forward knows it."""
    return {"logits_to_keep": keep} if "logits_to_keep" in forward_names(module) else {}


def forward_names(module: Any) -> tuple[str, ...]:
    """Names of the arguments of a model's forward (through a PEFT wrapper)."""
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    return _names(type(inner).forward)


@lru_cache(maxsize=64)
def _names(forward: Any) -> tuple[str, ...]:
    """Names of a function's arguments; reading them takes longer than a layer does."""
    return tuple(inspect.signature(forward).parameters)
