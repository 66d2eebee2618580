"""Distributions: keys, END, spare ids, sparse and dense forms; names and settings of fusions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from langchain_ensemble import params
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion import FUSIONS, Average, Deepen, Gac, Unite, get_fusion
from langchain_ensemble.fusion.base import (
    FusedDistribution,
    Fusion,
    MemberDistribution,
    TokenSpace,
    member_distribution,
)
from langchain_ensemble.fusion.voices import finite_score, voices
from langchain_ensemble.testing import toy_alignment

VOCABULARY: list[bytes | None] = [b"a", b"b", b"a", None, b"ab", b"a", None, None]
"""Ids 2 and 5 spell id 0's key again; 3 is a control id; 6 and 7 end the turn."""

ALIGNMENT = toy_alignment([VOCABULARY, [b"ab", b"c"]], end_ids=[[6, 7], []])
KEYS = ALIGNMENT.main


def test_toy_alignment() -> None:
    assert KEYS.representative.tolist() == [0, 1, 0, -1, 4, 0, -1, -1]
    assert KEYS.to_union.tolist() == [0, 1, 0, -1, 4, 0, -1, -1]
    assert KEYS.own.tolist() == [True, True, False, False, True, False, False, False]
    assert ALIGNMENT.union_size == 9
    assert ALIGNMENT.common.tolist() == [4]
    other = ALIGNMENT.members[1]
    assert other.to_union.tolist() == [4, 8]
    assert other.from_union.tolist() == [-1, -1, -1, -1, 0, -1, -1, -1, 1]
    assert KEYS.longest_prefix.tolist() == [0, 1, -1, -1, 4, -1, -1, -1, -1]


def test_spare_ids_are_added_and_end_ids_pooled() -> None:
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    got = member_distribution(logits, KEYS)
    allowed = [0, 1, 2, 4, 5, 6, 7]
    probs = torch.zeros(3, 8)
    probs[:, allowed] = torch.softmax(logits[:, allowed], -1)
    torch.testing.assert_close(got.logprobs[:, 0].exp(), probs[:, [0, 2, 5]].sum(-1))
    torch.testing.assert_close(got.logprobs[:, 4].exp(), probs[:, 4])
    torch.testing.assert_close(got.end.exp(), probs[:, 6:].sum(-1))
    assert bool((got.logprobs[:, [2, 3, 5, 6, 7]] == -torch.inf).all())


def test_a_tiny_probability_is_not_lost_when_it_is_added() -> None:
    logits = torch.tensor([[-200.0, 0.0, -201.0, 0.0, -300.0, -202.0, 0.0, 0.0]])
    got = member_distribution(logits, KEYS).logprobs[0]
    expected = torch.tensor([-200.0, -201.0, -202.0]).logsumexp(0) - torch.tensor(3.0).log()
    torch.testing.assert_close(got[0], expected)
    assert float(got[4]) == pytest.approx(-300 - 1.0986, abs=1e-3)


def test_masks() -> None:
    logits = torch.zeros(2, 8)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, :] = False
    mask[1, [0, 7]] = False
    got = member_distribution(logits, KEYS, mask)
    assert got.abstain is not None
    assert got.abstain.tolist() == [True, False]
    assert bool((got.logprobs[0] == -torch.inf).all())
    assert float(got.end[0]) == -torch.inf
    torch.testing.assert_close(got.logprobs[1, 0].exp(), torch.tensor(2 / 5))
    torch.testing.assert_close(got.end[1].exp(), torch.tensor(1 / 5))
    shared = member_distribution(logits, KEYS, mask[1])
    torch.testing.assert_close(shared.logprobs[0], got.logprobs[1])


def test_sparse_and_back() -> None:
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    whole = member_distribution(logits, KEYS)
    short = whole.to_sparse(2)
    assert short.sparse
    assert short.rest is not None
    assert short.ids is not None
    assert short.to_sparse(1) is short
    total = short.logprobs.exp().sum(-1) + short.rest.exp() + short.end.exp()
    torch.testing.assert_close(total, torch.ones(4))
    again = short.to_dense(KEYS)
    assert again.to_dense(KEYS) is again
    torch.testing.assert_close(again.logprobs.exp().sum(-1) + again.end.exp(), torch.ones(4))
    listed = again.logprobs.gather(-1, short.ids)
    assert torch.equal(listed, short.logprobs)
    ids = torch.tensor([[0, 1, 4, -1]]).expand(4, -1)
    assert torch.equal(short.logprobs_at(ids, KEYS), again.logprobs_at(ids, KEYS))
    assert bool((short.logprobs_at(ids, KEYS)[:, 3] == -torch.inf).all())


