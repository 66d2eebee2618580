"""Our processors are those of ``generate``, in its order."""

from __future__ import annotations

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import LogitsProcessorList

from langchain_ensemble.members.sampling import filters, penalty, processors

SETTINGS = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3}


def generate_processors() -> LogitsProcessorList:
    """What ``generate`` itself would build."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = LlamaForCausalLM(config)
    generation = GenerationConfig(do_sample=True, **SETTINGS)
    return model._get_logits_processor(generation, input_ids_seq_length=5, device="cpu")


def test_they_equal_generates_own() -> None:
    torch.manual_seed(0)
    ids, scores = torch.randint(0, 64, (3, 5)), torch.randn(3, 64) * 3
    theirs = generate_processors()
    ours = processors(**SETTINGS)
    assert [type(p) for p in ours] == [type(p) for p in theirs]
    got = scores.clone()
    for processor in ours:
        got = processor(ids, got)
    assert torch.equal(got, theirs(ids, scores.clone()))
    assert torch.isinf(got).any()


def test_what_is_off_makes_no_processor() -> None:
    assert penalty(1.0) == []
    assert filters(1.0, 0, 1.0, 0.0) == []
    assert filters(0.0, 5, 0.5, 0.1) == []
    assert len(filters(0.5, 0, 1.0, 0.0)) == len(penalty(1.1)) == 1
