"""What a schema says about one value, with every ``allOf``, ``anyOf`` and ``$ref`` worked in."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias, TypeVar

from langchain_ensemble.constraints.json_numbers import NO_BOUNDS, Bounds
from langchain_ensemble.errors import ConfigError

Schema: TypeAlias = Mapping[str, Any] | bool
T = TypeVar("T")

TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")


@dataclass(frozen=True)
class Facts:
    """Conditions that a value must meet, all of them.

    Attributes:
        types: Names of types, None: any.
        enum: The only values, None: no list.
        bounds: Between what a number lies.
        steps: What a number is a multiple of.
        least_length: Characters of a string at least.
        most_length: Characters of a string at most, None: any number.
        patterns: Regular expressions that a string matches somewhere.
        formats: Formats of a string.
        prefix: Schemas of the first items of an array.
        items: Schema of the further items, None: not said.
        least_items: Items at least.
        most_items: Items at most, None: any number.
        unique: No item twice.
        properties: Schemas of named properties, in their order.
        declares: Whether properties are declared at all, and be it none.
        required: Properties that must be there.
        extra: Schema of all other properties, None: not said.
        by_pattern: Schemas of the properties whose names match an expression.
        names: Schemas of the properties' names.
        least_properties: Properties at least.
        most_properties: Properties at most, None: any number.
    """

    types: frozenset[str] | None = None
    enum: tuple[Any, ...] | None = None
    bounds: Bounds = NO_BOUNDS
    steps: tuple[Decimal, ...] = ()
    least_length: int = 0
    most_length: int | None = None
    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    prefix: tuple[Schema, ...] = ()
    items: Schema | None = None
    least_items: int = 0
    most_items: int | None = None
    unique: bool = False
    properties: tuple[tuple[str, Schema], ...] = ()
    declares: bool = False
    required: tuple[str, ...] = ()
    extra: Schema | None = None
    by_pattern: tuple[tuple[str, Schema], ...] = ()
    names: tuple[Schema, ...] = ()
    least_properties: int = 0
    most_properties: int | None = None


ANYTHING = Facts()
_OF_TYPE = {
    "number": ("bounds", "steps"),
    "string": ("least_length", "most_length", "patterns", "formats"),
    "array": ("prefix", "items", "least_items", "most_items", "unique"),
    "object": (
        *("properties", "declares", "required", "extra", "by_pattern", "names"),
        *("least_properties", "most_properties"),
    ),
}


def types_of(facts: Facts) -> tuple[str, ...]:
    """The types of a value; where none is said, those that something is said about.

    Args:
        facts: What is known.

    Returns:
        Names of types, in a fixed order; none: any value.
    """
    if facts.types is not None:
        return tuple(name for name in TYPES if name in facts.types)
    return tuple(
        name
        for name, fields in _OF_TYPE.items()
        if any(getattr(facts, field) != getattr(ANYTHING, field) for field in fields)
    )


def both(a: Facts, b: Facts) -> Facts | None:
    """Join what two schemas say.

    Args:
        a: One.
        b: The other.

    Returns:
        All conditions, None where no value can meet them.
    """
    types = _common_types(a.types, b.types)
    enum = _common_values(a.enum, b.enum)
    if types == frozenset() or enum == ():
        return None
    return Facts(
        types=types,
        enum=enum,
        bounds=_tighter(a.bounds, b.bounds),
        steps=_union(a.steps, b.steps),
        least_length=max(a.least_length, b.least_length),
        most_length=_least(a.most_length, b.most_length),
        patterns=_union(a.patterns, b.patterns),
        formats=_union(a.formats, b.formats),
        prefix=_prefix(a, b),
        items=all_of(a.items, b.items),
        least_items=max(a.least_items, b.least_items),
        most_items=_least(a.most_items, b.most_items),
        unique=a.unique or b.unique,
        properties=_properties(a, b),
        declares=a.declares or b.declares,
        required=_union(a.required, b.required),
        extra=all_of(a.extra, b.extra),
        by_pattern=(*_patterns(a, b), *_patterns(b, a)),
        names=(*a.names, *b.names),
        least_properties=max(a.least_properties, b.least_properties),
        most_properties=_least(a.most_properties, b.most_properties),
    )


def all_of(a: Schema | None, b: Schema | None) -> Schema | None:
    """One schema that says what two say.

    Args:
        a: One, None: nothing.
        b: The other, None: nothing.

    Returns:
        A schema, None where neither says anything.
    """
    if a is None or b is None:
        return a if b is None else b
    if a is False or b is False:
        return False
    if a is True or a == b:
        return b
    return a if b is True else {"allOf": [a, b]}


def holds(value: Any, facts: Facts) -> bool:
    """Whether a listed value meets the plain conditions beside the list.

    Args:
        value: Any JSON value.
        facts: Conditions; those on the inside of arrays and objects are not looked at.

    Returns:
        Whether no condition speaks against it.
    """
    if facts.types is not None and not facts.types & _types_of_value(value):
        return False
    if isinstance(value, str):
        inside = facts.least_length <= len(value) <= _or_infinite(facts.most_length)
        return inside and all(matches(pattern, value) for pattern in facts.patterns)
    if isinstance(value, int | float) and not isinstance(value, bool):
        exact = Decimal(repr(value))
        return _in_bounds(exact, facts.bounds) and not any(exact % step for step in facts.steps)
    if isinstance(value, list):
        return facts.least_items <= len(value) <= _or_infinite(facts.most_items)
    if isinstance(value, dict):
        counted = facts.least_properties <= len(value) <= _or_infinite(facts.most_properties)
        return counted and all(name in value for name in facts.required)
    return True


def matches(pattern: str, text: str) -> bool:
    """Whether an expression of a schema matches somewhere in a text.

    Args:
        pattern: A regular expression.
        text: Any text.

    Returns:
        Whether it does.

    Raises:
        ConfigError: The expression is broken.
    """
    try:
        return re.search(pattern, text) is not None
    except re.error as error:
        raise ConfigError(f"the regular expression {pattern!r} is broken: {error}.") from error


def _or_infinite(most: int | None) -> float:
    return math.inf if most is None else most


def _in_bounds(value: Decimal, bounds: Bounds) -> bool:
    if bounds.low is not None and (
        value < bounds.low or (bounds.above_low and value == bounds.low)
    ):
        return False
    return bounds.high is None or not (
        value > bounds.high or (bounds.below_high and value == bounds.high)
    )


def _types_of_value(value: Any) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset(("boolean",))
    if isinstance(value, int | float):
        whole = isinstance(value, int) or value.is_integer()
        return frozenset(("number", "integer") if whole else ("number",))
    names = {str: "string", list: "array", dict: "object", type(None): "null"}
    return frozenset((names[type(value)],))


def _common_types(a: frozenset[str] | None, b: frozenset[str] | None) -> frozenset[str] | None:
    if a is None or b is None:
        return a if b is None else b
    common = a & b
    if ("number" in a and "integer" in b) or ("integer" in a and "number" in b):
        common |= {"integer"}  # every whole number is a number
    return common - {"integer"} if "number" in common else common


def _common_values(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if a is None or b is None:
        return a if b is None else b
    known = {json.dumps(value, sort_keys=True) for value in b}
    return tuple(value for value in a if json.dumps(value, sort_keys=True) in known)


def _tighter(a: Bounds, b: Bounds) -> Bounds:
    low, above = _pick(((a.low, a.above_low), (b.low, b.above_low)), max)
    high, not_below = _pick(((a.high, not a.below_high), (b.high, not b.below_high)), min)
    return Bounds(low, high, above, high is not None and not not_below)


def _pick(
    ends: Iterable[tuple[Decimal | None, bool]],
    choose: Callable[[list[tuple[Decimal, bool]]], tuple[Decimal, bool]],
) -> tuple[Decimal | None, bool]:
    given = [(value, flag) for value, flag in ends if value is not None]
    return choose(given) if given else (None, False)


def _least(a: int | None, b: int | None) -> int | None:
    given = [value for value in (a, b) if value is not None]
    return min(given) if given else None


def _union(a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys((*a, *b)))


def _prefix(a: Facts, b: Facts) -> tuple[Schema, ...]:
    def at(facts: Facts, place: int) -> Schema | None:
        return facts.prefix[place] if place < len(facts.prefix) else facts.items

    places = range(max(len(a.prefix), len(b.prefix)))
    joined = (all_of(at(a, place), at(b, place)) for place in places)
    return tuple(True if schema is None else schema for schema in joined)


def _properties(a: Facts, b: Facts) -> tuple[tuple[str, Schema], ...]:
    mine, theirs = dict(a.properties), dict(b.properties)
    joined = {}
    for name in dict.fromkeys((*mine, *theirs)):
        schema = all_of(
            mine[name] if name in mine else extra_for(a, name),
            theirs[name] if name in theirs else extra_for(b, name),
        )
        joined[name] = True if schema is None else schema
    return tuple(joined.items())


def _patterns(a: Facts, b: Facts) -> tuple[tuple[str, Schema], ...]:
    """What a says by pattern; to b, if it has no patterns, these names are further ones."""
    if b.by_pattern or b.extra is None:
        return a.by_pattern
    joined = ((pattern, all_of(schema, b.extra)) for pattern, schema in a.by_pattern)
    return tuple((pattern, schema) for pattern, schema in joined if schema is not None)


def extra_for(facts: Facts, name: str) -> Schema | None:
    """What is said about a property that is not named.

    Args:
        facts: Conditions on the object.
        name: A property's name.

    Returns:
        A schema, None where nothing is said.
    """
    matching = [schema for pattern, schema in facts.by_pattern if matches(pattern, name)]
    if not matching:
        return facts.extra
    joined: Schema | None = None
    for schema in matching:
        joined = all_of(joined, schema)
    return joined
