from __future__ import annotations

import random
import shutil
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from transformers import AutoTokenizer

from langchain_ensemble.errors import ConfigError, VocabularyError
from langchain_ensemble.vocab.roles import Role
from langchain_ensemble.vocab.vocabulary import Vocabulary
from tests.unit_tests.vocab.samples import (
    EVERY,
    LOSSY,
    MODELS,
    SCALE,
    TEXTS,
    TOKENIZERS,
    random_text,
    real_texts,
    texts,
)

Vocabularies = Callable[[str], Vocabulary]
ANY = settings(max_examples=25 * SCALE, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_spelling(vocabulary: Vocabulary, text: str) -> None:
    ids, ends, unknown = vocabulary.encode(text)
    size = len(text.encode())
    spelled = [vocabulary.decode([i]) for i in ids]
    if not unknown:
        assert b"".join(spelled) == text.encode()
        assert ends == [sum(map(len, spelled[: n + 1])) for n in range(len(ids))]
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == (size if ids else 0)
    start = 0
    for token_id, end in zip(ids, ends, strict=True):
        if token_id == vocabulary.unk_id and vocabulary.token_roles[token_id] is not None:
            assert unknown
        else:
            assert vocabulary.token_roles[token_id] is None
            assert vocabulary.representative[token_id] == token_id
            assert text.encode()[start:end] == vocabulary.token_bytes[token_id]
        start = end


@pytest.mark.parametrize("name", EVERY)
def test_the_bytes_of_the_ids_are_the_bytes_of_the_text(
    vocabulary: Vocabularies, name: str
) -> None:
    for text in TEXTS:
        check_spelling(vocabulary(name), text)
        if name not in LOSSY:
            assert vocabulary(name).encode(text).unknown == 0


@pytest.mark.parametrize("name", EVERY)
@ANY
@given(text=texts)
def test_any_text_round_trips(vocabulary: Vocabularies, name: str, text: str) -> None:
    check_spelling(vocabulary(name), text)
    if name not in LOSSY:
        assert vocabulary(name).encode(text).unknown == 0


@pytest.mark.parametrize("name", EVERY)
def test_a_text_that_grows_has_the_ids_of_the_whole(
    vocabulary: Vocabularies, shared: Path, name: str
) -> None:
    rng = random.Random(name)
    v = vocabulary(name)
    grown = [random_text(rng) for _ in range(40 * SCALE)]
    grown += [*TEXTS, *real_texts(shared, rng, 2 * SCALE, 300)]
    for text in grown:
        step = rng.choice((1, 1, 2, 8))
        ids: list[int] = []
        ends: list[int] = []
        for at in range(0, len(text), step):
            kept, new_ids, new_ends = v.extend(ids, ends, text[:at], text[at : at + step])
            ids[kept:] = new_ids
            ends[kept:] = new_ends
            if step == 8 or at % 7 == 0:
                whole = v.encode(text[: at + step])
                assert (ids, ends) == (whole.ids, whole.ends), text[: at + step]
        assert (ids, ends) == v.encode(text)[:2], text


@pytest.mark.parametrize("name", EVERY)
@ANY
@given(text=texts, added=texts)
def test_any_text_grows_exactly(vocabulary: Vocabularies, name: str, text: str, added: str) -> None:
    v = vocabulary(name)
    before, whole = v.encode(text), v.encode(text + added)
    kept, new_ids, new_ends = v.extend(before.ids, before.ends, text, added)
    assert before.ids[:kept] + new_ids == whole.ids
    assert before.ends[:kept] + new_ends == whole.ends


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_cost_of_growing_does_not_depend_on_the_length(
    vocabulary: Vocabularies, shared: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    v = vocabulary(name)
    read: list[int] = []
    encode = v.encode

    def spy(text: str) -> Any:
        read.append(len(text))
        return encode(text)

    english = (shared / "text/encyclopedic/boolq_passages_train.txt").read_text()[:50_000]
    chinese = "今天天气很好，我们去公园玩吧！" * 2000
    for text in (english, chinese):
        ids, ends, _ = v.encode(text[:-200])
        monkeypatch.setattr(v, "encode", spy)
        for at in range(len(text) - 200, len(text), 2):
            kept, new_ids, new_ends = v.extend(ids, ends, text[:at], text[at : at + 2])
            ids[kept:] = new_ids
            ends[kept:] = new_ends
        monkeypatch.undo()
        assert (ids, ends) == v.encode(text)[:2]
    assert len(read) >= 200
    assert max(read) < 64


@pytest.mark.parametrize("name", EVERY)
def test_ids_are_those_of_the_tokenizer_itself(
    vocabulary: Vocabularies, tokenizer: Callable[[str], Any], shared: Path, name: str
) -> None:
    """Behind a newline a dummy prefix tells nothing apart; NFC text is what normalizers leave."""
    v, rust = vocabulary(name), tokenizer(name).backend_tokenizer
    lead = "\n" if v.dummy_prefix else ""
    added = rust.get_added_tokens_decoder().items()
    controls = [token.content for i, token in added if v.token_roles[i] is not None]
    compared = 0
    for text in [*TEXTS, *real_texts(shared, random.Random(1), 3 * SCALE, 500)]:
        text = unicodedata.normalize("NFC", text)
        if (
            any(control in text for control in controls)
            or "▁" in text
            or name == "t5"
            or v.encode(text).unknown
        ):
            continue
        theirs = rust.encode(lead + text, add_special_tokens=False).ids
        ours = v.encode(lead + text).ids
        if v.dummy_prefix:  # theirs begin with the dummy prefix
            own = rust.encode(lead, add_special_tokens=False).ids
            theirs, ours = theirs[len(own) :], ours[len(v.encode(lead).ids) :]
        assert ours == theirs, text
        compared += 1
    assert compared >= (0 if name in LOSSY else 15)


@pytest.mark.parametrize("name", ["t5"])
def test_t5_agrees_on_words(
    vocabulary: Vocabularies, tokenizer: Callable[[str], Any], name: str
) -> None:
    v, own = vocabulary(name), tokenizer(name)
    for text in ("The quick brown fox jumps over the lazy dog.", "translate English to German: x"):
        assert v.encode(" " + text).ids == own(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", [*TOKENIZERS, *MODELS])
def test_text_that_spells_a_control_token_is_text(vocabulary: Vocabularies, name: str) -> None:
    v = vocabulary(name)
    for control, role in enumerate(v.token_roles):
        key = v.token_bytes[control]
        if role is not None and key is not None:
            for text in (key.decode(), f"x {key.decode()} y"):
                ids = v.encode(text).ids
                assert control not in ids or control == v.unk_id
    assert v.decode([i for i, role in enumerate(v.token_roles) if role is not None]) == b""


def test_what_cannot_be_spelled_becomes_unknown(vocabulary: Vocabularies) -> None:
    v = vocabulary("babyllama-105")
    ids, ends, unknown = v.encode("a🙂b")
    assert ids == [*v.encode("a").ids, v.unk_id, *v.encode("b").ids]
    assert ends == [1, 5, 6]
    assert unknown == 1
    assert v.encode("a你好b") == ([ids[0], v.unk_id, ids[2]], [1, 7, 8], 2)  # neighbours fuse


def test_leading_spaces_are_kept_where_transformers_loses_one(
    vocabulary: Vocabularies, tokenizer: Callable[[str], Any]
) -> None:
    for name in ("llama-2", "mistral-v1", "openllama"):
        v = vocabulary(name)
        assert v.dummy_prefix
        for spaces in range(4):
            text = " " * spaces + "Hello"
            assert v.decode(v.encode(text).ids) == text.encode()
        own = tokenizer(name)
        assert own(" Hello", add_special_tokens=False) == own("Hello", add_special_tokens=False)


def test_a_dummy_prefix_is_known(vocabulary: Vocabularies) -> None:
    found = [name for name in TOKENIZERS if vocabulary(name).dummy_prefix]
    assert found == [
        "llama-2", "minicpm3", "mistral-v1", "mistral-v3", "openllama", "phi-3", "t5",
    ]  # fmt: skip


def test_the_hash_is_of_the_content(vocabulary: Vocabularies, shared: Path, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(shared / "tokenizers" / "gpt2", copied)
    again = Vocabulary(AutoTokenizer.from_pretrained(copied), width=50_304)
    assert again.content_hash == vocabulary("gpt2").content_hash
    assert vocabulary("stories260K").content_hash == vocabulary("bitllama-1M").content_hash
    hashes = {vocabulary(name).content_hash for name in TOKENIZERS}
    assert len(hashes) == len(TOKENIZERS)


def test_tables_have_the_width_of_the_logits(tokenizer: Callable[[str], Any]) -> None:
    wide = Vocabulary(tokenizer("pythia"), width=50_304)
    tables = (wide.token_bytes, wide.token_roles, wide.representative, wide.byte_fallback)
    assert [len(table) for table in tables] == [50_304] * 4
    assert (wide.size, wide.width) == (50_278, 50_304)
    assert wide.token_bytes[50_278:] == [None] * 26
    assert wide.representative[50_278:] == [-1] * 26
    narrow = Vocabulary(tokenizer("pythia"), width=50_277)  # without the added [PAD]
    assert len(narrow.token_bytes) == 50_277
    narrower = Vocabulary(tokenizer("pythia"), width=50_260)  # and without most runs of spaces
    assert max(narrower.encode(" " * 30 + "x").ids) < 50_260
    assert narrower.decode(narrower.encode(" " * 30 + "x").ids) == b" " * 30 + b"x"
    with pytest.raises(VocabularyError, match=r"ids up to 50253, but the model has only 50000"):
        Vocabulary(tokenizer("pythia"), width=50_000)


def test_end_ids_are_given_ones_and_end_roles(tokenizer: Callable[[str], Any]) -> None:
    phi = Vocabulary(tokenizer("phi-3"), end_ids=[32000, 32001, 32007])
    assert phi.end_ids == (2, 32000, 32001, 32007)
    assert phi.token_roles[32001] is Role.END
    assert Vocabulary(tokenizer("qwen2.5")).end_ids == (151643, 151645)


def test_an_end_id_that_is_ordinary_text_is_no_text_any_more(
    tokenizer: Callable[[str], Any],
) -> None:
    v = Vocabulary(tokenizer("gpt2"), end_ids=[198])  # "\n"
    assert v.token_roles[198] is Role.END
    assert v.representative[198] == -1
    assert 198 not in v.encode("a\nb").ids


def test_ids_that_spell_the_same_bytes_have_one_representative(vocabulary: Vocabularies) -> None:
    doubles = {}
    for name in TOKENIZERS:
        v = vocabulary(name)
        spare = [i for i, r in enumerate(v.representative) if r not in (-1, i)]
        doubles[name] = len(spare)
        for i in spare:
            assert v.token_bytes[i] == v.token_bytes[v.representative[i]]
            key = v.token_bytes[i]
            assert key is not None
            assert v.encode(key.decode()).ids == [v.representative[i]]
    assert doubles["llama-2"] == 96
    assert doubles["pythia"] == doubles["mpt"] == 23
    assert doubles["gpt2"] == doubles["llama-3"] == doubles["qwen2.5"] == 0
    llama = vocabulary("llama-2")
    letter = llama.encode("A").ids
    assert llama.key_of[b"A"] == letter[0]
    assert llama.byte_fallback[68]  # <0x41>
    assert llama.representative[68] == letter[0]


def test_lone_surrogates_are_refused_with_their_position(vocabulary: Vocabularies) -> None:
    v = vocabulary("gpt2")
    with pytest.raises(ConfigError, match=r"lone surrogate U\+D800 at position 3"):
        v.encode("abc\ud800")
    with pytest.raises(ConfigError, match=r"position 0"):
        v.extend([], [], "", "\udfff")
    with pytest.raises(ConfigError, match=r"position 1"):
        v.encode_all(["fine", "x\ud83d"])


def test_many_texts_at_once_are_the_same_as_one_by_one(vocabulary: Vocabularies) -> None:
    rng = random.Random(3)
    many = [*TEXTS, *(random_text(rng) for _ in range(50))]
    for name in ("llama-2", "qwen2.5", "pythia", "t5", "babyllama-105"):
        v = vocabulary(name)
        assert v.encode_all(many) == [v.encode(text) for text in many]


def test_many_threads_get_the_same_ids(tokenizer: Callable[[str], Any]) -> None:
    rng = random.Random(9)
    many = [random_text(rng) for _ in range(60)]
    for name in ("gpt2", "t5"):
        alone = Vocabulary(tokenizer(name))
        wanted = [alone.encode(text) for text in many]
        fresh = Vocabulary(tokenizer(name))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda v: [v.encode(text) for text in many], [fresh] * 16))
        assert found == [wanted] * 16
