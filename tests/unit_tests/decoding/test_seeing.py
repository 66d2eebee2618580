"""What is told of a step: what the records say, in one transfer, and free where nobody asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_ensemble.decoding.choosing import choose_all
from langchain_ensemble.decoding.engine import Decoding
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.records import Answer, TokenRecord, TokenTrace
from langchain_ensemble.decoding.seeing import BEST
from langchain_ensemble.demo import members as demo_members
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import AbstainedError
from langchain_ensemble.params import EnsembleParams, RequestParams

PROMPT = "Question: What is the capital of Italy?\nAnswer:"
FUSIONS = ("average", "bytes", "deepen", "gac", "unite")


@pytest.fixture(scope="module")
def owners() -> Iterator[dict[str, Ensemble]]:
    made = {
        name: Ensemble(EnsembleParams(members=demo_members(), fusion=name)).load()
        for name in FUSIONS
    }
    yield made
    for one in made.values():
        one.unload()


def said(owner: Ensemble, prompt: str = PROMPT, **asked: Any) -> Answer:
    request = RequestParams(**{"max_tokens": 12, "speculation": "off", **asked})
    ((answer,),) = owner.generate([prompt], request)
    return answer


def seen(token: TokenRecord) -> TokenTrace:
    assert token.trace is not None
    return token.trace


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trace_is_what_the_records_say(
    owners: dict[str, Ensemble], fusion: str, temperature: float
) -> None:
    owner = owners[fusion]
    plain = said(owner, temperature=temperature, seed=3)
    told = said(owner, temperature=temperature, seed=3, trace=True)
    assert told.text == plain.text
    assert [t.bytes for t in told.tokens] == [t.bytes for t in plain.tokens]
    times = [seen(token).at for token in told.tokens]
    assert times == sorted(times)
    for token in told.tokens:
        trace = seen(token)
        assert list(trace.wishes) == list(trace.weights) == list(token.members)
        assert sum(trace.weights.values()) == pytest.approx(1.0, abs=1e-5)
        assert token.disagreement is not None
        assert 0 <= token.disagreement <= 1
        for name, wishes in (*trace.wishes.items(), ("", trace.fused)):
            given = [probability for _, probability in wishes]
            assert given == sorted(given, reverse=True)
            assert len(wishes) <= BEST
            assert sum(given) <= 1 + 1e-4
            own = token.members[name] if name else token.logprob
            if own is not None and token.bytes in dict(wishes):
                assert dict(wishes)[token.bytes] == pytest.approx(math.exp(own), abs=1e-5)
        favourite = trace.wishes[next(iter(trace.wishes))][0][0]
        assert token.overruled == (favourite != token.bytes)
        if temperature == 0:
            assert trace.fused[0][0] == token.bytes


def test_who_does_not_ask_gets_nothing(owners: dict[str, Ensemble]) -> None:
    for token in said(owners["gac"]).tokens:
        assert (token.disagreement, token.overruled, token.trace) == (None, None, None)
    for asked in ({"logprobs": True}, {"abstain_below": 0.0}):
        for token in said(owners["gac"], **asked).tokens:
            assert token.disagreement is not None
            assert token.logprob is not None
            assert token.trace is None


def test_drafted_keys_are_told_and_the_rest_is_the_same(owners: dict[str, Ensemble]) -> None:
    owner = owners["average"]
    plain = said(owner, trace=True, max_tokens=24)
    ahead = said(owner, trace=True, max_tokens=24, speculation="on")
    assert not any(token.drafted for token in plain.tokens)
    assert any(token.drafted for token in ahead.tokens)
    assert [t.bytes for t in ahead.tokens] == [t.bytes for t in plain.tokens]
    for a, b in zip(ahead.tokens, plain.tokens, strict=True):
        assert a.disagreement == pytest.approx(b.disagreement, abs=1e-4)
        assert [key for key, _ in seen(a).fused[:1]] == [key for key, _ in seen(b).fused[:1]]


def test_one_voice_is_traced_too(owners: dict[str, Ensemble]) -> None:
    alone = {"facts": 1.0, "stories": 0.0}
    plain = said(owners["gac"], weights=alone)
    told = said(owners["gac"], weights=alone, trace=True)
    assert [t.bytes for t in told.tokens] == [t.bytes for t in plain.tokens]
    for token in told.tokens:
        trace = seen(token)
        assert list(trace.wishes) == ["facts"]
        assert trace.weights == {"facts": 1.0}
        assert trace.wishes["facts"] == trace.fused
        assert trace.fused[0][0] == token.bytes
        assert token.logprob is not None
        assert trace.fused[0][1] == pytest.approx(math.exp(token.logprob), abs=1e-5)
        assert (token.disagreement, token.overruled, token.fused) == (None, None, False)
    assert all(token.trace is None for token in plain.tokens)


def test_rows_together_are_told_what_each_is_told_alone(owners: dict[str, Ensemble]) -> None:
    prompts = [PROMPT, "Question: What is the capital of Japan?\nAnswer:", "Once upon a time"]
    owner = owners["unite"]
    request = RequestParams(max_tokens=8, trace=True, speculation="off")
    for prompt, (together,) in zip(prompts, owner.generate(prompts, request), strict=True):
        alone = said(owner, prompt, max_tokens=8, trace=True)
        assert together.text == alone.text
        for a, b in zip(together.tokens, alone.tokens, strict=True):
            assert a.disagreement == pytest.approx(b.disagreement, abs=1e-4)
            assert seen(a).weights == pytest.approx(seen(b).weights, abs=1e-4)


# what it costs


class Count(TorchDispatchMode):
    """Operations, and copies to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def question(owner: Ensemble, **asked: Any) -> tuple[Decoding, Question]:
    """A request and its first question; who drops the request ends it."""
    request = RequestParams(max_tokens=9, speculation="off", **asked)
    decoding = owner.open([PROMPT], request)
    while not decoding._loop.read:
        decoding._loop.read_on()
    found = decoding._loop.ask()
    assert found is not None
    return decoding, found


