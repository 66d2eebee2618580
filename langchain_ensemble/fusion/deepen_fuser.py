"""DeePEn at work: members' rows into the relative space, the search, and back to main's keys.

The equations and departures stand in ``deepen.py``; the rows come from ``tables.py``, the steps
from ``search.py``. Tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import Alignment, FusedDistribution, MemberDistribution
from langchain_ensemble.fusion.relative import Rows, StoredRows, to_relative
from langchain_ensemble.fusion.search import decay, search, search_support
from langchain_ensemble.fusion.voices import TINY, dense, finite_score, voices, weighted_log_sum

CHUNK_CELLS = 1 << 26
"""Relative rows held at a time, in float32 cells (256 MiB); at least one row's support."""

NEXT_TOKENS = 64
"""Tokens after the support whose own rows are read, not the mean row."""

AGREE = 1e-5
"""Members agree with main where no anchor's share differs by more than this, relatively."""


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


class DeepenFuser:
    """:class:`~langchain_ensemble.fusion.deepen.Deepen` made ready for one ensemble."""

    def __init__(
        self, alignment: Alignment, rows: Sequence[Rows], dense: bool, settings: SearchSettings
    ) -> None:
        """Keep every member's rows.

        Args:
            alignment: The members' keys.
            rows: Each member's relative rows; tables (:class:`StoredRows`) where ``dense``.
            dense: Whether the whole vocabulary is searched.
            settings: Of the search.
        """
        self._alignment = alignment
        self._rows = list(rows)
        self.dense = dense
        self._settings = settings

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Fuse one row per position; see :class:`~langchain_ensemble.fusion.base.Fuser`."""
        run = dense(distributions, self._alignment)
        share = voices(run, weights)
        spoken = [
            torch.where(share[:, i, None] > 0, one.logprobs, -torch.inf)
            for i, one in enumerate(run)
        ]
        ends = [torch.where(share[:, i] > 0, one.end, -torch.inf) for i, one in enumerate(run)]
        logits = self._start(run[0])
        moved = self._moved(logits, spoken, share)
        keys = weighted_log_sum([part.logsumexp(-1) for part in spoken], share)  # [N] log (1 - e)
        end = weighted_log_sum(ends, share)
        sayable = logits.amax(-1) > -torch.inf  # else nothing is left but END
        keys = torch.where(sayable, keys, -torch.inf)
        total = torch.logaddexp(keys, end)
        total = total.masked_fill(total == -torch.inf, 0.0)
        level = moved.logsumexp(-1).masked_fill(~sayable, 0.0)
        fused = moved + (keys - total - level)[:, None]
        return FusedDistribution(
            self._alignment.space, fused.masked_fill(moved == -torch.inf, -torch.inf), end - total
        )

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of one union key a row, finite where main can say it."""
        got = self(distributions, weights).logprob_of(targets)
        return finite_score(got, distributions[0], targets, self._alignment)

    def _start(self, main: MemberDistribution) -> Tensor:
        """Where the search begins: main's logits, or all of main's keys alike where it abstains."""
        if main.abstain is None:
            return main.logprobs
        flat = torch.where(self._alignment.main.own, 0.0, -torch.inf)
        return torch.where(main.abstain[:, None], flat, main.logprobs)

    def _moved(self, logits: Tensor, spoken: Sequence[Tensor], share: Tensor) -> Tensor:
        """Main's logits after the search, [N, V], chunk by chunk."""
        if self.dense:
            return self._dense(logits, spoken, share)
        cells = (self._settings.support_cap + NEXT_TOKENS) * len(self._rows[0].mean)
        size = max(1, CHUNK_CELLS // cells)
        parts = [
            self._supported(
                logits[at : at + size], [s[at : at + size] for s in spoken], share[at : at + size]
            )
            for at in range(0, len(logits), size)
        ]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _dense(self, logits: Tensor, spoken: Sequence[Tensor], share: Tensor) -> Tensor:
        """The oracle: whole tables, whole vocabulary."""
        tables = [rows.table for rows in self._rows if isinstance(rows, StoredRows)]
        probs = torch.softmax(_sayable(logits), -1)
        here = to_relative(probs[:, : len(tables[0])], tables[0])
        target = torch.zeros_like(here)
        for i in _heard(share):
            part, table = spoken[i], tables[i]
            target = target + share[:, i, None] * to_relative(part[:, : len(table)].exp(), table)
        target = _normalised(target, here)
        agree = _agree(target, here)
        if bool(agree.all()):
            return logits
        width = len(tables[0])
        moved = search(
            _sayable(logits)[:, :width],
            tables[0],
            target,
            self._settings.steps,
            self._settings.rate,
        )
        moved = torch.nn.functional.pad(moved, (0, logits.shape[-1] - width), value=-torch.inf)
        moved = torch.where(logits == -torch.inf, -torch.inf, moved)
        return torch.where(agree[:, None], logits, moved)

    def _supported(self, logits: Tensor, spoken: Sequence[Tensor], share: Tensor) -> Tensor:
        """Support and tail."""
        start = _sayable(logits)
        main = self._describe(0, start)
        here = main.relative / main.relative.sum(-1, keepdim=True).clamp_min(TINY)
        target = torch.zeros_like(here)
        for i in _heard(share):
            described = main if i == 0 else self._describe(i, spoken[i])
            target = target + share[:, i, None] * described.relative
        target = _normalised(target, here)
        agree = _agree(target, here)
        if bool(agree.all()):
            return logits
        steps, rate = self._settings.steps, self._settings.rate
        rest = start.scatter(-1, main.ids, main.outside(start))
        found = search_support(main.logprobs, main.rows, rest, main.tail_row, target, steps, rate)
        left = decay(steps, rate)
        moved = left * start
        moved = moved.scatter(-1, main.ids, torch.where(main.kept, found, left * main.all_logprobs))
        moved = torch.where(logits == -torch.inf, -torch.inf, moved)
        return torch.where(agree[:, None], logits, moved)

    def _describe(self, i: int, logprobs: Tensor) -> _Described:
        """One member's distribution in the relative space, from its best rows and the mean row."""
        settings, rows = self._settings, self._rows[i]
        k = min(settings.support_cap + NEXT_TOKENS, logprobs.shape[-1])
        top, ids = logprobs.topk(k, dim=-1)  # [N, k]
        probs = top.exp()
        total = logprobs.exp().sum(-1, keepdim=True)
        before = probs.cumsum(-1) - probs
        slot = torch.arange(k, device=top.device)
        kept = (before < settings.support_mass * total) & (slot < settings.support_cap)
        kept &= top > -torch.inf
        kept[:, 0] = True
        count = kept.sum(-1, keepdim=True)
        read = slot < count + NEXT_TOKENS
        size = int(count.max())
        wide = min(k, size + NEXT_TOKENS)
        table = rows(ids[:, :wide])  # [N, wide, A]
        near = torch.where((read & ~kept)[:, :wide], probs[:, :wide], 0.0)
        unread = (total - torch.where(read, probs, 0.0).sum(-1, keepdim=True)).clamp_min(0.0)
        tail = torch.bmm(near[:, None], table)[:, 0] + unread * rows.mean
        inside = torch.where(kept[:, :size], probs[:, :size], 0.0)
        relative = torch.bmm(inside[:, None], table[:, :size])[:, 0] + tail
        tail_mass = tail.sum(-1, keepdim=True)
        tail_row = torch.where(tail_mass > 0, tail / tail_mass.clamp_min(TINY), rows.mean)
        return _Described(
            ids[:, :size], top[:, :size], kept[:, :size], table[:, :size], tail_row, relative
        )


@dataclass(frozen=True)
class _Described:
    """One member's rows in the relative space.

    Attributes:
        ids: [N, S] best ids, descending.
        all_logprobs: [N, S].
        kept: [N, S] bool, slots inside each row's own support.
        rows: [N, S, A].
        tail_row: [N, A], rows sum to 1.
        relative: [N, A], sums to the row's mass.
    """

    ids: Tensor
    all_logprobs: Tensor
    kept: Tensor
    rows: Tensor
    tail_row: Tensor
    relative: Tensor

    @property
    def logprobs(self) -> Tensor:
        """[N, S] with -inf in slots outside the row's support."""
        return self.all_logprobs.masked_fill(~self.kept, -torch.inf)

    def outside(self, logits: Tensor) -> Tensor:
        """[N, S] what the support's ids hold in the rest: -inf inside it."""
        return logits.gather(-1, self.ids).masked_fill(self.kept, -torch.inf)


def _heard(share: Tensor) -> list[int]:
    """Members with a say in at least one row (of the rest nothing is computed)."""
    return [i for i, heard in enumerate((share > 0).any(0).tolist()) if heard]


def _sayable(logits: Tensor) -> Tensor:
    """Rows without any key become flat, so that no softmax sees only -inf; callers mask them."""
    empty = logits.amax(-1, keepdim=True) == -torch.inf
    return torch.where(empty, 0.0, logits)


def _normalised(target: Tensor, here: Tensor) -> Tensor:
    """Rows of ``target`` [N, A] scaled to sum 1; where nobody says a key, main's own place."""
    mass = target.sum(-1, keepdim=True)
    return torch.where(mass > TINY, target / mass.clamp_min(TINY), here)


def _agree(target: Tensor, here: Tensor) -> Tensor:
    """Rows [N] in which no anchor's share differs from main's by more than :data:`AGREE`."""
    return ((target - here).abs() <= AGREE * here).all(-1)
