"""Fusions with roles under the shipped contract, and against their papers' equations in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, VocabularyError
from langchain_ensemble.fusion import (
    Average,
    ContextAware,
    Contrastive,
    Proxy,
    get_fusion,
    needs_of,
)
from langchain_ensemble.fusion.base import Fusion, FusionContext
from langchain_ensemble.fusion.signed import RoleFusion, SignedBytesFuser
from langchain_ensemble.fusion.voices import LOG_TINY
from langchain_ensemble.roles import ROLES, places_of
from langchain_ensemble.testing import FusionContract, toy_alignment
from langchain_ensemble.testing.cases import Case, columns, random_case


def said(case: Case) -> list[Tensor]:
    """Every member's log-probabilities over union keys and END, float64."""
    return [torch.cat([d.logprobs, d.end[:, None]], -1).double() for d in case.distributions]


class TestContextAware(FusionContract):
    roles = 2

    def fusion(self) -> Fusion:
        return ContextAware("m0", "m1", strength=0.7)

    def oracle(self, case: Case) -> Tensor:
        informed, bare = said(case)
        able = informed > -torch.inf
        scores = torch.where(able, 1.7 * informed - 0.7 * bare, -torch.inf)
        return torch.softmax(scores, -1)


class TestProxy(FusionContract):
    roles = 3

    def fusion(self) -> Fusion:
        return Proxy("m0", "m2", "m1", scale=1.3)

    def oracle(self, case: Case) -> Tensor:
        base, untuned, tuned = said(case)
        able = base > -torch.inf
        return torch.softmax(torch.where(able, base + 1.3 * (tuned - untuned), -torch.inf), -1)


class TestContrastive(FusionContract):
    roles = 2
    truncates = True

    def fusion(self) -> Fusion:
        return Contrastive("m0", "m1", alpha=0.2, beta=0.8)

    def oracle(self, case: Case) -> Tensor:
        expert, amateur = said(case)
        plausible = expert.exp() >= 0.2 * expert.exp().amax(-1, keepdim=True)
        scores = torch.where(plausible, 1.8 * expert - 0.8 * amateur, -torch.inf)
        return torch.softmax(scores, -1)


class TestContrastiveEverywhere(FusionContract):
    roles = 2

    def fusion(self) -> Fusion:
        return Contrastive("m0", "m1", alpha=0.0)


NOTHING: list[tuple[Fusion, int]] = [
    (ContextAware("m0", "m1", strength=0.0), 2),
    (Contrastive("m0", "m1", alpha=0.0, beta=0.0), 2),
    (Proxy("m0", "m1", "m2", scale=0.0), 3),
]


@pytest.mark.parametrize(("fusion", "members"), NOTHING, ids=lambda x: getattr(x, "name", ""))
def test_a_strength_of_nothing_is_main_alone(fusion: Fusion, members: int) -> None:
    for seed in range(5):
        case = random_case(seed, members, one_vocabulary=True)
        got = fusion.prepare(case.context())(case.distributions, case.weights)
        main = case.distributions[0]
        torch.testing.assert_close(got.logprobs, main.logprobs, atol=1e-6, rtol=0)
        assert torch.equal(got.logprobs.argsort(stable=True), main.logprobs.argsort(stable=True))


def test_a_tuning_that_changed_nothing_is_the_base_alone() -> None:
    case = random_case(3, 3, one_vocabulary=True)
    base, tuned, _ = case.distributions
    fuser = Proxy("m0", "m1", "m2", scale=2.0).prepare(case.context())
    got = fuser([base, tuned, tuned], case.weights)
    torch.testing.assert_close(got.logprobs, base.logprobs, atol=1e-6, rtol=0)


