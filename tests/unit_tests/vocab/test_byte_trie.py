"""The tree of keys against looking at every key, and its masses against sums."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from langchain_ensemble.store import Store
from langchain_ensemble.vocab.byte_trie import ByteTrie, tree_of
from langchain_ensemble.vocab.vocabulary import Vocabulary


@pytest.fixture(scope="module", params=["stories260K", "babyllama-361"])
def vocabulary(shared: Path, request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary(AutoTokenizer.from_pretrained(shared / "models" / request.param))


def test_every_prefix_of_a_key(vocabulary: Vocabulary) -> None:
    tree = ByteTrie(vocabulary)
    keys = sorted(vocabulary.key_of)
    rows = (8 * torch.randn(3, len(keys), generator=torch.Generator().manual_seed(0))).log_softmax(
        -1
    )
    masses = tree.trie.masses(rows)
    for row in range(3):
        torch.testing.assert_close(tree.trie.masses(rows[row : row + 1])[0], masses[row])
    for prefix in {key[:n] for key in keys for n in range(len(key) + 1)}:
        below = [n for n, key in enumerate(keys) if key.startswith(prefix)]
        got = masses[:, tree.column(prefix)]
        torch.testing.assert_close(got, rows[:, below].logsumexp(-1), atol=1e-5, rtol=1e-5)
        bytes_, columns = tree.following(prefix)
        longer = {keys[n][len(prefix)] for n in below if len(keys[n]) > len(prefix)}
        assert bytes_.tolist() == sorted(longer)
        found = [tree.column(prefix + bytes([byte])) for byte in bytes_.tolist()]
        assert columns.tolist() == found
    assert tree.column(b"\xff\xff\xff") == tree.trie.nothing


def test_tiny_masses_keep_their_digits() -> None:
    trie = tree_of([b"a", b"b", b"ba", b"bb", b"bba", b"c"])
    row = torch.tensor([[0.0, -200.0, -201.0, -202.0, -203.0, -400.0]])
    below_bb = trie.masses(row)[0, [n for n in range(trie.nothing) if trie.depth[n] == 2][-1]]
    assert float(below_bb) == pytest.approx(-202 + math.log(1 + math.exp(-1)), rel=1e-6)


def test_a_tree_from_the_disk_cache_is_the_tree(vocabulary: Vocabulary, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for _ in range(2):  # built, then read
        again, tree = ByteTrie(vocabulary, remember=store.remember), ByteTrie(vocabulary)
        for name, value in vars(tree.trie).items():
            other = getattr(again.trie, name)
            same = torch.equal(value, other) if torch.is_tensor(value) else value == other
            assert same, name
        assert again._column == tree._column
