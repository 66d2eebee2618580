"""What only an accelerator can show; ``make gpu`` runs it, CI has none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_ensemble import EnsembleLLM, Member, MemberError
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import EnsembleParams, RequestParams

pytestmark = pytest.mark.gpu

FUSIONS = ["average", "deepen", "gac", "unite"]
PROMPT = "Once upon a time there was"


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def members(pico: Callable[..., Path], **settings: Any) -> list[Member]:
    return [Member(str(pico(kind)), **settings) for kind in ("llama", "gpt2")]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "neox"])
def test_one_member_is_generate_in_float32(pico: Callable[..., Path], kind: str) -> None:
    folder = str(pico(kind))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to("cuda").eval()
    inputs = tokenizer(PROMPT, return_tensors="pt").to("cuda")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=24, pad_token_id=0)
    expected = out[0, inputs["input_ids"].shape[1] :].tolist()
    settings = {"dtype": "float32", "device": "cuda"}
    with Ensemble(EnsembleParams(members=[Member(folder, **settings)])) as owner:
        (answer,) = owner.generate([PROMPT], RequestParams(max_tokens=24))[0]
    got = [t.id for t in answer.tokens if t.id is not None]
    assert got == expected[: len(got)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_gpu_says_what_the_cpu_says(pico: Callable[..., Path], fusion: str) -> None:
    texts = []
    for device in ("cpu", "cuda"):
        made = members(pico, dtype="float32", device=device)
        with Ensemble(EnsembleParams(members=made, fusion=fusion)) as owner:
            request = RequestParams(max_tokens=20)
            texts.append([a.text for (a,) in owner.generate([PROMPT, "The"], request)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "seed": 3}], ids=["greedy", "draw"])
@pytest.mark.parametrize("fusion", ["average", "gac", "unite"])
def test_replayed_choices_are_those_of_eager_steps(
    pico: Callable[..., Path], fusion: str, settings: dict[str, Any]
) -> None:
    told = []
    for forward in ("eager", "graphs"):
        made = members(pico, dtype="float32", device="cuda", forward=forward)
        with Ensemble(EnsembleParams(members=made, fusion=fusion)) as owner:
            request = RequestParams(max_tokens=20, **settings)
            told.append([a.text for (a,) in owner.generate([PROMPT, "The", "One"], request)])
            regions = owner._ready().regions
            assert (regions is None) == (forward == "eager")
            assert regions is None or (regions.off is None and regions.replayed >= 10)
    assert told[0] == told[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_and_batch_is_close_to_single(
    pico: Callable[..., Path], dtype: str
) -> None:
    made = members(pico, dtype=dtype, device="cuda")
    with Ensemble(EnsembleParams(members=made, fusion="unite")) as owner:
        request = RequestParams(max_tokens=12, seed=1, temperature=0.7)
        (together, _) = owner.generate([PROMPT, "The"], request)
        assert together[0].usage.steps == 12 or together[0].finish.reason == "stop"


def test_members_on_two_devices(pico: Callable[..., Path]) -> None:
    one, two = (str(pico(kind)) for kind in ("llama", "gpt2"))
    mixed = [Member(one, device="cuda", dtype="float32"), Member(two, device="cpu")]
    plain = [Member(one, device="cpu"), Member(two, device="cpu")]
    answers = []
    for made in (mixed, plain):
        with Ensemble(EnsembleParams(members=made, fusion="deepen")) as owner:
            answers.append(owner.generate([PROMPT], RequestParams(max_tokens=16))[0][0].text)
    assert answers[0] == answers[1]


def test_unload_gives_the_memory_back(pico: Callable[..., Path]) -> None:
    before = torch.cuda.memory_allocated()
    with EnsembleLLM(members=members(pico, device="cuda"), fusion="average", max_tokens=4) as llm:
        llm.invoke(PROMPT)
        assert torch.cuda.memory_allocated() > before
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_a_forked_child_is_refused(pico: Callable[..., Path]) -> None:
    llm = EnsembleLLM(members=members(pico, device="cuda"), fusion="average", max_tokens=4)
    llm.invoke(PROMPT)
    child = os.fork()
    if child == 0:
        try:
            llm.invoke(PROMPT)
        except MemberError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
