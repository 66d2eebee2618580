"""Voices that read later than main: behind a gate that asks main alone they are not waited for.

What a voice notes at every position, its open boundaries, it notes when it has read that far, in
the same order and from the same distributions as if it had read every key at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.boundary import BoundaryTracker
from langchain_ensemble.decoding.draft import Late
from langchain_ensemble.decoding.fusing import voice_distribution
from langchain_ensemble.decoding.gates import read_gate
from langchain_ensemble.decoding.protocols import Voice
from langchain_ensemble.decoding.seeing import watched
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Task


def may_lag(task: Task) -> bool:
    """Whether keys may be settled without the voices beside main.

    Not where somebody wants to be told what they say of every key, not under a grammar, whose masks
    are those of the place where the answer is, and not where voices are followed byte by byte.

    Args:
        task: The request.
    """
    alone = read_gate(task.request.gate).name == "threshold"
    told = watched(task.request) or task.grammar is not None
    told = told or any(voice.trie is not None for voice in task.voices)
    return alone and not told and len(task.voices) > 1


def catch_up(
    tracker: BoundaryTracker, voice: Voice, place: int, late: Sequence[tuple[int, Row, list[Late]]]
) -> None:
    """Note open boundaries at positions that were passed, oldest first.

    Args:
        tracker: The voice's boundaries.
        voice: The voice.
        place: Its place among the voices.
        late: Place of each row among those that run, the row, and the voice's logits.
    """
    longest = max((len(told) for _, _, told in late), default=0)
    for number in range(longest):
        rows = [(b, row, told[number]) for b, row, told in late if number < len(told)]
        said = voice_distribution(
            voice, torch.stack([logits for _, _, (_, logits) in rows]), [START] * len(rows)
        )
        held = [row.held_by(place, at) for _, row, (at, _) in rows]
        tracker.observe(said, held, [True] * len(rows), [b for b, _, _ in rows])
