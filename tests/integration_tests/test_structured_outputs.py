"""Structured outputs over real decoding: sampled hot by members that know no JSON, always valid.

The members are random weights with different tokenizers (byte-level BPE, SentencePiece with byte
fallback), so every answer is the grammar's doing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.chat.conversation import ChatRequest, Conversation, Message
from langchain_ensemble.constraints.grammar import JsonSchema
from langchain_ensemble.constraints.json_schema import read_schema
from langchain_ensemble.constraints.language import (
    Alt,
    Both,
    Chars,
    Except,
    Language,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
)
from langchain_ensemble.decoding.records import Finish
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import EnsembleError
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests import chat_pico

WORD = {"type": "string", "minLength": 1, "maxLength": 6}
COLOUR = {"enum": ["rot", "grün", "青", "🔵"]}
POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": -99, "maximum": 99},
        "y": {"type": "integer", "minimum": -99, "maximum": 99},
    },
    "required": ["x", "y"],
}


def record(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": record("name", "age", name=WORD, age={"type": "integer", "minimum": 0, "maximum": 150}),
    "optional": record("b", a=WORD, b={"type": "boolean"}, c={"type": "null"}, d=COLOUR),
    "nested": record("from", "to", **{"from": POINT, "to": POINT}),
    "deep": record("a", a=record("b", b=record("c", c=record("d", d=COLOUR)))),
    "list of words": record("words", words={"type": "array", "items": WORD, "maxItems": 4}),
    "list of records": {"type": "array", "items": POINT, "minItems": 1, "maxItems": 3},
    "matrix": {
        "type": "array",
        "items": {
            "type": "array",
            "items": {"enum": [0, 1]},
            "minItems": 2,
            "maxItems": 2,
        },
        "maxItems": 3,
    },
    "tuple": {
        "type": "array",
        "prefixItems": [WORD, {"type": "boolean"}, COLOUR],
        "minItems": 3,
        "maxItems": 3,
    },
    "enum": record("colour", colour=COLOUR, size={"enum": [1, 2.5, None, "x\n"]}),
    "union": {"anyOf": [POINT, WORD, {"type": "integer", "minimum": 1, "maximum": 9}, COLOUR]},
    "tagged union": {
        "oneOf": [
            record("kind", "lives", kind={"const": "cat"}, lives={"enum": [7, 9]}),
            record("kind", "name", kind={"const": "dog"}, name=WORD),
        ]
    },
    "unicode keys": record("größe", "名前", größe={"enum": ["S", "ß"]}, 名前=WORD),
    "numbers": record("p", "q", p={"type": "number", "minimum": 0, "maximum": 1}, q=POINT),
    "steps": record("n", n={"type": "integer", "multipleOf": 5, "minimum": -20, "maximum": 95}),
    "pattern": record("plate", plate={"type": "string", "pattern": "^[A-ZÄÖÜ]{1,3}-\\d{1,4}$"}),
    "pattern and length": record(
        "x", x={"type": "string", "pattern": "[0-9]", "minLength": 2, "maxLength": 5}
    ),
    "dates": record(
        "on",
        on={"type": "string", "format": "date"},
        id={"type": "string", "format": "ipv4"},
    ),
    "references": {
        **record("left", "right", left={"$ref": "#/$defs/Leaf"}, right={"$ref": "#/$defs/Leaf"}),
        "$defs": {"Leaf": {"anyOf": [{"$ref": "#/$defs/Value"}, {"type": "null"}]}, "Value": WORD},
    },
    "all of": {
        "allOf": [record("a", a={"type": "integer", "minimum": 0}, b=WORD)],
        "properties": {"a": {"maximum": 40}},
    },
    "set": {"type": "array", "items": COLOUR, "uniqueItems": True, "minItems": 1},
}
ASKED = Conversation((Message("user", "Say something in JSON."),))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    def make(kind: str, template: str, markers: tuple[str, ...]) -> str:
        folder = tmp_path_factory.mktemp(f"structured-{kind}")
        return str(chat_pico.build(kind, folder, template, markers))

    return {
        "qwen": make("qwen2", chat_pico.QWEN, chat_pico.QWEN_MARKERS),
        "zephyr": make("llama", chat_pico.ZEPHYR, chat_pico.ZEPHYR_MARKERS),
    }


@pytest.fixture(scope="module", params=[("qwen", "deepen"), ("zephyr", "average")])
def ensemble(request: pytest.FixtureRequest, members: dict[str, str]) -> Iterator[Ensemble]:
    main, fusion = request.param
    params = EnsembleParams(members=members, main=main, fusion=fusion)
    with Ensemble(params) as owner:
        yield owner


def longest(language: Language) -> int:
    """Bytes of the longest text of a language without recursion: no answer takes more steps."""

    def count(node: Node) -> int:
        match node:
            case Text(text):
                return len(text.encode())
            case Chars(ranges):
                return len(chr(ranges[-1][1]).encode())
            case Seq(parts):
                return sum(map(count, parts))
            case Alt(options):
                return max(map(count, options))
            case Repeat(part, _, most):
                assert most is not None, "not bounded"
                return most * count(part)
            case Ref(name):
                return count(language.rules[name])
            case Both(parts):
                return min(count(part) for part in parts if "None" not in repr(part))
            case Except(part, _):
                return count(part)

    return count(language.start)


def answers(owner: Ensemble, schema: Any, request: RequestParams) -> list[tuple[str, Finish]]:
    chat = ChatRequest(grammar=JsonSchema(json.dumps(schema)))
    texts, finishes = [""] * request.n, dict[int, Finish]()
    with owner.open_chat(ASKED, request, chat) as turn:
        while not turn.done:
            for piece in turn.step():
                assert piece.channel == "text"
                texts[piece.row] += piece.text
                if piece.finish is not None:
                    finishes[piece.row] = piece.finish
    return [(texts[row], finishes[row]) for row in range(request.n)]


def is_whole(text: str, schema: Any) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return checker.is_valid(value)


def test_the_schemas_are_twenty_and_bounded():
    assert len(SCHEMAS) == 20
    for schema in SCHEMAS.values():
        assert longest(read_schema(json.dumps(schema))) < 250


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_hot_sample_is_valid(ensemble, name, acceptance_scale):
    """1,000 of 1,000 in ``make acceptance``: 25 a schema and ensemble; a tenth here."""
    schema = SCHEMAS[name]
    budget = longest(read_schema(json.dumps(schema))) + 1  # and the end
    number = (5 * acceptance_scale + 1) // 2
    request = RequestParams(max_tokens=budget, temperature=1.0, seed=len(name), n=number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = answers(ensemble, schema, request)
    assert len(said) == number
    for text, finish in said:
        assert finish == Finish("stop"), text
        assert is_whole(text, schema), text
        assert json.dumps(json.loads(text), ensure_ascii=False) == text or name == "numbers", text


def test_the_samples_are_not_all_the_same(ensemble):
    request = RequestParams(max_tokens=200, temperature=1.0, seed=1, n=8)
    assert len({text for text, _ in answers(ensemble, SCHEMAS["flat"], request)}) == 8


@pytest.mark.parametrize("name", ["flat", "nested", "list of records", "dates"])
def test_a_budget_too_small_is_never_taken_for_a_whole_answer(ensemble, name):
    schema = SCHEMAS[name]
    cut = 0
    for budget in (1, 2, 3, 5, 8, 13, 21):
        request = RequestParams(max_tokens=budget, temperature=1.0, seed=budget, n=3)
        for text, finish in answers(ensemble, schema, request):
            assert finish.unfinished == (not is_whole(text, schema)), text
            if finish.unfinished:
                cut += 1
                assert finish.reason == "length"
    assert cut > 10


def test_a_budget_too_small_is_an_error_for_who_asked_for_an_object(members):
    chat = ChatEnsemble(members=members, max_tokens=3, fusion="average")
    asked = chat.with_structured_output({"title": "Flat", **SCHEMAS["flat"]}, method="json_schema")
    with pytest.raises(EnsembleError, match="max_tokens"):
        asked.invoke("Who?")
    raw = chat.with_structured_output(
        {"title": "Flat", **SCHEMAS["flat"]}, method="json_schema", include_raw=True
    ).invoke("Who?")
    assert raw["parsed"] is None
    assert isinstance(raw["parsing_error"], EnsembleError)
    assert raw["raw"].response_metadata["finish_reason"] == "length"
