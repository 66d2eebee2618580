"""Pure means of log-distributions over one common space: bytes, keys or a vocabulary's columns.

Members come first, the space last; what lies between are rows: ``logps`` is [M, ..., S],
``weights`` is [..., M]. A member of weight 0 has no say whatever it holds. Rows of a result sum to
one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from langchain_ensemble.fusion.voices import LOG_TINY


def power_mean(logps: Tensor, weights: Tensor, power: float) -> Tensor:
    """The weighted power mean of some log-distributions, normalised.

    ``P(x) = (sum_i w_i p_i(x)^a)^(1/a) / Z`` with ``a`` the power: 1 is the arithmetic mean, 0 the
    geometric ``prod_i p_i(x)^w_i / Z``, -1 the harmonic; inf is the largest and -inf the smallest.

    Up to 0 one member's zero would be everybody's: what some member can say is then taken to be at
    least the smallest normal float32 for the others.

    Args:
        logps: [M, ..., S] natural logarithms; -inf is no mass.
        weights: [..., M], non-negative; rows sum to one.
        power: ``a``.

    Returns:
        [..., S]; a row in which nobody has mass is -inf.
    """
    share = weights.movedim(-1, 0)[..., None]  # [M, ..., 1]
    heard = logps.masked_fill(share <= 0, -torch.inf)
    best = heard.amax(0)  # [..., S]
    if power > 0:
        mixed = best if math.isinf(power) else _mean(heard, share, power)
    else:
        mixed = _with_zeros(logps, share, power).masked_fill(best == -torch.inf, -torch.inf)
    return normalised(mixed)


def _mean(logps: Tensor, share: Tensor, power: float) -> Tensor:
    """``log (sum_i w_i p_i^a)^(1/a)``."""
    return (share.log() + power * logps).logsumexp(0) / power


def _with_zeros(logps: Tensor, share: Tensor, power: float) -> Tensor:
    """A mean in which a zero would count for all."""
    floored = logps.nan_to_num(torch.nan, torch.inf, LOG_TINY).clamp_min(LOG_TINY)
    if power == 0:
        return (floored.masked_fill(share <= 0, 0.0) * share).sum(0)
    if math.isinf(power):
        return floored.masked_fill(share <= 0, torch.inf).amin(0)
    return _mean(floored.masked_fill(share <= 0, 0.0), share, power)


def normalised(logs: Tensor) -> Tensor:
    """Make rows [..., S] sum to one; a row without mass stays -inf."""
    total = logs.logsumexp(-1, keepdim=True)
    return logs - total.masked_fill(total == -torch.inf, 0.0)