def cost(owner: Ensemble, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> tuple[int, int]:
    """(operations, transfers) of one choice."""
    copies: list[int] = []
    real = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        copies.append(tensor.numel())
        return real(tensor)

    with torch.inference_mode():
        first, once = question(owner, **asked)
        second, again = question(owner, **asked)
        with first, second:
            choose_all([once])  # what is made once is made
            with monkeypatch.context() as patch, Count() as count:
                patch.setattr(torch.Tensor, "tolist", counted)
                choose_all([again])
    return len(count.names), len(copies)


ONE_VOICE = {"weights": {"facts": 1.0, "stories": 0.0}}


@pytest.mark.parametrize("voices", [{}, ONE_VOICE], ids=["fused", "alone"])
def test_all_goes_in_one_transfer(
    owners: dict[str, Ensemble], monkeypatch: pytest.MonkeyPatch, voices: dict[str, Any]
) -> None:
    owner = owners["average"]
    plain, copies = cost(owner, monkeypatch, **voices)
    traced, traced_copies = cost(owner, monkeypatch, trace=True, **voices)
    assert copies == traced_copies == 1
    assert plain < traced


def test_off_costs_nothing(owners: dict[str, Ensemble], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is told is made: the operations are those without the whole module."""
    from langchain_ensemble.decoding import fused

    owner = owners["average"]
    plain, _ = cost(owner, monkeypatch)

    class Blind:
        def __init__(self, *_: Any) -> None:
            self.columns: list[torch.Tensor] = []

        def told(self, _: int, chosen: Any, __: Any, ___: Any) -> Any:
            return chosen

    monkeypatch.setattr(fused, "Sight", Blind)
    assert cost(owner, monkeypatch)[0] == plain


# refusal without LangChain


def test_the_engine_refuses_too(owners: dict[str, Ensemble]) -> None:
    with pytest.raises(AbstainedError, match=r"abstain_below=0\.999") as caught:
        said(owners["unite"], abstain_below=0.999, max_tokens=30)
    assert "Rome" in caught.value.answer
    assert 0.5 < caught.value.confidence < caught.value.limit == 0.999
    assert "Rome" in said(owners["unite"], abstain_below=0.5, max_tokens=30).text
