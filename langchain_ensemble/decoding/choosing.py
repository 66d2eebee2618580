"""What a request asks for in a step, and who answers: the fusion, or main's raw logits.

Requests of the same voices, weights and sampling settings are one question: their rows are fused
and drawn together, in as many kernels and one transfer to the host as one of them would take. A
row's answer does not depend on the others: every law of a fusion is a law of its rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from langchain_ensemble.decoding.caches import Caches
from langchain_ensemble.decoding.fused import choose_by_main, choose_fused
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.raw import choose_raw
from langchain_ensemble.decoding.seeing import watched
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Chosen
from langchain_ensemble.fusion.base import MemberDistribution

Boundaries = list[Tensor | None]
"""c_i [n] of every voice, None where it is 1."""


def choose_all(questions: Sequence[Question]) -> list[list[Chosen]]:
    """Choose a key for every row of some requests.

    Args:
        questions: One a request.

    Returns:
        One choice a row, request by request.

    Raises:
        Exception: What went wrong in the first request in which anything did.
    """
    found: list[list[Chosen]] = []
    for picked in choose_apart(questions):
        if isinstance(picked, Exception):
            raise picked
        found.append(picked)
    return found


def choose_apart(questions: Sequence[Question]) -> list[list[Chosen] | Exception]:
    """As :func:`choose_all`, but what goes wrong stays with the request it belongs to.

    Args:
        questions: One a request.

    Returns:
        One choice a row, or the error, request by request.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(_kind(question) or number, []).append(number)
    found: dict[int, list[Chosen] | Exception] = {}
    for numbers in groups.values():
        answers = _together([questions[number] for number in numbers])
        found.update(zip(numbers, answers, strict=True))
    return [found[number] for number in range(len(questions))]


def _choose(question: Question) -> list[Chosen]:
    if len(question.task.voices) == 1:
        return choose_raw(question)
    if question.alone:
        return choose_by_main(question)
    replayed = None if question.task.regions is None else question.task.regions.choose(question)
    return choose_fused(question) if replayed is None else replayed


def _kind(question: Question) -> Hashable:
    """What two requests must have in common to be one question; None: it stands alone.

    A grammar's masks are made for one request, and a call that opens on its text is looked at in
    main's cache: those stand alone, and so do paths through answers.
    """
    task = question.task
    if task.voices[0].trie is not None:
        return None
    if task.grammar is not None or (task.opening is not None and task.opening.literal):
        return None
    request = task.request
    settings = (request.temperature, request.top_k, request.top_p, request.min_p)
    return (
        tuple((id(voice.member), id(voice.keys), voice.turns) for voice in task.voices),
        (id(task.fuser), task.places, task.num_members),
        "each row's own" if task.rating is not None or task.online else task.weights,
        task.online,
        settings if question.generators is not None else "greedy",
        request.repetition_penalty,
        (watched(request), request.trace, repr(request.gate)),
        (task.opening, question.alone),
        tuple(task.spelled.items()),
    )


def _together(questions: Sequence[Question]) -> list[list[Chosen] | Exception]:
    """Choose for requests of one kind."""
    if len(questions) == 1:
        return [_alone(questions[0])]
    parts = _Parts(questions)
    try:
        chosen = _choose(_merged(questions, parts))
    except torch.OutOfMemoryError as error:  # all of them needed that memory
        return [error] * len(questions)
    except Exception:  # whose it is shows when each is asked alone
        return [
            _alone(question if seen is None else _weighed(question, seen, kept=parts.kept))
            for question, seen in zip(questions, parts.seen, strict=True)
        ]
    ends = parts.ends
    return [chosen[end - len(q.rows) : end] for q, end in zip(questions, ends, strict=True)]


def _alone(question: Question) -> list[Chosen] | Exception:
    try:
        return _choose(question)
    except Exception as error:
        return error


def _weighed(question: Question, seen: Boundaries, *, kept: bool) -> Question:
    """A question whose open boundaries were weighed already, to be answered step by step."""
    task = replace(question.task, regions=None)
    return replace(question, task=task, caches=_as_caches(_Seen(seen, question.caches, kept)))


def _merged(questions: Sequence[Question], parts: _Parts) -> Question:
    """Some requests as one with the rows of all."""
    first = questions[0]
    return Question(
        task=first.task,
        rows=[row for question in questions for row in question.rows],
        at=range(parts.ends[-1]),
        logits=[torch.cat(each) for each in zip(*(q.logits for q in questions), strict=True)],
        caches=_as_caches(parts),
        generators=None
        if first.generators is None
        else [own for question in questions for own in question.generators or ()],
        ids=[own for question in questions for own in question.ids],
        proposed=[
            own
            for question in questions
            for own in question.proposed or [None] * len(question.rows)
        ],
        shares=[own for question in questions for own in question.shares],
    )


class _Parts:
    """Open boundaries of several requests, each in its own caches."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self.ends: list[int] = []
        for question in questions:
            self.ends.append(len(question.rows) + (self.ends[-1] if self.ends else 0))
        self.seen: list[Boundaries | None] = [None] * len(questions)
        self.kept = True
        self.trackers = self

    def weighed(self) -> tuple[bool, ...]:
        """Voices whose boundaries are known."""
        return self._questions[0].caches.trackers.weighed()

    def weigh(self, rows: Sequence[Row], at: Sequence[int]) -> Boundaries:
        """c_i of all rows, before the voices are heard."""
        self.kept = False
        found = [q.caches.trackers.weigh(q.rows, q.at) for q in self._questions]
        self.seen = list(found)
        return [_joined(column) for column in zip(*found, strict=True)]

    def keep(self, logprobs: Sequence[Tensor | None]) -> None:
        """Keep what the weighed voices say."""
        for question, end in zip(self._questions, self.ends, strict=True):
            own = slice(end - len(question.rows), end)
            mine = [None if one is None else one[own] for one in logprobs]
            question.caches.trackers.keep(mine)
        self.kept = True

    def boundaries(
        self, rows: Sequence[Row], distributions: Sequence[MemberDistribution], at: Sequence[int]
    ) -> Boundaries:
        """c_i of all rows."""
        found = self.weigh(rows, at)
        self.keep([one.logprobs for one in distributions])
        return found


@dataclass(frozen=True)
class _Seen:
    """Open boundaries that were weighed already; weighing them notes them, and is done once."""

    found: Boundaries
    caches: Caches
    kept: bool

    @property
    def trackers(self) -> _Seen:
        """Itself."""
        return self

    def boundaries(
        self, _: Sequence[Row], distributions: Sequence[MemberDistribution], __: Sequence[int]
    ) -> Boundaries:
        """What was found; what follows from it is kept, where it was not yet."""
        if not self.kept:
            self.caches.trackers.keep([one.logprobs for one in distributions])
        return self.found


def _as_caches(boundaries: _Parts | _Seen) -> Caches:
    """All that is asked of a request's caches here are its boundaries."""
    return cast(Caches, boundaries)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One voice's c_i of all rows; it is weighed in all requests or in none."""
    weighed = [part for part in parts if part is not None]
    return torch.cat(weighed) if weighed else None
