"""One forward of an unmodified model over rows of a ragged cache: block, masks, logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, MemoryLimitError
from langchain_ensemble.members.adapters import adapter_rows
from langchain_ensemble.members.kv_cache import MaskPlan, RaggedCache


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
    """

    name: str
    module: Any
    device: torch.device
    dtype: torch.dtype
    width: int
    context: int | None
    masks: MaskPlan | None

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
    counts = [len(row) for row in ids]
    block = cache.open(lengths, counts, engine.device)
    q = max(counts)
    padded = torch.tensor([[0] * (q - len(row)) + list(row) for row in ids])
    with adapter_rows(adapters):
        output = engine.module(
            input_ids=padded.to(engine.device),
            attention_mask=cast(MaskPlan, engine.masks).build(block, engine.dtype),
            position_ids=block.positions,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **keep_argument(engine.module, keep),
        )
    return cast(Tensor, output.logits)[:, -keep:]


def keep_argument(module: Any, keep: int) -> dict[str, int]:
    """``logits_to_keep`` where the model's forward knows it."""
    return {"logits_to_keep": keep} if "logits_to_keep" in forward_names(module) else {}


def forward_names(module: Any) -> tuple[str, ...]:
    """Names of the arguments of a model's forward (through a PEFT wrapper)."""
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    return tuple(inspect.signature(type(inner).forward).parameters)
