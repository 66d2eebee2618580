"""What tests of a chat model look with: what a message says, budgets, events."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, cast

from langchain_core._api import LangChainBetaWarning
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.utils.json import parse_partial_json

from langchain_ensemble.testing.llm_tools import Recorder

CUT = "length"
"""Finish reason of an answer that did not end by itself."""


class ChatRecorder(Recorder):
    """What the callbacks of a chat model's run were told."""

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        """Note the text of each conversation's last message."""
        self.starts += [conversation[-1].text for conversation in messages]


def reloaded(chat: Any) -> Any:
    """Write a chat model with ``dumps`` and read it with ``loads``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)
        package = type(chat).__module__.split(".")[0]
        allowed: dict[str, Any] = {
            "allowed_objects": [type(chat)],
            "valid_namespaces": [package],
        }
        return loads(dumps(chat), **allowed)


def merged(chunks: Iterable[AIMessageChunk]) -> AIMessageChunk:
    """Add the chunks of a stream."""
    first, *rest = chunks
    return first + rest if rest else first


def said(message: AIMessage) -> dict[str, Any]:
    """Give what a message says, without what differs from run to run (ids)."""
    return {
        "text": message.text,
        "calls": [(call["name"], call["args"]) for call in message.tool_calls],
        "broken": [(call["name"], call["args"]) for call in message.invalid_tool_calls],
        "reasoning": [b for b in message.content_blocks if b["type"] == "reasoning"],
        "usage": message.usage_metadata,
        "finish": message.response_metadata.get("finish_reason"),
    }


def untimed(metadata: Any) -> Any:
    """Give metadata without what a clock told: values under names that end in ``_ms``."""
    if not isinstance(metadata, dict):
        return metadata
    return {k: untimed(v) for k, v in metadata.items() if not str(k).endswith("_ms")}


def steady(told: Any) -> Any:
    """Leave out of metadata what differs from run to run: times, under keys that end in ``_ms``."""
    if not isinstance(told, dict):
        return told
    return {key: steady(value) for key, value in told.items() if not key.endswith("_ms")}


def v3(chat: Any, asked: Any, **kwargs: Any) -> tuple[list[Any], AIMessage]:
    """Ask by ``stream_events(version="v3")``: its events, and the message it puts together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)
        stream = chat.stream_events(asked, version="v3", **kwargs)
        return list(stream), cast("AIMessage", stream.output)


def completable(arguments: str) -> bool:
    """Whether LangChain's reader would make an object out of a call's arguments."""
    try:
        return isinstance(parse_partial_json(arguments), dict)
    except ValueError:
        return False
