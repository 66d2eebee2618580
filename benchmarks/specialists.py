"""Two specialists, and one model of their summed size that learned both halves.

``sums`` (Llama, metaspace BPE with byte fallback, bos) learns to add numbers below 100, ``facts``
(GPT-NeoX, byte-level BPE, no bos) facts of countries; ``both`` (Llama, byte-level BPE, as many
parameters as the two together) learns both, from as many rows as the two together.

What each sees: of every 100 rows of a specialist 98 are its own half's and 2 the other's, drawn
from that half's whole training set: enough to know how such an answer looks, far too few to know
it. ``both`` sees 50 and 50. No model sees a held-out pair of numbers, in either order, nor a
held-out way of asking for a fact (of three ways to ask for each fact, one is held out).

``python benchmarks/specialists.py --folder DIR`` makes them on one thread (default: ``out/``,
which git ignores); what is there is not made again, what was broken off goes on. Reads the shared
country profiles.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import SHARED, one_thread
from specialists_task import Item, byte_level, metaspace, split, sums, text_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "out" / "specialists"
__all__ = ["FOLDER", "NAMES", "Item", "split", "sums", "train"]

NAMES = ("sums", "facts", "both")
VOCABULARY = {"sums": 700, "facts": 1024, "both": 1024}
STEPS = {"sums": 4000, "facts": 2500, "both": 6500}
ROWS, PARTS, PEAK, SAVE_EVERY = 96, 2, 3e-3, 250
OWN = 0.98
"""Share of a specialist's rows that are its own half's."""

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}\n"
    "{% else %}Question: {{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)


def tokenizer_of(name: str, data: dict[str, list[Item]]) -> Any:
    """Train a model's tokenizer on the questions and answers of both halves.

    Args:
        name: One of :data:`NAMES`.
        data: What :func:`split` gives.

    Returns:
        A Hugging Face tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(name)
    seen = rng.sample(data["sums"], 1000) + data["facts"]
    texts = [text_of(item) for item in seen]
    if name == "sums":
        made, bos, end = metaspace(texts, VOCABULARY[name]), "<s>", "</s>"
        extra = {"unk_token": "<unk>"}
    else:
        made, bos, end = byte_level(texts, VOCABULARY[name]), "<|endoftext|>", "<|endoftext|>"
        extra = {}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=end, model_max_length=256, **extra
    )
    wrapped.chat_template = ("{{ bos_token }} " if name == "sums" else "") + TEMPLATE
    return wrapped


def config_of(name: str, tokenizer: Any) -> Any:
    """Sizes: two specialists of about 0.5M parameters, and ``both`` of their sum.

    Args:
        name: One of :data:`NAMES`.
        tokenizer: Its tokenizer.

    Returns:
        A Hugging Face config.
    """
    from transformers import GPTNeoXConfig, LlamaConfig

    same = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        "num_attention_heads": 4,
    }
    if name == "facts":
        wide = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}
        return GPTNeoXConfig(**same, **wide)
    wide = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}
    if name == "both":
        wide = {"hidden_size": 176, "intermediate_size": 496, "num_hidden_layers": 2}
    return LlamaConfig(**same, **wide)


