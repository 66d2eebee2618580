"""Random marks and rollbacks equal a fresh replay: caches, boundaries, text, stops, draws."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.params import EnsembleParams, RequestParams

PROMPTS = ["Once upon a time, there was a little", "Tom and", "One day,"]


def two(shared: Path, fusion: str, main: str) -> Ensemble:
    folders = [str(shared / "models" / n) for n in ("stories260K", "babyllama-361")]
    return Ensemble(EnsembleParams(members=folders, fusion=fusion, main=main))


@pytest.mark.parametrize("fusion", ["average", "deepen", "gac", "unite"])
@pytest.mark.parametrize("main", ["stories260K", "babyllama-361"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_taken_back_steps_leave_no_trace(
    shared: Path, fusion: str, main: str, temperature: float
) -> None:
    request = RequestParams(
        max_tokens=24, temperature=temperature, seed=3, stop=("qqq",), repetition_penalty=1.1
    )
    dice = random.Random(fusion + main)
    with two(shared, fusion, main) as owner:
        straight = owner.generate(PROMPTS, request)
        with owner.open(PROMPTS, request) as decoding:
            loop = decoding._loop
            texts = [""] * len(PROMPTS)
            for piece in decoding.step():
                texts[piece.row] += piece.text
            while not decoding.done:
                steps = len(loop.rows[0].records)
                if all(row.finish is None for row in loop.rows) and steps < 16:
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
