"""Weights of a request in member order: read from any form, checked, normalised.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_ensemble.errors import ConfigError, unknown_name

RULES = ("uniform", "calibrated", "prompt", "online")
"""Weights that are not numbers."""


class Shares(NamedTuple):
    """Who has a voice, and how much each counts.

    Attributes:
        places: Places of the members, main (or who speaks alone) first.
        weights: One each, sum 1.
        online: Whether these are where weights begin that follow the answer.
    """

    places: tuple[int, ...]
    weights: tuple[float, ...]
    online: bool = False


def resolve_weights(
    weights: Any, names: Sequence[str], calibrated: Mapping[str, float] | None = None
) -> tuple[float, ...]:
    """Bring weights into member order and check them.

    Args:
        weights: A rule, name → weight, or a sequence in the order of ``names``. None: those of the
            calibration where there is one, else uniform. ``"prompt"`` and ``"online"``: what is
            given here is uniform, everybody has a voice; each prompt, or answer, decides.
        names: The members' names.
        calibrated: The weights of the calibration, if there is one.

    Returns:
        One weight a member, non-negative, sum 1 within 1e-6 (then normalised exactly).

    Raises:
        ConfigError: Wrong names or count, negative, not finite, a sum that is not 1, or calibrated
            weights where there is no calibration.
    """
    if weights is None:
        weights = "uniform" if calibrated is None else "calibrated"
    if isinstance(weights, str):
        if weights not in RULES:
            raise ConfigError(unknown_name("weights", weights, RULES))
        if weights != "calibrated":
            return (1.0 / len(names),) * len(names)
        if calibrated is None:
            raise ConfigError(
                "weights='calibrated' without a calibration; give calibration=, the file that "
                "calibrate(dev_set, file=...) wrote"
            )
        weights = calibrated
    values = _weights_by_name(weights, names) if isinstance(weights, Mapping) else list(weights)
    if len(values) != len(names):
        raise ConfigError(
            f"weights has {len(values)} entries for {len(names)} members "
            f"({', '.join(map(repr, names))}); give one for each"
        )
    for name, value in zip(names, values, strict=True):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ConfigError(
                f"weight of member {name!r} is {value!r}; it must be a number of at least 0"
            )
    total = math.fsum(values)
    if abs(total - 1.0) > 1e-6:
        listed = ", ".join(f"{n}={v}" for n, v in zip(names, values, strict=True))
        raise ConfigError(f"weights sum to {total:.6g} ({listed}); they must sum to 1 within 1e-6")
    return tuple(v / total for v in values)


def _weights_by_name(weights: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    for name in weights:
        if name not in names:
            raise ConfigError(unknown_name("member in weights", name, names))
    missing = [n for n in names if n not in weights]
    if missing:
        raise ConfigError(
            f"weights has no entry for {', '.join(map(repr, missing))}; give one for each of "
            f"{', '.join(map(repr, names))} (0 switches a member off)"
        )
    return [weights[n] for n in names]
