"""Plain averaging in main's token space, with an honest treatment of different tokenizers.

Every auxiliary's distribution is first told in main's keys, then the arithmetic mean
``sum_i w_i q_i`` or the geometric mean ``prod_i q_i^w_i / Z`` is taken; END is one key of it.

How an auxiliary's distribution is told in main's keys:

* A key ``v`` that both have is *spread* over ``v`` and the main keys that the auxiliary lacks and
  whose longest prefix among its keys is ``v``, in proportion to main's own probabilities: the
  auxiliary says "it goes on with v" and abstains on how v ends. Without this, an auxiliary that
  spells finer outweighs main's words with its single characters.
* A key that main lacks gives its mass to its longest main prefix. Where there is none, the mass is
  dropped and the row renormalised; :meth:`AverageFuser.dropped` tells how much that was.

This is our baseline, no paper's: on equal vocabularies it is the ordinary (geometric) mean of
next-token distributions. One group index a pair is built once; a step takes two scatter-adds.
The geometric mean floors what a member cannot spell at the smallest normal float32, so scores stay
finite; what main masks stays masked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, unknown_name
from langchain_ensemble.fusion.base import (
    Alignment,
    FusedDistribution,
    FusionContext,
    MemberDistribution,
    MemberKeys,
    Needs,
    Told,
)
from langchain_ensemble.fusion.voices import (
    LOG_TINY,
    TINY,
    dense,
    finite_score,
    voices,
)

logger = logging.getLogger(__name__)

_MEANS = ("geometric", "arithmetic")


@dataclass(frozen=True)
class Average:
    """Weighted mean in main's token space.

    Attributes:
        mean: ``"geometric"`` (default) or ``"arithmetic"``.
    """

    mean: Literal["geometric", "arithmetic"] = "geometric"
    name: ClassVar[str] = "average"
    tells: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the name of the mean."""
        if self.mean not in _MEANS:
            raise ConfigError(unknown_name("mean of fusion='average'", self.mean, _MEANS))

    @property
    def needs(self) -> Needs:
        """Best ids are enough; the rest is then laid evenly over what is not listed."""
        return Needs()

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, without the name."""
        return {"mean": self.mean}

    def prepare(self, context: FusionContext) -> AverageFuser:
        """Build one group index a pair; says what of a member main has no part of."""
        fuser = AverageFuser(self, context.alignment)
        for keys, count in fuser.lost():
            logger.warning(
                "fusion='average': main %r has not even the first byte of %d of member %r's %d "
                "keys; their probability is dropped and the row renormalised",
                context.alignment.main.name,
                count,
                keys.name,
                int(keys.own.sum()),
            )
        return fuser


class _Retelling:
    """One auxiliary's distribution told in main's keys."""

    def __init__(self, main: MemberKeys, other: MemberKeys) -> None:
        """Turn the two key tables into the group index and the fold index."""
        self.width = width = main.width
        device = main.own.device
        keys = torch.arange(width, device=device)
        # Group of a main key: the auxiliary's own key, else its longest prefix; as a main id.
        falls_on = torch.where(
            other.from_union[:width] >= 0, other.from_union[:width], other.longest_prefix[:width]
        )
        head = torch.where(falls_on >= 0, other.to_union[falls_on.clamp_min(0)], width)
        grouped = main.own & (falls_on >= 0) & (head < width)
        head = torch.where(grouped, head, width)  # [V] main id of v; V: in no group
        self.head_id = torch.where(grouped, falls_on, 0)  # [V] the auxiliary's id of v
        self.grouped = grouped.float()
        size = torch.bincount(head, minlength=width + 1)
        # [C] keys that share v with others, the number of their group, 1 where one is v itself
        self.crowded = (grouped & (size[head] > 1)).nonzero()[:, 0]
        heads, self.group = torch.unique(head[self.crowded], return_inverse=True)
        self.num_groups = len(heads)
        self.is_head = (head[self.crowded] == self.crowded).float()
        # Keys that main lacks fall on their longest main prefix, or off the edge.
        ids = other.own.nonzero()[:, 0]
        foreign = ids[other.to_union[ids] >= width]
        target = main.longest_prefix[other.to_union[foreign]]
        self.folded, self.fold_to = foreign[target >= 0], target[target >= 0]
        self.lost = foreign[target < 0]
        same_ids = (torch.where(grouped, falls_on, -1) == keys) | ~main.own
        self.same = (
            not len(self.crowded)
            and width == other.width
            and not len(foreign)
            and bool(same_ids.all())
        )

    def __call__(
        self, main: Tensor, other: MemberDistribution, forbidden: Tensor, *, logs: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tell a dense distribution in main's keys.

        In float64, so that a group of which main thinks next to nothing still has its proportions,
        and what is left of an auxiliary that says next to nothing of main's keys too.

        Args:
            main: [N, V] main's log-probabilities.
            other: The auxiliary's.
            forbidden: [N, V] bool, keys that get nothing.
            logs: Whether logarithms are wanted.

        Returns:
            Probabilities [N, V] and of END [N], which sum to 1, or their logarithms; [N] bool, rows
            in which there is nothing to tell.
        """
        logprobs, end = other.logprobs, other.end
        if self.same:
            logprobs = logprobs.masked_fill(forbidden, -torch.inf)
            total = torch.logaddexp(logprobs.logsumexp(-1), end)
            silent = total == -torch.inf
            base = total.masked_fill(silent, 0.0)
            told, last = logprobs - base[:, None], end - base
            return (told, last, silent) if logs else (told.exp(), last.exp(), silent)
        exact = torch.float32 if main.device.type == "mps" else torch.float64
        probs, last = logprobs.to(exact).exp(), end.to(exact).exp()
        told = probs.index_select(-1, self.head_id) * self.grouped
        if len(self.crowded):
            spread = told.index_select(-1, self.crowded) * self._share(main, exact)
            told.index_copy_(-1, self.crowded, spread)
        told.index_add_(-1, self.fold_to, probs.index_select(-1, self.folded))
        told.masked_fill_(forbidden, 0.0)
        total = told.sum(-1) + last
        silent = total == 0
        whole = total.masked_fill(silent, 1.0)
        told, last = told / whole[:, None], last / whole
        if logs:
            told, last = told.log(), last.log()
        return told.float(), last.float(), silent

    def _share(self, main: Tensor, dtype: torch.dtype) -> Tensor:
        """Main's probability of each crowded key within its group, [N, C].

        Where main says nothing of a group, all of it stays on v.
        """
        own = main.index_select(-1, self.crowded).to(dtype).exp()
        total = own.new_zeros(len(own), self.num_groups).index_add_(-1, self.group, own)
        total = total.index_select(-1, self.group)
        return torch.where(total > 0, own / total, self.is_head)


