"""What lies between the members' forwards as one region of fixed shapes, laid out and replayed.

From every voice's logits to the chosen key a step takes some 150 small operations. Where the
members' forwards are compiled or captured these would be most of a step's work on the host, so they
are compiled, or captured, as one (:mod:`langchain_ensemble.members.capture` says how). The same
functions as in ``fused.py`` over tensors that stay where they are, rows rounded up to 1, 2, 4 … 64.
What comes before, the open boundaries, follows from what was kept earlier.

Only plain greedy steps are replayed: whatever else a request asks for (a draw, a penalty, a gate, a
grammar, log-probabilities …) is chosen as always.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.choose import effective_weights
from langchain_ensemble.decoding.fused import END, chosen_key, chosen_of
from langchain_ensemble.decoding.fusing import all_or_main, checked, keys_of, or_end, say, spread
from langchain_ensemble.decoding.gates import read_gate
from langchain_ensemble.decoding.hearing import silent_rows
from langchain_ensemble.decoding.online import evidence_of
from langchain_ensemble.decoding.protocols import Teller
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.seeing import watched
from langchain_ensemble.decoding.task import Chosen, Task
from langchain_ensemble.fusion.base import bounded_distribution

ROWS = 64
"""Rows of a region at most."""

TOLERANCE = 1e-3
"""Largest difference in nats of the first replay from the region itself, run eagerly."""

Replay = Callable[[], Tensor]
"""Gives a region's result for what its static tensors hold."""

Capture = Callable[[Replay], Replay]
"""Makes a function of static tensors fast to run again."""


class ChoiceRegion:
    """A greedy choice over static tensors; written to before each replay.

    Attributes:
        logits: [rows, V_i] float32 of each voice, main first.
        inputs: [rows, 1 + 2 M] float32: the answer's UTF-8 state, base weights, who is silent.
        ends: [rows, M] float32, c_i.
        kept: [rows, V_i] each weighed voice's log-probabilities, None for the others.
    """

    def __init__(self, task: Task, rows: int, weighed: Sequence[bool]) -> None:
        """Lay out a choice.

        Args:
            task: A request of those that are chosen together.
            rows: How many rows.
            weighed: Voices whose open boundaries are weighed.
        """
        self._task, self._weighed = task, weighed
        device, count = task.voices[0].member.device, len(task.voices)
        keys = [keys_of(voice)[0] for voice in task.voices]
        ceilings = [voice.ceilings for voice in task.voices]  # Dynamo cannot read the property
        self._highest = [ceilings[0], *(one[START] for one in ceilings[1:])]
        self.logits = [torch.zeros((rows, one.width), device=device) for one in keys]
        self.inputs = torch.zeros((rows, 1 + 2 * count), device=device)
        self.ends = torch.ones((rows, count), device=device)
        self.kept = [
            torch.zeros_like(one) if on else None
            for one, on in zip(self.logits, weighed, strict=True)
        ]

    def __call__(self) -> Tensor:
        """Key, its log-probability, voices heard, whether nothing is left, then what each says.

        Returns:
            [4 + M, rows], or [4 + 2 M, rows] where weights follow the answer.
        """
        task, count = self._task, len(self._task.voices)
        assert task.fuser is not None  # more than one voice
        state, weights = self.inputs[:, 0].long(), self.inputs[:, 1 : 1 + count]
        highest = [self._highest[0].index_select(0, state), *self._highest[1:]]
        heard = [
            bounded_distribution(logits, keys_of(voice)[0], most)
            for voice, logits, most in zip(task.voices, self.logits, highest, strict=True)
        ]
        for kept, one in zip(self.kept, heard, strict=True):
            if kept is not None:
                kept.copy_(one.logprobs)
        mute = torch.stack([one.abstain for one in heard if one.abstain is not None], -1)
        weights = effective_weights(weights, mute | (self.inputs[:, 1 + count :] > 0), self.ends)
        if getattr(task.fuser, "together", False):
            weights = all_or_main(weights)
        spoken = spread(heard, weights, task.places, task.num_members, task.fuser)
        told = None
        if task.online and isinstance(task.fuser, Teller):
            fused, told = task.fuser.telling(*spoken)
        else:
            fused = checked((getattr(task.fuser, "best", None) or task.fuser)(*spoken))
        fused, nowhere = or_end(fused)
        plain = torch.cat([fused.logprobs, fused.end[:, None]], -1)
        key, logprob = chosen_key(fused, plain, plain.argmax(-1))
        columns = torch.stack([key, logprob, (weights > 0).sum(-1), nowhere])  # float32
        parts = [columns, say(task.voices, heard, key)]
        if told is not None:
            ends = self.ends.unbind(-1)
            boundary = [c if on else None for c, on in zip(ends, self._weighed, strict=True)]
            parts.append(evidence_of(told, key, weights, boundary))
        return torch.cat(parts)

    def fill(self, question: Question, boundary: Sequence[Tensor | None]) -> None:
        """Write what some rows stand on, n of them, in one copy from the host.

        Args:
            question: The rows.
            boundary: c_i [n] of each voice, None where it is 1.
        """
        task, rows = self._task, question.rows
        n, silent = len(rows), silent_rows(rows, len(task.voices))
        shares = question.shares or [task.weights] * n
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


