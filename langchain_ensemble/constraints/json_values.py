"""Strings, numbers and arrays of a schema."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from itertools import combinations

from langchain_ensemble.constraints.json_facts import Facts, Schema
from langchain_ensemble.constraints.json_formats import PATTERNS, SAY_NOTHING
from langchain_ensemble.constraints.json_numbers import multiple_of, number, whole_number
from langchain_ensemble.constraints.json_text import (
    CHARACTER,
    listed,
    spelled,
)
from langchain_ensemble.constraints.language import (
    EMPTY,
    NEVER,
    Alt,
    Both,
    Chars,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    alt,
    optional,
    repeat,
    seq,
)
from langchain_ensemble.constraints.regex import search, whole

Note = Callable[[str, str], None]  # keyword, and what is done instead

_MOST_PERMUTED = 6


def string_body(facts: Facts, note: Note) -> Node:
    """What may stand between the quotes of a string.

    Args:
        facts: Conditions on it.
        note: Takes what is not enforced.

    Returns:
        Spelled characters.
    """
    known = [name for name in facts.formats if name in PATTERNS]
    for name in facts.formats:
        if name not in PATTERNS and name not in SAY_NOTHING:
            note("format", f" (the format {name!r} has no grammar)")
    shapes = list(
        dict.fromkeys(
            (
                *(search(pattern) for pattern in facts.patterns),
                *(whole(PATTERNS[name]) for name in known),
            )
        )
    )
    least, most = facts.least_length, facts.most_length
    if not shapes:
        return repeat(CHARACTER, least, most)
    if len(shapes) == 1 and (tight := _within(shapes[0], least, most)) is not None:
        return spelled(tight)
    parts = [spelled(shape) for shape in shapes]
    if least or most is not None:
        parts.append(repeat(CHARACTER, least, most))
    return Both(tuple(parts))


def _within(shape: Node, least: int, most: int | None) -> Node | None:
    """The texts of a shape that are as long as asked, None where that takes an intersection."""
    limit = math.inf if most is None else most
    shortest, longest = _lengths(shape)
    if shortest > limit or longest < least:
        return NEVER
    if least <= shortest and longest <= limit:
        return shape
    if isinstance(shape, Repeat) and _lengths(shape.part) == (1, 1):
        highest = min(limit, math.inf if shape.most is None else shape.most)
        most = None if highest == math.inf else int(highest)
        return repeat(shape.part, max(least, shape.least), most)
    return None


def _lengths(node: Node) -> tuple[float, float]:
    """Characters of the shortest and of the longest text."""
    match node:
        case Text(text):
            return len(text), len(text)
        case Chars():
            return 1, 1
        case Seq(parts):
            spans = [_lengths(part) for part in parts]
            return sum(low for low, _ in spans), sum(high for _, high in spans)
        case Alt(options):
            spans = [_lengths(option) for option in options]
            return min(low for low, _ in spans), max(high for _, high in spans)
        case Repeat(part, least, most):
            low, high = _lengths(part)
            return low * least, (high * (math.inf if most is None else most) if high else 0)
    raise AssertionError(f"{node} is not raw text")


def number_node(facts: Facts, whole_only: bool, note: Note) -> Node:
    """A number.

    Args:
        facts: Conditions on it.
        whole_only: Whether it must be whole.
        note: Takes what is not enforced.

    Returns:
        Its spellings.
    """
    if len(facts.steps) == 1:
        steps = multiple_of(facts.steps[0], facts.bounds, whole_only)
        if steps is not None:
            return steps
    if facts.steps:
        note("multipleOf", "")
    return whole_number(facts.bounds) if whole_only else number(facts.bounds)


class Arrays:
    """Arrays of one document."""

    def __init__(
        self, value: Callable[[Schema, str], Node], rules: MutableMapping[str, Node]
    ) -> None:
        """Keep what reads the items.

        Args:
            value: Reads a schema at a place.
            rules: Takes new rules.
        """
        self._value = value
        self._rules = rules

    def node(self, facts: Facts, where: str, note: Note) -> Node:
        """An array. Where ``prefixItems`` stands alone, nothing follows the prefix.

        Args:
            facts: Conditions on it.
            where: Its place.
            note: Takes what is not enforced.

        Returns:
            Its spellings.
        """
        further: Schema = not facts.prefix if facts.items is None else facts.items
        item = self._value(further, f"{where}/items")
        if facts.unique and facts.most_items not in (0, 1):
            values = self._few_values(item)
            if values is not None and not facts.prefix:
                return self._permuted(values, facts, where)
            note("uniqueItems", "")
        body = self._from(0, item, facts, where)
        return seq(Text("["), body, Text("]"))

    def _from(self, place: int, item: Node, facts: Facts, where: str) -> Node:
        least = max(0, facts.least_items - place)
        most = None if facts.most_items is None else facts.most_items - place
        if most is not None and most < least:
            return NEVER
        if most == 0:
            return EMPTY
        if place == len(facts.prefix):
            if place == 0:
                return listed(item, least, most)
            return repeat(seq(Text(", "), item), least, most)
        one = self._value(facts.prefix[place], f"{where}/prefixItems/{place}")
        rest = self._from(place + 1, item, facts, where)
        some = seq(Text(", " if place else ""), one, rest)
        return some if least else optional(some)

    def _few_values(self, item: Node) -> list[Text] | None:
        while isinstance(item, Ref) and item.name in self._rules:
            item = self._rules[item.name]
        options = item.options if isinstance(item, Alt) else (item,)
        texts = [option for option in options if isinstance(option, Text)]
        return texts if len(texts) == len(options) <= _MOST_PERMUTED else None

    def _permuted(self, values: list[Text], facts: Facts, where: str) -> Node:
        """Every order of every choice of the values: one rule per set of values already said."""
        most = len(values) if facts.most_items is None else facts.most_items

        def name(used: tuple[int, ...]) -> str:
            return f"{where} after {'-'.join(map(str, used))}"

        for count in range(len(values), -1, -1):
            for used in combinations(range(len(values)), count):
                nexts = [
                    seq(
                        Text(", " if used else ""),
                        value,
                        Ref(name(tuple(sorted((*used, place))))),
                    )
                    for place, value in enumerate(values)
                    if place not in used and count < most
                ]
                stop = [EMPTY] if facts.least_items <= count <= most else []
                self._rules[name(used)] = alt((*stop, *nexts))
        return seq(Text("["), Ref(name(())), Text("]"))
