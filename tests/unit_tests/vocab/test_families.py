"""The laws of a vocabulary on tokenizer families that nobody ships with the tests."""

from __future__ import annotations

import random
from functools import cache

import pytest

from langchain_ensemble.vocab.vocabulary import Vocabulary
from tests.unit_tests.vocab.samples import SCALE, TEXTS, random_text
from tests.unit_tests.vocab.tiny_tokenizers import BUILDERS, CORPUS, tiny

BYTE_LEVEL = [name for name in BUILDERS if name.startswith("byte_level")]


@cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary(tiny(name))


def some_texts(name: str) -> list[str]:
    rng = random.Random(name)
    return [*TEXTS, *CORPUS[:5], *(random_text(rng) for _ in range(60 * SCALE))]


@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_spelled_is_spelled_exactly(name: str) -> None:
    v = vocabulary(name)
    spelled = 0
    for text in some_texts(name):
        data = text.encode()
        ids, ends, unknown = v.encode(text)
        assert ends == sorted(ends)
        if ids:
            assert ends[-1] == len(data)
        start = missing = 0
        for i, end in zip(ids, ends, strict=True):
            if v.token_roles[i] is None:
                key = v.token_bytes[i]
                assert key is not None
                assert key in data[start:end]  # and what was left out beside it
                missing += end - start - len(key)
                spelled += len(key)
            else:
                assert i == v.unk_id
                missing += end - start
            start = end
        if not ids:
            missing = len(data)
        assert bool(unknown) == bool(missing)
    assert spelled > 1000 or name == "word_level"


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "added_tokens"])
def test_byte_level_families_spell_everything(name: str) -> None:
    v = vocabulary(name)
    for text in some_texts(name):
        ids, _, unknown = v.encode(text)
        assert v.decode(ids) == text.encode()
        assert unknown == 0


@pytest.mark.parametrize("name", BUILDERS)
def test_a_text_that_grows_has_the_ids_of_the_whole(name: str) -> None:
    v = vocabulary(name)
    rng = random.Random(7)
    for text in some_texts(name):
        ids: list[int] = []
        ends: list[int] = []
        at = 0
        while at < len(text):
            step = rng.choice((1, 2, 5))
            kept, new_ids, new_ends = v.extend(ids, ends, text[:at], text[at : at + step])
            ids[kept:], ends[kept:] = new_ids, new_ends
            at += step
            if rng.random() < 0.3:
                assert (ids, ends) == v.encode(text[:at])[:2], text[:at]
        assert (ids, ends) == v.encode(text)[:2], text


@pytest.mark.parametrize(
    "name",
    [*(n for n in BYTE_LEVEL if n != "byte_level_prefix"), "metaspace_never", "metaspace_whole",
     "replace_gemma", "unigram_never", "unigram_whole", "characters", "no_parts"],
)  # fmt: skip
def test_ids_are_those_of_the_tokenizer_itself(name: str) -> None:
    v, rust = vocabulary(name), tiny(name).backend_tokenizer
    compared = 0
    for text in some_texts(name):
        if (
            "▁" in text
            or v.encode(text).unknown
            or any(c in text for c in ("</s>", "<s>", "<unk>"))
        ):
            continue
        assert v.encode(text).ids == rust.encode(text, add_special_tokens=False).ids, text
        compared += 1
    assert compared >= (30 if name.startswith("byte_level") else 4)


def test_words_are_spelled_as_word_piece_spells_them() -> None:
    v, rust = vocabulary("word_piece"), tiny("word_piece").backend_tokenizer
    text = "the cat and the dog play outside with her little girl"
    assert v.encode(" " + text).ids == rust.encode(text).ids
    assert v.dummy_prefix


def test_dummy_prefixes() -> None:
    with_prefix = [name for name in BUILDERS if vocabulary(name).dummy_prefix]
    assert with_prefix == [
        "word_piece", "word_piece_bert", "word_level", "byte_level_prefix", "metaspace_first",
        "metaspace_always", "unigram_always", "unigram_drops_spaces", "continuing_prefix",
    ]  # fmt: skip


def test_dropout_is_off() -> None:
    v = vocabulary("metaspace_dropout")
    text = "the little girl named Lily loved the dog"
    fresh = {tuple(Vocabulary(tiny("metaspace_dropout")).encode(text).ids) for _ in range(5)}
    assert fresh == {tuple(v.encode(text).ids)}
    assert tiny("metaspace_dropout").backend_tokenizer.model.dropout == 0.5


def test_added_text_is_matched_as_the_tokenizer_matches_it() -> None:
    v, rust = vocabulary("added_tokens"), tiny("added_tokens").backend_tokenizer
    for text in ("a  b   c", "the cat sat", "cats cat", "你好世界！", "x the catalogue"):
        assert v.encode(text).ids == rust.encode(text, add_special_tokens=False).ids
    ids = v.encode("a dog b").ids  # its white space is kept, though the tokenizer would eat it
    assert v.decode(ids) == b"a dog b"
    assert rust.token_to_id("dog") in ids
    for control in ("<think>", "<|x|>"):
        assert rust.token_to_id(control) not in v.encode(f"a{control}b").ids
