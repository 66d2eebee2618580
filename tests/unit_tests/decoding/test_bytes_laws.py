"""Laws of decoding and scoring over bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble.constraints.utf8 import START, state_after
from langchain_ensemble.decoding import byte_score, fused, gate_rules
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion import Bytes, Contrastive, bytes_walk
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.unit_tests.decoding.automata import FOREIGN, RECORD, admit
from tests.unit_tests.decoding.test_counts import DYNAMIC, watched

PROMPT = "Once upon a time, there was a"
NAMES = ("stories260K", "bitllama-1M", "babyllama-361")


def ensemble(members: list[str], fusion: Any = "bytes", **settings: Any) -> Ensemble:
    return Ensemble(EnsembleParams(members=members, fusion=fusion, **settings))


@pytest.fixture(scope="module")
def folders(shared: Path) -> dict[str, str]:
    return {name: str(shared / "models" / name) for name in NAMES}


@pytest.fixture(scope="module")
def pair(folders: dict[str, str]) -> Iterator[Ensemble]:
    with ensemble([folders["stories260K"], folders["babyllama-361"]]) as owner:
        yield owner


@pytest.fixture(scope="module")
def coarse(folders: dict[str, str]) -> Iterator[Ensemble]:
    with ensemble([folders["stories260K"], folders["bitllama-1M"]]) as owner:
        yield owner


def answer(owner: Ensemble, prompt: str = PROMPT, **request: Any) -> Any:
    return owner.generate([prompt], RequestParams(**request))[0][0]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out."""
    monkeypatch.setattr(bytes_walk, "LOOSE", 0.0)
    monkeypatch.setattr(bytes_walk, "TIGHT", -1e-6)
    monkeypatch.setattr(byte_score, "LEAST_SHARE", 1e-30)


