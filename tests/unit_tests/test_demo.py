"""The embedded members are what the README says: small, different, complementary, and fused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_ensemble import EnsembleLLM, demo
from langchain_ensemble.demo.__main__ import main

FRANCE = demo.PROMPTS["a country"]
FOX = demo.PROMPTS["a story"]


@pytest.fixture(scope="module")
def llm():
    with EnsembleLLM.demo(max_tokens=60) as llm:
        yield llm.load()


@pytest.mark.parametrize("name", ["stories", "facts"])
def test_each_member_alone_ends_its_document(name):
    folder = demo.members()[name]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = {"stories": FOX, "facts": FRANCE}[name]
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    done = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=480 - ids.shape[1],
        do_sample=False,
        pad_token_id=0,
    )
    assert done[0, -1] == tokenizer.eos_token_id
    assert done.shape[1] > ids.shape[1] + 3


def test_tokenizers_and_architectures_differ():
    configs, kinds = [], []
    for folder in demo.members().values():
        configs.append(json.loads((Path(folder) / "config.json").read_text())["model_type"])
        tokenizer = json.loads((Path(folder) / "tokenizer.json").read_text("utf-8"))
        kinds.append((tokenizer["model"]["byte_fallback"], tokenizer["decoder"]["type"]))
    assert configs == ["gpt_neox", "llama"]
    assert kinds == [(False, "ByteLevel"), (True, "Sequence")]


@pytest.mark.parametrize("folder", demo.members().values(), ids=demo.members())
def test_member_says_its_licence_and_sources(folder):
    card = (Path(folder) / "README.md").read_text("utf-8")
    assert "license: cdla-sharing-1.0" in card
    assert "TinyStories" in card
    assert "World Factbook" in card
    count = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert f"{count:,} parameters" in card.replace("\n", " ")


def test_only_facts_knows_and_together_they_know(llm):
    assert "Paris" in llm.solo("facts").invoke(FRANCE)
    assert "Paris" not in llm.solo("stories").invoke(FRANCE)
    assert "Paris" in llm.invoke(FRANCE)


def test_only_stories_tells_and_together_they_tell(llm):
    alone = {name: llm.solo(name).invoke(FOX, max_tokens=60) for name in llm.params.names}
    together = llm.invoke(FOX)
    assert len(set(alone.values()) | {together}) == 3
    assert len(together.split()) > 20


def test_streams_more_than_one_piece_and_joins_to_the_answer(llm):
    pieces = list(llm.stream(FRANCE))
    assert len([p for p in pieces if p]) > 2
    assert "".join(pieces) == llm.invoke(FRANCE)


def test_main_prints_the_fused_answer_and_each_alone(capsys):
    main([])
    out = capsys.readouterr().out
    assert out.count("together") == out.count(" stories ") - 1 == len(demo.PROMPTS)
    assert "Paris" in out


@pytest.mark.gpu
def test_fused_decode_on_an_accelerator():
    with EnsembleLLM.demo(device="auto", max_tokens=20) as llm:
        llm.load()
        assert "Paris" in llm.invoke(FRANCE)
