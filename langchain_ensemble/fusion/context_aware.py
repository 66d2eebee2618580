"""Context-aware decoding (Shi et al., NAACL 2024): what a text adds, said louder.

Equation: ``p(y) = softmax((1 + a) log p(y | c, x) - a log p(y | x))``. Two views of one model, one
of which reads the context ``c``; what only the context makes likely gains, what the model would
have said anyway loses. Knows log-probabilities only; who reads what is said by ``contexts=``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from langchain_ensemble.fusion.settings import check_number
from langchain_ensemble.fusion.signed import RoleFusion, above


@dataclass(frozen=True)
class ContextAware(RoleFusion):
    """Main's answer, with what its context adds to it weighed more.

    Attributes:
        with_context: The member that reads the context; main.
        without: The member that does not.
        strength: How much of what the context adds is added once more; 0 is main alone. The
            authors' value is 0.5.
    """

    with_context: str = ""
    without: str = ""
    strength: float = 0.5
    name: ClassVar[str] = "context_aware"

    def __post_init__(self) -> None:
        """Check the strength."""
        check_number(self.name, "strength", self.strength, least=0.0)

    def mix(self, *said: Tensor) -> Tensor:
        """``l(y|c,x) + a (l(y|c,x) - l(y|x))``.

        Args:
            *said: [..., S] log-probabilities with the context, and without.

        Returns:
            [..., S] scores, up to a constant a row.
        """
        informed, bare = said
        return informed + self.strength * above(informed, bare)
