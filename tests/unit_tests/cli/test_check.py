"""``check`` against figures that were counted elsewhere, and on members that do not fit."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

GIB = 2**30


@pytest.fixture
def without_weights(shared: Path, tmp_path: Path) -> Callable[..., str]:
    """Folder of a tokenizer and a config, and nothing else unless it is given."""

    def make(name: str, width: int, files: dict[str, str] | None = None, **config: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file in (shared / "tokenizers" / name).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        llama = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": width,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": None,
        }
        (folder / "config.json").write_text(json.dumps(llama | config), encoding="utf-8")
        for file_name, text in (files or {}).items():
            (folder / file_name).write_text(text, encoding="utf-8")
        return str(folder)

    return make


def report(result: Any) -> dict[str, Any]:
    assert result.stderr == ""
    told: dict[str, Any] = json.loads(result.stdout)
    assert told["fits"] == (result.exit_code == 0)
    return told


def stored_bytes(folder: Path) -> int:
    """Bytes of the tensors in a safetensors file, by its header."""
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return sum(prod(t["shape"]) * 4 for n, t in header.items() if n != "__metadata__")


def test_real_members(invoke, shared, members):
    told = report(invoke("check", *members, "--json"))
    assert told["fits"]
    assert told["problems"] == []
    stories, baby = told["members"]
    assert (told["main"], told["fusion"]) == ("stories", "average")
    assert (stories["context"], baby["context"]) == (512, 256)
    assert (stories["logits_width"], baby["logits_width"]) == (512, 361)
    assert stories["end_ids"] == [2]
    assert stories["roles"]["end"] == [{"id": 2, "token": "</s>"}]
    assert stories["roles"]["bos"] == [{"id": 1, "token": "<s>"}]
    assert stories["rollback"] == baby["rollback"] == "exact"
    assert stories["chat_template"] is False
    assert stories["licence"] is None
    for member, folder in ((stories, "stories260K"), (baby, "babyllama-361")):
        path = shared / "models" / folder
        assert member["memory"]["float32"]["weights"] == stored_bytes(path)
        assert member["memory"]["bfloat16"]["weights"] * 2 == stored_bytes(path)
        assert member["weight_files"] == (path / "model.safetensors").stat().st_size
    layers, heads, width = 5, 4, 8
    cache = 2 * layers * heads * width * 1000
    assert stories["memory"]["float32"]["kv_cache"] == cache * 4
    assert stories["memory"]["4-bit"]["kv_cache"] == cache * 2
    (pair,) = told["common"]["pairs"]
    assert pair["tokens"] == told["common"]["all"] == baby["keys"]
    assert pair["share"] == [baby["keys"] / stories["keys"], 1.0]
    assert told["fusions"]["gac"]["union"] == stories["keys"]
    assert told["fusions"]["unite"]["candidates"] == 21
    assert told["fusions"]["average"]["foreign"] == {"baby": 0}
    deepen = told["fusions"]["deepen"]
    assert deepen["search"] == "dense"
    assert deepen["members"]["stories"]["rows"] == [512, deepen["anchors"]]
    assert deepen["members"]["stories"]["kept"] == "table"


def test_no_weights_are_read(invoke, shared, without_weights):
    """Files that are no weights at all do not disturb, and their absence is only a warning."""
    folder = without_weights("gpt2", 50257, {"model.safetensors": "no tensors"})
    told = report(invoke("check", "-m", folder, "--json"))
    assert told["fits"]
    assert told["members"][0]["weight_files"] == len("no tensors")
    assert told["problems"] == []


def test_common_tokens_of_big_vocabularies(invoke, without_weights):
    options = []
    for name, width in (("llama-2", 32000), ("llama-3", 128256), ("mistral-v3", 32768)):
        options += ["-m", f"{name}={without_weights(name, width)}"]
    told = report(invoke("check", *options, "--fusion", "unite", "--json"))
    pairs = {tuple(pair["members"]): pair["tokens"] for pair in told["common"]["pairs"]}
    assert pairs["llama-2", "llama-3"] == 26_599
    assert pairs["llama-2", "mistral-v3"] == 24_085
    assert told["common"]["all"] <= 24_085
    keys = {member["name"]: member["keys"] for member in told["members"]}
    union = told["fusions"]["gac"]["union"]
    assert max(keys.values()) < union < sum(keys.values()) - 24_085
    missing = [p["message"] for p in told["problems"] if p["level"] == "warning"]
    assert len([m for m in missing if "has no weight files here" in m]) == 3
    assert told["members"][1]["roles"]["end"][-1]["token"] == "<|eot_id|>"
    assert len(told["members"][1]["roles"]["other"]) > 200


def test_roles_of_a_chosen_fusion_are_told(invoke, shared, tmp_path):
    models = shared / "models"
    names = {"a": "stories260K", "b": "bitllama-1M", "c": "babyllama-361"}
    for other, over in (("b", "tokens"), ("c", "bytes")):
        settings = {
            "members": {name: str(models / names[name]) for name in ("a", other)},
            "fusion": {"name": "contrastive", "expert": "a", "amateur": other},
        }
        path = tmp_path / f"{over}.yaml"
        path.write_text(json.dumps(settings), "utf-8")
        told = report(invoke("check", "--config", str(path), "--json"))
        roles = {"roles": {"expert": "a", "amateur": other}, "over": over}
        assert told["fusions"]["contrastive"] == {"fits": True, "problem": None, **roles}
        assert "proxy" not in told["fusions"]
        assert told["fusions"]["bytes"]["trees"].keys() == {"a", other}
        shown = invoke("check", "--config", str(path)).output
        assert f"compared by their {over}" in " ".join(shown.split())


def test_what_deepen_needs_of_big_vocabularies(invoke, without_weights, tmp_path):
    """llama-3 x qwen2.5: 26 and 31 GiB in half precision, so rows are made on the fly."""
    settings = {
        "members": {
            "llama": without_weights("llama-3", 128256),
            "qwen": without_weights("qwen2.5", 151936),
        },
        "fusion": {"name": "deepen", "precision": "float16"},
    }
    path = tmp_path / "ensemble.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    told = report(invoke("check", "-c", str(path), "--json"))
    deepen = told["fusions"]["deepen"]
    assert deepen["anchors"] == told["common"]["all"] == 109_566
    llama, qwen = deepen["members"]["llama"], deepen["members"]["qwen"]
    assert [round(one["table"] / GIB) for one in (llama, qwen)] == [26, 31]
    assert llama["kept"] == qwen["kept"] == "on the fly"
    assert deepen["search"] == "support"
    assert llama["anchor_embeddings"] == 109_566 * 256 * 4


def test_card_and_generation_config_are_told(invoke, without_weights):
    card = "---\nlicense: other\nlicense_name: my-licence\n---\n# Model\n"
    generation = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": [50256]}
    files = {"README.md": card, "generation_config.json": json.dumps(generation)}
    folder = without_weights("gpt2", 50257, files, eos_token_id=50256)
    told = report(invoke("check", "-m", folder, "--json"))
    (member,) = told["members"]
    assert member["licence"] == "other (my-licence)"
    assert member["generation_config"] == {
        "values": {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        "applied": False,
    }
    shown = invoke("check", "-m", folder).stdout
    for words in ("my-licence", "temperature=0.6", "not applied", "50256 <|endoftext|>"):
        assert words in shown


def test_an_end_id_that_is_text_is_a_warning(invoke, without_weights):
    told = report(invoke("check", "-m", without_weights("gpt2", 50257, eos_token_id=2), "--json"))
    assert told["fits"]
    messages = [problem["message"] for problem in told["problems"]]
    assert any("ends on id 2, ordinary text of its tokenizer ('#')" in m for m in messages)


def test_too_few_common_tokens_is_an_error(invoke, members, tmp_path):
    listed = dict(option.split("=", 1) for option in members if option != "-m")
    path = tmp_path / "ensemble.yaml"
    settings = {"members": listed, "fusion": {"name": "deepen", "anchors": 500}}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    told = report(invoke("check", "-c", str(path), "--json"))
    assert not told["fits"]
    (problem,) = told["problems"]
    assert problem["level"] == "error"
    assert "share 270 common tokens; fusion='deepen' needs at least 500" in problem["message"]
    assert told["fusions"]["deepen"]["problem"] == problem["message"]
    assert told["fusions"]["unite"]["fits"]
    plain = invoke("check", "-c", str(path))
    assert plain.exit_code == 1
    assert "error: members" in plain.stdout
    assert "this does not fit" in plain.stdout


def test_a_member_that_is_not_there_leaves_the_others_told(invoke, members, without_weights):
    strange = without_weights("t5", 32128, model_type="t5", architectures=None)
    result = invoke("check", *members, "-m", "gone=/nowhere", "-m", f"t5={strange}", "--json")
    told = report(result)
    assert not told["fits"]
    assert [member["name"] for member in told["members"]] == ["stories", "baby"]
    assert [problem["member"] for problem in told["problems"]] == ["gone", "t5"]
    assert "does not exist" in told["problems"][0]["message"]
    assert "no causal language model" in told["problems"][1]["message"]
    assert told["common"] is None


def test_pickled_weights_are_an_error(invoke, without_weights):
    folder = without_weights("gpt2", 50257, {"pytorch_model.bin": "pickle"})
    told = report(invoke("check", "-m", folder, "--json"))
    (problem,) = told["problems"]
    assert problem["level"] == "error"
    assert "no safetensors weights" in problem["message"]


def test_a_vocabulary_that_is_not_the_models_is_an_error(invoke, without_weights):
    told = report(invoke("check", "-m", without_weights("gpt2", 1000), "--json"))
    (problem,) = told["problems"]
    assert problem["level"] == "error"
    assert "1000 logits columns" in problem["message"]


def test_memory_that_is_not_there_is_a_warning(invoke, without_weights):
    huge = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 100}
    folder = without_weights("gpt2", 50257, **huge)
    told = report(invoke("check", "-m", f"huge={folder}", "--json"))
    weights = told["members"][0]["memory"]
    assert weights["float32"]["weights"] == 2 * weights["bfloat16"]["weights"] > 1000 * GIB
    assert weights["4-bit"]["weights"] < 0.3 * weights["bfloat16"]["weights"]
    assert any("GiB free here" in problem["message"] for problem in told["problems"])
    assert told["fits"]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "neox"])
def test_memory_is_that_of_the_loaded_model(invoke, pico, kind):
    folder = pico(kind)
    told = report(invoke("check", "-m", str(folder), "--json"))
    assert told["members"][0]["memory"]["float32"]["weights"] == stored_bytes(folder)
    assert told["members"][0]["memory"]["float32"]["kv_cache"] > 0
    assert told["members"][0]["rollback"] == "exact"
    assert told["members"][0]["adapter"] is None


def test_an_adapter_is_named_with_its_size(invoke, pico, tmp_path):
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text("{}", encoding="utf-8")
    save_file({"a": torch.zeros(300), "b": torch.zeros(2, 106)}, lora / "adapter_model.safetensors")
    settings = {"members": {"m": {"model": str(pico("llama")), "adapter": str(lora)}}}
    path = tmp_path / "ensemble.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    told = report(invoke("check", "-c", str(path), "--json"))
    assert told["members"][0]["adapter"] == {"model": str(lora), "size": 2048}
    assert "m       2.0 KiB  /" in invoke("check", "-c", str(path)).stdout
    (lora / "adapter_model.safetensors").write_bytes(b"cut")
    (problem,) = report(invoke("check", "-c", str(path), "--json"))["problems"]
    assert problem["level"] == "error"
    assert "is damaged" in problem["message"]


def test_a_quantised_checkpoint_without_files_has_no_known_size(invoke, without_weights):
    folder = without_weights("gpt2", 50257, quantization_config={"quant_method": "awq", "bits": 4})
    told = report(invoke("check", "-m", folder, "--json"))
    assert told["members"][0]["memory"]["4-bit"]["weights"] is None
    assert told["members"][0]["quantization"] == "awq"
    messages = [problem["message"] for problem in told["problems"]]
    assert any("is already quantised (awq)" in message for message in messages)
