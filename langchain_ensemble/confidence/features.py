"""How sure the members are of an answer: features of its tokens, one number, spans.

Plain data in and out, the standard library only. The raw number is

    confidence = exp(mean logprob),

the geometric mean of what the members together gave the tokens that they said. Where members are
apart, that is low already: lowering it once more by their disagreement ranks answers worse
(``benchmarks/confidence.py``). It ranks answers; it is a probability of being right only behind a
:class:`ConfidenceMap` that was fitted to answers whose truth is known, and that weighs
disagreement too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_ensemble.decoding.records import TokenRecord
from langchain_ensemble.errors import ConfigError, unknown_name

FLOOR = -30.0
"""Log-probability below which one token weighs no more; also what a missing token counts."""

FEATURES = (
    *("mean_logprob", "min_logprob", "mean_main_logprob", "mean_least_logprob"),
    *("mean_disagreement", "max_disagreement", "overruled", "share_fused"),
)
"""What :func:`confidence_features` gives, in this order."""


def confidence_features(tokens: Sequence[TokenRecord]) -> dict[str, float]:
    """Say in a few numbers how an answer came about.

    Args:
        tokens: The answer's decode steps, END among them, asked for with ``logprobs``, ``trace`` or
            ``abstain_below``.

    Returns:
        :data:`FEATURES` by name. ``mean_logprob``, ``min_logprob``: of the chosen keys, as the
        members together gave them; ``mean_main_logprob``: as main alone did;
        ``mean_least_logprob``: as the voice that gave each key the least did;
        ``mean_disagreement``, ``max_disagreement``: how far apart they were, 0 in steps of one
        voice; ``overruled``: share of the steps in which main's favourite lost; ``share_fused``:
        share of the steps in which more than one had a say. Log-probabilities are cut at
        :data:`FLOOR`, which is also their value in an answer without any step.

    Raises:
        ConfigError: The steps have no log-probabilities, because nobody asked for them.
    """
    if any(token.logprob is None for token in tokens):
        raise ConfigError(
            "these tokens have no log-probabilities, so nothing is known of how sure they are; "
            "ask with logprobs=True, trace=True or abstain_below="
        )
    together = [_floored(token.logprob) for token in tokens]
    main = [_floored(next(iter(token.members.values()), None)) for token in tokens]
    least = [min(map(_floored, token.members.values()), default=FLOOR) for token in tokens]
    apart = [token.disagreement or 0.0 for token in tokens]
    return {
        "mean_logprob": _mean(together, FLOOR),
        "min_logprob": min(together, default=FLOOR),
        "mean_main_logprob": _mean(main, FLOOR),
        "mean_least_logprob": _mean(least, FLOOR),
        "mean_disagreement": _mean(apart, 0.0),
        "max_disagreement": max(apart, default=0.0),
        "overruled": _mean([float(token.overruled is True) for token in tokens], 0.0),
        "share_fused": _mean([float(token.fused) for token in tokens], 0.0),
    }


def raw_confidence(features: Mapping[str, float]) -> float:
    """``exp(mean logprob)``: the geometric mean of the tokens' fused probabilities.

    Args:
        features: What :func:`confidence_features` gives.

    Returns:
        A number in [0, 1] that ranks answers; 0 for an answer without any step.
    """
    if features["mean_logprob"] <= FLOOR:
        return 0.0
    return math.exp(min(features["mean_logprob"], 0.0))


@dataclass(frozen=True)
class ConfidenceMap:
    """A logistic map from features to the probability that an answer is right.

    Attributes:
        features: Names of :data:`FEATURES`.
        coefficients: One a feature.
        intercept: What is added.
    """

    features: tuple[str, ...]
    coefficients: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        """Refuse names that are no features, and numbers that are none."""
        for name in self.features:
            if name not in FEATURES:
                raise ConfigError(unknown_name("feature of confidence", name, FEATURES))
        if len(self.features) != len(self.coefficients):
            raise ConfigError(
                f"a confidence map has {len(self.features)} features and "
                f"{len(self.coefficients)} coefficients; give one for each"
            )
        numbers = (*self.coefficients, self.intercept)
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
            raise ConfigError(f"a confidence map has the numbers {numbers}; all must be finite")

    @classmethod
    def from_dict(cls, read: Mapping[str, Any]) -> ConfidenceMap:
        """Read the ``confidence`` entry of a calibration file.

        Args:
            read: ``features``, ``coefficients``, ``intercept``.

        Raises:
            ConfigError: Something is missing, unknown or no number.
        """
        try:
            names, numbers = tuple(read["features"]), tuple(read["coefficients"])
            return cls(names, numbers, read["intercept"])
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"a confidence map needs features, coefficients and intercept; it is {read!r}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Give the map as JSON."""
        return {
            "features": list(self.features),
            "coefficients": list(self.coefficients),
            "intercept": self.intercept,
        }

    def __call__(self, features: Mapping[str, float]) -> float:
        """``1 / (1 + exp(-(intercept + sum_k coefficient_k feature_k)))``.

        Args:
            features: What :func:`confidence_features` gives.

        Returns:
            A probability.
        """
        pairs = zip(self.features, self.coefficients, strict=True)
        total = self.intercept + math.fsum(value * features[name] for name, value in pairs)
        if total >= 0:
            return 1.0 / (1.0 + math.exp(-total))
        grown = math.exp(max(total, -700.0))
        return grown / (1.0 + grown)


@dataclass(frozen=True)
class Confidence:
    """How sure the members are of an answer, or of a span of it.

    Attributes:
        confidence: In [0, 1]; see :func:`raw_confidence`, or what a map made of the features.
        calibrated: Whether a map was there: then it is a probability of being right.
        mean_logprob: Of the chosen keys, nats.
        mean_disagreement: In [0, 1].
        max_disagreement: In [0, 1].
    """

    confidence: float
    calibrated: bool
    mean_logprob: float
    mean_disagreement: float
    max_disagreement: float

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON, rounded to six places."""
        return {
            "confidence": round(self.confidence, 6),
            "calibrated": self.calibrated,
            "mean_logprob": round(self.mean_logprob, 6),
            "mean_disagreement": round(self.mean_disagreement, 6),
            "max_disagreement": round(self.max_disagreement, 6),
        }


def confidence_of(
    tokens: Sequence[TokenRecord], calibrated: ConfidenceMap | None = None
) -> Confidence:
    """Say how sure the members are of some tokens.

    Args:
        tokens: As in :func:`confidence_features`.
        calibrated: A map that was fitted to whole answers; None: the raw number.

    Returns:
        The number, and the most telling of what it was made from.
    """
    features = confidence_features(tokens)
    made = raw_confidence(features) if calibrated is None else calibrated(features)
    return Confidence(
        made,
        calibrated is not None,
        features["mean_logprob"],
        features["mean_disagreement"],
        features["max_disagreement"],
    )


def _floored(logprob: float | None) -> float:
    return FLOOR if logprob is None else max(logprob, FLOOR)


def _mean(values: Sequence[float], empty: float) -> float:
    return math.fsum(values) / len(values) if values else empty