def test_everything_listed_leaves_no_rest() -> None:
    whole = member_distribution(torch.zeros(1, 8), KEYS)
    sparse = whole.to_sparse(50)
    assert sparse.rest is not None
    assert float(sparse.rest[0]) == -torch.inf
    assert torch.equal(sparse.to_dense(KEYS).logprobs, whole.logprobs)


def test_top_k_without_a_rest() -> None:
    space = TokenSpace("member 'far'", 8)
    ids = torch.tensor([[0, -1]])
    logprobs = torch.tensor([[-0.1, -torch.inf]])
    far = MemberDistribution(space, logprobs, torch.tensor([-2.35]), ids)
    assert far.to_dense(KEYS).logprobs[0, 1] == -torch.inf
    assert float(far.to_dense(KEYS).logprobs[0, 0]) == pytest.approx(-0.1)


def test_logprob_of() -> None:
    dense = FusedDistribution(ALIGNMENT.space, torch.tensor([[-1.0, -2.0]] * 2), torch.zeros(2))
    assert dense.logprob_of(torch.tensor([1, 7])).tolist() == [-2.0, -torch.inf]
    keys = torch.tensor([[3, 8, -1]] * 3)
    sparse = FusedDistribution(
        ALIGNMENT.space, torch.tensor([[-1.0, -2.0, -torch.inf]] * 3), torch.zeros(3), keys
    )
    assert sparse.logprob_of(torch.tensor([8, 3, 4])).tolist() == [-2.0, -1.0, -torch.inf]


def _said(rows: int, abstain: list[bool] | None = None) -> MemberDistribution:
    return MemberDistribution(
        KEYS.space,
        torch.zeros(rows, 8),
        torch.zeros(rows),
        abstain=None if abstain is None else torch.tensor(abstain),
    )


def test_the_weight_of_who_abstains_goes_to_the_others() -> None:
    given = [_said(3), _said(3, [False, True, True]), _said(3, [False, False, True])]
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.0, 0.5, 0.5]])
    got = voices(given, weights)
    expected = torch.tensor([[0.5, 0.25, 0.25], [2 / 3, 0.0, 1 / 3], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(got, expected)


def test_scores_are_floored_only_where_main_can_say_the_key() -> None:
    main = member_distribution(torch.zeros(3, 8), KEYS, torch.arange(8) != 1)
    score = torch.full((3,), -torch.inf)
    got = finite_score(score, main, torch.tensor([0, 1, 8]), ALIGNMENT)
    assert got.tolist() == [pytest.approx(-87.3365, abs=1e-3), -torch.inf, -torch.inf]


def test_names() -> None:
    assert tuple(FUSIONS) == params.FUSIONS
    for name, kind in FUSIONS.items():
        made = get_fusion(name)
        assert isinstance(made, kind)
        assert isinstance(made, Fusion)
        assert made.name == name
        assert get_fusion({"name": name, **made.settings()}).settings() == made.settings()


def test_settings_by_name() -> None:
    assert get_fusion({"name": "unite", "union_k": 20}) == Unite(union_k=20)
    assert get_fusion({"name": "average", "mean": "arithmetic"}) == Average(mean="arithmetic")
    assert get_fusion({"name": "gac", "threshold": 0.5}) == Gac(threshold=0.5)
    given: dict[str, Any] = {"name": "deepen", "anchors": [3, 1], "search_lr": {"m": 0.1}}
    assert get_fusion(given) == Deepen(anchors=(3, 1), search_lr={"m": 0.1})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("depen", r"unknown fusion 'depen'\. Did you mean 'deepen'\?"),
        ({"union_k": 3}, "unknown fusion None"),
        ({"name": "unite", "union_top_k": 3}, r"fusion='unite' 'union_top_k'.*'union_k'"),
        ({"name": "unite", "union_k": 0}, "union_k=0"),
        ({"name": "unite", "union_k": True}, "union_k=True"),
        ({"name": "average", "mean": "harmonic"}, "unknown mean.*'harmonic'"),
        ({"name": "gac", "threshold": 1.5}, r"threshold=1\.5"),
    ],
)
def test_unknown_names_and_bad_values(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_fusion(spec)
