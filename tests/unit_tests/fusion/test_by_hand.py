"""Small rows that can be checked by hand, one for each rule of average, unite and gac."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from langchain_ensemble.fusion import Average, Gac, Unite
from langchain_ensemble.fusion.average import AverageFuser
from langchain_ensemble.fusion.base import (
    Alignment,
    FusedDistribution,
    Fusion,
    FusionContext,
    MemberDistribution,
)
from langchain_ensemble.testing import toy_alignment

HALF = torch.tensor([[0.5, 0.5]])


def _context(alignment: Alignment) -> FusionContext:
    return FusionContext(alignment, lambda i: torch.zeros(1), str)


def _say(alignment: Alignment, *probs: Sequence[float], ends: Sequence[float]) -> list:
    return [
        MemberDistribution(keys.space, torch.tensor([row]).log(), torch.tensor([end]).log())
        for keys, row, end in zip(alignment.members, probs, ends, strict=True)
    ]


def _fuse(
    fusion: Fusion, alignment: Alignment, said: list, weights: Tensor = HALF
) -> FusedDistribution:
    return fusion.prepare(_context(alignment))(said, weights)


def _near(got: Tensor, expected: Sequence[float]) -> None:
    torch.testing.assert_close(got, torch.tensor([expected]), atol=1e-6, rtol=1e-5)


def test_average_spreads_what_an_auxiliary_cannot_finish() -> None:
    """It says "a"; main knows "a", "ab" and "ac": the auxiliary abstains on how it goes on."""
    alignment = toy_alignment([[b"a", b"ab", b"ac", b"b"], [b"a", b"b"]])
    said = _say(alignment, [0.1, 0.3, 0.1, 0.4], [0.6, 0.3], ends=[0.1, 0.1])
    fused = _fuse(Average(mean="arithmetic"), alignment, said)
    told = [0.6 * 0.1 / 0.5, 0.6 * 0.3 / 0.5, 0.6 * 0.1 / 0.5, 0.3]
    _near(
        fused.logprobs.exp(), [(m + t) / 2 for m, t in zip([0.1, 0.3, 0.1, 0.4], told, strict=True)]
    )
    assert float(fused.end.exp()) == pytest.approx(0.1)


def test_average_folds_what_main_lacks_onto_its_longest_prefix() -> None:
    alignment = toy_alignment([[b"a", b"ab"], [b"a", b"ab", b"abc", b"ax"]])
    said = _say(alignment, [0.5, 0.5], [0.1, 0.2, 0.3, 0.4], ends=[0.0, 0.0])
    fused = _fuse(Average(mean="arithmetic"), alignment, said, torch.tensor([[0.0, 1.0]]))
    _near(fused.logprobs.exp(), [0.1 + 0.4, 0.2 + 0.3])


def test_average_drops_and_reports_what_main_cannot_even_begin() -> None:
    alignment = toy_alignment([[b"a", b"b"], [b"a", b"z"]])
    said = _say(alignment, [0.5, 0.5], [0.2, 0.7], ends=[0.0, 0.1])
    fuser = Average(mean="arithmetic").prepare(_context(alignment))
    assert isinstance(fuser, AverageFuser)
    _near(fuser.dropped(said), [0.0, 0.7])
    fused = fuser(said, torch.tensor([[0.0, 1.0]]))
    _near(fused.logprobs.exp(), [0.2 / 0.3, 0.0])
    assert float(fused.end.exp()) == pytest.approx(0.1 / 0.3)


def test_average_of_a_member_with_nothing_left_is_the_others() -> None:
    alignment = toy_alignment([[b"a", b"b"], [b"z"]])
    said = _say(alignment, [0.3, 0.6], [1.0], ends=[0.1, 0.0])
    for mean in ("geometric", "arithmetic"):
        fused = _fuse(Average(mean=mean), alignment, said)
        _near(fused.logprobs.exp(), [0.3, 0.6])


def test_average_where_main_says_next_to_nothing_of_a_group() -> None:
    """Its proportions hold all the same, below what a float32 probability can be."""
    alignment = toy_alignment([[b"a", b"ab", b"b"], [b"a", b"b"]])
    said = _say(alignment, [0.5, 0.0, 0.5], [0.5, 0.5], ends=[0.0, 0.0])
    said[0].logprobs[0] = torch.tensor([-200.0, -200.0 - math.log(3), 0.0])
    fused = _fuse(Average(mean="arithmetic"), alignment, said)
    _near(fused.logprobs.exp(), [0.25 * 3 / 4, 0.25 / 4, 0.75])


def test_geometric_mean_on_equal_vocabularies_is_the_ordinary_one() -> None:
    alignment = toy_alignment([[b"a", b"b", b"ab"], [b"ab", b"b", b"a"]])
    said = _say(alignment, [0.2, 0.3, 0.4], [0.5, 0.1, 0.2], ends=[0.1, 0.2])
    fused = _fuse(Average(), alignment, said)
    raw = torch.tensor([0.2 * 0.2, 0.3 * 0.1, 0.4 * 0.5, 0.1 * 0.2]).sqrt()
    expected = raw / raw.sum()
    _near(torch.cat([fused.logprobs, fused.end[:, None]], -1).exp(), expected.tolist())


def test_geometric_mean_stays_finite_where_a_member_cannot_spell() -> None:
    alignment = toy_alignment([[b"a", b"q"], [b"a"]])
    said = _say(alignment, [0.5, 0.5], [1.0], ends=[0.0, 0.0])
    fused = _fuse(Average(), alignment, said)
    assert bool(torch.isfinite(fused.logprobs).all())
    assert float(fused.logprobs[0, 1]) < -40
    assert float(fused.end) == -torch.inf  # nobody can say it


def test_main_at_weight_zero_still_masks() -> None:
    alignment = toy_alignment([[b"a", b"b"], [b"a", b"b"]])
    said = _say(alignment, [1.0, 0.0], [0.4, 0.6], ends=[0.0, 0.0])
    for mean in ("geometric", "arithmetic"):
        fused = _fuse(Average(mean=mean), alignment, said, torch.tensor([[0.0, 1.0]]))
        _near(fused.logprobs.exp(), [1.0, 0.0])


def test_unite_counts_a_shared_prefix_once_in_proportion_to_the_others() -> None:
    """The second member lacks "ab" and "ac"; its 0.6 on "a" is divided as the first one says."""
    alignment = toy_alignment([[b"a", b"ab", b"ac", b"b"], [b"a", b"b"]])
    said = _say(alignment, [0.1, 0.3, 0.1, 0.4], [0.6, 0.3], ends=[0.1, 0.1])
    fused = _fuse(Unite(union_k=4), alignment, said)
    assert fused.keys is not None
    got = dict(zip(fused.keys[0].tolist(), fused.logprobs[0].exp().tolist(), strict=True))
    assert got[0] == pytest.approx((0.1 + 0.12) / 2)
    assert got[1] == pytest.approx((0.3 + 0.36) / 2)
    assert got[3] == pytest.approx((0.4 + 0.3) / 2)
    assert float(fused.end.exp()) == pytest.approx(0.1)


def test_unite_renormalises_over_the_candidates() -> None:
    alignment = toy_alignment([[b"a", b"b", b"c"], [b"a", b"b", b"c"]])
    said = _say(alignment, [0.5, 0.3, 0.1], [0.2, 0.3, 0.4], ends=[0.1, 0.1])
    fused = _fuse(Unite(union_k=1), alignment, said)
    assert fused.keys is not None
    assert fused.keys.tolist() == [[0, 2]]
    _near(fused.logprobs.exp(), [(0.5 / 0.7 + 0.2 / 0.7) / 2, (0.1 / 0.7 + 0.4 / 0.7) / 2])


def test_unite_where_the_others_give_the_candidates_next_to_nothing() -> None:
    """Main's "a" is divided in the others' proportions, however small they are."""
    alignment = toy_alignment([[b"a", b"b"], [b"ac", b"ad"]])
    said = _say(alignment, [0.4, 0.6], [0.5, 0.5], ends=[0.0, 1.0])
    said[1].logprobs[0] = -200.0  # candidates whose probability is 0 in float32
    itself = _fuse(Unite(union_k=2), alignment, said)
    assert itself.keys is not None
    assert itself.keys[0].tolist() == [0, 1, 2, 3]
    _near(itself.logprobs.exp(), [0.0, 0.3, 0.1, 0.1])
    third = toy_alignment([[b"a", b"b"], [b"ac"], [b"ad"]])
    said = [*_say(third, [0.4, 0.6], [1.0], [1.0], ends=[0.0, 1.0, 1.0])]
    said[1].logprobs[0], said[2].logprobs[0] = -200.0, -200.0
    evenly = _fuse(Unite(union_k=1), third, said, torch.tensor([[0.5, 0.25, 0.25]]))
    assert evenly.keys is not None
    assert evenly.keys[0].tolist() == [1, 2, 3]
    _near(evenly.logprobs.exp(), [0.3, 0.1, 0.1])


def test_unite_brings_no_candidates_of_members_without_weight() -> None:
    alignment = toy_alignment([[b"a", b"b"], [b"x", b"y"]])
    said = _say(alignment, [0.4, 0.6], [0.5, 0.5], ends=[0.0, 0.0])
    fused = _fuse(Unite(), alignment, said, torch.tensor([[1.0, 0.0]]))
    assert fused.keys is not None
    assert [k for k in fused.keys[0].tolist() if k >= 0] == [0, 1]


def test_unite_decides_ties_by_union_order() -> None:
    """Six keys tie for two places."""
    alignment = toy_alignment([[b"%d" % i for i in range(8)], [b"7", b"3", b"z", b"5"]])
    said = _say(alignment, [0.3] + [0.1] * 7, [0.25] * 4, ends=[0.0, 0.0])
    fused = _fuse(Unite(union_k=2), alignment, said)
    assert fused.keys is not None
    assert [k for k in fused.keys[0].tolist() if k >= 0] == [0, 1, 3, 5]


def test_unite_completes_its_score_outside_the_union() -> None:
    alignment = toy_alignment([[b"a", b"b", b"c"], [b"a", b"b", b"c"]])
    said = _say(alignment, [0.7, 0.2, 0.1], [0.9, 0.05, 0.05], ends=[0.0, 0.0])
    fuser = Unite(union_k=1).prepare(_context(alignment))
    scores = [float(fuser.score(said, HALF, torch.tensor([key])).exp()) for key in range(3)]
    assert scores == pytest.approx([0.8, 0.2 * 2 / 3, 0.2 / 3], abs=1e-6)


def test_unite_score_outside_a_nearly_full_union_is_no_rounding_noise() -> None:
    alignment = toy_alignment([[b"a", b"b", b"c"], [b"a", b"b", b"c"]])
    logits = torch.tensor([[0.0, -25.0, -30.0]])
    said = [
        MemberDistribution(keys.space, torch.log_softmax(logits, -1), torch.tensor([-torch.inf]))
        for keys in alignment.members
    ]
    score = Unite(union_k=1).prepare(_context(alignment)).score(said, HALF, torch.tensor([2]))
    assert float(score) == pytest.approx(-30.0, abs=1e-3)


def test_gac_adds_over_the_union() -> None:
    alignment = toy_alignment([[b"a", b"ab"], [b"a", b"z"]])
    said = _say(alignment, [0.4, 0.5], [0.6, 0.2], ends=[0.1, 0.2])
    fused = _fuse(Gac(), alignment, said)
    assert fused.keys is None
    _near(fused.logprobs.exp(), [0.5, 0.25, 0.1])
    assert float(fused.end.exp()) == pytest.approx(0.15)


def test_gac_gate_leaves_a_sure_main_alone() -> None:
    alignment = toy_alignment([[b"a", b"b"], [b"a", b"b"]])
    said = _say(alignment, [0.8, 0.1], [0.1, 0.8], ends=[0.1, 0.1])
    _near(_fuse(Gac(threshold=0.75), alignment, said).logprobs.exp(), [0.8, 0.1])
    _near(_fuse(Gac(threshold=0.85), alignment, said).logprobs.exp(), [0.45, 0.45])
    ending = _say(alignment, [0.1, 0.1], [0.45, 0.45], ends=[0.8, 0.1])
    assert float(_fuse(Gac(threshold=0.75), alignment, ending).end.exp()) == pytest.approx(0.8)


def test_average_says_what_main_has_no_part_of(caplog: pytest.LogCaptureFixture) -> None:
    alignment = toy_alignment([[b"a", b"b"], [b"a", b"x", b"xy"]])
    with caplog.at_level("WARNING", logger="langchain_ensemble"):
        fuser = Average().prepare(_context(alignment))
    assert "2 of member" in caplog.text
    said = _say(alignment, [0.5, 0.5], [0.4, 0.5, 0.1], ends=[0.0, 0.0])
    assert fuser.dropped(said)[0].tolist() == pytest.approx([0.0, 0.6])


@pytest.mark.parametrize("members", [2, 3])
def test_average_of_equal_vocabularies_is_what_the_long_way_gives(members: int) -> None:
    alignment = toy_alignment([[bytes([97 + i]) for i in range(24)] + [None]] * members)
    fast, slow = (Average().prepare(_context(alignment)) for _ in range(2))
    slow._equal = False
    generator = torch.Generator().manual_seed(members)
    rows = 40
    masked = torch.rand(rows, 25, generator=generator) < 0.2
    said = []
    for place, keys in enumerate(alignment.members):
        logits = 4 * torch.randn(rows, 25, generator=generator)
        own = torch.rand(rows, 25, generator=generator) < 0.1  # what it cannot say by itself
        logits = logits.masked_fill(masked | (own if place else masked), -torch.inf)
        logits[:, 3] = 0.0  # something is left
        logprobs = logits.log_softmax(-1)
        end = logprobs[:, 24].clone()
        logprobs[:, 24] = -torch.inf
        said.append(MemberDistribution(keys.space, logprobs, end))
    weights = torch.rand(rows, members, generator=generator)
    weights[:10, 0] = 0.0
    weights[10:20, 1] = 0.0
    weights = weights / weights.sum(-1, keepdim=True)
    assert fast._equal
    got, expected = fast(said, weights), slow(said, weights)
    told = torch.cat([got.logprobs, got.end[:, None]], -1)
    long = torch.cat([expected.logprobs, expected.end[:, None]], -1)
    assert torch.equal(told == -torch.inf, long == -torch.inf)
    torch.testing.assert_close(told.exp(), long.exp(), atol=1e-6, rtol=1e-5)
    assert torch.equal(told.argmax(-1), long.argmax(-1))
