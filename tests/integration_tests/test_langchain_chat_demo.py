"""The contract of a chat model with real decoding: the two members that ship with the package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.testing import ChatContract
from langchain_ensemble.testing.chat_calls import CallsContract


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> Iterator[None]:
    with ChatEnsemble.demo() as chat:
        chat.load()
        yield


class TestContract(ChatContract):
    budget_step = 7

    def make_chat(self, **settings: Any) -> ChatEnsemble:
        return ChatEnsemble.demo(**settings)


class TestUnite(ChatContract):
    """Another fusion, the other member as main: another tool format, another tokenizer."""

    budget_step = 11

    def make_chat(self, **settings: Any) -> ChatEnsemble:
        return ChatEnsemble.demo(**{"fusion": "unite", "main": "stories", **settings})


class TestFusedCalls(CallsContract):
    """Calls that all members write together, in a textual form of ours."""

    budget_step = 11

    def make_chat(self, **settings: Any) -> ChatEnsemble:
        return ChatEnsemble.demo(**{"tools_by": "fused", **settings})


def test_conversation_that_does_not_fit() -> None:
    chat = ChatEnsemble.demo(max_tokens=4)
    assert chat.profile is not None
    limit = chat.profile["max_input_tokens"]
    messages = [HumanMessage("one two three " * limit)]
    assert chat.get_num_tokens_from_messages([*messages]) > limit
    with pytest.raises(ContextOverflowError, match=rf"member '.*{limit}") as caught:
        chat.invoke(messages)
    assert caught.value.limit == limit  # type: ignore[attr-defined]
    assert chat.invoke("hi").usage_metadata


def test_score_prefers_what_is_decoded() -> None:
    chat = ChatEnsemble.demo(max_tokens=8)
    answer = chat.invoke("Hello").text
    likely, unlikely = chat.score("Hello", answer), chat.score("Hello", answer[::-1])
    assert likely.bits_per_byte < unlikely.bits_per_byte
    alone = chat.score("Hello", answer, member="stories")
    assert alone.logprob != likely.logprob
