"""Tokenizers of families that are not among the shared ones, trained in a moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    trainers,
)
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Once upon a time there was a little girl named Lily. She loved to play outside with her dog.",
    "It's 12,345.67% of what we'll do; they'd said you're -- \"quoted\" (text) [x]{y}. Don't!",
    "    def f(a_b, *args):\n\t\treturn {'k': a**2 != 0, 'url': \"http://example.org/a?b=c\"}\n",
    "naïve café 你好，世界。今天天气很好！ カタカナ ひらがな 한국어 Привет, мир! 👩‍👩‍👧 ½",
    "the cat and the dog and the cat  and   the    dog\n\n1 12 123 1234 12345 2024-05-01",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>"]
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def _bpe(split: Any, decoder: Any, normalizer: Any = None, size: int = 420, **model: Any) -> Any:
    rust = Tokenizer(models.BPE(**model))
    byte_level = model.get("unk_token") is None
    trainer = trainers.BpeTrainer(
        vocab_size=size + 250 * byte_level,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=sorted(pre.ByteLevel.alphabet()) if byte_level else [],
        **{k: v for k, v in model.items() if k in ("end_of_word_suffix",) and v},
        **{k: v for k, v in model.items() if k in ("continuing_subword_prefix",) and v},
    )
    return _trained(rust, trainer, split, decoder, normalizer)


def _unigram(split: Any, decoder: Any, normalizer: Any = None) -> Any:
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    return _trained(Tokenizer(models.Unigram()), trainer, split, decoder, normalizer)


def _trained(rust: Any, trainer: Any, split: Any, decoder: Any, normalizer: Any) -> Any:
    if split is not None:
        rust.pre_tokenizer = split
    if decoder is not None:
        rust.decoder = decoder
    if normalizer is not None:
        rust.normalizer = normalizer
    rust.train_from_iterator(CORPUS, trainer)
    return rust


def _byte_level(*before: Any, regex: bool = True, prefix: bool = False, **model: Any) -> Any:
    last = pre.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    split = pre.Sequence([*before, last]) if before else last
    return _bpe(split, decoders.ByteLevel(), **model)


def _metaspace(scheme: str, split: bool, **model: Any) -> Any:
    return _bpe(
        pre.Metaspace(prepend_scheme=scheme, split=split),
        decoders.Metaspace(prepend_scheme=scheme),
        unk_token="<unk>",
        **model,
    )


def _word_piece(split: Any) -> Any:
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    model = models.WordPiece(unk_token="[UNK]")
    return _trained(Tokenizer(model), trainer, split, decoders.WordPiece(), None)


def _word_level() -> Any:
    trainer = trainers.WordLevelTrainer(
        vocab_size=100, special_tokens=["[UNK]"], show_progress=False
    )
    model = models.WordLevel(unk_token="[UNK]")
    return _trained(Tokenizer(model), trainer, pre.WhitespaceSplit(), None, None)


def _with_added() -> Any:
    rust = _byte_level()
    rust.add_tokens(
        [
            AddedToken("  ", normalized=True),
            AddedToken("cat", single_word=True),
            AddedToken("dog", lstrip=True, rstrip=True),
            "the cat",
            "<think>",
            "世界",
        ]
    )
    rust.add_special_tokens(["<|x|>"])
    return rust


BUILDERS: dict[str, Callable[[], Any]] = {
    "word_piece": lambda: _word_piece(pre.WhitespaceSplit()),
    "word_piece_bert": lambda: _word_piece(pre.BertPreTokenizer()),
    "word_level": _word_level,
    "byte_level_prefix": lambda: _byte_level(prefix=True),
    "byte_level_whole": lambda: _byte_level(regex=False),
    "byte_level_ignore_merges": lambda: _byte_level(ignore_merges=True),
    "byte_level_digits": lambda: _byte_level(pre.Digits(individual_digits=True)),
    "byte_level_falcon": lambda: _byte_level(
        pre.Punctuation("contiguous"), pre.Split(Regex("[0-9][0-9][0-9]"), "isolated")
    ),
    "byte_level_bloom": lambda: _byte_level(pre.Split(Regex(BLOOM), "isolated"), regex=False),
    "byte_level_o200k": lambda: _byte_level(pre.Split(Regex(O200K), "isolated"), regex=False),
    "byte_level_thousands": lambda: _byte_level(
        pre.Split(Regex(r"\d{1,3}(?=(?:\d{3})*\b)"), "isolated")
    ),
    "byte_level_literal": lambda: _byte_level(pre.Split("http://", "isolated")),
    "byte_level_normalizer": lambda: _bpe(
        pre.Split(Regex("Ġ?[^Ġ]+"), "isolated"), decoders.ByteLevel(), normalizers.ByteLevel()
    ),
    "byte_level_no_decoder": lambda: _bpe(pre.ByteLevel(add_prefix_space=False), None),
    "metaspace_first": lambda: _metaspace("first", True),
    "metaspace_always": lambda: _metaspace("always", False, fuse_unk=True),
    "metaspace_never": lambda: _metaspace("never", True, fuse_unk=True),
    "metaspace_whole": lambda: _metaspace("never", False),
    "metaspace_lower": lambda: _bpe(
        pre.Metaspace(prepend_scheme="never"),
        decoders.Metaspace(prepend_scheme="never"),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]),
        unk_token="<unk>",
    ),
    "metaspace_dropout": lambda: _metaspace("never", True, dropout=0.5),
    "metaspace_scripts": lambda: _bpe(
        pre.Sequence([pre.UnicodeScripts(), pre.Metaspace(prepend_scheme="never")]),
        decoders.Metaspace(prepend_scheme="never"),
        unk_token="<unk>",
    ),
    "metaspace_no_unknown": lambda: _bpe(
        pre.Metaspace(prepend_scheme="never", split=False),
        decoders.Metaspace(prepend_scheme="never"),
    ),
    "replace_gemma": lambda: _bpe(
        pre.Split(" ", "merged_with_previous"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        normalizers.Replace(" ", "▁"),
        unk_token="<unk>",
    ),
    "unigram_always": lambda: _unigram(pre.Metaspace(), decoders.Metaspace()),
    "unigram_never": lambda: _unigram(
        pre.Metaspace(prepend_scheme="never"), decoders.Metaspace(prepend_scheme="never")
    ),
    "unigram_whole": lambda: _unigram(
        pre.Metaspace(prepend_scheme="never", split=False),
        decoders.Metaspace(prepend_scheme="never"),
    ),
    "unigram_drops_spaces": lambda: _unigram(
        pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()]),
        decoders.Metaspace(),
        normalizers.NFKC(),
    ),
    "end_of_word": lambda: _bpe(
        pre.WhitespaceSplit(),
        decoders.BPEDecoder(suffix="</w>"),
        unk_token="<unk>",
        end_of_word_suffix="</w>",
    ),
    "continuing_prefix": lambda: _bpe(
        pre.WhitespaceSplit(),
        decoders.WordPiece(),
        unk_token="<unk>",
        continuing_subword_prefix="##",
    ),
    "characters": lambda: _bpe(None, decoders.Fuse(), size=1, unk_token="<unk>"),
    "no_parts": lambda: _bpe(None, None, unk_token="<unk>"),
    "strips_pieces": lambda: _bpe(
        pre.Metaspace(prepend_scheme="never"),
        decoders.Sequence([decoders.Metaspace(prepend_scheme="never"), decoders.Strip("_", 1, 0)]),
        unk_token="<unk>",
    ),
    "added_tokens": _with_added,
}


@cache
def tiny(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the family, trained once."""
    return PreTrainedTokenizerFast(tokenizer_object=BUILDERS[name]())
