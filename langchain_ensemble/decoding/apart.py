"""How far the voices of a step are apart: one number in [0, 1] that no tokenizer can fake.

The generalised Jensen-Shannon divergence of the voices' distributions under their weights,

    JS(p_1 .. p_M; w) = sum_i w_i KL(p_i || sum_j w_j p_j),

over its largest value, the entropy of ``w``: 0 where all say the same, 1 where no two have anything
in common. Voices with other tokens cannot be compared key by key: one says "Par", the other
"Paris", and both mean the same city. So what each says is first read as the longest key that *all*
voices have, which can only bring them together (data processing), never apart; over one vocabulary
nothing changes. Where a voice stands inside a token of its own, it says little about what main is
asked: the divergence is lowered by the share of the auxiliaries' weight that open boundaries took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from langchain_ensemble.decoding.fusing import keys_of
from langchain_ensemble.decoding.protocols import Voice
from langchain_ensemble.fusion.base import MemberDistribution, MemberKeys

UNKNOWN = -1.0
"""Stands for "nothing to compare" where only numbers can stand."""


@dataclass(frozen=True)
class Outcomes:
    """What all voices can say, as columns; END is the last but one, what nobody shares the last.

    Attributes:
        places: [V_i] of each voice on its own device, the column of each of its ids.
        size: How many columns there are.
    """

    places: tuple[Tensor, ...]
    size: int


def divergence(masses: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Generalised Jensen-Shannon divergence over the entropy of its weights.

    Args:
        masses: [N, C] of each voice, rows sum to 1 (those of weight 0 may be anything finite).
        weights: [N, voices], rows sum to 1.

    Returns:
        [N] float32 in [0, 1]; :data:`UNKNOWN` where fewer than two voices have weight.
    """
    shares = [weights[:, i : i + 1] for i in range(len(masses))]
    mix = torch.stack([w * p for w, p in zip(shares, masses, strict=True)]).sum(0)
    mix = mix.clamp_min(torch.finfo(mix.dtype).tiny)
    apart = weights.new_zeros(len(weights))
    for i, mass in enumerate(masses):
        apart = apart + weights[:, i] * torch.special.xlogy(mass, mass / mix).sum(-1)
    most = torch.special.entr(weights).sum(-1)
    share = (apart / most.clamp_min(torch.finfo(most.dtype).tiny)).clamp(0.0, 1.0)
    return torch.where((weights > 0).sum(-1) > 1, share, UNKNOWN)


def disagreement(
    voices: Sequence[Voice],
    distributions: Sequence[MemberDistribution],
    weights: Tensor,
    boundary: Sequence[Tensor | None],
) -> Tensor:
    """How far some voices are apart in N rows.

    Args:
        voices: Main first.
        distributions: One a voice, dense, each on its voice's device.
        weights: [N, voices] on main's device, behind abstention and open boundaries.
        boundary: c_i [N] of each voice, None where it is 1.

    Returns:
        [N] float32 in [0, 1] on main's device; :data:`UNKNOWN` where fewer than two have a say.
    """
    outcomes = outcomes_of([keys_of(voice)[0] for voice in voices])
    masses = [
        _mass(one, place, outcomes.size).to(weights.device)
        for one, place in zip(distributions, outcomes.places, strict=True)
    ]
    found = divergence(masses, weights)
    if all(c is None for c in boundary):
        return found
    others = range(1, len(voices))
    left = weights[:, 1:].sum(-1)
    whole = torch.zeros_like(left)
    for i in others:
        c = boundary[i]
        whole = whole + (weights[:, i] if c is None else _undone(weights[:, i], c))
    kept = (left / whole.clamp_min(torch.finfo(whole.dtype).tiny)).clamp(0.0, 1.0)
    return torch.where(found < 0, found, found * kept)


def _undone(weights: Tensor, c: Tensor) -> Tensor:
    """Weights before they were multiplied by c."""
    c = c.to(weights.device)
    return torch.where(c > 0, weights / c.clamp_min(torch.finfo(c.dtype).tiny), weights)


def _mass(one: MemberDistribution, places: Tensor, size: int) -> Tensor:
    """[N, size] what a voice gives each outcome; 0 where it abstains."""
    said = one.logprobs.exp()
    mass = said.new_zeros(len(said), size).index_add_(1, places, said)
    mass[:, -2] += one.end.exp()
    return mass if one.abstain is None else mass.masked_fill_(one.abstain[:, None], 0.0)


_made: WeakKeyDictionary[MemberKeys, dict[tuple[int, ...], Outcomes]] = WeakKeyDictionary()


def outcomes_of(keys: Sequence[MemberKeys]) -> Outcomes:
    """What some voices can all say; made once for the voices of an ensemble.

    Args:
        keys: One a voice, main's first, each on its voice's device.

    Returns:
        The outcomes.
    """
    others = tuple(map(id, keys[1:]))  # of one alignment: they live as long as main's
    known = _made.setdefault(keys[0], {})
    if others not in known:
        known[others] = _outcomes(keys)
    return known[others]


def _outcomes(keys: Sequence[MemberKeys]) -> Outcomes:
    home = keys[0].from_union.device
    union = len(keys[0].from_union)
    steps = []
    for one in keys:  # each key as the member's longest prefix of it, both in the union
        own, prefix = one.to_union.to(home), one.longest_prefix.to(home)
        steps.append(torch.where(prefix < 0, -1, own[prefix.clamp_min(0)]))
    shared = torch.arange(union, device=home)
    while True:
        shorter = shared
        for step in steps:
            shorter = torch.where(shorter < 0, -1, step[shorter.clamp_min(0)])
        if torch.equal(shorter, shared):
            break
        shared = shorter
    names, column = torch.unique(shared[shared >= 0], return_inverse=True)
    size = len(names) + 2
    columns = torch.full((union + 1,), size - 1, dtype=torch.long, device=home)
    columns[:-1][shared >= 0] = column
    return Outcomes(tuple(_columns_of(one, columns) for one in keys), size)


def _columns_of(keys: MemberKeys, columns: Tensor) -> Tensor:
    """[V_i] the column of each id, on the member's device; ids without a key have the last."""
    own = keys.to_union.to(columns.device)
    nothing = len(columns) - 1
    return columns[torch.where(own < 0, nothing, own)].to(keys.to_union.device)
