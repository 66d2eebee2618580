"""Random models over real tokenizers: whatever is drawn, every member holds the answer's bytes.

Weights are random and tiny, so that nearly every key of a vocabulary comes up: byte tokens, CJK,
runs of spaces, keys that only one member has. Each step is checked against a full encoding.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import EnsembleParams, RequestParams

TOKENIZERS = [
    "llama-2", "llama-3", "mistral-v1", "mistral-v3", "qwen2.5", "yi", "deepseek-llm", "gpt2",
    "mpt", "pythia", "phi-3", "openllama", "minicpm3",
]  # fmt: skip
TEXT = "Grüße, 世界! 👩‍👩‍👧 naïve\n\tdef f(x):\n    return  x**2\r\n"
ALWAYS = [("llama-2", "gpt2"), ("gpt2", "yi"), ("pythia", "mistral-v3")]


def pairs(scale: int) -> list[tuple[str, str]]:
    if scale == 1:
        return ALWAYS
    every = list(itertools.permutations(TOKENIZERS, 2))
    return random.Random(0).sample(every, 30)


@pytest.fixture(scope="module")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, str] = {}

    def build(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
            torch.manual_seed(len(name))
            config = LlamaConfig(
                vocab_size=len(tokenizer) + 7,  # padded, as many checkpoints are
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=2048,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            LlamaForCausalLM(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name] = str(folder)
        return made[name]

    return build


def check_rows(rows: list[Any]) -> None:
    """Main's ids spell the answer; every other member holds its canonical encoding."""
    for row in rows:
        if row.finish is not None:
            continue
        answer = bytes(row.answer)
        for place, track in enumerate(row.tracks):
            table, roles = track.vocabulary.token_bytes, track.vocabulary.token_roles
            held = b"".join(table[i] for i in track.ids)
            assert all(roles[i] is None for i in track.ids)
            if place == 0:  # at a text's start main may draw a key without the usual space
                assert held in (b" " * track.lead + answer, answer)
            elif not row.fragment and row.records:
                assert held == b" " * track.lead + answer
                assert track.ids == track.vocabulary.encode(held.decode()).ids


def test_every_member_holds_every_byte(model: Any, acceptance_scale: int) -> None:
    fusions = itertools.cycle(["gac", "unite", "average"])
    for (main, other), fusion in zip(pairs(acceptance_scale), fusions, strict=False):
        members = {"main": model(main), "other": model(other)}
        with Ensemble(EnsembleParams(members=members, fusion=fusion)) as owner:
            request = RequestParams(max_tokens=30, temperature=1.5, seed=4, n=2)
            with owner.open(["Hello", ""], request) as decoding:
                rows = decoding._loop.rows
                texts = [""] * len(rows)
                while not decoding.done:
                    for piece in decoding.step():
                        texts[piece.row] += piece.text
                    check_rows(rows)
            for text, row in zip(texts, rows, strict=True):
                assert text.encode() + row.finish.dropped == bytes(row.answer)
                assert "\ufffd" not in text or b"\xef\xbf\xbd" in row.answer
            score = owner.score(TEXT, "Hello")
            assert score.num_bytes == len(TEXT.encode())
            assert 0 < score.bits_per_byte < 40
