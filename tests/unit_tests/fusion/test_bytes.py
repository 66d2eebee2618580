"""The byte-level fuser on random vocabularies: its step's choices as a distribution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion import Bytes
from langchain_ensemble.fusion.base import Fuser
from langchain_ensemble.testing.cases import Case, columns, random_case, take_rows
from langchain_ensemble.vocab.byte_trie import tree_of


def union_bytes(case: Case) -> list[bytes | None]:
    """The bytes of every union key, read from who has it."""
    found: list[bytes | None] = [None] * case.alignment.union_size
    for keys, table in zip(case.alignment.members, case.vocabularies, strict=True):
        for token, key in enumerate(keys.to_union.tolist()):
            if key >= 0 and int(keys.representative[token]) == token:
                found[key] = table[token]
    return found


def prepared(case: Case, mean: str | float = "geometric") -> Fuser:
    tries = []
    for keys, table in zip(case.alignment.members, case.vocabularies, strict=True):
        own = keys.own.tolist()
        tries.append(tree_of([b if own[n] else None for n, b in enumerate(table)]))
    union = tree_of(union_bytes(case))
    return Bytes(mean=mean).prepare(replace(case.context(), tries=tries, union_trie=union))


def fused(case: Case, mean: str | float = "geometric") -> torch.Tensor:
    got = prepared(case, mean)(case.distributions, case.weights)
    return columns(got, case.alignment.union_size)


@pytest.mark.parametrize("mean", ["geometric", "arithmetic", "harmonic", "min", "max", 2.0])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_choices_are_a_distribution_in_which_none_begins_another(
    members: int, mean: str | float
) -> None:
    for seed in range(3):
        case = random_case(seed, members, scale=4.0)
        got = prepared(case, mean)(case.distributions, case.weights)
        total = columns(got, case.alignment.union_size).sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=2e-5, rtol=0)
        table = union_bytes(case)
        assert got.keys is not None
        for row in got.keys.tolist():
            named = [key for key in row if key >= 0]
            assert named == sorted(set(named))
            said = [table[key] or b"" for key in named]
            assert not any(a != b and b.startswith(a) for a in said for b in said)


def test_first_bytes_are_the_mean_of_the_members() -> None:
    for seed in range(3):
        case = random_case(seed, 2)
        said = torch.zeros(2, len(case.weights), 257, dtype=torch.float64)
        tables = zip(case.distributions, case.vocabularies, strict=True)
        for member, (one, table) in enumerate(tables):
            for token, key in enumerate(table):
                if key:
                    said[member, :, key[0]] += one.logprobs[:, token].double().exp()
            said[member, :, 256] = one.end.double().exp()
        expected = (case.weights.double().T[..., None] * said.log().clamp_min(-87.3)).sum(0).exp()
        expected[(said == 0).all(0)] = 0
        expected = expected / expected.sum(-1, keepdim=True)
        got = fused(case)
        first = torch.zeros(len(got), 257)
        for key, data in enumerate(union_bytes(case)):
            if data:
                first[:, data[0]] += got[:, key]
        first[:, 256] = got[:, -1]
        torch.testing.assert_close(first, expected.float(), atol=2e-5, rtol=1e-4)


def test_order_rows_and_members_without_weight() -> None:
    case = random_case(5, 3)
    whole, fuser = fused(case), prepared(case)
    size = case.alignment.union_size
    for row in range(len(case.weights)):
        one = [take_rows(d, slice(row, row + 1)) for d in case.distributions]
        got = columns(fuser(one, case.weights[row : row + 1]), size)
        torch.testing.assert_close(got, whole[row : row + 1])
    weights = torch.tensor([0.3, 0.7, 0.0]).expand_as(case.weights)
    absent = columns(fuser([*case.distributions[:2], None], weights), size)
    torch.testing.assert_close(columns(fuser(case.distributions, weights), size), absent)


def test_without_trees_it_says_what_is_needed() -> None:
    case = random_case(0, 2)
    with pytest.raises(ConfigError, match="trees of keys"):
        Bytes().prepare(case.context())
