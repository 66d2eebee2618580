"""Causal attention for short rows on a CPU, some of whose heads are shown where to look.

Twice as quick as PyTorch's fused kernel on rows of 50 ids, a third quicker on rows of 256; in
bfloat16, with no mask but causality, as rows are padded at their ends.

Copying takes two heads that find each other late in training by themselves: one looks at the token
before, a later one at what followed an earlier occurrence of the current token. Both are shown
where to look by a small loss of their own, after which the rest of the model learns to copy.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "demo_short"
NEVER = -30000.0
BEFORE = ((0, 0),)  # (layer, head): looks at the token before
FOLLOWED = ((1, 2), (2, 0))  # looks at what followed the current token earlier

_seen: dict[tuple[int, int], torch.Tensor] = {}
"""Scores of the guided heads of the last pass, [rows, width, width]."""


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; keeps the scores of the guided heads."""
    groups = query.shape[1] // key.shape[1]
    batch, heads, width, size = query.shape
    with torch.autocast("cpu", enabled=False):
        q, k, v = (
            each.to(torch.bfloat16).reshape(batch * heads, width, size)
            for each in (
                query * scaling,
                key.repeat_interleave(groups, 1),
                value.repeat_interleave(groups, 1),
            )
        )
        future = torch.full((width, width), NEVER, dtype=torch.bfloat16).triu(1)
        scores = torch.baddbmm(future, q, k.transpose(1, 2))
        for layer, head in (*BEFORE, *FOLLOWED):
            if layer == module.layer_idx:
                _seen[layer, head] = scores.view(batch, heads, width, width)[:, head]
        told = torch.bmm(scores.softmax(-1), v).reshape(batch, heads, width, size)
    return told.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def _missed(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean of -log(attention on what is wanted), where anything is wanted."""
    shares = scores.float().log_softmax(-1)
    there = wanted.any(-1)
    return -shares.masked_fill(~wanted, NEVER).logsumexp(-1)[there].sum() / there.sum().clamp(min=1)


def guidance(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The loss of the guided heads in the pass that has just been made.

    Args:
        ids: [rows, width + 1], the last of which was not read.
        weights: [rows, width + 1], above 0 where an id is to be learned.

    Returns:
        The mean over the guided heads.
    """
    read, following = ids[:, :-1], ids[:, 1:]
    width = read.shape[1]
    before = torch.eye(width + 1, dtype=torch.bool)[:-1, 1:].expand(len(ids), -1, -1)
    past = torch.ones(width, width, dtype=torch.bool).tril()[None]
    same = read[:, :, None] == torch.cat([read[:, :1] * 0 - 1, read[:, :-1]], 1)[:, None, :]
    copied = same & (following[:, :, None] == read[:, None, :]) & past
    copied &= (weights[:, 1:] > 0)[:, :, None]
    losses = [_missed(_seen[at], before) for at in BEFORE]
    losses += [_missed(_seen[at], copied) for at in FOLLOWED]
    return torch.stack(losses).mean()
