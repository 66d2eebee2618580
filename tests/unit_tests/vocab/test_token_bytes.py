from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.tokenization_mistral_common import MistralCommonBackend

from langchain_ensemble.errors import VocabularyError
from langchain_ensemble.vocab.token_bytes import byte_alphabet, token_bytes
from langchain_ensemble.vocab.vocabulary import Vocabulary
from tests.unit_tests.vocab.samples import EVERY, LOSSY, TEXTS

Tokenizers = Callable[[str], Any]


def fast(rust: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=rust)


def words(decoder: Any, *pieces: str, **settings: Any) -> list[bytes | None]:
    rust = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], **settings))
    rust.decoder = decoder
    return token_bytes(fast(rust))


@pytest.mark.parametrize("name", EVERY)
def test_the_tokenizers_own_ids_join_to_the_text(tokenizer: Tokenizers, name: str) -> None:
    own, table = tokenizer(name), token_bytes(tokenizer(name))
    dummy = Vocabulary(own).dummy_prefix
    compared = 0
    for text in TEXTS:
        if unicodedata.normalize("NFC", text) != text or "▁" in text or text[:1] in " <":
            continue  # their normalizers change it
        if name in LOSSY and not (text.isascii() and text.isprintable() and "  " not in text):
            continue
        ids = own(text, add_special_tokens=False).input_ids
        if name in LOSSY and own.unk_token_id in ids:
            continue
        joined = b"".join(table[i] or b"" for i in ids)
        assert joined == (b" " if dummy and text else b"") + text.encode()
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", EVERY)
def test_every_id_has_bytes(tokenizer: Tokenizers, name: str) -> None:
    table = token_bytes(tokenizer(name))
    assert len(table) == len(tokenizer(name))
    assert None not in table


def test_the_byte_level_alphabet_is_a_bijection() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert sorted(alphabet) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert alphabet["Ġ"] == 0x20
    assert alphabet["Ċ"] == 0x0A


def test_added_tokens_are_their_content(tokenizer: Tokenizers) -> None:
    assert token_bytes(tokenizer("deepseek-llm"))[100002] == "ø".encode()  # not the byte F8
    assert token_bytes(tokenizer("pythia"))[50276] == b"  "
    assert token_bytes(tokenizer("yi"))[32] == b"<h1>"


def test_known_pieces(tokenizer: Tokenizers) -> None:
    llama = token_bytes(tokenizer("llama-2"))
    assert llama[13] == b"\n"  # <0x0A>
    assert llama[68] == b"A"  # <0x41>
    assert llama[278] == b" the"
    assert llama[259] == b"  "
    assert token_bytes(tokenizer("gpt2"))[262] == b" the"
    assert token_bytes(tokenizer("gpt2"))[198] == b"\n"


def test_a_literal_metaspace_is_a_space_only_where_the_decoder_says_so() -> None:
    assert words(decoders.ByteLevel(), "▁a", "Ġa") == ["▁a".encode(), b" a"]
    assert words(decoders.Metaspace(), "▁a", "Ġa") == [b" a", "Ġa".encode()]
    assert words(decoders.Fuse(), "▁a", "Ġa") == ["▁a".encode(), "Ġa".encode()]


def test_decoder_steps() -> None:
    word_piece = decoders.WordPiece(prefix="##")
    assert words(word_piece, "##ing", "go") == [b"ing", b" go"]
    assert words(decoders.BPEDecoder(suffix="</w>"), "go</w>", "go") == [b"go ", b"go"]
    spaces = decoders.Replace("▁", " ")
    assert words(decoders.Sequence([spaces, decoders.Fuse()]), "▁a▁b") == [b" a b"]
    assert words(decoders.Replace(Regex("_+"), " "), "a__b") == [b"a b"]
    assert words(decoders.Strip("_", 1, 1), "__a_", "b") == [b"_a", b"b"]
    each = decoders.Sequence([decoders.Strip("_", 1, 0), decoders.Fuse()])
    assert words(each, "_", "_a") == [None, b"a"]  # no text can produce the first
    at_start = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    assert words(at_start, " a") == [b" a"]
    fallback = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert words(fallback, "<0x0A>", "<0xZZ>", "a") == [b"\n", b"<0xZZ>", b"a"]
    assert words(decoders.Fuse(), "<0x0A>", "a") == [b"<0x0A>", b"a"]


def test_holes_have_no_bytes() -> None:
    rust = Tokenizer(models.WordLevel({"a": 0, "b": 3}, unk_token="a"))
    rust.decoder = decoders.Fuse()
    assert token_bytes(fast(rust)) == [b"a", None, None, b"b"]


def test_without_a_decoder_the_encoder_is_inverted_or_the_tokenizer_refused() -> None:
    rust = Tokenizer(models.BPE({"Ġa": 0, "a": 1}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert token_bytes(fast(rust)) == [b" a", b"a"]
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(VocabularyError, match=r"no decoder and its pre-tokenizer drops"):
        token_bytes(fast(rust))
    rust.pre_tokenizer = pre_tokenizers.Digits()
    assert token_bytes(fast(rust)) == ["Ġa".encode(), b"a"]


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.CTC(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace(" .", ".")]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex(" +"), " ")]),
    ],
)
def test_a_decoder_that_gives_pieces_no_bytes_is_refused(decoder: Any) -> None:
    with pytest.raises(VocabularyError, match=r"gives single pieces no bytes.*Known: ByteFallback"):
        words(decoder, "a")


def test_tokenizers_without_a_fast_backend_are_refused() -> None:
    with pytest.raises(VocabularyError, match=r"ByT5Tokenizer.*no tokenizer\.json backend"):
        token_bytes(ByT5Tokenizer())
    lossy = MistralCommonBackend.__new__(MistralCommonBackend)
    with pytest.raises(VocabularyError, match=r"mistral-common does not give the bytes of every"):
        token_bytes(lossy)
