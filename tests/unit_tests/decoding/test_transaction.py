"""Random marks and rollbacks equal a fresh replay: caches, boundaries, text, stops, draws."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest

from langchain_ensemble.decoding.task import Opening
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.unit_tests.decoding.automata import FOREIGN, SENTENCES, admit

PROMPTS = ["Once upon a time, there was a little", "Tom and", "One day,"]


def two(shared: Path, fusion: str, main: str) -> Ensemble:
    folders = [str(shared / "models" / n) for n in ("stories260K", "babyllama-361")]
    return Ensemble(EnsembleParams(members=folders, fusion=fusion, main=main))


EXTRAS = {
    "free": {},
    "grammar": {"automaton": SENTENCES},
    "opening": {"opening": Opening(ids=(1,))},
    "characters": {"automaton": FOREIGN},
    "literal": {"opening": Opening(literal=(500, 501))},
}


CASES = [
    *product(("average", "deepen", "gac", "unite"), ("free",), (0.0, 1.0)),
    *product(("average", "deepen", "gac", "unite"), ("grammar", "opening"), (1.0,)),
    *product(("average",), ("characters", "literal"), (1.0,)),
]
GREEDY = [
    *product(("average", "deepen", "gac", "unite"), ("grammar", "opening"), (0.0,)),
    *product(("average",), ("characters", "literal"), (0.0,)),
]


@pytest.mark.parametrize(
    ("fusion", "extra", "temperature"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in GREEDY)],
)
@pytest.mark.parametrize("main", ["stories260K", "babyllama-361"])
@pytest.mark.filterwarnings("ignore:.*inside an unfinished grammar")
def test_taken_back_steps_leave_no_trace(
    shared: Path, fusion: str, main: str, temperature: float, extra: str
) -> None:
    stop = {"grammar": "e", "characters": "語"}.get(extra, "qqq")  # ignored inside a grammar
    request = RequestParams(
        max_tokens=24, temperature=temperature, seed=3, stop=(stop,), repetition_penalty=1.1
    )
    dice = random.Random(fusion + main)
    more = dict(EXTRAS[extra])
    if extra == "literal" and main != "stories260K":
        more = {"opening": Opening(literal=(70, 80))}
    with two(shared, fusion, main) as owner:
        with admit(owner, PROMPTS, request, **more) as decoding:
            straight = decoding.answers()
        with admit(owner, PROMPTS, request, **more) as decoding:
            loop = decoding._loop
            texts = [""] * len(PROMPTS)
            while not decoding.done:
                steps = len(loop.rows[0].records)
                if steps and all(row.finish is None for row in loop.rows) and steps < 16:
                    mark = loop.mark()
                    for _ in range(dice.randint(1, 4)):
                        decoding.step()
                    if all(row.finish is None for row in loop.rows):
                        loop.rollback(mark)
                for piece in decoding.step():
                    texts[piece.row] += piece.text
            rows = loop.rows
        for row, (answer,) in zip(rows, straight, strict=True):
            assert row.records == list(answer.tokens) or [
                (a.id, a.bytes, pytest.approx(a.logprob, abs=1e-4)) for a in answer.tokens
            ] == [(a.id, a.bytes, a.logprob) for a in row.records]
            assert row.answer[: row.complete].decode() == answer.text
            assert row.finish == answer.finish


@pytest.mark.parametrize("kind", ["grammar", "opening"])
def test_one_voice_leaves_no_trace_either(shared: Path, kind: str) -> None:
    request = RequestParams(max_tokens=24, temperature=1.0, seed=3)
    dice = random.Random(kind)
    folder = str(shared / "models" / "stories260K")
    with Ensemble(EnsembleParams(members=[folder])) as owner:
        with admit(owner, PROMPTS, request, **EXTRAS[kind]) as decoding:
            straight = decoding.answers()
        with admit(owner, PROMPTS, request, **EXTRAS[kind]) as decoding:
            decoding.step()
            while not decoding.done:
                if all(row.finish is None for row in decoding.rows):
                    mark = decoding._loop.mark()
                    for _ in range(dice.randint(1, 3)):
                        decoding.step()
                    if all(row.finish is None for row in decoding.rows):
                        decoding._loop.rollback(mark)
                decoding.step()
            for row, (answer,) in zip(decoding.rows, straight, strict=True):
                assert [t.id for t in row.records] == [t.id for t in answer.tokens]
                assert row.finish == answer.finish


def test_a_finished_row_cannot_be_taken_back(shared: Path) -> None:
    with two(shared, "average", "stories260K") as owner:
        request = RequestParams(max_tokens=5, stop=("girl",))
        with owner.open(PROMPTS, request) as decoding:
            decoding.step()
            mark = decoding._loop.mark()
            while len(decoding._loop._active) == len(PROMPTS):
                decoding.step()
            with pytest.raises(ConfigError, match="cannot be taken back"):
                decoding._loop.rollback(mark)
