"""Opening a tool call: main's decision alone, one more choice beside every key and END."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble.decoding.task import Opening
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.base import member_distribution
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.session import HFSession
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.naive import OPEN, _p_open, naive_decode
from tests.unit_tests.decoding.automata import RECORD, admit, compile_for, finite

FUSIONS = ["average", "deepen", "gac", "unite"]
PROMPT = "Once upon a time, there was a little"
PAIR = ("stories260K", "babyllama-361")
OPENER = 1  # <s>: a control id of every one of these models


def models(shared: Path, *names: str, **settings: Any) -> Ensemble:
    folders = [str(shared / "models" / name) for name in names]
    return Ensemble(EnsembleParams(members=folders, **settings))


@pytest.fixture
def bias(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], float]:
    """(member, id) -> what is added to its logit, for members that would never open a call."""
    added: dict[tuple[str, int], float] = {}
    collect = HFSession.collect

    def biased(self: HFSession, pending: Any) -> torch.Tensor:
        logits = collect(self, pending).clone()
        for (name, token), value in added.items():
            if name == self.engine.name:
                logits[..., token] += value
        return logits

    monkeypatch.setattr(HFSession, "collect", biased)
    return added


def literal(owner: Ensemble, text: str) -> Opening:
    return Opening(literal=tuple(owner._ready().voices[0].vocabulary.encode(text).ids))


def some_bias(owner: Ensemble, prompt: str, steps: int, share: float) -> float:
    """What must be added so that p_open is about ``share`` somewhere in the middle."""
    got = naive_decode(owner, prompt, steps, [0.5, 0.5], True, opening=Opening(ids=(OPENER,)))
    voice: Any = owner._ready().voices[0]
    prompt_ids = voice.member.prompt(prompt)
    ids = voice.vocabulary.encode(got.answer.decode(errors="ignore")).ids
    p = _p_open(voice, prompt_ids, ids, Opening(ids=(OPENER,)), len(ids))
    return float(torch.tensor(share).logit() - torch.tensor(p, dtype=torch.float64).logit())


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", PAIR)
@pytest.mark.parametrize("boundaries", ["discount", "vote"])
@pytest.mark.parametrize("share", [0.2, pytest.param(0.9, marks=pytest.mark.slow)])
def test_the_loop_is_its_naive_twin(
    shared: Path,
    bias: dict[tuple[str, int], float],
    fusion: str,
    main: str,
    boundaries: str,
    share: float,
) -> None:
    opening, steps = Opening(ids=(OPENER,)), 12
    with models(shared, *PAIR, fusion=fusion, main=main, open_boundaries=boundaries) as owner:
        bias[main, OPENER] = some_bias(owner, PROMPT, 6, share)
        weigh = boundaries == "discount"
        naive = naive_decode(owner, PROMPT, steps, [0.5, 0.5], weigh, opening=opening)
        request = RequestParams(max_tokens=steps, n=2, weights="uniform")
        with admit(owner, [PROMPT], request, opening=opening) as decoding:
            answers = decoding.answers()[0]
    for answer in answers:
        assert answer.text.encode() == naive.answer
        assert [t.logprob for t in answer.tokens] == pytest.approx(naive.logprobs, abs=1e-3)
        assert (answer.finish.opened == (OPENER,)) == (naive.keys[-1] == OPEN)
        if answer.finish.opened:
            assert answer.finish.reason == "stop"
            assert answer.tokens[-1].id == OPENER
            assert not answer.tokens[-1].fused
            said = answer.tokens[-1].members
            assert said[main] == answer.tokens[-1].logprob
            assert [said[name] for name in PAIR if name != main] == [None]
    if share == 0.9:
        assert naive.keys[-1] == OPEN


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", PAIR)
@pytest.mark.parametrize(
    "text",
    [" girl named", "{", *(pytest.param(t, marks=pytest.mark.slow) for t in (" girl", " gi"))],
)
@pytest.mark.parametrize("prompt", [PROMPT, pytest.param("", marks=pytest.mark.slow)])
def test_the_literal_opening_is_its_naive_twin(
    shared: Path, fusion: str, main: str, text: str, prompt: str
) -> None:
    steps = 8
    with models(shared, *PAIR, fusion=fusion, main=main) as owner:
        opening = literal(owner, text)
        naive = naive_decode(owner, prompt, steps, [0.5, 0.5], True, opening=opening)
        with admit(
            owner, [prompt], RequestParams(max_tokens=steps, weights="uniform"), opening=opening
        ) as decoding:
            answer = decoding.answers()[0][0]
            read = answer.usage.member_tokens[main]
        plain = owner.generate([prompt], RequestParams(max_tokens=steps, weights="uniform"))[0][0]
    assert answer.text.encode() == naive.answer
    assert [t.logprob for t in answer.tokens] == pytest.approx(naive.logprobs, abs=1e-3)
    if naive.keys[0] == OPEN:
        assert answer.finish.opened == opening.literal
        assert answer.text == ""
    else:
        assert answer.finish.opened is None
        assert answer.text == plain.text
        assert read == plain.usage.member_tokens[main]


def test_both_ends_of_the_literal_are_seen(shared: Path) -> None:
    """The table above would prove nothing if nothing ever opened."""
    with models(shared, *PAIR, fusion="average") as owner:
        text = owner.generate([PROMPT], RequestParams(max_tokens=1))[0][0].text
        for opening, opens in ((literal(owner, text), True), (literal(owner, "{"), False)):
            with admit(owner, [PROMPT], RequestParams(max_tokens=3), opening=opening) as decoding:
                assert (decoding.answers()[0][0].finish.opened is not None) == opens


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"top_k": 2}])
@pytest.mark.parametrize("kind", ["ids", "literal"])
@pytest.mark.parametrize("names", [PAIR, PAIR[:1]])
def test_sampled_calls_come_in_proportion(
    shared: Path,
    bias: dict[tuple[str, int], float],
    settings: dict[str, Any],
    kind: str,
    names: tuple[str, ...],
) -> None:
    many = 500
    with models(shared, *names, fusion="average") as owner:
        voices: Any = owner._ready().voices
        prompt = voices[0].member.prompt(PROMPT)
        if kind == "ids":
            raw = torch.log_softmax(read(voices[0], prompt.ids), -1)[OPENER]
            bias[PAIR[0], OPENER] = float(torch.tensor(0.3).logit() - raw)
        opening = Opening(ids=(OPENER,)) if kind == "ids" else literal(owner, " girl")
        request = RequestParams(max_tokens=1, n=many, seed=1, **({"temperature": 1.0} | settings))
        with admit(owner, [PROMPT], request, opening=opening) as decoding:
            opened = sum(a.finish.opened is not None for a in decoding.answers()[0])
        if len(names) > 1:
            p = _p_open(voices[0], prompt, [], opening, 0)
            rest = fused(owner)
        else:
            ids = opening.ids or opening.literal
            p, rest = raw_odds(voices[0], prompt.ids, ids, within=kind == "ids")
    column = torch.cat([rest * (1 - p), torch.tensor([p], dtype=torch.float64)])
    scores = column.log() / settings.get("temperature", 1.0)
    if "top_k" in settings:
        scores[scores < scores.topk(settings["top_k"]).values[-1]] = -torch.inf
    expected = torch.softmax(scores, -1)[-1].item()
    assert 0.02 < expected < 0.98
    assert abs(opened - many * expected) < 4 * (many * expected * (1 - expected)) ** 0.5


def read(voice: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits after some ids."""
    return voice.member.session().prefill([MemberPrompt(tuple(ids))])[0].double()


