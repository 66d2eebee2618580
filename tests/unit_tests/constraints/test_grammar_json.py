"""JSON schemas: every keyword enforced or named, by both engines, spelled as json.dumps does it."""

from __future__ import annotations

import json
import random
import re
import warnings
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from langchain_ensemble.constraints.compile import compile_grammar
from langchain_ensemble.constraints.grammar import JsonSchema
from langchain_ensemble.constraints.json_numbers import Bounds, number, whole_number
from langchain_ensemble.constraints.language import Language
from langchain_ensemble.constraints.llguidance_engine import compile_piece, read_vocabulary
from langchain_ensemble.errors import ConfigError, EnsembleWarning
from tests.unit_tests.constraints.grammar_tables import (
    BYTES,
    ENGINES,
    accepts,
    compiled,
    draw,
    schema,
)

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
DEFS = {"$defs": {"N": {"type": "integer", "minimum": 1}}}

# schema, texts that it allows, texts that it does not
CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "null": ({"type": "null"}, ["null"], ["nul", "None", "0"]),
    "boolean": ({"type": "boolean"}, ["true", "false"], ["True", "1"]),
    "integer": ({"type": "integer"}, ["0", "-7", "120"], ["-0", "01", "1.0", "1e3", "+1"]),
    "integer bounds": (
        {"type": "integer", "minimum": -3, "maximum": 120},
        ["-3", "0", "99", "120"],
        ["-4", "121", "1200", "-30"],
    ),
    "exclusive bounds": (
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
        ["4"],
        ["3", "5"],
    ),
    "draft 4 exclusive": (
        {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5},
        ["4", "5"],
        ["3"],
    ),
    "number": ({"type": "number"}, ["0", "-1.5", "1e-07", "2.5e+16"], [".5", "1.", "00.1"]),
    "number bounds": (
        {"type": "number", "minimum": -2.5, "exclusiveMaximum": 10.25},
        ["-2.5", "-0.3", "0", "10.2", "10.2499", "9.99"],
        ["-2.51", "10.25", "10.3", "11", "-3", "1e1"],
    ),
    "number minimum": ({"type": "number", "minimum": 0.5}, ["0.5", "7", "123.25"], ["0.4", "-1"]),
    "multipleOf": (
        {"type": "integer", "multipleOf": 25},
        ["0", "75", "-150"],
        ["7", "74", "150.5"],
    ),
    "multipleOf in bounds": (
        {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 30},
        ["14", "28"],
        ["7", "15", "35"],
    ),
    "multipleOf a cent": (
        {"type": "number", "multipleOf": 0.01, "minimum": 0},
        ["0", "3.1", "3.14"],
        ["3.141"],
    ),
    "int32": ({"type": "integer", "format": "int32"}, ["2147483647"], ["2147483648"]),
    "string": (
        {"type": "string"},
        ['""', '"é日🦊"', '"\\n\\t\\"\\\\"', '"\\u0001"', '"/"'],
        ['"\n"', '"\x01"', '"\\u00e9"', '"\\ud800"', '"\\/"', "'a'", '"a'],
    ),
    "lengths": (
        {"type": "string", "minLength": 2, "maxLength": 3},
        ['"ab"', '"日本語"', '"\\n\\""', '"🦊🦊🦊"'],
        ['"a"', '"abcd"', '"日本語。"'],
    ),
    "pattern": (
        {"type": "string", "pattern": r"^[A-Z]{2}-\d+$"},
        ['"AB-1"', '"ZZ-0123"'],
        ['"AB-"', '"xAB-1"', '"AB-1x"'],
    ),
    "pattern anywhere": ({"type": "string", "pattern": "b"}, ['"abc"', '"\\nb"'], ['"ac"', '""']),
    "pattern of escapes": (
        {"type": "string", "pattern": '^[^a]"\\\\\\n$'},
        ['"é\\"\\\\\\n"'],
        ['"a\\"\\\\\\n"'],
    ),
    "pattern and lengths of one class": (
        {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 3},
        ['"ab"', '"abc"'],
        ['"a"', '"abcd"', '"AB"'],
    ),
    "date": (
        {"type": "string", "format": "date"},
        ['"2024-02-29"', '"2023-12-31"', '"2000-02-29"'],
        ['"2023-02-29"', '"2100-02-29"', '"2023-04-31"', '"2023-13-01"', '"23-01-01"'],
    ),
    "enum": (
        {"enum": ["é", "日本", "a\n", 1, None, 2.5, {"a": [1, 2]}]},
        ['"é"', '"日本"', '"a\\n"', "1", "null", "2.5", '{"a": [1, 2]}'],
        ['"\\u00e9"', "2", '{"a":[1,2]}'],
    ),
    "enum with conditions": (
        {"enum": [1, 5, "x", None], "type": ["integer", "null"], "minimum": 2},
        ["5", "null"],
        ["1", '"x"'],
    ),
    "const": ({"const": "日"}, ['"日"'], ['"月"']),
    "several types": ({"type": ["string", "null"], "maxLength": 1}, ['"a"', "null"], ['"ab"', "1"]),
    "nullable": ({"type": "integer", "nullable": True}, ["1", "null"], ['"1"']),
    "array": ({"type": "array"}, ["[]", '[1, "a", [null]]'], ["[1,2]", "[ ]", "[1, ]"]),
    "items": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        ["[1]", "[1, 2, 3]"],
        ["[]", "[1, 2, 3, 4]", '["a"]', "[1,2]"],
    ),
    "prefixItems": (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 1},
        ["[1]", '[1, "a"]'],
        ["[]", '["a"]', '[1, "a", 2]'],
    ),
    "prefix and items": (
        {"prefixItems": [{"const": 1}], "items": {"const": 2}, "maxItems": 3},
        ["[]", "[1]", "[1, 2, 2]"],
        ["[2]", "[1, 2, 2, 2]"],
    ),
    "items as a list": (
        {"type": "array", "items": [{"const": 1}], "additionalItems": False},
        ["[]", "[1]"],
        ["[1, 1]", "[2]"],
    ),
    "no items": ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    "uniqueItems": (
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 1},
        ['["b"]', '["c", "a", "b"]'],
        ["[]", '["a", "a"]', '["a", "b", "a"]'],
    ),
    "properties": (
        OBJECT | {"required": ["b"]},
        ['{"a": 1, "b": "x"}', '{"b": "x"}'],
        ['{"a": 1}', '{"b": "x", "a": 1}', '{"a": 1, "b": "x", "c": 1}', '{"a":1, "b": "x"}', "{}"],
    ),
    "all optional": (
        OBJECT,
        ["{}", '{"a": 1}', '{"b": ""}', '{"a": 1, "b": ""}'],
        ['{"b": "", "a": 1}', '{, "b": ""}', '{"a": 1, }', '{"a": 1 }'],
    ),
    "unicode keys": (
        {"type": "object", "properties": {"größe\n": {"const": 1}}, "required": ["größe\n"]},
        ['{"größe\\n": 1}'],
        ['{"gr\\u00f6\\u00dfe\\n": 1}', "{}"],
    ),
    "any object": (
        {"type": "object"},
        ["{}", '{"a": {"b": [1, {}, "é"]}, "": null}'],
        ["[]", "1", '{"a": }'],
    ),
    "no properties": ({"type": "object", "properties": {}}, ["{}"], ['{"a": 1}']),
    "map": (
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        ["{}", '{"x": true, "y": false}'],
        ['{"x": 1}'],
    ),
    "map of listed names": (
        {"propertyNames": {"enum": ["x", "y"]}, "additionalProperties": {"type": "boolean"}},
        ["{}", '{"y": true}'],
        ['{"z": true}'],
    ),
    "closed": (OBJECT | {"additionalProperties": False}, ["{}"], ['{"c": 1}']),
    "maxProperties": (OBJECT | {"maxProperties": 1}, ["{}", '{"b": ""}'], ['{"a": 1, "b": ""}']),
    "minProperties": (OBJECT | {"minProperties": 1}, ['{"b": ""}'], ["{}"]),
    "dependentRequired": (
        OBJECT | {"dependentRequired": {"a": ["b"]}},
        ["{}", '{"b": ""}', '{"a": 1, "b": ""}'],
        ['{"a": 1}'],
    ),
    "$ref": ({"$ref": "#/$defs/N"} | DEFS, ["3"], ["0", "-1"]),
    "$ref with conditions": ({"$ref": "#/$defs/N", "maximum": 3} | DEFS, ["3"], ["0", "4"]),
    "$ref to a property": (
        {"properties": {"a/b": {"const": 1}, "c": {"$ref": "#/properties/a~1b"}}},
        ['{"a/b": 1, "c": 1}'],
        ['{"c": 2}'],
    ),
    "allOf": (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"const": 2}, "a": {"minimum": 5}}},
            ]
        },
        ['{"a": 5}', '{"a": 7, "b": 2}'],
        ['{"a": 4}', "{}", '{"a": 5, "b": 3}'],
    ),
    "anyOf with conditions": (
        {"type": "integer", "anyOf": [{"maximum": 3}, {"minimum": 10}], "minimum": 0},
        ["0", "3", "10"],
        ["-1", "4", "9"],
    ),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
    "discriminator": (
        {
            "oneOf": [
                {"properties": {"t": {"const": "x"}, "v": {"const": 1}}, "required": ["t", "v"]},
                {"properties": {"t": {"const": "y"}, "w": {"const": 2}}, "required": ["t"]},
            ]
        },
        ['{"t": "x", "v": 1}', '{"t": "y"}', '{"t": "y", "w": 2}'],
        ['{"t": "x", "w": 2}', '{"t": "x"}'],
    ),
    "no type": ({"minLength": 1}, ['"a"'], ['""', "1"]),
    "recursion": (
        {"$ref": "#/$defs/T", "$defs": {"T": {"type": "array", "items": {"$ref": "#/$defs/T"}}}},
        ["[]", "[[], [[]]]"],
        ["[1]", "[[]"],
    ),
}
SETS: dict[str, tuple[Any, list[str], list[str]]] = {  # what takes an intersection
    "pattern and length": (
        {"type": "string", "pattern": "b", "maxLength": 3},
        ['"b"', '"abc"', '"\\nb"'],
        ['"abcd"', '"a"'],
    ),
    "two patterns": (
        {"allOf": [{"type": "string", "pattern": "a"}, {"pattern": "b"}], "maxLength": 3},
        ['"ab"', '"bca"'],
        ['"a"', '"b"', '"abcd"'],
    ),
    "further names": (
        OBJECT | {"additionalProperties": {"type": "boolean"}},
        ["{}", '{"a": 1, "x": true}', '{"x": true, "y": false}', '{"aa": true}'],
        ['{"x": true, "a": 1}', '{"a": true}', '{"x": 1}', '{"a": 1, "a": true}'],
    ),
    "required only": (
        {"type": "object", "required": ["a"]},
        ['{"a": 1}', '{"a": {}, "b": []}'],
        ["{}", '{"b": 1}'],
    ),
    "patternProperties": (
        {
            "properties": {"x1": {"type": "integer"}},
            "patternProperties": {"^x": {"minimum": 5}, "y$": {"maximum": 9}},
        },
        ["{}", '{"x1": 5}', '{"xa": 7}', '{"xy": 9}', '{"ay": 2}'],
        ['{"x1": 4}', '{"z": 1}', '{"xy": 10}', '{"xy": 4}'],
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": {"maxLength": 2}, "additionalProperties": {"const": 1}},
        ["{}", '{"ab": 1}'],
        ['{"abc": 1}'],
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_a_keyword_is_enforced(name, engine):
    value, good, bad = CASES[name]
    grammar = compiled(schema(value), engine)
    assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []


@pytest.mark.parametrize("name", SETS)
def test_what_takes_an_intersection_is_enforced_by_llguidance_and_refused_by_xgrammar(name):
    value, good, bad = SETS[name]
    grammar = compiled(schema(value), "llguidance")
    assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []
    if name != "propertyNames":
        with pytest.raises(ConfigError, match="cannot intersect"):
            compiled(schema(value), "xgrammar")


@pytest.mark.parametrize("name", CASES | SETS)
def test_the_examples_are_right(name):
    """The texts above, read by an independent validator."""
    value, good, bad = (CASES | SETS)[name]
    if name in ("draft 4 exclusive", "nullable", "items as a list", "multipleOf a cent", "int32"):
        return  # other dialects; and binary fractions know no cents
    checker = Draft202012Validator(value, format_checker=Draft202012Validator.FORMAT_CHECKER)
    assert [text for text in good if not checker.is_valid(json.loads(text))] == []
    valid = []
    for text in bad:
        try:
            valid += [text] if checker.is_valid(json.loads(text)) else []
        except ValueError:
            continue
    for text in valid:  # valid, but not spelled or ordered our way, or open to more properties
        canonical = json.dumps(json.loads(text), ensure_ascii=False)
        narrower = name in (
            *("properties", "all optional", "prefixItems", "discriminator", "no type", "integer"),
            *("number bounds", "further names", "patternProperties", "items", "unicode keys"),
            *("string", "multipleOf a cent", "no properties"),
        )
        assert canonical != text or narrower, text


@pytest.mark.parametrize(
    ("value", "keyword"),
    [
        ({"not": {"type": "string"}, "type": "integer"}, "not"),
        ({"type": "array", "contains": {"const": 1}}, "contains"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
        ({"if": {"const": 1}, "then": {"const": 1}, "else": {"const": 2}}, "if"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "format": "iri-reference"}, "format"),
        ({"type": "integer", "multipleOf": 7}, "multipleOf"),
        ({"type": "object", "minProperties": 1}, "minProperties"),
        ({"type": "string", "minlength": 3}, "minlength"),
        ({"type": "object", "dependentSchemas": {"a": {}}}, "dependentSchemas"),
    ],
)
def test_what_is_not_enforced_is_named(value, keyword):
    inside = {"type": "object", "properties": {"field": value}}
    with pytest.warns(EnsembleWarning, match=rf"^grammar: #/properties/field: '{keyword}' is not"):
        compiled(schema(inside), "llguidance")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is an object, true or false"),
        ('{"type": "text"}', "'text'; known: string"),
        ('{"minLength": "3"}', "'minLength' cannot be '3'"),
        ('{"maxItems": -1}', "'maxItems' cannot be -1"),
        ('{"properties": {"a": 3}}', "#/properties/a is 3"),
        ('{"$ref": "http://example.org/x"}', "only references into the same schema"),
        ('{"$ref": "#/$defs/No"}', "'#/\\$defs/No', which is not there"),
        ('{"$ref": "#/$defs/A", "type": "null", "$defs": {"A": {"$ref": "#/$defs/A"}}}', "itself"),
        ('{"type": "string", "pattern": "("}', "is not closed"),
        ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ("false", "no value can meet"),
        ('{"type": "string", "minLength": 3, "maxLength": 2}', "no value can meet"),
        ('{"type": "integer", "minimum": 3, "maximum": 2}', "no value can meet"),
        ('{"allOf": [{"type": "string"}, {"type": "integer"}]}', "no value can meet"),
        ('{"properties": {"a": false}, "required": ["a"]}', "no value can meet"),
        ('{"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"a": {"$ref": "#/$defs/A"}}, '
         '"required": ["a"]}}}', "no value can meet"),
        ('{"enum": ["\\ud800"]}', "no JSON text in UTF-8"),
        ('{"type": "string", "pattern": "^a{5}$", "maxLength": 3}', "no value can meet"),
        ('{"allOf": [{"type": "string", "pattern": "^a$"}, {"pattern": "^b$"}]}', "no text can"),
    ],
)  # fmt: skip
def test_a_broken_schema_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        compile_grammar(JsonSchema(text), BYTES)


