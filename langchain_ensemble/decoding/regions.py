"""What lies between the members' forwards, laid out once and replayed.

From every voice's logits to the chosen key a step takes some 150 small operations. Where the
members' forwards are compiled or captured these would be most of a step's work on the host, so they
are compiled, or captured, as one (:mod:`langchain_ensemble.members.capture` says how), rows rounded
up to 1, 2, 4 … 64. What comes before, the open boundaries, follows from what was kept earlier.

A greedy request that asks for nothing else is replayed whole, to the key. For others (a draw, a
penalty, log-probabilities, an opened call) the fusion is replayed and the rest done as always. A
gate or a grammar is never part of a region.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from langchain_ensemble.decoding.fused import END, Fused, chosen_of
from langchain_ensemble.decoding.gates import read_gate
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.region import ChoiceRegion, FusionRegion
from langchain_ensemble.decoding.seeing import watched
from langchain_ensemble.decoding.task import Chosen, Task

ROWS = 64
"""Rows of a region at most."""

TOLERANCE = 1e-3
"""Largest difference of the first replay's probabilities from those of the region, run eagerly."""

Given = TypeVar("Given")


class Capture(Protocol):
    """Makes a function of static tensors fast to run again."""

    def __call__(self, region: Callable[[], Given]) -> Callable[[], Given]:
        """The replay: gives the region's result for what its static tensors hold."""


class Regions:
    """The fusions and choices of one ensemble that are replayed.

    Attributes:
        captured: Regions so far.
        replayed: Steps that were replays.
        off: Why everything is done operation by operation; None: it is not.
    """

    def __init__(self, capture: Capture) -> None:
        """Begin with none.

        Args:
            capture: How a region becomes fast; as the members' forwards do.
        """
        self.captured = self.replayed = 0
        self.off: str | None = None
        self._capture = capture
        self._known: dict[Hashable, tuple[Any, Callable[[], Any]]] = {}
        self._lock = threading.RLock()

    def choose(self, question: Question) -> list[Chosen] | None:
        """Choose one key a row.

        Args:
            question: The rows and what they stand on.

        Returns:
            What :func:`~langchain_ensemble.decoding.fused.choose_fused` would choose; None where it
            must.
        """
        if not _greedy(question):
            return None
        with self._lock:
            replayed = self._replayed(question, ChoiceRegion)
            if replayed is None:
                return None
            told = replayed[1][:, : len(question.rows)].cpu().T.tolist()  # the one transfer
        return [_read(question.task, row) for row in told]

    def fuse(self, question: Question) -> Fused | None:
        """Hear the voices and fuse what they say.

        Args:
            question: The rows and what they stand on.

        Returns:
            What they say and the fusion, valid until the next replay; None: operation by operation.
        """
        with self._lock:
            replayed = self._replayed(question, FusionRegion)
            if replayed is None:
                return None
            region, given = replayed
            with torch.inference_mode(False), torch.no_grad():
                fused: Fused = region.read(given, len(question.rows))
            return fused

    def _replayed(self, question: Question, kind: type[Any]) -> tuple[Any, Any] | None:
        """A region and what its replay gives; open boundaries are kept."""
        if self.off is not None or not _fixed(question):
            return None
        found = self._ready(question, kind)
        if found is None:
            return None
        region, replay = found
        trackers = question.caches.trackers
        region.fill(question, trackers.weigh(question.rows, question.at))
        with torch.inference_mode(False), torch.no_grad():
            given = replay()
        self.replayed += 1
        n = len(question.rows)
        trackers.keep([None if one is None else one[:n] for one in region.kept])
        return region, given

    def _ready(self, question: Question, kind: type[Any]) -> tuple[Any, Callable[[], Any]] | None:
        """A region for so many rows and its replay, captured at first use."""
        task, weighed = question.task, question.caches.trackers.weighed()
        rows = 1 << (len(question.rows) - 1).bit_length()
        voices = tuple((id(voice.member), id(voice.keys)) for voice in task.voices)
        key = (kind, voices, id(task.fuser), task.places, task.online, weighed, rows)
        if key not in self._known:
            try:
                self._known[key] = self._laid_out(lambda: kind(task, rows, weighed))
            except Exception as error:  # whatever it is, the same can be done without
                self._give_up(task, error)
                return None
            self.captured += 1
        return self._known[key]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _laid_out(self, make: Callable[[], Any]) -> tuple[Any, Callable[[], Any]]:
        """Capture a region; its first replay must say what it says itself."""
        region = make()
        region.rehearse()
        replay = self._capture(region)
        _compare(replay(), region())
        return region, replay

    def _give_up(self, task: Task, error: Exception) -> None:
        """Go on operation by operation and say why, once."""
        self.off = f"{type(error).__name__}: {error}"
        self._known.clear()
        task.warn(
            "what the members say is fused operation by operation, which is slower: it could not "
            f"be captured as their forwards are ({self.off}). Set forward='eager' on a member to "
            "say so yourself"
        )


def _fixed(question: Question) -> bool:
    """Whether what the voices say is fused by operations of fixed shapes."""
    task = question.task
    return (
        getattr(task.fuser, "fixed", False)
        and task.voices[0].trie is None  # paths through answers are followed by the host
        and task.grammar is None
        and read_gate(task.request.gate).name == "always"
        and len(question.rows) <= ROWS
    )


def _greedy(question: Question) -> bool:
    """Whether a question asks for nothing but the best key."""
    task = question.task
    bare = task.opening is None and task.sampling.penalty is None
    return bare and question.generators is None and not watched(task.request)


def _read(task: Task, row: Sequence[float]) -> Chosen:
    """One row of what a choice gives."""
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


def _compare(got: Any, want: Any) -> None:
    """Refuse a replay that says something else than its region."""
    whole = isinstance(got, Tensor)  # of near ties either may be chosen: only how likely it is
    pairs = [(got[1], want[1])] if whole else list(zip(got[1:3], want[1:3], strict=True))
    for ours, theirs in pairs:
        difference = float((ours.exp() - theirs.exp()).abs().max())
        if not difference <= TOLERANCE:
            raise ArithmeticError(f"its probabilities differ by {difference:.2g}")
