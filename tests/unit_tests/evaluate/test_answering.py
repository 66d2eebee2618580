"""Raw prompts and conversations, scored and answered as the harness asks, without the harness."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from langchain_ensemble import ChatEnsemble, ConfigError, ContextError, EnsembleLLM
from langchain_ensemble.evaluate.answering import Answering, prompts_together, the_ensemble
from langchain_ensemble.evaluate.harness import chat_text

SHORT = {"until": [], "max_gen_toks": 3}
DRAWN = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5}


@pytest.fixture(scope="module")
def llm(pico):
    members = {"llama": str(pico("llama")), "gpt2": str(pico("gpt2"))}
    with EnsembleLLM(members=members, fusion="unite", main="gpt2", max_concurrent=4) as made:
        yield made


def no_seed() -> int:
    raise AssertionError("nothing is drawn")


def answers(answering: Answering, *asked: Any, seed: Any = no_seed) -> list[str]:
    got = dict(answering.answers(asked, seed))
    assert sorted(got) == list(range(len(asked)))
    return [got[place] for place in range(len(asked))]


def test_scores_are_the_ensemble_own_and_the_border_moves(llm):
    answering = Answering(llm, 1)
    assert answering.score("The fox ", "went") == llm.score(" went", "The fox")
    assert answering.score("", "The fox") == llm.score("The fox")
    assert answering.score_text("The fox " * 200) == llm.score("The fox " * 200)


def test_answers_are_the_ensemble_own_in_the_order_of_the_requests(llm):
    prompts = ["The fox " * n for n in (1, 4, 2, 8, 3, 5, 1)]
    settings = [SHORT, {"until": "e", "max_gen_toks": 9}]
    asked = list(itertools.product(prompts, settings))
    assert answers(Answering(llm, 3), *asked) == [
        llm.invoke(prompt, max_tokens=3)
        if given is SHORT
        else llm.invoke(prompt, max_tokens=9, stop=["e"])
        for prompt, given in asked
    ]
    assert answers(Answering(llm, 3)) == []


def test_what_is_wrong_is_said_before_anything_is_answered(llm):
    answering = Answering(llm, 1)
    with pytest.raises(ConfigError, match="num_beams"):
        next(answering.answers([("a", SHORT), ("b", {"num_beams": 4})], no_seed))
    with pytest.raises(ContextError, match="256"):
        next(answering.answers([("a", SHORT), ("word " * 300, SHORT)], no_seed))
    with pytest.raises(ContextError, match="256"):
        answering.score("word " * 300, "b")


def test_repetitions_of_a_drawn_prompt_differ_and_one_seed_is_drawn(llm):
    seeds = iter([100, 200])
    asked = [("The fox", DRAWN)] * 4 + [("The king", DRAWN)]
    got = answers(Answering(llm, 8), *asked, seed=lambda: next(seeds))
    call = {"max_tokens": 12, "temperature": 1.5}
    assert got[:4] == [llm.invoke("The fox", seed=100 + n, **call) for n in range(4)]
    assert got[4] == llm.invoke("The king", seed=100, **call)
    assert len(set(got)) > 2
    assert next(seeds) == 200


@pytest.mark.parametrize("where", ["call", "ensemble"])
def test_a_seed_that_is_given_is_used(llm, where):
    own = llm.model_copy(update={"seed": 3}) if where == "ensemble" else llm
    given = {**DRAWN, "seed": 3} if where == "call" else DRAWN
    call = {"max_tokens": 12, "temperature": 1.5}
    assert answers(Answering(own, 2), ("The fox", given), ("The fox", given)) == [
        llm.invoke("The fox", seed=3 + n, **call) for n in range(2)
    ]


def test_conversations_reach_each_member_in_its_own_template():
    talks = [
        [{"role": "user", "content": "What is the capital of France?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi é"}],
    ]
    contexts = [chat_text(talk) for talk in talks]
    with ChatEnsemble.demo() as chat:
        said = [chat.invoke(talk, max_tokens=8, stop=["."]).text for talk in talks]
        given = {"until": ["."], "max_gen_toks": 8}
        score = chat.score(talks[0], "Paris")
        raw = EnsembleLLM.demo()
        for answering in (Answering(chat, 2), Answering(raw, 2)):
            assert answers(answering, *[(c, given) for c in contexts]) == said
            assert answering.score(contexts[0], "Paris") == score
        mixed = answers(Answering(raw, 4), (contexts[0], given), ("The fox", given))
        assert mixed == [said[0], raw.invoke("The fox", max_tokens=8, stop=["."])]
        with pytest.raises(ConfigError, match="--apply_chat_template"):
            Answering(chat, 1).score("raw", " text")


@pytest.mark.parametrize(
    ("ways", "says"),
    [
        ({}, "got none"),
        ({"demo": True, "settings": {"members": ["a"]}}, "got demo and members"),
        ({"demo": True, "settings": {"pretrained": "gpt2"}}, "pretrained"),
        ({"config": "no-such-file.yaml"}, "no-such-file"),
        ({"config": "x.yaml", "demo": True}, "got config and demo"),
    ],
)
def test_ensembles_that_cannot_be(ways, says):
    with pytest.raises(ConfigError, match=says):
        the_ensemble(**{"llm": None, "config": None, "demo": False, "settings": {}, **ways})


def test_the_ensemble_of_some_arguments(tmp_path, llm):
    llm.to_config(tmp_path / "e.yaml")
    made = the_ensemble(None, str(tmp_path / "e.yaml"), False, {"fusion": "gac", "top_k": 3})
    assert (made.model_name, made.top_k, made.main) == ("gac(llama+gpt2)", 3, "gpt2")
    assert the_ensemble(llm, None, False, {}) is llm
    with pytest.raises(ConfigError, match="settings of its own"):
        the_ensemble(llm, None, False, {"fusion": "gac"})


@pytest.mark.parametrize(
    ("given", "most", "together"),
    [(None, None, 1), ("7", None, 7), (7, 3, 7), ("auto", None, 64), ("auto", 8, 8)],
)
def test_the_batch_size(given, most, together):
    assert prompts_together(given, most, 64) == together


@pytest.mark.parametrize("given", ["auto:4", 0, -1, "many", ""])
def test_a_batch_size_that_cannot_be(given):
    with pytest.raises(ConfigError, match="batch_size"):
        prompts_together(given, None, 64)
