"""Weights by the answer so far along a text that is scored: row by row, as decoding has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from langchain_ensemble.decoding.fusing import row_weights, spread
from langchain_ensemble.decoding.gate_rules import rows_of
from langchain_ensemble.decoding.gates import OPEN, Gatekeeper
from langchain_ensemble.decoding.online import by_regard, evidence_of, noted
from langchain_ensemble.decoding.protocols import Teller
from langchain_ensemble.fusion.base import MemberDistribution


@dataclass
class Follower:
    """Follows one text, some rows at a time.

    Attributes:
        base: The request's weights, one a voice.
        teller: The fusion.
        seats: Each voice's place among the members of the fusion, and how many those are.
        gate: Where members are fused: only there they are compared.
        regard: How well each voice said the text so far.
    """

    base: Sequence[float]
    teller: Teller
    seats: tuple[Sequence[int], int]
    gate: Gatekeeper | None
    regard: tuple[float, ...] = ()

    def weights(
        self,
        distributions: Sequence[MemberDistribution],
        silent: Sequence[Sequence[bool]],
        boundary: Sequence[Tensor | None],
        keys: Tensor,
    ) -> list[tuple[float, ...]]:
        """Weights of the next rows, and note what they say of the text.

        Args:
            distributions: One a voice, N rows.
            silent: [voice][row], rows in which a voice cannot speak.
            boundary: c_i [N] a voice, None where it is 1.
            keys: [N] union keys of the text.

        Returns:
            One weight a voice for every row.
        """
        rows = row_weights(self.base, distributions, silent, boundary)
        told = self.teller.telling(*spread(distributions, rows, *self.seats, self.teller))[1]
        found = []
        for row, said in enumerate(evidence_of(told, keys, rows, boundary).T.tolist()):
            found.append(by_regard(self.base, self.regard))
            if self._open(found[-1], row, distributions, silent, boundary):
                self.regard = noted(self.regard, said)
        return found

    def _open(
        self,
        weights: tuple[float, ...],
        row: int,
        distributions: Sequence[MemberDistribution],
        silent: Sequence[Sequence[bool]],
        boundary: Sequence[Tensor | None],
    ) -> bool:
        """Whether a row is fused."""
        if self.gate is None or self.gate.gate.name == "always":
            return True
        here = slice(row, row + 1)
        one = [rows_of(d, here) for d in distributions]
        ends = [None if c is None else c[here] for c in boundary]
        shares = row_weights(weights, one, [quiet[here] for quiet in silent], ends)
        codes = self.gate.codes(one, shares, ends)
        return codes is None or float(codes[0]) == OPEN
