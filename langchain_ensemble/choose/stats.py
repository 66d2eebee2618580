"""Small exact statistics: intervals of accuracies and differences, and how good a confidence is.

Every resampling is seeded, so the same numbers give the same interval on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from langchain_ensemble.errors import ConfigError

Numbers = Sequence[float] | npt.NDArray[np.floating] | npt.NDArray[np.integer]
Flags = Sequence[bool] | npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_AT_ONCE = 4_000_000  # drawn indices held in memory together
_HALVINGS = 100  # of [0, 1]: past float64


class Interval(NamedTuple):
    """An estimate between its bounds."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether both bounds lie on one side of zero."""
        return self.low > 0 or self.high < 0


def _vector(name: str, values: Numbers | Flags) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise ConfigError(
            f"{name} must be a non-empty list of finite numbers, one per item; "
            f"it has shape {vector.shape}, {int((~np.isfinite(vector)).sum())} are not finite."
        )
    return vector


def vectors(**named: Numbers | Flags) -> list[Floats]:
    """Read lists of numbers, one per item; refuse unequal lengths and what is not finite."""
    vectors = [_vector(name, values) for name, values in named.items()]
    if len({len(vector) for vector in vectors}) > 1:
        sizes = ", ".join(f"{name}: {len(v)}" for name, v in zip(named, vectors, strict=True))
        raise ConfigError(f"Paired statistics need one number per item from each side ({sizes}).")
    return vectors


def _checked(samples: int, level: float) -> None:
    if samples < 1 or not 0 < level < 1:
        raise ConfigError(
            f"A bootstrap needs samples >= 1 and a level in (0, 1), not {samples} and {level}."
        )


def _resampled(
    statistic: Callable[[npt.NDArray[np.intp]], Floats], size: int, samples: int, seed: int
) -> Floats:
    """``statistic`` of ``samples`` draws with replacement from ``size`` items: ``[samples]``."""
    generator = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // size)
    parts = [
        statistic(generator.integers(0, size, (min(step, samples - start), size)))
        for start in range(0, samples, step)
    ]
    return np.concatenate(parts)


def _percentiles(mean: float, values: Floats, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(mean), float(low), float(high))


