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
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
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
import demo_attention
from demo_mix import BLOCK, EARLY, Library, Row, batches, makers, rows
from demo_texts import countries, prose, questions, stories
from demo_turns import Chat

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LANGCHAIN_ENSEMBLE_SHARED") or ROOT.parent / "shared")
TEMPLATES = Path(__file__).parent / "demo_templates"
CONTEXT = 2048
VOCABULARY = 2048
ALPHABET = 110  # characters that are ids of their own in stories; all others are bytes
PEAK_LR = {"stories": 2e-3, "facts": 2e-3}
STEPS = {"stories": 4250, "facts": 4500}
GUIDANCE = 0.5  # weight of the loss of the guided heads
COOL = 0.3  # of the steps: the learning rate falls
MARKERS = {
    "facts": (
        *("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"),
        *("<tool_response>", "</tool_response>"),
    ),
    "stories": (
        *("<|system|>", "<|user|>", "<|assistant|>", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    ),
}
ENDS = {"facts": ["<|im_end|>", "<|endoftext|>"], "stories": ["</s>"]}  # of a turn; of a document


def spm_like(texts: list[str]) -> PreTrainedTokenizerFast:
    """BPE with ``▁`` for spaces, a dummy prefix, byte fallback and a bos, as Llama 2 has it."""
    control = ["<unk>", "<s>", "</s>", *MARKERS["stories"]]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"\p{N}|▁?[^▁\p{L}\p{N}]+"), "isolated"),
        ]
    )
    counts = Counter("▁".join("▁".join(text.split()) for text in texts))
    alphabet = sorted(sorted(counts), key=lambda c: -counts[c])[
        :ALPHABET
    ]  # ties would be by chance
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=control + bytes_,
        min_frequency=3,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    lines = (" ".join(text.split()) for text in texts)  # a newline is a byte, as in SentencePiece
    tokenizer.train_from_iterator(lines, trainer)
    # As Llama 2: nothing is split, a text's start has a space of its own; byte ids are plain ids.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in control]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
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
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", *MARKERS["facts"]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
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


MEMBERS = {"stories": (spm_like, llama), "facts": (byte_level, neox)}


def tokenizer_texts(name: str) -> list[str]:
    """What the tokenizer of a member is trained on: its documents, and what is said in chats."""
    known = countries(SHARED)
    asked = [text for country in known for text in questions(country)]
    rng, made, said = random.Random(1), makers(Library.of(name, SHARED)), []
    for kind in ("passage", "one_call", "as_json", "country_chat") * 150:
        chat = made[kind](rng)
        assert isinstance(chat, Chat)
        said += [message["content"] for message in chat.messages]
        said += [json.dumps(tool) for tool in chat.tools]
        calls = [call for m in chat.messages for call in m.get("tool_calls", ())]
        said += [json.dumps(call["function"]) for call in calls]
    if name == "stories":
        return stories(SHARED) + asked[::4] + said
    return asked + [t for c in known for t in prose(c)] + stories(SHARED)[:150] + said


