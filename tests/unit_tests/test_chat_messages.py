"""LangChain's messages in every form become turns; what members cannot read is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_ensemble.adapter.messages import read_conversation
from langchain_ensemble.chat.conversation import Call, Message, Tool
from langchain_ensemble.errors import ConfigError


def turns(*messages: BaseMessage) -> list[Message]:
    return list(read_conversation(messages).messages)


def calling(**fields: Any) -> AIMessage:
    call = {"name": "f", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    return AIMessage(**{"content": "", "tool_calls": [call], **fields})


CALL = Call("c1", "f", {"a": 1})


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        (SystemMessage("be brief"), Message("system", "be brief")),
        (HumanMessage("hi", name="eve"), Message("user", "hi", name="eve")),
        (HumanMessageChunk("hi"), Message("user", "hi")),
        (AIMessage("yes"), Message("assistant", "yes")),
        (AIMessageChunk("yes"), Message("assistant", "yes")),
        (ChatMessage("x", role="developer"), Message("system", "x")),
        (ChatMessage("x", role="Assistant"), Message("assistant", "x")),
        (ToolMessage("3", tool_call_id="c1", name="f"), Message("tool", "3", "f", (), "c1")),
        (
            ToolMessage("no", tool_call_id="c1", status="error", artifact={"big": 1}),
            Message("tool", "no", None, (), "c1", failed=True),
        ),
        (FunctionMessage("3", name="f"), Message("tool", "3", "f", (), "f")),
        (HumanMessage(["a", {"type": "text", "text": "b"}, {"text": "c"}]), Message("user", "abc")),
        (calling(), Message("assistant", "", calls=(CALL,))),
        (AIMessage([]), Message("assistant", "")),
    ],
)
def test_roles_names_and_plain_content(message: BaseMessage, turn: Message) -> None:
    assert turns(message) == [turn]


def test_text_blocks_of_every_provider() -> None:
    blocks: list[Any] = [
        {"type": "text", "text": "1", "cache_control": {"type": "ephemeral"}},
        {"type": "input_text", "text": "2"},
        {"type": "output_text", "text": "3", "annotations": []},
        {"type": "refusal", "refusal": "4"},
        {"type": "text-plain", "text": "6", "title": "5", "mime_type": "text/plain"},
        {"type": "document", "source": {"type": "text", "data": "7", "media_type": "text/plain"}},
        {"type": "non_standard", "value": {"type": "text", "text": "8"}},
    ]
    assert turns(HumanMessage(blocks)) == [Message("user", "12345\n678")]


def test_anthropic_results_in_a_users_turn_come_first() -> None:
    blocks: list[Any] = [
        {"type": "tool_result", "tool_use_id": "c1", "content": "3", "is_error": True},
        {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "4"}]},
        {"type": "text", "text": "and now?"},
    ]
    first = Message("tool", "3", call_id="c1", failed=True)
    second = Message("tool", "4", call_id="c2")
    assert turns(HumanMessage(blocks)) == [first, second, Message("user", "and now?")]
    assert turns(HumanMessage(blocks[:1])) == [first]
    assert turns(ToolMessage(blocks[:1], tool_call_id="c1")) == [first]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        {"type": "tool_call", "id": "c1", "name": "f", "args": {"a": 1}},
        {"type": "function_call", "call_id": "c1", "id": "x", "name": "f", "arguments": '{"a": 1}'},
    ],
)
def test_calls_written_as_blocks(block: dict[str, Any]) -> None:
    written: list[Any] = [{"type": "text", "text": "so: "}, block]
    assert turns(AIMessage(written)) == [Message("assistant", "so: ", calls=(CALL,))]
    both = calling(content=written)
    assert turns(both) == [Message("assistant", "so: ", calls=(CALL,))]  # said once


def test_broken_calls_are_shown_as_they_were() -> None:
    broken = {"name": "f", "args": '{"a": ', "id": "c9", "error": None, "type": "invalid_tool_call"}
    shown = Call("c9", "f", {"invalid": '{"a": '})
    assert turns(AIMessage("", invalid_tool_calls=[broken])) == [
        Message("assistant", "", calls=(shown,))
    ]
    fragment = {"type": "tool_call_chunk", "id": "c9", "name": "f", "args": '{"a": ', "index": 0}
    both = AIMessage([fragment], invalid_tool_calls=[broken])
    assert turns(both) == [Message("assistant", "", calls=(shown,))]
    with pytest.raises(ConfigError, match=r"message 0 \(AIMessage\) holds a fragment of a tool"):
        turns(AIMessage([fragment]))
    use = {"type": "tool_use", "id": "c9", "name": "f", "input": '{"a": '}
    assert turns(AIMessage([use])) == [Message("assistant", "", calls=(shown,))]


def test_calls_without_ids_get_different_ones() -> None:
    calls = [{"name": "f", "args": {}, "id": None}, {"name": "f", "args": {}, "id": None}]
    (turn,) = turns(AIMessage("", tool_calls=calls))
    assert len(dict.fromkeys(call.id for call in turn.calls)) == 2


def test_legacy_function_call() -> None:
    said = AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": '{"a":1}'}})
    assert turns(said, FunctionMessage("3", name="f")) == [
        Message("assistant", "", calls=(Call("f", "f", {"a": 1}),)),
        Message("tool", "3", "f", (), "f"),
    ]


@pytest.mark.parametrize(
    "message",
    [
        AIMessage([{"type": "thinking", "thinking": "hm", "signature": "x"}, "yes"]),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "yes"}]),
        AIMessage(
            [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                {"type": "redacted_thinking", "data": "…"},
                "yes",
            ]
        ),
        AIMessage("yes", additional_kwargs={"reasoning_content": "hm"}),
    ],
)
def test_thoughts_are_kept_apart(message: AIMessage) -> None:
    assert turns(message) == [Message("assistant", "yes", thought="hm")]


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "data:"}}, "image_url"),
        ({"type": "image", "base64": "x", "mime_type": "image/png"}, "image"),
        ({"type": "image", "source_type": "base64", "data": "x"}, "image"),
        ({"type": "audio", "base64": "x"}, "audio"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio"),
        ({"type": "video", "url": "x"}, "video"),
        ({"type": "file", "base64": "x"}, "file"),
        ({"type": "text-plain", "url": "x"}, "text-plain"),
        ({"type": "document", "source": {"type": "base64", "data": "x"}}, "document"),
        ({"type": "server_tool_call", "id": "1"}, "server_tool_call"),
        ({"type": "non_standard", "value": {"type": "hologram"}}, "hologram"),
        ({"weird": 1}, "untyped"),
    ],
)
@pytest.mark.parametrize("make", [HumanMessage, SystemMessage, AIMessage, ToolMessage])
def test_what_is_no_text_is_refused_by_name(block: Any, kind: str, make: Any) -> None:
    extra = {"tool_call_id": "1"} if make is ToolMessage else {}
    message = make([{"type": "text", "text": "look"}, block], **extra)
    with pytest.raises(ConfigError, match=rf"message 1 \({make.__name__}\).*'{kind}'") as caught:
        turns(HumanMessage("hi"), message)
    assert isinstance(caught.value, ModelInvalidRequestError)


def test_other_messages_are_refused() -> None:
    with pytest.raises(ConfigError, match="conversation is empty"):
        turns()
    with pytest.raises(ConfigError, match=r"message 0 \(RemoveMessage\) says nothing"):
        turns(RemoveMessage(id="1"))
    with pytest.raises(ConfigError, match=r"unknown role 'asistant'. Did you mean 'assistant'"):
        turns(ChatMessage("x", role="asistant"))
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    with pytest.raises(ConfigError, match=r"message 0 \(HumanMessage\) holds a tool call"):
        turns(HumanMessage([call]))


def test_tools_come_with_the_conversation() -> None:
    function = {"name": "f", "description": "does", "parameters": {"type": "object"}}
    tools: list[Any] = [
        {"type": "function", "function": function},
        {"type": "function", "function": {"name": "g"}},
    ]
    read = read_conversation([HumanMessage("hi")], tools)
    assert read.tools == (
        Tool("f", "does", {"type": "object"}),
        Tool("g", "", {"type": "object", "properties": {}}),
    )
