from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch

from langchain_ensemble.errors import ConfigError, VocabularyError
from langchain_ensemble.vocab.alignment import Aligned, align, check_common
from langchain_ensemble.vocab.vocabulary import Vocabulary
from tests.unit_tests.vocab.samples import GOLDEN

Vocabularies = Callable[[str], Vocabulary]
SMALL = [
    *permutations(GOLDEN, 2),
    ("stories260K", "babyllama-361"),
    ("babyllama-361", "stories260K"),
    ("babyllama-105", "bl_a", "ms_uni"),
    ("bl_b",),
]


def aligned(vocabulary: Vocabularies, names: tuple[str, ...]) -> Aligned:
    return align([(f"{n}#{i}", vocabulary(n)) for i, n in enumerate(names)])


@pytest.mark.parametrize("names", SMALL)
def test_tensors_are_those_of_a_search(vocabulary: Vocabularies, names: tuple[str, ...]) -> None:
    found = aligned(vocabulary, names)
    alignment, key_bytes = found.alignment, found.key_bytes
    main = vocabulary(names[0])
    extra = key_bytes[main.width :]
    assert alignment.union_size == len(key_bytes)
    assert extra == sorted(key for key in extra if key is not None)
    everyone = {key for name in names for key in vocabulary(name).key_of}
    assert {key for key in key_bytes if key is not None} == everyone
    assert found.key_of == {key: u for u, key in enumerate(key_bytes) if key is not None}
    for name, keys in zip(names, alignment.members, strict=True):
        v = vocabulary(name)
        assert keys.width == v.width
        assert keys.end_ids.tolist() == list(v.end_ids)
        assert keys.representative.tolist() == v.representative
        for token_id in range(v.width):
            u = int(keys.to_union[token_id])
            if v.token_roles[token_id] is not None:
                assert u == -1
            else:
                assert key_bytes[u] == v.token_bytes[token_id]
                assert int(keys.from_union[u]) == v.representative[token_id]
        for u, key in enumerate(key_bytes):
            own = int(keys.from_union[u])
            longest = int(keys.longest_prefix[u])
            if key is None:
                assert own == longest == -1
                continue
            assert (own >= 0) == (key in v.key_of)
            prefixes = [p for p in v.key_of if key.startswith(p)]
            assert longest == (v.key_of[max(prefixes, key=len)] if prefixes else -1)
            if own >= 0:
                assert longest == own
    common = [
        u
        for u, key in enumerate(key_bytes)
        if key is not None and all(key in vocabulary(name).key_of for name in names)
    ]
    assert alignment.common.tolist() == common


@pytest.mark.parametrize(
    ("main", "other", "count"),
    [
        ("llama-2", "llama-3", 26_599),
        ("yi", "gpt2", 32_909),
        ("llama-3", "qwen2.5", 109_566),
        ("llama-2", "qwen2.5", 26_342),
        ("llama-2", "mistral-v3", 24_085),
        ("qwen2.5", "yi", 52_893),
    ],
)
def test_common_tokens_are_counted_by_bytes(
    vocabulary: Vocabularies, main: str, other: str, count: int
) -> None:
    start = time.process_time()
    found = aligned(vocabulary, (main, other)).alignment
    assert time.process_time() - start < 20  # measured: below 1
    assert len(found.common) == count
    assert len(aligned(vocabulary, (other, main)).alignment.common) == count
    assert found.common.tolist() == sorted(found.common.tolist())


def test_a_vocabulary_is_common_with_itself(vocabulary: Vocabularies) -> None:
    found = aligned(vocabulary, ("llama-2", "llama-2")).alignment
    assert len(found.common) == 32_000 - 3 - 96
    for name in ("to_union", "from_union", "longest_prefix"):
        assert torch.equal(getattr(found.members[0], name), getattr(found.members[1], name))


def test_wide_logits_have_no_keys_in_their_padding(tokenizer: Callable[[str], object]) -> None:
    wide = Vocabulary(tokenizer("pythia"), width=50_304)  # type: ignore[arg-type]
    found = align([("pythia", wide)])
    assert found.alignment.union_size == 50_304
    assert found.alignment.main.to_union[50_278:].tolist() == [-1] * 26
    assert found.key_bytes[50_278:] == [None] * 26


def test_the_hash_tells_alignments_apart(vocabulary: Vocabularies) -> None:
    first = aligned(vocabulary, ("bl_a", "bl_b")).alignment.hash
    assert first == aligned(vocabulary, ("bl_a", "bl_b")).alignment.hash
    assert first != aligned(vocabulary, ("bl_b", "bl_a")).alignment.hash


def test_the_result_does_not_depend_on_the_hash_seed(shared: Path) -> None:
    program = """
import sys
from transformers import PreTrainedTokenizerFast
from langchain_ensemble.vocab.alignment import align
from langchain_ensemble.vocab.pair_table import pair_table
from langchain_ensemble.vocab.vocabulary import Vocabulary
named = [(f, Vocabulary(PreTrainedTokenizerFast(tokenizer_file=f))) for f in sys.argv[1:]]
found = align(named)
table = pair_table(found, named[1][1])
print(found.alignment.hash, [v.content_hash for _, v in named])
print(found.alignment.common.tolist(), table.ids.tolist(), table.opens.tolist())
print(named[2][1].encode("Hello world, it's 12"), named[0][1].token_roles)
"""
    folder = shared / "golden" / "unite" / "tokenizers"
    files = [str(folder / f"{name}.json") for name in ("bl_a", "ms_bpe", "ms_uni")]
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, *files],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
        ).stdout
        for seed in ("0", "4711")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 1000


def test_too_few_common_tokens_are_said_with_both_numbers(vocabulary: Vocabularies) -> None:
    found = align([("qwen", vocabulary("bl_a")), ("llama", vocabulary("babyllama-105"))])
    shared_count = len(found.alignment.common)
    check_common(found, shared_count, "deepen")
    with pytest.raises(VocabularyError) as error:
        check_common(found, 5000, "deepen")
    assert str(error.value) == (
        f"members 'qwen' and 'llama' share {shared_count} common tokens; fusion='deepen' needs at "
        "least 5000. Use fusion='unite', or pass anchors=."
    )


def test_an_empty_alignment_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one vocabulary"):
        align([])


def test_no_control_token_is_common(vocabulary: Vocabularies) -> None:
    found = aligned(vocabulary, ("bl_a", "ms_bpe"))
    main = vocabulary("bl_a")
    assert all(main.token_roles[i] is None for i in found.alignment.common.tolist())


def test_bytes_of_a_fallback_are_common_only_where_nothing_else_spells_them(
    vocabulary: Vocabularies,
) -> None:
    v = vocabulary("llama-2")
    anchors = aligned(vocabulary, ("llama-2", "llama-3")).alignment.common.tolist()
    assert 13 in anchors  # <0x0A>, the only newline
    assert 68 not in anchors  # <0x41>; "A" stands for the byte
    assert v.key_of[b"A"] in anchors
