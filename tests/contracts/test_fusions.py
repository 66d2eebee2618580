"""Our own fusions, and one that a user might write, under the shipped contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from langchain_ensemble.fusion import Average, Deepen, Gac, Unite
from langchain_ensemble.fusion.base import (
    FusedDistribution,
    Fuser,
    Fusion,
    FusionContext,
    MemberDistribution,
    Needs,
)
from langchain_ensemble.testing import FusionContract
from langchain_ensemble.testing.cases import Case, columns, random_case
from tests.contracts import oracles


class TestGeometricAverage(FusionContract):
    def fusion(self) -> Fusion:
        return Average()

    def oracle(self, case: Case) -> Tensor:
        return oracles.average(case, "geometric")


class TestArithmeticAverage(FusionContract):
    def fusion(self) -> Fusion:
        return Average(mean="arithmetic")

    def oracle(self, case: Case) -> Tensor:
        return oracles.average(case, "arithmetic")


class TestGac(FusionContract):
    def fusion(self) -> Fusion:
        return Gac()

    def oracle(self, case: Case) -> Tensor:
        return oracles.gac(case)


class TestUnite(FusionContract):
    truncates = True

    def fusion(self) -> Fusion:
        return Unite(union_k=3)

    def oracle(self, case: Case) -> Tensor:
        return oracles.unite(case, 3)


class TestUniteWholeVocabulary(FusionContract):
    truncates = True

    def fusion(self) -> Fusion:
        return Unite(union_k=100)

    def oracle(self, case: Case) -> Tensor:
        return oracles.unite(case, 100)


class TestDeepenDense(FusionContract):
    def fusion(self) -> Fusion:
        return Deepen(anchors=4, dense=True)

    def oracle(self, case: Case) -> Tensor:
        return oracles.deepen(case, _four_anchors(case))


class TestDeepenWholeSupport(FusionContract):
    """A support that holds every token leaves no tail: the dense search by another path."""

    def fusion(self) -> Fusion:
        return Deepen(anchors=4, dense=False, support_mass=1.0)

    def oracle(self, case: Case) -> Tensor:
        return oracles.deepen(case, _four_anchors(case))


class TestDeepenSmallSupport(FusionContract):
    def fusion(self) -> Fusion:
        return Deepen(anchors=4, dense=False, support_cap=3, search_steps=10, search_lr=0.5)


def _four_anchors(case: Case) -> list[int]:
    common = case.alignment.common.tolist()
    return [common[len(common) * n // 4] for n in range(4)]


@dataclass(frozen=True)
class Loudest:
    """A user's own fusion: the member whose best key is surest speaks alone."""

    name: ClassVar[str] = "loudest"

    @property
    def needs(self) -> Needs:
        return Needs(logprobs="dense")

    def settings(self) -> dict[str, Any]:
        return {}

    def prepare(self, context: FusionContext) -> Fuser:
        return LoudestFuser(context)


class LoudestFuser:
    def __init__(self, context: FusionContext) -> None:
        self._alignment = context.alignment

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        main = distributions[0]
        assert main is not None
        size = self._alignment.union_size
        wide = main.logprobs.new_full((len(main.end), size), -torch.inf)
        end, sure = main.end.clone(), torch.full_like(main.end, -torch.inf)
        for i, (one, keys) in enumerate(zip(distributions, self._alignment.members, strict=True)):
            if one is None:
                continue
            best = torch.maximum(one.logprobs.amax(-1), one.end)
            louder = (best > sure) & (weights[:, i] > 0)
            sure = torch.where(louder, best, sure)
            ids = keys.own.nonzero()[:, 0]
            spoken = torch.full_like(wide, -torch.inf)
            spoken[:, keys.to_union[ids]] = one.logprobs[:, ids]
            wide = torch.where(louder[:, None], spoken, wide)
            end = torch.where(louder, one.end, end)
        return FusedDistribution(self._alignment.space, wide, end)

    def score(
        self,
        distributions: Sequence[MemberDistribution | None],
        weights: Tensor,
        targets: Tensor,
    ) -> Tensor:
        return self(distributions, weights).logprob_of(targets).clamp_min(-87.0)


class TestAUsersOwnFusion(FusionContract):
    def fusion(self) -> Fusion:
        return Loudest()


seeds = st.integers(min_value=0, max_value=2**31)
scales = st.sampled_from([0.5, 2.0, 6.0, 20.0, 40.0])


@given(seed=seeds, members=st.integers(2, 4), scale=scales)
def test_average_conserves_mass_and_equals_its_oracle(
    seed: int, members: int, scale: float
) -> None:
    case = random_case(seed, members, rows=3, scale=scale)
    for mean in ("arithmetic", "geometric"):
        got = _fused(Average(mean=mean), case)
        torch.testing.assert_close(
            got,
            oracles.average(case, mean).float(),
            atol=2e-5,
            rtol=0,
        )


@given(seed=seeds, members=st.integers(2, 4), scale=scales, union_k=st.integers(1, 12))
def test_unite_equals_its_oracle(seed: int, members: int, scale: float, union_k: int) -> None:
    case = random_case(seed, members, rows=3, scale=scale)
    got = _fused(Unite(union_k=union_k), case)
    torch.testing.assert_close(got, oracles.unite(case, union_k).float(), atol=2e-5, rtol=0)


@settings(max_examples=25)
@given(seed=seeds, scale=scales, union_k=st.integers(1, 6))
def test_unite_scores_sum_to_one_over_what_main_and_the_union_can_say(
    seed: int, scale: float, union_k: int
) -> None:
    case = random_case(seed, 2, rows=2, scale=scale)
    fuser = Unite(union_k=union_k).prepare(case.context())
    fused = fuser(case.distributions, case.weights)
    scores = [
        fuser.score(case.distributions, case.weights, torch.tensor([key, key])).exp()
        for key in range(case.alignment.union_size)
    ]
    keys = torch.stack(scores, -1).sum(-1)
    # END inside the union has its share of m; outside it there is none.
    best = fused.logprobs.argmax(-1)
    assert fused.keys is not None
    chosen = fused.keys.gather(-1, best[:, None])[:, 0]
    inside = fuser.score(case.distributions, case.weights, chosen) - fused.logprob_of(chosen)
    total = keys + (fused.end + inside).exp()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)


def _fused(fusion: Fusion, case: Case) -> Tensor:
    got = fusion.prepare(case.context())(case.distributions, case.weights)
    return columns(got, case.alignment.union_size)
