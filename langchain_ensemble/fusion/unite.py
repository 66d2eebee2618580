"""UniTE: the union of every member's top-k keys (Yao et al., ICLR 2025, arXiv:2410.03777).

Candidates ``U`` are each member's ``union_k`` best keys, and END. Member i's probability of a
candidate is its own probability of that key; a key it lacks falls on ``v``, its longest key that is
a proper prefix. ``p_i(v)`` is counted once and divided over ``v`` (if a candidate) and the
candidates that fall on it, in proportion to the other members' weighted probabilities of them. Then
``P(u) = sum_i w_i P_i(u) / (sum_{u' in U} P_i(u') + e_i)``. Tensors only, fixed slots, any batch.

Where we depart from the authors' code and why:

* Keys are bytes. Theirs compares strings (a newline becomes the two characters ``/n``, accents and
  CJK never meet, end tokens of other families are scored as ``<``).
* A key that a member lacks falls on its longest prefix, not on the first piece that the tokenizer
  happens to give (often the bare space), and that probability is shared, not copied to every key
  (theirs counts it again and again, or replaces it by the *logit* 0, which dominates when logits
  are negative).
* END is always a candidate, pooled over each member's end ids; theirs never stops.
* Weights are per row and member; theirs are 0.5/0.5, or 1/3 each. A member of weight 0 brings no
  candidates.
* The order of candidates is main's id order, then bytes; theirs is a Python set's hash order. Ties
  at the k-th place are decided the same way.
* ``score`` is completed to a proper distribution: the union holds ``m = sum_i w_i p_i(U)``, main's
  probabilities outside it are scaled to ``1 - m``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.base import (
    Alignment,
    FusedDistribution,
    FusionContext,
    MemberDistribution,
    Needs,
    at_home,
)
from langchain_ensemble.fusion.lookup import Lookup, Stand
from langchain_ensemble.fusion.voices import (
    LOG_TINY,
    TINY,
    dense,
    finite_score,
    present,
    voices,
    weighted_log_sum,
)


@dataclass(frozen=True)
class Unite:
    """Weighted mean over the union of the members' best keys.

    Attributes:
        union_k: How many keys each member brings (the paper: 10). Not the sampling filter
            ``top_k``.
    """

    union_k: int = 10
    name: ClassVar[str] = "unite"

    def __post_init__(self) -> None:
        """Check the size."""
        if isinstance(self.union_k, bool) or not isinstance(self.union_k, int) or self.union_k < 1:
            raise ConfigError(
                f"fusion='unite' has union_k={self.union_k!r}; it must be a whole number of at "
                "least 1 (the paper uses 10)"
            )

    @property
    def needs(self) -> Needs:
        """Best ids are enough."""
        return Needs()

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, without the name."""
        return {"union_k": self.union_k}

    def prepare(self, context: FusionContext) -> UniteFuser:
        """Nothing is expensive here."""
        return UniteFuser(self, context.alignment)


@dataclass(frozen=True)
class _Union:
    """The candidates of each row, and what the members give them.

    Attributes:
        keys: [N, S] ascending union keys, ``U`` (the union's size) in empty slots.
        mass: [M, N, S] each member's probability of each candidate after sharing.
        ends: [M, N] each member's probability of END.
        counted: [M, N, S] the ids whose probability was divided over the candidates.
        share: [M, N] weights after abstention.
    """

    keys: Tensor
    mass: Tensor
    ends: Tensor
    counted: Tensor
    share: Tensor

    @property
    def inside(self) -> Tensor:
        """Each member's mass in the union, [M, N]."""
        return self.mass.sum(-1) + self.ends


