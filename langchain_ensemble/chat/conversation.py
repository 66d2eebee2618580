"""What a conversation is before any member's template has seen it. Plain data, no library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_ensemble.constraints.grammar import Grammar

ChatRole = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Call:
    """One finished tool call.

    Attributes:
        id: What its result refers to.
        name: The tool.
        arguments: Parsed JSON.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: Who speaks.
        text: What is said; content, never parsed for control tokens.
        name: Name of the speaker (or of the tool that answers), if there is one.
        calls: Tool calls of an assistant turn.
        call_id: Of a tool turn: the call that it answers.
        failed: Of a tool turn: whether it reports an error.
        thought: Of an assistant turn: its reasoning, where it is given back.
    """

    role: ChatRole
    text: str = ""
    name: str | None = None
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    failed: bool = False
    thought: str | None = None


@dataclass(frozen=True)
class Tool:
    """One tool that may be called.

    Attributes:
        name: Its name.
        description: What it does.
        parameters: JSON schema of its arguments, an object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )


@dataclass(frozen=True)
class Conversation:
    """Turns and the tools on offer.

    Attributes:
        messages: At least one.
        tools: On offer, shown to every member in its own way.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class ChatRequest:
    """How one turn is to be answered, beside :class:`~langchain_ensemble.params.RequestParams`.

    Attributes:
        thinking: ``"off"``; ``"main"``: main thinks and the others read it; ``"each"``: every
            member thinks privately and only the answer is fused.
        thinking_tokens: Ids at most that one member may think.
        tools_by: ``"main"``: main decodes a call alone in its own format; ``"fused"``: all decode
            one canonical text form together.
        call: Whether the turn may (``"auto"``), must not or must (``"required"``) be tool calls.
        callable: Names of tools that may be called; empty: all that are on offer.
        parallel: Whether one turn may hold several calls.
        grammar: What the answer's text must obey, None: anything.
    """

    thinking: Literal["off", "main", "each"] = "off"
    thinking_tokens: int = 1024
    tools_by: Literal["main", "fused"] = "main"
    call: Literal["auto", "none", "required"] = "auto"
    callable: tuple[str, ...] = ()
    parallel: bool = True
    grammar: Grammar | None = None
