"""Systems beside each other: accuracies, differences, agreement, votes. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from langchain_ensemble.choose.asking import Reply
from langchain_ensemble.choose.devset import Item
from langchain_ensemble.choose.power import sign_test
from langchain_ensemble.choose.rule import length_ratio
from langchain_ensemble.choose.stats import (
    Interval,
    clopper_pearson,
    paired_bootstrap,
)
from langchain_ensemble.choose.verdict import Contest

SystemKind = Literal["candidate", "self-consistency", "vote", "ensemble"]


@dataclass(frozen=True)
class System:
    """One way to answer the dev set, and how it fared.

    Attributes:
        name: What it is called.
        kind: A candidate alone, samples of one that vote, members whose answers vote, an ensemble.
        members: Names of the candidates that it needs.
        texts: Its answers.
        right: Which of them are right.
        memory: Bytes that it needs; None: not known.
        seconds: Mean time of an answer here; None: it has none of its own.
        fused: Share of its steps that were fused; None: it fuses nothing.
        settings: What makes it, beside the members.
    """

    name: str
    kind: SystemKind
    members: tuple[str, ...]
    texts: tuple[str, ...]
    right: tuple[bool, ...]
    memory: int | None = None
    seconds: float | None = None
    fused: float | None = None
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)

    @property
    def length(self) -> float:
        """Mean length of its answers in characters."""
        return sum(map(len, self.texts)) / len(self.texts)

    def interval(self, level: float) -> Interval:
        """Its accuracy with the exact interval of Clopper and Pearson."""
        return Interval(self.accuracy, *clopper_pearson(sum(self.right), len(self.right), level))


@dataclass(frozen=True)
class Pair:
    """How alike two candidates are.

    Attributes:
        names: Of the two.
        gap: Of their accuracies.
        length_ratio: Mean length of the longer answers over that of the shorter ones.
        agreement: Share of questions that they answer alike.
        first_word: Share of questions where their answers begin with the same word.
        both_wrong: Share of questions that neither answers right.
    """

    names: tuple[str, str]
    gap: float
    length_ratio: float
    agreement: float
    first_word: float
    both_wrong: float


@dataclass(frozen=True)
class Ceiling:
    """What no policy that returns one of their answers can pass: ``1 - beta``.

    Attributes:
        names: Whose answers.
        oracle: Share of questions that at least one of them answers right.
        beta: Share of questions that all of them get wrong, with its exact interval.
    """

    names: tuple[str, ...]
    oracle: float
    beta: Interval


def contest(ours: System, theirs: System, level: float, seed: int = 0) -> Contest:
    """Compare two systems on the same questions.

    Args:
        ours: One.
        theirs: The other.
        level: Of the interval.
        seed: Of the bootstrap.

    Returns:
        Difference, sign test, and how often they differ.
    """
    both = list(zip(ours.right, theirs.right, strict=True))
    wins, losses = sum(a and not b for a, b in both), sum(b and not a for a, b in both)
    return Contest(
        paired_bootstrap(ours.right, theirs.right, level=level, seed=seed),
        sign_test(ours.right, theirs.right),
        (wins + losses) / len(both),
        clopper_pearson(wins, len(both), level)[1] - clopper_pearson(losses, len(both), level)[0],
    )


def pair(items: Sequence[Item], one: System, other: System) -> Pair:
    """Compare how two candidates answer.

    Args:
        items: The questions.
        one: A candidate.
        other: Another.

    Returns:
        Gap, style and agreement.
    """
    alike = first = 0
    for item, a, b in zip(items, one.texts, other.texts, strict=True):
        alike += bool(item.said(a)) and item.said(a) == item.said(b)
        first += _first_word(a) == _first_word(b)
    count = len(items)
    wrong = sum(not (a or b) for a, b in zip(one.right, other.right, strict=True))
    return Pair(
        (one.name, other.name),
        abs(one.accuracy - other.accuracy),
        length_ratio(one.length, other.length),
        alike / count,
        first / count,
        wrong / count,
    )


def _first_word(text: str) -> str:
    return next(iter(text.lower().split()), "")


def ceiling(systems: Sequence[System], level: float) -> Ceiling:
    """Find the share of questions that all of some systems get wrong.

    Args:
        systems: Candidates.
        level: Of the interval.

    Returns:
        Oracle and beta.
    """
    wrong = [not any(right) for right in zip(*(one.right for one in systems), strict=True)]
    count, size = sum(wrong), len(wrong)
    beta = Interval(count / size, *clopper_pearson(count, size, level))
    return Ceiling(tuple(one.name for one in systems), 1 - beta.mean, beta)


def vote(item: Item, replies: Sequence[Reply], *, likeliest: bool = False) -> Reply:
    """Take the answer that most replies come to.

    Args:
        item: The question.
        replies: Answers to it.
        likeliest: Where parties are even, the likeliest reply (log-probability a token) wins, not
            the first: for replies of one model, whose likelihoods can be compared.

    Returns:
        A reply of the largest party; replies that come to nothing are no party unless all do.
    """
    said = [item.said(reply.text) for reply in replies]
    counts = Counter(one for one in said if one) or Counter(said)
    most = max(counts.values())
    left = [reply for one, reply in zip(said, replies, strict=True) if counts[one] == most]
    if likeliest:
        return max(left, key=lambda reply: reply.features["mean_logprob"])
    return left[0]


def agreement(item: Item, text: str, replies: Sequence[Reply]) -> float:
    """Share of replies that come to the same as an answer; one that comes to nothing: none."""
    said = item.said(text)
    return sum(bool(said) and item.said(reply.text) == said for reply in replies) / len(replies)
