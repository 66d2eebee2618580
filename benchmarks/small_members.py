"""Members of any size with random weights, for benchmarks: tokenizers trained or read, no download.

What is made is kept in a folder of the system's temporary files and used again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LANGCHAIN_ENSEMBLE_SHARED") or ROOT.parent / "shared")
Kind = Literal["byte-level", "metaspace"]


def trained_tokenizer(kind: Kind, size: int) -> Any:
    """Train a BPE tokenizer on a few megabytes of text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = ["<|endoftext|>"]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        texts: Iterator[str] = iter(_texts())
    else:
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
        alphabet = []
        texts = (word for text in _texts() for word in text.split())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "byte-level":
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0])
    state = json.loads(tokenizer.to_str())  # byte tokens are ordinary entries of the vocabulary
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def text(characters: int) -> str:
    """English to be read as a prompt."""
    return (SHARED / "text" / "stories" / "grimm.txt").read_text()[2000 : 2000 + characters]


def _texts() -> list[str]:
    names = ("stories/grimm.txt", "stories/sherlock.txt", "tinystories/train_2M.txt")
    return [line for name in names for line in (SHARED / "text" / name).read_text().splitlines()]


def llama(
    tokenizer: str | tuple[Kind, int],
    *,
    hidden: int,
    layers: int,
    seed: int = 0,
    positions: int = 16_384,
) -> Path:
    """A Llama with random weights that does not end by itself.

    Args:
        tokenizer: A folder of the shared tokenizers, or a kind and a size to train.
        hidden: Width.
        layers: How many.
        seed: Of the weights.
        positions: Context.

    Returns:
        Its folder.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    what = repr((tokenizer, hidden, layers, seed, positions, 3))
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "langchain-ensemble-benchmarks" / name
    if (folder / "done").exists():
        return folder
    made = (
        AutoTokenizer.from_pretrained(str(SHARED / "tokenizers" / tokenizer))
        if isinstance(tokenizer, str)
        else trained_tokenizer(*tokenizer)
    )
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(6.0)  # the default gives flat rows
        ends = [i for i in (made.eos_token_id,) if i is not None]
        model.lm_head.weight[ends] = 0.0  # never the best
        silent = [i for i, piece in enumerate(_pieces(made)) if not _plain(piece)]
        model.lm_head.weight[silent] = 0.0  # words, not halves of characters
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    (folder / "done").touch()
    return folder


def _pieces(tokenizer: Any) -> list[str]:
    return [piece or "" for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]


def _plain(piece: str) -> bool:
    return len(piece) > 1 and all((c.isascii() and c.isalpha()) or c in "Ġ▁" for c in piece)