def test_by_hand() -> None:
    """Expert .6 .3 .08, END .02; amateur .5 .1 .38, END .02; the bar is .06."""
    alignment = toy_alignment([[b"a", b"b", b"c", None]] * 2)
    context = FusionContext(alignment, lambda i: torch.zeros(1), str)
    case = random_case(0, 2, rows=1, one_vocabulary=True)
    rows = [[0.6, 0.3, 0.08, 0.0], [0.5, 0.1, 0.38, 0.0]]
    two = [
        replace(d, logprobs=torch.tensor([row]).log(), end=torch.tensor([0.02]).log(), abstain=None)
        for d, row in zip(case.distributions, rows, strict=True)
    ]
    fuser = Contrastive("m0", "m1", alpha=0.1, beta=1.0).prepare(context)
    got = columns(fuser(two, torch.tensor([[0.5, 0.5]])), 4)
    raw = torch.tensor([0.36 / 0.5, 0.09 / 0.1, 0.0064 / 0.38, 0.0, 0.0])
    torch.testing.assert_close(got, (raw / raw.sum())[None])
    assert int(got.argmax()) == 1  # "b": only the expert knows it


def test_what_a_member_cannot_say_at_all_makes_no_difference() -> None:
    case = random_case(1, 2, one_vocabulary=True)
    main, other = case.distributions
    key = int(main.logprobs[0].argmax())
    hole = other.logprobs.clone()
    hole[:, key] = -torch.inf
    as_main = other.logprobs.clone()
    as_main[:, key] = main.logprobs[:, key]
    fuser = ContextAware("m0", "m1").prepare(case.context())
    got = [
        columns(fuser([main, replace(other, logprobs=given)], case.weights), 11)
        for given in (hole, as_main)
    ]
    torch.testing.assert_close(*got)
    torch.testing.assert_close(got[0].sum(-1), torch.ones(5))


BYTES: list[tuple[RoleFusion, Callable[..., Tensor]]] = [
    (ContextAware("m0", "m1", strength=0.7), lambda a, b: 1.7 * a - 0.7 * b),
    (Proxy("m0", "m2", "m1"), lambda a, b, c: a + c - b),
    (
        Contrastive("m0", "m1", alpha=0.1),
        lambda a, b: torch.where(
            a.exp() >= 0.1 * a.exp().amax(-1, keepdim=True), 1.5 * a - 0.5 * b, -torch.inf
        ),
    ),
]


@pytest.mark.parametrize(("fusion", "oracle"), BYTES, ids=lambda x: getattr(x, "name", ""))
def test_bytes_equal_the_float64_oracle(fusion: RoleFusion, oracle: Callable[..., Tensor]) -> None:
    """Rows in which a member has no weight are main's; what main excludes stays excluded."""
    members = 3 if isinstance(fusion, Proxy) else 2
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(members, 6, 257, generator=generator) * 4
    logits[:, :, 100:] = -torch.inf
    logits[0, :, 7] = -torch.inf
    said = torch.log_softmax(logits, -1)
    weights = torch.full((6, members), 1 / members)
    weights[0], weights[0, 0] = 0.0, 1.0
    mixed = SignedBytesFuser.over_bytes(_bytes_of(fusion), said, weights)
    able = said[0].double() > -torch.inf
    expected = torch.where(able, oracle(*said.double()), -torch.inf)
    expected[0] = said[0, 0].double()
    torch.testing.assert_close(mixed.exp(), torch.softmax(expected, -1).float())
    assert not bool(mixed.isnan().any())
    nobody = SignedBytesFuser.over_bytes(
        _bytes_of(fusion), torch.full_like(said, -torch.inf), weights
    )
    assert bool((nobody == -torch.inf).all())


def _bytes_of(fusion: RoleFusion) -> SignedBytesFuser:
    """A fuser over bytes without trees, which a mix does not need."""
    fuser = object.__new__(SignedBytesFuser)
    names = ["m0", "m1", "m2"][: len(ROLES[fusion.name])]
    fuser._mix = fusion.mix
    fuser._places = places_of(fusion.name, fusion.settings(), names)
    return fuser


