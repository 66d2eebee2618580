"""Content blocks (LangChain's v1 form) of this provider's messages and chunks.

Our messages hold text as ``content``, main's thinking as ``additional_kwargs["reasoning_content"]``
and the other members' as ``additional_kwargs["thoughts"]`` (by name). As blocks every member's
thinking is a ``reasoning`` block of its own. Chunks need an index a block, the same in all chunks:
LangChain would otherwise merge the text with the first tool call, which has index 0.
"""

from __future__ import annotations

from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages import content as types
from langchain_core.messages.block_translators import register_translator

PROVIDER = "ensemble"
"""``model_provider`` of messages, ``ls_provider`` of traces."""


def _blocks(message: AIMessage) -> list[dict[str, Any]]:
    """Reasoning and text; each with the index that it has in every chunk."""
    if not isinstance(message.content, str):
        raise NotImplementedError  # somebody edited the message; LangChain reads the blocks
    said = message.additional_kwargs
    main = said.get("reasoning_content")
    thoughts = [("thought", main)] if main else []
    thoughts += [(f"thought_{name}", text) for name, text in said.get("thoughts", {}).items()]
    blocks = [
        {"type": "reasoning", "id": name, "reasoning": text, "index": f"lc_{name}"}
        for name, text in thoughts
    ]
    if message.content:
        blocks.append({"type": "text", "text": message.content, "index": "lc_text"})
    return blocks


def _without_index(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in b.items() if name != "index"} for b in blocks]


def _calls(message: AIMessage) -> list[dict[str, Any]]:
    return [
        {"type": "tool_call", "id": call["id"], "name": call["name"], "args": call["args"]}
        for call in message.tool_calls
    ]


def content_blocks(message: AIMessage) -> list[types.ContentBlock]:
    """Give a whole message's blocks.

    Raises:
        NotImplementedError: The content is no text; LangChain's own reading applies.
    """
    blocks = _without_index(_blocks(message)) + _calls(message)
    return cast("list[types.ContentBlock]", blocks)


def chunk_blocks(chunk: AIMessageChunk) -> list[types.ContentBlock]:
    """Give a chunk's blocks; those of a message merged to its end are a whole message's.

    Raises:
        NotImplementedError: The content is no text; LangChain's own reading applies.
    """
    if chunk.chunk_position == "last":
        return content_blocks(chunk)
    fragments = [{"type": "tool_call_chunk", **fragment} for fragment in chunk.tool_call_chunks]
    return cast("list[types.ContentBlock]", _blocks(chunk) + fragments)


def register() -> None:
    """Tell LangChain how this provider's messages are read as blocks."""
    register_translator(PROVIDER, content_blocks, chunk_blocks)
