"""What is told of a step beside the choice: how far the voices are apart, and what each wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from langchain_ensemble.decoding.hearing import Heard
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.task import Chosen
from langchain_ensemble.fusion.base import FusedDistribution


class Sight:
    """A step of some rows as it is told; makes its numbers on the device, once.

    Attributes:
        columns: [c, n] float32 that go to the host with the choice; c may be 0.
    """

    def __init__(
        self, question: Question, heard: Heard, fused: FusedDistribution, weights: Tensor
    ) -> None:
        """Look at a step.

        Args:
            question: The rows.
            heard: What the voices say.
            fused: What is chosen from.
            weights: [n, voices] behind the gate.
        """
        self.columns = weights.new_zeros(0, len(weights))

    def told(self, row: int, chosen: Chosen, gate: str | None, values: Sequence[float]) -> Chosen:
        """Add what was seen to a row's choice.

        Args:
            row: Number of the row.
            chosen: The choice.
            gate: Why main spoke alone, None: it did not.
            values: The row's ``columns``, on the host.

        Returns:
            The choice; the same object where there is nothing to add.
        """
        if chosen.record is None or gate is None:
            return chosen
        return replace(chosen, record=replace(chosen.record, gate=gate))
