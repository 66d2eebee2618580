"""How well a number tells right answers from wrong ones. Pure functions over replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_ensemble.choose.asking import Reply
from langchain_ensemble.choose.compare import agreement
from langchain_ensemble.choose.devset import Item
from langchain_ensemble.choose.stats import (
    Interval,
    bootstrap_auroc,
    reliability,
    risk_coverage,
)
from langchain_ensemble.choose.sureness import out_of_fold
from langchain_ensemble.confidence import raw_confidence


@dataclass(frozen=True)
class Signal:
    """One confidence, over the answers of one system.

    Attributes:
        name: What it is.
        of: Whose answers.
        values: The confidence of each answer, in [0, 1].
        auroc: Probability that a wrong answer has less of it than a right one, with a bootstrap
            interval; None where all answers are right, or all wrong.
        risk_coverage: ``(share answered, share wrong among them)``, the surest first.
        reliability: ``(mean confidence, share right, count)``, in tenths.
    """

    name: str
    of: str
    values: tuple[float, ...]
    auroc: Interval | None
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
    return Signal(
        name,
        of,
        tuple(values),
        bootstrap_auroc([-value for value in values], wrong),
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
        Where several members had a say, their confidence, by a map that was learned on other
        answers (where there are enough) and raw, and their agreement; main's mean token
        probability; the share of the samples that come to the same answer.
    """
    features = [reply.features for reply in replies]
    alone = not any(one["share_fused"] for one in features)
    own = "mean_logprob" if alone else "mean_main_logprob"
    found: dict[str, Sequence[float]] = {
        f"token probability of {main}": [_probability(one[own]) for one in features]
    }
    if not alone:
        mapped = out_of_fold(features, right)
        learned = {} if mapped is None else {"confidence of the members, learned": mapped}
        found = {
            **learned,
            "confidence of the members": [raw_confidence(one) for one in features],
            "agreement of the members": [1 - one["mean_disagreement"] for one in features],
            **found,
        }
    if sampled is not None:
        who, samples = sampled
        found[f"agreement of {len(samples[0])} samples of {who}"] = [
            agreement(item, reply.text, those)
            for item, reply, those in zip(items, replies, samples, strict=True)
        ]
    return tuple(signal(name, of, values, right) for name, values in found.items())


def _probability(logprob: float) -> float:
    return math.exp(min(0.0, logprob))
