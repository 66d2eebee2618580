"""Proxy tuning (Liu et al., COLM 2024), which is DExperts' formula: a small model's tuning, added.

Equation: ``p(y) = softmax(l_base + a (l_tuned - l_untuned))``. The base is the large model that
nobody tuned; the other two are a small model before and after its tuning. Knows log-probabilities
only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from langchain_ensemble.fusion.settings import check_number
from langchain_ensemble.fusion.signed import RoleFusion, above


@dataclass(frozen=True)
class Proxy(RoleFusion):
    """The base, moved as a small model was moved by its tuning.

    Attributes:
        base: The member that is moved; main.
        tuned: The small member after its tuning.
        untuned: The same before it.
        scale: How far it is moved; 0 is the base alone. The authors' value is 1.
    """

    base: str = ""
    tuned: str = ""
    untuned: str = ""
    scale: float = 1.0
    name: ClassVar[str] = "proxy"

    def __post_init__(self) -> None:
        """Check the scale."""
        check_number(self.name, "scale", self.scale, least=0.0)

    def mix(self, *said: Tensor) -> Tensor:
        """``l_base + a (l_tuned - l_untuned)``.

        Args:
            *said: [..., S] log-probabilities of base, tuned and untuned.

        Returns:
            [..., S] scores, up to a constant a row.
        """
        base, tuned, untuned = said
        return base + self.scale * above(tuned, untuned)
