"""How far the voices of a step are apart: one number in [0, 1] that no tokenizer can fake.

The generalised Jensen-Shannon divergence of the voices' distributions under their weights,

    JS(p_1 .. p_M; w) = sum_i w_i KL(p_i || sum_j w_j p_j),

over its largest value, the entropy of ``w``: 0 where all say the same, 1 where no two have anything
in common. Voices with other tokens cannot be compared key by key: one says "Par", the other
"Paris", and both mean the same city. So what each says is first read as the longest key that *all*
voices have, which can only bring them together (data processing), never apart; over one vocabulary
nothing changes. Where a voice stands inside a token of its own, it says little about what is asked:
with c_i the probability that it ends a token there, k = sum_i w_i c_i,

    disagreement = k JS(p_1 .. p_M; w c / k) / H(w),

still in [0, 1]: a voice drawn by its weight ends a token with probability k, which leaves at most
H(w) to be told about which voice it was.
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


def divergence(masses: Sequence[Tensor], weights: Tensor, ends: Tensor | None = None) -> Tensor:
    """Generalised Jensen-Shannon divergence over the entropy of its weights.

    Args:
        masses: [N, C] of each voice, rows sum to 1 (those of weight 0 may be anything finite).
        weights: [N, voices], rows sum to 1.
        ends: [N, voices] probability that each voice ends a token here; None: 1.

    Returns:
        [N] float32 in [0, 1]; :data:`UNKNOWN` where fewer than two voices have weight.
    """
    left = weights if ends is None else weights * ends
    tiny = torch.finfo(left.dtype).tiny
    kept = left.sum(-1)
    shares = left / kept.clamp_min(tiny)[:, None]
    mix = torch.stack([shares[:, i : i + 1] * p for i, p in enumerate(masses)]).sum(0)
    mix = mix.clamp_min(torch.finfo(mix.dtype).tiny)
    apart = torch.zeros_like(kept)
    for i, mass in enumerate(masses):
        apart = apart + shares[:, i] * torch.special.xlogy(mass, mass / mix).sum(-1)
    most = torch.special.entr(weights).sum(-1).clamp_min(tiny)
    share = (kept * apart / most).clamp(0.0, 1.0)
    return torch.where((left > 0).sum(-1) > 1, share, UNKNOWN)


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
        weights: [N, voices] on main's device, behind abstention and open boundaries; voices that
            are followed along their paths have theirs whole.
        boundary: c_i [N] of each voice, None where it is 1.

    Returns:
        [N] float32 in [0, 1] on main's device; :data:`UNKNOWN` where fewer than two have a say.
    """
    outcomes = outcomes_of([keys_of(voice)[0] for voice in voices])
    masses = [
        _mass(one, place, outcomes.size).to(weights.device)
        for one, place in zip(distributions, outcomes.places, strict=True)
    ]
    if all(c is None for c in boundary):
        return divergence(masses, weights)
    one = weights.new_ones(len(weights))
    ends = torch.stack([one if c is None else c.to(weights.device) for c in boundary], -1)
    if distributions[0].paths is None:
        weights = _before(weights, ends)
    return divergence(masses, weights, ends)


def _before(weights: Tensor, ends: Tensor) -> Tensor:
    """Weights before open boundaries moved some of the auxiliaries' to main."""
    others, ends = weights[:, 1:], ends[:, 1:]
    whole = torch.where(ends > 0, others / ends.clamp_min(torch.finfo(ends.dtype).tiny), others)
    main = (1.0 - whole.sum(-1, keepdim=True)).clamp_min(0.0)
    whole = torch.cat([main, whole], -1)
    return whole / whole.sum(-1, keepdim=True)


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
