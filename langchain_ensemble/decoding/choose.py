"""Fuse, then choose: effective weights of a row, processors, the draw.

Order (SEMANTICS 15): fuse → repetition penalty → temperature → filters → draw. The processors
are transformers' own, handed in as callables over ``(ids [1, T], scores [1, S])``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.decoding.protocols import Sampling
from langchain_ensemble.fusion.base import FusedDistribution, MemberKeys


def effective_weights(weights: Tensor, abstain: Tensor, boundary: Tensor) -> Tensor:
    """Weights after abstention and open boundaries.

    An abstaining member's weight goes to the others in proportion; if all abstain, main has all.
    Then auxiliary i keeps ``w_i c_i`` and the rest goes to main, unless main abstains.

    Args:
        weights: [N, M] float32, rows sum to 1, main first.
        abstain: [N, M] bool.
        boundary: [N, M] float32, c_i (column 0 is not read).

    Returns:
        [N, M] float32, rows sum to 1.
    """
    kept = torch.where(abstain, 0.0, weights)
    total = kept.sum(-1, keepdim=True)
    alone = torch.zeros_like(kept)
    alone[:, 0] = 1.0
    kept = torch.where(total > 0, kept / total.clamp_min(1e-30), alone)
    discounted = kept * boundary
    discounted[:, 0] = 0.0
    main = 1.0 - discounted.sum(-1)
    shifted = torch.cat([main[:, None], discounted[:, 1:]], -1)
    no_aux = (discounted[:, 1:] <= 0).all(-1, keepdim=True)
    shifted = torch.where(no_aux, alone, shifted)
    return torch.where(abstain[:, :1] & (total > 0), kept, shifted)


def penalised(
    fused: FusedDistribution,
    end_column: Tensor,
    keys: MemberKeys,
    ids: Sequence[Sequence[int]],
    sampling: Sampling,
) -> Tensor:
    """Scores [N, S + 1] (END last) after the repetition penalty over main's ids.

    The penalty touches keys that main has. Sparse columns are spread out, penalised by
    transformers' processor and gathered back.

    Args:
        fused: The fused distribution.
        end_column: [N, 1] END's log-probability.
        keys: Main's keys.
        ids: Main's ids of prompt and answer, a row each.
        sampling: The request's processors.

    Returns:
        [N, S + 1] float32.
    """
    scores = torch.cat([fused.logprobs, end_column], -1)
    if sampling.penalty is None:
        return scores
    device = scores.device
    dense = scores
    if fused.keys is not None:
        dense = scores.new_full((len(scores), fused.space.width + 1), -torch.inf)
        columns = torch.where(fused.keys < 0, fused.space.width, fused.keys)
        dense.scatter_(1, columns, fused.logprobs)
    for row, seen in enumerate(ids):
        own = keys.representative[torch.tensor(list(seen), dtype=torch.long, device=device)]
        own = own[own >= 0]
        if len(own):
            dense[row] = sampling.penalty(own[None], dense[row : row + 1])[0]
    if fused.keys is None:
        return dense
    back = torch.where(fused.keys < 0, -torch.inf, dense.gather(1, columns))
    return torch.cat([back, end_column], -1)


def draw(
    scores: Tensor, sampling: Sampling, generators: Sequence[torch.Generator] | None
) -> Tensor:
    """Choose a column of every row.

    Args:
        scores: [N, S] logits or log-probabilities.
        sampling: The request's filters.
        generators: One a row; None is greedy: the first maximum.

    Returns:
        [N] int64.
    """
    if generators is None:
        return scores.argmax(-1)
    empty = torch.zeros(len(scores), 0, dtype=torch.long, device=scores.device)
    for processor in sampling.filters:
        scores = processor(empty, scores)
    probs = torch.softmax(scores.float(), -1)
    probs = torch.where(probs.isnan(), 0.0, probs)  # the caller sees a NaN logprob and says whose
    probs[:, 0] += probs.sum(-1) == 0
    drawn = [
        torch.multinomial(row, 1, generator=generator)
        for row, generator in zip(probs, generators, strict=True)
    ]
    return torch.cat(drawn)


def generators_for(
    seed: int | None, rows: int, n: int, device: torch.device
) -> list[torch.Generator]:
    """One local generator a row, seeded (seed, n): the same alone and in any batch.

    Args:
        seed: The request's seed; None draws a fresh one for every row.
        rows: Number of rows.
        n: Answers per prompt.
        device: Where the scores are.

    Returns:
        The generators; no global random state is read or written when a seed is given.
    """
    made = []
    for row in range(rows):
        generator = torch.Generator(device=device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed((seed + 0x9E3779B97F4A7C15 * (row % n)) % 2**63)
        made.append(generator)
    return made
