"""Keywords of one JSON schema object, checked, and sorted into what they say.

What a keyword says about a value becomes :class:`Facts`; keywords that join schemas are left to
:mod:`json_joins`; annotations say nothing; the rest cannot be enforced and is noted, never
dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from langchain_ensemble.constraints.json_facts import TYPES, Facts
from langchain_ensemble.constraints.json_formats import RANGES
from langchain_ensemble.constraints.json_numbers import Bounds
from langchain_ensemble.errors import ConfigError

JOINS = frozenset(
    ("$ref", "allOf", "anyOf", "oneOf", "if", "then", "else", "dependentRequired", "nullable")
)
_SAY_NOTHING = frozenset(
    (
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly"),
        *("writeOnly", "$schema", "$id", "id", "$comment", "$defs", "definitions", "$anchor"),
        *("discriminator", "strict", "name", "externalDocs", "contentMediaType"),
    )
)
_NEEDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), (int, float)),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (int, float, bool)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), int),
    **dict.fromkeys(("minProperties", "maxProperties"), int),
    **dict.fromkeys(("pattern", "format", "$ref"), str),
    **dict.fromkeys(("properties", "patternProperties", "dependentRequired"), dict),
    **dict.fromkeys(("required", "enum", "prefixItems", "allOf", "anyOf", "oneOf"), list),
    **dict.fromkeys(("additionalProperties", "propertyNames", "if", "then", "else"), (dict, bool)),
    "items": (dict, bool, list),
    "type": (str, list),
    "uniqueItems": bool,
    "nullable": bool,
}


def says_nothing(keyword: str) -> bool:
    """Whether a keyword is a remark, not a condition.

    Args:
        keyword: Its name.

    Returns:
        True for titles, defaults, definitions, extensions ``x-...``.
    """
    return keyword in _SAY_NOTHING or keyword.startswith("x-")


def check(schema: Mapping[str, Any], where: str) -> None:
    """Refuse a schema that is no JSON schema.

    Args:
        schema: A schema object.
        where: Its place, for the message.

    Raises:
        ConfigError: A keyword has a value of the wrong kind.
    """
    for keyword, value in schema.items():
        needed = _NEEDS.get(keyword)
        wrong = needed is not None and not isinstance(value, needed)
        if needed is int and (isinstance(value, bool) or (isinstance(value, int) and value < 0)):
            wrong = True
        if keyword == "multipleOf" and not wrong and value <= 0:
            wrong = True
        if wrong:
            raise ConfigError(
                f"the schema at {where} is no JSON schema: {keyword!r} cannot be {value!r}."
            )
    names = schema.get("type", [])
    for name in [names] if isinstance(names, str) else names:
        if name not in TYPES:
            known = ", ".join(TYPES)
            raise ConfigError(f"the schema at {where} has the type {name!r}; known: {known}.")


def own_facts(schema: Mapping[str, Any], note: Callable[[str], None]) -> Facts:
    """What the keywords of a schema say, without those that join schemas.

    Args:
        schema: A checked schema object.
        note: Takes each keyword that is not enforced.

    Returns:
        The conditions.
    """
    found: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in JOINS or says_nothing(keyword):
            continue
        reader = _READERS.get(keyword)
        if reader is not None:
            found.update(reader(value))
        elif keyword not in _READ_TOGETHER and not _always_true(keyword, value):
            note(keyword)
    found["bounds"] = _bounds(schema)
    found.update(_items(schema))
    return Facts(**found)


def _always_true(keyword: str, value: Any) -> bool:
    return (keyword == "not" and value is False) or (
        keyword in ("unevaluatedProperties", "unevaluatedItems") and value in (True, False)
    )  # False: what no schema names is left out anyway


_READ_TOGETHER = frozenset(
    (
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        *("items", "prefixItems", "additionalItems"),
    )
)
_READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "type": lambda v: {"types": frozenset([v] if isinstance(v, str) else v)},
    "enum": lambda v: {"enum": tuple(v)},
    "const": lambda v: {"enum": (v,)},
    "multipleOf": lambda v: {"steps": (Decimal(repr(v)),)},
    "minLength": lambda v: {"least_length": v},
    "maxLength": lambda v: {"most_length": v},
    "pattern": lambda v: {"patterns": (v,)},
    "format": lambda v: {} if v in RANGES else {"formats": (v,)},
    "minItems": lambda v: {"least_items": v},
    "maxItems": lambda v: {"most_items": v},
    "uniqueItems": lambda v: {"unique": v},
    "properties": lambda v: {"properties": tuple(v.items()), "declares": True},
    "required": lambda v: {"required": tuple(dict.fromkeys(v))},
    "additionalProperties": lambda v: {"extra": v},
    "patternProperties": lambda v: {"by_pattern": tuple(v.items()), "declares": True},
    "propertyNames": lambda v: {"names": (v,)},
    "minProperties": lambda v: {"least_properties": v},
    "maxProperties": lambda v: {"most_properties": v},
}


def _items(schema: Mapping[str, Any]) -> dict[str, Any]:
    items, prefix = schema.get("items"), schema.get("prefixItems", [])
    if isinstance(items, list):  # before 2020-12, a list was the prefix
        items, prefix = schema.get("additionalItems"), items
    return {"items": items, "prefix": tuple(prefix)}


def _bounds(schema: Mapping[str, Any]) -> Bounds:
    low = max(_ends(schema, "minimum", "exclusiveMinimum"), default=(None, False))
    high = min(
        ((end, not strict) for end, strict in _ends(schema, "maximum", "exclusiveMaximum")),
        default=(None, True),
    )
    first, last = RANGES.get(str(schema.get("format")), (None, None))
    if first is not None and (low[0] is None or low[0] < first):
        low = (Decimal(first), False)
    if last is not None and (high[0] is None or high[0] > last):
        high = (Decimal(last), True)
    return Bounds(low[0], high[0], low[1], not high[1])


def _ends(schema: Mapping[str, Any], plain: str, strict: str) -> Iterator[tuple[Decimal, bool]]:
    limit, exclusive = schema.get(plain), schema.get(strict)
    if limit is not None:
        yield Decimal(repr(limit)), exclusive is True  # draft 4 has a flag here
    if exclusive is not None and not isinstance(exclusive, bool):
        yield Decimal(repr(exclusive)), True
