r"""A JSON schema as a language: what is enforced, how it is spelled, what is only noted.

The engines bring their own readers of schemas; these drop in silence what they do not know (one
forgets ``allOf`` and the conditions beside ``$ref`` or ``enum``, and lets raw control characters
into strings of limited length), and they differ. So schemas are read here, into one language
that any engine can follow.

**Spelling.** As ``json.dumps(value, ensure_ascii=False)`` writes it: ``", "`` and ``": "``, no
other white space, no escape that is not needed. So no answer loops in white space, and no half
characters (``\ud800``) come out.

**Enforced.** ``type``, ``enum``, ``const``; ``minLength``, ``maxLength``, ``pattern``, the
formats of :mod:`json_formats`; ``minimum``, ``maximum``, their exclusive forms, ``multipleOf``
where the multiples can be listed or end in certain digits; ``prefixItems``, ``items``,
``minItems``, ``maxItems``, ``uniqueItems`` of up to six listed values; ``properties``,
``required``, ``additionalProperties``, ``patternProperties``, ``propertyNames``,
``minProperties``, ``maxProperties``, ``dependentRequired``; ``$ref`` into the schema, also
recursive; ``allOf``, ``anyOf``; ``oneOf`` as ``anyOf``; ``nullable``.

**Noted.** Every other keyword that is a condition (``not``, ``contains``, ``if`` ...): the notes
become warnings, see :func:`compile_all`. Nothing is dropped in silence.

**Narrower than JSON schema**, so that answers end and mean what was meant:

- An object that declares properties has no others unless ``additionalProperties`` says so; with
  ``"properties": {}`` it is empty. Without ``properties`` it may hold anything:
  ``{"type": "object"}`` is JSON mode.
- Properties come in the order in which they are declared; optional ones may be left out.
- After ``prefixItems`` alone nothing follows.
- A schema without ``type`` that limits strings (numbers, arrays, objects) allows only these.
- Numbers have a limited number of digits, see :mod:`json_numbers`.
- A pattern is matched as all dialects of regular expressions agree, see :mod:`regex`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from langchain_ensemble.constraints.json_facts import Facts, Schema, holds, types_of
from langchain_ensemble.constraints.json_joins import Joins, branches, checked, only
from langchain_ensemble.constraints.json_numbers import NO_BOUNDS, number
from langchain_ensemble.constraints.json_objects import Objects
from langchain_ensemble.constraints.json_text import (
    ANY_VALUE,
    any_value_rules,
    quoted,
    value_text,
)
from langchain_ensemble.constraints.json_values import Arrays, Note, number_node, string_body
from langchain_ensemble.constraints.language import (
    NEVER,
    Language,
    Node,
    Ref,
    Text,
    alt,
    pruned,
)
from langchain_ensemble.errors import ConfigError


def read_schema(text: str) -> Language:
    """Read a JSON schema.

    Args:
        text: The schema as JSON text.

    Returns:
        The JSON texts that it allows, and notes on what is not enforced.

    Raises:
        ConfigError: The text is no JSON schema, it refers to something that is not there, or no
            value can meet it.
    """
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"the JSON schema is not JSON: {error}. It reads {text[:200]!r}."
        ) from None
    reader = _Reader(checked(root, "#"))
    try:
        start = reader.value(root, "#")
    except RecursionError:
        raise ConfigError("the JSON schema is nested too deeply to be read.") from None
    language = pruned(Language(start, reader.rules, tuple(reader.joins.notes)))
    if language.start == NEVER:
        raise ConfigError(
            f"no value can meet the JSON schema {text[:200]}; check contradicting or endlessly "
            "nested requirements."
        )
    return language


class _Reader:
    """Reads the schemas of one document into rules."""

    def __init__(self, root: Schema) -> None:
        self.joins = Joins(root)
        self.rules: dict[str, Node] = any_value_rules(number(NO_BOUNDS))
        self._arrays = Arrays(self.value, self.rules)
        self._objects = Objects(self.value, self._name, self._accepts_name, self.rules)

    def value(self, schema: Schema, where: str) -> Node:
        """A value that meets a schema."""
        schema = checked(schema, where)
        if isinstance(schema, bool):
            return Ref(ANY_VALUE) if schema else NEVER
        if only(schema, lambda _: False):
            return Ref(ANY_VALUE)
        if only(schema, lambda keyword: keyword == "$ref"):
            return self._rule(schema["$ref"], where)
        if only(schema, lambda keyword: keyword == "anyOf"):
            return self._choice(schema, "anyOf", where)
        if only(schema, lambda keyword: keyword == "oneOf"):
            self.joins.check_one_of(schema, where)
            return self._choice(schema, "oneOf", where)
        if only(schema, lambda keyword: keyword == "allOf") and len(schema["allOf"]) == 1:
            return self.value(schema["allOf"][0], f"{where}/allOf/0")
        return alt(self._facts(facts, where) for facts in self.joins.alternatives(schema, where))

    def _choice(self, schema: Mapping[str, Any], keyword: str, where: str) -> Node:
        return alt(self.value(part, at) for part, at in branches(schema, keyword, where))

    def _rule(self, ref: str, where: str) -> Node:
        if ref not in self.rules:
            schema = self.joins.resolve(ref, where)
            self.rules[ref] = NEVER  # taken; a schema may refer to itself
            self.rules[ref] = self.value(schema, ref)
        return Ref(ref)

    def _facts(self, facts: Facts, where: str) -> Node:
        if facts.enum is not None:
            return alt(value_text(value, where) for value in facts.enum if holds(value, facts))
        types = types_of(facts)
        return alt(self._typed(name, facts, where) for name in types) if types else Ref(ANY_VALUE)

    def _typed(self, name: str, facts: Facts, where: str) -> Node:
        note = self._noted(where)
        match name:
            case "string":
                return quoted(string_body(facts, note))
            case "number" | "integer":
                return number_node(facts, name == "integer", note)
            case "array":
                return self._arrays.node(facts, where, note)
            case "object":
                return self._objects.node(facts, where, note)
            case "boolean":
                return alt((Text("true"), Text("false")))
            case _:
                return Text("null")

    def _name(self, schema: Schema, where: str) -> Node:
        return alt(
            alt(
                Text(json.dumps(value, ensure_ascii=False)[1:-1])
                for value in facts.enum
                if isinstance(value, str) and holds(value, facts)
            )
            if facts.enum is not None
            else string_body(facts, self._noted(where))
            for facts in self.joins.alternatives(schema, where)
        )

    def _accepts_name(self, schema: Schema, where: str, name: str) -> bool:
        return any(
            holds(name, facts) and (facts.enum is None or name in facts.enum)
            for facts in self.joins.alternatives(schema, where)
        )

    def _noted(self, where: str) -> Note:
        joins = self.joins

        def note(keyword: str, why: str) -> None:
            joins.note(where, keyword, why)

        return note
