"""Which union keys start with which: ranges beside a search through all keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from langchain_ensemble.vocab.alignment import align
from langchain_ensemble.vocab.union_keys import UnionKeys
from langchain_ensemble.vocab.vocabulary import Vocabulary

Vocabularies = Callable[[str], Vocabulary]
CPU = torch.device("cpu")


def test_ranges_are_those_of_a_search() -> None:
    some = [
        b"Inc",
        None,
        b"a",
        b"Incorrect",
        b"ab",
        b"abc",
        b"b",
        None,
        b"\xff",
        b"\xff\xff",
        b"aa",
    ]
    keys = UnionKeys(some)
    rank, after = keys.ranges(CPU)
    for number, key in enumerate(some):
        if key is None:
            assert rank[number] == -1
            continue
        inside = [o for o in range(len(some)) if rank[number] <= rank[o] < after[number]]
        assert inside == [
            o for o, one in enumerate(some) if one is not None and one.startswith(key)
        ]
    assert keys == some


@pytest.mark.parametrize("names", [("bl_a", "ms_uni"), ("bl_b", "ms_bpe")])
def test_members_ids_in_the_unions_order(vocabulary: Vocabularies, names: tuple[str, str]) -> None:
    found = align([(name, vocabulary(name)) for name in names])
    order = sorted(key for key in found.key_bytes if key is not None)
    for name, keys in zip(names, found.alignment.members, strict=True):
        table, ranks = vocabulary(name).token_bytes, found.key_bytes.ranks_of(keys).tolist()
        assert found.key_bytes.ranks_of(keys) is found.key_bytes.ranks_of(keys)
        for token, rank in enumerate(ranks):
            if rank >= 0:
                assert order[rank] == table[token]
        assert sorted(r for r in ranks if r >= 0) == [
            number for number, key in enumerate(order) if key in vocabulary(name).key_of
        ]
