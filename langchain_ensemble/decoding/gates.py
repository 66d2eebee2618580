"""Gates: at which positions members are fused; elsewhere main speaks alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from langchain_ensemble.decoding.hearing import Heard
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.fusion.base import FusedDistribution


@dataclass(frozen=True)
class Gated:
    """What is left to choose from behind a gate.

    Attributes:
        fused: The fused distribution where the gate is open, else main's.
        weights: [n, voices], main alone where the gate is shut.
        columns: [c, n] float32 that go to the host with the choice; c may be 0.
    """

    fused: FusedDistribution
    weights: Tensor
    columns: Tensor

    def reason(self, values: Sequence[float]) -> str | None:
        """Why main spoke alone in a row.

        Args:
            values: The row's ``columns``, on the host.

        Returns:
            The gate's word for it; None where it was open.
        """
        return None


def gated(question: Question, heard: Heard, fused: FusedDistribution) -> Gated:
    """Shut the gate where the request's rule says so.

    Args:
        question: The rows.
        heard: What the voices say.
        fused: What they say together.

    Returns:
        What is left to choose from.
    """
    return Gated(fused, heard.weights, heard.weights.new_zeros(0, len(heard.weights)))
