"""Weights by the answer so far: who said it well counts more in what follows.

Dynamic model averaging (Raftery, Karny and Ettler, Technometrics 2010), tempered: of a row's keys
``x_1 ... x_t`` with base weights ``b_i``

    w_i  ~  b_i exp(RATE * z_i),      z_i = sum over s <= t of KEEP^(t-s) log P_i(x_s)

``P_i(x)`` is what the fusion would give with all of member ``i``'s say: ``c_i q_i(x) + (1 - c_i)
q_main(x)``, ``q_i`` its distribution told in main's keys, ``c_i`` the open boundary. A member
without a say in a step is counted as main, so that it neither gains nor loses. No forward is added,
and the weights of a key never depend on the key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import Told

RATE = 0.15
"""Of a nat of evidence; 1 is Bayes' rule, which ends with one member."""

KEEP = 0.97
"""Of the evidence so far, from one key to the next."""

FLOOR = math.log(torch.finfo(torch.float32).tiny)
"""Nats that a key can cost a member at most."""


def by_regard(base: Sequence[float], regard: Sequence[float]) -> tuple[float, ...]:
    """Weights of the next key of a row.

    Args:
        base: The request's weights, one a voice.
        regard: ``z`` of each voice; empty: nothing was said yet.

    Returns:
        One weight a voice, sum 1.
    """
    if not regard:
        return tuple(base)
    best = max(regard)
    parts = [b * math.exp(RATE * (z - best)) for b, z in zip(base, regard, strict=True)]
    total = math.fsum(parts)
    return tuple(part / total for part in parts)


def noted(regard: Sequence[float], evidence: Sequence[float]) -> tuple[float, ...]:
    """``z`` of each voice after one more key; evidence may be empty: nobody was compared."""
    if not evidence:
        return tuple(regard)
    before = regard or (0.0,) * len(evidence)
    return tuple(KEEP * z + said for z, said in zip(before, evidence, strict=True))


def evidence_of(
    told: Told, keys: Tensor, weights: Tensor, boundary: Sequence[Tensor | None]
) -> Tensor:
    """How well each voice says one key a row.

    Args:
        told: Every voice's distribution in main's keys.
        keys: [N] union keys, -1: END, on main's device.
        weights: [N, M] the weights that were used; a voice without one had no say.
        boundary: c_i [N] a voice, None where it is 1.

    Returns:
        [M, N] ``log P_i``, float32; 0 for all voices of a row in which main had no say.
    """
    said = told.of(keys)
    main = said[0]
    found = [main]
    for own, c in zip(said[1:], boundary[1:], strict=True):
        if c is not None:
            share = c.to(main.device)
            own = share * own + (1 - share) * main
        found.append(own)
    has = (weights > 0).T
    nats = torch.where(has, torch.stack(found), main).log().clamp_min(FLOOR)
    return torch.where(has[0], nats, 0.0)
