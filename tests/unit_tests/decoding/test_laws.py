"""Loop laws on real models: one member is ``generate``, fast is naive, batch is single."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.naive import naive_greedy

FUSIONS = ["average", "deepen", "gac", "unite"]
PROMPT = "Once upon a time, there was a little"


def ensemble(members: list[Any], **settings: Any) -> Ensemble:
    return Ensemble(EnsembleParams(members=members, **settings))


def stories(shared: Path) -> str:
    return str(shared / "models" / "stories260K")


def baby(shared: Path) -> str:
    return str(shared / "models" / "babyllama-361")


def generated(folder: str, prompt: str, **settings: Any) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, pad_token_id=0, **settings)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def main_ids(owner: Ensemble, prompt: str, **request: Any) -> list[int]:
    with owner.open([prompt], RequestParams(**request)) as decoding:
        ends = owner._ready().voices[0].vocabulary.end_ids
        while not decoding.done:
            decoding.step()
        row = decoding._loop.rows[0]
        ended = row.finish.reason == "stop"
        return [*row.tracks[0].ids, *([ends[0]] if ended else [])]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "neox"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_one_member_is_generate(pico: Callable[..., Path], kind: str, penalty: float) -> None:
    folder = str(pico(kind))
    with ensemble([folder]) as owner:
        for prompt in ["The cat sat", "a", "Hello\nworld  é"]:
            ours = main_ids(owner, prompt, max_tokens=24, repetition_penalty=penalty)
            theirs = generated(folder, prompt, max_new_tokens=24, repetition_penalty=penalty)
            assert ours == theirs


@pytest.mark.parametrize("name", ["stories260K", "bitllama-1M", "babyllama-361", "babyllama-105"])
def test_one_real_member_is_generate(shared: Path, name: str) -> None:
    folder = str(shared / "models" / name)
    with ensemble([folder]) as owner:
        assert main_ids(owner, PROMPT, max_tokens=60) == generated(
            folder, PROMPT, max_new_tokens=60
        )


@pytest.mark.parametrize("fusion", FUSIONS)
def test_all_weight_on_main_is_generate(shared: Path, fusion: str) -> None:
    with ensemble([stories(shared), baby(shared)], fusion=fusion) as owner:
        ours = main_ids(
            owner, PROMPT, max_tokens=40, weights={"stories260K": 1, "babyllama-361": 0}
        )
    assert ours == generated(stories(shared), PROMPT, max_new_tokens=40)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("boundaries", ["discount", "vote"])
@pytest.mark.parametrize("main", ["stories260K", "babyllama-361"])
@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_the_loop_is_its_naive_twin(
    shared: Path, fusion: str, boundaries: str, main: str, prompt: str
) -> None:
    members = [stories(shared), baby(shared)]
    with ensemble(members, fusion=fusion, open_boundaries=boundaries, main=main) as owner:
        steps = 14
        naive, keys = naive_greedy(owner, prompt, steps, [0.5, 0.5], boundaries == "discount")
        with owner.open([prompt], RequestParams(max_tokens=steps, weights="uniform")) as decoding:
            while not decoding.done:
                decoding.step()
            row = decoding._loop.rows[0]
        assert bytes(row.answer) == naive
        assert len(row.records) == len(keys)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_member_holds_the_answer(shared: Path, fusion: str) -> None:
    members = [stories(shared), baby(shared), str(shared / "models" / "bitllama-1M")]
    owner = ensemble(members, fusion=fusion)
    with owner:
        request = RequestParams(max_tokens=40)
        with owner.open([PROMPT, "Ben é"], request) as decoding:
            while not decoding.done:
                decoding.step()
                for row in decoding._loop.rows:
                    whole = row.answer[: row.complete]
                    for track in row.tracks:
                        table = track.vocabulary.token_bytes
                        held = b"".join(table[i] or b"" for i in track.ids)
                        if row.finish is None:
                            assert held[: len(whole)] == whole
                            assert len(held) in (len(whole), len(row.answer))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_batch_is_one_by_one(shared: Path, fusion: str) -> None:
    prompts = [PROMPT, "Tom", "The big red dog ran to the park and", ""]
    request = RequestParams(max_tokens=30, stop=("dog",))
    with ensemble([stories(shared), baby(shared)], fusion=fusion) as owner:
        together = [row[0] for row in owner.generate(prompts, request)]
        single = [owner.generate([p], request)[0][0] for p in prompts]
    assert [a.text for a in together] == [a.text for a in single]
    assert [a.finish for a in together] == [a.finish for a in single]
    for batched, alone in zip(together, single, strict=True):
        for x, y in zip(batched.tokens, alone.tokens, strict=True):
            assert x.logprob == pytest.approx(y.logprob, abs=1e-4)


def test_sampling_is_the_same_alone_and_in_a_batch(shared: Path) -> None:
    request = RequestParams(max_tokens=20, temperature=0.9, top_p=0.95, seed=7, n=2)
    prompts = [PROMPT, "Tom"]
    with ensemble([stories(shared), baby(shared)], fusion="average") as owner:
        together = owner.generate(prompts, request)
        for number, prompt in enumerate(prompts):
            alone = owner.generate([prompt], request)[0]
            assert [a.text for a in together[number]] == [a.text for a in alone]
        assert together[0][0].text != together[0][1].text
        again = owner.generate([PROMPT], request.model_copy(update={"seed": 8}))[0]
        assert again[0].text != together[0][0].text


@pytest.mark.parametrize("fusion", FUSIONS)
def test_pieces_joined_are_the_answer_and_stop_never_leaks(shared: Path, fusion: str) -> None:
    with ensemble([stories(shared), baby(shared)], fusion=fusion) as owner:
        free = owner.generate([PROMPT], RequestParams(max_tokens=40))[0][0].text
        stop = free[10:17]
        cut = free[: free.index(stop)]
        pieces = []
        with owner.open([PROMPT], RequestParams(max_tokens=40, stop=(stop,))) as decoding:
            while not decoding.done:
                pieces += decoding.step()
        assert "".join(p.text for p in pieces) == cut
        assert pieces[-1].finish is not None
        assert pieces[-1].finish.reason == "stop"
        assert pieces[-1].finish.stop == stop
