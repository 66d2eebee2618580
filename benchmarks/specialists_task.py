"""The specialists' task: sums and facts of countries, what is held out, and two tokenizers."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import SHARED
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from demo_texts import countries

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


def metaspace(texts: Sequence[str], size: int) -> Tokenizer:
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


def byte_level(texts: Sequence[str], size: int) -> Tokenizer:
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
