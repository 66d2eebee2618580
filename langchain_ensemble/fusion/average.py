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
)
from langchain_ensemble.fusion.voices import (
    LOG_TINY,
    dense,
    finite_score,
    voices,
    weighted_log_sum,
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
        keys = torch.arange(width, device=main.own.device)
        # Group of a main key: the auxiliary's own key, else its longest prefix; as a main id.
        falls_on = torch.where(
            other.from_union[:width] >= 0, other.from_union[:width], other.longest_prefix[:width]
        )
        head = torch.where(falls_on >= 0, other.to_union[falls_on.clamp_min(0)], width)
        grouped = main.own & (falls_on >= 0) & (head < width)
        self.head = torch.where(grouped, head, width)  # [V] main id of v; V: in no group
        self.head_id = torch.where(grouped, falls_on, -1)  # [V] the auxiliary's id of v
        size = torch.bincount(self.head, minlength=width + 1)
        self.alone = size[self.head] == 1  # [V] a group of one needs no spreading
        self.is_head = self.head == keys
        self.nothing_spreads = bool(self.alone[grouped].all())  # as on equal vocabularies
        # Keys that main lacks fall on their longest main prefix, or off the edge (column V).
        ids = other.own.nonzero()[:, 0]
        foreign = other.to_union[ids] >= width
        self.folded = ids[foreign]
        target = main.longest_prefix[other.to_union[self.folded]]
        self.fold_to = torch.where(target >= 0, target, width)
        same_ids = (self.head_id == keys) | ~main.own
        self.same = (
            self.nothing_spreads
            and width == other.width
            and not len(self.folded)
            and bool(same_ids.all())
        )

    def __call__(self, main: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Tell ``other`` in main's keys.

        Args:
            main: [N, V] main's log-probabilities.
            other: [N, V_i] the auxiliary's.

        Returns:
            Log-mass on main's keys [N, V] (not renormalised), and what fell off the edge [N].
        """
        if self.same:  # equal vocabularies: nothing to tell
            return other, other.new_zeros(len(other))
        width = main.shape[-1]
        spread = other[:, self.head_id.clamp_min(0)] + self._share(main)
        spread = torch.where(self.head_id >= 0, spread, -torch.inf)
        folded = self._fold(other)
        return torch.logaddexp(spread, folded[:, :width]), folded[:, width].exp()

    def _fold(self, other: Tensor) -> Tensor:
        """Log of what each main key gets of keys that main lacks, [N, V + 1]; -inf: nothing."""
        rows, ids = len(other), self.folded
        fold_to = self.fold_to.expand(rows, -1)
        best = other.new_full((rows, self.width + 1), -torch.inf)
        best = best.scatter_reduce_(-1, fold_to, other[:, ids], "amax")
        base = best.masked_fill(best == -torch.inf, 0.0)
        total = torch.zeros_like(best).index_add_(
            -1, self.fold_to, (other[:, ids] - base[:, self.fold_to]).exp()
        )
        return torch.where(best == -torch.inf, best, base + total.log())

    def _share(self, main: Tensor) -> Tensor:
        """Log of main's probability of each key within its group, [N, V] or 0 where all are 1.

        Relative to each group's best key: a group that main finds as good as impossible still has
        its proportions.
        """
        if self.nothing_spreads:
            return main.new_zeros(())
        rows, width = main.shape
        head = self.head.expand(rows, -1)
        best = main.new_full((rows, width + 1), -torch.inf)
        best = best.scatter_reduce_(-1, head, main, "amax")[:, self.head]
        nobody = best == -torch.inf  # main says nothing of the group: all of it stays on v
        relative = main - best.masked_fill(nobody, 0.0)
        total = main.new_zeros(rows, width + 1).index_add_(-1, self.head, relative.exp())
        share = torch.where(self.alone, 0.0, relative - total[:, self.head].log())
        return torch.where(nobody, torch.where(self.is_head, 0.0, -torch.inf), share)


class AverageFuser:
    """:class:`Average` made ready for one ensemble."""

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
        run = dense(distributions, self._alignment)
        if self._equal and all(one.abstain is None for one in run):
            fused, end = geometric_mean(
                [one.logprobs for one in run], [one.end for one in run], weights.float()
            )
            return FusedDistribution(self._alignment.space, fused, end)
        told, ends, _, silent = self._told(run)
        share = voices(run, weights, silent)
        columns = [torch.cat([t, e[:, None]], -1) for t, e in zip(told, ends, strict=True)]
        columns = [  # what a silent member holds is never read
            torch.where(share[:, i, None] > 0, c, -torch.inf) for i, c in enumerate(columns)
        ]
        if self._fusion.mean == "arithmetic":
            fused = weighted_log_sum(columns, share)
        else:
            fused = self._geometric(columns, share)
        total = fused.logsumexp(-1, keepdim=True)
        fused = fused - total.masked_fill(total == -torch.inf, 0.0)
        return FusedDistribution(self._alignment.space, fused[:, :-1], fused[:, -1])

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of one union key a row, finite where main can say it."""
        got = self(distributions, weights).logprob_of(targets)
        return finite_score(got, distributions[0], targets, self._alignment)

    def lost(self) -> list[tuple[MemberKeys, int]]:
        """Members with keys that nothing of main's begins, and how many those are."""
        others = self._alignment.members[1:]
        counts = [int((retell.fold_to == retell.width).sum()) for retell in self._retell]
        return [(keys, count) for keys, count in zip(others, counts, strict=True) if count]

    def dropped(self, distributions: Sequence[MemberDistribution | None]) -> Tensor:
        """Share of each member's mass on keys of which main has not even the first part.

        Returns:
            [N, M] probabilities; main's column is 0.
        """
        return self._told(dense(distributions, self._alignment))[2]

    def _told(
        self, run: Sequence[MemberDistribution]
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Every member in main's keys: log-probs, END, dropped share, members with no mass left."""
        main = run[0].logprobs
        speaks = (main > -torch.inf).any(-1, keepdim=True)
        allowed = self._alignment.main.own & ((main > -torch.inf) | ~speaks)  # [N, V]
        told, ends = [main], [run[0].end]
        dropped = [torch.zeros_like(run[0].end)]
        silent = [torch.zeros_like(run[0].end, dtype=torch.bool)]
        for retell, one in zip(self._retell, run[1:], strict=True):
            keys, lost = retell(main, one.logprobs)
            keys = torch.where(allowed, keys, -torch.inf)
            total = torch.logaddexp(keys.logsumexp(-1), one.end)  # [N]
            base = total.masked_fill(total == -torch.inf, 0.0)
            told.append(keys - base[:, None])
            ends.append(one.end - base)
            dropped.append(lost)
            silent.append(total == -torch.inf)
        return told, ends, torch.stack(dropped, -1), torch.stack(silent, -1)

    def _geometric(self, columns: Sequence[Tensor], share: Tensor) -> Tensor:
        """Weighted sum of log-probabilities, floored where a member has none, [N, V + 1]."""
        best, fused = columns[0], torch.zeros_like(columns[0])
        for column in columns[1:]:
            best = torch.maximum(best, column)
        for i, column in enumerate(columns):
            part = column.nan_to_num(torch.nan, torch.inf, LOG_TINY)  # -inf alone is floored
            fused = fused + part * share[:, i, None]
        return fused.masked_fill(best == -torch.inf, -torch.inf)  # nobody can say it


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
        fused.addcmul_(one.clamp_min(LOG_TINY), share)  # NaN stays NaN
        end = end + own_end.clamp_min(LOG_TINY) * share[:, 0]
        if i:
            nobody = (one == -torch.inf).logical_or_(share == 0).logical_and_(nobody)
        silent = silent & ((own_end == -torch.inf) | (share[:, 0] == 0))
    fused.masked_fill_(nowhere.logical_or_(nobody), -torch.inf)
    end = end.masked_fill(silent, -torch.inf)
    total = torch.logaddexp(fused.logsumexp(-1), end)
    total = total.masked_fill(total == -torch.inf, 0.0)
    return fused - total[:, None], end - total
