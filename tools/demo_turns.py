"""What the made-up conversations are put together from: turns, tool schemas, uses of a tool."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """One conversation: messages and tool schemas as a chat template reads them."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


def user(text: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": text}


def says(text: str) -> Message:
    """An assistant's turn of text."""
    return {"role": "assistant", "content": text}


def calls(*called: tuple[str, dict[str, Any]]) -> Message:
    """An assistant's turn of tool calls."""
    listed = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in called]
    return {"role": "assistant", "content": "", "tool_calls": listed}


def result(text: str) -> Message:
    """A tool's turn."""
    return {"role": "tool", "content": text}


def schema(
    title: str, about: str, kinds: dict[str, str], notes: dict[str, str] | None = None
) -> dict[str, Any]:
    """A tool's schema, its keys in the order in which LangChain writes them."""
    properties = {
        key: ({"description": notes[key]} if notes else {}) | {"type": kind}
        for key, kind in kinds.items()
    }
    parameters: dict[str, Any] = {"properties": properties}
    if kinds:
        parameters["required"] = list(kinds)
    parameters["type"] = "object"
    function = {"name": title, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


@dataclass(frozen=True)
class Use:
    """A tool, a request that it fits, the call that answers it, and how a result is told."""

    tool: dict[str, Any]
    request: str
    arguments: dict[str, Any]
    result: str
    answer: str

    @property
    def call(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments."""
        return self.tool["function"]["name"], self.arguments