@pytest.mark.usefixtures("exact")
def test_greedy_text_does_not_depend_on_where_steps_end(
    coarse: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = answer(coarse, max_tokens=24).text
    monkeypatch.setattr(bytes_walk, "LONGEST", 0)
    single = answer(coarse, max_tokens=len(text))
    assert single.text == text
    assert {len(token.bytes) for token in single.tokens} == {1}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("which", ["pair", "coarse"])
def test_what_is_decoded_is_what_is_scored(which: str, request: pytest.FixtureRequest) -> None:
    owner: Ensemble = request.getfixturevalue(which)
    got = answer(owner, max_tokens=16, logprobs=True, temperature=1.0, seed=3)
    total = sum(token.logprob for token in got.tokens)
    assert owner.score(got.text, PROMPT).logprob == pytest.approx(total, abs=2e-3)


def test_scores_do_not_depend_on_who_is_main(folders: dict[str, str], pair: Ensemble) -> None:
    text = " little girl. She was happy"
    with ensemble([folders["stories260K"], folders["babyllama-361"]], main="babyllama-361") as two:
        for weights in ([0.5, 0.5], [0.2, 0.8]):
            one = pair.score(text, PROMPT, weights=weights)
            assert two.score(text, PROMPT, weights=weights).logprob == pytest.approx(
                one.logprob, abs=1e-3
            )


def test_all_weight_is_that_members_own_and_equal_members_are_one(
    folders: dict[str, str], pair: Ensemble
) -> None:
    text = " little girl. She was happy"
    alone = pair.score(text, PROMPT, weights=[0.0, 1.0]).logprob
    assert pair.score(text, PROMPT, member="babyllama-361").logprob == pytest.approx(alone)
    twins = {"a": folders["babyllama-361"], "b": folders["babyllama-361"]}
    with Ensemble(EnsembleParams(members=twins, fusion="bytes")) as owner:
        assert owner.score(text, PROMPT).logprob == pytest.approx(alone, abs=1e-3)


def test_characters_alone_are_walked_as_the_model_says_them(pair: Ensemble) -> None:
    """Every key of this member is one byte: its byte distribution is its own."""
    text = " little girl."
    voice = pair._ready().voices[1]
    held = voice.vocabulary.encode(text).ids
    session = voice.member.session()
    prompt = voice.member.prompt(PROMPT)
    rows = [session.prefill([prompt])[0], *session.step([list(held[:-1])], keep=None)[0]]
    session.close()
    sayable = voice.keys.speaks
    total = 0.0
    for row, token in zip(rows, held, strict=True):
        said = row.masked_fill(~sayable, -torch.inf).log_softmax(-1)
        spellings = voice.keys.representative == voice.keys.representative[token]
        total += float(said[spellings].logsumexp(-1))
    got = pair.score(text, PROMPT, member="babyllama-361").logprob
    assert got == pytest.approx(total, abs=0.02)  # partial characters are masked there


def test_all_weight_on_main_is_main(folders: dict[str, str], pair: Ensemble) -> None:
    with ensemble([folders["stories260K"]]) as alone:
        expected = answer(alone, max_tokens=20).text
    assert answer(pair, max_tokens=20, weights=[1.0, 0.0]).text == expected


def test_the_order_of_auxiliaries_does_not_matter(folders: dict[str, str]) -> None:
    names = ["stories260K", "bitllama-1M", "babyllama-361"]
    texts = []
    for order in ([0, 1, 2], [0, 2, 1]):
        with ensemble([folders[names[i]] for i in order]) as owner:
            texts.append(answer(owner, max_tokens=12).text)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("how", [{}, {"temperature": 0.8, "seed": 5}])
def test_a_batch_is_its_rows_alone(coarse: Ensemble, how: dict[str, Any]) -> None:
    prompts = [PROMPT, "Tom", "The big dog ran"]
    request = RequestParams(max_tokens=10, **how)
    together = [row[0].text for row in coarse.generate(prompts, request)]
    assert together == [coarse.generate([prompt], request)[0][0].text for prompt in prompts]


def test_speculation_gives_the_same_tokens(coarse: Ensemble) -> None:
    told = [
        [token.bytes for token in answer(coarse, max_tokens=24, speculation=speculation).tokens]
        for speculation in ("off", "on")
    ]
    assert told[0] == told[1]


def test_a_stop_string_ends_the_answer(pair: Ensemble) -> None:
    whole = answer(pair, max_tokens=40).text
    stop = whole[17:20]
    cut = answer(pair, max_tokens=40, stop=[stop])
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish.reason == "stop"


@pytest.mark.parametrize("main", ["stories260K", "babyllama-361"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_under_a_grammar_are_legal(
    folders: dict[str, str], main: str, temperature: float
) -> None:
    request = RequestParams(max_tokens=60, temperature=temperature, seed=4, stop=["zq"])
    members = [folders["stories260K"], folders["babyllama-361"]]
    with (
        ensemble(members, main=main) as owner,
        admit(owner, [PROMPT, ""], request, RECORD) as decoding,
    ):
        answers = [row[0] for row in decoding.answers()]
    for got in answers:
        assert got.finish.reason == "stop"
        assert RECORD.holds(got.text.encode())


@pytest.mark.parametrize("kinds", [("llama", "gpt2"), ("gpt2", "llama")])
def test_a_grammar_of_other_characters(pico: Callable[..., Path], kinds: tuple[str, str]) -> None:
    with (
        ensemble([str(pico(kind)) for kind in kinds]) as owner,
        admit(owner, ["The text: "], RequestParams(max_tokens=40), FOREIGN) as decoding,
    ):
        got = decoding.answers()[0][0]
    assert got.finish.reason == "stop"
    assert FOREIGN.holds(got.text.encode())


def test_marks_and_rollbacks_are_a_fresh_replay(coarse: Ensemble) -> None:
    expected = answer(coarse, max_tokens=16).text
    with coarse.open([PROMPT], RequestParams(max_tokens=16)) as decoding:
        loop = decoding._loop
        for _ in range(5):
            decoding.step()
        mark = loop.mark()
        for _ in range(6):
            decoding.step()
        loop.rollback(mark)
        while not decoding.done:
            decoding.step()
        assert bytes(loop.rows[0].answer).decode() == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_text_of_all_kinds_is_scored(pico: Callable[..., Path], kind: str) -> None:
    other = {"llama": "qwen2", "qwen2": "llama"}[kind]
    with ensemble([str(pico(kind)), str(pico(other))]) as owner:
        for prompt in ("", "Größe"):
            score = owner.score("日本 é\n👩‍👧 done", prompt)
            assert score.num_bytes == len("日本 é\n👩‍👧 done".encode())
            assert 0 < score.bits_per_byte < 40


def test_what_cannot_be_a_mean_is_refused() -> None:
    for mean in ("quadratic", True, float("nan"), float("inf"), 1e-9, None):
        with pytest.raises(ConfigError, match="mean"):
            Bytes(mean=mean)  # type: ignore[arg-type]


def test_one_members_score_is_its_own_whatever_its_role(
    folders: dict[str, str], pair: Ensemble
) -> None:
    roles = Contrastive(expert="stories260K", amateur="babyllama-361")
    params = EnsembleParams(members=[folders["stories260K"], folders["babyllama-361"]])
    with Ensemble(params, fusion=roles) as owner:
        for name in ("stories260K", "babyllama-361"):
            own = pair.score(" there was a fox", PROMPT, member=name)
            got = owner.score(" there was a fox", PROMPT, member=name)
            assert got.logprob == pytest.approx(own.logprob, rel=1e-6)
            assert own.bits_per_byte < 4


def test_inside_a_character_nobody_ends_a_token(pico: Callable[..., Path]) -> None:
    """So a safe gate is shut there, and what others said before it is not compared."""
    how = RequestParams(max_tokens=24, logprobs=True, gate="safe", temperature=2.0, seed=1)
    inside = 0
    with ensemble([str(pico("llama")), str(pico("gpt2"))]) as owner:
        for prompt in ("日本", "Größe", "Привет"):
            (told,) = owner.generate([prompt], how)[0]
            data = b""
            for token in told.tokens:
                if state_after(data) != START:
                    inside += 1
                    assert not token.fused
                    assert token.gate in ("boundary", None)  # None: no other member spells it
                    assert token.disagreement is None
                data += token.bytes
    assert inside > 3


def test_a_device_is_never_waited_for(
    pico: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, taken on the CPU: the same tokens, one transfer a step, fixed shapes."""
    how = {"max_tokens": 4, "gate": "safe", "logprobs": True}
    with ensemble([str(pico("qwen2")), str(pico("llama"))]) as owner:
        host = answer(owner, **how).text
        never = property(lambda _: False, lambda *_: None)
        monkeypatch.setattr(bytes_walk.Walk, "_on_host", never, raising=False)
        for module in (fused, gate_rules):
            monkeypatch.setattr(module, "on_host", lambda _: False)
        assert answer(owner, **how).text == host
        watch = watched(owner, [PROMPT], monkeypatch, gate="safe", logprobs=True)
        width = owner._ready().voices[0].member.logits_width
    assert all(len(reads) == 1 and reads[0] < width for reads in watch.reads)
    seen = {name for step in watch.steps for name in step}
    assert not [name for name in seen if any(word in name for word in DYNAMIC)]
    counts = [sum(step.values()) for step in watch.steps[1:]]
    assert max(counts) == min(counts)
