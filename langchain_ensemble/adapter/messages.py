"""From LangChain's messages and tools to a conversation.

What is not shown to members: artifacts of tool results and metadata of earlier answers (they are
not part of what was said), and ids, but for those that tie a tool's result to its call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_ensemble.adapter.content import Parts, broken_arguments, read_content
from langchain_ensemble.adapter.faults import InvalidRequestError
from langchain_ensemble.chat.conversation import Call, ChatRole, Conversation, Message, Tool
from langchain_ensemble.errors import unknown_name

ROLES: dict[str, ChatRole] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Roles of a ``ChatMessage``."""


def read_conversation(
    messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]] = ()
) -> Conversation:
    """Read messages and the tools on offer.

    Args:
        messages: Any of LangChain's messages.
        tools: In OpenAI's form.

    Returns:
        The conversation.

    Raises:
        InvalidRequestError: No messages, a message of an unknown kind, a block that is no text.
    """
    read = [turn for place, message in enumerate(messages) for turn in _turns(message, place)]
    if not read:
        raise InvalidRequestError("the conversation is empty; give at least one message")
    return Conversation(tuple(read), tuple(read_tool(tool) for tool in tools))


def read_tool(tool: Mapping[str, Any]) -> Tool:
    """Read one tool.

    Args:
        tool: ``{"type": "function", "function": {"name", "description", "parameters"}}``.

    Returns:
        The tool; without parameters it takes none.
    """
    function = tool["function"]
    nothing = {"type": "object", "properties": {}}
    parameters = function.get("parameters") or nothing
    return Tool(function["name"], function.get("description") or "", parameters)


def _turns(message: BaseMessage, place: int) -> list[Message]:
    who = f"message {place} ({type(message).__name__})"
    role = _role(message, who)
    parts = read_content(message.content, who)
    said = Message(role, parts.text, name=message.name)
    if isinstance(message, ToolMessage):
        return [_result(message, parts, said)]
    if isinstance(message, FunctionMessage):  # refers to its call by name
        return [replace(said, call_id=message.name)]
    if isinstance(message, AIMessage):
        return [_answer(message, parts, said, who)]
    if role == "assistant":
        return [replace(said, calls=tuple(parts.calls), thought=parts.thought or None)]
    if parts.calls or parts.repeated or parts.thought:
        raise InvalidRequestError(
            f"{who} holds a tool call or reasoning, which only an assistant's message can; "
            "use AIMessage"
        )
    alone = parts.results and not parts.text
    return [*parts.results, *([] if alone else [said])]


def _role(message: BaseMessage, who: str) -> ChatRole:
    if isinstance(message, ChatMessage):
        role = ROLES.get(message.role.lower())
        if role is None:
            raise InvalidRequestError(f"{who}: {unknown_name('role', message.role, ROLES)}")
        return role
    kinds: list[tuple[type[BaseMessage], ChatRole]] = [
        (HumanMessage, "user"),
        (AIMessage, "assistant"),
        (SystemMessage, "system"),
        (ToolMessage, "tool"),
        (FunctionMessage, "tool"),
    ]
    for kind, role in kinds:
        if isinstance(message, kind):
            return role
    raise InvalidRequestError(
        f"{who} says nothing that a member could read; give messages of a system, a user, an "
        "assistant or a tool"
    )


def _result(message: ToolMessage, parts: Parts, said: Message) -> Message:
    """A tool's result, which Anthropic's form wraps in one more block."""
    text = parts.text + "".join(result.text for result in parts.results)
    failed = message.status == "error" or any(result.failed for result in parts.results)
    return replace(said, text=text, call_id=message.tool_call_id, failed=failed)


def _answer(message: AIMessage, parts: Parts, said: Message, who: str) -> Message:
    calls = [
        Call(call.get("id") or f"call_{n}", call["name"], call["args"])
        for n, call in enumerate(message.tool_calls)
    ]
    calls += [
        Call(
            call.get("id") or f"broken_{n}",
            call.get("name") or "",
            broken_arguments(call.get("args") or ""),
        )
        for n, call in enumerate(message.invalid_tool_calls)
    ]
    known = [call.id for call in calls]
    calls += [call for call in parts.calls if call.id not in known]
    if not calls:
        calls = _legacy_call(message)
    if parts.repeated and not calls:
        raise InvalidRequestError(
            f"{who} holds a fragment of a tool call and no tool call; leave it out, or give the "
            "whole call as tool_calls"
        )
    extra = message.additional_kwargs.get("reasoning_content")
    thought = parts.thought or (extra if isinstance(extra, str) else "")
    return replace(said, calls=tuple(calls), thought=thought or None)


def _legacy_call(message: AIMessage) -> list[Call]:
    """OpenAI's ``function_call``, which a ``FunctionMessage`` answers."""
    call = message.additional_kwargs.get("function_call")
    if not isinstance(call, Mapping):
        return []
    raw = call.get("arguments") or "{}"
    try:
        arguments = json.loads(raw)
    except ValueError:
        arguments = None
    name = str(call.get("name") or "")
    return [Call(name, name, arguments if isinstance(arguments, dict) else broken_arguments(raw))]
