"""ChatEnsemble over a scripted engine: what LangChain sees, without torch."""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakValueDictionary

import pytest

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.adapter import engines
from langchain_ensemble.testing import ChatContract
from tests.scripted_engine import ScriptedEnsemble


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "build_engine", lambda p, f: ScriptedEnsemble(p, fusion=f))
    monkeypatch.setattr(engines, "_handles", WeakValueDictionary())  # nothing of other tests
    monkeypatch.delenv("HF_TOKEN", raising=False)


class TestContract(ChatContract):
    def make_chat(self, **settings: Any) -> ChatEnsemble:
        return ChatEnsemble(members={"a": "hub/a", "b": "hub/b"}, **settings)


def make(**settings: Any) -> ChatEnsemble:
    return ChatEnsemble(**{"members": {"a": "hub/a", "b": "hub/b"}, **settings})


def scripted(chat: ChatEnsemble) -> ScriptedEnsemble:
    return cast("ScriptedEnsemble", chat.engine)
