"""Names of the shared tokenizers, and texts that tokenizers get wrong."""

from __future__ import annotations

import os
import random
from pathlib import Path

from hypothesis import strategies as st

TOKENIZERS = (
    "deepseek-llm", "gpt2", "llama-2", "llama-3", "minicpm3", "mistral-v1", "mistral-v3", "mpt",
    "openllama", "phi-3", "pythia", "qwen2.5", "t5", "yi",
)  # fmt: skip
MODELS = ("babyllama-105", "babyllama-361", "bitllama-1M", "stories260K")
GOLDEN = ("bl_a", "bl_b", "ms_bpe", "ms_uni")
EVERY = (*TOKENIZERS, *MODELS, *GOLDEN)
LOSSY = ("t5", "babyllama-105", "ms_uni")
"""They have no spelling for some texts."""

SCALE = int(os.environ.get("ACCEPTANCE", "1"))

TEXTS = (
    "",
    "a",
    " ",
    "Hello world",
    "  two leading spaces",
    "two trailing spaces  ",
    "Punctuation: 'single' \"double\" (round) [square] {curly} -- it's, we'll, I'D, they're!",
    "tabs\tand\t\tmore\nnewlines\n\nand\r\nreturns\n",
    "naïve café, Straße, Ünïcödé, ÀÁÂ øöúÿ",
    "你好，世界。今天天气很好！「日本語」カタカナ 한국어",
    "👩‍👩‍👧‍👦 family, 🇩🇪 flag, ✈️ plane, 👍🏽 thumb",
    "def f(x, *args):\n\tif x != 0:\n        return {'k': x**2}  # ok\n",
    "control \x00\x01\x1f\x7f\x85 bytes \u200b\u2028\ufeff",
    "numbers 12345 67 8,900.5 1e-9 2024-05-01T12:00:00Z 000111222333",
    " " * 37 + "x" + " " * 5,
    "</s> <s> <unk> <|im_end|> <|endoftext|> <|eot_id|> [INST] <0x41> <tool_call> <extra_id_0>",
    "literal ▁metaspace▁ and Ġ and ## and </w>",
    "composed é, decomposed e\u0301, ﬁ ligature, ½ ² Ⅷ １２３, \u00a0\u3000 spaces",
    "<h1>0</h1><br/>、。？！0,1.",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "สวัสดีชาวโลก नमस्ते दुनिया שלום עולם مرحبا Привет, мир!",
)

_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZ", "0123456789", " ", " ", "\n", "\t", "'’", "\r\n",
    "\"“”.,;:!?-_()[]{}/\\@#$%^&*+=<>|~`", "éàüßñ", "你好世界的是不了在人", "。，！？、「」\u3000",
    "ひらがなカタ한국어", "Приветмир", "สวัสดีก็ไ", "नमस्ते", "👨\u200d👩\ufe0f🇩🇪😀", "▁Ġøö\x00\x7f",
    "\u0301\u200b\u00a0\u2028\ufeff", "½²Ⅷ１２①",
)  # fmt: skip
_WORDS = (
    "don't", "we're", "I'LL", "it's", "http://", "://", "  ", "    ", "\n\n", "def ", "</s>",
    "<|im_end|>", "<0x0A>", "[INST]", "<h1>", "....", "---", "==", "1,000,000", " the", " of",
    "ing", "\r\n", "\t\t", "<tool_call>", "'s", "’s", "'Re", "e.g.",
)  # fmt: skip

texts = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.one_of(
            st.sampled_from(_WORDS),
            *(st.text(alphabet, min_size=1, max_size=5) for alphabet in _ALPHABETS),
        ),
        max_size=12,
    ).map("".join),
)


def random_text(rng: random.Random) -> str:
    """A text that mixes scripts, spaces, code and spellings of control tokens."""
    out = []
    for _ in range(rng.randint(1, 20)):
        if rng.random() < 0.6:
            alphabet = rng.choice(_ALPHABETS)
            out.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 6))))
        else:
            out.append(rng.choice(_WORDS))
    return "".join(out)


def real_texts(shared: Path, rng: random.Random, count: int, size: int) -> list[str]:
    """Pieces of stories, facts, encyclopedia and arithmetic."""
    files = (
        "tinystories/heldout_dev.txt", "facts/factbook.txt", "math/gsm8k_train.txt",
        "encyclopedic/boolq_passages_train.txt", "drama/tinyshakespeare.txt",
    )  # fmt: skip
    found = []
    for name in files:
        with open(shared / "text" / name, encoding="utf-8") as file:
            text = file.read(100_000)
        for _ in range(count):
            start = rng.randrange(len(text) - size)
            found.append(text[start : start + size])
    return found
