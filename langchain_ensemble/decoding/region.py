"""From every voice's logits to a fusion, or to a key, over tensors that stay where they are.

The same functions as in ``hearing.py`` and ``fused.py`` in their general form: no operation is left
out because the rows happen not to need it. That is what may be compiled, or captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.choose import effective_weights
from langchain_ensemble.decoding.fused import Fused, chosen_key
from langchain_ensemble.decoding.fusing import all_or_main, checked, keys_of, or_end, say, spread
from langchain_ensemble.decoding.hearing import Heard, silent_rows
from langchain_ensemble.decoding.online import evidence_of
from langchain_ensemble.decoding.protocols import Teller
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.fusion.base import (
    FusedDistribution,
    MemberDistribution,
    TokenSpace,
    Told,
    bounded_distribution,
)


class _Spoken(NamedTuple):
    """What the voices say in all rows of a region, and together."""

    heard: list[MemberDistribution]
    weights: Tensor
    fused: FusedDistribution
    told: Told | None


class Region:
    """The tensors of a region; written to before each replay.

    Attributes:
        logits: [rows, V_i] float32 of each voice, main first.
        inputs: [rows, 1 + 2 M] float32: the answer's UTF-8 state, base weights, who is silent.
        ends: [rows, M] float32, c_i.
        kept: [rows, V_i] log-probabilities of the voices that are read afterwards, None for the
            others.
    """

    def __init__(
        self, task: Task, rows: int, weighed: Sequence[bool], kept: Sequence[bool]
    ) -> None:
        """Lay out a region.

        Args:
            task: A request of those that are answered together.
            rows: How many rows.
            weighed: Voices whose open boundaries are weighed.
            kept: Voices whose log-probabilities are read afterwards.
        """
        assert task.fuser is not None  # more than one voice
        # Nothing else of a request: a region outlives it, and serves others.
        self._voices, self._fuser, self._online = task.voices, task.fuser, task.online
        self._places, self._size = task.places, task.num_members
        self._weighed = tuple(weighed)
        device, count = task.voices[0].member.device, len(task.voices)
        keys = [keys_of(voice)[0] for voice in task.voices]
        ceilings = [voice.ceilings for voice in task.voices]  # Dynamo cannot read the property
        self._highest = [ceilings[0], *(one[START] for one in ceilings[1:])]
        self.logits = [torch.zeros((rows, one.width), device=device) for one in keys]
        self.inputs = torch.zeros((rows, 1 + 2 * count), device=device)
        self.inputs[:, 1 : 1 + count] = 1 / count
        self.ends = torch.ones((rows, count), device=device)
        self.kept = [
            torch.zeros_like(one) if on else None for one, on in zip(self.logits, kept, strict=True)
        ]

    def rehearse(self) -> None:
        """Write something to be tried on: one row in two is inside a character."""
        dice = torch.Generator().manual_seed(0)
        for mine in self.logits:
            mine.copy_(4 * torch.randn(mine.shape, generator=dice))
        self.inputs[1::2, 0] = START + 1
        self.inputs[1::2, -1] = 1.0

    def fill(self, question: Question, boundary: Sequence[Tensor | None]) -> None:
        """Write what n rows stand on, in one copy from the host.

        Args:
            question: The rows.
            boundary: c_i [n] of each voice, None where it is 1.
        """
        rows = question.rows
        n, silent = len(rows), silent_rows(rows, len(self._voices))
        shares = question.shares or [question.task.weights] * n
        host = [
            [float(row.utf8), *own, *(float(quiet[b]) for quiet in silent)]
            for b, (row, own) in enumerate(zip(rows, shares, strict=True))
        ]
        pinned = self.inputs.device.type == "cuda"
        self.inputs[:n].copy_(torch.tensor(host, pin_memory=pinned), non_blocking=True)
        for mine, logits in zip(self.logits, question.logits, strict=True):
            mine[:n].copy_(logits)
        for place, c in enumerate(boundary):
            if c is not None:
                self.ends[:n, place].copy_(c)

    def boundary(self, n: int) -> list[Tensor | None]:
        """c_i [n] of each voice, None where it is 1."""
        columns = self.ends[:n].unbind(-1)
        return [c if on else None for c, on in zip(columns, self._weighed, strict=True)]

    def _speak(self, *, best: bool) -> _Spoken:
        """Hear all voices and fuse; ``best``: only the best entry is meant."""
        fuser, count = self._fuser, len(self._voices)
        state, weights = self.inputs[:, 0].long(), self.inputs[:, 1 : 1 + count]
        highest = [self._highest[0].index_select(0, state), *self._highest[1:]]
        speaks: list[bool | Tensor] = [state == START, *[True] * (count - 1)]
        heard = [
            bounded_distribution(logits, keys_of(voice)[0], most, speaks=sure)
            for voice, logits, most, sure in zip(
                self._voices, self.logits, highest, speaks, strict=True
            )
        ]
        for kept, one in zip(self.kept, heard, strict=True):
            if kept is not None:
                kept.copy_(one.logprobs)
        silent = self.inputs[:, 1 + count :] > 0
        assert heard[0].abstain is not None  # main alone can be masked to nothing, in a character
        mute = torch.cat([heard[0].abstain[:, None], torch.zeros_like(silent[:, 1:])], -1)
        weights = effective_weights(weights, mute | silent, self.ends)
        if getattr(fuser, "together", False):
            weights = all_or_main(weights)
        spoken = spread(heard, weights, self._places, self._size, fuser)
        if self._online and isinstance(fuser, Teller):
            return _Spoken(heard, weights, *fuser.telling(*spoken))
        only = getattr(fuser, "best", None) if best else None
        return _Spoken(heard, weights, checked((only or fuser)(*spoken)), None)


class ChoiceRegion(Region):
    """A greedy choice of which nothing is told but the key."""

    def __init__(self, task: Task, rows: int, weighed: Sequence[bool]) -> None:
        """Lay out a choice; see :class:`Region`."""
        super().__init__(task, rows, weighed, weighed)

    def __call__(self) -> Tensor:
        """Key, its log-probability, voices heard, whether nothing is left, then what each says.

        Returns:
            [4 + M, rows], or [4 + 2 M, rows] where weights follow the answer.
        """
        heard, weights, fused, told = self._speak(best=True)
        fused, nowhere = or_end(fused)
        plain = torch.cat([fused.logprobs, fused.end[:, None]], -1)
        key, logprob = chosen_key(fused, plain, plain.argmax(-1))
        columns = torch.stack([key, logprob, (weights > 0).sum(-1), nowhere])  # float32
        parts = [columns, say(self._voices, heard, key)]
        if told is not None:
            parts.append(evidence_of(told, key, weights, self.boundary(len(weights))))
        return torch.cat(parts)


class FusionRegion(Region):
    """A fusion; what is done with it is not part of the region."""

    def __init__(self, task: Task, rows: int, weighed: Sequence[bool]) -> None:
        """Lay out a fusion; see :class:`Region`."""
        super().__init__(task, rows, weighed, [True] * len(task.voices))
        self._shape: tuple[list[TokenSpace], TokenSpace, bool, bool | None] | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        """Weights, the fused keys and END, each voice's END, and what else there is.

        Returns:
            [rows, M], [rows, S], [rows], M times [rows]; the keys' names [rows, S] if they have
            any; where weights follow the answer each voice's [rows, V] and [rows] as it was heard.
        """
        heard, weights, fused, told = self._speak(best=False)
        named = [] if fused.keys is None else [fused.keys]
        each = [] if told is None else [*told.keys, *told.ends]
        return weights, fused.logprobs, fused.end, *(one.end for one in heard), *named, *each

    def read(self, given: Sequence[Tensor], n: int) -> Fused:
        """What was given, in n rows, as what it is.

        Args:
            given: What a call gave.
            n: How many of the rows are meant.
        """
        if self._shape is None:  # which of them there are, and in which space
            heard, _, fused, told = self._speak(best=False)
            logs = None if told is None else told.logs
            self._shape = [one.space for one in heard], fused.space, fused.keys is not None, logs
        spaces, space, named, logs = self._shape
        weights, logprobs, end, *rest = (one[:n] for one in given)
        heard = [
            MemberDistribution(own_space, kept[:n], own)
            for own_space, kept, own in zip(spaces, self.kept, rest, strict=False)
            if kept is not None
        ]
        rest = rest[len(spaces) :]
        keys = rest.pop(0) if named else None
        half, told = len(rest) // 2, None
        if logs is not None:
            told = Told(rest[:half], rest[half:], logs)
        fused = FusedDistribution(space, logprobs, end, keys)
        return Fused(Heard(heard, weights, self.boundary(n), None), fused, told)
