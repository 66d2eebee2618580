"""Pico models of many families, built from a config: two layers, hidden 32, random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 96

BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

TWO_WINDOWS = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}

LLAMA4 = {
    "attention_chunk_size": 5,
    "num_local_experts": 4,
    "intermediate_size_mlp": 48,
    "layer_types": ["chunked_attention", "full_attention"],
}

RAGGED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-mha-tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "bitnet": ("bitnet", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-sliding": ("mistral", {"sliding_window": 5}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {}),
    "qwen2-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2-moe": ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 16}),
    "qwen3": ("qwen3", {}),
    "qwen3-sliding": ("qwen3", {"use_sliding_window": True, **TWO_WINDOWS}),
    "qwen3-moe": ("qwen3_moe", MOE),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {**TWO_WINDOWS, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**TWO_WINDOWS, "query_pre_attn_scalar": 8}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}),
    "gpt-neox": ("gpt_neox", {}),
    "gpt-neox-serial": ("gpt_neox", {"use_parallel_residual": False}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "phi3-sliding": ("phi3", {"sliding_window": 5}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", TWO_WINDOWS),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("granite", {}),
    "smollm3": ("smollm3", {}),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {"sliding_window": 5}),
    "deepseek-v2": (
        "deepseek_v2",
        {**MLA, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    ),
    "deepseek-v3": (
        "deepseek_v3",
        {**MLA, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
         "head_dim": 4},
    ),
    "minicpm3": ("minicpm3", MLA),
}  # fmt: skip
"""Families whose rows run in one ragged cache."""

PROBED: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", TWO_WINDOWS),
    "exaone4": ("exaone4", TWO_WINDOWS),
    "falcon-rope": (
        "falcon",
        {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "glm4": ("glm4", {}),
    "gpt-oss": ("gpt_oss", {**TWO_WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gptj": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_inner": 48}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "nemotron": ("nemotron", {}),
    "llama4-untuned": ("llama4_text", {**LLAMA4, "attn_temperature_tuning": False}),
    "gpt-bigcode": ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
}
"""Families that no list names and that are found out by asking them."""

REPLAYED: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {"n_head": 4, "n_layer": 2}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "gpt-neo": ("gpt_neo", {"num_layers": 2, "num_heads": 4, "window_size": 5,
                            "attention_types": [[["global", "local"], 1]]}),
    "mamba": ("mamba", {"state_size": 4, "expand": 2}),
    "mamba2": ("mamba2", {"state_size": 4, "expand": 2, "num_heads": 8, "n_groups": 1,
                          "chunk_size": 8}),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 256}),
    "jamba": ("jamba", {"num_experts": 1, "num_experts_per_tok": 1, "attn_layer_period": 2,
                        "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
                        "use_mamba_kernels": False}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "llama4": ("llama4_text", LLAMA4),
    "phi3-longrope": ("phi3", {
        "original_max_position_embeddings": 16,
        "rope_scaling": {"rope_type": "longrope", "factor": 16.0,
                         "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    }),
}  # fmt: skip
"""Families whose rows run one by one, from checkpoints."""

ALL = {**RAGGED, **PROBED, **REPLAYED}


def build(name: str, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """Build a pico model of a family, always with the same weights."""
    model_type, extra = ALL[name]
    torch.manual_seed(0)
    settings = {**BASE, **extra}
    if model_type == "falcon":
        del settings["head_dim"]
    config = AutoConfig.for_model(model_type, **settings)
    arguments = {} if attention is None else {"attn_implementation": attention}
    model = AutoModelForCausalLM.from_config(config, **arguments)
    with torch.no_grad():  # larger than the usual 0.02, so that context and position matter
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.2)
    return model.to(dtype).eval()
