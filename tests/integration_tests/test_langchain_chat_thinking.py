"""Thinking members, seen from LangChain: thoughts are reasoning blocks and never text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from pydantic import BaseModel

from langchain_ensemble import ChatEnsemble, ConfigError, Member
from langchain_ensemble.testing.chat_tools import merged, said, v3

TEMPLATE = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""


class Sure(BaseModel):
    sure: bool


@pytest.fixture(scope="module")
def chat(pico: Callable[..., Path]) -> ChatEnsemble:
    members = {
        "main": Member(str(pico("qwen2")), chat_template=TEMPLATE),
        "other": Member(str(pico("llama", 1)), chat_template=TEMPLATE),
    }
    return ChatEnsemble(  # what earlier calls have read would show in usage_metadata
        members=members, fusion="average", max_tokens=8, thinking_tokens=5, prefix_cache_gb=0
    )


@pytest.mark.parametrize(("thinking", "thinkers"), [("off", 0), ("main", 1), ("each", 2)])
def test_thoughts_are_blocks_of_their_own(chat: ChatEnsemble, thinking: str, thinkers: int) -> None:
    message = chat.invoke("Hello", thinking=thinking)
    kinds = [block["type"] for block in message.content_blocks]
    assert kinds == ["reasoning"] * thinkers + ["text"]
    thoughts = [b["reasoning"] for b in message.content_blocks if b["type"] == "reasoning"]
    assert all(thoughts)
    assert all(thought not in message.text for thought in thoughts)
    assert set(message.additional_kwargs.get("thoughts", {})) == (
        {"other"} if thinkers > 1 else set()
    )
    usage = message.usage_metadata
    assert usage is not None
    assert usage.get("output_token_details") == ({"reasoning": 5} if thinkers else None)
    assert usage["output_tokens"] == 8 + (5 if thinkers else 0)
    assert said(merged(chat.stream("Hello", thinking=thinking))) == said(message)
    _, assembled = v3(chat, "Hello", thinking=thinking)
    assert [block["type"] for block in assembled.content_blocks] == kinds
    assert assembled.text == message.text


@pytest.mark.parametrize("thinking", ["main", "each"])
def test_grammar_begins_after_the_thinking(chat: ChatEnsemble, thinking: Any) -> None:
    held = chat.model_copy(update={"thinking": thinking, "max_tokens": 20})
    assert isinstance(held.with_structured_output(Sure).invoke("Hello"), Sure)
    raw: Any = held.with_structured_output(Sure, include_raw=True).invoke("Hello")
    assert raw["raw"].additional_kwargs["reasoning_content"]
    assert raw["parsed"] is not None


def test_thoughts_are_given_back(chat: ChatEnsemble) -> None:
    first = chat.invoke("Hello", thinking="each")
    again = chat.invoke([HumanMessage("Hello"), first, HumanMessage("and?")], thinking="main")
    assert again.usage_metadata is not None
    assert again.usage_metadata["input_tokens"] > (first.usage_metadata or {})["input_tokens"]


def test_members_that_cannot_think_say_so() -> None:
    with pytest.raises(ConfigError, match=r"thinking='main'.*'facts' knows no thinking"):
        ChatEnsemble.demo(thinking="main").invoke("Hello")
