"""Accept a drafted key, or draw another: the fused distribution either way.

Where a proposal ``x`` was drawn from a known ``q`` over the same keys, it is accepted with
probability ``min(1, r(x) / q(x))`` under the fused ``r``, else the key is drawn from
``norm([r - q]+)`` (Leviathan et al., ICML 2023, arXiv:2211.17192). That accepts more than drawing
from ``r`` and comparing, but what a seed gives would depend on the drafts; so it is for requests
without a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_ensemble.decoding.choose import draw, drawn, uniforms
from langchain_ensemble.decoding.protocols import Sampling


@dataclass(frozen=True)
class Proposed:
    """A row's drafted key, and what it was drawn from.

    Attributes:
        key: Main's id.
        probs: [V + 1] probabilities over main's ids, END last.
    """

    key: int
    probs: Tensor


def draw_or_accept(
    scores: Tensor,
    named: Tensor | None,
    width: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator] | None,
    proposed: Sequence[Proposed | None],
) -> Tensor:
    """Choose a column of every row.

    Args:
        scores: [N, C] log-probabilities: ``width`` keys, END, and maybe more.
        named: [N, width] union keys of the columns, -1 in empty ones; None: column j is key j.
        width: Columns that are keys.
        sampling: The request's filters.
        generators: One a row; None is greedy.
        proposed: One a row, None where nothing was drawn from a known distribution; empty: nowhere.

    Returns:
        [N] int64.
    """
    if generators is None or not any(proposed):
        return draw(scores, sampling, generators)
    empty = torch.zeros(len(scores), 0, dtype=torch.long, device=scores.device)
    for processor in sampling.filters:
        scores = processor(empty, scores)
    probs = torch.softmax(scores.float(), -1)
    rows = [
        torch.zeros_like(probs[b])
        if one is None
        else _over_columns(one.probs, None if named is None else named[b], width, probs[b])
        for b, one in enumerate(proposed)
    ]
    keys = torch.tensor([-1 if one is None else one.key for one in proposed], device=probs.device)
    column = keys[:, None]
    if named is not None:
        hit = (named == column) & (column >= 0)
        column = torch.where(hit.any(-1), hit.float().argmax(-1), -1)[:, None]
    else:
        column = torch.where(column < width, column, -1)
    first, second = uniforms(generators), uniforms(generators)
    return accept(probs, torch.stack(rows), column[:, 0], first.to(probs.device), second)


def accept(probs: Tensor, known: Tensor, column: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The rule itself.

    Args:
        probs: [N, C] what is to be drawn from, ``r``.
        known: [N, C] what the proposals were drawn from, ``q``; zeros where nothing is proposed.
        column: [N] the proposals, -1: none.
        first: [N] numbers in [0, 1) that decide whether a proposal is accepted.
        second: [N] numbers in [0, 1) that draw another key.

    Returns:
        [N] int64.
    """
    place = column.clamp_min(0)[:, None]
    wanted, had = probs.gather(1, place)[:, 0], known.gather(1, place)[:, 0]
    good = (column >= 0) & (first * had < wanted)
    left = (probs - known).clamp_min(0.0)
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, probs)  # q = r: nothing is rejected
    return torch.where(good, column, drawn(left, second))


def _over_columns(probs: Tensor, named: Tensor | None, width: int, like: Tensor) -> Tensor:
    """[C] a proposal's distribution over the fused columns."""
    keys, end = probs[:-1].to(like.device), probs[-1:].to(like.device)
    over = torch.zeros_like(like)
    if named is None:
        shared = min(width, len(keys))
        over[:shared] = keys[:shared]
    else:
        inside = (named >= 0) & (named < len(keys))
        over[:width] = torch.where(inside, keys[named.clamp(0, len(keys) - 1)], 0.0)
    over[width] = end[0]
    return over
