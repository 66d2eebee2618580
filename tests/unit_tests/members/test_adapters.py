"""A base and its LoRA adapters are one model in memory, and rows of one forward."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import EnsembleWarning, MemberError
from langchain_ensemble.members import registry
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.capture import CallAgain
from langchain_ensemble.members.graphs import Static
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.loading import load_member
from langchain_ensemble.members.session import HFSession
from langchain_ensemble.params import EnsembleParams, Member, RequestParams

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = [5, 6, 7, 8, 9]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own: other tests of the process may still hold weights."""
    monkeypatch.setattr(registry, "_entries", {})


@pytest.fixture(scope="module")
def llama(pico: Callable[..., Path]) -> Path:
    return pico("llama")


def adapter(base: Path, folder: Path, seed: int = 1, config: Any = None) -> Path:
    """Save an adapter of random weights, which change every logit."""
    config = config or LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.5, task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                weight.normal_()
    model.save_pretrained(folder)
    return folder


def alone_on(base: Path, folder: Path, ids: list[int]) -> Tensor:
    """Logits of the model with just that adapter."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    with torch.no_grad():
        logits: Tensor = model.eval()(torch.tensor([ids])).logits[0, -1]
    return logits


def plain(base: Path, ids: list[int]) -> Tensor:
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(base).eval()
        logits: Tensor = model(torch.tensor([ids])).logits[0, -1]
    return logits


def opened(member: HFMember) -> Any:
    session = member.session()
    assert isinstance(session, HFSession)
    session.prefill([MemberPrompt(tuple(IDS))])
    return session


def stepped(*sessions: Any) -> list[Tensor]:
    steps = [one.submit([[11]]) for one in sessions]
    return [one.collect(step)[0, -1] for one, step in zip(sessions, steps, strict=True)]


def test_base_and_adapters_are_one_module_and_one_forward(llama: Path, tmp_path: Path) -> None:
    folders = [adapter(llama, tmp_path / str(n), seed=n) for n in (1, 2)]
    first = load_member(Member(str(llama), adapter=str(folders[0])))
    base = load_member(Member(str(llama)))
    second = load_member(Member(str(llama), adapter=str(folders[1])))
    again = load_member(Member(str(llama), adapter=str(folders[1])))
    assert base.module is first.module is second.module is again.module
    assert sorted(registry.held().values()) == [1, 2, 3]
    sessions = [opened(one) for one in (first, base, second)]
    pool = sessions[0].pool
    forwards = pool.forwards
    got = stepped(*sessions)
    assert pool.forwards == forwards + 1
    for logits, folder in zip((got[0], got[2]), folders, strict=True):
        torch.testing.assert_close(
            logits, alone_on(llama, folder, [*IDS, 11]), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(got[1], plain(llama, [*IDS, 11]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got[0], got[1], atol=0.1)
    assert not torch.allclose(got[0], got[2], atol=0.1)
    assert len({one.weights_hash for one in (base, first, second)}) == 3
    assert second.weights_hash == again.weights_hash
    for one in (base, first, second, again):
        one.close()
    assert registry.held() == {}


def test_base_rows_are_those_of_a_model_without_peft_bit_for_bit(
    llama: Path, tmp_path: Path
) -> None:
    lora = adapter(llama, tmp_path / "lora")
    pair = opened(load_member(Member(str(llama)))), opened(load_member(Member(str(llama))))
    (want, _) = stepped(*pair)
    base = load_member(Member(str(llama)))
    adapted = load_member(Member(str(llama), adapter=str(lora)))
    first, second = opened(base), opened(adapted)
    (got, other) = stepped(first, second)
    assert first.home is second.home
    assert torch.equal(got, want)
    assert not torch.allclose(other, want, atol=0.1)


def test_the_last_member_of_an_adapter_takes_it_off(llama: Path, tmp_path: Path) -> None:
    lora = adapter(llama, tmp_path / "lora")
    base = load_member(Member(str(llama)))
    layers = [type(module) for module in base.module.modules()]
    (want,) = stepped(opened(base))
    members = [load_member(Member(str(llama), adapter=str(lora))) for _ in range(2)]
    left = opened(members[0])
    members[0].close()
    (still,) = stepped(opened(members[1]))
    assert not torch.allclose(still, want, atol=0.1)
    assert [type(module) for module in base.module.modules()] != layers
    members[1].close()
    assert [type(module) for module in base.module.modules()] == layers
    held_open = opened(base)
    step, late = held_open.submit([[11]]), left.submit([[11]])
    with pytest.raises(MemberError, match="its adapter was released"):
        left.collect(late)
    torch.testing.assert_close(held_open.collect(step)[0, -1], want, rtol=1e-5, atol=1e-5)
    assert left.lengths == [len(IDS)]
    again = load_member(Member(str(llama), adapter=str(lora)))
    torch.testing.assert_close(stepped(opened(again))[0], still, rtol=1e-5, atol=1e-5)


def test_static_forwards_are_laid_out_anew_where_an_adapter_comes_or_goes(
    llama: Path, tmp_path: Path
) -> None:
    """Compiled code reads weights where they were: nothing asks whether they still are."""
    lora = adapter(llama, tmp_path / "lora")
    base = load_member(Member(str(llama), forward="compiled"))
    forwards = base._lease.value.statics["compiled"] = Static("compiled", CallAgain())  # type: ignore[attr-defined]
    (want,) = stepped(opened(base))
    assert forwards.captured == 1
    member = load_member(Member(str(llama), adapter=str(lora)))
    torch.testing.assert_close(stepped(opened(base))[0], want)
    assert forwards.captured == 2
    member.close()
    torch.testing.assert_close(stepped(opened(base))[0], want)
    assert (forwards.captured, forwards.off) == (3, None)


def test_rows_of_an_adapter_run_eagerly_and_say_so(llama: Path, tmp_path: Path) -> None:
    lora = adapter(llama, tmp_path / "lora")
    with pytest.warns(EnsembleWarning, match=r"forward='compiled' holds for rows of the base only"):
        load_member(Member(str(llama), adapter=str(lora), forward="compiled"))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "LoRA with use_dora"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "it is IA3, not LORA"),
    ],
    ids=["dora", "ia3"],
)
def test_what_cannot_be_mixed_has_weights_of_its_own_and_a_warning(
    llama: Path, tmp_path: Path, config: Any, why: str
) -> None:
    config.task_type = "CAUSAL_LM"
    odd = adapter(llama, tmp_path / "odd", config=config)
    member = load_member(Member(str(llama), adapter=str(odd)))  # by itself: nothing is lost
    member.close()
    base = load_member(Member(str(llama)))
    with pytest.warns(EnsembleWarning, match=rf"{why}.*in memory twice, .* MiB \+ .* MiB"):
        member = load_member(Member(str(llama), adapter=str(odd)))
    assert member.module is not base.module
    want = alone_on(llama, odd, [*IDS, 11])
    torch.testing.assert_close(stepped(opened(member))[0], want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        stepped(opened(base))[0], plain(llama, [*IDS, 11]), rtol=1e-4, atol=1e-4
    )


def test_an_adapter_that_does_not_fit_leaves_the_base_as_it_was(
    llama: Path, tmp_path: Path
) -> None:
    base = load_member(Member(str(llama)))
    layers = [type(module) for module in base.module.modules()]
    lora = adapter(llama, tmp_path / "lora")
    config = json.loads((lora / "adapter_config.json").read_text())
    for wrong in ({"r": 3}, {"target_modules": ["q_proj", "k_proj"]}, {"target_modules": ["x"]}):
        (lora / "adapter_config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(MemberError, match=r"adapter .* does not fit"):
            load_member(Member(str(llama), adapter=str(lora)))
    assert [type(module) for module in base.module.modules()] == layers
    assert list(registry.held().values()) == [1]
    torch.testing.assert_close(
        stepped(opened(base))[0], plain(llama, [*IDS, 11]), rtol=1e-5, atol=1e-5
    )


def test_an_ensemble_of_base_and_adapter_says_what_two_copies_say(
    llama: Path, tmp_path: Path
) -> None:
    lora = adapter(llama, tmp_path / "lora")
    shutil.copytree(llama, tmp_path / "copy")
    told = []
    for other in (llama, tmp_path / "copy"):
        members = {"base": Member(str(llama)), "lora": Member(str(other), adapter=str(lora))}
        with Ensemble(EnsembleParams(members=members, fusion="average")) as owner:
            (answer,) = owner.generate(["Once upon a time"], RequestParams(max_tokens=8))[0]
            one, two = owner._ready().members
            assert (one.module is two.module) == (other == llama)
            told.append([token.id for token in answer.tokens])
    assert told[0] == told[1]
