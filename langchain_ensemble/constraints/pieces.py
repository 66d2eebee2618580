"""A user's grammar as pieces that an engine can put together.

What we read ourselves (texts, schemas, expressions, and what is built of them) is one
:class:`Language`; grammars in an engine's own syntax stay as they are, and what joins them or
looks for a trigger is left to the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from langchain_ensemble.constraints.grammar import (
    Ebnf,
    Grammar,
    Joined,
    JsonSchema,
    Lark,
    Literal,
    OneOf,
    Regex,
    Repeated,
    Triggered,
)
from langchain_ensemble.constraints.json_schema import read_schema
from langchain_ensemble.constraints.language import (
    EMPTY,
    NEVER,
    Alt,
    Language,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    alt,
    needs_sets,
    repeat,
    seq,
)
from langchain_ensemble.constraints.regex import whole
from langchain_ensemble.errors import ConfigError


@dataclass(frozen=True)
class Chain:
    """Pieces one after the other."""

    parts: tuple[Piece, ...]


@dataclass(frozen=True)
class Choice:
    """Any one of some pieces."""

    options: tuple[Piece, ...]


@dataclass(frozen=True)
class Loop:
    """A piece one or more times, with a text in between, at most so often."""

    part: Piece
    separator: str
    at_most: int | None


@dataclass(frozen=True)
class Watch:
    """Any text; from a trigger on, a piece."""

    trigger: str
    body: Piece


Piece: TypeAlias = Language | Ebnf | Lark | Chain | Choice | Loop | Watch


def read(grammar: Grammar) -> Piece:
    """Read a grammar as far as it can be read here.

    Args:
        grammar: Any grammar.

    Returns:
        One language where all of it is ours, else the pieces.

    Raises:
        ConfigError: A schema or an expression in it is broken, or something is empty.
    """
    match grammar:
        case Literal(text):
            return Language(Text(_sound(text, "a literal")))
        case JsonSchema(schema):
            return read_schema(schema)
        case Regex(pattern):
            return _of_regex(pattern)
        case Ebnf() | Lark():
            return grammar
        case Joined(parts):
            return _chain(tuple(read(part) for part in parts))
        case OneOf(options):
            return _choice(tuple(read(option) for option in options))
        case Repeated(part, separator, at_most):
            return _loop(read(part), _sound(separator, "a separator"), at_most)
        case Triggered(trigger, body):
            if not trigger:
                raise ConfigError("the trigger of a grammar is empty; give the text it waits for.")
            return Watch(_sound(trigger, "a trigger"), read(body))


def notes_of(piece: Piece) -> tuple[str, ...]:
    """What is asked for in a grammar and not enforced.

    Args:
        piece: A grammar that was read.

    Returns:
        One sentence each.
    """
    if isinstance(piece, Language):
        return piece.notes
    return tuple(dict.fromkeys(note for part in parts_of(piece) for note in notes_of(part)))


def parts_of(piece: Piece) -> tuple[Piece, ...]:
    """The pieces that a piece is made of.

    Args:
        piece: Any piece.

    Returns:
        Its parts, none for languages and texts of grammars.
    """
    match piece:
        case Chain(parts):
            return parts
        case Choice(options):
            return options
        case Loop(part, _, _) | Watch(_, part):
            return (part,)
        case _:
            return ()


def holds(piece: Piece, test: Callable[[Piece], bool]) -> bool:
    """Whether a piece or one of its parts is of some kind.

    Args:
        piece: Any piece.
        test: The kind.

    Returns:
        Whether there is one.
    """
    return test(piece) or any(holds(part, test) for part in parts_of(piece))


def has_sets(piece: Piece) -> bool:
    """Whether a language in a piece needs intersections or differences.

    Args:
        piece: Any piece.

    Returns:
        Whether there is one.
    """
    return holds(
        piece,
        lambda part: (
            isinstance(part, Language)
            and any(needs_sets(node) for node in (part.start, *part.rules.values()))
        ),
    )


def _of_regex(pattern: str) -> Language:
    node = whole(_sound(pattern, "a regular expression"))
    if node == NEVER:
        raise ConfigError(f"no text can match the regular expression {pattern!r}.")
    return Language(node)


def _sound(text: str, kind: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{kind} of a grammar holds half a character: {error}.") from None
    return text


def _chain(parts: tuple[Piece, ...]) -> Piece:
    languages = [part for part in parts if isinstance(part, Language)]
    if len(languages) < len(parts):
        return Chain(parts)
    return _merged(languages, lambda starts: seq(*starts))


def _choice(options: tuple[Piece, ...]) -> Piece:
    if not options:
        raise ConfigError("a grammar offers a choice between nothing; give OneOf an option.")
    languages = [option for option in options if isinstance(option, Language)]
    if len(languages) < len(options):
        return Choice(options)
    return _merged(languages, alt)


def _loop(part: Piece, separator: str, at_most: int | None) -> Piece:
    if at_most is not None and at_most < 1:
        raise ConfigError(f"a grammar is repeated at most {at_most} times; once is the least.")
    if not isinstance(part, Language):
        return Loop(part, separator, at_most)
    more = seq(Text(separator) if separator else EMPTY, part.start)
    most = None if at_most is None else at_most - 1
    return Language(seq(part.start, repeat(more, 0, most)), part.rules, part.notes)


def _merged(languages: list[Language], join: Callable[[list[Node]], Node]) -> Language:
    """One language of several, each with its own names for its rules."""
    rules: dict[str, Node] = {}
    starts = []
    for number, language in enumerate(languages):
        prefix = f"{number}:"
        rules |= {prefix + name: _renamed(node, prefix) for name, node in language.rules.items()}
        starts.append(_renamed(language.start, prefix))
    notes = dict.fromkeys(note for language in languages for note in language.notes)
    return Language(join(starts), rules, tuple(notes))


def _renamed(node: Node, prefix: str) -> Node:
    match node:
        case Ref(name):
            return Ref(prefix + name)
        case Seq(parts):
            return Seq(tuple(_renamed(part, prefix) for part in parts))
        case Alt(options):
            return Alt(tuple(_renamed(option, prefix) for option in options))
        case Repeat(part, least, most):
            return Repeat(_renamed(part, prefix), least, most)
        case _:
            return node
