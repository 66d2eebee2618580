from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from langchain_ensemble.store import Store
from langchain_ensemble.vocab.alignment import align
from langchain_ensemble.vocab.pair_table import pair_table
from langchain_ensemble.vocab.union_keys import UnionKeys
from langchain_ensemble.vocab.vocabulary import Vocabulary
from tests.unit_tests.vocab.samples import SCALE, TEXTS, real_texts

Vocabularies = Callable[[str], Vocabulary]


@pytest.mark.parametrize(
    ("main", "member"),
    [
        ("stories260K", "bl_a"),
        ("bl_a", "ms_uni"),
        ("bl_b", "babyllama-105"),
        ("gpt2", "llama-2"),
        ("llama-2", "gpt2"),
        ("gpt2", "t5"),
    ],
)
def test_appending_is_extending(
    vocabulary: Vocabularies, shared: Path, main: str, member: str
) -> None:
    writer, reader = vocabulary(main), vocabulary(member)
    aligned = align([("main", writer), ("member", reader)])
    table = pair_table(aligned, reader)
    rng = random.Random(5)
    fast = 0
    for text in [*TEXTS, *real_texts(shared, rng, 3 * SCALE, 200)]:
        ids: list[int] = []
        ends: list[int] = []
        so_far = ""
        held = b""
        for token in writer.encode(text).ids:
            held += writer.token_bytes[token] or b""
            key = aligned.key_of.get(held)
            if key is None or not _is_text(held) or writer.token_roles[token] is not None:
                if not _is_text(held):
                    continue
                kept, new_ids, new_ends = reader.extend(ids, ends, so_far, held.decode())
            else:
                kept, new_ids, new_ends = table.append(ids, ends, so_far, key)
                assert (kept, new_ids, new_ends) == reader.extend(ids, ends, so_far, held.decode())
                fast += bool(table.opens[key])
            ids[kept:], ends[kept:] = new_ids, new_ends
            so_far += held.decode()
            held = b""
        assert (ids, ends) == reader.encode(so_far)[:2]
    assert fast > 50 or "babyllama-105" in (main, member)


def test_rows_are_the_keys_spelled_alone(vocabulary: Vocabularies) -> None:
    reader = vocabulary("ms_bpe")
    aligned = align([("main", vocabulary("bl_a")), ("member", reader)])
    table = pair_table(aligned, reader)
    assert len(table.offsets) == aligned.alignment.union_size + 1
    for u, key in enumerate(aligned.key_bytes):
        row = table.ids[table.offsets[u] : table.offsets[u + 1]].tolist()
        if key is None or not _is_text(key):
            assert row == []
            assert not table.opens[u]
        else:
            assert row == reader.encode(key.decode()).ids
    assert table.opens[aligned.key_of[b" the"]]
    assert not table.opens[aligned.key_of[b"e"]]


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_remembered_table_is_the_built_one(vocabulary: Vocabularies, tmp_path: Path) -> None:
    reader = vocabulary("babyllama-361")
    aligned = align([("main", vocabulary("stories260K")), ("member", reader)])
    built = pair_table(aligned, reader)
    for _ in range(2):  # written, then read
        stored = pair_table(aligned, reader, Store(tmp_path).remember)
        for name in ("offsets", "ids", "opens"):
            assert torch.equal(getattr(stored, name), getattr(built, name))
        key = aligned.key_of[b" the"]
        before = reader.encode("see")
        assert stored.append(before.ids, before.ends, "see", key) == built.append(
            before.ids, before.ends, "see", key
        )
    assert len(Store(tmp_path).list()) == 1


def test_tables_of_other_keys_are_told_apart(vocabulary: Vocabularies, tmp_path: Path) -> None:
    """NUL is a key as any other, so nothing that joins keys may be read as one."""
    reader, store = vocabulary("stories260K"), Store(tmp_path)
    aligned = align([("main", reader), ("member", vocabulary("babyllama-361"))])
    for keys in ([b"", b"\0", b"a"], [b"\0", b"", b"a"]):
        other = aligned._replace(key_bytes=UnionKeys(keys))
        stored, built = pair_table(other, reader, store.remember), pair_table(other, reader)
        assert torch.equal(stored.offsets, built.offsets)
