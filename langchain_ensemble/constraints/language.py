"""What a grammar is made of, whichever engine reads it: texts, sets of characters, rules.

JSON schemas and regular expressions become these nodes, and two printers (:mod:`lark`,
:mod:`gbnf`) write them down for an engine. So both engines read the same language, and what is
promised about a schema does not depend on which of them is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]

UNICODE: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # every character that UTF-8 can spell


@dataclass(frozen=True)
class Text:
    """Exactly these characters."""

    text: str


@dataclass(frozen=True)
class Chars:
    """One character of a set.

    Attributes:
        ranges: Sorted, disjoint, inclusive code points; no surrogates.
    """

    ranges: Ranges


@dataclass(frozen=True)
class Seq:
    """Some nodes one after the other; none: the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """Any one of some nodes; none: nothing at all, see :data:`NEVER`."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """A node some number of times.

    Attributes:
        part: What is repeated.
        least: How often at least.
        most: How often at most, None: any number.
    """

    part: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Ref:
    """A rule, by name."""

    name: str


@dataclass(frozen=True)
class Both:
    """What all of some nodes allow. They hold no :class:`Ref`."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Except:
    """What one node allows and another does not. They hold no :class:`Ref`."""

    part: Node
    without: Node


Node: TypeAlias = Text | Chars | Seq | Alt | Repeat | Ref | Both | Except

EMPTY: Node = Text("")
NEVER: Node = Alt(())


@dataclass(frozen=True)
class Language:
    """A start and the rules it refers to.

    Attributes:
        start: What the whole text is.
        rules: Every rule that a :class:`Ref` names.
        notes: What was asked for and is not enforced, one sentence each.
    """

    start: Node
    rules: Mapping[str, Node] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def seq(*parts: Node) -> Node:
    """Join nodes, flat and with neighbouring texts in one.

    Args:
        parts: Nodes.

    Returns:
        One node; :data:`NEVER` where a part is.
    """
    flat: list[Node] = []
    for part in parts:
        for node in part.parts if isinstance(part, Seq) else (part,):
            if node == NEVER:
                return NEVER
            last = flat[-1] if flat else None
            if isinstance(node, Text) and isinstance(last, Text):
                flat[-1] = Text(last.text + node.text)
            elif node != EMPTY:
                flat.append(node)
    if not flat:
        return EMPTY
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def alt(options: Iterable[Node]) -> Node:
    """Choose between nodes, flat and without doubles.

    Args:
        options: Nodes.

    Returns:
        One node; :data:`NEVER` where there is none.
    """
    flat: dict[Node, None] = {}
    for option in options:
        for node in option.options if isinstance(option, Alt) else (option,):
            flat[node] = None
    return next(iter(flat)) if len(flat) == 1 else Alt(tuple(flat))


def repeat(part: Node, least: int, most: int | None) -> Node:
    """Repeat a node.

    Args:
        part: A node.
        least: How often at least.
        most: How often at most, None: any number.

    Returns:
        One node; :data:`NEVER` where no number of times is allowed.
    """
    if most is not None and most < least:
        return NEVER
    if most == 0 or part == EMPTY:
        return EMPTY
    if part == NEVER:
        return NEVER if least else EMPTY
    return part if least == most == 1 else Repeat(part, least, most)


def optional(part: Node) -> Node:
    """A node or nothing.

    Args:
        part: A node.

    Returns:
        One node.
    """
    return repeat(part, 0, 1)


def chars(*ranges: tuple[int, int]) -> Node:
    """One character of some ranges, which may overlap and come in any order.

    Args:
        ranges: Inclusive code points.

    Returns:
        One node.
    """
    joined = joined_ranges(ranges)
    if len(joined) == 1 and joined[0][0] == joined[0][1]:
        return Text(chr(joined[0][0]))
    return Chars(joined) if joined else NEVER


def joined_ranges(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sort ranges and join those that touch.

    Args:
        ranges: Inclusive code points.

    Returns:
        The same set of characters.
    """
    result: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        elif low <= high:
            result.append((low, high))
    return tuple(result)


def outside(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The characters that some ranges leave out.

    Args:
        ranges: Inclusive code points.

    Returns:
        All others that UTF-8 can spell.
    """
    left: list[tuple[int, int]] = []
    for low, high in UNICODE:
        at = low
        for first, last in joined_ranges(ranges):
            if last < at or first > high:
                continue
            if first > at:
                left.append((at, first - 1))
            at = last + 1
        if at <= high:
            left.append((at, high))
    return tuple(left)


def children(node: Node) -> tuple[Node, ...]:
    """The nodes that a node is made of.

    Args:
        node: A node.

    Returns:
        Its parts, none for texts, characters and references.
    """
    match node:
        case Seq(parts) | Both(parts):
            return parts
        case Alt(options):
            return options
        case Repeat(part, _, _):
            return (part,)
        case Except(part, without):
            return (part, without)
        case _:
            return ()


def is_regular(node: Node) -> bool:
    """Whether a node holds no reference, so that it is one regular expression.

    Args:
        node: A node.

    Returns:
        True without any :class:`Ref`.
    """
    return not isinstance(node, Ref) and all(is_regular(child) for child in children(node))


def needs_sets(node: Node) -> bool:
    """Whether a node holds intersections or differences, which not every engine reads.

    Args:
        node: A node.

    Returns:
        True with any :class:`Both` or :class:`Except`.
    """
    return isinstance(node, Both | Except) or any(needs_sets(child) for child in children(node))


def pruned(language: Language) -> Language:
    """Leave out what can never be finished, so that no matcher walks into a trap.

    Args:
        language: A language, possibly with rules that only lead to themselves.

    Returns:
        The same texts; the start is :data:`NEVER` where there are none.
    """
    finite: set[str] = set()
    while found := {
        name
        for name, node in language.rules.items()
        if name not in finite and _finishes(node, finite)
    }:
        finite |= found
    kept = {name: _without_traps(language.rules[name], finite) for name in sorted(finite)}
    return Language(_without_traps(language.start, finite), kept, language.notes)


def _finishes(node: Node, finite: set[str]) -> bool:
    match node:
        case Ref(name):
            return name in finite
        case Alt(options):
            return any(_finishes(option, finite) for option in options)
        case Repeat(part, least, _):
            return least == 0 or _finishes(part, finite)
        case _:
            return all(_finishes(child, finite) for child in children(node))


def _without_traps(node: Node, finite: set[str]) -> Node:
    match node:
        case Ref(name):
            return node if name in finite else NEVER
        case Seq(parts):
            return seq(*(_without_traps(part, finite) for part in parts))
        case Alt(options):
            kept = (_without_traps(option, finite) for option in options)
            return alt(option for option in kept if option != NEVER)
        case Repeat(part, least, most):
            return repeat(_without_traps(part, finite), least, most)
        case _:
            return node
