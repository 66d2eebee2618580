"""Which candidates to ensemble: UniTE's rule, and what fits into the memory. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_ensemble.choose.sizes import Size, joint_memory

GAP = 0.10
"""Largest gap in accuracy to the best that UniTE calls compatible: ten points."""

RATIO = 2.0
"""Largest ratio of mean response lengths that UniTE calls compatible."""


@dataclass(frozen=True)
class Standing:
    """What the rule knows of a candidate.

    Attributes:
        name: Its name.
        accuracy: Share of right answers.
        length: Mean length of its answers, in characters.
        size: What it needs.
    """

    name: str
    accuracy: float
    length: float
    size: Size


@dataclass(frozen=True)
class Group:
    """Which candidates to ensemble.

    Attributes:
        members: Their names, the one that the rule starts from first; one: no ensemble.
        compatible: Whether UniTE's rule takes them all. Where it takes nobody beside the best, the
            next best that fits is taken all the same, so that the rule is measured, too.
        reasons: Why each other one was not taken.
    """

    members: tuple[str, ...]
    compatible: bool
    reasons: dict[str, str]


def length_ratio(one: float, other: float) -> float:
    """Longer over shorter; infinite where only one is empty."""
    low, high = sorted((one, other))
    return 1.0 if high == 0 else float("inf") if low == 0 else high / low


def group(
    standings: Sequence[Standing],
    *,
    size: int,
    budget: int | None = None,
    start: str | None = None,
) -> Group:
    """Choose members as UniTE does: from the best on, add the next best that is compatible.

    Args:
        standings: The candidates, in the user's order, which breaks ties.
        size: Members at most.
        budget: Bytes for all of them together; None: no limit.
        start: Who must be a member; default: the best that fits with anybody.

    Returns:
        The members.
    """
    order = sorted(standings, key=lambda one: -one.accuracy)
    first = _first(order, budget, start)
    reasons: dict[str, str] = {}
    members = [first]
    for one in order:
        if one is first or len(members) == size:
            continue
        why = _refused(members, one, budget) or _unlike(first, one)
        if why is None:
            members.append(one)
        else:
            reasons[one.name] = why
    compatible = len(members) > 1
    if not compatible and size > 1:
        fits = (one for one in order if one is not first and _refused(members, one, budget) is None)
        members += [one for one in fits][:1]
    left = {one.name for one in order} - {one.name for one in members}
    full = f"{size} members are enough"
    reasons = {one.name: reasons.get(one.name, full) for one in order if one.name in left} | {
        one.name: reasons[one.name] for one in members if one.name in reasons
    }
    return Group(tuple(one.name for one in members), compatible, reasons)


def _first(order: Sequence[Standing], budget: int | None, start: str | None) -> Standing:
    """Where the rule starts: as asked, else the best with room for another beside it."""
    if start is not None:
        return next(one for one in order if one.name == start)
    for one in order:
        if any(_refused([one], other, budget) is None for other in order if other is not one):
            return one
    return order[0]


def _refused(members: Sequence[Standing], one: Standing, budget: int | None) -> str | None:
    """Why a candidate does not fit beside the members, None: it does."""
    if budget is None:
        return None
    needed = joint_memory([member.size for member in (*members, one)])
    if needed is None:
        return "its memory, or that of a member, is not known"
    if needed <= budget:
        return None
    return f"with it the members need {needed / 1e9:.2f} GB, more than {budget / 1e9:.2f} GB"


def _unlike(first: Standing, one: Standing) -> str | None:
    """Why UniTE's rule refuses a candidate, None: it does not."""
    gap = first.accuracy - one.accuracy
    ratio = length_ratio(first.length, one.length)
    if gap > GAP + 1e-9:
        return f"{100 * gap:.1f} points below {first.name}, more than {100 * GAP:.0f}"
    if ratio > RATIO:
        return f"answers {ratio:.1f} times as long or short as {first.name}'s, more than {RATIO:g}"
    return None