def test_members_say_whether_bytes_are_needed() -> None:
    one, apart = random_case(0, 2, one_vocabulary=True), random_case(0, 2)
    fusion = ContextAware("m0", "m1")
    assert not needs_of(fusion, one.alignment).paths
    assert needs_of(fusion, apart.alignment).paths
    assert needs_of(Average(), apart.alignment) == Average().needs


def test_score_of_what_contrast_excludes_is_the_floor() -> None:
    case = random_case(2, 2, scale=8.0, one_vocabulary=True)
    fuser = Contrastive("m0", "m1", alpha=0.5).prepare(case.context())
    own = case.distributions[0].logprobs.masked_fill(~case.alignment.main.own, torch.inf)
    worst = own.argmin(-1)
    assert fuser(case.distributions, case.weights).logprob_of(worst).tolist() == [-math.inf] * 5
    score = fuser.score(case.distributions, case.weights, worst)
    assert score.tolist() == pytest.approx([LOG_TINY] * 5)


def test_logits_of_other_widths_and_orders_are_compared_by_key() -> None:
    """The same keys under other ids, padded: two models of one family."""
    keys = [b"a", b"b", b"ab", None]
    told = [keys[2], None, keys[0], keys[1], None, None]
    alignment = toy_alignment([keys, told], end_ids=[[3], [5]])
    context = FusionContext(alignment, lambda i: torch.zeros(1), str)
    case = random_case(0, 2, rows=1, one_vocabulary=True)
    rows = [[0.5, 0.2, 0.2, 0.0], [0.4, 0.0, 0.1, 0.4, 0.0, 0.0]]
    two = [
        replace(d, logprobs=torch.tensor([row]).log(), end=torch.tensor([0.1]).log(), abstain=None)
        for d, row in zip(case.distributions, rows, strict=True)
    ]
    got = columns(
        ContextAware("m0", "m1", strength=1.0).prepare(context)(two, torch.full((1, 2), 0.5)), 4
    )
    raw = torch.tensor([0.25 / 0.1, 0.04 / 0.4, 0.04 / 0.4, 0.0, 0.01 / 0.1])
    torch.testing.assert_close(got, (raw / raw.sum())[None])


def test_members_of_other_vocabularies_are_refused() -> None:
    case = random_case(0, 2)
    with pytest.raises(VocabularyError, match=r"fusion='context_aware'.*5 of 10 tokens of main"):
        ContextAware("m0", "m1").prepare(case.context())
    endless = toy_alignment([[b"a", None], [b"a", None]], end_ids=[[1], []])
    with pytest.raises(VocabularyError, match="'m1' has no token that ends"):
        ContextAware("m0", "m1").prepare(FusionContext(endless, lambda i: torch.zeros(1), str))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("contrastive", "does not say which member is 'expert'"),
        ({"name": "contrastive", "expert": "m0"}, "does not say which member is 'amateur'"),
        ({"name": "contrastive", "expert": "m0", "amateur": "m0"}, "'m0' as 'expert' and as 'am"),
        ({"name": "contrastive", "expert": "m0", "amateur": "mm1"}, "Did you mean 'm1'"),
        ({"name": "proxy", "base": "m1", "tuned": "m0", "untuned": "m2"}, "give main='m1'"),
        ({"name": "contrastive", "expert": "m0", "amateur": "m1"}, "'m2' has no role"),
        ({"name": "contrastive", "alpha": 1.5}, "alpha=1.5; it must be a number in"),
        ({"name": "contrastive", "beta": -1}, "beta=-1; it must be a number of at least 0"),
        ({"name": "context_aware", "strength": float("nan")}, "strength=nan"),
        ({"name": "proxy", "scale": True}, "scale=True"),
    ],
)
def test_roles_and_numbers_that_do_not_fit_are_refused(spec: object, message: str) -> None:
    case = random_case(0, 3, one_vocabulary=True)
    with pytest.raises(ConfigError, match=message):
        get_fusion(spec).prepare(case.context())  # type: ignore[arg-type]
