"""Members with a text and a role of their own: fast is naive, and shared weights are one model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from langchain_ensemble.decoding.records import Answer
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError, ContextError
from langchain_ensemble.members import pool as pooling
from langchain_ensemble.members.session import SessionBase
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.naive import naive_greedy
from tests.naive_bytes import naive_bytes

pytestmark = pytest.mark.filterwarnings("ignore:fusion='context_aware' weighs more")

PROMPT = "The fox said"
CONTEXT = "Once upon a time there was a little fox who lived in the forest. "
FUSIONS: dict[str, dict[str, Any]] = {
    "context_aware": {"with_context": "a", "without": "b", "strength": 1.5},
    "contrastive": {"expert": "a", "amateur": "b", "alpha": 0.01, "beta": 1.0},
    "proxy": {"base": "a", "tuned": "b", "untuned": "c"},
}


@pytest.fixture
def llama(pico: Callable[..., Path]) -> str:
    return str(pico("llama"))


def owner(name: str, *folders: str, **settings: Any) -> Ensemble:
    """An ensemble of ``a``, ``b``, … with roles; a setting of the fusion's in place of ours."""
    members = dict(zip("abc", folders, strict=False))
    fusion = {"name": name, **FUSIONS.get(name, {}), **settings}
    return Ensemble(EnsembleParams(members=members, fusion=fusion))


def ids(answer: Answer) -> list[int | None]:
    return [token.id for token in answer.tokens]


def answer(made: Ensemble, prompt: str = PROMPT, **request: Any) -> Answer:
    ((got,),) = made.generate([prompt], RequestParams(**{"max_tokens": 16, **request}))
    return got


@pytest.mark.parametrize("name", FUSIONS)
def test_the_loop_is_its_naive_twin(name: str, pico: Callable[..., Path], llama: str) -> None:
    """With drafts and without, alone and in a batch, a text of each one's own."""
    folders = [llama, str(pico("llama", 1)), str(pico("llama", 2))]
    count = 2 + (name == "proxy")
    told = {"a": CONTEXT, "b": "He. "}
    with owner(name, *folders[:count]) as made:
        texts = (CONTEXT, "He. ", "")[:count]
        naive, _ = naive_greedy(made, PROMPT, 8, [1 / count] * count, True, texts)
        request = RequestParams(max_tokens=8, contexts=told, speculation="off", weights="uniform")
        plain = made.generate([PROMPT, "Tom"], request)
        got = plain[0][0]
        assert b"".join(t.bytes for t in got.tokens) == naive
        assert any(token.fused for token in got.tokens)
        drafted = made.generate([PROMPT], request.model_copy(update={"speculation": "on"}))
        assert ids(drafted[0][0]) == ids(got)
        assert ids(answer(made, "Tom", max_tokens=8, contexts=told)) == ids(plain[1][0])
        assert ids(answer(made, max_tokens=8)) != ids(got)


@pytest.mark.parametrize(
    ("name", "nothing"),
    [
        ("context_aware", {"strength": 0.0}),
        ("proxy", {}),  # tuned and untuned are one model
    ],
)
def test_a_strength_of_nothing_is_main_alone(
    name: str, nothing: dict[str, Any], pico: Callable[..., Path], llama: str
) -> None:
    other = str(pico("llama", 1))
    folders = [llama, other, *([other] if name == "proxy" else [])]
    with owner("average", llama, llama) as twice, owner(name, *folders, **nothing) as made:
        for prompt in (PROMPT, "Zoë: é"):
            assert ids(answer(made, prompt)) == ids(answer(twice, prompt))


def test_a_tuning_that_changed_nothing_is_generate(shared: Path) -> None:
    stories, bit = (str(shared / "models" / name) for name in ("stories260K", "bitllama-1M"))
    with owner("proxy", stories, bit, bit) as made, owner("average", stories) as single:
        got = answer(made, "Once upon a time", max_tokens=24)
        assert ids(got) == ids(answer(single, "Once upon a time", max_tokens=24))
        assert all(token.fused for token in got.tokens)


