"""What the rows that choose now stand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_ensemble.decoding.caches import Caches
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.decoding.verify import Proposed


@dataclass(frozen=True)
class Question:
    """Rows of one request of which every voice has said what may come next.

    Attributes:
        task: The request.
        rows: The rows, n of them.
        at: Each row's place among those that run.
        logits: [n, V_i] float32 of each voice, main first; main's only where it decides alone.
        caches: Where open boundaries are, and main's logits further on.
        generators: One a row; None is greedy.
        ids: Main's ids of prompt and answer of each row; empty where no penalty reads them.
        proposed: What was drawn from a known distribution for each row; empty: nothing.
        shares: Each row's own weights, one a voice; empty: those of the task.
    """

    task: Task
    rows: Sequence[Row]
    at: Sequence[int]
    logits: Sequence[Tensor]
    caches: Caches
    generators: Sequence[torch.Generator] | None
    ids: Sequence[Sequence[int]]
    proposed: Sequence[Proposed | None] = ()
    shares: Sequence[tuple[float, ...]] = ()

    @property
    def alone(self) -> bool:
        """Whether only main was asked, behind a gate that asks nobody else."""
        return len(self.logits) < len(self.task.voices)
