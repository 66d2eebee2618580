"""Numbers between bounds, digit by digit, and never without end.

A model that may always add one more digit sometimes does, until the budget is gone. So a number
has at most 17 digits before the point and 20 after it, and an exponent that keeps it a finite
double; a whole number has at most 18 digits. With bounds, the digits follow them exactly and
there is no exponent. All of it is narrower than JSON: every number is valid, not every valid
number can be said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from langchain_ensemble.constraints.language import (
    EMPTY,
    NEVER,
    Node,
    Text,
    alt,
    chars,
    optional,
    repeat,
    seq,
)

_WHOLE_DIGITS = 18
_DIGITS = 17
_DECIMALS = 20
_MOST_LISTED = 512

DIGIT = chars((0x30, 0x39))


@dataclass(frozen=True)
class Bounds:
    """Between what a number must lie.

    Attributes:
        low: Not below it; None: no such bound.
        high: Not above it; None: no such bound.
        above_low: The number is not ``low`` itself.
        below_high: The number is not ``high`` itself.
    """

    low: Decimal | None = None
    high: Decimal | None = None
    above_low: bool = False
    below_high: bool = False


NO_BOUNDS = Bounds()


def whole_number(bounds: Bounds) -> Node:
    """A whole number.

    Args:
        bounds: Between what.

    Returns:
        Its spellings.
    """
    low, high = whole_bounds(bounds)
    if low is None:
        low = -(10**_WHOLE_DIGITS) + 1 if high is None else min(-(10**_WHOLE_DIGITS) + 1, 10 * high)
    if high is None:
        high = max(10**_WHOLE_DIGITS - 1, 10 * low)
    return alt(
        (
            seq(Text("-"), _between(max(1, -high), -low)) if low < 0 else NEVER,
            _between(max(0, low), high),
        )
    )


def whole_bounds(bounds: Bounds) -> tuple[int | None, int | None]:
    """The whole numbers at the bounds.

    Args:
        bounds: Between what.

    Returns:
        The least and the greatest whole number, None: no bound.
    """
    low = None if bounds.low is None else math.ceil(bounds.low)
    high = None if bounds.high is None else math.floor(bounds.high)
    if low is not None and bounds.above_low and low == bounds.low:
        low += 1
    if high is not None and bounds.below_high and high == bounds.high:
        high -= 1
    return low, high


def number(bounds: Bounds, decimals: int | None = None) -> Node:
    """A number, with or without decimals.

    Args:
        bounds: Between what.
        decimals: How many decimals at most, None: as many as a double has.

    Returns:
        Its spellings.
    """
    if bounds.low is None and bounds.high is None:
        return _free_number(decimals)
    far = Decimal(10) ** _DIGITS
    low: Decimal = bounds.low if bounds.low is not None else min(-far, 10 * (bounds.high or far))
    high: Decimal = bounds.high if bounds.high is not None else max(far, 10 * low)
    places = _DECIMALS if decimals is None else decimals
    below = seq(
        Text("-"),
        _decimal(
            max(-high, Decimal(0)), -low, bounds.below_high or high >= 0, bounds.above_low, places
        ),
    )
    above_low = bounds.above_low and low >= 0
    above = _decimal(max(low, Decimal(0)), high, above_low, bounds.below_high, places)
    return alt(option for option in (below, above) if option != NEVER)


def multiple_of(step: Decimal, bounds: Bounds, whole: bool) -> Node | None:
    """Multiples of a number, where they can be written down.

    Args:
        step: Of what; positive.
        bounds: Between what.
        whole: Whether the number must be whole.

    Returns:
        Their spellings, None where a grammar of a sensible size cannot tell them.
    """
    if whole and step % 1:
        step *= step.as_integer_ratio()[1]  # a whole multiple of 1/2 is one of 1
    listed = _listed(step, bounds)
    if listed is not None:
        return listed
    _, digits, exponent = step.normalize().as_tuple()
    if digits == (1,) and isinstance(exponent, int) and exponent <= 0:
        return whole_number(bounds) if exponent == 0 else number(bounds, -exponent)
    places = next((p for p in range(4) if not step % 1 and 10**p % int(step) == 0), None)
    if places is None or bounds != NO_BOUNDS:
        return None
    ends = alt(Text(f"{n:0{places}d}") for n in range(0, 10**places, int(step)))
    short = alt(Text(str(n)) for n in range(0, 10**places, int(step)))
    first = seq(chars((0x31, 0x39)), repeat(DIGIT, 0, _WHOLE_DIGITS - places - 1))
    return seq(optional(Text("-")), alt((short, seq(first, ends))))


def _listed(step: Decimal, bounds: Bounds) -> Node | None:
    if bounds.low is None or bounds.high is None:
        return None
    first, last = -(-bounds.low // step), bounds.high // step
    if last - first > _MOST_LISTED:
        return None
    values = [step * n for n in range(int(first) - 1, int(last) + 2)]
    return alt(
        Text(f"{value.normalize():f}" if value else "0")
        for value in values
        if bounds.low <= value <= bounds.high
        and not (bounds.above_low and value == bounds.low)
        and not (bounds.below_high and value == bounds.high)
    )


def _free_number(decimals: int | None) -> Node:
    whole = alt((Text("0"), seq(chars((0x31, 0x39)), repeat(DIGIT, 0, _DIGITS - 1))))
    most = _DECIMALS if decimals is None else decimals
    fraction = optional(seq(Text("."), repeat(DIGIT, 1, most))) if most else EMPTY
    up = alt(  # below 1e17 * 1e289, far from infinity
        (
            repeat(DIGIT, 1, 2),
            seq(Text("1"), DIGIT, DIGIT),
            seq(Text("2"), chars((0x30, 0x38)), DIGIT),
        )
    )
    down = seq(Text("-"), alt((repeat(DIGIT, 1, 2), seq(chars((0x30, 0x33)), DIGIT, DIGIT))))
    exponent = seq(alt((Text("e"), Text("E"))), alt((seq(optional(Text("+")), up), down)))
    scale = optional(exponent) if decimals is None else EMPTY
    return seq(optional(Text("-")), whole, fraction, scale)


def _between(low: int, high: int) -> Node:
    """Numbers from low >= 0 to high, no leading zeros."""
    if high < low:
        return NEVER
    options = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        last = min(high, 10**length - 1)
        options.append(_same_length(str(first), str(last)))
    return alt(options)


def _same_length(low: str, high: str) -> Node:
    if not low:
        return EMPTY
    if set(low) == {"0"} and set(high) == {"9"}:
        return repeat(DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return seq(Text(low[0]), _same_length(low[1:], high[1:]))
    rest = len(low) - 1
    first, last = ord(low[0]), ord(high[0])
    options: list[Node] = []
    if set(low[1:]) - {"0"}:
        options.append(seq(Text(low[0]), _same_length(low[1:], "9" * rest)))
        first += 1
    if set(high[1:]) - {"9"}:
        options.append(seq(Text(high[0]), _same_length("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        options.append(seq(chars((first, last)), repeat(DIGIT, rest, rest)))
    return alt(options)


def _decimal(low: Decimal, high: Decimal, above: bool, below: bool, places: int) -> Node:
    """Numbers from low >= 0 to high."""
    if high < low or (high == low and (above or below)):
        return NEVER
    (first, low_digits), (last, high_digits) = _parts(low), _parts(high)
    low_end, high_end = _Low(low_digits, above), _High(high_digits, below)
    if first == last:
        return seq(Text(str(first)), _fraction(low_end, high_end, places))
    return alt(
        (
            seq(Text(str(first)), _fraction(low_end, None, places)),
            seq(_between(first + 1, last - 1), _fraction(None, None, places)),
            seq(Text(str(last)), _fraction(None, high_end, places)),
        )
    )


@dataclass(frozen=True)
class _Low:
    """The digits after the point are at least (or above) these."""

    digits: str
    strict: bool


@dataclass(frozen=True)
class _High:
    """The digits after the point are at most (or below) these."""

    digits: str
    strict: bool


def _parts(value: Decimal) -> tuple[int, str]:
    whole, _, digits = f"{value:f}".partition(".")
    return int(whole), digits.rstrip("0")


def _fraction(low: _Low | None, high: _High | None, places: int) -> Node:
    some = seq(Text("."), _digits(low, high, places, first=True)) if places else NEVER
    none = EMPTY if _zero_fits(low, high) else NEVER
    return alt(option for option in (none, some) if option != NEVER)


def _zero_fits(low: _Low | None, high: _High | None) -> bool:
    fits_low = low is None or not (low.digits or low.strict)
    fits_high = high is None or bool(high.digits) or not high.strict
    return fits_low and fits_high


def _digits(low: _Low | None, high: _High | None, places: int, first: bool) -> Node:
    """At most so many digits whose value lies between the ends; at least one if ``first``."""
    low = None if low is not None and not low.digits and not low.strict else low
    if low is None and high is None:
        return repeat(DIGIT, int(first), places)
    options: list[Node] = [EMPTY] if not first and _zero_fits(low, high) else []
    rests: dict[tuple[_Low | None, _High | None], list[tuple[int, int]]] = {}
    for digit in "0123456789" if places else "":
        at_low = (low.digits or "0")[0] if low else ""
        at_high = (high.digits or "0")[0] if high else "9"
        if (low and digit < at_low) or digit > at_high:
            continue
        next_low = _Low(low.digits[1:], low.strict) if low and digit == at_low else None
        next_high = _High(high.digits[1:], high.strict) if high and digit == at_high else None
        rests.setdefault((next_low, next_high), []).append((ord(digit), ord(digit)))
    for (next_low, next_high), found in rests.items():
        rest = _digits(next_low, next_high, places - 1, first=False)
        options.append(seq(chars(*found), rest))
    return alt(option for option in options if option != NEVER)
