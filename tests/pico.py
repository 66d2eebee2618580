"""Real architectures, a few kilobytes each: built from a config, with a tokenizer trained here.

No download. The same kind always gives the same weights and the same vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

CORPUS = (
    "Once upon a time there was a little fox who lived in the forest with her mother.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "One day the fox found a red ball; she said: 'What is this?' and took it home.",
    "Question: How many stars are there?\nAnswer: More than 1,234,567 of them.",
    "def add(a, b):\n    return a + b  # the sum\n\tprint(add(1, 2))",
    "Çà et là, déjà vu: naïve café. Größe, Straße, ähnlich. Ñandú y pingüino.",
    "日本語の文章。中文字符。한국어 문장. Привет, мир! Γειά σου Κόσμε.",
    "The king's daughter went out into the wood, and sat down by a cool spring.",
)


def spm_tokenizer(vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """Train a SentencePiece-like BPE: ``▁`` for spaces, byte fallback, bos before the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + len(special),
        special_tokens=special,
        show_progress=False,
        max_token_length=8,
    )
    # trained on words, so that a piece has its ▁ at its start only
    tokenizer.train_from_iterator((word for line in CORPUS for word in line.split()), trainer)
    # byte tokens are ordinary entries of the vocabulary, as SentencePiece has them
    tokenizer = _without_added(tokenizer, keep=("<unk>", "<s>", "</s>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _without_added(tokenizer: Tokenizer, keep: tuple[str, ...]) -> Tokenizer:

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in keep]
    return Tokenizer.from_str(json.dumps(state))


def byte_level_tokenizer(
    vocab_size: int, end: str = "<|endoftext|>", extra: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end, *extra],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (end, *extra)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=None)


def _llama(tokenizer: Any) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer) + 5,  # models pad their columns: the logits are wider
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )


def _qwen2(tokenizer: Any) -> PreTrainedConfig:
    return Qwen2Config(
        vocab_size=len(tokenizer) + 7,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )


def _gpt2(tokenizer: Any) -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _neox(tokenizer: Any) -> PreTrainedConfig:
    return GPTNeoXConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], PreTrainedConfig]]] = {
    "llama": (spm_tokenizer, _llama),
    "qwen2": (lambda: byte_level_tokenizer(512, extra=("<|im_start|>", "<|im_end|>")), _qwen2),
    "gpt2": (lambda: byte_level_tokenizer(400), _gpt2),
    "neox": (lambda: byte_level_tokenizer(460), _neox),
}


def build(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write one pico model and its tokenizer into ``folder``, as ``save_pretrained`` does.

    Args:
        kind: A name of :data:`KINDS`.
        folder: Where to write; made if absent.
        seed: Seed of the weights; the tokenizer does not depend on it.

    Returns:
        The folder.
    """
    make_tokenizer, make_config = KINDS[kind]
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(tokenizer))
        with torch.no_grad():  # the default 0.02 gives flat rows; these have clear first choices
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(6.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
