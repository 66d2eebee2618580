"""Learns the map from features of an answer to the probability that it is right.

Logistic regression with a ridge, by Newton's method: convex, a few iterations, numpy only. Features
are centred and scaled for the fit and the scale is put back, so that the map reads raw features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from langchain_ensemble.confidence import ConfidenceMap
from langchain_ensemble.errors import ConfigError

USED = ("mean_logprob", "min_logprob", "mean_disagreement", "max_disagreement", "overruled")
"""Features of the map: what the ensemble gave its tokens, and how far apart the members were."""

RIDGE = 1.0
"""Penalty on squared coefficients of scaled features, in units of one answer's log-likelihood."""

FEWEST = 10
"""Right answers, and wrong ones, below which nothing is learned."""

FOLDS = 5

Floats = npt.NDArray[np.float64]


def enough(right: Sequence[bool]) -> bool:
    """Whether there are right and wrong answers enough to learn from."""
    return min(sum(right), len(right) - sum(right)) >= FEWEST


def learn_map(features: Sequence[Mapping[str, float]], right: Sequence[bool]) -> ConfidenceMap:
    """Fit the map: minimise ``sum_n log(1 + exp(-y_n (b + x_n a))) + RIDGE/2 |a|^2``.

    Args:
        features: Of each answer, as ``confidence_features`` gives them.
        right: Which answers are right.

    Returns:
        The map.

    Raises:
        ConfigError: Too few right or wrong answers.
    """
    if not enough(right) or len(features) != len(right):
        raise ConfigError(
            f"{sum(right)} right and {len(right) - sum(right)} wrong answers, with features of "
            f"{len(features)}: a confidence map needs {FEWEST} of each kind"
        )
    raw = np.array([[one[name] for name in USED] for one in features], dtype=np.float64)
    mean, scale = raw.mean(0), raw.std(0)
    scale[scale < 1e-9] = np.inf  # what never changes says nothing
    design = np.column_stack([(raw - mean) / scale, np.ones(len(raw))])
    solved = _newton(design, np.array(right, dtype=np.float64))
    coefficients = solved[:-1] / scale
    intercept = float(solved[-1] - (coefficients * mean).sum())
    return ConfidenceMap(USED, tuple(map(float, coefficients)), intercept)


def _newton(design: Floats, truth: Floats) -> Floats:
    """Solve the penalised logistic regression; the last column is not penalised."""
    penalty = np.full(design.shape[1], RIDGE)
    penalty[-1] = 1e-9
    solved = np.zeros(design.shape[1])

    def loss(at: Floats) -> float:
        score = design @ at
        return float(np.logaddexp(0, score).sum() - truth @ score + (penalty * at * at).sum() / 2)

    for _ in range(50):
        probability = 1 / (1 + np.exp(-design @ solved))
        slope = design.T @ (probability - truth) + penalty * solved
        curve = (design.T * (probability * (1 - probability))) @ design + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        size, before = 1.0, loss(solved)
        while loss(solved - size * step) > before and size > 1e-6:
            size /= 2
        solved = solved - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return solved


def out_of_fold(
    features: Sequence[Mapping[str, float]], right: Sequence[bool]
) -> tuple[float, ...] | None:
    """Each answer's confidence by a map that has not seen it.

    Args:
        features: Of each answer.
        right: Which answers are right.

    Returns:
        Probabilities, of every fifth answer by the map of the others; None where some fold leaves
        too few to learn from.
    """
    found = [0.0] * len(right)
    for fold in range(FOLDS):
        taught = [n for n in range(len(right)) if n % FOLDS != fold]
        known = [right[n] for n in taught]
        if not enough(known):
            return None
        learned = learn_map([features[n] for n in taught], known)
        for n in range(fold, len(right), FOLDS):
            found[n] = learned(features[n])
    return tuple(found)
