"""Minimise a convex function of weights over the simplex, with a certificate.

Mass moves between two members at a time: from the one whose share costs most to the one whose share
helps most, by an exact line search on the slope (safeguarded false position). With ``f`` convex,

    f(w) - min f  <=  max_i  grad f(w) . (w - e_i)  =  gap,

the Frank-Wolfe duality gap, which is zero only where the Karush-Kuhn-Tucker conditions hold. It is
what stops the search and what the report tells. Pure; knows neither models nor texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Point = tuple[float, list[float]]
"""A value, and the slope towards each corner, ``grad f(w) . (e_i - w)``."""

Objective = Callable[[Sequence[float]], Point]

TOLERANCE = 1e-6
"""Gap at which the search stops, in the function's unit."""

MOVES = 200
"""Line searches at most."""

_LOOKS = 60  # points of one line search at most
_SLACK = 0.05  # a line search ends where this share of the slope is left


@dataclass(frozen=True)
class Solution:
    """Where the search ended.

    Attributes:
        weights: Sum 1.
        value: The function there.
        gap: How much lower it can be anywhere, if it is convex.
        evaluations: How often it was looked at.
        converged: Whether the gap is at most the tolerance.
    """

    weights: tuple[float, ...]
    value: float
    gap: float
    evaluations: int
    converged: bool


def minimise(
    objective: Objective,
    start: Sequence[float],
    tolerance: float = TOLERANCE,
    moves: int = MOVES,
) -> Solution:
    """Search the simplex.

    Args:
        objective: Value and slopes at some weights.
        start: Where to begin, sum 1; members of weight 0 may come in.
        tolerance: Gap at which it is enough.
        moves: Line searches at most.

    Returns:
        The best point found and its certificate.
    """
    looked = 0

    def look(weights: Sequence[float]) -> Point:
        nonlocal looked
        looked += 1
        return objective(weights)

    weights = list(start)
    here = look(weights)
    for _ in range(moves):
        value, slopes = here
        if -min(slopes) <= tolerance:
            break
        gains = min(range(len(weights)), key=slopes.__getitem__)
        costs = max(
            (i for i, weight in enumerate(weights) if weight > 0 and i != gains),
            key=slopes.__getitem__,
        )
        moved, there = _line(look, weights, here, gains, costs, tolerance)
        if there[0] >= value and moved != weights:  # rounding is all that is left
            break
        weights, here = moved, there
    value, slopes = here
    gap = max(0.0, -min(slopes))
    return Solution(tuple(weights), value, gap, looked, gap <= tolerance)


def _line(
    look: Objective,
    weights: list[float],
    here: Point,
    gains: int,
    costs: int,
    tolerance: float,
) -> tuple[list[float], Point]:
    """Move mass from one member to another until that helps no more."""
    room = weights[costs]

    def at(step: float) -> list[float]:
        moved = list(weights)
        moved[gains] = weights[gains] + step
        moved[costs] = room - step if step < room else 0.0
        return moved

    def slope(point: Point) -> float:
        return point[1][gains] - point[1][costs]

    enough = max(tolerance / 4, _SLACK * -slope(here))
    low, low_slope = 0.0, slope(here)
    best = (at(room), look(at(room)))
    high, high_slope = room, slope(best[1])
    if high_slope <= 0:  # all of it
        return best
    for number in range(_LOOKS):
        guess = (low * high_slope - high * low_slope) / (high_slope - low_slope)
        step = guess if number % 3 < 2 and low < guess < high else (low + high) / 2
        best = (at(step), look(at(step)))
        found = slope(best[1])
        if abs(found) <= enough or not low < step < high:
            return best
        if found < 0:
            low, low_slope = step, found
        else:
            high, high_slope = step, found
    return best
