"""Decoding and scoring over bytes against naive twins and brute force."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.naive_bytes import naive_bytes


def ensemble(members: list[str], fusion: Any = "bytes", **settings: Any) -> Ensemble:
    return Ensemble(EnsembleParams(members=members, fusion=fusion, **settings))


def models(shared: Path, *names: str) -> list[str]:
    return [str(shared / "models" / name) for name in names]


def decoded(owner: Ensemble, prompt: str, **request: Any) -> tuple[bytes, list[bytes]]:
    with owner.open([prompt], RequestParams(**request)) as decoding:
        while not decoding.done:
            decoding.step()
        row = decoding._loop.rows[0]
    return bytes(row.answer), [record.bytes for record in row.records]


@pytest.mark.parametrize("main", ["stories260K", "babyllama-361"])
@pytest.mark.parametrize(
    "prompt", ["Once upon a time, there was a", pytest.param("", marks=pytest.mark.slow)]
)
def test_the_loop_is_its_naive_twin(shared: Path, main: str, prompt: str) -> None:
    with ensemble(models(shared, "stories260K", "babyllama-361"), main=main) as owner:
        expected = naive_bytes(owner, prompt, 8, [0.5, 0.5])
        assert decoded(owner, prompt, max_tokens=8) == expected


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_steps_of_several_bytes_are_the_naive_twins(shared: Path, mean: str) -> None:
    members = models(shared, "stories260K", "bitllama-1M")
    with ensemble(members, {"name": "bytes", "mean": mean}) as owner:
        power = {"geometric": 0.0, "arithmetic": 1.0}[mean]
        answer, keys = naive_bytes(owner, "Once upon a time", 12, [0.5, 0.5], power)
        assert decoded(owner, "Once upon a time", max_tokens=12) == (answer, keys)
        assert max(map(len, keys)) > 1


@pytest.mark.parametrize(
    "kinds",
    [
        ("llama", "qwen2"),
        ("qwen2", "llama"),
        pytest.param(("gpt2", "llama"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("prompt", ["Größe: 日本", ""])
def test_any_bytes_are_the_naive_twins(
    pico: Callable[..., Path], kinds: tuple[str, str], prompt: str
) -> None:
    with ensemble([str(pico(kind)) for kind in kinds]) as owner:
        expected = naive_bytes(owner, prompt, 10, [0.5, 0.5])
        assert decoded(owner, prompt, max_tokens=10) == expected
