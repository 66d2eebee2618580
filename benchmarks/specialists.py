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
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import SHARED, one_thread
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from demo_texts import countries

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "out" / "specialists"
NAMES = ("sums", "facts", "both")
VOCABULARY = {"sums": 700, "facts": 1024, "both": 1024}
STEPS = {"sums": 4000, "facts": 2500, "both": 6500}
ROWS, PARTS, PEAK, SAVE_EVERY = 96, 2, 3e-3, 250
OWN = 0.98
"""Share of a specialist's rows that are its own half's."""

ASKED = {
    "capital": (
        "What is the capital of {c}?",
        "Which city is the capital of {c}?",
        "{c} has which capital?",
    ),
    "region": ("Where is {c}?", "In which part of the world is {c}?", "{c} is in which region?"),
    "language": (
        "Which language do people speak in {c}?",
        "What do people speak in {c}?",
        "{c} has which language?",
    ),
    "people": (
        "What are the people of {c} called?",
        "How do we call people from {c}?",
        "{c} is home to which people?",
    ),
    "domain": (
        "What is the Internet code of {c}?",
        "Which Internet code has {c}?",
        "{c} has which Internet code?",
    ),
}
ADDED = ("What is {a} plus {b}?", "How much is {a}+{b}?", "{a}+{b} is what?")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}\n"
    "{% else %}Question: {{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)


@dataclass(frozen=True)
class Item:
    """A question, its answer, and the half it belongs to.

    Attributes:
        half: ``"sums"`` or ``"facts"``.
        kind: What is asked for.
        question: The question alone.
        answer: The answer alone.
    """

    half: str
    kind: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """What a member reads."""
        return f"Question: {self.question}\nAnswer:"


def sums() -> tuple[list[Item], list[Item]]:
    """All sums of two numbers below 100.

    Returns:
        Those to learn from, each in every way of asking, and held-out ones in one way each.
    """
    rng = random.Random("sums")
    pairs = [(a, b) for a in range(100) for b in range(a, 100)]
    held = set(rng.sample(pairs, 600))
    known, asked = [], []
    for a, b in ((a, b) for a in range(100) for b in range(100)):
        ways = [way.format(a=a, b=b) for way in ADDED]
        if (min(a, b), max(a, b)) in held:
            asked.append(Item("sums", "sum", rng.choice(ways), str(a + b)))
        else:
            known += [Item("sums", "sum", way, str(a + b)) for way in ways]
    return known, asked


def facts(shared: Path = SHARED) -> tuple[list[Item], list[Item]]:
    """All facts of countries.

    Args:
        shared: Folder with ``text/``.

    Returns:
        Two ways of asking for each, to learn from, and the third, held out.
    """
    rng = random.Random("facts")
    known, asked = [], []
    for country in countries(shared):
        for kind, ways in ASKED.items():
            if kind not in country.facts:
                continue
            left_out = rng.randrange(len(ways))
            for n, way in enumerate(ways):
                item = Item("facts", kind, way.format(c=country.name), country.facts[kind])
                (asked if n == left_out else known).append(item)
    return known, asked


def split(shared: Path = SHARED, test: int = 240, dev: int = 120) -> dict[str, list[Item]]:
    """Training rows of each half, and mixed sets that no model has seen.

    Args:
        shared: Folder with ``text/``.
        test: Items of the held-out set, half of them sums.
        dev: Items of another such set, on which weights and calibration are fitted.

    Returns:
        ``sums``, ``facts``: to learn from; ``dev``, ``test``: half and half, in turns.
    """
    made = {"sums": sums(), "facts": facts(shared)}
    rng = random.Random("split")
    half = (test + dev) // 2
    drawn = {name: rng.sample(asked, half) for name, (_, asked) in made.items()}
    mixed = [item for pair in zip(drawn["sums"], drawn["facts"], strict=True) for item in pair]
    return {
        "sums": made["sums"][0],
        "facts": made["facts"][0],
        "test": mixed[:test],
        "dev": mixed[test : test + dev],
    }


def text_of(item: Item) -> str:
    """A training row as text."""
    return f"{item.prompt} {item.answer}"


def _metaspace(texts: Sequence[str], size: int) -> Tokenizer:
    """BPE with ``▁`` for spaces, a dummy prefix, byte fallback and a bos, as Llama 2 has it."""
    control, fallback = ["<unk>", "<s>", "</s>"], [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"\p{N}|▁?[^▁\p{L}\p{N}]+"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=control + fallback, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(text.split()) for text in texts], trainer)
    state = json.loads(tokenizer.to_str())  # byte ids are plain ids, nothing is split: as Llama 2
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
    return tokenizer


def _byte_level(texts: Sequence[str], size: int) -> Tokenizer:
    """Byte-level BPE without a bos, as GPT-NeoX has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


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
        made, bos, end = _metaspace(texts, VOCABULARY[name]), "<s>", "</s>"
        extra = {"unk_token": "<unk>"}
    else:
        made, bos, end = _byte_level(texts, VOCABULARY[name]), "<|endoftext|>", "<|endoftext|>"
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