def paired_bootstrap(
    ours: Numbers | Flags,
    theirs: Numbers | Flags,
    *,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of ``ours - theirs``, two systems on the same items, and its percentile interval.

    Args:
        ours: ``[N]``, one score per item.
        theirs: ``[N]``, the other system's score on the same items, in the same order.
        samples: How often the items are drawn again, with replacement.
        level: The share of resampled means between the bounds.
        seed: Of the draws.

    Returns:
        The mean difference and its bounds.

    Raises:
        ConfigError: On no items, different numbers of them, or values that are not finite.
    """
    _checked(samples, level)
    a, b = vectors(ours=ours, theirs=theirs)
    difference = a - b
    drawn = _resampled(lambda index: difference[index].mean(axis=1), len(a), samples, seed)
    return _percentiles(difference.mean(), drawn, level)


def bootstrap_ratio(
    nats_a: Numbers,
    nats_b: Numbers,
    sizes: Numbers,
    *,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How much shorter ``a`` codes a text than ``b``: ``1 - sum(a) / sum(b)``, by paragraph.

    Args:
        nats_a: ``[N]`` nats of each paragraph under one system.
        nats_b: ``[N]`` nats under the other.
        sizes: ``[N]`` bytes of each paragraph. Bits per byte of one text have one denominator,
            which cancels; the sizes say that both sides mean the same paragraphs, none empty.
        samples: How often the paragraphs are drawn again, with replacement.
        level: The share of resampled ratios between the bounds.
        seed: Of the draws.

    Returns:
        The relative saving (0.04: ``a`` needs 4 % fewer bits per byte) and its bounds.

    Raises:
        ConfigError: On no paragraphs, different numbers of them, or one without bytes or nats.
    """
    _checked(samples, level)
    a, b, bytes_of = vectors(nats_a=nats_a, nats_b=nats_b, sizes=sizes)
    if (bytes_of <= 0).any() or (b <= 0).any():
        raise ConfigError(
            f"Every paragraph needs bytes and nats above 0; the smallest are {bytes_of.min():g} "
            f"bytes and {b.min():g} nats. Leave empty paragraphs out."
        )
    drawn = _resampled(
        lambda index: 1 - a[index].sum(axis=1) / b[index].sum(axis=1), len(a), samples, seed
    )
    return _percentiles(1 - a.sum() / b.sum(), drawn, level)


def binomial_tail(k: int, n: int, p: float) -> float:
    """``P(X >= k)`` of ``X ~ Binomial(n, p)``, summed from the smaller side."""
    if k <= 0 or p >= 1:
        return 1.0
    if p <= 0 or k > n:
        return 0.0
    upper = k > n * p
    terms = range(k, n + 1) if upper else range(k)
    logs = [
        *(
            math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
            + i * math.log(p) + (n - i) * math.log1p(-p)
            for i in terms
        )
    ]  # fmt: skip
    total = math.fsum(math.exp(value) for value in logs)
    return min(1.0, total) if upper else max(0.0, 1.0 - total)


def _root(reaches: Callable[[float], bool]) -> float:
    """The smallest ``p`` in [0, 1] from which on ``reaches`` holds."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share of which ``k`` of ``n`` were seen (Clopper and Pearson, 1934).

    Args:
        k: How many.
        n: Of how many.
        level: At least this share of such intervals holds the truth.

    Returns:
        ``(low, high)`` with ``P(X >= k | low) = P(X <= k | high) = (1 - level) / 2``.

    Raises:
        ConfigError: Unless ``0 <= k <= n``, ``n >= 1`` and the level lies between 0 and 1.
    """
    if not 0 <= k <= n or n < 1 or not 0 < level < 1:
        raise ConfigError(
            f"An interval of a share needs 0 <= k <= n, n >= 1 and a level between 0 and 1; "
            f"they are k={k}, n={n}, level={level}."
        )
    half = (1 - level) / 2
    low = 0.0 if k == 0 else _root(lambda p: binomial_tail(k, n, p) >= half)
    # P(X <= k | p) = P(Y >= n - k | 1 - p): the small tail is summed, never 1 - (almost 1)
    high = 1.0 if k == n else 1.0 - _root(lambda q: binomial_tail(n - k, n, q) >= half)
    return low, high


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def auroc(scores: Numbers, positive: Flags) -> float:
    """Probability that a positive item scores above a negative one, ties counting half.

    Args:
        scores: ``[N]``; higher should mean positive.
        positive: ``[N]``, which items are.

    Returns:
        Area under the ROC curve; NaN where every item is of one kind.

    Raises:
        ConfigError: On no items, different numbers of them, or scores that are not finite.
    """
    values, flags = vectors(scores=scores, positive=positive)
    yes = flags > 0
    ones, zeros = int(yes.sum()), int((~yes).sum())
    if not ones or not zeros:
        return math.nan
    return float((_ranks(values)[yes].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def bootstrap_auroc(
    scores: Numbers,
    positive: Flags,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """:func:`auroc` with its percentile interval; draws that hold one kind only do not count.

    Args:
        scores: ``[N]``; higher should mean positive.
        positive: ``[N]``, which items are.
        samples: How often the items are drawn again, with replacement.
        level: The share of resampled values between the bounds.
        seed: Of the draws.

    Returns:
        The area and its bounds; None where every item is of one kind.

    Raises:
        ConfigError: On no items, different numbers of them, or scores that are not finite.
    """
    _checked(samples, level)
    values, flags = vectors(scores=scores, positive=positive)
    area = auroc(values, flags > 0)
    if math.isnan(area):
        return None
    draw = np.random.default_rng(seed)
    picks = (draw.integers(0, len(values), len(values)) for _ in range(samples))
    drawn = np.array([auroc(values[pick], flags[pick] > 0) for pick in picks])
    return _percentiles(area, drawn[~np.isnan(drawn)], level)


def risk_coverage(confidence: Numbers, wrong: Flags) -> list[tuple[float, float]]:
    """Share of wrong answers among those given, as the bound of confidence falls.

    Args:
        confidence: ``[N]``, higher is surer.
        wrong: ``[N]``, which answers are wrong.

    Returns:
        ``(coverage, risk)`` for each distinct confidence, from the surest on; the last covers all.

    Raises:
        ConfigError: On no items, different numbers of them, or values that are not finite.
    """
    sure, flags = vectors(confidence=confidence, wrong=wrong)
    order = np.argsort(-sure, kind="stable")
    errors = np.cumsum(flags[order] > 0)
    ends = np.flatnonzero(
        np.append(np.diff(sure[order]) != 0, True)
    )  # equal confidence goes together
    return [(float((i + 1) / len(sure)), float(errors[i] / (i + 1))) for i in ends]


def risk_at(curve: Sequence[tuple[float, float]], coverage: float) -> float:
    """Share of wrong answers among the surest, where they are cut anywhere.

    Args:
        curve: What :func:`risk_coverage` gives.
        coverage: Share of answers that are given, above 0. Of equally sure ones, a part that was
            drawn by lot: what it holds of wrong ones on average.

    Returns:
        The share.
    """
    before = (0.0, 0.0)  # share given, and share given and wrong
    for share, risk in curve:
        if share >= coverage:
            part = (coverage - before[0]) / (share - before[0])
            return (before[1] + part * (share * risk - before[1])) / coverage
        before = (share, share * risk)
    return before[1] / before[0]


def reliability(
    confidence: Numbers, right: Flags, bins: int = 10
) -> list[tuple[float, float, int]]:
    """Whether a confidence of 0.7 is right seven times in ten.

    Args:
        confidence: ``[N]`` in [0, 1].
        right: ``[N]``, which answers are right.
        bins: Equal parts of [0, 1]; a bound belongs to the upper one, 1 to the last.

    Returns:
        ``(mean confidence, share right, count)`` of each part that holds an item.

    Raises:
        ConfigError: On no items, different numbers of them, a confidence outside [0, 1], no bins.
    """
    sure, flags = vectors(confidence=confidence, right=right)
    if bins < 1 or sure.min() < 0 or sure.max() > 1:
        raise ConfigError(
            f"Reliability needs confidences in [0, 1] and bins >= 1; they lie in "
            f"[{sure.min():g}, {sure.max():g}], bins={bins}."
        )
    part = np.minimum((sure * bins).astype(np.intp), bins - 1)
    return [
        (
            float(sure[part == b].mean()),
            float((flags[part == b] > 0).mean()),
            int((part == b).sum()),
        )
        for b in np.unique(part)
    ]
