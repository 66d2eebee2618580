"""Weights by the answer so far: the formula, decoding and scores beside a naive twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from langchain_ensemble import EnsembleLLM
from langchain_ensemble.decoding.online import KEEP, RATE, by_regard, evidence_of, noted
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.base import Told
from langchain_ensemble.params import EnsembleParams, RequestParams

FUSION = {"name": "average", "mean": "arithmetic"}
TEXT = "The fox ran to the river, and the river was cold."


@pytest.fixture(scope="module")
def owner(pico: Callable[..., Path]) -> Iterator[Ensemble]:
    members = {"main": str(pico("qwen2")), "other": str(pico("llama"))}
    with Ensemble(EnsembleParams(members=members, fusion=FUSION)) as made:
        yield made


def test_weights_are_tempered_evidence_that_fades() -> None:
    base, said = (0.25, 0.75), [(-1.0, -2.0), (-0.5, -3.0), (-4.0, -0.1)]
    regard: tuple[float, ...] = ()
    for count, one in enumerate(said):
        z = [sum(KEEP ** (count - 1 - s) * said[s][i] for s in range(count)) for i in (0, 1)]
        wanted = [b * math.exp(RATE * v) for b, v in zip(base, z, strict=True)]
        got = by_regard(base, regard)
        assert got == pytest.approx([w / sum(wanted) for w in wanted])
        regard = noted(regard, one)
    assert noted(regard, ()) == regard
    assert by_regard(base, ()) == base
    assert sum(by_regard(base, (-5000.0, 0.0))) == pytest.approx(1.0)


@pytest.mark.parametrize("logs", [False, True])
def test_who_has_no_say_is_counted_as_main(logs: bool) -> None:
    probs = [torch.tensor([[0.5, 0.3], [0.1, 0.8]]), torch.tensor([[0.25, 0.7], [0.6, 0.2]])]
    ends = [torch.tensor([0.2, 0.1]), torch.tensor([0.05, 0.2])]
    told = Told([p.log() for p in probs], [e.log() for e in ends], True) if logs else None
    told = told or Told(probs, ends, logs=False)
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    got = evidence_of(told, torch.tensor([0, 1]), weights, [None, torch.tensor([0.4, 1.0])]).exp()
    torch.testing.assert_close(got[:, 0], torch.tensor([0.5, 0.4 * 0.25 + 0.6 * 0.5]))
    torch.testing.assert_close(got[:, 1], torch.tensor([0.8, 0.8]))  # the other had no say
    at_end = evidence_of(told, torch.tensor([-1, -1]), torch.ones(2, 2), [None, None]).exp()
    torch.testing.assert_close(at_end[:, 0], torch.tensor([0.2, 0.05]))
    lacked = evidence_of(told, torch.tensor([2, 5]), torch.ones(2, 2), [None, None])
    assert bool((lacked < -80).all())
    silent_main = evidence_of(
        told, torch.tensor([0, 0]), torch.tensor([[0.0, 1.0]] * 2), [None] * 2
    )
    assert not bool(silent_main.any())


def test_score_is_that_of_weights_computed_key_by_key(owner: Ensemble) -> None:
    vocabulary = owner._ready().voices[0].vocabulary
    ends = vocabulary.encode(TEXT).ends
    tiny = 1e-8  # as good as all weight on one, but both are heard
    names = ("main", "other")
    along: dict[str, list[float]] = {}
    for name in names:
        shares = {n: 1 - tiny if n == name else tiny for n in names}
        totals = [0.0]
        for end in ends:
            totals.append(owner.score(TEXT.encode()[:end].decode(), weights=shares).logprob)
        along[name] = [after - before for before, after in pairwise(totals)]
    z, total = [0.0, 0.0], 0.0
    for said in zip(*along.values(), strict=True):
        parts = [math.exp(RATE * (value - max(z))) for value in z]
        total += math.log(
            sum(p / sum(parts) * math.exp(s) for p, s in zip(parts, said, strict=True))
        )
        z = [KEEP * value + s for value, s in zip(z, said, strict=True)]
    assert owner.score(TEXT, weights="online").logprob == pytest.approx(total, abs=1e-3)
    assert owner.score(TEXT, weights="uniform").logprob != pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("gate", ["always", {"name": "threshold", "below": 0.02}, "safe"])
def test_drafts_batches_and_scores_have_the_same_weights(owner: Ensemble, gate: object) -> None:
    prompts = ["Once upon a time", "The fox", "One day a small dog"]
    common = {"max_tokens": 24, "weights": "online", "gate": gate, "logprobs": True}
    plain = owner.generate(prompts, RequestParams(speculation="off", **common))
    drafted = owner.generate(prompts, RequestParams(speculation="on", **common))
    for row, prompt in enumerate(prompts):
        (alone,) = owner.generate([prompt], RequestParams(speculation="off", **common))[0]
        one, other = plain[row][0], drafted[row][0]
        assert one.text == alone.text == other.text
        assert one.usage.own_weights == pytest.approx(alone.usage.own_weights, abs=1e-4)
        assert one.usage.own_weights == pytest.approx(other.usage.own_weights, abs=1e-4)
        assert sum(one.usage.own_weights.values()) == pytest.approx(1.0)


def test_a_decoded_answer_scores_what_its_keys_did(owner: Ensemble) -> None:
    request = RequestParams(max_tokens=30, weights="online", logprobs=True)
    (answer,) = owner.generate(["Once upon a time"], request)[0]
    ids = [record.id for record in answer.tokens]
    if owner._ready().voices[0].vocabulary.encode(answer.text).ids == ids:
        said = sum(record.logprob or 0.0 for record in answer.tokens)
        scored = owner.score(answer.text, "Once upon a time", weights="online").logprob
        assert scored == pytest.approx(said, abs=1e-2)
    weights = {name: round(value, 3) for name, value in answer.usage.own_weights.items()}
    assert weights != {"main": 0.5, "other": 0.5}


def test_a_step_taken_back_takes_its_evidence_back(owner: Ensemble) -> None:
    request = RequestParams(max_tokens=9, weights="online", speculation="off")
    with owner.open(["Once upon a time"], request) as decoding:
        decoding.step()
        mark = decoding._loop.mark()
        before = decoding.rows[0].regard
        first = [piece.text for _ in range(3) for piece in decoding.step()]
        assert decoding.rows[0].regard != before
        decoding._loop.rollback(mark)
        assert decoding.rows[0].regard == before
        assert [piece.text for _ in range(3) for piece in decoding.step()] == first


def test_a_fusion_that_does_not_tell_is_refused(pico: Callable[..., Path]) -> None:
    members = {"main": str(pico("qwen2")), "other": str(pico("llama"))}
    llm = EnsembleLLM(members=members, fusion="unite", weights="online", max_tokens=2)
    with pytest.raises(ConfigError, match=r"fusion='unite' does not tell; use fusion='average'"):
        llm.invoke("Hi")
