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
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.base import (
    Alignment,
    FusedDistribution,
    FusionContext,
    MemberDistribution,
    MemberKeys,
    Needs,
)
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
        mass: One [N, S] a member, its probability of each candidate after sharing.
        ends: One [N] a member, its probability of END.
        counted: One [N, S] a member, the ids whose probability was divided over the candidates.
        share: [N, M] weights after abstention.
    """

    keys: Tensor
    mass: list[Tensor]
    ends: list[Tensor]
    counted: list[Tensor]
    share: Tensor

    def inside(self, i: int) -> Tensor:
        """Member ``i``'s mass in the union, [N]."""
        return self.mass[i].sum(-1) + self.ends[i]


class UniteFuser:
    """:class:`Unite` made ready for one ensemble."""

    def __init__(self, fusion: Unite, alignment: Alignment) -> None:
        """Keep the index tensors."""
        self._k = fusion.union_k
        self._alignment = alignment

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
        inside = sum(
            (union.share[:, i] * union.inside(i) for i in range(len(union.mass))),
            torch.zeros_like(union.ends[0]),
        )
        fused = self._mean(union).logprob_of(targets)
        listed = (union.keys == targets[:, None]).any(-1)
        whole = dense(run, self._alignment)
        left = [_without(one.logprobs, ids) for one, ids in zip(whole, union.counted, strict=True)]
        width = self._alignment.main.width
        outside = _without(whole[0].logprobs, torch.where(union.keys < width, union.keys, -1))
        own = torch.where(targets < width, targets, -1)[:, None]
        target = run[0].logprobs_at(own, self._alignment.main)[:, 0]
        # 1 - m is summed over what was not counted: the difference would be rounding alone.
        beyond = (
            weighted_log_sum(left, union.share).clamp_min(LOG_TINY)
            + target
            - outside.masked_fill(outside == -torch.inf, 0.0)
        )
        score = torch.where(listed, fused + inside.clamp_min(TINY).log(), beyond)
        return finite_score(score, run[0], targets, self._alignment)

    def _mean(self, union: _Union) -> FusedDistribution:
        """Renormalise each member over the candidates and take the weighted mean."""
        fused = torch.zeros_like(union.mass[0])
        end = torch.zeros_like(union.ends[0])
        for i, mass in enumerate(union.mass):
            scale = union.share[:, i] / union.inside(i).clamp_min(TINY)
            fused = fused + mass * scale[:, None]
            end = end + union.ends[i] * scale
        empty = union.keys == self._alignment.union_size
        logprobs = fused.log().masked_fill(empty, -torch.inf)
        keys = union.keys.masked_fill(empty, -1)
        return FusedDistribution(self._alignment.space, logprobs, end.log(), keys)

    def _union(self, distributions: Sequence[MemberDistribution], weights: Tensor) -> _Union:
        """Collect the candidates of each row and divide every member's mass over them."""
        share = voices(distributions, weights)
        members = self._alignment.members
        found = [
            self._best(one, keys, share[:, i] > 0)
            for i, (one, keys) in enumerate(zip(distributions, members, strict=True))
        ]
        candidates = self._distinct(torch.cat(found, -1))  # [N, S]
        direct, falls_on = [], []
        for i, (one, keys) in enumerate(zip(distributions, members, strict=True)):
            ids, prefix = self._ids(candidates, keys)
            has = ids >= 0
            at = torch.where(has, ids, prefix)
            said = one.logprobs_at(at, keys)
            said = torch.where(share[:, i, None] > 0, said, -torch.inf)
            direct.append((said, has))
            falls_on.append(at)
        spoken = [
            torch.where(has, said, -torch.inf) + share[:, i, None].log()
            for i, (said, has) in enumerate(direct)
        ]
        mass = []
        for i, (said, has) in enumerate(direct):
            others = [s for j, s in enumerate(spoken) if j != i]
            said_by_others = (
                torch.stack(others).logsumexp(0) if others else torch.full_like(said, -torch.inf)
            )
            mass.append(said.exp() * _divide(falls_on[i], has, said_by_others))
        ends = [
            torch.where(share[:, i] > 0, one.end.exp(), 0.0) for i, one in enumerate(distributions)
        ]
        return _Union(candidates, mass, ends, falls_on, share)

    def _best(self, one: MemberDistribution, keys: MemberKeys, speaks: Tensor) -> Tensor:
        """Union keys of the ``k`` best, ties by union key; empty slots hold the union's size."""
        size = self._alignment.union_size
        logprobs = one.logprobs
        if one.ids is None:
            names = keys.to_union.expand_as(logprobs)
        else:
            names = torch.where(one.ids >= 0, keys.to_union[one.ids.clamp_min(0)], -1)
        k = min(self._k, logprobs.shape[-1])
        top, where = logprobs.topk(k, dim=-1)
        last = top[:, -1:]
        above = top > last
        # Those that tie for the last places come in the order of their union keys.
        order = torch.where(logprobs == last, -names.float(), -torch.inf).topk(k, dim=-1).indices
        slot = torch.arange(k, device=top.device) - above.sum(-1, keepdim=True)
        chosen = torch.where(above, where, order.gather(-1, slot.clamp_min(0)))
        good = (logprobs.gather(-1, chosen) > -torch.inf) & speaks[:, None]
        return torch.where(good, names.gather(-1, chosen), size)

    def _distinct(self, keys: Tensor) -> Tensor:
        """Sort each row ascending and empty the repeats, which go to the end."""
        keys = keys.sort(-1).values
        repeat = torch.zeros_like(keys, dtype=torch.bool)
        repeat[:, 1:] = keys[:, 1:] == keys[:, :-1]
        return keys.masked_fill(repeat, self._alignment.union_size).sort(-1).values

    def _ids(self, candidates: Tensor, keys: MemberKeys) -> tuple[Tensor, Tensor]:
        """A member's id of each candidate, and its longest prefix; -1 where there is none."""
        full = candidates < self._alignment.union_size
        at = torch.where(full, candidates, 0)
        own = torch.where(full, keys.from_union[at], -1)
        return own, torch.where(full, keys.longest_prefix[at], -1)


def _without(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Log-mass [N] of all but some ids [N, S]; -1 is none."""
    padded = torch.nn.functional.pad(logprobs, (0, 1), value=-torch.inf)
    return padded.scatter(-1, torch.where(ids < 0, logprobs.shape[-1], ids), -torch.inf).logsumexp(
        -1
    )


def _divide(falls_on: Tensor, has: Tensor, others: Tensor) -> Tensor:
    """Divide each of a member's keys over the candidates that stand on it.

    Args:
        falls_on: [N, S] the member's id under each candidate, -1 where it has none.
        has: [N, S] bool, the candidate is that key itself.
        others: [N, S] log of the other members' weighted probabilities of the candidates.

    Returns:
        [N, S] shares; those of one key sum to 1.
    """
    together = (falls_on[:, :, None] == falls_on[:, None, :]) & (falls_on >= 0)[:, None, :]
    total = others[:, None, :].masked_fill(~together, -torch.inf).logsumexp(-1)  # [N, S]
    silent = total == -torch.inf
    itself = (together & has[:, None, :]).any(-1)  # the key is a candidate
    even = 1.0 / together.sum(-1).clamp_min(1)
    nobody = torch.where(itself, has.to(others.dtype), even.to(others.dtype))
    share = torch.where(silent, nobody, (others - total.masked_fill(silent, 0.0)).exp())
    return torch.where(falls_on >= 0, share, 0.0)
