"""Attention over grouped keys and values without copying them, in transformers' own models.

Stock ``sdpa`` repeats every key and value once for each query head of its group as soon as there is
a mask and more than one query. Here the group becomes rows of the query instead: ``[B, H, q, D]``
is read as ``[B, H_kv, G * q, D]`` and the mask, equal for all heads, is repeated once a forward.
Wide blocks (prefill), whose repeated mask would be large, keep their heads and see keys and values
through a stride of 0. Softmax, scaling and dropout are torch's, as in the stock function.

The function is registered with transformers under :data:`NAME` and chosen by :func:`choose` for
models that run on ``sdpa`` through that registry. A model that hands its attention anything that we
do not know (softcap, sinks, position bias) keeps its own.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

logger = logging.getLogger(__name__)

NAME = "ensemble_grouped"
"""What ``config._attn_implementation`` says where :func:`grouped_attention` runs."""

NO_MASK = torch.empty((1, 1, 1, 0))
"""Stands for a mask that masks nothing but what causality masks. It has four dimensions, so that
transformers hands it on as it is; None would make the model build a mask of its own."""

PACKED = 32
"""Blocks of at most so many columns have their group packed into the query's rows."""

IGNORED = frozenset(
    {"sliding_window", "position_ids", "use_cache", "cache_position", "return_dict",
     "output_hidden_states", "logits_to_keep", "past_key_values", "is_causal", "target_dtype"}
)  # fmt: skip
"""Arguments that say nothing new beside a mask; stock ``sdpa`` ignores them as well."""


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attend, in the form of transformers' ``AttentionInterface``.

    Args:
        module: The attention layer.
        query: [B, H, q, D].
        key: [B, H_kv, S, D].
        value: [B, H_kv, S, D_v].
        attention_mask: None: as stock ``sdpa``. :data:`NO_MASK`: causal, where S = q or q = 1.
            Else bool or additive, [B | 1, 1, r, S], r = 1, q, or q repeated for each of a group.
        dropout: As in torch.
        scaling: As in torch.
        extra: Arguments of :data:`IGNORED`; others are refused, unless they are None or False.

    Returns:
        ([B, q, H, D_v], None).

    Raises:
        TypeError: An argument that this function would get wrong by ignoring it.
    """
    for name, given in extra.items():
        if name not in IGNORED and given is not None and given is not False:
            raise TypeError(f"grouped attention does not know the argument {name!r}")
    if attention_mask is None:
        return cast(
            "tuple[Tensor, None]",
            sdpa_attention_forward(
                module, query, key, value, None, dropout=dropout, scaling=scaling, **extra
            ),
        )
    batch, heads, q = query.shape[:3]
    groups = heads // key.shape[1]
    if attention_mask.shape[-1] == 0:
        if q > 1:
            out = _causal(query, key, value, dropout, scaling)
        else:
            packed = query if groups == 1 else query.reshape(batch, -1, groups, query.shape[-1])
            out = scaled_dot_product_attention(packed, key, value, dropout_p=dropout, scale=scaling)
    elif groups == 1 or q > PACKED:
        out = _wide(query, key, value, attention_mask[:, :, :q], dropout, scaling)
    else:
        out = scaled_dot_product_attention(
            query.reshape(batch, -1, groups * q, query.shape[-1]),
            key,
            value,
            attn_mask=_rows(attention_mask, groups, q),
            dropout_p=dropout,
            scale=scaling,
        )
    return out.reshape(batch, heads, q, value.shape[-1]).transpose(1, 2).contiguous(), None


def repeat_rows(mask: Tensor, groups: int) -> Tensor:
    """Repeat a mask for each query head of a group.

    Args:
        mask: [B, 1, q, S].
        groups: Query heads that share a key.

    Returns:
        [B, 1, groups * q, S]; the mask itself where one row stands for all.
    """
    batch, _, q, slots = mask.shape
    if groups == 1 or q == 1 or q > PACKED:
        return mask
    return mask[:, :, None].expand(batch, 1, groups, q, slots).reshape(batch, 1, -1, slots)


def _rows(mask: Tensor, groups: int, q: int) -> Tensor:
    """The mask of packed rows; it is already that when our own masks are used."""
    if mask.shape[2] in (1, groups * q):
        return mask
    return repeat_rows(mask[:, :, :q], groups)


def _share(states: Tensor, groups: int) -> Tensor:
    """Keys or values as every head of a group sees them: [B * H_kv, groups, S, D], no copy."""
    batch, heads, slots, width = states.shape
    one = states.reshape(batch * heads, 1, slots, width)
    return one.expand(batch * heads, groups, slots, width)


def _causal(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of a block that starts a row: S = q."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1 or query.device.type == "cuda":  # there the kernels know groups
        return scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling,
            enable_gqa=groups > 1,
        )  # fmt: skip
    return scaled_dot_product_attention(
        query.reshape(-1, groups, *query.shape[2:]), _share(key, groups), _share(value, groups),
        dropout_p=dropout, is_causal=True, scale=scaling,
    )  # fmt: skip


def _wide(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of a wide block, each head by itself; rows one by one where masks differ."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    heads = query.reshape(-1, groups, *query.shape[2:])
    keys, values = _share(key, groups), _share(value, groups)
    step = len(heads) // len(mask)
    parts = [
        scaled_dot_product_attention(
            heads[at : at + step], keys[at : at + step], values[at : at + step],
            attn_mask=mask[row : row + 1], dropout_p=dropout, scale=scaling,
        )
        for row, at in enumerate(range(0, len(heads), step))
    ]  # fmt: skip
    return torch.cat(parts) if len(parts) > 1 else parts[0]


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def choose(module: Any, sure: bool) -> str:
    """Let a model run on :func:`grouped_attention` if it can.

    Args:
        module: The model (or a PEFT wrapper), in eval mode.
        sure: Its family is covered by tests; any other is asked, against its own attention.

    Returns:
        The attention implementation that it has now.
    """
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    present = str(getattr(inner.config, "_attn_implementation", None) or "eager")
    if present != "sdpa" or not inner._can_set_attn_implementation():
        return present
    if sure:
        inner.set_attn_implementation(NAME)
        return NAME
    try:
        want = _probe(module, packed=False)
        inner.set_attn_implementation(NAME)
        got = _probe(module, packed=True)
        same = all(_close(a, b) for a, b in zip(got, want, strict=True))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        logger.info("%s keeps sdpa: %r", type(inner).__name__, error)
        same = False
    if not same:
        restore(module)
    return NAME if same else "sdpa"


def restore(module: Any) -> None:
    """Give a model stock ``sdpa`` back."""
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    if getattr(inner.config, "_attn_implementation", None) == NAME:
        inner.set_attn_implementation("sdpa")


def groups_of(config: Any) -> int:
    """Query heads that share one key, by a decoder's config."""
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None)
    if not isinstance(heads, int) or not isinstance(shared, int) or shared < 1:
        return 1
    return max(heads // shared, 1)


@torch.no_grad()
def _probe(module: Any, packed: bool) -> list[Tensor]:
    """Logits of two ragged rows, and of one plain row, with our masks or with plain ones."""
    table = module.get_input_embeddings().weight
    device = table.device if table.device.type != "meta" else torch.device("cpu")
    ids = torch.arange(3, 15, device=device).remainder(len(table)).view(2, 6)
    column = torch.arange(6, device=device)
    seen = (column <= column[:, None]).expand(2, 1, 6, 6).clone()
    seen[1, :, 2:, :2] = False  # the second row is shorter; its pads see themselves
    positions = torch.stack([column, (column - 2).clamp(min=0)])
    mask, plain = seen, seen[:1, :, :, :]
    if packed:
        groups = groups_of(module.config.get_text_config(decoder=True))
        added = torch.zeros(seen.shape, dtype=module.dtype, device=device)
        mask = repeat_rows(added.masked_fill_(~seen, -torch.inf), groups)
        plain = NO_MASK
    given = {"use_cache": False, "return_dict": True}
    ragged = module(input_ids=ids, attention_mask=mask, position_ids=positions, **given)
    single = module(input_ids=ids[:1], attention_mask=plain, position_ids=positions[:1], **given)
    return [ragged.logits.float()[:, 2:], single.logits.float()]


def _close(got: Tensor, want: Tensor) -> bool:
    """Whether logits are equal up to the rounding of their dtype's sums."""
    return bool((got - want).abs().max() <= 1e-2 * want.abs().max())  # false for NaN
