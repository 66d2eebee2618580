"""What every voice says after the answers of some rows, and how much each of them counts there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.fusing import all_or_main, row_weights, voice_distribution
from langchain_ensemble.decoding.masks import Legal, legal_ids
from langchain_ensemble.decoding.path_tracker import follow_all
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.fusion.base import MemberDistribution


@dataclass(frozen=True)
class Heard:
    """What the voices say in n rows.

    Attributes:
        distributions: One a voice, main first, dense, each on its voice's device.
        weights: [n, voices] float32 on main's device, rows sum to 1.
        boundary: c_i [n] of each voice, None where it is 1.
        legal: What a grammar allows; None: everything.
    """

    distributions: Sequence[MemberDistribution]
    weights: Tensor
    boundary: Sequence[Tensor | None]
    legal: Legal | None


def hear(question: Question) -> Heard:
    """Ask every voice what may come next.

    Args:
        question: The rows and what they stand on.

    Returns:
        What they say.
    """
    task, rows = question.task, question.rows
    voices = task.voices
    legal = legal_ids(voices, rows, task.spelled)
    distributions = [
        voice_distribution(
            voice,
            logits,
            [START if place else row.utf8 for row in rows],
            None if legal is None else legal.masks[place],
        )
        for place, (voice, logits) in enumerate(zip(voices, question.logits, strict=True))
    ]
    if voices[0].trie is not None:
        return _along(question, distributions, legal)
    silent = silent_rows(rows, len(voices))
    boundary = question.caches.trackers.boundaries(rows, distributions, question.at)
    weights = row_weights(question.shares or task.weights, distributions, silent, boundary)
    if getattr(task.fuser, "together", False):
        weights = all_or_main(weights)
    return Heard(distributions, weights, boundary, legal)


def silent_rows(rows: Sequence[Row], voices: int) -> list[list[bool]]:
    """[voice][row], where a voice cannot speak: inside a character, or before a start of its own.

    Args:
        rows: The rows.
        voices: How many voices there are, main first.
    """
    return [
        [place > 0 and (row.fragment or row.starts_apart(place)) for row in rows]
        for place in range(voices)
    ]


def _along(
    question: Question,
    distributions: Sequence[MemberDistribution],
    legal: Legal | None,
) -> Heard:
    """What the voices say along their paths; one without any abstains.

    An open boundary takes nothing from a weight: the paths say what it would.
    """
    trackers = [question.caches.trackers.of(place) for place in range(len(distributions))]
    paths = follow_all(trackers, question.rows, distributions, question.at)
    told = [
        replace(d, paths=own, abstain=own.mass(own.node).maximum(own.end) == -torch.inf)
        for d, (own, _) in zip(distributions, paths, strict=True)
    ]
    nobody = [[False] * len(question.rows)] * len(told)
    base = question.shares or question.task.weights
    weights = row_weights(base, told, nobody, [None] * len(told))
    if getattr(question.task.fuser, "together", False):
        weights = all_or_main(weights)
    return Heard(told, weights, [ends for _, ends in paths], legal)