class Colour(Enum):
    RED = "rot"
    GREEN = "grün"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str = Field(max_length=8, description="What it listens to.")


class Zoo(BaseModel):
    """A place with animals."""

    model_config = ConfigDict(title="Zoo")
    owner: str | None = Field(default=None, max_length=10)
    colour: Colour
    animals: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = Field(max_length=3)
    opening: dict[Literal["mo", "di"], bool] = Field(default_factory=dict)
    price: Annotated[float, Field(gt=0, lt=100)]
    where: tuple[int, int] = (0, 0)
    sister: Zoo | None = None


@pytest.mark.parametrize("engine", ENGINES)
def test_pydantic_classes_come_out_valid(engine):
    value = Zoo.model_json_schema()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grammar = compiled(schema(value), engine)
    checker = TypeAdapter(Zoo)
    finished = 0
    for seed in range(60):
        matcher, rng, text = grammar.matcher(), random.Random(seed), b""
        for token in draw([matcher], [BYTES], rng, 3000):
            text += token
        if matcher.may_end:
            finished += 1
            checker.validate_json(text)
    assert finished > 20


FORMATS = (
    *("date", "time", "date-time", "duration", "email", "uuid", "uuid4", "ipv4", "ipv6", "uri"),
    *("hostname", "byte", "ipvanyaddress"),
)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_what_its_validator_reads(name):
    import datetime
    import ipaddress
    import uuid
    from base64 import b64decode

    from pydantic import HttpUrl

    readers: dict[str, Any] = {
        "date": datetime.date,
        "time": datetime.time,
        "date-time": datetime.datetime,
        "duration": datetime.timedelta,
        "uuid": uuid.UUID,
        "ipv4": ipaddress.IPv4Address,
        "ipv6": ipaddress.IPv6Address,
        "ipvanyaddress": ipaddress.IPv4Address | ipaddress.IPv6Address,
        "uri": HttpUrl,
    }
    grammar = compiled(schema({"type": "string", "format": name}), "llguidance")
    for seed in range(100):
        matcher, rng, text = grammar.matcher(), random.Random(f"{name} {seed}"), b""
        for token in draw([matcher], [BYTES], rng, 400):
            text += token
            if matcher.may_end and rng.random() < 0.2:
                break
        if not matcher.may_end:
            continue
        value = json.loads(text)
        if name in readers:
            TypeAdapter(readers[name]).validate_python(value)
        elif name == "uuid4":
            assert uuid.UUID(value).version == 4
        elif name == "byte":
            b64decode(value, validate=True)
        elif name == "email":
            local, _, host = value.partition("@")
            assert local
            assert "." in host
        assert Draft202012Validator(
            {"format": name}, format_checker=Draft202012Validator.FORMAT_CHECKER
        ).is_valid(value), value


