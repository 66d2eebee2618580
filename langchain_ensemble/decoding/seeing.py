"""What is told of a step beside the choice: how far the voices are apart, and what each wanted.

Made on the device and sent to the host with the choice, in the step's one transfer. Keys travel as
numbers; their bytes are looked up on the host. What nobody asks for is not made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from langchain_ensemble.decoding.apart import disagreement
from langchain_ensemble.decoding.fusing import keys_of
from langchain_ensemble.decoding.hearing import Heard
from langchain_ensemble.decoding.masks import raw_end_ids
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.records import TokenTrace, Wish
from langchain_ensemble.decoding.task import Chosen, Task
from langchain_ensemble.fusion.base import FusedDistribution
from langchain_ensemble.params import RequestParams

BEST = 5
"""Keys that are kept of what each voice wanted, and of what was chosen from."""

END = -1
"""Number of END where keys are numbers."""


def watched(request: RequestParams) -> bool:
    """Whether a request is told how sure its members are.

    Args:
        request: What it asks for.
    """
    return request.logprobs or request.trace or request.abstain_below is not None


class Sight:
    """A step of some rows as it is told; makes its numbers on the device, once.

    Attributes:
        columns: What goes to the host with the choice, float32 [c, n] together.
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
        self._task = question.task
        self._watched = watched(self._task.request)
        self.columns: list[Tensor] = []
        if not self._watched:
            return
        voices, said = self._task.voices, heard.distributions
        apart = disagreement(voices, said, heard.weights, heard.boundary)
        favourite = torch.maximum(said[0].logprobs.amax(-1), said[0].end)
        parts = [torch.stack([apart, favourite])]
        if self._task.request.trace:
            parts += [weights.T, _best(fused.logprobs, fused.end, fused.keys)]
            for voice, one in zip(voices, said, strict=True):
                keys = keys_of(voice)[0].to_union
                parts.append(_best(one.logprobs, one.end, keys).to(weights.device))
        self.columns = parts

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
        record = chosen.record
        if record is None or (gate is None and not self._watched):
            return chosen
        if not self._watched:
            return replace(chosen, record=replace(record, gate=gate))
        apart, favourite, *more = values
        own = record.members.get(self._task.voices[0].member.name)
        record = replace(
            record,
            gate=gate,
            disagreement=None if apart < 0 else apart,
            overruled=own is None or own < favourite,
            trace=self._trace(more) if self._task.request.trace else None,
        )
        return replace(chosen, record=record)

    def _trace(self, values: Sequence[float]) -> TokenTrace:
        names = [voice.member.name for voice in self._task.voices]
        weights, rest = values[: len(names)], values[len(names) :]
        size = len(rest) // (len(names) + 1)
        table = self._task.key_bytes
        fused, *own = [
            _wishes(rest[at : at + size], lambda key: table[key])
            for at in range(0, len(rest), size)
        ]
        return TokenTrace(
            wishes=dict(zip(names, own, strict=True)),
            fused=fused,
            weights=dict(zip(names, weights, strict=True)),
            at=time.perf_counter(),
        )


class RawSight:
    """A step of one voice as it is told."""

    def __init__(self, task: Task, logits: Tensor) -> None:
        """Look at a step.

        Args:
            task: The request; it has one voice.
            logits: [n, V] of that voice, masked where something must not come.
        """
        self._task, self._logits = task, logits

    def beside(self, columns: Tensor) -> Tensor:
        """Put what is seen beside what goes to the host.

        Args:
            columns: [n, c] float32.

        Returns:
            [n, more] float32; the same tensor where nobody asks for more.
        """
        if not self._task.request.trace:
            return columns
        said = torch.log_softmax(self._logits.float(), -1)
        never = said.new_full((len(said),), -torch.inf)
        return torch.cat([columns, _best(said, never, None).T], -1)

    def told(self, chosen: Chosen, values: Sequence[float]) -> Chosen:
        """Add what was seen to a row's choice.

        Args:
            chosen: The choice.
            values: What was put beside, on the host.

        Returns:
            The choice; the same object where there is nothing to add.
        """
        if not values or chosen.record is None:
            return chosen
        name = self._task.voices[0].member.name
        wishes = _wishes(values, self._spelling)
        trace = TokenTrace({name: wishes}, wishes, {name: 1.0}, time.perf_counter())
        return replace(chosen, record=replace(chosen.record, trace=trace))

    def _spelling(self, token: int) -> bytes | None:
        """Bytes of an id, empty where it ends the answer, None where it is no text."""
        voice = self._task.voices[0]
        if token in self._task.spelled:
            return self._task.spelled[token]
        if token in raw_end_ids(voice):
            return b""
        table = voice.vocabulary
        silent = token >= len(table.token_bytes) or table.token_roles[token] is not None
        return None if silent else table.token_bytes[token]


def _best(logprobs: Tensor, end: Tensor, named: Tensor | None) -> Tensor:
    """The most probable columns of every row: [2 * BEST, n], probabilities, then keys.

    Args:
        logprobs: [n, S].
        end: [n].
        named: [S] or [n, S] key of each column; None: column ``j`` is key ``j``.
    """
    width = logprobs.shape[-1]
    count = min(BEST, width + 1)
    top, column = torch.cat([logprobs, end[:, None]], -1).topk(count, -1)
    inside = column.clamp_max(width - 1)
    if named is None:
        keys = inside
    else:
        keys = named[inside] if named.dim() == 1 else named.gather(1, inside)
    keys = torch.where(column < width, keys, END)
    found = torch.cat([top.exp().T, keys.T.to(top.dtype)])
    if count == BEST:
        return found
    empty = found.new_zeros(BEST - count, found.shape[-1])
    return torch.cat([found[:count], empty, found[count:], empty])


def _wishes(values: Sequence[float], spelling: Callable[[int], bytes | None]) -> tuple[Wish, ...]:
    """Keys' bytes and probabilities; those of probability 0, and what is no text, are left out."""
    wishes = []
    for probability, key in zip(values[:BEST], values[BEST:], strict=True):
        data = b"" if key == END else spelling(int(key))
        if probability > 0 and data is not None:
            wishes.append((data, probability))
    return tuple(wishes)