def fused(owner: Ensemble) -> torch.Tensor:
    """What comes where no call is opened: probabilities of all keys and END."""
    built: Any = owner._ready()
    said = [
        member_distribution(read(v, v.member.prompt(PROMPT).ids)[None], v.keys, v.allowed[0])
        for v in built.voices
    ]
    both = built.fuser(said, torch.tensor([[0.5, 0.5]]))
    return torch.cat([both.logprobs[0], both.end]).double().exp()


def raw_odds(
    voice: Any, prompt: Sequence[int], ids: Sequence[int], *, within: bool
) -> tuple[float, torch.Tensor]:
    """p_open of a lone voice and what else comes: one id of its softmax, or a path beside it."""
    rest = torch.softmax(read(voice, prompt), -1)
    if within:
        p, rest[ids[0]] = float(rest[ids[0]]), 0.0
        return p, rest / rest.sum()
    p = 1.0
    for number, token in enumerate(ids):
        p *= float(torch.softmax(read(voice, [*prompt, *ids[:number]]), -1)[token])
    return p, rest


def test_one_voice_is_not_changed_by_ids_that_open(
    shared: Path, bias: dict[tuple[str, int], float]
) -> None:
    for value in (0.0, 14.0):
        bias["stories260K", OPENER] = value
        for temperature in (0.0, 0.8):
            request = RequestParams(max_tokens=40, temperature=temperature, seed=3)
            with models(shared, "stories260K") as owner:
                plain = owner.generate([PROMPT], request)[0][0]
                with admit(owner, [PROMPT], request, opening=Opening(ids=(OPENER,))) as decoding:
                    answer = decoding.answers()[0][0]
            said = [t.id for t in plain.tokens]
            until = said.index(OPENER) + 1 if OPENER in said else len(said)
            assert [t.id for t in answer.tokens] == said[:until]
            assert [t.logprob for t in answer.tokens] == [t.logprob for t in plain.tokens[:until]]
            assert answer.finish.opened == ((OPENER,) if OPENER in said else None)
            assert (OPENER in said) == (value > 0)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", ["stories260K", "babyllama-361"])
