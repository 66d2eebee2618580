r"""JSON as ``json.dumps(..., ensure_ascii=False)`` writes it: one spelling per string and value.

A character that need not be escaped is not, and one that must be has one escape. So members with
different habits agree on the next byte, and ``\ud800``, half a character that ``json.loads`` would
hand on, has no spelling at all.
"""

from __future__ import annotations

import json
from typing import Any

from langchain_ensemble.constraints.language import (
    UNICODE,
    Alt,
    Chars,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    alt,
    chars,
    joined_ranges,
    outside,
    repeat,
    seq,
)
from langchain_ensemble.errors import ConfigError

_ESCAPED = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_PLAIN = outside(_ESCAPED)
ANY_VALUE = "any value"  # the rule of a value that nothing is said about


def spelled(node: Node) -> Node:
    """Spell what a text may be as it stands between the quotes of a JSON string.

    Args:
        node: The texts, without references, intersections and differences.

    Returns:
        Their spellings.
    """
    match node:
        case Text(text):
            return Text(_inner(text))
        case Chars(ranges):
            return _spelled_chars(ranges)
        case Seq(parts):
            return seq(*(spelled(part) for part in parts))
        case Alt(options):
            return alt(spelled(option) for option in options)
        case Repeat(part, least, most):
            return repeat(spelled(part), least, most)
    raise AssertionError(f"{node} is not raw text")


def _spelled_chars(ranges: tuple[tuple[int, int], ...]) -> Node:
    plain = joined_ranges(
        (max(low, first), min(high, last))
        for low, high in ranges
        for first, last in _PLAIN
        if max(low, first) <= min(high, last)
    )
    ends: dict[str, list[tuple[int, int]]] = {}  # by what comes before an escape's last letter
    for first, last in _ESCAPED:
        for code in range(first, last + 1):
            if any(low <= code <= high for low, high in ranges):
                escape = _inner(chr(code))
                ends.setdefault(escape[:-1], []).append((ord(escape[-1]), ord(escape[-1])))
    escaped = [seq(Text(start), chars(*letters)) for start, letters in ends.items()]
    return alt([*([chars(*plain)] if plain else []), *escaped])


def _inner(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


CHARACTER = _spelled_chars(UNICODE)
STRING_BODY = repeat(CHARACTER, 0, None)


def quoted(body: Node) -> Node:
    """Put quotes around the body of a string.

    Args:
        body: Spelled characters.

    Returns:
        The string.
    """
    return seq(Text('"'), body, Text('"'))


def value_text(value: Any, where: str) -> Node:
    """Spell one value.

    Args:
        value: Anything that JSON can hold.
        where: Where the schema names it, for messages.

    Returns:
        Its only spelling.

    Raises:
        ConfigError: The value cannot be written, for example half a character.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the schema at {where} names {value!r}, which no JSON text in UTF-8 can spell: {error}"
        ) from error
    return Text(text)


def item_list(opening: str, first: Node, closing: str, least: int, most: int | None) -> Node:
    """A bracketed list of things of one kind.

    Args:
        opening: ``[`` or ``{``.
        first: One thing.
        closing: ``]`` or ``}``.
        least: How many at least.
        most: How many at most, None: any number.

    Returns:
        The list, with ``, `` between the things.
    """
    return seq(Text(opening), listed(first, least, most), Text(closing))


def listed(item: Node, least: int, most: int | None) -> Node:
    """Things of one kind with ``, `` in between.

    Args:
        item: One thing.
        least: How many at least.
        most: How many at most, None: any number.

    Returns:
        The list.
    """
    more = repeat(
        seq(Text(", "), item), max(least - 1, 0), None if most is None else max(most - 1, 0)
    )
    some = Text("") if most == 0 else seq(item, more)
    return some if least else alt((Text(""), some))


def any_value_rules(number: Node) -> dict[str, Node]:
    """Rules of a value that nothing is said about.

    Args:
        number: How a number is spelled.

    Returns:
        The rule :data:`ANY_VALUE`, which refers to itself.
    """
    value = Ref(ANY_VALUE)
    member = seq(quoted(STRING_BODY), Text(": "), value)
    return {
        ANY_VALUE: alt(
            (
                quoted(STRING_BODY),
                number,
                *(Text("true"), Text("false"), Text("null")),
                item_list("{", member, "}", 0, None),
                item_list("[", value, "]", 0, None),
            )
        )
    }