class AverageFuser:
    """:class:`Average` made ready for one ensemble."""

    fixed: ClassVar[bool] = True

    def __init__(self, fusion: Average, alignment: Alignment) -> None:
        """Build the retellings."""
        self._fusion = fusion
        self._alignment = alignment
        self._retell = [_Retelling(alignment.main, other) for other in alignment.members[1:]]
        self._equal = fusion.mean == "geometric" and all(retell.same for retell in self._retell)

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Fuse one row per position; see :class:`~langchain_ensemble.fusion.base.Fuser`."""
        return self.telling(distributions, weights)[0]

    def telling(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> tuple[FusedDistribution, Told]:
        """As a call, with every member's distribution in main's keys."""
        run, space = dense(distributions, self._alignment), self._alignment.space
        if self._equal and all(one.abstain is None for one in run):
            keys, ends = [one.logprobs for one in run], [one.end for one in run]
            fused = FusedDistribution(space, *geometric_mean(keys, ends, weights.float()))
            return fused, Told(keys, ends, logs=True)
        arithmetic = self._fusion.mean == "arithmetic"
        told, ends, silent = self._told(run, logs=not arithmetic)
        share = voices(run, weights, silent)
        mean = _arithmetic if arithmetic else _geometric
        fused = FusedDistribution(space, *mean(told, ends, share))
        return fused, Told(told, ends, logs=not arithmetic)

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of one union key a row, finite where main can say it."""
        got = self(distributions, weights).logprob_of(targets)
        return finite_score(got, distributions[0], targets, self._alignment)

    def lost(self) -> list[tuple[MemberKeys, int]]:
        """Members with keys that nothing of main's begins, and how many those are."""
        others = self._alignment.members[1:]
        counts = [len(retell.lost) for retell in self._retell]
        return [(keys, count) for keys, count in zip(others, counts, strict=True) if count]

    def dropped(self, distributions: Sequence[MemberDistribution | None]) -> Tensor:
        """Share of each member's mass on keys of which main has not even the first part.

        Returns:
            [N, M] probabilities; main's column is 0.
        """
        main, *others = dense(distributions, self._alignment)
        lost = [
            one.logprobs[:, retell.lost].exp().sum(-1)
            for retell, one in zip(self._retell, others, strict=True)
        ]
        return torch.stack([torch.zeros_like(main.end), *lost], -1)

    def _told(
        self, run: Sequence[MemberDistribution], *, logs: bool
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Every member in main's keys; what an auxiliary says is renormalised over them.

        Returns:
            Probabilities or their logarithms, [N, V] and of END [N] of each member, and [N, M]
            bool, who has no mass left.
        """
        main, end = run[0].logprobs, run[0].end
        forbidden = main == -torch.inf  # [N, V]
        if run[0].abstain is not None:  # main masks nothing where it says nothing
            speaks = ~forbidden.all(-1, keepdim=True)
            forbidden = forbidden & speaks | ~self._alignment.main.own
        told, ends = ([main], [end]) if logs else ([main.exp()], [end.exp()])
        silent = [torch.zeros_like(end, dtype=torch.bool)]
        for retell, one in zip(self._retell, run[1:], strict=True):
            keys, last, nothing = retell(main, one, forbidden, logs=logs)
            told.append(keys)
            ends.append(last)
            silent.append(nothing)
        return told, ends, torch.stack(silent, -1)


def _arithmetic(
    told: Sequence[Tensor], ends: Sequence[Tensor], share: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted sum of probabilities as log-probabilities, [N, V] and [N]."""
    fused, end = told[0] * share[:, :1], ends[0] * share[:, 0]
    for i, (probs, last) in enumerate(zip(told[1:], ends[1:], strict=True), start=1):
        fused.addcmul_(probs, share[:, i, None])
        end = end + last * share[:, i]
    total = (fused.sum(-1) + end).clamp_min(TINY).log()
    return fused.log() - total[:, None], end.log() - total


def _geometric(
    told: Sequence[Tensor], ends: Sequence[Tensor], share: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted sum of log-probabilities, floored where a member has none, [N, V] and [N]."""
    columns = [torch.cat([t, e[:, None]], -1) for t, e in zip(told, ends, strict=True)]
    fused, nobody = torch.zeros_like(columns[0]), torch.ones_like(columns[0], dtype=torch.bool)
    for i, column in enumerate(columns):
        part = share[:, i, None]
        fused.addcmul_(_floored(column), part)
        nobody &= (column == -torch.inf) | (part == 0)
    fused.masked_fill_(nobody, -torch.inf)  # nobody can say it
    total = fused.logsumexp(-1, keepdim=True)
    fused = fused - total.masked_fill(total == -torch.inf, 0.0)
    return fused[:, :-1], fused[:, -1]


def _floored(logprobs: Tensor) -> Tensor:
    """The smallest normal float32 for what a member has no probability for; NaN stays NaN."""
    return logprobs.nan_to_num(torch.nan, torch.inf, LOG_TINY)


def geometric_mean(
    logprobs: Sequence[Tensor], ends: Sequence[Tensor], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted geometric mean of distributions over the same keys, in a third of the passes.

    What :class:`AverageFuser` gives where all vocabularies are main's and nobody abstains.

    Args:
        logprobs: [N, V] of each member, main first.
        ends: [N] log-probability of END of each.
        weights: [N, M] float32, rows sum to 1.

    Returns:
        [N, V] and [N], normalised; what main masks, and what nobody with a weight can say, is -inf.
    """
    nowhere = logprobs[0] == -torch.inf  # [N, V]
    nobody, silent = weights[:, :1] == 0, torch.ones_like(ends[0], dtype=torch.bool)
    fused, end = torch.zeros_like(logprobs[0]), torch.zeros_like(ends[0])
    for i, (one, own_end) in enumerate(zip(logprobs, ends, strict=True)):
        share = weights[:, i, None]  # [N, 1]
        fused.addcmul_(_floored(one), share)
        end = end + _floored(own_end) * share[:, 0]
        if i:
            nobody = (one == -torch.inf).logical_or_(share == 0).logical_and_(nobody)
        silent = silent & ((own_end == -torch.inf) | (share[:, 0] == 0))
    fused.masked_fill_(nowhere.logical_or_(nobody), -torch.inf)
    end = end.masked_fill(silent, -torch.inf)
    total = torch.logaddexp(fused.logsumexp(-1), end)
    total = total.masked_fill(total == -torch.inf, 0.0)
    return fused - total[:, None], end - total
