"""Which session gives a model's own results: found out once a module, never assumed.

Models of the families in :data:`KNOWN` are covered by this package's tests. Any other is asked:
a few forwards over arbitrary ids, ragged and rolled back, against the model's own uncached forward.
Where our masks and positions are ignored the rows are replayed one by one; where that differs too,
the model is refused. Never a wrong context.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, MemberError, MemoryLimitError
from langchain_ensemble.members.attention import NAME as GROUPED
from langchain_ensemble.members.attention import choose, groups_of, restore
from langchain_ensemble.members.base import MemberPrompt, MemberSession
from langchain_ensemble.members.blocks import MaskPlan
from langchain_ensemble.members.forward import Engine, forward_names
from langchain_ensemble.members.replay import ReplaySession
from langchain_ensemble.members.session import HFSession

logger = logging.getLogger(__name__)

KNOWN = (
    "bitnet", "deepseek_v2", "deepseek_v3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox",
    "granite", "llama", "minicpm3", "mistral", "mixtral", "olmo", "olmo2", "olmo3", "olmoe", "phi",
    "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
"""``config.model_type`` of the families whose ragged cache the tests compare with the model."""

REFUSALS = (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError)
"""How a model says that it does not take a mask, a position or a cache."""

KINDS = {
    "full_attention": ("full", None),
    "sliding_attention": ("sliding", "sliding_window"),
    "chunked_attention": ("chunked", "attention_chunk_size"),
}
"""Layer type → kind of mask and the setting that holds its width."""

TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}
"""Largest difference from the uncached forward, as a share of what another context changes; other
dtypes, and quantised weights, get 0.2."""


@dataclass(frozen=True)
class Rollback:
    """How a model's cache is rolled back.

    Attributes:
        width: Columns of the logits.
        masks: Masks for the ragged cache; None: rows are replayed.
        single: Replay runs ids one at a time.
        switch: Length at which the model's own positions change (longrope), for replay.
    """

    width: int
    masks: MaskPlan | None
    single: bool = False
    switch: int | None = None


def text_config(config: Any) -> Any:
    """The decoder's part of a config."""
    return config.get_text_config(decoder=True)


