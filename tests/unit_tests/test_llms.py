"""EnsembleLLM over a scripted engine: what LangChain sees, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from langchain_ensemble.adapter import engines
from langchain_ensemble.llms import EnsembleLLM
from langchain_ensemble.testing.llm import LLMContract
from tests.scripted_engine import ScriptedEnsemble


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engines, "build_engine", lambda p, f: ScriptedEnsemble(p, fusion=f))
    yield


class TestContract(LLMContract):
    def make_llm(self, **settings: Any) -> EnsembleLLM:
        return EnsembleLLM(members={"a": "hub/a", "b": "hub/b"}, **settings)
