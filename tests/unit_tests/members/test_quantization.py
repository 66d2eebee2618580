"""Quantised weights: each way that the docs call tested, where its package is installed.

The packages are optional and large; ``docs/models.md`` says with which versions these ran.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.inspection import inspect_member
from langchain_ensemble.members.loading import load_member
from langchain_ensemble.members.quantization import quantization_config
from langchain_ensemble.params import Member

pytestmark = pytest.mark.filterwarnings("ignore")  # of the optional packages, not ours

NEEDS = {"bnb-4bit": "bitsandbytes", "bnb-8bit": "bitsandbytes", "torchao-int8": "torchao"}


@pytest.fixture(scope="module")
def wide(pico: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of width 128: quantisers leave narrower matrices alone."""
    folder = tmp_path_factory.mktemp("wide")
    tokenizer = AutoTokenizer.from_pretrained(pico("llama"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(member: HFMember) -> Tensor:
    """Ragged rows, with a roll-back on the way."""
    session = member.session()
    session.prefill([member.prompt("the fox lived"), member.prompt("a")])
    before = session.mark()
    want = session.step([[5, 6], [7]], keep=1)
    session.rollback(before)
    got = session.step([[5, 6], [7]], keep=1)
    torch.testing.assert_close(got, want, rtol=0.01, atol=0.01 * float(want.abs().max()))
    member.close()
    return got.flatten()


def alike(got: Tensor, want: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([got, want]))[0, 1])


@pytest.mark.parametrize(
    ("name", "least"), [("bnb-4bit", 0.9), ("bnb-8bit", 0.99), ("torchao-int8", 0.99)]
)
def test_quantised_while_loading(wide: Path, name: str, least: float) -> None:
    pytest.importorskip(NEEDS[name])
    plain = logits(load_member(Member(str(wide))))
    member = load_member(Member(str(wide), quantization=name))
    stored = {type(p.data).__name__ for p in member.module.parameters()} | {
        str(p.dtype) for p in member.module.parameters()
    }
    assert stored & {"torch.uint8", "torch.int8", "Int8Tensor", "AffineQuantizedTensor"}
    assert least < alike(logits(member), plain) < 1.0


@pytest.mark.parametrize("name", NEEDS)
def test_quantised_checkpoints_load_as_they_are(wide: Path, name: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[name])
    made = AutoModelForCausalLM.from_pretrained(
        wide, quantization_config=quantization_config("m", name)
    )
    made.save_pretrained(tmp_path)
    for path in wide.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    assert inspect_member(Member(str(tmp_path))).quantization == NEEDS[name]
    direct = logits(load_member(Member(str(wide), quantization=name)))
    assert alike(logits(load_member(Member(str(tmp_path)))), direct) > 0.999


def test_fp8_compressed_tensors(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    shutil.copytree(wide, tmp_path, dirs_exist_ok=True)
    stored: dict[str, Tensor] = {}
    for name, weight in load_file(wide / "model.safetensors").items():
        if weight.ndim == 2 and ".layers." in name:
            scale = weight.abs().amax(1, keepdim=True) / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name.replace("weight", "weight_scale")] = scale
        else:
            stored[name] = weight
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((wide / "config.json").read_text())
    eight: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight, "strategy": "channel"},
                "input_activations": {**eight, "strategy": "token", "dynamic": True},
            }
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain = logits(load_member(Member(str(wide))))
    assert 0.95 < alike(logits(load_member(Member(str(tmp_path)))), plain) < 1.0


def test_gguf(shared: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    source = shared / "models" / "stories260K"
    write_gguf(gguf, source, tmp_path / "model.gguf")
    plain = load_member(Member(str(source)))
    member = load_member(Member(str(tmp_path), quantization="gguf:model.gguf"))
    for text in ("Once upon a time", "The cat, and the dog"):
        assert member.prompt(text) == plain.prompt(text)
    assert 0.999 < alike(logits(member), logits(plain)) < 1.0


def write_gguf(gguf: Any, source: Path, path: Path) -> None:
    """Write a Llama as llama.cpp's converter does, layers as Q8_0."""
    model = AutoModelForCausalLM.from_pretrained(source)
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = AutoTokenizer.from_pretrained(source).get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types(
        [
            2 if i == 0 else 3 if i < 3 else 6 if t.startswith("<0x") else 1
            for i, t in enumerate(tokens)
        ]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, tensor in model.state_dict().items():
        add_tensor(gguf, writer, config, name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def add_tensor(gguf: Any, writer: Any, config: Any, name: str, values: Any) -> None:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:  # llama.cpp interleaves the halves of the rotation
            halves = values.reshape(count, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    if name.startswith("blk.") and values.ndim == 2 and values.shape[1] % 32 == 0:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, np.ascontiguousarray(values))
