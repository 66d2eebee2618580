"""How far voices are apart: laws of the divergence, and what "the same" means across tokenizers."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from langchain_ensemble.decoding.apart import UNKNOWN, disagreement, divergence, outcomes_of
from langchain_ensemble.fusion.base import Alignment, MemberDistribution, member_distribution
from langchain_ensemble.testing.alignments import toy_alignment
from langchain_ensemble.testing.cases import random_vocabulary

INF = math.inf
SEEDS = st.integers(0, 2**31)


def masses(seed: int, voices: int, rows: int, size: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sharp = 0.1 + 8 * torch.rand(voices, generator=generator)
    return [
        torch.softmax(s * torch.randn(rows, size, generator=generator), -1) for s in sharp.tolist()
    ]


def shares(seed: int, voices: int, rows: int) -> Tensor:
    drawn = torch.rand(rows, voices, generator=torch.Generator().manual_seed(seed + 1)) + 1e-3
    return drawn / drawn.sum(-1, keepdim=True)


def by_hand(said: list[list[float]], weights: list[float]) -> float:
    """The textbook's formula in float64: entropy of the mixture less the mean entropy."""

    def entropy(p: list[float]) -> float:
        return -math.fsum(x * math.log(x) for x in p if x > 0)

    mixed = [math.fsum(w * p[c] for w, p in zip(weights, said, strict=True)) for c in range(9)]
    mean = math.fsum(w * entropy(p) for w, p in zip(weights, said, strict=True))
    return (entropy(mixed) - mean) / entropy(weights)


@given(SEEDS, st.integers(2, 4))
def test_it_is_the_textbook_s_number_in_the_unit_interval(seed: int, voices: int) -> None:
    said, weights = masses(seed, voices, 3), shares(seed, voices, 3)
    found = divergence(said, weights)
    for row in range(3):
        expected = by_hand([p[row].double().tolist() for p in said], weights[row].tolist())
        assert 0 <= float(found[row]) <= 1
        assert float(found[row]) == pytest.approx(expected, abs=2e-5)


@given(SEEDS, st.integers(2, 4))
def test_the_order_of_voices_does_not_matter_and_a_batch_is_its_rows(
    seed: int, voices: int
) -> None:
    said, weights = masses(seed, voices, 3), shares(seed, voices, 3)
    found = divergence(said, weights)
    order = torch.randperm(voices, generator=torch.Generator().manual_seed(seed)).tolist()
    torch.testing.assert_close(
        divergence([said[i] for i in order], weights[:, order]), found, atol=1e-6, rtol=1e-5
    )
    alone = [divergence([p[r : r + 1] for p in said], weights[r : r + 1]) for r in range(3)]
    torch.testing.assert_close(torch.cat(alone), found, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5)])
def test_equal_voices_are_zero_apart_and_strangers_one(weights: tuple[float, ...]) -> None:
    told = torch.tensor([weights])
    count = len(weights)
    same = masses(3, 1, 1) * count
    assert float(divergence(same, told)) == pytest.approx(0.0, abs=1e-6)
    strangers = [torch.nn.functional.one_hot(torch.tensor([i]), 9).float() for i in range(count)]
    assert float(divergence(strangers, told)) == pytest.approx(1.0, abs=1e-6)


def test_one_voice_is_nothing_to_compare() -> None:
    said = masses(1, 2, 2)
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    found = divergence(said, weights)
    assert float(found[0]) == UNKNOWN
    assert float(found[1]) >= 0


# keys


def step(
    alignment: Alignment, rows: list[dict[str, float]], tables: list[list[bytes | None]]
) -> list[MemberDistribution]:
    """Distributions of one row from the probabilities of some texts ("": END)."""
    made = []
    for said, table, keys in zip(rows, tables, alignment.members, strict=True):
        logits = torch.full((1, len(table)), -INF)
        for text, p in said.items():
            place = len(table) - 1 if text == "" else table.index(text.encode())
            logits[0, place] = math.log(p)
        made.append(member_distribution(logits, keys))
    return made


def voices(alignment: Alignment) -> list[Any]:
    one = torch.ones(1, dtype=torch.bool)
    return [SimpleNamespace(keys=keys, allowed=one) for keys in alignment.members]


COARSE: list[bytes | None] = [b"P", b"Paris", b"L", b"Lima", b"x", None]
FINE: list[bytes | None] = [b"P", b"Par", b"L", b"is", b"x", None]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("coarse", "fine", "expected"),
    [
        ({"Paris": 1.0}, {"Par": 1.0}, 0.0),  # one city
        ({"Paris": 1.0}, {"P": 1.0}, 0.0),
        ({"Paris": 0.5, "Lima": 0.5}, {"Par": 0.5, "L": 0.5}, 0.0),
        ({"Lima": 1.0}, {"Par": 1.0}, 1.0),  # two
        ({"": 1.0}, {"": 1.0}, 0.0),
        ({"": 1.0}, {"x": 1.0}, 1.0),
    ],
)
def test_tokenizers_are_no_disagreement(
    coarse: dict[str, float], fine: dict[str, float], expected: float, flip: bool
) -> None:
    tables, said = [COARSE, FINE], [coarse, fine]
    if flip:
        tables, said = tables[::-1], said[::-1]
    alignment = toy_alignment(tables)
    told = step(alignment, said, tables)
    weights = torch.tensor([[0.5, 0.5]])
    found = disagreement(voices(alignment), told, weights, [None, None])
    assert float(found) == pytest.approx(expected, abs=1e-6)


