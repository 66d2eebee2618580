"""The rules of gates beside loops over every key's bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_ensemble.decoding.gate_rules import (
    agreement,
    apart,
    mixed,
    rows_of,
    sharpened,
    sure,
)
from langchain_ensemble.fusion.base import FusedDistribution, MemberDistribution, TokenSpace
from langchain_ensemble.vocab.union_keys import UnionKeys

CPU = torch.device("cpu")
MAIN = [b"Inc", b"Yes", b"In", b"N", b"No", b" no", None]
OTHER = [b"Incorrect", b"In", b"Yes", b"Y", b"No way", b"N"]
UNION = UnionKeys([*MAIN, b"Incorrect", b"No way", b"Y"])


def said(probs: Sequence[float], end: float) -> MemberDistribution:
    values = torch.tensor([list(probs)], dtype=torch.float32)
    whole = float(values.sum()) + end
    return MemberDistribution(
        TokenSpace("member", len(probs)), (values / whole).log(), torch.tensor([end / whole]).log()
    )


def ranks() -> list[Tensor]:
    rank, _ = UNION.ranges(CPU)
    place = {key: number for number, key in enumerate(UNION) if key is not None}
    return [
        torch.tensor([-1 if key is None else int(rank[place[key]]) for key in keys])
        for keys in (MAIN, OTHER)
    ]


def naive_agreement(
    members: Sequence[MemberDistribution], weights: Sequence[float], tables: Any
) -> float:
    values = members[0].logprobs[0].tolist()
    best = values.index(max(values))
    if float(members[0].end[0]) > values[best]:
        return sum(w * math.exp(float(m.end[0])) for w, m in zip(weights, members, strict=True))
    return sum(
        weight * math.exp(logprob)
        for weight, member, table in zip(weights, members, tables, strict=True)
        for key, logprob in zip(table, member.logprobs[0].tolist(), strict=True)
        if key is not None and key.startswith(tables[0][best])
    )


def together(*members: MemberDistribution, weights: Sequence[float] = (0.5, 0.5)) -> float:
    rank, after = UNION.ranges(CPU)
    got = agreement(members, torch.tensor([list(weights)]), ranks(), rank, after)
    assert float(got) == pytest.approx(
        naive_agreement(members, weights, (MAIN, OTHER)), rel=1e-5, abs=1e-7
    )
    return float(got)


def test_inc_and_incorrect_are_no_disagreement() -> None:
    main = said([8, 1, 0.5, 0, 0, 0, 0], 0.5)
    assert together(main, said([9, 0.2, 0.5, 0, 0, 0], 0.3)) > 0.8
    assert together(main, said([0.2, 0.3, 9, 0.2, 0, 0], 0.3)) < 0.45
    # a shorter key is no agreement yet: it may go on otherwise
    assert together(main, said([0, 9, 0.5, 0, 0, 0], 0.3)) < 0.45
    # main's own longer keys count too
    assert together(said([0, 0, 0, 4, 3, 1, 0], 2), said([0, 0, 0, 0, 9, 0], 1)) == pytest.approx(
        0.5 * 0.7 + 0.5 * 0.9
    )


def test_the_end_agrees_with_the_end_only() -> None:
    ends = said([1, 1, 0, 0, 0, 0, 0], 8)
    assert together(ends, said([1, 0, 0, 0, 0, 0], 9)) == pytest.approx(0.85)
    assert together(ends, said([9, 0, 0, 0, 0, 0], 1)) == pytest.approx(0.45)
    assert together(said([8, 0, 0, 0, 0, 0, 0], 2), said([0, 0, 1, 0, 0, 0], 9)) < 0.5


def test_a_silent_member_is_not_read() -> None:
    main, nothing = said([8, 1, 1, 0, 0, 0, 0], 0.5), said([1, 0, 0, 0, 0, 0], 0)
    broken = MemberDistribution(
        nothing.space, torch.full_like(nothing.logprobs, torch.nan), nothing.end
    )
    rank, after = UNION.ranges(CPU)
    got = agreement([main, broken], torch.tensor([[1.0, 0.0]]), ranks(), rank, after)
    assert float(got) == pytest.approx(8 / 10.5)


def test_random_rows_are_those_of_the_loop() -> None:
    dice = torch.Generator().manual_seed(3)
    for _ in range(60):
        rows = [torch.rand(len(keys), generator=dice) ** 6 for keys in (MAIN, OTHER)]
        ends = torch.rand(2, generator=dice) ** 6
        weight = float(torch.rand(1, generator=dice))
        rows[0][-1] = 0.0
        members = [said(row.tolist(), float(e)) for row, e in zip(rows, ends, strict=True)]
        together(*members, weights=(weight, 1 - weight))


def test_sure_counts_the_end_and_an_abstaining_main_never_is() -> None:
    assert sure(said([4, 6, 0, 0, 0, 0, 0], 0), 0.6).tolist() == [True]
    assert sure(said([4, 6, 0, 0, 0, 0, 0], 1), 0.6).tolist() == [False]
    assert sure(said([1, 2, 0, 0, 0, 0, 0], 7), 0.6).tolist() == [True]
    empty = said([1, 0, 0, 0, 0, 0, 0], 0)
    mute = MemberDistribution(
        empty.space, torch.full_like(empty.logprobs, -torch.inf), torch.tensor([-torch.inf])
    )
    assert sure(mute, 1e-30).tolist() == [False]


def test_a_member_without_a_say_is_not_asked_where_it_stands() -> None:
    one = said([1, 1, 1, 1, 1, 1, 0], 1)
    mute = MemberDistribution(one.space, one.logprobs, one.end, abstain=torch.tensor([True]))
    low, high = torch.tensor([0.2]), torch.tensor([0.9])
    assert apart([one, one, one], [None, high, low], one.end).tolist() == [True]
    assert apart([one, one, mute], [None, high, low], one.end).tolist() == [False]
    assert apart([one, one, one], [None, None, high], one.end).tolist() == [False]


def naive_sharpened(values: dict[bytes, float], end: float) -> tuple[dict[bytes, float], float]:
    if max(*values.values(), end) >= 0.5:
        return values, end
    got = {
        key: sum(p for other, p in values.items() if other.startswith(key)) if own > 0.1 else own
        for key, own in values.items()
    }
    total = sum(got.values()) + end
    return {key: p / total for key, p in got.items()}, end / total


def fused_of(values: dict[bytes, float], end: float, sparse: bool) -> FusedDistribution:
    space = TokenSpace("union", len(UNION))
    places = {key: number for number, key in enumerate(UNION) if key is not None}
    dense = torch.zeros(1, len(UNION))
    for key, p in values.items():
        dense[0, places[key]] = p
    if not sparse:
        return FusedDistribution(space, dense.log(), torch.tensor([end]).log())
    keys = sorted(places[key] for key in values)
    named = torch.tensor([[*keys, -1, -1]])
    columns = torch.cat([dense[:, keys], torch.zeros(1, 2)], -1)
    return FusedDistribution(space, columns.log(), torch.tensor([end]).log(), named)


@pytest.mark.parametrize("sparse", [False, True])
def test_sharpening_is_the_loops(sparse: bool) -> None:
    rank, after = UNION.ranges(CPU)
    dice = torch.Generator().manual_seed(5)
    changed = 0
    names = [key for key in UNION if key is not None]
    for _ in range(80):
        chosen = [n for n in names if float(torch.rand(1, generator=dice)) < 0.7] or names[:2]
        numbers = (torch.rand(len(chosen) + 1, generator=dice) ** 3).double()
        *probs, end = (numbers / numbers.sum()).tolist()
        values = dict(zip(chosen, probs, strict=True))
        before = fused_of(values, end, sparse)
        got = sharpened(before, torch.tensor([True]), rank, after)
        expected, ended = naive_sharpened(values, end)
        for key, p in expected.items():
            place = torch.tensor([UNION.index(key)])
            assert math.exp(float(got.logprob_of(place))) == pytest.approx(p, rel=1e-4, abs=1e-7)
        assert float(got.end.exp()) == pytest.approx(ended, rel=1e-4, abs=1e-7)
        whole = float(got.logprobs.exp().sum() + got.end.exp())
        assert whole == pytest.approx(1.0, abs=1e-5)
        changed += expected != values
        same = sharpened(before, torch.tensor([False]), rank, after)
        assert torch.equal(same.logprobs, before.logprobs)
    assert 10 < changed < 80


@pytest.mark.parametrize("sparse", [False, True])
def test_mixed_rows_keep_their_bits(sparse: bool) -> None:
    main = said([8, 1, 1, 0, 0, 0, 0], 0.5)
    main = rows_of(main, torch.tensor([0, 0, 0]))
    one = fused_of({b"Inc": 0.3, b"Incorrect": 0.4, b"Y": 0.1}, 0.2, sparse)
    keys = None if one.keys is None else one.keys.expand(2, -1)
    two = FusedDistribution(one.space, one.logprobs.expand(2, -1), one.end.expand(2), keys)
    keys = None if one.keys is None else one.keys.expand(3, -1)
    all_three = FusedDistribution(one.space, one.logprobs.expand(3, -1), one.end.expand(3), keys)
    picked = mixed(main, two, torch.tensor([0, 2]))
    masked = mixed(main, all_three, torch.tensor([True, False, True]))
    assert torch.equal(picked.logprobs, masked.logprobs)
    assert torch.equal(picked.end, masked.end)
    assert torch.equal(picked.logprobs[1, : len(MAIN)], main.logprobs[1])
    for place in range(len(UNION)):
        target = torch.tensor([place])
        assert float(picked.logprobs[0, place]) == float(one.logprob_of(target))


def test_real_keys(shared: Path) -> None:
    """Prefix mass over two real vocabularies, by bytes, for every way main may begin a word."""
    from transformers import AutoTokenizer

    from langchain_ensemble.vocab.alignment import align
    from langchain_ensemble.vocab.vocabulary import Vocabulary

    vocabularies = []
    for name in ("gpt2", "llama-2"):
        tokenizer = AutoTokenizer.from_pretrained(str(shared / "tokenizers" / name))
        vocabularies.append((name, Vocabulary(tokenizer, width=len(tokenizer))))
    found = align(vocabularies)
    rank, after = found.key_bytes.ranges(CPU)
    own = [found.key_bytes.ranks_of(keys) for keys in found.alignment.members]
    tables = [v.token_bytes for _, v in vocabularies]
    dice = torch.Generator().manual_seed(1)
    for text in (b"Inc", b" the", b"\xe3"):
        members = []
        for place, keys in enumerate(found.alignment.members):
            logits = torch.randn(1, keys.width, generator=dice)
            if place == 0:
                logits[0, found.key_of[text]] = 20.0
            logprobs = torch.log_softmax(logits.masked_fill(~keys.own, -torch.inf), -1)
            members.append(MemberDistribution(keys.space, logprobs, torch.tensor([-torch.inf])))
        got = agreement(members, torch.tensor([[0.25, 0.75]]), own, rank, after)
        theirs = sum(
            math.exp(p)
            for key, p in zip(tables[1], members[1].logprobs[0].double().tolist(), strict=True)
            if key is not None and key.startswith(text)
        )
        ours = sum(
            math.exp(p)
            for key, p in zip(tables[0], members[0].logprobs[0].double().tolist(), strict=True)
            if key is not None and key.startswith(text)
        )
        assert float(got) == pytest.approx(0.25 * ours + 0.75 * theirs, rel=1e-4)
