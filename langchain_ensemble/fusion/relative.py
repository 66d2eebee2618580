"""Relative representations: each token told by its similarity to the anchor tokens (DeePEn).

``R = softmax(100 c / |c|)`` over the anchors, where ``c`` is the cosine of the token's input
embedding with each anchor's (arXiv:2404.12715; reference formulae). Knows embeddings and ids; must
not know members, text or the search.

Where we depart from the authors' code and why: cosines are one GEMM of normalised float32 blocks
(theirs broadcasts blocks of 1000 x 1000 x D in the checkpoint's dtype: hundreds of times slower,
gigabytes of temporaries, and cosines off by up to 8e-3 in bf16). Where ``[V, A]`` is too large to
keep, rows are made when they are asked for (``rows.py``): the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

MULTIPLIER = 100.0
"""Factor before the softmax over anchors (the authors' "temperature")."""

MEAN_ROWS = 2048
"""So many evenly spaced rows make the mean row where no table is kept."""

_BLOCK_CELLS = 1 << 24  # 64 MiB of float32 a block


def relative_representation(
    embeddings: Tensor,
    anchor_ids: Tensor,
    *,
    multiplier: float = MULTIPLIER,
    block: int | None = None,
    dtype: torch.dtype = torch.float32,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Describe every token by its similarity to the anchor tokens.

    Args:
        embeddings: Input embeddings, [V, D], any float dtype.
        anchor_ids: [A] int64, the anchors' ids in this vocabulary.
        multiplier: Factor before the softmax.
        block: Rows at a time; None: as many as fit 64 MiB. The values do not depend on it.
        dtype: What the result is kept in; computing is float32.
        on_progress: Called with (rows done, rows).

    Returns:
        [V, A] of ``dtype``; rows sum to 1. A zero embedding gives the uniform row.
    """
    anchors = unit_rows(embeddings[anchor_ids])
    total = len(embeddings)
    block = block or max(1, _BLOCK_CELLS // len(anchors))
    relative = torch.empty(total, len(anchors), dtype=dtype, device=embeddings.device)
    for start in range(0, total, block):
        rows = embeddings[start : start + block]
        relative[start : start + block] = relative_rows(rows, anchors, multiplier)
        if on_progress is not None:
            on_progress(min(start + block, total), total)
    return relative


def to_relative(probs: Tensor, relative: Tensor) -> Tensor:
    """Map a next-token distribution into the relative space.

    Args:
        probs: One member's probabilities, [N, V], float32.
        relative: Its relative representation, [V, A].

    Returns:
        [N, A] float32; rows sum to what ``probs`` sums to.
    """
    return probs @ relative.float()


def unit_rows(embeddings: Tensor) -> Tensor:
    """Float32 rows of length 1; a zero row stays zero."""
    return functional.normalize(embeddings.float(), dim=-1, eps=1e-8)


def relative_rows(embeddings: Tensor, anchors: Tensor, multiplier: float = MULTIPLIER) -> Tensor:
    """Relative representation of a few tokens.

    Args:
        embeddings: [R, D] input embeddings of the tokens.
        anchors: [A, D] normalised anchor embeddings, float32.
        multiplier: Factor before the softmax.

    Returns:
        [R, A] float32, computed in one buffer.
    """
    return sharpened(unit_rows(embeddings) @ anchors.T, multiplier)


def sharpened(cosines: Tensor, multiplier: float = MULTIPLIER) -> Tensor:
    """From cosines with the anchors to rows that sum to 1, in the same buffer.

    Args:
        cosines: [R, A] float32; overwritten.
        multiplier: Factor before the softmax.

    Returns:
        [R, A].
    """
    rows = cosines.mul_(multiplier / cosines.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    rows.sub_(rows.amax(-1, keepdim=True)).exp_()
    return rows.div_(rows.sum(-1, keepdim=True))


def mean_row(
    embeddings: Tensor,
    anchor_ids: Tensor,
    token_ids: Tensor,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Mean row over at most :data:`MEAN_ROWS` evenly spaced tokens.

    An anchor's row peaks at itself. Over a whole vocabulary these peaks are even; in a sample only
    the sampled anchors would have one, so their mass is spread evenly instead.

    Args:
        embeddings: [V, D].
        anchor_ids: [A].
        token_ids: [K] ids that are keys, ascending.
        on_progress: Called with (rows done, rows).

    Returns:
        [A] float32.
    """
    anchors = unit_rows(embeddings[anchor_ids])
    picked = evenly(token_ids, MEAN_ROWS)
    place = torch.full((len(embeddings),), -1, device=embeddings.device)
    if len(picked) < len(token_ids):
        place[anchor_ids] = torch.arange(len(anchors), device=embeddings.device)
    block = max(1, _BLOCK_CELLS // len(anchors))
    total = torch.zeros(len(anchors), device=anchors.device)
    for start in range(0, len(picked), block):
        ids = picked[start : start + block]
        rows = relative_rows(embeddings[ids], anchors)
        own = place[ids]
        peaked = (own >= 0).nonzero()[:, 0]
        total += rows[peaked, own[peaked]].sum() / len(anchors)
        rows[peaked, own[peaked]] = 0.0
        total += rows.sum(0)
        if on_progress is not None:
            on_progress(min(start + block, len(picked)), len(picked))
    return total / len(picked)


def evenly(ids: Tensor, count: int) -> Tensor:
    """``count`` entries of ``ids`` [K], evenly spaced, in order; all where there are fewer."""
    if len(ids) <= count:
        return ids
    place = torch.arange(count, device=ids.device) * len(ids) // count
    return ids[place]
