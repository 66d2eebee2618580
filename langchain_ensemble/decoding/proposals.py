"""What a voice would say next, as a draft's next key: its best one, or one that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.choose import drawn
from langchain_ensemble.decoding.fusing import keys_of, voice_distribution
from langchain_ensemble.decoding.masks import raw_end_ids
from langchain_ensemble.decoding.protocols import Voice
from langchain_ensemble.decoding.task import Task

Asked = tuple[int, int, int]
"""Place, void count and first position (counted from the drafts' beginning) of a row."""


@dataclass(frozen=True)
class Proposals:
    """A voice's best keys after what it has just read.

    Attributes:
        rows: The rows.
        keys: [n] union keys on the device, row by row, position by position; -1 where it would end.
        counts: How many keys each row has.
        sources: [rows, V + 1] what each row's last key was drawn from, END last; None: it is the
            best.
    """

    rows: Sequence[Asked]
    keys: Tensor
    counts: Sequence[int]
    sources: Tensor | None = None


class Proposer:
    """How the voices of a request propose."""

    def __init__(self, task: Task) -> None:
        """Look at the request.

        Args:
            task: The request; sampling without a seed, voices that speak main's ids draw.
        """
        self._task = task
        request = task.request
        self._drawing = request.temperature > 0 and request.seed is None and len(task.voices) > 1
        self._dice = torch.Generator()
        self._dice.seed()
        self._highest: dict[int, Tensor] = {}  # [V_i] what a voice's logits may be at most

    def propose(
        self, place: int, rows: Sequence[Asked], counts: Sequence[int], asked: Sequence[Tensor]
    ) -> Proposals:
        """A voice's best keys after some positions; -1 where it would end.

        Args:
            place: The voice.
            rows: The rows.
            counts: How many positions each of them has.
            asked: The voice's logits there, [V_i] each.

        Returns:
            The proposals.
        """
        voice = self._task.voices[place]
        keys, _ = keys_of(voice)
        if self._drawing and voice.verbatim:
            drawn_keys, sources = self._draw(voice, torch.stack(list(asked)))
            last = [end - 1 for end in accumulate(counts)]
            return Proposals(rows, drawn_keys, counts, sources[last])
        if place not in self._highest:
            ends = torch.tensor(raw_end_ids(voice), dtype=torch.long, device=keys.own.device)
            sayable = (keys.representative >= 0).index_fill(0, ends, True)
            self._highest[place] = torch.where(sayable, torch.inf, -torch.inf)
        best = torch.minimum(torch.stack(list(asked)), self._highest[place]).argmax(-1)
        return Proposals(rows, keys.to_union[best], counts)

    def _draw(self, voice: Voice, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Keys drawn from what a voice that speaks main's ids says, filters applied; and that."""
        said = voice_distribution(voice, logits, [START] * len(logits))
        width = self._task.voices[0].member.logits_width
        own = torch.nn.functional.pad(
            said.logprobs, (0, max(0, width - said.logprobs.shape[-1])), value=-torch.inf
        )
        scores = torch.cat([own[:, :width], said.end[:, None]], -1)
        empty = torch.zeros(len(scores), 0, dtype=torch.long, device=scores.device)
        for processor in self._task.sampling.filters:
            scores = processor(empty, scores)
        probs = torch.softmax(scores, -1)
        numbers = torch.rand(len(probs), dtype=torch.float64, generator=self._dice)
        column = drawn(probs, numbers)
        return torch.where(column < width, column, -1), probs
