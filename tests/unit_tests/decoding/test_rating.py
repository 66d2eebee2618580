"""Weights by the prompt: the rule itself, and that a prompt's weights are its own business."""

from __future__ import annotations

import math

import pytest

from langchain_ensemble import ChatEnsemble, EnsembleLLM
from langchain_ensemble.decoding.rating import FEWEST, PromptWeights, by_nats, nats_per_byte
from langchain_ensemble.errors import EnsembleWarning
from langchain_ensemble.params import RequestParams

PROMPTS = [
    "Question: What is the capital of France?\nAnswer:",
    "Once upon a time there was a fox who lived in a wood",
    "Hi",
]


@pytest.fixture(scope="module")
def llm():
    with EnsembleLLM.demo(fusion="average", weights="prompt", max_tokens=5) as made:
        yield made.load()


def weights_of(llm, texts, order=None):
    voices = llm.engine._ready().voices
    made = PromptWeights([voices[place] for place in order or range(len(voices))], texts)
    while not made.done:
        made.read_on(pytest.fail)
    return made.weights


def test_the_rule():
    assert by_nats([0.5, 0.5]) == (0.5, 0.5)
    low, high = by_nats([1.0, 2.0])
    assert high / low == pytest.approx(math.exp(-1))
    assert math.fsum(by_nats([3.0, 1.0, 2.0])) == pytest.approx(1)
    assert by_nats([1e6, 0.0]) == (0.0, 1.0)
    assert by_nats([1.0, 2.0], temperature=0.5) == by_nats([2.0, 4.0])


def test_a_member_is_judged_by_its_own_score(llm):
    engine = llm.engine
    for text in PROMPTS:
        for name, voice in zip(engine.names, engine._ready().voices, strict=True):
            reading = nats_per_byte(voice, text)
            while True:
                try:
                    next(reading)
                except StopIteration as done:
                    found = done.value
                    break
            size = max(FEWEST, len(text.encode()))
            assert found == pytest.approx(-engine.score(text, member=name).logprob / size, rel=1e-4)


def test_pieces_change_nothing(llm, monkeypatch):
    whole = weights_of(llm, PROMPTS)
    monkeypatch.setattr("langchain_ensemble.decoding.rating.PIECE_BYTES", 1)
    for told, found in zip(whole, weights_of(llm, PROMPTS), strict=True):
        assert found == pytest.approx(told, rel=1e-4)


def test_order_and_neighbours_do_not_matter(llm):
    together = weights_of(llm, PROMPTS)
    assert [weights_of(llm, [text])[0] for text in PROMPTS] == together
    assert [w[::-1] for w in weights_of(llm, PROMPTS, order=[1, 0])] == together
    assert all(math.fsum(w) == pytest.approx(1) for w in together)
    assert together[0][0] > 0.5 > together[1][0]  # facts know facts, stories know stories
    assert abs(together[2][0] - 0.5) < abs(together[0][0] - 0.5) + 0.2


def test_each_row_is_decoded_with_its_own_weights(llm):
    alone = [llm.invoke(text) for text in PROMPTS]
    assert llm.batch(PROMPTS) == alone
    given = [dict(zip(llm.engine.names, w, strict=True)) for w in weights_of(llm, PROMPTS)]
    told = [llm.invoke(text, weights=w) for text, w in zip(PROMPTS, given, strict=True)]
    assert told == alone
    assert [llm.invoke(text, speculation="on") for text in PROMPTS] == alone
    assert [llm.invoke(text, speculation="off") for text in PROMPTS] == alone
    seeded = {"temperature": 1.0, "seed": 3}
    drawn = llm.generate(PROMPTS[:2], n=2, **seeded).generations
    for text, weights, answers in zip(PROMPTS, given, drawn, strict=False):
        own = llm.generate([text], n=2, weights=weights, **seeded).generations[0]
        assert [a.text for a in answers] == [a.text for a in own]


def test_logprobs_are_those_of_the_weights(llm):
    (own,) = weights_of(llm, PROMPTS[:1])
    given = dict(zip(llm.engine.names, own, strict=True))
    first, second = (
        llm.generate(PROMPTS[:1], logprobs=True, weights=w).generations[0][0].generation_info
        for w in ("prompt", given)
    )
    for a, b in zip(first["logprobs"], second["logprobs"], strict=True):
        assert a["logprob"] == pytest.approx(b["logprob"], abs=1e-6)
    assert llm.score(" Paris", PROMPTS[0]) == llm.score(" Paris", PROMPTS[0], weights=given)


def test_the_metadata_say_what_each_prompt_got(llm):
    said = llm.generate(PROMPTS, n=2).generations
    for weights, answers in zip(weights_of(llm, PROMPTS), said, strict=True):
        told = dict(zip(llm.engine.names, (round(w, 6) for w in weights), strict=True))
        assert [a.generation_info["ensemble"]["weights"] for a in answers] == [told, told]
    *_, last = llm._stream(PROMPTS[0])
    assert (
        last.generation_info["ensemble"]["weights"]
        == said[0][0].generation_info["ensemble"]["weights"]
    )
    plain = llm.generate(PROMPTS[:1], weights="uniform").generations[0][0].generation_info
    assert "weights" not in plain["ensemble"]


def test_requests_side_by_side(llm):
    engine, request = llm.engine, RequestParams(max_tokens=8, weights="prompt")
    alone = [engine.generate([text], request)[0][0].text for text in PROMPTS]
    running = [engine.open([text], request) for text in PROMPTS]
    texts = [""] * len(PROMPTS)
    while not all(one.done for one in running):
        for number, one in enumerate(running):
            texts[number] += "".join(piece.text for piece in one.step())
    for one in running:
        one.close()
    assert texts == alone


def test_a_request_that_is_given_up_while_it_is_read(llm):
    decoding = llm.engine.open(PROMPTS, RequestParams(max_tokens=4, weights="prompt"))
    decoding.step()
    decoding.close()
    assert llm.invoke(PROMPTS[2])


def test_no_text_says_nothing(llm):
    with pytest.warns(EnsembleWarning, match="prompt 0 has no text"):
        empty = llm.invoke("")
    assert empty == llm.invoke("", weights="uniform")
    with pytest.warns(EnsembleWarning, match="prompt 0 has no text"):
        llm.score("Paris", weights="prompt")


def test_one_voice_needs_no_rule(llm):
    alone = llm.solo("facts")
    assert alone.invoke(PROMPTS[0], weights="prompt") == alone.invoke(PROMPTS[0])


def test_conversations_are_judged_by_what_the_user_says(llm):
    (own,) = weights_of(llm, ["What is the capital of France?"])
    chat = ChatEnsemble.demo(fusion="average", max_tokens=8, temperature=0.0)
    said = [("system", "Be brief."), ("user", "What is the capital of France?")]
    given = dict(zip(llm.engine.names, own, strict=True))
    message = chat.invoke(said, weights="prompt")
    assert message.content == chat.invoke(said, weights=given).content
    assert message.response_metadata["ensemble"]["weights"] == pytest.approx(given, abs=1e-6)
    told = chat.score(said, "Paris", weights="prompt")
    assert told.logprob == pytest.approx(chat.score(said, "Paris", weights=given).logprob)
