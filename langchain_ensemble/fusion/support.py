"""A distribution's support: its best tokens, and where they stand in the relative space.

The support is the smallest set of tokens that holds ``support_mass``, at most ``support_cap``;
everything else is the tail. The next tokens' own rows describe the tail better than the mean row
alone. Shapes are fixed (``cap + NEXT_TOKENS`` slots): nothing here is read on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_ensemble.fusion.rows import Rows

NEXT_TOKENS = 64
"""Tokens after the support whose own rows are read, not the mean row."""


@dataclass(frozen=True)
class SearchSettings:
    """What a fuser needs to know of :class:`~langchain_ensemble.fusion.deepen.Deepen`.

    Attributes:
        steps: Adam steps.
        rate: Rate of the first step.
        support_mass: Mass of a support.
        support_cap: Tokens of a support at most.
    """

    steps: int
    rate: float
    support_mass: float
    support_cap: int

    @property
    def most(self) -> int:
        """Rows that one position may read."""
        return self.support_cap + NEXT_TOKENS


@dataclass(frozen=True)
class Support:
    """The best tokens of N rows, best first; k slots, of which each row uses some.

    Attributes:
        ids: [N, k].
        logprobs: [N, k].
        kept: [N, k] bool, slots inside each row's own support.
        read: [N, k] bool, those and the next tokens after them.
        near: [N, n] slots of the next tokens.
        near_probs: [N, n] their probabilities; 0 past the last slot.
        unread: [N, 1] mass of everything that is not read.
    """

    ids: Tensor
    logprobs: Tensor
    kept: Tensor
    read: Tensor
    near: Tensor
    near_probs: Tensor
    unread: Tensor

    @property
    def size(self) -> Tensor:
        """Slots that the widest row's support takes, a 0-dim tensor."""
        return self.kept.sum(-1).amax()

    def relative(self, rows: Rows, size: int) -> Tensor:
        """Where the distribution stands, [N, A]; sums to its mass."""
        probs = torch.where(self.kept, self.logprobs, -torch.inf)[:, :size].exp()
        return rows.weigh(self.ids[:, :size], probs) + self.tail(rows)

    def tail(self, rows: Rows) -> Tensor:
        """Where the tail stands, [N, A]; sums to its mass."""
        near = rows.weigh(self.ids.gather(-1, self.near), self.near_probs)
        return torch.addcmul(near, self.unread, rows.mean)


def support_of(logprobs: Tensor, mass: Tensor, settings: SearchSettings) -> Support:
    """Find the support of each row.

    Args:
        logprobs: [N, V], -inf where a token is not to be said.
        mass: [N] what the rows sum to.
        settings: Mass and cap.

    Returns:
        The supports; the first slot of a row is always kept.
    """
    k = min(settings.most, logprobs.shape[-1])
    top, ids = logprobs.topk(k, dim=-1)  # [N, k]
    probs = top.exp()
    total = mass[:, None]
    before = probs.cumsum(-1) - probs
    slot = torch.arange(k, device=top.device)
    kept = (before < settings.support_mass * total) & (slot < settings.support_cap)
    kept &= top > -torch.inf
    kept[:, 0] = True
    count = kept.sum(-1, keepdim=True)
    read = slot < count + NEXT_TOKENS
    next_slot = count + torch.arange(min(NEXT_TOKENS, k), device=top.device)  # [N, n]
    near = next_slot.clamp_max(k - 1)
    near_probs = probs.gather(-1, near).masked_fill(next_slot >= k, 0.0)
    unread = (total - probs.masked_fill(~read, 0.0).sum(-1, keepdim=True)).clamp_min(0.0)
    return Support(ids, top, kept, read, near, near_probs, unread)
