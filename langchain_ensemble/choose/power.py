"""Whether two systems differ, exactly, and how many items would show it."""

from __future__ import annotations

import math
from statistics import NormalDist

from langchain_ensemble.choose.stats import Flags, binomial_tail, vectors
from langchain_ensemble.errors import ConfigError


def sign_test(ours: Flags, theirs: Flags) -> float:
    """Two-sided exact test that two systems are right equally often (McNemar).

    Args:
        ours: ``[N]``, which items one system has right.
        theirs: ``[N]``, which the other has.

    Returns:
        The probability of a split as uneven as that of the items on which they differ, or more so,
        if both were equally likely to win each; 1 where they never differ.

    Raises:
        ConfigError: On no items, or different numbers of them.
    """
    a, b = vectors(ours=ours, theirs=theirs)
    wins, losses = int(((a > 0) & (b == 0)).sum()), int(((a == 0) & (b > 0)).sum())
    return min(1.0, 2 * binomial_tail(max(wins, losses), wins + losses, 0.5))


def needed_items(difference: float, discordant: float, level: float = 0.95) -> int:
    """How many items would show a paired difference four times in five (Connor, 1987).

    Args:
        difference: Of the two accuracies.
        discordant: Share of items that exactly one of the two systems has right.
        level: Of the interval that is to exclude zero.

    Returns:
        ``((z1 sqrt(s) + z2 sqrt(s - d^2)) / d)^2``, rounded up; ``z2`` is that of power 0.8.

    Raises:
        ConfigError: A difference of 0, or larger than the share of items that differ.
    """
    d = abs(difference)
    if not 0 < d <= discordant <= 1:
        raise ConfigError(
            f"a difference of {difference:g} cannot come from {discordant:g} discordant items"
        )
    normal = NormalDist()
    z1, z2 = normal.inv_cdf((1 + level) / 2), normal.inv_cdf(0.8)
    root = z1 * math.sqrt(discordant) + z2 * math.sqrt(max(0.0, discordant - d * d))
    return math.ceil((root / d) ** 2)
