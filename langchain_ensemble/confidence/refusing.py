"""When an answer is refused, because its members are not sure enough of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from langchain_ensemble.confidence.features import Confidence, ConfidenceMap, confidence_of
from langchain_ensemble.decoding.records import Answer
from langchain_ensemble.errors import AbstainedError


class Learned(Protocol):
    """A calibration, as far as confidence goes."""

    @property
    def confidence(self) -> Mapping[str, Any] | None:
        """What :meth:`ConfidenceMap.from_dict` reads; None: no map was learned."""


class Asked(Protocol):
    """A request, as far as confidence goes."""

    @property
    def weights(self) -> Any:
        """Whose weights count."""

    @property
    def abstain_below(self) -> float | None:
        """Confidence below which an answer is refused."""


def map_for(calibration: Learned | None, weights: Any) -> ConfidenceMap | None:
    """Give the map that holds for a request.

    Args:
        calibration: What was learned for these members, if anything was.
        weights: The request's. A map belongs to the weights that were learned with it.

    Returns:
        The map; None, so that confidence is raw, where there is none or others count.
    """
    learned = None if calibration is None else calibration.confidence
    if learned is None or weights not in (None, "calibrated"):
        return None
    return ConfidenceMap.from_dict(learned)


def refuse(name: str, text: str, sure: Confidence, limit: float | None) -> None:
    """Refuse an answer below a limit.

    Args:
        name: Whose answer it is.
        text: The answer.
        sure: How sure its members are.
        limit: ``abstain_below``.

    Raises:
        AbstainedError: They are not sure enough.
    """
    if limit is None or sure.confidence >= limit:
        return
    raise AbstainedError(
        f"the members of {name} are {sure.confidence:.3f} sure of their answer, and "
        f"abstain_below={limit:g} refuses it; lower the limit, ask another model, or read it in "
        ".answer",
        answer=text,
        confidence=sure.confidence,
        limit=limit,
    )


def sure_enough(
    name: str, answers: list[list[Answer]], request: Asked, calibration: Learned | None
) -> list[list[Answer]]:
    """Give answers on, unless one of them is below the request's limit.

    Args:
        name: Whose answers they are.
        answers: [prompt][n].
        request: What was asked for.
        calibration: What was learned for these members, if anything was.

    Returns:
        The answers.

    Raises:
        AbstainedError: The first that is below it.
    """
    if request.abstain_below is not None:
        learned = map_for(calibration, request.weights)
        for answer in (one for group in answers for one in group):
            sure = confidence_of(answer.tokens, learned)
            refuse(name, answer.text, sure, request.abstain_below)
    return answers
