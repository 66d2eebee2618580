"""Members from folders: what loads, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaTokenizer

from langchain_ensemble.errors import ConfigError, MemberError, MemoryLimitError
from langchain_ensemble.members import devices, inspection, memory
from langchain_ensemble.members.inspection import inspect_member
from langchain_ensemble.members.loading import load_member, load_tokenizer
from langchain_ensemble.params import Member
from tests.hub_server import Repo, serve

PEFT_WARNS = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def llama(pico: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of the pico Llama that a test may damage."""
    folder = tmp_path / "llama"
    shutil.copytree(pico("llama"), folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def test_a_folder_loads_in_float32_on_the_cpu(llama: Path) -> None:
    member = load_member(Member(str(llama), dtype="auto"), device="cpu")
    config = member.module.config
    assert (member.name, str(member.device), member.dtype) == ("llama", "cpu", torch.float32)
    assert member.logits_width == config.vocab_size > len(member.tokenizer)
    assert member.context == 256
    assert member.embeddings().shape == (config.vocab_size, 32)
    assert member.end_ids == (member.tokenizer.eos_token_id,)
    assert member.gives == "dense"
    assert not member.module.training
    member.close()


def test_bfloat16_checkpoints_are_float32_on_the_cpu_unless_asked_for(llama: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    half = {k: v.to(torch.bfloat16) for k, v in weights.items()}
    save_file(half, llama / "model.safetensors", metadata={"format": "pt"})
    edit(llama / "config.json", dtype="bfloat16")
    auto, asked = load_member(Member(str(llama))), load_member(Member(str(llama), dtype="bfloat16"))
    assert auto.dtype == torch.float32
    assert asked.dtype == torch.bfloat16
    assert auto.embeddings().dtype == torch.float32
    assert asked.session().prefill([asked.prompt("a")]).dtype == torch.float32
    auto.close()
    asked.close()


def test_sharded_weights_load_the_same(llama: Path, tmp_path: Path) -> None:
    whole = load_member(Member(str(llama)))
    shards = tmp_path / "shards"
    shutil.copytree(llama, shards)
    (shards / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    member = load_member(Member(str(shards)))
    prompt = [whole.prompt("the fox")]
    want = whole.session().prefill(prompt)
    torch.testing.assert_close(member.session().prefill(prompt), want)
    next(shards.glob("model-00002*")).unlink()
    with pytest.raises(
        MemberError, match=r"no weights to read: model-00002-of-\d+.safetensors is missing"
    ):
        load_member(Member(str(shards), name="cut"))
    whole.close()
    member.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"'llama': .* has no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"no weights to read: model.* is missing"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], r"has no tokenizer that can be"),
        (
            lambda f: os.truncate(f / "model.safetensors", 5000),
            r"model.safetensors' is damaged \(5000 bytes, its header says \d+\); delete it",
        ),
        (lambda f: os.truncate(f / "model.safetensors", 3), r"is damaged \(3 bytes"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            r"only pytorch_model.bin. Pickled files can run code .*save_pretrained\(folder\)",
        ),
        (lambda f: edit(f / "config.json", model_type="unheard"), r"model_type 'unheard'"),
        (
            lambda f: edit(f / "config.json", model_type="own", auto_map={"AutoConfig": "own.C"}),
            r"run by code of its own repository; .* set trust_remote_code=True",
        ),
        (lambda f: edit(f / "config.json", model_type="t5"), r"cannot be loaded by this"),
        (lambda f: edit(f / "config.json", num_hidden_layers=3), r"lack \d+ tensors that LlamaFor"),
        (lambda f: edit(f / "config.json", intermediate_size=48), r"cannot be loaded"),
        (lambda f: (f / "config.json").write_text("{"), r"cannot be loaded"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_said(
    llama: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(llama)
    with pytest.raises(MemberError, match=message) as caught:
        load_member(Member(str(llama)))
    assert "'llama'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for model in (str(tmp_path / "absent"), "./absent"):
        with pytest.raises(
            MemberError, match=r"member 'fox': folder .*absent' does not exist; give"
        ):
            load_member(Member(model, name="fox"))


def test_what_does_not_fit_is_said_with_numbers(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100_000)
    read = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: read.append(a))
    with pytest.raises(
        MemoryLimitError,
        match=r"'llama': its weights need 0\.2 MiB .* cpu has 0\.1 MiB free; lower dtype=",
    ):
        load_member(Member(str(llama)))
    assert read == []


def test_free_memory_of_this_machine_is_known() -> None:
    free = devices.free_bytes(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50


def test_settings_that_cannot_be(llama: Path) -> None:
    cases = {
        r"attn_implementation='flash_attention_2' cannot take a mask for each row": {
            "attn_implementation": "flash_attention_2"
        },
        r"unknown quantization 'int3'. .*Known: 'bnb-4bit'": {"quantization": "int3"},
        r"device='gpu0' is not a device": {"device": "gpu0"},
        r"device='cuda:7', but this process sees \d+ CUDA devices": {"device": "cuda:7"},
    }
    for message, settings in cases.items():
        with pytest.raises(ConfigError, match=message):
            load_member(Member(str(llama), **settings))
    with pytest.raises(
        ConfigError, match=r"unknown default for members 'dtyp'. Did you mean 'dtype'"
    ):
        load_member(Member(str(llama)), dtyp="float32")


def test_a_quantisation_without_its_package_gives_the_pip_line(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langchain_ensemble.members.quantization.find_spec", lambda name: None)
    for quantization, package in (
        ("bnb-4bit", "bitsandbytes"), ("torchao-int8", "torchao"), ("gguf:x.gguf", "gguf"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"run: pip install {package}"):
            load_member(Member(str(llama), quantization=quantization))


@PEFT_WARNS
def test_an_adapter_is_applied_and_is_part_of_the_identity(llama: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(llama)
    adapted = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    adapted.save_pretrained(tmp_path / "lora")
    plain = load_member(Member(str(llama)))
    member = load_member(Member(str(llama), adapter=str(tmp_path / "lora")))
    ids = plain.prompt("the fox")
    session = member.session()
    got = session.prefill([ids, plain.prompt("a")])
    with torch.no_grad():
        want = adapted.eval()(torch.tensor([ids.ids])).logits[0, -1]
    torch.testing.assert_close(got[0], want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got[0], plain.session().prefill([ids])[0], atol=1e-2)
    assert member.weights_hash.startswith(plain.weights_hash + "+")
    assert member.embeddings().shape == plain.embeddings().shape
    member.close()
    plain.close()
    (tmp_path / "lora" / "adapter_model.safetensors").rename(
        tmp_path / "lora" / "adapter_model.bin"
    )
    with pytest.raises(MemberError, match=r"has no adapter_model\.safetensors; save it with"):
        load_member(Member(str(llama), adapter=str(tmp_path / "lora")))


@PEFT_WARNS
def test_an_adapter_of_another_model_is_refused(
    llama: Path, pico: Callable[..., Path], tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(pico("gpt2"))
    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    get_peft_model(base, config).save_pretrained(tmp_path / "lora")
    with pytest.raises(MemberError, match=r"'llama': adapter .* does not fit"):
        load_member(Member(str(llama), adapter=str(tmp_path / "lora")))


def test_sampling_values_of_the_checkpoint_are_shown_and_not_applied(llama: Path) -> None:
    GenerationConfig(do_sample=True, temperature=0.3, top_k=7, eos_token_id=[2, 5]).save_pretrained(
        llama
    )
    info = inspect_member(Member(str(llama)))
    assert info.sampling == {"do_sample": True, "temperature": 0.3, "top_k": 7}
    member = load_member(Member(str(llama)))
    assert member.end_ids == info.end_ids == (member.tokenizer.eos_token_id, 5)
    member.close()


def test_inspection_reads_no_weights(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (llama / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    info = inspect_member(Member(str(llama)))
    weights = load_file(llama / "model.safetensors")
    assert info.parameters == sum(w.numel() for w in weights.values())
    assert info.memory["float32"] == 2 * info.memory["bfloat16"] == 4 * info.parameters
    assert info.memory["bnb-4bit"] < info.memory["bnb-8bit"] < info.memory["bfloat16"]
    assert info.kv_bytes_per_token["float32"] == 2 * 2 * 2 * 8 * 4
    assert (info.licence, info.architecture, info.rollback) == ("mit", "LlamaForCausalLM", "exact")
    assert (info.context, info.embedding_width, info.stored) == (256, 32, "float32")
    assert (info.safetensors, info.chat_template, info.quantization) == (True, False, None)


def test_inspection_of_a_quantised_checkpoint_goes_by_its_files(llama: Path) -> None:
    plain = inspect_member(Member(str(llama)))
    weights = load_file(llama / "model.safetensors")
    packed = {
        name: torch.zeros(w.shape[0], w.shape[1] // 8, dtype=torch.int32) if "proj" in name else w
        for name, w in weights.items()
    }
    save_file(packed, llama / "model.safetensors", metadata={"format": "pt"})
    edit(llama / "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    info = inspect_member(Member(str(llama)))
    assert info.quantization == "awq"
    assert info.parameters == plain.parameters
    assert info.memory["float32"] == sum(w.numel() * 4 for w in packed.values())
    assert sorted(info.memory) == ["bfloat16", "float16", "float32"]
    os.truncate(llama / "model.safetensors", 5000)
    assert inspect_member(Member(str(llama))).memory == {}


def test_inspection_measures_the_model_and_not_what_else_is_stored(llama: Path) -> None:
    plain = inspect_member(Member(str(llama)))
    weights = load_file(llama / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(llama / "model.safetensors", llama / "consolidated.safetensors")
    info = inspect_member(Member(str(llama)))
    assert (info.parameters, info.memory) == (plain.parameters, plain.memory)
    assert info.weight_bytes == (llama / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\r\nlicense: other\r\nlicense_name: own\r\n---\r\n", "other (own)"),
        ("---\ntags: [x]\n---\n", None),
        ("# No head\n", None),
        ("---\nlicense: [mit\n---\n", "unreadable: while parsing a flow sequence"),
    ],
)
def test_licence_of_a_card(tmp_path: Path, card: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert inspection.licence(tmp_path) == licence


def save_lora(llama: Path, folder: Path) -> int:
    """Save an adapter; returns the bytes of its tensors."""
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).save_pretrained(folder)
    return sum(w.nbytes for w in load_file(folder / "adapter_model.safetensors").values())


@PEFT_WARNS
def test_inspection_names_an_adapter(llama: Path, tmp_path: Path) -> None:
    assert inspect_member(Member(str(llama))).adapter_bytes is None
    lora = tmp_path / "lora"
    size = save_lora(llama, lora)
    info = inspect_member(Member(str(llama), adapter=str(lora)))
    assert (info.adapter, info.adapter_bytes) == (str(lora), size)
    (lora / "adapter_config.json").unlink()
    with pytest.raises(MemberError, match=r"has no adapter_config\.json"):
        inspect_member(Member(str(llama), adapter=str(lora)))


@PEFT_WARNS
def test_inspection_of_an_adapter_on_the_hub_reads_its_header(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = save_lora(llama, tmp_path / "lora")
    with serve() as hub:
        hub.repos["org/lora"] = Repo({"main": tmp_path / "lora"})
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        info = inspect_member(Member(str(llama), adapter="org/lora"))
        assert info.adapter_bytes == size
        assert not list((tmp_path / "cache").rglob("adapter_model.safetensors"))
        with pytest.raises(MemberError, match=r"member 'llama': 'org/gone' is no folder here"):
            inspect_member(Member(str(llama), adapter="org/gone"))


def test_float16_with_a_warning_where_a_gpu_has_no_bfloat16(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    gpu = torch.device("cuda", 0)
    with caplog.at_level(logging.WARNING):
        assert devices.resolve_dtype("m", "auto", torch.bfloat16, gpu) == torch.float16
    assert "member 'm': Tesla T4 has no bfloat16" in caplog.text
    assert devices.resolve_dtype("m", None, torch.float16, gpu) == torch.float16
    assert devices.resolve_dtype("m", "bfloat16", torch.float32, gpu) == torch.bfloat16


def test_the_device_with_most_free_memory_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ([5, 9, 7][i], 10))
    assert devices.resolve_device("m", "auto") == torch.device("cuda", 1)
    assert devices.resolve_device("m", "cuda:2") == torch.device("cuda", 2)


def test_a_forked_child_may_not_touch_the_parents_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cuda_owner", None)
    gpu = torch.device("cuda", 0)
    devices.claim_cuda("m", gpu)
    devices.claim_cuda("m", gpu)
    monkeypatch.setattr(devices, "_cuda_owner", os.getpid() + 1)
    with pytest.raises(MemberError, match=r"member 'm': process \d+ was forked from .*'spawn'"):
        devices.claim_cuda("m", gpu)
    devices.claim_cuda("m", torch.device("cpu"))


def test_a_lossy_tokenizer_backend_is_replaced_or_refused(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class MistralCommonBackend:
        pass

    monkeypatch.setattr(
        "langchain_ensemble.members.loading.AutoTokenizer.from_pretrained",
        lambda *args, **kwargs: MistralCommonBackend(),
    )
    tokenizer = load_tokenizer(Member(str(llama)))
    assert tokenizer.decode(tokenizer("Çà et là").input_ids, skip_special_tokens=True) == "Çà et là"
    (llama / "tokenizer.json").unlink()
    with pytest.raises(MemberError, match="its only tokenizer is mistral-common's"):
        load_tokenizer(Member(str(llama)))


def test_real_models_load_and_write(shared: Path) -> None:
    member = load_member(Member(str(shared / "models" / "stories260K")))
    session = member.session()
    logits = session.prefill([member.prompt("Once upon a time")])
    ids = []
    for _ in range(12):
        ids.append(int(logits[0].argmax()))
        logits = session.step([ids[-1:]])[:, -1]
    assert member.tokenizer.decode(ids).startswith(", there was a little girl")
    assert issubclass(type(member.tokenizer), LlamaTokenizer) or member.tokenizer.is_fast
    member.close()


def test_no_bars_are_drawn_where_there_is_no_terminal(
    llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_member(Member(str(llama))).close()
    assert "it/s" not in capfd.readouterr().err
    AutoModelForCausalLM.from_pretrained(llama)  # the caller's own bars are as they were
    assert "it/s" in capfd.readouterr().err
