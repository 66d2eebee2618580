"""What the members say of a few rows, before DeePEn searches anything.

Everything of a vocabulary's size stays on its member's device; a few [N] come to main's. Knows
distributions and shares; must not know rows or the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import MemberDistribution, MemberKeys
from langchain_ensemble.fusion.voices import voices, weighted_log_sum


@dataclass(frozen=True)
class Said:
    """What the members say of N rows.

    Attributes:
        logits: [N, V] where the search starts: main's, or all its keys alike where it abstains.
        parts: [N, V_i] log-probabilities of each member's keys, on its device; None: not run.
        masses: [N] log-mass of each member's keys, on its device.
        share: [N, M] who has a say.
        keys: [N] log-mass of all keys in the fused row; with ``end`` it sums to one.
        end: [N].
        level: [N] ``logsumexp(logits)``; 0 where there is no key.
    """

    logits: Tensor
    parts: tuple[Tensor | None, ...]
    masses: tuple[Tensor, ...]
    share: Tensor
    keys: Tensor
    end: Tensor
    level: Tensor

    def rows(self, at: slice | Tensor) -> Said:
        """Some of the rows."""

        def of(one: Tensor) -> Tensor:
            return one[at if isinstance(at, slice) else at.to(one.device)]

        return Said(
            of(self.logits),
            tuple(None if part is None else of(part) for part in self.parts),
            tuple(of(mass) for mass in self.masses),
            *(of(one) for one in (self.share, self.keys, self.end, self.level)),
        )

    @property
    def start(self) -> Tensor:
        """The logits with rows without any key flat, so that no softmax sees only -inf."""
        empty = self.logits.amax(-1, keepdim=True) == -torch.inf
        return torch.where(empty, 0.0, self.logits)


def said_by(
    distributions: Sequence[MemberDistribution | None],
    weights: Tensor,
    keys: Sequence[MemberKeys],
    devices: Sequence[torch.device],
) -> Said:
    """Read the members' distributions, each on its own device.

    Args:
        distributions: One a member, main first; None: not run.
        weights: [N, M] on main's device.
        keys: Each member's keys, on its device.
        devices: Where each member is described; a distribution that lies elsewhere is moved.

    Returns:
        What they say.
    """
    first = distributions[0]
    assert first is not None  # main is always run
    home = devices[0]
    main = _moved(first, home).to_dense(keys[0])
    run = [main] + [
        None if one is None else _moved(one, device).to_dense(own)
        for one, own, device in zip(distributions[1:], keys[1:], devices[1:], strict=True)
    ]
    small = [_small(one, main) for one in run]
    share = voices(small, weights)
    logits = main.logprobs
    if main.abstain is not None:
        flat = torch.where(keys[0].own, 0.0, -torch.inf)
        logits = torch.where(main.abstain[:, None], flat, logits)
    level = logits.logsumexp(-1)
    masses = [level if main.abstain is None else level.masked_fill(main.abstain, -torch.inf)]
    masses += [
        few.end if one is None else one.logprobs.logsumexp(-1)
        for one, few in zip(run[1:], small[1:], strict=True)
    ]
    sayable = level > -torch.inf  # else nothing is left but END
    pooled = weighted_log_sum([mass.to(home) for mass in masses], share)
    pooled = torch.where(sayable, pooled, -torch.inf)
    end = weighted_log_sum([one.end for one in small], share)
    total = torch.logaddexp(pooled, end)
    total = total.masked_fill(total == -torch.inf, 0.0)
    parts = tuple(None if one is None else one.logprobs for one in run)
    level = level.masked_fill(~sayable, 0.0)
    return Said(logits, parts, tuple(masses), share, pooled - total, end - total, level)


def _moved(one: MemberDistribution, device: torch.device) -> MemberDistribution:
    """The distribution on its member's device."""
    if one.logprobs.device == device:
        return one
    tensors: dict[str, Any] = {
        name: value.to(device) for name, value in vars(one).items() if torch.is_tensor(value)
    }
    return replace(one, **tensors)


def _small(one: MemberDistribution | None, main: MemberDistribution) -> MemberDistribution:
    """What shares are made of, on main's device: END and who abstains, without a vocabulary."""
    if one is None:
        never = torch.full_like(main.end, -torch.inf)
        every = torch.ones_like(main.end, dtype=torch.bool)
        return MemberDistribution(main.space, never[:, None], never, abstain=every)
    end = one.end.to(main.end.device)
    mute = None if one.abstain is None else one.abstain.to(end.device)
    return MemberDistribution(one.space, end[:, None], end, abstain=mute)