def batch_of(
    name: str, step: int, data: dict[str, list[Item]], tokenizer: Any
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The rows of a step, from a seed of its own, those of like length together.

    Args:
        name: One of :data:`NAMES`.
        step: Which step.
        data: What :func:`split` gives.
        tokenizer: The model's.

    Returns:
        Ids [rows, width] and labels of that shape: the answer's ids and the end, -100 elsewhere.
    """
    rng = random.Random(f"{name} {step}")
    rows = []
    for _ in range(ROWS):
        share = 0.5 if name == "both" else OWN if name == "sums" else 1 - OWN
        item = rng.choice(data["sums" if rng.random() < share else "facts"])
        rows.append(_row(item, tokenizer))
    rows.sort(key=lambda row: len(row[0]))
    size = ROWS // PARTS
    return [_padded(rows[at : at + size]) for at in range(0, ROWS, size)]


@cache
def _row(item: Item, tokenizer: Any) -> tuple[list[int], list[int]]:
    ids = [*tokenizer(text_of(item))["input_ids"], tokenizer.eos_token_id]
    start = len(tokenizer(item.prompt)["input_ids"])
    return ids, [-100] * start + ids[start:]


def _padded(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in rows)
    ids = [ids + [0] * (width - len(ids)) for ids, _ in rows]
    labels = [found + [-100] * (width - len(found)) for _, found in rows]
    return torch.tensor(ids), torch.tensor(labels)


def learn(model: Any, batch: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Gradients of the mean loss of the labelled ids; logits are computed for these alone.

    Args:
        model: The model.
        batch: What :func:`batch_of` gives.

    Returns:
        The loss.
    """
    count = sum(int((labels[:, 1:] != -100).sum()) for _, labels in batch)
    total = 0.0
    for ids, labels in batch:
        targets = labels[:, 1:].reshape(-1)
        chosen = (targets != -100).nonzero()[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False)[0]
            logits = model.get_output_embeddings()(hidden.reshape(-1, hidden.shape[-1])[chosen])
        missed = torch.nn.functional.cross_entropy(logits.float(), targets[chosen], reduction="sum")
        torch.autograd.backward(missed / count)
        total += missed.item() / count
    return total


def train(name: str, folder: Path, steps: int | None = None, shared: Path = SHARED) -> Path:
    """Make one model, or find it made, or go on with it.

    Args:
        name: One of :data:`NAMES`.
        folder: Where its folder lies.
        steps: Instead of :data:`STEPS`.
        shared: Folder with ``text/``.

    Returns:
        The model's folder.
    """
    from transformers import AutoModelForCausalLM

    place, state, steps = folder / name, folder / f"{name}.pt", steps or STEPS[name]
    if (place / "model.safetensors").exists():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    data = split(shared)
    tokenizer = tokenizer_of(name, data)
    torch.manual_seed(NAMES.index(name))
    model = AutoModelForCausalLM.from_config(
        config_of(name, tokenizer),
        dtype=torch.float32,
        attn_implementation="eager",  # twice as quick as the fused kernel on rows this short
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.05)
    first, ids_read = 0, 0
    if state.exists():
        held = torch.load(state, weights_only=True)
        model.load_state_dict(held["model"])
        optimiser.load_state_dict(held["optimiser"])
        first, ids_read = held["step"], held["ids_read"]
    print(f"{name}: {model.num_parameters():,} parameters, {len(tokenizer)} ids", flush=True)
    mean, clock = 0.0, time.process_time()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = PEAK * min(1.0, (step + 1) / 100, max(0.02, (steps - step) / steps / 0.4))
        batch = batch_of(name, step, data, tokenizer)
        loss = learn(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        ids_read += sum(ids.numel() for ids, _ in batch)
        mean = 0.98 * mean + 0.02 * loss
        if step % 100 == 0:
            spent = time.process_time() - clock
            print(f"{name} {step}/{steps} loss {mean:.4f} {spent:.0f} s", flush=True)
        if (step + 1) % SAVE_EVERY == 0:
            held = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(held | {"step": step + 1, "ids_read": ids_read}, state)
    tokenizer.save_pretrained(place)
    facts_of = {"parameters": model.num_parameters(), "ids_read": ids_read, "rows": steps * ROWS}
    (place / "training.json").write_text(json.dumps(facts_of))
    model.eval().save_pretrained(place)
    return place


def main() -> None:
    """Make the models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NAMES), help=", ".join(NAMES))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, help="of every model, instead of its own number")
    given = parser.parse_args()
    one_thread()
    for name in given.names:
        print(train(name, given.folder, given.steps), flush=True)
    (given.folder / "test.json").write_text(
        json.dumps([asdict(item) for item in split()["test"]], indent=1)
    )


if __name__ == "__main__":
    main()
