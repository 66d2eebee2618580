"""A small pair of members with large vocabularies, trained in minutes and not shipped.

Two Llamas (2 layers x 64, tied heads) with BPE tokenizers of their own, byte-level (9,000 ids) and
metaspace with byte fallback (8,600 ids), trained on the same texts. Good enough that rows are as
sharp as a language model's and that two members mostly agree; no good for anything else.

``python benchmarks/trained_pair.py --folder DIR`` makes them (about five minutes on one thread);
what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import SHARED, one_thread
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

NAMES = ("bytelevel", "metaspace")
SIZES = {"bytelevel": 9000, "metaspace": 8600}
TEXTS = ("tinystories/train_2M.txt", "stories/grimm.txt")
HELD_OUT = 20_000
"""Characters at the end of each text that no tokenizer and no model sees."""

LENGTH, BATCH = 64, 12
END = "<|end|>"


def texts(shared: Path = SHARED) -> dict[str, str]:
    """The texts, at most 3 MB each.

    Args:
        shared: Folder with ``text/``.

    Returns:
        Name to text.
    """
    return {name: (shared / "text" / name).read_text()[:3_000_000] for name in TEXTS}


def prompts(count: int, shared: Path = SHARED, words: int = 12) -> list[str]:
    """Beginnings of sentences from the parts that nobody was trained on.

    Args:
        count: How many.
        shared: Folder with ``text/``.
        words: Words of a prompt.

    Returns:
        The prompts, from all texts in turns.
    """
    parts = [text[-HELD_OUT:].split() for text in texts(shared).values()]
    found = []
    for n in range(count):
        part = parts[n % len(parts)]
        at = (n // len(parts)) * 37 % (len(part) - words)
        found.append(" ".join(part[at : at + words]))
    return found


def train_tokenizer(name: str, corpus: list[str]) -> Tokenizer:
    """Train one tokenizer; the metaspace one gets a token a byte at the end.

    Args:
        name: One of :data:`NAMES`.
        corpus: Texts.

    Returns:
        The tokenizer.
    """
    size = SIZES[name]
    pieces = [line for text in corpus for line in text.splitlines(keepends=True)]
    if name == "bytelevel":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(pieces, trainer)
        return tokenizer
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size - 256, special_tokens=["<unk>", END], show_progress=False
    )
    tokenizer.train_from_iterator(pieces, trainer)
    plain: dict[str, Any] = json.loads(tokenizer.to_str())
    vocabulary = plain["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    return Tokenizer.from_str(json.dumps(plain))


def train_model(tokenizer: Tokenizer, corpus: list[str], seconds: float, seed: int) -> Any:
    """Train one model for so long.

    Args:
        tokenizer: Its tokenizer.
        corpus: Texts.
        seconds: Of computing.
        seed: Of weights and batches.

    Returns:
        The model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = torch.tensor([i for text in corpus for i in tokenizer.encode(text).ids])
    torch.manual_seed(seed)
    end = tokenizer.token_to_id(END)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    started, step, mean = time.process_time(), 0, 0.0
    while (spent := time.process_time() - started) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = 6e-3 * min(1.0, (step + 1) / 50) * max(0.05, 1 - spent / seconds)
        at = torch.randint(len(ids) - LENGTH, (BATCH, 1))
        batch = ids[at + torch.arange(LENGTH)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        mean, step = 0.98 * mean + 0.02 * loss.item(), step + 1
        if step % 200 == 0:
            print(f"  step {step}, {spent:.0f} s, loss about {mean / (1 - 0.98**step):.3f}")
    return model.eval()


def make(folder: Path, seconds: float = 140.0, shared: Path = SHARED) -> list[Path]:
    """Make the pair, or find it made.

    Args:
        folder: Where both lie, one folder each.
        seconds: Of training, each.
        shared: Folder with ``text/``.

    Returns:
        The members' folders.
    """
    from transformers import PreTrainedTokenizerFast

    corpus = [text[:-HELD_OUT] for text in texts(shared).values()]
    for seed, name in enumerate(NAMES):
        place = folder / name
        if (place / "model.safetensors").exists():
            continue
        print(f"{name}: tokenizer of {SIZES[name]} ids", flush=True)
        tokenizer = train_tokenizer(name, corpus)
        model = train_model(tokenizer, corpus, seconds, seed)
        unk = {} if name == "bytelevel" else {"unk_token": "<unk>"}
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=END, eos_token=END, **unk
        ).save_pretrained(place)
        model.save_pretrained(place)
    return [folder / name for name in NAMES]


def main() -> None:
    """Make the pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=140.0, help="of training, each")
    given = parser.parse_args()
    one_thread()
    for place in make(given.folder, given.seconds):
        print(place)


if __name__ == "__main__":
    main()
