"""Raw prompts: what Hugging Face gives, and the few cases where we decide."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from langchain_ensemble.errors import ConfigError, MemberError
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.prompts import raw_prompt

TEXTS = (
    "Once upon a time",
    " leading",
    "trailing ",
    "a\n\tb",
    "Çà 日本 🧑‍🚀",
    "</s><|endoftext|>x",
    "\x00\x7f",
)
NAMES = (
    "llama-2", "llama-3", "mistral-v1", "mistral-v3", "qwen2.5", "yi", "deepseek-llm", "gpt2",
    "mpt", "pythia", "phi-3", "openllama", "minicpm3",
)  # fmt: skip
STARTS = {
    "llama-2": "<s>", "llama-3": "<|begin_of_text|>", "qwen2.5": "<|endoftext|>",
    "gpt2": "<|endoftext|>", "pythia": "<|endoftext|>", "deepseek-llm": "<｜begin▁of▁sentence｜>",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in loaded:
            loaded[name] = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
        return loaded[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_hugging_faces_own_ids(name: str, tokenizer: Callable[[str], Any]) -> None:
    for text in TEXTS:
        prompt = raw_prompt(name, tokenizer(name), text, None)
        assert list(prompt.ids) == tokenizer(name)(text)["input_ids"]
        assert not prompt.text_start


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_prompt_is_one_control_token(name: str, tokenizer: Callable[[str], Any]) -> None:
    prompt = raw_prompt(name, tokenizer(name), "", None)
    assert prompt.text_start
    assert len(prompt.ids) == 1
    token = tokenizer(name).convert_ids_to_tokens(prompt.ids[0])
    assert token == STARTS.get(name, token)
    assert prompt.ids[0] in tokenizer(name).added_tokens_decoder


def test_an_empty_prompt_without_any_start_is_refused(pico: Callable[..., Path]) -> None:
    plain = AutoTokenizer.from_pretrained(pico("llama"))
    plain.bos_token = None
    assert raw_prompt("m", plain, "", None).ids == (plain.eos_token_id,)
    plain.get_added_vocab = dict
    plain.eos_token = None
    with pytest.raises(
        ConfigError, match=r"prompt is empty, and the tokenizer of member 'm' has no bos"
    ):
        raw_prompt("m", plain, "", None)


def test_an_end_that_the_tokenizer_appends_is_dropped(
    pico: Callable[..., Path], shared: Path
) -> None:
    made = AutoTokenizer.from_pretrained(pico("llama"))
    plain = made("the fox")["input_ids"]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    want = [made.bos_token_id, *(i for i in plain if i != made.bos_token_id)]
    assert made("the fox")["input_ids"] == [*want, made.eos_token_id]
    assert list(raw_prompt("m", made, "the fox", None).ids) == want
    written = list(raw_prompt("m", made, "the fox</s>", None).ids)
    assert written[-1] == made.eos_token_id  # the user's own stays
    assert written.count(made.eos_token_id) == 1
    t5 = AutoTokenizer.from_pretrained(shared / "tokenizers" / "t5")
    assert list(raw_prompt("t5", t5, "the fox", None).ids) == t5("the fox")["input_ids"][:-1]


def test_a_prompt_longer_than_the_context_is_refused_never_cut(
    tokenizer: Callable[[str], Any],
) -> None:
    gpt2 = tokenizer("gpt2")
    text = "fox " * 50
    length = len(gpt2(text)["input_ids"])
    assert len(raw_prompt("m", gpt2, text, length).ids) == length
    with pytest.raises(
        ConfigError,
        match=rf"of {length} tokens is longer than the context of member 'm', {length - 1} ",
    ):
        raw_prompt("m", gpt2, text, length - 1)


def test_lone_surrogates_are_named_with_their_position(tokenizer: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigError, match=r"'m' has a lone surrogate, U\+D83D, at character 3"):
        raw_prompt("m", tokenizer("gpt2"), "abc\ud83d", None)


@pytest.mark.parametrize("name", ["llama-2", "gpt2"])
def test_a_megabyte_is_counted_in_seconds(name: str, tokenizer: Callable[[str], Any]) -> None:
    text = "Once upon a time there was a fox. " * 31_000
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"prompt of \d{6} tokens is longer"):
        raw_prompt("m", tokenizer(name), text, 4096)
    assert time.monotonic() - started < 30


def test_an_id_without_an_embedding_is_refused(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    member = HFMember.wrap(LlamaForCausalLM(config), tokenizer, name="narrow")
    with pytest.raises(MemberError, match=r"'narrow': its tokenizer gives id \d+.* 300 embeddings"):
        member.prompt("Once upon a time")
