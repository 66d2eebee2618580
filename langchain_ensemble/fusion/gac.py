"""GaC: the weighted mean over the union of all keys (Yu et al., EMNLP 2024).

Equation: ``P(u) = sum_i w_i p_i(u)`` over every key ``u`` of any member, and over END. A key that a
member lacks has probability 0 from it. Knows index tensors only; never a token's text.

Where we depart from the authors' code and why:

* Keys are bytes, not strings with ``Ġ`` or ``▁``: punctuation, newlines and non-ASCII tokens of
  different tokenizer families meet in one column (theirs splits ``.`` and ``,`` in two).
* END is one column; theirs has one for every spelling of an end token, so stop mass is split.
* One index-add a member instead of a sparse matrix product; batches and any weights work, gated or
  not. The gate compares main's largest probability itself, END included, with the threshold.

Known weakness: members that spell finer pull the answer to their spelling. A member that says
"in" + "side" gives all its mass to "in", where a coarser member spreads it over "inside", "into",
"in"; the finer spelling wins. On two small models the mean key fell from 2.8 bytes to 1.1.
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
    Needs,
)
from langchain_ensemble.fusion.voices import dense, finite_score, voices


@dataclass(frozen=True)
class Gac:
    """Weighted mean over the union vocabulary.

    Attributes:
        threshold: Members are fused only where main's largest probability is at most this;
            elsewhere main is alone. None: everywhere (the authors' example uses 1.0, the same).
    """

    threshold: float | None = None
    name: ClassVar[str] = "gac"

    def __post_init__(self) -> None:
        """Check the threshold."""
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(
                f"fusion='gac' has threshold={self.threshold!r}; it is a probability in [0, 1], or "
                "None to fuse at every step"
            )

    @property
    def needs(self) -> Needs:
        """Best ids are enough."""
        return Needs()

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, without the name."""
        return {"threshold": self.threshold}

    def prepare(self, context: FusionContext) -> GacFuser:
        """Choose the columns; nothing is expensive here."""
        return GacFuser(self, context.alignment)


class GacFuser:
    """:class:`Gac` made ready for one ensemble."""

    fixed: ClassVar[bool] = True

    def __init__(self, fusion: Gac, alignment: Alignment) -> None:
        """Keep each member's keyed ids and their columns."""
        self._fusion = fusion
        self._alignment = alignment
        self._ids = [keys.own.nonzero()[:, 0] for keys in alignment.members]
        self._columns = [
            keys.to_union[ids] for keys, ids in zip(alignment.members, self._ids, strict=True)
        ]

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Fuse one row per position; see :class:`~langchain_ensemble.fusion.base.Fuser`."""
        run = dense(distributions, self._alignment)
        share = self._gated(run[0], voices(run, weights))
        rows = len(share)
        fused = share.new_zeros(rows, self._alignment.union_size)
        end = share.new_zeros(rows)
        for i, one in enumerate(run):
            spoken = share[:, i] > 0  # what a silent member holds is never read
            part = one.logprobs[:, self._ids[i]].exp() * share[:, i, None]
            fused.index_add_(-1, self._columns[i], torch.where(spoken[:, None], part, 0.0))
            end = end + torch.where(spoken, one.end.exp() * share[:, i], 0.0)
        total = (fused.sum(-1) + end).log()
        total = total.masked_fill(total == -torch.inf, 0.0)
        return FusedDistribution(
            self._alignment.space, fused.log() - total[:, None], end.log() - total
        )

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of one union key a row, floored where main can say it."""
        got = self(distributions, weights).logprob_of(targets)
        return finite_score(got, distributions[0], targets, self._alignment)

    def _gated(self, main: MemberDistribution, share: Tensor) -> Tensor:
        """Give main the whole weight in rows where it is surer than the threshold."""
        if self._fusion.threshold is None:
            return share
        surest = torch.maximum(main.logprobs.amax(-1), main.end).exp()
        sure = surest > self._fusion.threshold  # an abstaining main is never sure
        alone = torch.zeros_like(share)
        alone[:, 0] = 1.0
        return torch.where(sure[:, None], alone, share)
