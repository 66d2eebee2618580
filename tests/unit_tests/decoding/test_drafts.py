"""Drafts change no answer: the keys of plain decoding, whoever proposes, whatever interrupts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from langchain_ensemble.decoding.engine import Decoding
from langchain_ensemble.decoding.lookup import GRAM, Lookup
from langchain_ensemble.decoding.pace import PAUSE, PLAIN, TRIAL, Pace
from langchain_ensemble.decoding.records import Answer
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import EnsembleWarning
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.unit_tests.decoding.automata import FOREIGN, SENTENCES, admit

PROMPTS = ["Once upon a time, there was a little", "Tom and", 'Zoë said: "', "the the the the"]
STORIES, BABY, BIT = "stories260K", "babyllama-361", "bitllama-1M"


def models(shared: Path, *names: str, **settings: Any) -> Ensemble:
    folders = [str(shared / "models" / name) for name in names]
    return Ensemble(EnsembleParams(members=folders, **settings))


def told(answers: Sequence[Sequence[Answer]]) -> list[Any]:
    return [
        (answer.text, [token.id for token in answer.tokens], answer.finish, answer.usage.steps)
        for row in answers
        for answer in row
    ]


def decoded(
    owner: Ensemble, prompts: Sequence[str], request: RequestParams, how: str, **more: Any
) -> tuple[list[Any], Decoding]:
    asked = request.model_copy(update={"speculation": how})
    with admit(owner, prompts, asked, **more) as decoding:
        return told(decoding.answers()), decoding


def compare(
    owner: Ensemble, prompts: Sequence[str], request: RequestParams, **more: Any
) -> Decoding:
    plain, _ = decoded(owner, prompts, request, "off", **more)
    fast, decoding = decoded(owner, prompts, request, "on", **more)
    assert fast == plain
    return decoding


@pytest.mark.parametrize("fusion", ["average", "deepen", "gac", "unite"])
@pytest.mark.parametrize("names", [(STORIES, BABY), (BABY, STORIES), (STORIES, BIT)])
def test_the_same_tokens(shared: Path, fusion: str, names: tuple[str, ...]) -> None:
    with models(shared, *names, fusion=fusion) as owner:
        for temperature in (0.0, 0.9):
            request = RequestParams(max_tokens=20, temperature=temperature, seed=5)
            decoding = compare(owner, PROMPTS, request)
            ahead = decoding._loop._ahead
            assert 0 < ahead.accepted < ahead.drafted


def test_three_members_penalty_stop_and_several_answers(shared: Path) -> None:
    with models(shared, STORIES, BABY, BIT, fusion="unite") as owner:
        request = RequestParams(
            max_tokens=24, temperature=0.7, seed=1, n=3, stop=("little", "."),
            repetition_penalty=1.2, weights=(0.2, 0.5, 0.3),
        )  # fmt: skip
        compare(owner, PROMPTS[:2], request)
        compare(owner, PROMPTS, RequestParams(max_tokens=16, weights=(0.0, 0.5, 0.5)))


@pytest.mark.parametrize("automaton", [SENTENCES, FOREIGN])
@pytest.mark.filterwarnings("ignore:.*unfinished")
def test_under_a_grammar(shared: Path, automaton: Any) -> None:
    with models(shared, STORIES, BABY, fusion="average") as owner:
        for temperature in (0.0, 1.0):
            request = RequestParams(max_tokens=32, temperature=temperature, seed=2)
            compare(owner, PROMPTS[:2], request, automaton=automaton)


@pytest.mark.parametrize("small", [BIT, BABY])
@pytest.mark.parametrize("names", [(STORIES,), (STORIES, BABY)])
def test_a_draft_model_has_no_say(shared: Path, names: tuple[str, ...], small: str) -> None:
    with models(shared, *names, fusion="unite", draft=str(shared / "models" / small)) as owner:
        for temperature in (0.0, 0.9):
            request = RequestParams(max_tokens=20, temperature=temperature, seed=5, n=2)
            decoding = compare(owner, PROMPTS[:3], request)
            ahead = decoding._loop._ahead
            assert 0 < ahead.accepted < ahead.drafted


def test_a_draft_model_whose_context_a_prompt_does_not_fit(shared: Path) -> None:
    with models(shared, STORIES, draft=str(shared / "models" / BABY)) as owner:
        small = owner._ready().draft
        assert small is not None
        prompt = "Once upon a time, there was a dog. " * 100
        while len(owner._ready().members[0].tokenizer(prompt).input_ids) > 400:
            prompt = prompt[4:]
        request = RequestParams(max_tokens=12, speculation="on")
        with pytest.warns(EnsembleWarning, match="does not draft here"):
            fast = told(owner.generate([prompt], request))
        plain = told(owner.generate([prompt], request.model_copy(update={"speculation": "off"})))
        assert fast == plain


def test_one_voice_looks_up(shared: Path) -> None:
    with models(shared, STORIES) as owner:
        decoding = compare(owner, ["the cat sat on the mat. the cat sat"], RequestParams())
        ahead = decoding._loop._ahead
        assert ahead.drafted > 0


def test_drafts_stop_where_a_context_is_full(shared: Path) -> None:
    with models(shared, STORIES, BABY) as owner:
        members = owner._ready().members
        prompt = "Once upon a time, there was a dog. " * 100
        while any(len(m.tokenizer(prompt).input_ids) > (m.context or 10**6) - 8 for m in members):
            prompt = prompt[4:]
        with pytest.warns(EnsembleWarning, match="positions and would need"):
            compare(owner, [prompt], RequestParams(max_tokens=600))


def test_drafts_that_are_taken_back_leave_no_trace(shared: Path) -> None:
    for fusion, temperature in (("average", 0.0), ("unite", 1.0)):
        dice = random.Random(f"{fusion}{temperature}")
        request = RequestParams(max_tokens=16, temperature=temperature, seed=3)
        with models(shared, BABY, STORIES, fusion=fusion) as owner:
            plain, _ = decoded(owner, PROMPTS, request, "off")
            asked = request.model_copy(update={"speculation": "on"})
            with owner.open(PROMPTS, asked) as decoding:
                loop, texts = decoding._loop, [""] * len(PROMPTS)
                while not loop.done:
                    if all(row.finish is None for row in loop.rows):
                        mark = loop.mark()
                        for _ in range(dice.randint(1, 5)):
                            loop.step()
                        if all(row.finish is None for row in loop.rows):
                            loop.rollback(mark)
                    for _ in range(dice.randint(1, 5)):
                        for piece in [] if loop.done else loop.step():
                            texts[piece.row] += piece.text
                    texts = [row.text(0, row.given) for row in loop.rows]
                assert texts == [text for text, *_ in plain]


def test_kept_sessions_hold_what_they_say(shared: Path) -> None:
    with models(shared, STORIES, BABY, fusion="unite") as owner:
        request = RequestParams(max_tokens=15, speculation="on")
        with admit(owner, PROMPTS[:2], request, keep=True) as decoding:
            decoding.answers()
            for row in range(2):
                for held in decoding.kept(row):
                    assert held.session.lengths == [len(held.ids)]
                    held.session.close()


# who guesses, and when


def test_a_lookup_finds_what_followed_the_last_time() -> None:
    found = Lookup([1, 2, 3, 4, 5, 9, 9, 1, 2, 3])
    assert found.propose() == [4, 5, 9]
    found.take(10, [7])
    assert found.propose() == []
    found.take(9, [])  # one id was spelled anew
    assert found.propose() == []  # and these two never came after a 9
    found = Lookup([1, 2, 3, 4, 5, 9, 9, 1, 2, 3])
    found.judge(3, 3)
    assert found.propose() == [4, 5, 9, 9]
    found.judge(4, 0)
    assert found.propose() == []
    assert Lookup([1] * GRAM).propose() == []


def run(pace: Pace, plain: float, drafts: float, tokens: int) -> tuple[float, int]:
    """Seconds and rounds with drafts that so many tokens take."""
    seconds, made, drafted = 0.0, 0.0, 0
    while made < tokens:
        cost, got = (drafts, 0.5) if pace.drafting else (plain, 1.0)
        drafted += pace.drafting
        pace.note(got, cost)
        seconds, made = seconds + cost, made + got
    return seconds, drafted


def test_drafts_that_do_not_pay_cost_little() -> None:
    for worse in (1.02, 1.3, 3.0):
        seconds, drafted = run(Pace("auto"), 1.0, worse / 2, 1000)
        assert seconds <= 1.03 * 1000 + 1
        assert drafted >= TRIAL // 2


def test_drafts_that_pay_go_on() -> None:
    seconds, drafted = run(Pace("auto"), 1.0, 0.35, 1000)
    assert seconds < 0.72 * 1000
    assert drafted > 1900
    assert run(Pace("off"), 1.0, 0.1, 100) == (100.0, 0)
    assert run(Pace("on"), 1.0, 5.0, 100)[1] == 200
    assert PLAIN + TRIAL < PAUSE
