"""The rules of gates as pure functions over rows: when main is sure, when members agree.

Tensors only: no request, no voice, no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import FusedDistribution, MemberDistribution, TokenSpace

ENDS = 0.5
"""c_i from which on a member ends a token where main does."""

FLAT = 0.5
"""Best probability below which a fused row is sharpened."""

STRONG = 0.1
"""Probability above which a key gets that of the keys it begins; nine keys have it at most."""


def sure(main: MemberDistribution, below: float) -> Tensor:
    """Where main's largest probability is not below a bound, [N] bool; nowhere if it abstains."""
    return torch.maximum(main.logprobs.amax(-1), main.end).exp() >= below


def agreement(
    distributions: Sequence[MemberDistribution], weights: Tensor, ranks: Sequence[Tensor],
    rank: Tensor, after: Tensor,
) -> Tensor:  # fmt: skip
    """How much the members together give to what main would say, and to all that starts so.

    ``sum_k w_k m_k(t)``: t main's best key or END, ``m_k(t)`` the mass of keys that start with t.

    Args:
        distributions: One a voice, main first, each on its own device.
        weights: [N, voices].
        ranks: [V_i] of each voice, rank of each id in the union's byte order, -1: no key.
        rank: [U] rank of each union key.
        after: [U] the rank after the last key that starts with a union key.

    Returns:
        [N] float32 on main's device.
    """
    main, home = distributions[0], weights.device
    best, key = main.logprobs.max(-1)
    ends = main.end > best
    low, high = rank[key][:, None], after[key][:, None]
    together = torch.zeros_like(main.end)
    for column, (one, own) in enumerate(zip(distributions, ranks, strict=True)):
        place = own.device
        inside = (own >= low.to(place)) & (own < high.to(place))
        mass = torch.where(inside, one.logprobs.exp(), 0.0).sum(-1).to(home)
        mass = torch.where(ends, one.end.exp().to(home), mass)
        spoken = weights[:, column] > 0  # what a silent member holds is never read
        together = together + torch.where(spoken, mass * weights[:, column], 0.0)
    return together


def apart(
    distributions: Sequence[MemberDistribution], boundary: Sequence[Tensor | None], like: Tensor
) -> Tensor:
    """Where some member is inside a token of its own, [N] bool; one without a say is not asked.

    Args:
        distributions: One a voice.
        boundary: c_i [N] a voice, None where it is 1.
        like: [N] on main's device.
    """
    found = torch.zeros_like(like, dtype=torch.bool)
    for one, ends in zip(distributions, boundary, strict=True):
        if ends is None:
            continue
        inside = ends < ENDS
        if one.abstain is not None:
            inside = inside & ~one.abstain.to(inside.device)
        found = found | inside.to(found.device)
    return found


def sharpened(
    fused: FusedDistribution, asked: Tensor, rank: Tensor, after: Tensor
) -> FusedDistribution:
    """Give strong keys what the keys that they begin have, where no key is likely.

    ``P'(t) = P(t) + sum of P(u), u != t starts with t``, for ``P(t) > 0.1``; renormalised with END.

    Args:
        fused: What the members say together, [N, S].
        asked: [N] bool, rows that may be sharpened; only those without a probability of 1/2 are.
        rank: [U] rank of each union key in byte order.
        after: [U] the rank after the last key that starts with it.

    Returns:
        The distribution; other rows are as they were, bit by bit.
    """
    flat = asked & (torch.maximum(fused.logprobs.amax(-1), fused.end).exp() < FLAT)
    if on_host(flat) and not bool(flat.any()):
        return fused
    named, size = fused.keys, fused.logprobs.shape[-1]
    ranks = rank[:size] if named is None else torch.where(named < 0, -1, rank[named.clamp_min(0)])
    probs = fused.logprobs.exp()
    strong, columns = probs.topk(min(9, size), -1)
    keys = columns if named is None else named.gather(1, columns).clamp_min(0)
    low, high = rank[keys], after[keys]
    got = probs.clone()
    for j in range(strong.shape[-1]):
        inside = (ranks >= low[:, j, None]) & (ranks < high[:, j, None])
        whole = torch.where(inside, probs, 0.0).sum(-1)
        value = torch.where(strong[:, j] > STRONG, whole, strong[:, j])
        got = got.scatter(1, columns[:, j, None], value[:, None])
    end = fused.end.exp()
    total = (got.sum(-1) + end).log()
    logprobs = torch.where(flat[:, None], got.log() - total[:, None], fused.logprobs)
    return replace(fused, logprobs=logprobs, end=torch.where(flat, fused.end - total, fused.end))


def on_host(rows: Tensor) -> bool:
    """Whether the host can look at numbers without waiting for a device."""
    return rows.device.type == "cpu"


def of_main(main: MemberDistribution) -> FusedDistribution:
    """Main's own distribution over its keys and END, as something to choose from."""
    space = TokenSpace("union", main.logprobs.shape[-1])
    return FusedDistribution(space, main.logprobs, main.end)


def mixed(
    main: MemberDistribution, fused: FusedDistribution, open_rows: Tensor
) -> FusedDistribution:
    """What the members say together in some rows, main's own distribution in the others.

    Args:
        main: Main's, N rows.
        fused: Of all N rows, or of the open ones.
        open_rows: [N] bool, or [n] which rows the n of ``fused`` are.

    Returns:
        N rows over union keys; rows keep their values bit by bit.
    """
    keys, own = fused.logprobs, main.logprobs
    if fused.keys is not None:  # column j becomes key j
        size = fused.space.width
        places = torch.where(fused.keys < 0, size, fused.keys)
        keys = keys.new_full((len(keys), size + 1), -torch.inf).scatter(1, places, keys)[:, :size]
    width = max(keys.shape[-1], own.shape[-1])
    keys = torch.nn.functional.pad(keys, (0, width - keys.shape[-1]), value=-torch.inf)
    own = torch.nn.functional.pad(own, (0, width - own.shape[-1]), value=-torch.inf)
    if open_rows.dtype == torch.bool:
        logprobs = torch.where(open_rows[:, None], keys, own)
        end = torch.where(open_rows, fused.end, main.end)
    else:
        logprobs = own.index_copy(0, open_rows, keys)
        end = main.end.index_copy(0, open_rows, fused.end)
    return FusedDistribution(TokenSpace("union", width), logprobs, end)


def rows_of(distribution: MemberDistribution, rows: Tensor | slice) -> MemberDistribution:
    """Some rows of a distribution.

    Args:
        distribution: The distribution.
        rows: Numbers of the rows, on any device, or a range of them.
    """
    own: dict[str, Any] = {
        name: value[rows.to(value.device) if torch.is_tensor(rows) else rows]
        for name, value in vars(distribution).items()
        if torch.is_tensor(value)
    }
    return replace(distribution, **own)
