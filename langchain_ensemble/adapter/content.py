"""What the content blocks of a message say, in every form that LangChain's messages come in.

Text forms: plain strings, ``text`` blocks of v0, v1, OpenAI (``input_text``, ``output_text``,
``refusal``) and plain-text documents. Reasoning, tool calls and tool results are kept apart.
Anything else (images, audio, video, files …) is refused by name; nothing is dropped, but for
reasoning that is not readable (``redacted_thinking``, encrypted summaries).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_ensemble.adapter.faults import InvalidRequestError
from langchain_ensemble.chat.conversation import Call, Message

Block = Mapping[str, Any]


@dataclass
class Parts:
    """What one message's content holds.

    Attributes:
        text: Text blocks, joined.
        thought: Reasoning blocks, joined.
        calls: Tool calls written as blocks.
        results: Tool results written as blocks (Anthropic puts them into a user's turn).
        repeated: Ids of blocks that repeat what a message says elsewhere too.
    """

    text: str = ""
    thought: str = ""
    calls: list[Call] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    repeated: list[str | None] = field(default_factory=list)


def read_content(content: str | Sequence[str | Block], who: str) -> Parts:
    """Read a message's content.

    Args:
        content: A text, or a list of texts and blocks.
        who: The message, for errors.

    Returns:
        Its parts.

    Raises:
        InvalidRequestError: A block that is no text, reasoning, tool call or tool result.
    """
    parts = Parts()
    for block in [content] if isinstance(content, str) else content:
        if isinstance(block, str):
            parts.text += block
        else:
            _read(block, parts, who)
    return parts


def _read(block: Block, parts: Parts, who: str) -> None:
    kind = str(block.get("type") or ("text" if "text" in block else "untyped"))
    if kind == "non_standard" and isinstance(block.get("value"), Mapping):
        _read(block["value"], parts, who)
        return
    reader = _READERS.get(kind)
    if reader is None or not reader(block, parts):
        raise InvalidRequestError(
            f"{who} holds a block of type {kind!r}, which these members cannot read: they read "
            "text. Put what it says into a text block, or leave it out"
        )


def _text(block: Block, parts: Parts) -> bool:
    text = block.get("text", block.get("refusal"))
    if not isinstance(text, str):
        return False
    parts.text += text
    return True


def _plain_document(block: Block, parts: Parts) -> bool:
    """``text-plain`` of v1, ``document`` of Anthropic: title, context and text, a line each."""
    source = block.get("source")
    inner = source.get("data") if isinstance(source, Mapping) else None
    text = block.get("text", inner if block["type"] == "document" else None)
    media = source.get("type") if isinstance(source, Mapping) else "text"
    if not isinstance(text, str) or media != "text":
        return False
    lines = [block.get("title"), block.get("context"), text]
    parts.text += "\n".join(line for line in lines if line)
    return True


def _reasoning(block: Block, parts: Parts) -> bool:
    text = block.get("reasoning", block.get("thinking"))
    summary = block.get("summary")
    if text is None and isinstance(summary, list):
        text = "\n".join(s.get("text", "") for s in summary if isinstance(s, Mapping))
    parts.thought += text if isinstance(text, str) else ""
    return True


def _call(block: Block, parts: Parts) -> bool:
    given = block.get("args", block.get("input", block.get("arguments")))
    arguments = given
    if isinstance(given, str):
        try:
            arguments = json.loads(given or "{}")
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping):
        arguments = broken_arguments(given)
    call_id = block.get("call_id") or block.get("id") or ""
    parts.calls.append(Call(str(call_id), str(block.get("name") or ""), arguments))
    return True


def broken_arguments(raw: Any) -> dict[str, Any]:
    """How members are shown arguments that are no JSON object."""
    return {"invalid": raw if isinstance(raw, str) else json.dumps(raw, default=str)}


def _result(block: Block, parts: Parts) -> bool:
    inner = read_content(block.get("content") or "", "a tool result")
    parts.results.append(
        Message(
            "tool",
            inner.text,
            name=block.get("name"),
            call_id=str(block.get("tool_use_id", "")),
            failed=bool(block.get("is_error")),
        )
    )
    return True


def _repeats(block: Block, parts: Parts) -> bool:
    parts.repeated.append(block.get("id"))
    return True


_READERS: dict[str, Callable[[Block, Parts], bool]] = {
    "text": _text,
    "input_text": _text,
    "output_text": _text,
    "refusal": _text,
    "text-plain": _plain_document,
    "document": _plain_document,
    "reasoning": _reasoning,
    "reasoning_content": _reasoning,
    "thinking": _reasoning,
    "redacted_thinking": _reasoning,
    "tool_use": _call,
    "tool_call": _call,
    "function_call": _call,
    "tool_result": _result,
    "tool_call_chunk": _repeats,
    "invalid_tool_call": _repeats,
    "input_json_delta": _repeats,
}