def context_of(config: Any) -> int | None:
    """Positions a model has, None when its config names none."""
    inner = text_config(config)
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(inner, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def kv_bytes_of(config: Any, dtype: torch.dtype) -> int:
    """Bytes that a cached token takes: keys and values of all layers that attend.

    Args:
        config: The model's config.
        dtype: Dtype of the activations.

    Returns:
        The size; 0 where the config names no heads (a model without a KV cache).
    """
    inner = text_config(config)
    heads, layers, hidden = (
        getattr(inner, key, None)
        for key in ("num_attention_heads", "num_hidden_layers", "hidden_size")
    )
    if not (isinstance(heads, int) and isinstance(layers, int) and isinstance(hidden, int)):
        return 0
    kinds = getattr(inner, "layer_types", None)
    if kinds:
        layers = sum("attention" in kind and "linear" not in kind for kind in kinds)
    shared = getattr(inner, "num_key_value_heads", None) or heads
    width = getattr(inner, "head_dim", None) or hidden // heads
    return int(2 * layers * shared * width * dtype.itemsize)


def logits_width(module: Any) -> int:
    """Columns of a model's logits (often more than its tokenizer names)."""
    head = module.get_output_embeddings()
    rows = getattr(head, "out_features", None)
    return int(rows) if isinstance(rows, int) else int(text_config(module.config).vocab_size)


def mask_plan(config: Any, attention: str, one_mask: bool) -> MaskPlan | None:
    """Which masks a config asks for; None where ours cannot say it.

    Args:
        config: The model's config.
        attention: ``"sdpa"``, our own form of it, or ``"eager"``.
        one_mask: The model takes one mask for all layers, not one a layer type.
    """
    inner = text_config(config)
    types = list(dict.fromkeys(getattr(inner, "layer_types", None) or []))
    if types:
        if any(t not in KINDS for t in types) or (one_mask and len(types) > 1):
            return None
        kinds: dict[str, tuple[str, int | None]] = {}
        for layer_type in types:
            kind, key = KINDS[layer_type]
            kinds["" if one_mask else layer_type] = (kind, getattr(inner, key) if key else None)
    elif getattr(inner, "sliding_window", None) is not None:
        kinds = {"": ("sliding", int(inner.sliding_window))}
    elif getattr(inner, "attention_chunk_size", None) is not None:
        kinds = {"": ("chunked", int(inner.attention_chunk_size))}
    else:
        kinds = {"": ("full", None)}
    groups = groups_of(inner) if attention == GROUPED else None
    return MaskPlan(kinds, additive=attention == "eager", groups=groups)


def fit(name: str, module: Any, device: torch.device) -> Rollback:
    """Find the session that gives a model's own results.

    Args:
        name: Member's name, for messages.
        module: The model, in eval mode.
        device: Where input ids go.

    Raises:
        ConfigError: The attention implementation cannot take our masks.
        MemberError: Neither session gives the model's own results.
    """
    config = module.config
    attention = choose(module, sure=config.model_type in KNOWN)
    if attention not in (GROUPED, "sdpa", "eager"):
        raise ConfigError(
            f"member {name!r}: attn_implementation={attention!r} cannot take a mask for each row, "
            "which ragged rows need; use 'sdpa' (default) or 'eager'"
        )
    width, switch = logits_width(module), rope_switch(config)
    for plan in [] if switch else _plans(module, attention):
        engine = _engine(name, module, device, width, plan)
        if _runs(engine) and (config.model_type in KNOWN or agrees(engine, lambda e: HFSession(e))):
            return Rollback(width, plan)
    restore(module)  # a replayed model runs as ``generate`` would run it
    engine = _engine(name, module, device, width, None)
    for single in (False, True):
        if agrees(engine, lambda e, s=single: ReplaySession(e, s, switch)):  # type: ignore[misc]
            return Rollback(width, None, single, switch)
    raise MemberError(
        f"member {name!r}: {type(module).__name__} gives other logits with its cache than without; "
        "its state cannot be rolled back, so it cannot take part. Use another model"
    )


def rope_switch(config: Any) -> int | None:
    """Length above which longrope models change the rotation of all positions."""
    inner = text_config(config)
    rope = getattr(inner, "rope_parameters", None) or getattr(inner, "rope_scaling", None) or {}
    kind = rope.get("rope_type") if isinstance(rope, dict) else None
    original = getattr(inner, "original_max_position_embeddings", None)
    if isinstance(rope, dict):
        original = rope.get("original_max_position_embeddings", original)
    context = context_of(config)
    if kind != "longrope" or original is None or (context is not None and context <= original):
        return None
    return int(original)


def _plans(module: Any, attention: str) -> list[MaskPlan]:
    """Plans to try: one mask a layer type where the config names types, then one for all."""
    names = forward_names(module)
    if "position_ids" not in names or "past_key_values" not in names:
        return []
    if getattr(text_config(module.config), "attn_temperature_tuning", False):
        return []  # Llama 4 scales queries by the cache's length, which is not every row's
    plans = [mask_plan(module.config, attention, one_mask) for one_mask in (False, True)]
    made = [p for p in plans if p is not None]
    return made[:1] if len(made) == 2 and made[0] == made[1] else made


def _engine(
    name: str, module: Any, device: torch.device, width: int, plan: MaskPlan | None
) -> Engine:
    return Engine(name, module, device, module.dtype, width, context_of(module.config), plan)


def _runs(engine: Engine) -> bool:
    """Whether the model takes this form of mask at all (a dict is an error to most)."""
    try:
        HFSession(engine).prefill([MemberPrompt((1,))])
    except MemoryLimitError:
        raise
    except REFUSALS as error:
        logger.info("%s: no masks %s: %r", engine.name, cast(MaskPlan, engine.masks).kinds, error)
        return False
    return True


def agrees(engine: Engine, make: Callable[[Engine], Any]) -> bool:
    """Whether ragged steps and roll-back give the logits of the model's uncached forward.

    Args:
        engine: The model.
        make: Makes an empty session over it.
    """
    limit = min(engine.width, 997)
    ids = [(7 * i * i + 3 * i + 1) % limit for i in range(24)]
    rows = [ids[:9], ids[5:8]]
    want = [ids[:6] + ids[12:15], ids[5:8] + ids[16:18]]
    try:
        session = cast(MemberSession, make(engine))
        session.prefill([MemberPrompt(tuple(row)) for row in rows])
        session.step([ids[9:11], ids[11:12]], keep=None)
        session.truncate([6, 3])
        got = session.step([want[0][6:], want[1][3:]], keep=2)
        fresh = [_uncached(engine, row, 2) for row in want]
        other = _uncached(engine, list(reversed(ids))[:7] + want[0][-2:], 2)
    except MemoryLimitError:
        raise
    except REFUSALS as error:
        logger.info("%s: %s says %r", engine.name, type(engine.module).__name__, error)
        return False
    effect = float((other - fresh[0]).abs().max())
    worst = max(float((got[b] - fresh[b]).abs().max()) for b in range(2))
    return worst <= TOLERANCE.get(engine.dtype, 0.2) * effect  # false for NaN


def _uncached(engine: Engine, ids: list[int], keep: int) -> Tensor:
    """Logits of the last ``keep`` ids in one forward without a cache, float32 [keep, V_i]."""
    with engine.guard(f"a forward over {len(ids)} ids"):
        tensor = torch.tensor([ids], device=engine.device)
        output = engine.module(input_ids=tensor, use_cache=False)
        return cast(Tensor, output.logits)[0, -keep:].float()