def test_no_call_opens_inside_a_character(
    shared: Path, bias: dict[tuple[str, int], float], fusion: str, main: str
) -> None:
    seen = 0
    with models(shared, *PAIR, fusion=fusion, main=main) as owner:
        for seed in range(6):
            bias[main, OPENER] = -500.0
            request = RequestParams(max_tokens=60, temperature=20.0, seed=seed, speculation="off")
            with admit(owner, [PROMPT], request, opening=Opening(ids=(OPENER,))) as decoding:
                row = decoding.rows[0]
                while not row.fragment and not decoding.done:
                    decoding.step()
                if decoding.done:
                    continue
                seen += 1
                bias[main, OPENER] = 500.0
                with torch.inference_mode():
                    decoding._loop._caches.logits[0][:, OPENER] += 1000.0  # what was read before
                while row.fragment and not decoding.done:
                    decoding.step()
                    assert row.finish is None or row.finish.opened is None
                if not decoding.done:
                    decoding.step()
                    assert row.finish is not None
                    assert row.finish.opened == (OPENER,)
                    assert row.finish.dropped == b""
    assert seen or fusion == "unite"  # its ten best are whole characters


@pytest.mark.parametrize("fusion", FUSIONS)
def test_auxiliaries_never_open(
    shared: Path, bias: dict[tuple[str, int], float], fusion: str
) -> None:
    with models(shared, *PAIR, fusion=fusion) as owner:
        request = RequestParams(max_tokens=12)
        plain = owner.generate([PROMPT], request)[0][0]
        bias["babyllama-361", OPENER] = 100.0
        with admit(owner, [PROMPT], request, opening=Opening(ids=(OPENER,))) as decoding:
            answer = decoding.answers()[0][0]
    assert answer.text == plain.text
    assert answer.finish.opened is None


@pytest.mark.parametrize("fusion", FUSIONS)
def test_some_rows_open_and_the_others_go_on(
    shared: Path, bias: dict[tuple[str, int], float], fusion: str
) -> None:
    prompts = [PROMPT, "Tom", "", "The big red dog"]
    opening = Opening(ids=(OPENER,))
    request = RequestParams(max_tokens=25, temperature=1.0, seed=2, stop=("dog",), n=2)
    with models(shared, *PAIR, fusion=fusion) as owner:
        level = some_bias(owner, PROMPT, 3, 0.01)
        mixed = False
        while not mixed:  # until some rows open and others do not
            level -= 2.0
            bias["stories260K", OPENER] = level
            with admit(owner, prompts, request, opening=opening) as decoding:
                pieces = []
                while not decoding.done:
                    pieces += decoding.step()
            opened = [p.finish.opened is not None for p in pieces if p.finish is not None]
            mixed = any(opened) and not all(opened)
            assert any(opened)
        single = []
        for prompt in prompts:
            with admit(owner, [prompt], request, opening=opening) as decoding:
                single += decoding.answers()[0]
    for row, answer in enumerate(single):
        mine = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in mine) == answer.text
        assert mine[-1].finish == answer.finish


def test_several_ids_that_open(shared: Path, bias: dict[tuple[str, int], float]) -> None:
    opening = Opening(ids=(0, OPENER))
    with models(shared, *PAIR, fusion="average") as owner:
        level = some_bias(owner, PROMPT, 0, 0.6)
        bias |= {("stories260K", 0): level, ("stories260K", OPENER): level}
        request = RequestParams(max_tokens=1, temperature=1.0, seed=1, n=60)
        with admit(owner, [PROMPT], request, opening=opening) as decoding:
            drawn = [answer.finish.opened for answer in decoding.answers()[0]]
        logits = (
            owner._ready()
            .voices[0]
            .member.session()
            .prefill([owner._ready().voices[0].member.prompt(PROMPT)])[0]
        )
        greedy = RequestParams(max_tokens=1)
        bias["stories260K", 0] += 50.0
        with admit(owner, [PROMPT], greedy, opening=opening) as decoding:
            assert decoding.answers()[0][0].finish.opened == (0,)
    share = float(torch.softmax(logits[[0, OPENER]], -1)[0])
    count = drawn.count((0,)), drawn.count((OPENER,))
    assert sum(count) > 20
    expected = share * sum(count)
    assert abs(count[0] - expected) < 4 * (sum(count) * share * (1 - share)) ** 0.5 + 1


