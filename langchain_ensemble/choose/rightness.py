"""What right answers of a dev set teach: weights by the members' scores, and how sure is right.

DeePEn-Adapt (arXiv:2404.12715) weighs each member by its score on a dev set; the confidence map is
fitted on the ensemble's own answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_ensemble.choose.asking import Answers, Model, Progress, Reply, ask
from langchain_ensemble.choose.devset import Item, Metric
from langchain_ensemble.choose.listening import Sample
from langchain_ensemble.choose.stats import auroc
from langchain_ensemble.choose.sureness import FEWEST, enough, learn_map
from langchain_ensemble.errors import ConfigError, EnsembleWarning
from langchain_ensemble.evaluate.metrics import check_gold, check_metric


def questions(samples: Sequence[Sample], metric: Metric) -> list[Item]:
    """A dev set as questions with right answers.

    Args:
        samples: Pairs: what is asked, and the right answer.
        metric: A name of :data:`~langchain_ensemble.evaluate.metrics.METRICS`, or a function of an
            answer and the right ones.

    Returns:
        One question a sample.

    Raises:
        ConfigError: An unknown metric, texts without a prompt, or turns with tool calls.
    """
    check_metric(metric, "calibrate")
    return [_question(number, sample, metric) for number, sample in enumerate(samples)]


def _question(number: int, sample: Sample, metric: Metric) -> Item:
    where = f"item {number} of dev_set"
    check_gold(metric, (sample.text,), where)
    if not sample.before:
        raise ConfigError(
            f"{where} has no prompt, and right answers need a question; give "
            "pairs (prompt, answer), or leave metric= out"
        )
    if isinstance(sample.before, str):
        return Item(sample.before, None, (sample.text,), metric, where)
    if any(message.calls for message in sample.before.messages):
        raise ConfigError(f"{where} has tool calls; leave it out")
    turns = tuple((message.role, message.text) for message in sample.before.messages)
    return Item(None, turns, (sample.text,), metric, where)


def weights_by_scores(
    llm: Model, items: Sequence[Item], progress: Progress
) -> tuple[dict[str, float], dict[str, float]]:
    """``w_k = a_k / sum_j a_j`` with ``a_k`` the share of questions that member k alone has right.

    Args:
        llm: The ensemble; each member answers greedily, with all its other settings.
        items: The questions.
        progress: Called with (stage, done, total).

    Returns:
        Name → weight, and name → share right.

    Raises:
        ConfigError: No member has any right.
    """
    right = {}
    for name in llm.params.names:
        alone = llm.solo(name).model_copy(update=_greedy())
        replies = ask(alone, items, Answers(), f"asking {name}", progress)
        right[name] = sum(_right(items, replies)) / len(items)
    total = sum(right.values())
    if total == 0:
        raise ConfigError(
            f"no member has any of {len(items)} answers right, so scores give no weights; look at "
            "metric=, max_tokens= and stop=, or use method='learned'"
        )
    return {name: share / total for name, share in right.items()}, right


def confidence_by_answers(
    llm: Model,
    items: Sequence[Item],
    halves: tuple[Sequence[int], Sequence[int]],
    weights: Mapping[str, float],
    progress: Progress,
) -> tuple[dict[str, Any] | None, float | None]:
    """Fit how sure is right on one half of the ensemble's answers, and rank the other half.

    Args:
        llm: The ensemble; it answers greedily.
        items: The questions.
        halves: Numbers of those that teach and of those that test.
        weights: With which it answers.
        progress: Called with (stage, done, total).

    Returns:
        The map as JSON and its AUROC; None where too few were right or wrong, with a warning.
    """
    asked = llm.model_copy(update={**_greedy(), "weights": dict(weights)})
    replies = ask(asked, items, Answers(), "asking the ensemble", progress)
    right = _right(items, replies)
    taught, tested = ([right[n] for n in half] for half in halves)
    if not enough(taught):
        warnings.warn(
            f"no confidence map: {sum(taught)} answers of the half that teaches are right and "
            f"{len(taught) - sum(taught)} wrong, {FEWEST} of each are needed",
            EnsembleWarning,
            stacklevel=4,
        )
        return None, None
    features = [said[0].features for said in replies]
    learned = learn_map([features[n] for n in halves[0]], taught)
    sure = [learned(features[n]) for n in halves[1]]
    both = len(set(tested)) == 2
    return learned.to_dict(), auroc(sure, tested) if both else None


def _greedy() -> dict[str, Any]:
    return {"temperature": 0.0, "n": 1, "logprobs": True, "abstain_below": None}


def _right(items: Sequence[Item], replies: Sequence[Sequence[Reply]]) -> list[bool]:
    return [item.right(said[0].text) for item, said in zip(items, replies, strict=True)]
