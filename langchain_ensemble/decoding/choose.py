"""Fuse, then choose: effective weights of a row, processors, the draw.

Order (SEMANTICS 15): fuse → repetition penalty → temperature → filters → draw. The processors
are transformers' own, handed in as callables over ``(ids [N, T], scores [N, S])``. All rows are
drawn at once: each row's own generator gives one number on the host, and its place in the row's
cumulative probabilities is looked up on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.decoding.protocols import Sampling
from langchain_ensemble.fusion.base import MemberKeys


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
    kept = weights.masked_fill(abstain, 0.0)
    total = kept.sum(-1, keepdim=True)
    kept = kept / total.clamp_min(1e-30)
    shifted = discounted(kept, boundary)  # nobody left: main
    return torch.where(abstain[:, :1] & (total > 0), kept, shifted)


def discounted(weights: Tensor, boundary: Tensor) -> Tensor:
    """Weights after open boundaries, where nobody abstains; as :func:`effective_weights`."""
    others = weights[:, 1:] * boundary[:, 1:]
    return torch.cat([1.0 - others.sum(-1, keepdim=True), others], -1)


def penalised(
    scores: Tensor,
    named: Tensor | None,
    keys: MemberKeys,
    ids: Sequence[Sequence[int]],
    sampling: Sampling,
) -> Tensor:
    """Scores after the repetition penalty over main's ids.

    The penalty touches keys that main has. Sparse columns are spread out, penalised by
    transformers' processor and gathered back.

    Args:
        scores: [N, S + 1] log-probabilities of the fused keys, END last.
        named: [N, S] union keys of the columns, -1 in empty ones; None: column ``j`` is key ``j``.
        keys: Main's keys.
        ids: Main's ids of prompt and answer, a row each.
        sampling: The request's processors.

    Returns:
        [N, S + 1] float32.
    """
    if sampling.penalty is None:
        return scores
    size = scores.shape[-1] - 1 if named is None else len(keys.from_union)
    own = keys.representative[padded(ids, scores.device)]  # [N, T]
    columns = torch.where((own >= 0) & (own < size), own, size + 1)  # what has no key: the rest
    if named is None:
        dense = torch.nn.functional.pad(scores, (0, 1))
        return sampling.penalty(columns, dense)[:, :-1]
    dense = scores.new_full((len(scores), size + 2), -torch.inf)
    places = torch.where(named < 0, size + 1, named)
    dense.scatter_(1, places, scores[:, :-1])
    back = sampling.penalty(columns, dense).gather(1, places)
    return torch.cat([torch.where(named < 0, -torch.inf, back), scores[:, -1:]], -1)


def padded(ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids of some rows as one tensor [N, T]; shorter rows repeat their first id.

    Args:
        ids: One row or more of one id or more.
        device: Where to.
    """
    longest = max(len(row) for row in ids)
    return torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in ids], device=device)


def draw(
    scores: Tensor, sampling: Sampling, generators: Sequence[torch.Generator] | None
) -> Tensor:
    """Choose a column of every row.

    Args:
        scores: [N, S] logits or log-probabilities.
        sampling: The request's filters.
        generators: One a row, on the CPU; None is greedy: the first maximum.

    Returns:
        [N] int64.
    """
    if generators is None:
        return scores.argmax(-1)
    empty = torch.zeros(len(scores), 0, dtype=torch.long, device=scores.device)
    for processor in sampling.filters:
        scores = processor(empty, scores)
    return drawn(torch.softmax(scores.float(), -1), uniforms(generators))


def uniforms(generators: Sequence[torch.Generator]) -> Tensor:
    """One number in [0, 1) of every row's own generator.

    Args:
        generators: On the CPU.

    Returns:
        [N] float64 on the CPU.
    """
    return torch.cat([torch.rand(1, generator=own, dtype=torch.float64) for own in generators])


def drawn(probs: Tensor, numbers: Tensor) -> Tensor:
    """The first column of each row at which the cumulative probability exceeds a number.

    Args:
        probs: [N, S] not negative, of any sum; NaN counts as 0 (the caller sees a NaN
            log-probability and says whose).
        numbers: [N] in [0, 1), on any device.

    Returns:
        [N] int64: a column with a probability, 0 where none has any.
    """
    exact = torch.float32 if probs.device.type == "mps" else torch.float64
    whole = probs.nan_to_num(0.0).to(exact).cumsum(-1)
    total = whole[:, -1:]
    number = numbers.to(exact).to(probs.device)[:, None] * total
    last = (whole < total).sum(-1)  # number * total may round up to total
    return torch.minimum((whole <= number).sum(-1), last)


def generators_for(seed: int | None, rows: int, n: int) -> list[torch.Generator]:
    """One local generator a row, seeded (seed, n): the same alone and in any batch.

    Args:
        seed: The request's seed; None draws a fresh one for every row.
        rows: Number of rows.
        n: Answers per prompt.

    Returns:
        The generators, on the CPU whatever the members' devices are; no global random state is
        read or written when a seed is given.
    """
    made = []
    for row in range(rows):
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed((seed + 0x9E3779B97F4A7C15 * (row % n)) % 2**63)
        made.append(generator)
    return made
