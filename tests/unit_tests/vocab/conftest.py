from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from langchain_ensemble.vocab.vocabulary import Vocabulary
from tests.unit_tests.vocab.samples import GOLDEN, MODELS


@pytest.fixture(scope="session")
def tokenizer(shared: Path) -> Callable[[str], Any]:
    """``tokenizer("llama-3")`` -> the tokenizer, loaded once."""

    @cache
    def load(name: str) -> Any:
        if name in GOLDEN:
            file = shared / "golden" / "unite" / "tokenizers" / f"{name}.json"
            return PreTrainedTokenizerFast(tokenizer_file=str(file))
        folder = "models" if name in MODELS else "tokenizers"
        return AutoTokenizer.from_pretrained(shared / folder / name)

    return load


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Callable[[str], Any]) -> Callable[[str], Vocabulary]:
    """``vocabulary("llama-3")`` -> its vocabulary, built once."""

    @cache
    def build(name: str) -> Vocabulary:
        return Vocabulary(tokenizer(name))

    return build