class Regions:
    """The choices of one ensemble that are replayed.

    Attributes:
        captured: Regions so far.
        replayed: Choices that were replays.
        off: Why all choices are made operation by operation; None: they are not.
    """

    def __init__(self, capture: Capture) -> None:
        """Begin with none.

        Args:
            capture: How a region becomes fast; as the members' forwards do.
        """
        self.captured = self.replayed = 0
        self.off: str | None = None
        self._capture = capture
        self._known: dict[Hashable, tuple[ChoiceRegion, Replay]] = {}
        self._lock = threading.RLock()

    def choose(self, question: Question) -> list[Chosen] | None:
        """Choose one key a row.

        Args:
            question: The rows and what they stand on.

        Returns:
            What :func:`~langchain_ensemble.decoding.fused.choose_fused` would choose; None where it
            must.
        """
        if self.off is not None or not _plain(question):
            return None
        n = len(question.rows)
        with self._lock:
            region, replay = self._ready(question) or (None, None)
            if region is None or replay is None:
                return None
            region.fill(question, question.caches.trackers.weigh(question.rows, question.at))
            with torch.inference_mode(False), torch.no_grad():
                packed = replay()
            self.replayed += 1
            told = packed[:, :n].cpu().T.tolist()  # the one transfer
            kept = [None if one is None else one[:n] for one in region.kept]
            question.caches.trackers.keep(kept)
        return [_read(question.task, row) for row in told]

    def _ready(self, question: Question) -> tuple[ChoiceRegion, Replay] | None:
        """A region for so many rows and its replay, captured at first use."""
        task, weighed = question.task, question.caches.trackers.weighed()
        rows = 1 << (len(question.rows) - 1).bit_length()
        voices = tuple((id(voice.member), id(voice.keys)) for voice in task.voices)
        key = (voices, id(task.fuser), task.places, task.online, weighed, rows)
        if key not in self._known:
            try:
                self._known[key] = self._laid_out(question, rows, weighed)
            except Exception as error:  # whatever it is, the same can be done without
                self._give_up(task, error)
                return None
            self.captured += 1
        return self._known[key]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _laid_out(
        self, question: Question, rows: int, weighed: Sequence[bool]
    ) -> tuple[ChoiceRegion, Replay]:
        """Capture a region; its first replay must say what it says itself."""
        region, count = ChoiceRegion(question.task, rows, weighed), len(question.task.voices)
        region.inputs[:, 1 : 1 + count] = 1 / count
        for mine, logits in zip(region.logits, question.logits, strict=True):
            mine[: len(logits)].copy_(logits)
        replay = self._capture(region)
        _compare(replay(), region(), len(question.rows))
        return region, replay

    def _give_up(self, task: Task, error: Exception) -> None:
        """Choose operation by operation from now on and say why, once."""
        self.off = f"{type(error).__name__}: {error}"
        self._known.clear()
        task.warn(
            "what the members say is fused operation by operation, which is slower: the choice "
            f"could not be captured as their forwards are ({self.off}). Set forward='eager' on a "
            "member to say so yourself"
        )


def _plain(question: Question) -> bool:
    """Whether a question asks for nothing but the best key of a fusion of fixed shapes."""
    task = question.task
    request = task.request
    bare = task.grammar is None and task.opening is None and task.sampling.penalty is None
    greedy = question.generators is None and not any(question.proposed)
    return (
        bare
        and greedy
        and getattr(task.fuser, "fixed", False)
        and read_gate(request.gate).name == "always"
        and not watched(request)
        and len(question.rows) <= ROWS
    )


def _read(task: Task, row: Sequence[float]) -> Chosen:
    """One row of what a region gives."""
    count = len(task.voices)
    key, value, heard, nothing, *said = row
    best_only = getattr(task.fuser, "best", None) is not None and not task.online
    if value == -math.inf:  # a fusion that gives nothing any probability ends the answer
        picked = chosen_of(task, END, 0.0, said[:count], fused=heard > 1)
    else:
        told = None if best_only else value
        picked = chosen_of(task, int(key), told, said[:count], fused=heard > 1)
    regard = said[count:]
    return replace(picked, evidence=tuple(regard)) if regard and not nothing else picked


def _compare(got: Tensor, want: Tensor, rows: int) -> None:
    """Refuse a replay that chooses with another probability than its region."""
    ours, theirs = got[1, :rows].nan_to_num(), want[1, :rows].nan_to_num()
    difference = float((ours - theirs).abs().max())
    if difference > TOLERANCE:
        raise ArithmeticError(f"its log-probabilities differ by {difference:.2g} nats")