@given(SEEDS, st.integers(2, 4))
def test_what_all_say_is_the_longest_key_that_all_have(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tables = [random_vocabulary(generator) for _ in range(count)]
    alignment = toy_alignment(tables)
    outcomes = outcomes_of(alignment.members)
    shared = set.intersection(*({key for key in table if key is not None} for table in tables))

    def longest(key: bytes) -> bytes:
        return max((s for s in shared if key.startswith(s)), key=len, default=b"")

    named: dict[bytes, int] = {}
    for table, columns in zip(tables, outcomes.places, strict=True):
        for key, column in zip(table, columns.tolist(), strict=True):
            if key is None:
                assert column == outcomes.size - 1
            else:
                assert named.setdefault(longest(key), column) == column
    assert len(set(named.values())) == len(named) == outcomes.size - 2


def test_one_vocabulary_is_compared_key_by_key() -> None:
    tables = [COARSE, COARSE]
    alignment = toy_alignment(tables)
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, len(COARSE), generator=generator) for _ in range(2)]
    told = [member_distribution(x, k) for x, k in zip(logits, alignment.members, strict=True)]
    weights = torch.tensor([[0.3, 0.7]]).expand(4, -1)
    found = disagreement(voices(alignment), told, weights, [None, None])
    plain = divergence([torch.softmax(x, -1) for x in logits], weights)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)


HALF_OPEN = 0.75 * -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(2)
"""Strangers of equal weight, of which one ends a token with probability 1/2."""


@given(SEEDS, st.integers(2, 4))
def test_open_boundaries_keep_it_in_the_unit_interval(seed: int, voices: int) -> None:
    said, weights = masses(seed, voices, 3), shares(seed, voices, 3)
    ends = torch.rand(3, voices, generator=torch.Generator().manual_seed(seed + 2))
    strangers = [
        torch.nn.functional.one_hot(torch.tensor([i] * 3), 9).float() for i in range(voices)
    ]
    for told in (said, strangers):
        found = divergence(told, weights, ends)
        assert bool(((found >= 0) & (found <= 1)).all())
        raw = divergence(told, weights, torch.ones_like(ends))
        torch.testing.assert_close(raw, divergence(told, weights))
    left = weights * ends
    bound = left.sum(-1) * torch.special.entr(left / left.sum(-1, keepdim=True)).sum(-1)
    exact = bound / torch.special.entr(weights).sum(-1)
    torch.testing.assert_close(divergence(strangers, weights, ends), exact, atol=1e-5, rtol=1e-4)


def test_open_boundaries_count_less_and_closed_ones_not_at_all() -> None:
    tables = [COARSE, FINE]
    alignment = toy_alignment(tables)
    told = step(alignment, [{"Lima": 1.0}, {"Par": 1.0}], tables)
    base = 0.5
    found = []
    for c in (1.0, 0.5, 1e-4, 0.0):
        weights = torch.tensor([[1 - base * c, base * c]])
        kept = disagreement(voices(alignment), told, weights, [None, torch.tensor([c])])
        found.append(float(kept))
    assert found[0] == pytest.approx(1.0, abs=1e-6)
    assert found[1] == pytest.approx(HALF_OPEN, abs=1e-6)
    assert 0 < found[2] < 2e-3
    assert found[3] == UNKNOWN


def test_voices_followed_byte_by_byte_count_as_far_as_they_end_a_token() -> None:
    """Main may stand inside a token of its own; then there is less to compare, or nothing."""
    tables = [COARSE, FINE]
    alignment = toy_alignment(tables)
    told = step(alignment, [{"Lima": 1.0}, {"Par": 1.0}], tables)
    along = [replace(one, paths=cast(Any, object())) for one in told]
    weights = torch.tensor([[0.5, 0.5]])
    found = [
        float(disagreement(voices(alignment), along, weights, [torch.tensor([c]), None]))
        for c in (1.0, 0.5, 0.0)
    ]
    assert found == [pytest.approx(1.0, abs=1e-6), pytest.approx(HALF_OPEN, abs=1e-6), UNKNOWN]


def test_a_voice_that_abstains_is_left_out() -> None:
    tables = [COARSE, FINE, FINE]
    alignment = toy_alignment(tables)
    told = step(alignment, [{"Lima": 1.0}, {"L": 1.0}, {}], tables)
    weights = torch.tensor([[0.5, 0.5, 0.0]])
    assert bool(told[2].abstain is not None and told[2].abstain.all())
    found = disagreement(voices(alignment), told, weights, [None] * 3)
    assert float(found) == pytest.approx(0.0, abs=1e-6)
