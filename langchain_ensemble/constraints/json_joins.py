"""``$ref``, ``allOf``, ``anyOf``, ``oneOf`` and their like: a schema as a list of alternatives.

Each alternative is one set of :class:`Facts` without any joining keyword. ``oneOf`` is read as
``anyOf``: a grammar cannot count how many of its schemas a value meets. Where they exclude one
another (other types, or a property with other constants, as discriminated unions have it) that
is the same; elsewhere it is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from langchain_ensemble.constraints.json_facts import Facts, Schema, both, types_of
from langchain_ensemble.constraints.json_keywords import check, own_facts, says_nothing
from langchain_ensemble.errors import ConfigError

_MOST_ALTERNATIVES = 256


class Joins:
    """Reads schemas of one document.

    Attributes:
        notes: What is not enforced, in the order in which it was met.
    """

    def __init__(self, root: Schema) -> None:
        """Keep the document.

        Args:
            root: The whole schema, which references point into.
        """
        self._root = root
        self.notes: dict[str, None] = {}

    def note(self, where: str, keyword: str, why: str = "") -> None:
        """Remember that a keyword is not enforced.

        Args:
            where: The schema's place.
            keyword: The keyword.
            why: What is done instead.
        """
        self.notes[
            f"{where}: {keyword!r} is not enforced while decoding{why}; validate the result"
        ] = None

    def resolve(self, ref: str, where: str) -> Schema:
        """Follow a reference.

        Args:
            ref: ``#`` or ``#/...``.
            where: The place of the schema that holds it.

        Returns:
            The schema that it names.

        Raises:
            ConfigError: It leads out of the document or to nothing.
        """
        if ref != "#" and not ref.startswith("#/"):
            raise ConfigError(
                f"the schema at {where} refers to {ref!r}; only references into the same schema, "
                "as '#/$defs/Name', can be followed. Put the definition into '$defs'."
            )
        found: Any = self._root
        for step in ref.split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name) if isinstance(found, list) else name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise ConfigError(
                    f"the schema at {where} refers to {ref!r}, which is not there."
                ) from None
        return checked(found, ref)

    def alternatives(self, schema: Schema, where: str, seen: tuple[str, ...] = ()) -> list[Facts]:
        """Work every joining keyword into the conditions.

        Args:
            schema: A schema.
            where: Its place.
            seen: References that led here.

        Returns:
            Sets of conditions; a value must meet one of them. None: no value can.
        """
        if isinstance(schema, bool):
            return [Facts()] if schema else []
        checked(schema, where)
        result = [own_facts(schema, lambda keyword: self.note(where, keyword))]
        for options in self._joined(schema, where):
            found = [facts for option, at in options for facts in self._followed(option, at, seen)]
            result = [joined for a in result for b in found if (joined := both(a, b))]
            if len(result) > _MOST_ALTERNATIVES:
                raise ConfigError(
                    f"the schema at {where} has more than {_MOST_ALTERNATIVES} combinations of "
                    "alternatives; write fewer 'anyOf' side by side."
                )
        if schema.get("nullable"):
            result.append(Facts(types=frozenset(("null",))))
        return result

    def _followed(self, schema: Schema, where: str, seen: tuple[str, ...]) -> list[Facts]:
        if isinstance(schema, Mapping) and "$ref" in schema:
            ref = schema["$ref"]
            if ref in seen:
                raise ConfigError(f"the schema at {where} refers to itself through {ref!r}.")
            seen = (*seen, ref)
        return self.alternatives(schema, where, seen)

    def _joined(self, schema: Mapping[str, Any], where: str) -> Iterator[list[tuple[Schema, str]]]:
        """Groups of schemas and their places; a value must meet one of each group."""
        if "$ref" in schema:
            yield [(self.resolve(schema["$ref"], where), schema["$ref"])]
        for number, part in enumerate(schema.get("allOf", [])):
            yield [(part, f"{where}/allOf/{number}")]
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                yield branches(schema, keyword, where)
        if "oneOf" in schema:
            self.check_one_of(schema, where)
        for name, others in schema.get("dependentRequired", {}).items():
            at = f"{where}/dependentRequired"
            yield [({"required": [name, *others]}, at), ({"properties": {name: False}}, at)]
        if "if" in schema:
            self.note(where, "if", " (only that 'if' and 'then' hold, or 'else')")
            then = {"allOf": [schema["if"], schema.get("then", True)]}
            yield [(then, f"{where}/then"), (schema.get("else", True), f"{where}/else")]

    def check_one_of(self, schema: Mapping[str, Any], where: str) -> None:
        """Note a ``oneOf`` that ``anyOf`` does not say.

        Args:
            schema: A schema with ``oneOf``.
            where: Its place.
        """
        if "discriminator" in schema:
            return
        found = [self._followed(option, at, ()) for option, at in branches(schema, "oneOf", where)]
        apart = all(
            _exclude(a, b)
            for number, options in enumerate(found)
            for others in found[number + 1 :]
            for a in options
            for b in others
        )
        if not apart:
            self.note(where, "oneOf", " (but 'anyOf' is: a value may meet several)")


def branches(schema: Mapping[str, Any], keyword: str, where: str) -> list[tuple[Schema, str]]:
    """The schemas of a keyword and their places.

    Args:
        schema: A schema object with that keyword.
        keyword: ``anyOf`` or ``oneOf``.
        where: The schema's place.

    Returns:
        One pair per schema.
    """
    return [(part, f"{where}/{keyword}/{number}") for number, part in enumerate(schema[keyword])]


def checked(schema: Any, where: str) -> Schema:
    """Make sure that something is a schema.

    Args:
        schema: Anything.
        where: Its place.

    Returns:
        It.

    Raises:
        ConfigError: It is no schema.
    """
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise ConfigError(
            f"the schema at {where} is {schema!r}; a JSON schema is an object, true or false."
        )
    check(schema, where)
    return schema


def only(schema: Mapping[str, Any], accepts: Callable[[str], bool]) -> bool:
    """Whether all keywords that say something are of one kind.

    Args:
        schema: A schema object.
        accepts: The kind.

    Returns:
        True where nothing else is said.
    """
    return all(says_nothing(keyword) or accepts(keyword) for keyword in schema)


def _exclude(a: Facts, b: Facts) -> bool:
    if both(_typed(a), _typed(b)) is None:
        return True
    mine, theirs = _constants(a), _constants(b)
    shared = mine.keys() & theirs.keys() & set(a.required) & set(b.required)
    return any(not set(mine[name]) & set(theirs[name]) for name in shared)


def _typed(facts: Facts) -> Facts:
    return replace(facts, types=frozenset(types_of(facts)) or None)


def _constants(facts: Facts) -> dict[str, list[str]]:
    found = {}
    for name, schema in facts.properties:
        if isinstance(schema, Mapping) and ("const" in schema or "enum" in schema):
            values = [schema["const"]] if "const" in schema else schema["enum"]
            found[name] = [repr(value) for value in values]
    return found
