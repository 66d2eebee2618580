from __future__ import annotations

from collections.abc import Callable

import pytest

from langchain_ensemble.vocab.sorted_keys import SortedKeys
from langchain_ensemble.vocab.vocabulary import Vocabulary

Vocabularies = Callable[[str], Vocabulary]


@pytest.mark.parametrize("name", ["bl_a", "ms_uni", "babyllama-361", "gpt2"])
def test_ranges_and_positions_are_those_of_a_search(vocabulary: Vocabularies, name: str) -> None:
    v = vocabulary(name)
    sorted_keys = SortedKeys(v)
    keys = sorted(v.key_of)
    assert [v.token_bytes[i] for i in sorted_keys.order.tolist()] == keys
    prefixes = [
        b"",
        b" ",
        b"a",
        b" t",
        b" the",
        b"\xff",
        b"\xff\xff",
        b"\xc3",
        b"\xf0\x9f",
        b"zzzz",
    ]
    for prefix in [*prefixes, *keys[:: len(keys) // 50 + 1]]:
        start, end = sorted_keys.range(prefix)
        found = [key for key in keys if key.startswith(prefix)]
        assert keys[start:end] == found
        position = sorted_keys.position(prefix)
        assert position == (keys.index(prefix) if prefix in keys else None)


def test_control_tokens_and_doubles_are_no_keys(vocabulary: Vocabularies) -> None:
    v = vocabulary("llama-2")
    order = SortedKeys(v).order.tolist()
    assert len(order) == len(set(order)) == 32_000 - 3 - 96
    assert not {0, 1, 2} & set(order)
