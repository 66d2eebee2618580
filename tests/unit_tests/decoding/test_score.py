"""Score against a teacher-forced naive twin, windows, and its error messages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_ensemble.decoding.choose import effective_weights
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.session import SessionBase
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.naive import _boundary, _distribution

FUSIONS = ["average", "deepen", "gac", "unite"]
TEXT = "Once upon a time, there was a little girl named Lily. She loved to play"


def open_ensemble(shared: Path, names: list[str], **settings: Any) -> Ensemble:
    folders = [str(shared / "models" / name) for name in names]
    return Ensemble(EnsembleParams(members=folders, **settings))


def naive_score(owner: Ensemble, text: str, prompt: str) -> float:
    """Every position from scratch; the whole answer re-tokenised for every member."""
    built: Any = owner._ready()
    prompts = [v.member.prompt(prompt) for v in built.voices]
    lead = [
        b" " * int(p.text_start and v.vocabulary.dummy_prefix)
        for v, p in zip(built.voices, prompts, strict=True)
    ]
    main = built.voices[0].vocabulary
    ids = main.encode(lead[0].decode() + text).ids
    total, whole = 0.0, b""
    visited: list[list[bytes]] = [[] for _ in built.voices]
    paths: list[list[float]] = [[] for _ in built.voices]
    for number, token in enumerate(ids):
        distributions, c = [], []
        answer = whole[len(lead[0]) :]
        for place, voice in enumerate(built.voices):
            held = lead[place] + answer if number else b""
            own = ids[:number] if place == 0 else voice.vocabulary.encode(held.decode()).ids
            distributions.append(_distribution(voice, prompts[place], own, b""))
            weigh = not voice.verbatim
            where = (voice, prompts[place], held, visited[place], paths[place])
            c.append(_boundary(*where) if weigh else 1.0)
        weights = torch.full((1, len(c)), 1 / len(c))
        rows = effective_weights(
            weights, torch.zeros(1, len(c), dtype=torch.bool), torch.tensor([c])
        )
        target = built.voices[0].keys.representative[torch.tensor([token])]
        total += float(built.fuser.score(distributions, rows, target))
        whole += main.token_bytes[token]
    return total


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", ["stories260K", "babyllama-361"])
@pytest.mark.parametrize("prompt", ["Once upon a time, there", ""])
def test_score_is_its_naive_twin(shared: Path, fusion: str, main: str, prompt: str) -> None:
    text = " was a little girl" if prompt else "There was a girl"
    with open_ensemble(shared, ["stories260K", "babyllama-361"], fusion=fusion, main=main) as owner:
        score = owner.score(text, prompt, weights="uniform")
        assert score.logprob == pytest.approx(naive_score(owner, text, prompt), rel=1e-4)
        assert math.isfinite(score.logprob)
        assert score.num_bytes == len(text)
        assert score.bits_per_byte == pytest.approx(-score.logprob / len(text) / math.log(2))
        assert score.windows == 1


@pytest.mark.parametrize("name", ["stories260K", "babyllama-361", "bitllama-1M"])
def test_one_member_is_the_models_own_log_likelihood(shared: Path, name: str) -> None:
    folder = str(shared / "models" / name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = torch.log_softmax(model(ids).logits[0, :-1], -1)
    expected = float(logits.gather(1, ids[0, 1:, None]).sum())
    with open_ensemble(
        shared, ["stories260K", "babyllama-361", "bitllama-1M"], fusion="average"
    ) as owner:
        score = owner.score(TEXT, member=name)
        assert score.logprob == pytest.approx(expected, rel=1e-5)
        assert score.tokens == ids.shape[1] - 1
    with open_ensemble(shared, [name]) as alone:
        assert alone.score(TEXT).logprob == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_greedy_answer_scores_as_greedy(shared: Path, fusion: str) -> None:
    prompt = "Once upon a time, there was a little"
    with open_ensemble(shared, ["stories260K", "bitllama-1M"], fusion=fusion) as owner:
        answer = owner.generate([prompt], RequestParams(max_tokens=12, logprobs=True))[0][0]
        score = owner.score(answer.text, prompt)
        ids = owner._ready().voices[0].vocabulary.encode(answer.text).ids
        if ids == [t.id for t in answer.tokens]:  # the canonical spelling is what was decoded
            assert score.is_greedy
            assert (
                score.logprob == pytest.approx(sum(t.logprob for t in answer.tokens), rel=1e-3)
                or fusion == "unite"
            )
        assert not owner.score("zqxj", prompt).is_greedy


@pytest.mark.parametrize("fusion", FUSIONS)
def test_long_text_slides_and_counts_every_token_once(shared: Path, fusion: str) -> None:
    text = (
        (shared / "text" / "tinystories" / "heldout_dev.txt").read_text()[:700].replace("\n", " ")
    )
    with open_ensemble(shared, ["stories260K", "babyllama-361"], fusion=fusion) as owner:
        score = owner.score(text)
        assert score.windows > 2
        assert math.isfinite(score.logprob)
        assert 0.5 < score.bits_per_byte < 4


def test_sliding_one_member_equals_a_naive_slide(shared: Path) -> None:
    text = (
        (shared / "text" / "tinystories" / "heldout_dev.txt").read_text()[:600].replace("\n", " ")
    )
    folder = str(shared / "models" / "babyllama-361")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(text)["input_ids"]
    start, end, total = 0, 256, 0.0
    done = 1
    while True:
        window = torch.tensor([ids[start:end]])
        with torch.no_grad():
            logits = torch.log_softmax(model(window).logits[0], -1)
        last = min(end, len(ids) - 1)
        for target in range(done, last + 1):
            total += float(logits[target - 1 - start, ids[target]])
        done = last + 1
        if done >= len(ids):
            break
        start, end = end - 128, end + 128
    with open_ensemble(shared, ["babyllama-361"]) as owner:
        assert owner.score(text).logprob == pytest.approx(total, rel=1e-5)


def test_empty_text_and_errors(shared: Path) -> None:
    with open_ensemble(shared, ["babyllama-105", "stories260K"], fusion="average") as owner:
        empty = owner.score("", "Once")
        assert (empty.logprob, empty.num_bytes, empty.bits_per_byte) == (0.0, 0, 0.0)
        with pytest.raises(ConfigError, match=r"unknown member 'story260K'.*mean 'stories260K'"):
            owner.score("a", member="story260K")
        with pytest.raises(ConfigError, match=r"'babyllama-105' cannot spell 1 character"):
            owner.score("a 日 sign")


def test_other_weights_cost_no_forward(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["stories260K", "babyllama-361"]
    with open_ensemble(shared, names, fusion="average") as owner:
        even = owner.score(TEXT)
        module = owner._ready().members[0].module  # type: ignore[attr-defined]
        calls = []
        module.register_forward_pre_hook(lambda *_: calls.append(1))
        skewed = owner.score(TEXT, weights={"stories260K": 0.9, "babyllama-361": 0.1})
        assert calls == []
        assert skewed.logprob != even.logprob
        assert owner.score(TEXT) == even
        owner.score(TEXT + "!")
        assert calls
    with open_ensemble(shared, names, fusion="average") as fresh:
        again = fresh.score(TEXT, weights={"stories260K": 0.9, "babyllama-361": 0.1})
    assert again == skewed


@pytest.mark.parametrize("fusion", ["average", "bytes"])
def test_texts_after_one_prompt_read_it_once(
    shared: Path, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[tuple[str, int]] = []
    submit = SessionBase.submit

    def counted(self: SessionBase, ids: Any, keep: int | None = 1) -> Any:
        blocks.append((self.engine.name, sum(map(len, ids))))
        return submit(self, ids, keep)

    monkeypatch.setattr(SessionBase, "submit", counted)
    texts = [" They met a fox.", " A fox", " It’s 日本", " They met a fox. The fox ran away"]
    names = ["stories260K", "babyllama-361"]
    with open_ensemble(shared, names, fusion=fusion) as owner:
        voices = owner._ready().voices

        def told(prompt: str, *, kept: bool) -> list[Any]:
            owner._prefixes.clear()
            owner._prefixes.max_bytes = 2**30 if kept else 0  # else every text reads for itself
            said = []
            for text in texts:
                blocks.clear()
                score = owner.score(text, prompt)
                said.append((score, {n: [c for m, c in blocks if m == n] for n in names}))
            return said

        for length in (60, 245):  # babyllama-361 has 256 positions: longer texts slide
            prompt = (TEXT * 4)[:length]
            sizes = {v.member.name: len(v.member.prompt(prompt).ids) for v in voices}
            pairs = zip(told(prompt, kept=True), told(prompt, kept=False), strict=True)
            slid: list[bool] = []
            for number, ((score, read), (naive, all_read)) in enumerate(pairs):
                assert score.logprob == pytest.approx(naive.logprob, rel=1e-6, abs=1e-5)
                assert (score.is_greedy, score.windows) == (naive.is_greedy, naive.windows)
                slid.append(score.windows > 1)
                for name in names:
                    saved = sizes[name] - 1 if number else 0
                    assert sum(all_read[name]) - sum(read[name]) == saved
                    assert len(all_read[name]) - len(read[name]) == (saved > 0)  # forwards
            assert any(slid) == (length == 245)


def test_what_was_decoded_is_not_read_again_to_be_scored(shared: Path) -> None:
    with open_ensemble(shared, ["stories260K", "babyllama-361"], fusion="average") as owner:
        afresh = owner.score(" there was a fox", TEXT)
        owner._prefixes.clear()
        owner.generate([TEXT], RequestParams(max_tokens=3))
        held = len(owner._prefixes)
        after = owner.score(" there was a fox", TEXT, weights=[0.4, 0.6])
        assert owner.score(" there was a fox", TEXT).logprob == pytest.approx(afresh.logprob)
        assert after.logprob != afresh.logprob
        assert len(owner._prefixes) == held
