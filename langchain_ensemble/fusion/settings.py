"""Checks of numbers that several fusions are set with."""

from __future__ import annotations

import math
from typing import Any

from langchain_ensemble.errors import ConfigError


def check_number(
    fusion: str, name: str, value: Any, *, least: float, most: float = math.inf
) -> None:
    """Refuse what is no number in a range.

    Args:
        fusion: The fusion's name.
        name: The setting's.
        value: What it was given.
        least: Smallest allowed value.
        most: Greatest allowed value; infinity itself is never allowed.

    Raises:
        ConfigError: It is something else.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= most:
        bound = f"of at least {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
        raise ConfigError(f"fusion={fusion!r} has {name}={value!r}; it must be a number {bound}")