def test_a_literal_without_room_is_never_opened(shared: Path) -> None:
    with models(shared, *PAIR, fusion="average", main="babyllama-361") as owner:
        prompt = "word " * 49
        opening = literal(owner, " and then the dog said hello to all of the other little dogs")
        plain = owner.generate([prompt], RequestParams(max_tokens=3))[0][0]
        with admit(owner, [prompt], RequestParams(max_tokens=3), opening=opening) as decoding:
            assert decoding.answers()[0][0].text == plain.text


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", PAIR)
@pytest.mark.parametrize("value", [0.0, 8.0, 30.0])
def test_in_the_place_of_a_grammars_text(
    shared: Path, bias: dict[tuple[str, int], float], fusion: str, main: str, value: float
) -> None:
    """Before the first key main chooses between a call and what the grammar allows."""
    opening = Opening(ids=(OPENER,))
    with models(shared, *PAIR, fusion=fusion, main=main) as owner:
        grammar = compile_for(owner._ready().voices, RECORD)[0]
        bias[main, OPENER] = value
        naive = naive_decode(owner, PROMPT, 10, [0.5, 0.5], True, grammar, opening)
        request = RequestParams(max_tokens=10, weights="uniform")
        with admit(owner, [PROMPT], request, RECORD, opening=opening) as decoding:
            answer = decoding.answers()[0][0]
    assert answer.text.encode() == naive.answer
    assert [t.logprob for t in answer.tokens] == pytest.approx(naive.logprobs, abs=1e-3)
    assert (answer.finish.opened is not None) == (naive.keys == [OPEN])
    if value == 30.0:
        assert answer.finish.opened == (OPENER,)


@pytest.mark.parametrize("text", [" girl", "{"])
def test_a_literal_in_the_place_of_a_grammars_text(shared: Path, text: str) -> None:
    with models(shared, *PAIR, fusion="average") as owner:
        grammar, opening = compile_for(owner._ready().voices, RECORD)[0], literal(owner, text)
        naive = naive_decode(owner, PROMPT, 10, [0.5, 0.5], True, grammar, opening)
        request = RequestParams(max_tokens=10, weights="uniform")
        with admit(owner, [PROMPT], request, RECORD, opening=opening) as decoding:
            answer = decoding.answers()[0][0]
    assert answer.text.encode() == naive.answer
    assert [t.logprob for t in answer.tokens] == pytest.approx(naive.logprobs, abs=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("value", [-30.0, 30.0])
def test_a_main_that_can_spell_nothing_else_opens(
    shared: Path, bias: dict[tuple[str, int], float], fusion: str, value: float
) -> None:
    """p_open is 1 where main's only way on is a call, whatever its logit."""
    with models(shared, "babyllama-105", "stories260K", fusion=fusion) as owner:
        bias["babyllama-105", OPENER] = value
        request = RequestParams(max_tokens=10)
        opening = Opening(ids=(OPENER,))
        with admit(owner, [PROMPT], request, finite("{}"), opening=opening) as decoding:
            answer = decoding.answers()[0][0]
    assert answer.finish.opened == (OPENER,)
    assert answer.tokens[0].logprob == pytest.approx(0.0, abs=1e-5)


def test_one_voice_in_the_place_of_a_grammars_text(
    shared: Path, bias: dict[tuple[str, int], float]
) -> None:
    opening, request = Opening(ids=(OPENER,)), RequestParams(max_tokens=40)
    with models(shared, "stories260K") as owner:
        for value, opens in ((-30.0, False), (60.0, True)):
            bias["stories260K", OPENER] = value
            with admit(owner, [PROMPT], request, RECORD, opening=opening) as decoding:
                answer = decoding.answers()[0][0]
            assert (answer.finish.opened is not None) == opens
            assert RECORD.run(answer.text.encode()) is not None
        bias["stories260K", OPENER] = -30.0
        with admit(owner, [PROMPT], request, RECORD, opening=opening) as decoding:
            decoding.step()
            bias["stories260K", OPENER] = 60.0  # too late
            while not decoding.done:
                decoding.step()
            assert decoding.rows[0].finish.opened is None


def test_contradictions_are_refused() -> None:
    for wrong in ({}, {"ids": (1,), "literal": (2,)}):
        with pytest.raises(ConfigError, match="give one of them"):
            Opening(**wrong)
