"""Vocabularies for grammars, and how to walk through a grammar with them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from langchain_ensemble.constraints.compile import compile_grammar
from langchain_ensemble.constraints.grammar import (
    CompiledGrammar,
    Grammar,
    GrammarVocabulary,
    JsonSchema,
    Matcher,
)
from langchain_ensemble.vocab.vocabulary import Vocabulary

ENGINES = ("llguidance", "xgrammar")
BYTES = GrammarVocabulary(tuple(bytes([byte]) for byte in range(256)), "all bytes")
CHARACTERS = GrammarVocabulary(  # no byte tokens; doubles; an id for nothing; control ids
    (
        None,
        b"",
        *(bytes([code]) for code in range(0x20, 0x7F)),
        *(c.encode() for c in "éßñ日本語🦊\n\t"),
        *(b"a", b'{"', b'": ', b'", "', b"null", b"12"),
        None,
    ),
    "characters",
)


def table_of(folder: Path) -> GrammarVocabulary:
    vocabulary = Vocabulary(AutoTokenizer.from_pretrained(folder))
    named = zip(vocabulary.token_bytes, vocabulary.token_roles, strict=True)
    table = tuple(token if role is None else None for token, role in named)
    return GrammarVocabulary(table, vocabulary.content_hash)


def schema(value: Any) -> JsonSchema:
    return JsonSchema(json.dumps(value))


def compiled(grammar: Grammar, engine: str, table: GrammarVocabulary = BYTES) -> CompiledGrammar:
    return compile_grammar(grammar, table, engine)  # type: ignore[arg-type]


def accepts(grammar: CompiledGrammar, text: str | bytes) -> bool:
    matcher = grammar.matcher()
    data = text.encode() if isinstance(text, str) else text
    return matcher.advance(data) and matcher.may_end


def allowed_ids(matcher: Matcher) -> list[int]:
    return matcher.allowed().nonzero().flatten().tolist()  # type: ignore[no-any-return]


@cache
def first_bytes(table: GrammarVocabulary) -> Tensor:
    """[V] first byte of every id, 256 for ids without bytes."""
    return torch.tensor([token[0] if token else 256 for token in table.token_bytes])


def next_bytes(matcher: Matcher, table: GrammarVocabulary) -> set[int]:
    return set(first_bytes(table)[matcher.allowed()].unique().tolist())


def draw(
    matchers: Sequence[Matcher],
    tables: Sequence[GrammarVocabulary],
    rng: random.Random,
    steps: int,
) -> Iterable[bytes]:
    """Walk: any member's legal token, read by all; stops where no member can go on."""
    for _ in range(steps):
        member = rng.randrange(len(matchers))
        ids = matchers[member].allowed().nonzero().flatten()
        if not len(ids):
            if not any(matcher.allowed().any() for matcher in matchers):
                return
            continue
        token = tables[member].token_bytes[int(ids[rng.randrange(len(ids))])]
        assert token
        for matcher in matchers:
            assert matcher.advance(token), token
        yield token
