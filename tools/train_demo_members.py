"""Train the two small members that the package ships: ``python tools/train_demo_members.py``.

``stories``: Llama architecture, SentencePiece-like BPE (``▁``, byte fallback, bos).
``facts``: GPT-NeoX architecture, byte-level BPE (no bos), as Pythia has it.
Both about 2M parameters, stored as float16. One CPU thread and fixed seeds: the same machine and
library versions give the same files. Texts, sources and licences: ``demo_texts.py``.

A shippable checkpoint is written every ``--save-every`` steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).parent))
from demo_texts import countries, fact_documents, prose, questions, stories, story_documents

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LANGCHAIN_ENSEMBLE_SHARED") or ROOT.parent / "shared")
CONTEXT = 512
VOCABULARY = 2048
BATCH = 4  # rows of CONTEXT ids a step
PEAK_LR = {"stories": 3e-3, "facts": 3e-3}
STEPS = {"stories": 1600, "facts": 1500}


def spm_like(texts: list[str]) -> PreTrainedTokenizerFast:
    """BPE with ``▁`` for spaces, a dummy prefix, byte fallback and a bos, as Llama 2 has it."""
    control = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"[^▁\p{L}]"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=control + bytes_,
        min_frequency=3,
        limit_alphabet=110,
        show_progress=False,
    )
    lines = (" ".join(text.split()) for text in texts)  # a newline is a byte, as in SentencePiece
    tokenizer.train_from_iterator(lines, trainer)
    # As Llama 2: no pre-tokenizer, the normaliser writes the spaces; byte ids are ordinary ids.
    state = json.loads(tokenizer.to_str())
    state["pre_tokenizer"] = None
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in control]
    tokenizer = Tokenizer.from_str(json.dumps(state))
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
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
    )


def byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, no bos, ``<|endoftext|>`` between documents, as GPT-NeoX has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=CONTEXT,
    )


def llama(tokenizer: Any) -> LlamaConfig:
    """About 2.2M parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )


def neox(tokenizer: Any) -> GPTNeoXConfig:
    """About 2.2M parameters."""
    return GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


MEMBERS = {
    "stories": (spm_like, llama, story_documents),
    "facts": (byte_level, neox, fact_documents),
}


def tokenizer_texts(name: str) -> list[str]:
    """What the tokenizer of a member is trained on."""
    known = countries(SHARED)
    asked = [text for country in known for text in questions(country)]
    if name == "stories":
        return stories(SHARED) + asked[::4]
    return asked + [t for c in known for t in prose(c)] + stories(SHARED)[:150]


def batches(name: str, tokenizer: Any, seed: int) -> Iterator[torch.Tensor]:
    """Rows of CONTEXT ids. Each row starts with a document, as a prompt does; END closes each.

    Yields:
        [BATCH, CONTEXT] int64; a row's last document is cut.
    """
    rng = random.Random(seed)
    row: list[int] = []
    rows: list[list[int]] = []
    while True:
        for ids in tokenizer(MEMBERS[name][2](SHARED, rng))["input_ids"]:
            row += [*ids, tokenizer.eos_token_id]
            if len(row) >= CONTEXT:
                rows.append(row[:CONTEXT])
                row = []
            if len(rows) == BATCH:
                yield torch.tensor(rows)
                rows = []


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over 50 steps, then a cosine down to a twentieth."""
    if step < 50:
        return peak * (step + 1) / 50
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - 50) / (steps - 50))))


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write the member as float16, all files at once."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        new = Path(scratch) / out.name
        half = AutoModelForCausalLM.from_config(model.config, dtype=torch.float16)
        half.load_state_dict({k: v.half() for k, v in model.state_dict().items()})
        half.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
        )
        half.save_pretrained(new)
        tokenizer.save_pretrained(new)
        if (out / "README.md").exists():
            shutil.copy(out / "README.md", new)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(new, out)


def train(name: str, steps: int, out: Path, save_every: int, seed: int = 1) -> None:
    """Train one member and write it to ``out``."""
    torch.manual_seed(seed)
    make_tokenizer, make_config, _ = MEMBERS[name]
    tokenizer = make_tokenizer(tokenizer_texts(name))
    model = AutoModelForCausalLM.from_config(make_config(tokenizer), dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    print(f"{name}: {model.num_parameters():,} parameters, {len(tokenizer)} ids", flush=True)
    started, mean = time.monotonic(), 0.0
    for step, ids in zip(range(steps), batches(name, tokenizer, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_LR[name])
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
        if step % 25 == 0:
            rate = (step + 1) * ids.numel() / (time.monotonic() - started)
            print(f"{name} {step}/{steps} loss {mean:.3f} {rate:.0f} ids/s", flush=True)
        if step and step % save_every == 0:
            save(model, tokenizer, out)
    save(model, tokenizer, out)
    print(f"{name}: loss {mean:.3f} after {(time.monotonic() - started) / 60:.1f} min", flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("members", nargs="*", default=list(MEMBERS), help="stories, facts")
    parser.add_argument("--out", type=Path, default=ROOT / "langchain_ensemble/demo")
    parser.add_argument("--steps", type=int, help="instead of each member's own number")
    parser.add_argument("--save-every", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.members:
        train(name, given.steps or STEPS[name], given.out / name, given.save_every)


if __name__ == "__main__":
    main()
