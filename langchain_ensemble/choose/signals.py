"""How well a number tells right answers from wrong ones. Pure functions over replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_ensemble.choose.asking import Reply
from langchain_ensemble.choose.compare import agreement
from langchain_ensemble.choose.devset import Item
from langchain_ensemble.choose.stats import auroc, reliability, risk_coverage

CONSISTENCY = "agreement of {} samples of {}"


@dataclass(frozen=True)
class Signal:
    """One confidence, over the answers of one system.

    Attributes:
        name: What it is.
        of: Whose answers.
        values: The confidence of each answer, in [0, 1].
        auroc: Probability that a wrong answer has less of it than a right one; None where all
            answers are right, or all wrong.
        risk_coverage: ``(share answered, share wrong among them)``, the surest first.
        reliability: ``(mean confidence, share right, count)``, in tenths.
    """

    name: str
    of: str
    values: tuple[float, ...]
    auroc: float | None
    risk_coverage: tuple[tuple[float, float], ...]
    reliability: tuple[tuple[float, float, int], ...]


def signal(name: str, of: str, values: Sequence[float], right: Sequence[bool]) -> Signal:
    """Measure one confidence.

    Args:
        name: What it is.
        of: Whose answers.
        values: Of each answer, in [0, 1], higher is surer.
        right: Which answers are right.

    Returns:
        AUROC of "this answer is wrong", risk-coverage curve, reliability.
    """
    wrong = [not one for one in right]
    area = auroc([-value for value in values], wrong)
    return Signal(
        name,
        of,
        tuple(values),
        None if math.isnan(area) else area,
        tuple(risk_coverage(values, wrong)),
        tuple(reliability(values, right)),
    )


def signals(
    items: Sequence[Item],
    of: str,
    replies: Sequence[Reply],
    right: Sequence[bool],
    main: str,
    sampled: tuple[str, Sequence[Sequence[Reply]]] | None,
) -> tuple[Signal, ...]:
    """Measure every confidence that there is for the answers of one system.

    Args:
        items: The questions.
        of: What the system is called.
        replies: Its answers.
        right: Which of them are right.
        main: Whose own log-probability counts.
        sampled: Who was sampled, and ``[question][n]`` samples.

    Returns:
        The members' agreement, where there are several; main's mean token probability; how many of
        the samples come to the same answer.
    """
    found = {}
    for name in replies[0].features:
        found[f"members: {name}"] = [reply.features[name] for reply in replies]
    own = [reply.main_logprob if reply.main_logprob is not None else reply.logprob
           for reply in replies]  # fmt: skip
    if None not in own:
        found[f"token probability of {main}"] = [math.exp(min(0.0, one or 0.0)) for one in own]
    if sampled is not None:
        who, samples = sampled
        found[CONSISTENCY.format(len(samples[0]), who)] = [
            agreement(item, reply.text, those)
            for item, reply, those in zip(items, replies, samples, strict=True)
        ]
    return tuple(signal(name, of, values, right) for name, values in found.items())
