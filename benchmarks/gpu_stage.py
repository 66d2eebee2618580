"""A pair of members on one device: what ``gpu.py`` measures on, and its clocks."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import Any

import torch
from common import clock_of
from gpu_pairs import Ring, make, opened_on, scripted
from toys import drafts_of
from transformers import DynamicCache

from langchain_ensemble.decoding.engine import Decoding
from langchain_ensemble.ensemble import Ensemble

ACCEPTANCE = 0.7


@dataclass
class Stage:
    """One pair on one device, and what was measured on it.

    Attributes:
        names: Main, then the other.
        device: Where.
        small: Tiny models: the code is run, no figure is judged.
        context: Tokens of a prompt.
        steps: Tokens of a timing.
        batches: Rows of the batched measures.
        growth: Contexts of the growth measure.
        seen: Figures that later measures need.
    """

    names: tuple[str, str]
    device: str
    small: bool
    context: int = 1024
    steps: int = 48
    batches: tuple[int, ...] = (8, 64)
    growth: tuple[int, ...] = (1024, 2048, 4096, 8192)
    seen: dict[str, float] = field(default_factory=dict)
    _members: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _made: dict[tuple[str, str | None], tuple[Ensemble, Ring]] = field(default_factory=dict)

    @property
    def on(self) -> str:
        """What rows say they were measured on."""
        return f"{' + '.join(self.names)}, {self.context}"

    def bar(self, value: float) -> float | None:
        """A bar that holds for real sizes on a GPU."""
        return None if self.small else value

    @property
    def members(self) -> dict[str, tuple[Any, Any]]:
        """The pair's models and tokenizers, made at first use."""
        if not self._members:
            self._members = {
                name: make(name, self.device, small=self.small, seed=place)
                for place, name in enumerate(self.names)
            }
        return self._members

    def ensemble(
        self, fusion: str = "unite", forward: str | None = "eager"
    ) -> tuple[Ensemble, Ring]:
        """The pair under a fusion, made at first use."""
        key = (fusion, forward)
        if key not in self._made:
            how = {"prefix_cache_gb": 0, "forward": forward}
            self._made[key] = scripted(self.members, fusion, ACCEPTANCE, **how)
        return self._made[key]

    @property
    def fast(self) -> str | None:
        """How the fastest forwards without a compiler run here."""
        return "eager" if self.device == "cpu" else "graphs"

    def close(self) -> None:
        """Free everything."""
        self._made.clear()
        self._members.clear()
        free()


def allocated_gib() -> float:
    """What is allocated on the device now; 0 where there is none."""
    return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def free() -> None:
    """Give unused device memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def kept(decoding: Decoding) -> float:
    """Tokens decoded so far, a row."""
    rows = decoding.rows
    return sum(len(row.records) for row in rows) / len(rows)


def advance(decoding: Decoding, tokens: float) -> None:
    """Decode until every row has about so many tokens."""
    while kept(decoding) < tokens and not decoding.done:
        decoding.step()


def token_ms(
    made: tuple[Ensemble, Ring],
    stage: Stage,
    rows: int = 1,
    context: int = 0,
    seen: dict[str, float] | None = None,
    **request: Any,
) -> float:
    """Milliseconds of a token, a row: the loop alone, prompts read before.

    Args:
        made: The ensemble and its ring.
        stage: Sizes.
        rows: How many answers at once.
        context: Tokens of a prompt; 0: the stage's.
        seen: Gets the share of drafts that was accepted and the device memory of the request.
        request: Settings of the request.

    Returns:
        The milliseconds.
    """
    ensemble, ring = made
    clock = clock_of(stage.device)
    warm = 12
    request = {"speculation": "off", "max_tokens": 4 * stage.steps, **request}
    with opened_on(ensemble, ring, context or stage.context, rows, **request) as decoding:
        advance(decoding, warm)
        before, start = kept(decoding), clock()
        advance(decoding, warm + stage.steps)
        took = (clock() - start) * 1e3 / (kept(decoding) - before)
        if seen is not None:
            drafted, accepted = drafts_of(decoding)
            seen["accepted"] = accepted / max(drafted, 1)
            seen["GiB"] = allocated_gib()
        return took


def bare_ms(module: Any, stage: Stage) -> float:
    """Milliseconds of one cached forward of transformers' own."""
    clock = clock_of(stage.device)
    cache = DynamicCache(config=module.config)
    ids = torch.full((1, stage.context), 300, device=stage.device)
    with torch.inference_mode():
        module(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        for number in range(8 + stage.steps):
            if number == 8:
                start = clock()
            module(input_ids=ids[:, :1], past_key_values=cache, logits_to_keep=1)
        return (clock() - start) * 1e3 / stage.steps


def held_gib(modules: list[Any]) -> float:
    """Weights of some modules, each tensor counted once."""
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage() for m in modules for p in m.parameters()
    }
    return sum(s.nbytes() for s in storages.values()) / 2**30
