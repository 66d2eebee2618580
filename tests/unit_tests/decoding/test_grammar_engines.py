"""The decode loop under the grammar engines that ship: whole JSON, whatever the members think."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from langchain_ensemble.constraints.compile import compile_all
from langchain_ensemble.constraints.grammar import (
    CompiledGrammar,
    Grammar,
    GrammarVocabulary,
    JsonSchema,
    Regex,
)
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.naive import naive_decode
from tests.unit_tests.decoding.automata import admit

FUSIONS = ["average", "deepen", "gac", "unite"]
PROMPT = "Once upon a time, there was a little"
PAIR = ("stories260K", "babyllama-361")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["glad", "müde", "悲しい"]},
        "friends": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "mood", "friends"],
    "additionalProperties": False,
}
GRAMMARS: dict[str, Grammar] = {
    "json": JsonSchema(json.dumps(SCHEMA)),
    "regex": Regex(r"[A-Z][a-z]{1,9}( [a-zé]{1,6}){2,3}[.!?]"),
}
Engine = Literal["llguidance", "xgrammar"]


def compiled(voices: Sequence[Any], name: str, engine: Engine) -> tuple[CompiledGrammar, ...]:
    tables = []
    for voice in voices:
        vocabulary = voice.vocabulary
        both = zip(vocabulary.token_bytes, vocabulary.token_roles, strict=True)
        table = tuple(None if role is not None else data for data, role in both)
        tables.append(GrammarVocabulary(table, vocabulary.content_hash))
    return compile_all(GRAMMARS[name], tables, engine)


def models(shared: Path, *names: str, **settings: Any) -> Ensemble:
    folders = [str(shared / "models" / name) for name in names]
    return Ensemble(EnsembleParams(members=folders, **settings))


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", PAIR)
def test_hot_samples_obey_the_schema(shared: Path, engine: Engine, fusion: str, main: str) -> None:
    pytest.importorskip(engine)
    request = RequestParams(max_tokens=130, temperature=1.5, seed=5, n=6)
    with models(shared, *PAIR, fusion=fusion, main=main) as owner:
        grammar = compiled(owner._ready().voices, "json", engine)
        with admit(owner, [PROMPT], request, grammar=grammar) as decoding:
            answers = decoding.answers()[0]
    assert len({answer.text for answer in answers}) > 3
    for answer in answers:
        assert answer.finish.reason == "stop"
        assert not answer.finish.unfinished
        found = json.loads(answer.text)
        assert list(found) == list(SCHEMA["properties"])  # type: ignore[call-overload]
        assert len(found["name"]) <= 8
        assert 0 <= found["age"] <= 120
        assert found["mood"] in ("glad", "müde", "悲しい")
        assert len(found["friends"]) <= 2


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", PAIR)
@pytest.mark.parametrize("name", GRAMMARS)
def test_the_loop_is_its_naive_twin(
    shared: Path, engine: Engine, fusion: str, main: str, name: str
) -> None:
    pytest.importorskip(engine)
    with models(shared, *PAIR, fusion=fusion, main=main) as owner:
        grammar = compiled(owner._ready().voices, name, engine)
        naive = naive_decode(owner, PROMPT, 10, [0.5, 0.5], True, grammar[0])
        with admit(
            owner, [PROMPT], RequestParams(max_tokens=10, weights="uniform"), grammar=grammar
        ) as decoding:
            answer = decoding.answers()[0][0]
            data = bytes(decoding.rows[0].answer)
    assert data == naive.answer
    assert [t.logprob for t in answer.tokens] == pytest.approx(naive.logprobs, abs=1e-3)


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
def test_taken_back_steps_leave_no_trace(shared: Path, engine: Engine) -> None:
    pytest.importorskip(engine)
    request = RequestParams(max_tokens=60, temperature=1.0, seed=2)
    prompts = [PROMPT, "Tom", ""]
    with models(shared, *PAIR, fusion="average") as owner:
        grammar = compiled(owner._ready().voices, "json", engine)
        with admit(owner, prompts, request, grammar=grammar) as decoding:
            straight = decoding.answers()
        with admit(owner, prompts, request, grammar=grammar) as decoding:
            decoding.step()
            while not decoding.done:
                if all(row.finish is None for row in decoding.rows):
                    mark = decoding._loop.mark()
                    for _ in range(3):
                        decoding.step()
                    if all(row.finish is None for row in decoding.rows):
                        decoding._loop.rollback(mark)
                decoding.step()
            rows = decoding.rows
    for row, (answer,) in zip(rows, straight, strict=True):
        assert [t.bytes for t in row.records] == [t.bytes for t in answer.tokens]
        assert row.finish == answer.finish
