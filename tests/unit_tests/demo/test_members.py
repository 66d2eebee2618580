"""The embedded members in raw text: small, different, complementary, and fused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_ensemble import EnsembleLLM, demo
from langchain_ensemble.params import FUSIONS
from langchain_ensemble.roles import ROLES

FRANCE = demo.PROMPTS["a country"]
FOX = demo.PROMPTS["a story"]


@pytest.fixture(scope="module")
def llm():
    with EnsembleLLM.demo(fusion="unite", max_tokens=60) as llm:
        yield llm.load()


def load(name: str):
    folder = demo.members()[name]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def test_facts_alone_ends_its_answers():
    model, tokenizer = load("facts")
    ids = tokenizer(FRANCE, return_tensors="pt")["input_ids"]
    done = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
    )
    answer = tokenizer.decode(done[0, ids.shape[1] :])
    assert answer == " The capital of France is Paris.<|endoftext|>"


def test_stories_alone_ends_its_stories():
    model, tokenizer = load("stories")
    ids = tokenizer(FOX, return_tensors="pt")["input_ids"].repeat(8, 1)
    torch.manual_seed(0)
    done = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=320, do_sample=True,
        temperature=0.8, top_k=0, pad_token_id=0,
    )  # fmt: skip
    ended = (done[:, ids.shape[1] :] == tokenizer.eos_token_id).any(-1)
    assert int(ended.sum()) >= 6  # of 8; a story of TinyStories has about 250 tokens


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


QUESTIONS = {
    "What is the capital of Japan?": "Tokyo",
    "Where is Peru?": "South America",
    "What is the highest point of Nepal?": "Mount Everest",
}


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name not in ROLES])
@pytest.mark.parametrize("question", QUESTIONS)
def test_what_facts_knows_survives_every_fusion(fusion, question, llm, request):
    if fusion == "bytes" and "Nepal" in question:
        why = "who knows nothing has a say inside every word: docs/fusions"
        request.applymarker(pytest.mark.xfail(strict=True, reason=why))
    fused = EnsembleLLM.demo(fusion=fusion, max_tokens=30)  # the weights are shared
    assert QUESTIONS[question] in fused.invoke(f"Question: {question}\nAnswer:")
    assert QUESTIONS[question] not in llm.solo("stories").invoke(f"Question: {question}\nAnswer:")


def test_only_facts_knows_and_together_they_know(llm):
    assert "Paris" in llm.solo("facts").invoke(FRANCE)
    assert "Paris" not in llm.solo("stories").invoke(FRANCE)
    assert "Paris" in llm.invoke(FRANCE)


def test_only_stories_tells_and_together_they_tell(llm):
    alone = {name: llm.solo(name).invoke(FOX, max_tokens=60) for name in llm.params.names}
    together = llm.invoke(FOX)
    assert alone["stories"].startswith(" who l")  # goes on with the fox: who loved, who lived
    assert not alone["facts"].startswith(" who l")
    assert together.startswith(" who l")