def test_a_shut_gate_is_main_alone_and_a_trace_has_every_role(
    pico: Callable[..., Path], llama: str
) -> None:
    never = {"name": "threshold", "below": 1e-6}
    with (
        owner("average", llama, llama) as twice,
        owner("contrastive", llama, str(pico("llama", 1))) as made,
    ):
        shut = answer(made, gate=never)
        assert ids(shut) == ids(answer(twice))
        assert not any(token.fused for token in shut.tokens)
        traced = answer(made, trace=True)
        assert ids(traced) == ids(answer(made)) != ids(shut)
        steps = [token.trace for token in traced.tokens if token.fused]
        assert all(step is not None and set(step.wishes) == {"a", "b"} for step in steps)


def test_views_of_one_model_are_one_model_and_say_what_two_copies_say(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    right = pooling.run

    def run(engine: Any, cache: Any, block: Any, *rest: Any) -> Any:
        rows.append(len(block))
        return right(engine, cache, block, *rest)

    monkeypatch.setattr(pooling, "run", run)
    copied = tmp_path / "copy"
    shutil.copytree(llama, copied)
    said = []
    for second in (llama, str(copied)):
        with owner("context_aware", llama, second) as made:
            models = made.load()._ready().members
            one_model = models[0].module is models[1].module
            rows.clear()
            got = answer(made, contexts={"a": CONTEXT}, speculation="off")
            said.append((ids(got), one_model, list(rows)))
    (together, shared, pooled), (apart, separate, alone) = said
    assert together == apart
    assert (shared, separate) == (True, False)
    assert pooled == [1, 1] + [2] * pooled.count(2)
    assert len(alone) == 2 * (pooled.count(2) + 1)


def test_inside_a_character_main_is_alone_and_it_is_not_counted_as_fused(
    pico: Callable[..., Path], llama: str
) -> None:
    folders = [llama, str(pico("llama", 1)), str(pico("llama", 2))]
    seen = set()
    with owner("proxy", *folders) as made:
        for prompt in ("日本語", "Zoë: é"):
            tokens = answer(made, prompt, max_tokens=24).tokens
            held = b""
            for token in tokens:
                whole = held.decode(errors="ignore").encode() == held
                assert token.fused == whole
                seen.add(whole)
                held += token.bytes or b""
    assert seen == {True, False}


def test_a_context_is_read_by_its_member_alone(llama: str) -> None:
    with owner("average", llama, llama) as made:
        both = answer(made, contexts={"a": CONTEXT, "b": CONTEXT})
        joined = answer(made, CONTEXT + PROMPT)
        assert ids(both) == ids(joined)
        assert both.usage.prompt_tokens == joined.usage.prompt_tokens
        assert ids(answer(made, contexts={"a": ""})) == ids(answer(made))
        mains = answer(made, contexts={"a": CONTEXT})
        assert mains.usage.prompt_tokens == joined.usage.prompt_tokens
        assert answer(made, contexts={"b": CONTEXT}).usage.prompt_tokens < 20
        weights = {"a": 1.0, "b": 0.0}
        alone = answer(made, contexts={"a": CONTEXT, "b": "x" * 9999}, weights=weights)
        assert ids(alone) == ids(answer(made, CONTEXT + PROMPT, weights=weights))


def test_score_reads_contexts_and_is_the_decoded_log_probability(
    llama: str, pico: Callable[..., Path]
) -> None:
    told = {"a": CONTEXT}
    with owner("contrastive", llama, str(pico("llama", 1))) as made:
        got = answer(made, max_tokens=6, logprobs=True, contexts=told)
        score = made.score(got.text, PROMPT, contexts=told)
        ended = got.finish.reason == "stop"
        spelled = [t.logprob or 0.0 for t in got.tokens][: len(got.tokens) - ended]
        assert score.is_greedy
        assert score.logprob == pytest.approx(sum(spelled), abs=1e-3)
        assert score != made.score(got.text, PROMPT)
        alone = made.score(got.text, CONTEXT + PROMPT, member="a")
        assert made.score(got.text, PROMPT, member="a", contexts=told) == alone


def test_a_kept_prefix_holds_the_context(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    submit = SessionBase.submit

    def counted(self: SessionBase, block: Any, keep: int | None = 1) -> Any:
        ran.append(sum(map(len, block)))
        return submit(self, block, keep)

    monkeypatch.setattr(SessionBase, "submit", counted)
    with owner("context_aware", llama, llama) as made:
        told = {"contexts": {"a": CONTEXT}, "max_tokens": 2, "speculation": "off"}
        first, read = answer(made, **told), sum(ran)
        ran.clear()
        assert ids(answer(made, **told)) == ids(first)
        assert sum(ran) < read / 2
        ran.clear()
        other = answer(made, **{**told, "contexts": {"a": "He." + CONTEXT}})
        assert sum(ran) > read / 2
        assert other.usage.prompt_tokens > first.usage.prompt_tokens


def test_a_draft_model_reads_what_main_reads(llama: str, pico: Callable[..., Path]) -> None:
    members = {"a": llama, "b": str(pico("gpt2"))}
    with Ensemble(EnsembleParams(members=members, fusion="average", draft=llama)) as made:
        request = RequestParams(max_tokens=4, contexts={"a": CONTEXT})
        with made.open([PROMPT], request) as decoding:
            task = decoding._loop._task
            assert task.draft is not None
            assert task.draft.prompts[0].ids == task.prompts[0][0].ids


def test_what_cannot_be_is_said(llama: str) -> None:
    with owner("context_aware", llama, llama) as made:
        with pytest.raises(ConfigError, match=r"unknown member in contexts 'aa'.*mean 'a'"):
            answer(made, contexts={"aa": "x"})
        with pytest.raises(ConfigError, match="unknown member in contexts"):
            made.score("x", contexts={"z": "x"})
        with pytest.raises(ConfigError, match="roles are not weights"):
            answer(made, weights=(0.5, 0.5))
        with pytest.raises(ConfigError, match="roles are not weights"):
            made.score("x", weights={"a": 1.0, "b": 0.0})
        with pytest.raises(ContextError, match=r"'a', 256 pos.*The 1200 characters that contexts="):
            answer(made, contexts={"a": "fox " * 300})
        with pytest.raises(ContextError, match=r"what the answer needs$"):
            answer(made, "fox " * 300)
    with pytest.raises(ConfigError, match="main is 'b'"):
        EnsembleParams(
            members={"a": llama, "b": llama},
            main="b",
            fusion={"name": "context_aware", **FUSIONS["context_aware"]},
        )


# members of other vocabularies: byte by byte


def log_linear(**coefficients: float) -> Callable[[list[dict[int, float]]], dict[int, float]]:
    """The naive twin of a mix: what a member lacks counts as main's own."""

    def mix(said: list[dict[int, float]]) -> dict[int, float]:
        main, *others = said
        logs = {}
        for symbol, p in main.items():
            if p:
                told = [one.get(symbol, 0.0) for one in (main, *others)]
                pairs = zip(told, coefficients.values(), strict=True)
                full = all(told)
                logs[symbol] = sum(c * math.log(q) for q, c in pairs) if full else math.log(p)
        top = max(logs.values())
        total = sum(math.exp(value - top) for value in logs.values())
        return {symbol: math.exp(value - top) / total for symbol, value in logs.items()}

    return mix


def test_members_of_other_vocabularies_are_compared_byte_by_byte(
    pico: Callable[..., Path], llama: str
) -> None:
    with owner("context_aware", str(pico("gpt2")), llama, strength=0.5) as made:
        expected, _ = naive_bytes(made, PROMPT, 5, [0.5, 0.5], log_linear(a=1.5, b=-0.5))
        got = answer(made, max_tokens=5)
        assert b"".join(token.bytes for token in got.tokens) == expected
        assert all(token.fused for token in got.tokens)
        drafted = answer(made, max_tokens=5, speculation="on")
        assert [t.bytes for t in drafted.tokens] == [t.bytes for t in got.tokens]
        assert ids(answer(made, max_tokens=5, contexts={"a": CONTEXT})) != ids(got)


def test_over_bytes_nothing_added_is_the_score_of_main_alone(shared: Path) -> None:
    folders = [str(shared / "models" / name) for name in ("stories260K", "babyllama-361")]
    text, none = " there was a little girl.", {"alpha": 0.0, "beta": 0.0}
    with owner("contrastive", *folders, **none) as made, owner("bytes", *folders) as bare:
        alone = bare.score(text, "Once upon a time", weights=(1, 0))
        got = made.score(text, "Once upon a time")
        assert got.logprob == pytest.approx(alone.logprob, abs=1e-3)