class UniteFuser:
    """:class:`Unite` made ready for one ensemble."""

    fixed: ClassVar[bool] = True
    apart: ClassVar[bool] = True
    """Each member's best keys are found, and looked up, on its own device."""

    def __init__(self, fusion: Unite, alignment: Alignment) -> None:
        """Turn the keys into tables with one more entry, for slots that hold no candidate."""
        self._k = fusion.union_k
        self._alignment = alignment
        self._found = Lookup(alignment)

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Fuse one row per position; see :class:`~langchain_ensemble.fusion.base.Fuser`."""
        return self._mean(self._union(present(distributions, self._alignment), weights))

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of one union key a row, completed outside the candidates."""
        run = present(distributions, self._alignment)
        union = self._union(run, weights)
        inside = (union.share * union.inside).sum(0)
        fused = self._mean(union).logprob_of(targets)
        listed = (union.keys == targets[:, None]).any(-1)
        home = weights.device
        whole = [replace(d, logprobs=d.logprobs.to(home)) for d in dense(run, self._alignment)]
        left = [_without(one.logprobs, ids) for one, ids in zip(whole, union.counted, strict=True)]
        width = self._alignment.main.width
        outside = _without(whole[0].logprobs, torch.where(union.keys < width, union.keys, -1))
        own = torch.where(targets < width, targets, -1)[:, None]
        target = run[0].logprobs_at(own, self._alignment.main)[:, 0]
        # 1 - m is summed over what was not counted: the difference would be rounding alone.
        beyond = (
            weighted_log_sum(left, union.share.T).clamp_min(LOG_TINY)
            + target
            - outside.masked_fill(outside == -torch.inf, 0.0)
        )
        score = torch.where(listed, fused + inside.clamp_min(TINY).log(), beyond)
        return finite_score(score, run[0], targets, self._alignment)

    def _mean(self, union: _Union) -> FusedDistribution:
        """Renormalise each member over the candidates and take the weighted mean."""
        scale = union.share / union.inside.clamp_min(TINY)  # [M, N]
        fused = (union.mass * scale[:, :, None]).sum(0)  # 0 in empty slots
        end = (union.ends * scale).sum(0)
        keys = union.keys.masked_fill(union.keys == self._alignment.union_size, -1)
        return FusedDistribution(self._alignment.space, fused.log(), end.log(), keys)

    def _union(self, distributions: Sequence[MemberDistribution], weights: Tensor) -> _Union:
        """Collect the candidates of each row and divide every member's mass over them."""
        home, found = weights.device, self._found
        share = voices(distributions, weights).T  # [M, N]
        mute = (share <= 0)[:, :, None]
        best = [at_home(found.best(i, one, self._k), home) for i, one in enumerate(distributions)]
        named = torch.stack(best).masked_fill(mute, self._alignment.union_size)  # [M, N, K]
        candidates = self._distinct(named.transpose(0, 1).flatten(1))  # [N, S]
        stand = found.stand(candidates)
        said = found.said(distributions, stand).masked_fill(mute, -torch.inf)  # [M, N, S]
        spoken = said + stand.own_key + share.log()[:, :, None]
        mass = said.exp() * _divide(stand, _others(spoken))
        ends = torch.stack([at_home(one.end, home) for one in distributions]).exp()
        return _Union(candidates, mass, ends.masked_fill(mute[:, :, 0], 0.0), stand.at, share)

    def _distinct(self, keys: Tensor) -> Tensor:
        """Sort each row ascending and empty the repeats, which go to the end."""
        keys = keys.sort(-1).values
        repeat = keys[:, 1:] == keys[:, :-1]
        keys[:, 1:].masked_fill_(repeat, self._alignment.union_size)
        return keys.sort(-1).values


def _without(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Log-mass [N] of all but some ids [N, S]; -1 is none."""
    padded = torch.nn.functional.pad(logprobs, (0, 1), value=-torch.inf)
    return padded.scatter(-1, torch.where(ids < 0, logprobs.shape[-1], ids), -torch.inf).logsumexp(
        -1
    )


def _others(spoken: Tensor) -> Tensor:
    """Log-sum of all members' but one's own, [M, N, S] -> [M, N, S]."""
    if len(spoken) == 2:
        return spoken.flip(0)
    own = torch.eye(len(spoken), dtype=torch.bool, device=spoken.device)
    return spoken[None].masked_fill(own[:, :, None, None], -torch.inf).logsumexp(1)


def _divide(stand: Stand, others: Tensor) -> Tensor:
    """Divide each of a member's keys over the candidates that stand on it.

    In proportion to what the others say of them. Where they say nothing: all of it to the key
    itself if it is a candidate, else evenly.

    Args:
        stand: The members' ids under each candidate, [M, N, S].
        others: [M, N, S] log of the other members' weighted probabilities of the candidates.

    Returns:
        [M, N, S] shares; those of one key sum to 1.
    """
    together = stand.at[..., :, None] == stand.at[..., None, :]  # empty slots too: they say nothing
    part = torch.maximum(others, stand.floor)
    best = torch.where(together, part[..., None, :], -torch.inf).amax(-1)
    part = (part - best).exp()
    return part / torch.where(together, part[..., None, :], 0.0).sum(-1)
