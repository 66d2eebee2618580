"""Byte distributions of a member against brute force over all token sequences of a tiny vocabulary.

Exact where continuations that the tokenizer would never write are masked and the rest renormalised
(Phan et al., ICLR 2025); without the mask, as the library hears members, by how much not is said.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from tokenizers import pre_tokenizers as pre
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from langchain_ensemble.decoding import byte_score
from langchain_ensemble.decoding.byte_score import Listener
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.base import MemberDistribution
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.params import EnsembleParams

LETTERS = "abc"
END = 256
MERGES = [
    [("a", "b"), ("b", "c"), ("ab", "c"), ("c", "a"), ("a", "a"), ("abc", "a")],
    [("b", "a"), ("c", "c"), ("ba", "cc"), ("a", "c"), ("b", "b"), ("cc", "a")],
]


def tiny(folder: Path, seed: int) -> str:
    """A model of a few tokens, sure enough of what it says that paths differ."""
    merges = MERGES[seed]
    pieces = ["<end>", *LETTERS, *(a + b for a, b in merges)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.6,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Any]]:
    folders = [tiny(tmp_path_factory.mktemp(f"tiny-{seed}"), seed) for seed in (0, 1)]
    with Ensemble(EnsembleParams(members=folders, fusion="bytes")) as owner:
        yield owner._ready().voices


class Brute:
    """Sums over token sequences, one by one."""

    def __init__(self, voice: Any, prompt: Any, masked: bool) -> None:
        self.voice, self.prompt, self.masked = voice, prompt, masked
        self.table = voice.vocabulary.token_bytes
        self.keys = [i for i, b in enumerate(self.table) if b and i not in voice.vocabulary.end_ids]
        self.known: dict[tuple[int, ...], dict[int, float]] = {}

    def valid(self, ids: tuple[int, ...], token: int) -> bool:
        text = b"".join(self.table[i] for i in (*ids, token)).decode()
        return tuple(self.voice.vocabulary.encode(text).ids) == (*ids, token)

    def probs(self, ids: tuple[int, ...]) -> dict[int, float]:
        """The next token's probability, END under its id."""
        if ids not in self.known:
            session = self.voice.member.session()
            logits = session.prefill([MemberPrompt((*self.prompt.ids, *ids))])[0].double()
            session.close()
            p = torch.softmax(logits, -1).tolist()
            kept = [i for i in self.keys if not self.masked or self.valid(ids, i)]
            ends = self.voice.vocabulary.end_ids
            total = sum(p[i] for i in (*kept, *ends))
            self.known[ids] = {i: p[i] / total for i in (*kept, *ends)}
        return self.known[ids]

    def prefix(self, data: bytes) -> float:
        """P(the text begins so), and under b"" + END: that it is all."""
        total, open_ = 0.0, [((), b"", 1.0)]
        while open_:
            ids, said, p = open_.pop()
            for token, q in self.probs(ids).items():
                if token in self.voice.vocabulary.end_ids:
                    continue
                more = said + self.table[token]
                if more.startswith(data):
                    total += p * q
                elif data.startswith(more):
                    open_.append(((*ids, token), more, p * q))
        return total

    def following(self, data: bytes) -> list[float]:
        """P of each letter after some bytes."""
        whole = self.prefix(data) if data else 1.0
        return [self.prefix(data + letter.encode()) / whole for letter in LETTERS]


class Masked(Listener):
    """A listener that hears only continuations that the tokenizer would write."""

    brute: Brute

    def _said(self, positions: Sequence[int], logits: torch.Tensor) -> MemberDistribution:
        logits = logits.clone()
        for row, at in zip(logits, positions, strict=True):
            ids = tuple(self._voice.vocabulary.encode(self._held[:at].decode()).ids)
            for token in self.brute.keys:
                if not self.brute.valid(ids, token):
                    row[token] = -torch.inf
        return super()._said(positions, logits)


def texts(count: int, size: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choice(LETTERS) for _ in range(size)) for _ in range(count)]


@pytest.mark.parametrize("member", [0, 1])
def test_masked_and_complete_is_exact(
    voices: Sequence[Any], member: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_score, "LEAST_SHARE", 1e-30)  # the covering is complete
    voice = voices[member]
    prompt = voice.member.prompt("")
    brute = Brute(voice, prompt, masked=True)
    for text in texts(4, 7):
        listener = Masked(voice, prompt, text)
        listener.brute = brute
        said = listener.listen().exp()
        torch.testing.assert_close(said.sum(-1), torch.ones(len(text)).double())
        for at in range(len(text)):
            data = text[:at].encode()
            expected = brute.following(data)
            got = [float(said[at, ord(letter)]) for letter in LETTERS]
            assert got == pytest.approx(expected, rel=2e-4, abs=1e-7)
            assert float(said[at, END]) == pytest.approx(1 - sum(expected), abs=1e-5)
        likely = math.prod(float(said[n, byte]) for n, byte in enumerate(text.encode()))
        assert likely == pytest.approx(brute.prefix(text.encode()), rel=1e-3)


def test_all_strings_of_a_length_and_the_shorter_that_end_have_all_the_probability(
    voices: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_score, "LEAST_SHARE", 1e-30)  # nothing goes to other bytes
    voice = voices[0]
    prompt, total = voice.member.prompt(""), 0.0
    for letters in itertools.product(LETTERS, repeat=3):
        text = "".join(letters)
        said = Listener(voice, prompt, text + "a").listen().exp()
        p = 1.0
        for n, byte in enumerate(text.encode()):
            if text[n:] == "a" * (3 - n):  # each shorter string once
                total += p * float(said[n, END])
            p *= float(said[n, byte])
        total += p
    assert total == pytest.approx(1.0, abs=1e-5)


def test_unmasked_is_near(voices: Sequence[Any]) -> None:
    far = []
    for voice in voices:
        prompt = voice.member.prompt("")
        exact = Brute(voice, prompt, masked=True)
        for text in texts(4, 6):
            said = Listener(voice, prompt, text).listen().exp()
            for at in range(len(text)):
                expected = exact.following(text[:at].encode())
                got = [float(said[at, ord(letter)]) for letter in LETTERS]
                gaps = [abs(a - b) for a, b in zip(got, expected, strict=True)]
                far.append((sum(gaps) + abs(sum(got) - sum(expected))) / 2)
    assert sum(far) / len(far) == pytest.approx(0.054, abs=0.01)  # docs/fusions.md says it
    assert max(far) == pytest.approx(0.65, abs=0.05)
