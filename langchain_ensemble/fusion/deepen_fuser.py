"""DeePEn at work: members' rows into the relative space, the search, and back to main's keys.

The equations and departures stand in ``deepen.py``; what members say is read in ``said.py``, the
step over support and tail stands in ``pruned.py``, the steps of the search in ``search.py``; here
are the dense oracle and the certificate. Tensors only.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import Alignment, FusedDistribution, MemberDistribution
from langchain_ensemble.fusion.pruned import agree, decayed, normalised, pruned
from langchain_ensemble.fusion.relative import to_relative
from langchain_ensemble.fusion.rows import Rows, StoredRows
from langchain_ensemble.fusion.said import Said, said_by
from langchain_ensemble.fusion.search import UNKNOWN, certified, decay, search
from langchain_ensemble.fusion.support import SearchSettings
from langchain_ensemble.fusion.voices import finite_score

__all__ = ["DeepenFuser", "SearchSettings"]


class DeepenFuser:
    """:class:`~langchain_ensemble.fusion.deepen.Deepen` made ready for one ensemble."""

    apart: ClassVar[bool] = True
    """Each member's distribution is taken on its own device (``FusionContext.devices``)."""

    def __init__(
        self, alignment: Alignment, rows: Sequence[Rows], dense: bool, settings: SearchSettings
    ) -> None:
        """Keep every member's rows.

        Args:
            alignment: The members' keys.
            rows: Each member's relative rows, on the device of its distribution; tables
                (:class:`StoredRows`) where ``dense``.
            dense: Whether the whole vocabulary is searched.
            settings: Of the search.
        """
        self._alignment = alignment
        self._keys = [
            keys.to(one.mean.device) for keys, one in zip(alignment.members, rows, strict=True)
        ]
        self._rows = list(rows)
        self.dense = dense
        self._settings = settings
        self._lock = threading.Lock()  # hot rows are one step's at a time

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Fuse one row per position; see :class:`~langchain_ensemble.fusion.base.Fuser`."""
        said = self._said(distributions, weights)
        return FusedDistribution(self._alignment.space, self._fused(said), said.end)

    def best(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Fuse for the best entry alone: rows that the certificate decides are not searched.

        Args:
            distributions: As in a call.
            weights: As in a call.

        Returns:
            A distribution whose first maximum over keys and END is the call's. Where the
            certificate decided, the keys are main's with the decay and no step; elsewhere the row
            is the call's.
        """
        said = self._said(distributions, weights)
        steps, rate = self._settings.steps, self._settings.rate
        unknown = certified(said.logits, said.end.exp(), steps, rate) == UNKNOWN
        doubtful = [n for n, unsure in enumerate(unknown.tolist()) if unsure]  # a host read
        if len(doubtful) == len(unknown):
            fused = self._fused(said)
        else:
            fused = _fill(decayed(said.logits, decay(steps, rate)), said.keys)
            if doubtful:
                rows = torch.tensor(doubtful, device=fused.device)
                fused = fused.index_copy(0, rows, self._fused(said.rows(rows)))
        return FusedDistribution(self._alignment.space, fused, said.end)

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of one union key a row, finite where main can say it."""
        got = self(distributions, weights).logprob_of(targets)
        return finite_score(got, distributions[0], targets, self._alignment)

    def _said(self, distributions: Sequence[MemberDistribution | None], weights: Tensor) -> Said:
        devices = [rows.mean.device for rows in self._rows]
        return said_by(distributions, weights, self._keys, devices)

    def _fused(self, said: Said) -> Tensor:
        """Fused log-probabilities of main's keys, [N, V]."""
        if self.dense:
            return _fill(self._dense(said), said.keys)
        with self._lock:
            return pruned(said, self._rows, self._settings)

    def _dense(self, said: Said) -> Tensor:
        """The oracle: main's logits after a search with whole tables over the whole vocabulary."""
        tables = [rows.table for rows in self._rows if isinstance(rows, StoredRows)]
        logits, start, width = said.logits, said.start, len(tables[0])
        main = to_relative(torch.softmax(start, -1)[:, :width], tables[0])
        target = torch.zeros_like(main)
        for i, heard in enumerate((said.share > 0).any(0).tolist()):
            part, share = said.parts[i], said.share[:, i, None]
            if heard and part is not None:
                mine = to_relative(part[:, : len(tables[i])].exp(), tables[i]).to(main.device)
                target = target + share * torch.where(share > 0, mine, 0.0)
        target = normalised(target, main)
        same = agree(target, main)
        if bool(same.all()):
            return logits
        steps, rate = self._settings.steps, self._settings.rate
        moved = search(start[:, :width], tables[0], target, steps, rate)
        moved = torch.nn.functional.pad(moved, (0, logits.shape[-1] - width), value=-torch.inf)
        moved = torch.where(logits == -torch.inf, -torch.inf, moved)
        return torch.where(same[:, None], logits, moved)


def _fill(logits: Tensor, mass: Tensor) -> Tensor:
    """Log-probabilities [N, V] in proportion to ``exp(logits)`` that sum to ``exp(mass)`` [N]."""
    level = logits.logsumexp(-1)
    level = level.masked_fill(level == -torch.inf, 0.0)
    return logits + (mass - level)[:, None]
