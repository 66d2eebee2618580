"""Who has a say in a row, and the smallest probability that anyone is given.

Shared by all fusions; knows tensors only. A member that abstains (no mass left, or an incomplete
character) gives its weight to the others in proportion; if all abstain, main speaks alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import Alignment, MemberDistribution

TINY = torch.finfo(torch.float32).tiny
"""Smallest normal float32, about 1.2e-38."""

LOG_TINY = math.log(TINY)
"""Floor of a log-probability that must stay finite, about -87.3 nats."""


def voices(
    distributions: Sequence[MemberDistribution], weights: Tensor, silent: Tensor | None = None
) -> Tensor:
    """Redistribute the weight of members that abstain.

    Args:
        distributions: One a member, main first.
        weights: [N, M], rows sum to 1.
        silent: [N, M] bool, further members without a say.

    Returns:
        [N, M] float32, rows sum to 1.
    """
    columns = [d.abstain for d in distributions]
    if silent is None and all(column is None for column in columns):
        return weights.float()
    if any(column is not None for column in columns):
        nobody = torch.zeros(len(weights), dtype=torch.bool, device=weights.device)
        found = [nobody if column is None else column.to(weights.device) for column in columns]
        mute = torch.stack(found, -1)
        silent = mute if silent is None else mute | silent
    assert silent is not None  # made above where it was not given
    kept = weights.float().masked_fill(silent, 0.0)
    total = kept.sum(-1, keepdim=True)
    share = kept / total.clamp_min(TINY)
    share[:, :1] += total == 0  # nobody is left: main alone
    return share


def present(
    distributions: Sequence[MemberDistribution | None], alignment: Alignment
) -> list[MemberDistribution]:
    """Put an abstaining distribution, which takes no memory, where a member was not run."""
    run = [one for one in distributions if one is not None]
    if len(run) == len(distributions):
        return run
    main = distributions[0]
    assert main is not None  # main is always run
    rows = len(main.end)
    nothing = main.end.new_full((1, 1), -torch.inf)
    mute = torch.ones(rows, dtype=torch.bool, device=main.end.device)
    return [
        MemberDistribution(
            keys.space, nothing.expand(rows, keys.width), nothing[0].expand(rows), abstain=mute
        )
        if one is None
        else one
        for one, keys in zip(distributions, alignment.members, strict=True)
    ]


def dense(
    distributions: Sequence[MemberDistribution | None], alignment: Alignment
) -> list[MemberDistribution]:
    """Every member's dense form."""
    run = present(distributions, alignment)
    return [one.to_dense(keys) for one, keys in zip(run, alignment.members, strict=True)]


def weighted_log_sum(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``log sum_i w_i exp(part_i)`` that ignores members of weight 0.

    Args:
        parts: One [N, ...] of log-probabilities a member.
        weights: [N, M].

    Returns:
        [N, ...]; -inf where nobody with a say has mass.
    """
    total: Tensor | None = None
    for i, part in enumerate(parts):
        share = weights[:, i].log()  # -inf for weight 0
        share = share.reshape(-1, *[1] * (part.dim() - 1))
        term = part + share
        total = term if total is None else torch.logaddexp(total, term)
    assert total is not None
    return total


def finite_score(
    score: Tensor, main: MemberDistribution | None, targets: Tensor, alignment: Alignment
) -> Tensor:
    """Floor a score at the smallest normal float32 wherever main can say the key.

    Args:
        score: [N] log-probabilities.
        main: Main's distribution.
        targets: [N] union keys.
        alignment: The members' keys.

    Returns:
        [N], -inf only where main cannot say the key or masks it.
    """
    assert main is not None  # main is always run
    width = alignment.main.width
    own = torch.where(targets < width, targets, -1)[:, None]
    can = main.logprobs_at(own, alignment.main)[:, 0] > -torch.inf
    return torch.where(can, score.clamp_min(LOG_TINY), score)