LIMITS = st.one_of(
    st.integers(-2000, 2000).map(Decimal),
    st.decimals(-50, 50, allow_nan=False, places=3),
)
PREPARED = read_vocabulary(BYTES)
PLAIN = re.compile(r"0|-?[1-9]\d*|0\.\d+|-?[1-9]\d*\.\d+|-0\.\d*[1-9]\d*")


@given(LIMITS, LIMITS, st.booleans(), st.booleans(), st.data())
def test_numbers_between_bounds_are_exactly_those(low, high, above, below, data):
    low, high = sorted((low, high))
    bounds = Bounds(low, high, above, below)
    for whole in (True, False):
        node = whole_number(bounds) if whole else number(bounds)
        tried = [
            str(data.draw(st.integers(-2500, 2500))) if whole else f"{data.draw(LIMITS):f}"
            for _ in range(10)
        ] + [f"{low:f}", f"{high:f}", f"{low}1", f"{high}1", "0"]
        try:
            grammar = compile_piece(Language(node), BYTES, PREPARED)
        except ConfigError:
            continue
        for text in tried:
            if not PLAIN.fullmatch(text) or (whole and "." in text):
                continue
            value = Decimal(text)
            inside = (low < value or (low == value and not above)) and (
                value < high or (value == high and not below)
            )
            assert accepts(grammar, text) == inside, (text, bounds)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_number_ends(engine):
    for kind in ("number", "integer"):
        grammar = compiled(schema({"type": kind}), engine)
        for seed in range(20):
            matcher, text = grammar.matcher(), b""
            for token in draw([matcher], [BYTES], random.Random(seed), 1000):
                text += token
            assert len(text) < 50
            assert abs(json.loads(text)) < float("inf")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_said_is_what_json_dumps_writes(engine):
    """Random values by seed: the grammar of any object takes their one spelling and no other."""
    grammar = compiled(schema({"type": "object"}), engine)
    rng = random.Random(1)

    def value(depth: int) -> Any:
        kind = rng.randrange(7 if depth else 5)
        if kind == 5:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        if kind == 6:
            return {text(): value(depth - 1) for _ in range(rng.randrange(4))}
        return (None, True, rng.randrange(-1000, 1000), rng.uniform(-9, 9), text())[kind]

    def text() -> str:
        alphabet = 'ab "\\/\n\t\x00\x1f\x7fé日🦊\u2028\ufeff'
        return "".join(rng.choice(alphabet) for _ in range(rng.randrange(6)))

    for _ in range(300):
        said = json.dumps({text(): value(3)}, ensure_ascii=False)
        assert accepts(grammar, said), said
        tight = json.dumps(json.loads(said), ensure_ascii=False, separators=(",", ":"))
        assert not accepts(grammar, tight)


def test_both_engines_allow_the_same():
    """Every example, cut and changed at random places: the engines give the same answer."""
    rng = random.Random(2)
    for name, (value, good, bad) in CASES.items():
        grammars = [compiled(schema(value), engine) for engine in ENGINES]
        for text in (*good, *bad):
            data = bytearray(text.encode())
            for _ in range(12):
                changed = bytearray(data)
                if changed and rng.random() < 0.8:
                    at = rng.randrange(len(changed))
                    changed[at : at + rng.randrange(2)] = bytes([rng.choice(b' ,:"0a1{}[]\\n-')])
                first, second = (accepts(grammar, bytes(changed)) for grammar in grammars)
                assert first == second, (name, bytes(changed))
