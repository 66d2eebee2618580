"""What an answer must be: schemas, ``response_format`` and grammars, in the forms callers write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel

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
from langchain_ensemble.errors import ConfigError, unknown_name

TOLD = "Answer with JSON only, no other text. It must match this JSON schema: "
"""What members are told of a schema, before the schema."""

ANY_OBJECT = JsonSchema('{"type": "object"}')

_SCHEMA_WORDS = ("type", "properties", "$ref", "$defs", "anyOf", "oneOf", "allOf", "enum", "const")


@dataclass(frozen=True)
class Asked:
    """What an answer must be.

    Attributes:
        grammar: What its text must obey; None: anything.
        told: What members are told of it, a system turn; None: nothing.
    """

    grammar: Grammar | None = None
    told: str | None = None


def read_response_format(form: Any) -> Asked:
    """Read ``response_format``.

    Args:
        form: None; ``{"type": "text" | "json_object"}``; ``{"type": "json_schema",
            "json_schema": {"name", "schema"}}``; a Pydantic class, TypedDict or JSON schema.

    Returns:
        The grammar, and what members are told: the schema, compact and without its titles.

    Raises:
        ConfigError: A form that is not known.
    """
    if form is None:
        return Asked()
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return Asked()
    if kind == "json_object":
        return Asked(ANY_OBJECT)
    if kind == "json_schema":
        inner = form.get("json_schema", form)  # OpenAI's two APIs nest it differently
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise ConfigError(
                'response_format of type "json_schema" has no schema; give {"type": "json_schema", '
                '"json_schema": {"name": ..., "schema": {...}}}'
            )
        return _held_to(dict(schema))
    return _held_to(json_schema(form))


def _held_to(schema: dict[str, Any]) -> Asked:
    text = json.dumps(schema, ensure_ascii=False)
    short = json.dumps(untitled(schema), ensure_ascii=False, separators=(",", ":"))
    return Asked(JsonSchema(text), TOLD + short)


def json_schema(schema: Any, strict: bool | None = None) -> dict[str, Any]:
    """Write a schema as JSON schema.

    Args:
        schema: A Pydantic class (of v1 too), a TypedDict, a JSON schema, or a function's
            description of OpenAI or Anthropic.
        strict: True closes every object and requires every property, as OpenAI does.

    Raises:
        ConfigError: Something that is none of them.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel) and not strict:
        return class_schema(schema)  # LangChain's conversion cannot hold a recursive one
    if isinstance(schema, Mapping) and any(word in schema for word in _SCHEMA_WORDS):
        nested = schema.get("type") == "function"
        if not nested and "parameters" not in schema and "input_schema" not in schema:
            return dict(schema)
    problem = None
    try:
        return convert_to_json_schema(schema, strict=strict)
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise ConfigError(f"{schema!r} cannot be read as a schema: {problem}")


def class_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """Write a Pydantic class as JSON schema, an object at its top even where it holds itself."""
    schema = kind.model_json_schema()
    if "$ref" in schema:
        top = schema.pop("$ref").rsplit("/", 1)[-1]
        schema |= schema["$defs"][top]
    return schema


def is_recursive(schema: Mapping[str, Any]) -> bool:
    """Whether some definition of a schema holds itself; such a one cannot be written out."""
    holds = {name: _refs(part) for name, part in schema.get("$defs", {}).items()}
    for name in holds:
        seen: list[str] = []
        queue = [*holds[name]]
        while queue:
            if (inner := queue.pop()) == name:
                return True
            if inner not in seen:
                seen.append(inner)
                queue += holds.get(inner, [])
    return False


def _refs(node: Any) -> list[str]:
    """Names of the definitions that a part of a schema refers to."""
    if isinstance(node, list):
        return [name for item in node for name in _refs(item)]
    if not isinstance(node, Mapping):
        return []
    own = node.get("$ref")
    found = [own.rsplit("/", 1)[-1]] if isinstance(own, str) else []
    return found + [name for value in node.values() for name in _refs(value)]


def untitled(schema: Any, *, names: bool = False) -> Any:
    """Leave out titles, which repeat names; ``names``: the keys are names of properties."""
    if isinstance(schema, list):
        return [untitled(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: untitled(value, names=key in ("properties", "$defs") and not names)
        for key, value in schema.items()
        if names or key != "title" or not isinstance(value, str)
    }


_GRAMMARS: dict[str, Callable[[str], Grammar]] = {
    "json_schema": JsonSchema,
    "regex": Regex,
    "ebnf": Ebnf,
    "lark": Lark,
}


def read_grammar(grammar: Any) -> Grammar | None:
    """Read ``grammar=`` of a call.

    Args:
        grammar: None, a grammar object of ``langchain_ensemble.constraints.grammar``, or a dict of
            one entry: ``regex``, ``ebnf``, ``lark`` or ``json_schema``.

    Raises:
        ConfigError: A form that is not known.
    """
    kinds = (Literal, JsonSchema, Regex, Ebnf, Lark, Joined, OneOf, Repeated, Triggered)
    if grammar is None or isinstance(grammar, kinds):
        return grammar
    if not isinstance(grammar, Mapping) or len(grammar) != 1:
        raise ConfigError(
            f"grammar is {grammar!r}; give a dict of one entry, {', '.join(map(repr, _GRAMMARS))}, "
            "for example {'regex': '[0-9]+'}"
        )
    ((kind, text),) = grammar.items()
    if kind not in _GRAMMARS:
        raise ConfigError(unknown_name("kind of grammar", kind, _GRAMMARS))
    if kind == "json_schema" and not isinstance(text, str):
        text = json.dumps(json_schema(text), ensure_ascii=False)
    if not isinstance(text, str):
        raise ConfigError(f"grammar {kind!r} is {text!r}; give its text")
    return _GRAMMARS[kind](text)
