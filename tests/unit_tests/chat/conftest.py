"""Tokenizers with roles, and views of them; vocabularies are built once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from langchain_ensemble.chat.view import ChatView
from langchain_ensemble.vocab.vocabulary import Vocabulary

MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<|tool_call|>", "<|/tool_call|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    *("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<｜end▁of▁sentence｜>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|start_of_role|>", "<|end_of_role|>"),
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
)
"""Control tokens of the templates in ``famous.py``."""

Get = Callable[..., tuple[Any, Vocabulary]]


@pytest.fixture(scope="session")
def tokenizers(shared: Path) -> Get:
    """``tokenizers("qwen2.5", armed=True)``: with bos and eos, and with the templates' markers."""

    @lru_cache(None)
    def get(name: str, armed: bool = False) -> tuple[Any, Vocabulary]:
        tokenizer = AutoTokenizer.from_pretrained(str(shared / "tokenizers" / name))
        if tokenizer.eos_token is None:
            tokenizer.eos_token = "<|endoftext|>"
        if tokenizer.bos_token is None:
            tokenizer.bos_token = tokenizer.eos_token
        if armed:
            new = [m for m in MARKERS if m not in tokenizer.get_vocab()]
            tokenizer.add_special_tokens({"additional_special_tokens": new[::2]})
            tokenizer.add_tokens(new[1::2])  # as many makers do, not flagged special
        return tokenizer, Vocabulary(tokenizer)

    return get


@pytest.fixture(scope="session")
def views(tokenizers: Get) -> Callable[..., ChatView]:
    """``views(template, "qwen2.5")``; warnings are errors unless ``warn`` takes them."""

    def refuse(message: str) -> None:
        raise AssertionError(f"unexpected warning: {message}")

    @lru_cache(None)
    def get(
        template: str | None, name: str = "qwen2.5", armed: bool = True, **settings: Any
    ) -> ChatView:
        tokenizer, vocabulary = tokenizers(name, armed)
        given = {"system": None, "context": None, "warn": refuse, **settings}
        return ChatView(name, tokenizer, vocabulary, chat_template=template, **given)

    return get
