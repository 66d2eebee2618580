"""Contrastive decoding (Li et al., ACL 2023; O'Brien and Lewis, 2023): an expert less an amateur.

Equations: ``V = {y : p_E(y) >= alpha max p_E}``, the plausible keys; on them
``score(y) = (1 + beta) log p_E(y) - beta log p_A(y)``, elsewhere ``-inf``; then softmax. Mistakes
that both make lose against what only the expert knows. Knows log-probabilities only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from langchain_ensemble.fusion.settings import check_number
from langchain_ensemble.fusion.signed import RoleFusion, above


@dataclass(frozen=True)
class Contrastive(RoleFusion):
    """The expert, less what the amateur would have said too.

    Attributes:
        expert: The stronger member; main.
        amateur: The weaker one.
        alpha: Keys below this times the expert's best probability are not considered; 0: all are.
        beta: How much the amateur is subtracted; 0: not at all.
    """

    expert: str = ""
    amateur: str = ""
    alpha: float = 0.1
    beta: float = 0.5
    name: ClassVar[str] = "contrastive"

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self.name, "alpha", self.alpha, least=0.0, most=1.0)
        check_number(self.name, "beta", self.beta, least=0.0)

    def mix(self, *said: Tensor) -> Tensor:
        """``log p_E + beta (log p_E - log p_A)`` of the keys that the expert finds plausible.

        Args:
            *said: [..., S] log-probabilities of expert and amateur.

        Returns:
            [..., S] scores, up to a constant a row.
        """
        expert, amateur = said
        scores = expert + self.beta * above(expert, amateur)
        if self.alpha == 0.0:
            return scores
        bar = expert.amax(-1, keepdim=True) + math.log(self.alpha)
        return torch.where(expert < bar, -torch.inf, scores)