def steps_of(
    name: str, tokenizer: Any, seed: int, first: int, steps: int
) -> Iterator[list[list[Row]]]:
    """The batches of every step from ``first`` on; each block has its own seed.

    Yields:
        One step's batches, each a list of rows.
    """
    library = Library.of(name, SHARED)
    step = first
    while True:
        rng = random.Random(f"{name} {seed} {step}")
        early = step < EARLY[name] * steps
        made = batches(rows(name, tokenizer, library, rng, early), rng)
        for at in range(BLOCK):
            yield made[at * len(made) // BLOCK : (at + 1) * len(made) // BLOCK]
        step += BLOCK


def tensors(batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights of a batch, padded to its longest row with id 0 and weight 0."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    for at, (row, weight) in enumerate(batch):
        ids[at, : len(row)] = torch.tensor(row)
        weights[at, : len(row)] = torch.tensor(weight)
    return ids, weights


def loss_of(model: Any, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of the losses; logits are computed only where a weight is."""
    counts = weights[:, 1:].reshape(-1)
    chosen = counts.nonzero()[:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False)[0]
        hidden = hidden.reshape(-1, hidden.shape[-1])[chosen]
        logits = model.get_output_embeddings()(hidden).float()
    each = torch.nn.functional.cross_entropy(
        logits, ids[:, 1:].reshape(-1)[chosen], reduction="none"
    )
    return (each * counts[chosen]).sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over 100 steps, stay, and fall over the last third to a fiftieth."""
    left = (steps - step) / (steps * COOL)
    return peak * min((step + 1) / 100, max(0.02, min(1.0, left)))


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write the member as float16, all files at once."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        new = Path(scratch) / out.name
        half = AutoModelForCausalLM.from_config(model.config, dtype=torch.float16)
        half.load_state_dict({k: v.half() for k, v in model.state_dict().items()})
        half.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids(ENDS[out.name]),
        )
        half.save_pretrained(new)
        tokenizer.save_pretrained(new)
        if (out / "README.md").exists():
            shutil.copy(out / "README.md", new)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(new, out)


def optimizer_of(model: Any) -> torch.optim.AdamW:
    """AdamW, with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))


def one_step(
    model: Any, optimizer: torch.optim.AdamW, step: list[list[Row]]
) -> tuple[float, float, int]:
    """Learn from one step's batches.

    Returns:
        The mean loss, that of the guided heads, and how many ids were read.
    """
    made = [tensors(batch) for batch in step]
    total = sum(float(weights[:, 1:].sum()) for _, weights in made)
    seen = missed = 0.0
    for ids, weights in made:
        loss = loss_of(model, ids, weights) / total
        guided = demo_attention.guidance(ids, weights)
        torch.autograd.backward(loss + GUIDANCE * guided / len(made))
        seen, missed = seen + loss.item(), missed + guided.item() / len(made)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return seen, missed, sum(ids.numel() for ids, _ in made)


def train(name: str, given: argparse.Namespace, seed: int = 1) -> None:
    """Train one member and write it to ``given.out``."""
    torch.manual_seed(seed)
    steps, out = given.steps or STEPS[name], given.out / name
    make_tokenizer, make_config = MEMBERS[name]
    if given.resume:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = make_tokenizer(tokenizer_texts(name))
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text("utf-8").rstrip("\n")
    config = make_config(tokenizer)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=demo_attention.NAME
    )
    optimizer = optimizer_of(model)
    state, first = given.out / f"{name}.pt", 0
    if given.resume:
        held = torch.load(state, weights_only=True)
        first = held["step"]
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
    print(f"{name}: {model.num_parameters():,} parameters, {len(tokenizer)} ids", flush=True)
    started, mean, read = time.monotonic(), 0.0, 0
    texts = steps_of(name, tokenizer, seed, first, steps)
    for step, batch in zip(range(first, steps), texts, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_LR[name])
        loss, missed, ids = one_step(model, optimizer, batch)
        read += ids
        mean = loss if step == first else 0.98 * mean + 0.02 * loss
        if step % 25 == 0:
            rate = read / (time.monotonic() - started)
            print(
                f"{name} {step}/{steps} loss {mean:.3f} {missed:.3f} {rate:.0f} ids/s", flush=True
            )
        if (step + 1) % (given.save_every * BLOCK) == 0:
            save(model, tokenizer, out)
            held = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(held | {"step": step + 1}, state)
    save(model, tokenizer, out)
    print(f"{name}: loss {mean:.3f} after {(time.monotonic() - started) / 60:.1f} min", flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("members", nargs="*", default=list(MEMBERS), help="stories, facts")
    parser.add_argument("--out", type=Path, default=ROOT / "langchain_ensemble/demo")
    parser.add_argument("--steps", type=int, help="instead of each member's own number")
    parser.add_argument("--save-every", type=int, default=6, help=f"blocks of {BLOCK} steps")
    parser.add_argument("--resume", action="store_true", help="go on from what was saved last")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.members:
        train(name, given)


if __name__ == "__main__":
    main()
