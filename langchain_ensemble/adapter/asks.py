"""What one chat call asks for, out of its messages and keyword arguments."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import BaseMessage

from langchain_ensemble.adapter.formats import Asked, read_grammar, read_response_format
from langchain_ensemble.adapter.messages import read_conversation
from langchain_ensemble.adapter.settings import ALIASES, FIXED, PER_CALL
from langchain_ensemble.adapter.tools import openai_tools, read_choice, tool_names, unique
from langchain_ensemble.chat.conversation import ChatRequest, Conversation, Message
from langchain_ensemble.errors import ConfigError, EnsembleWarning, unknown_name

CHAT_FIELDS = ("thinking", "thinking_tokens", "tools_by")
"""Fields of a chat model that a call may change, beside those of every ensemble."""

CHAT_ARGUMENTS = (
    *("tools", "tool_choice", "parallel_tool_calls", "strict"),
    *("response_format", "grammar", "model"),
)
"""Arguments that only a call has."""

_LANGCHAINS = ("stream", "ls_structured_output_format", "structured_output_format")
"""Arguments by which LangChain talks to itself."""


@dataclass(frozen=True)
class Ask:
    """One chat call, but for what every ensemble's call has.

    Attributes:
        chat: How the turn is to be answered.
        tools: On offer, in OpenAI's form.
        told: A system turn that says what form the answer must have; None: none.
        model: The member that answers alone; None: the ensemble.
        sampling: Arguments that every ensemble's call may have, unchecked.
    """

    chat: ChatRequest
    tools: tuple[Mapping[str, Any], ...]
    told: str | None
    model: str | None
    sampling: Mapping[str, Any]

    def conversation(self, messages: Sequence[BaseMessage]) -> Conversation:
        """Give the conversation as members read it.

        Args:
            messages: LangChain's.

        Returns:
            Their turns, after the system turns that come first what form the answer must have.
        """
        read = read_conversation(messages, self.tools)
        if self.told is None:
            return read
        said = read.messages
        place = next((n for n, turn in enumerate(said) if turn.role != "system"), len(said))
        told = Message("system", self.told)
        return replace(read, messages=(*said[:place], told, *said[place:]))


def read_ask(fields: Mapping[str, Any], given: Mapping[str, Any]) -> Ask:
    """Read a call's keyword arguments.

    Args:
        fields: :data:`CHAT_FIELDS` of the model.
        given: The call's arguments, with those of ``bind`` and ``bind_tools``.

    Returns:
        What it asks for. Unknown names are warned of: agents pass what their middleware wants.

    Raises:
        ConfigError: Arguments that contradict each other, or are fixed for an ensemble.
    """
    arguments = {name: value for name, value in given.items() if name not in _LANGCHAINS}
    chat = {name: arguments.pop(name, value) for name, value in fields.items()}
    own = {name: arguments.pop(name, None) for name in CHAT_ARGUMENTS}
    tools = unique(openai_tools(own["tools"] or (), own["strict"]))
    call, allowed = read_choice(own["tool_choice"], tool_names(tools))
    asked = _asked(own["response_format"], own["grammar"], call)
    request = ChatRequest(
        **check_chat_fields(chat),
        call=call,
        callable=allowed,
        parallel=own["parallel_tool_calls"] is not False,
        grammar=asked.grammar,
    )
    told = f"If you call no tool: {asked.told}" if asked.told and tools else asked.told
    return Ask(request, tuple(tools), told, own["model"], _known(arguments))


def _asked(response_format: Any, grammar: Any, call: str) -> Asked:
    asked = read_response_format(response_format)
    if grammar is not None:
        if asked.grammar is not None:
            raise ConfigError(
                "grammar and response_format both say what the answer must be; give one"
            )
        asked = Asked(read_grammar(grammar))
    if asked.grammar is not None and call == "required":
        raise ConfigError(
            "tool_choice demands a tool call, and response_format or grammar says what the text "
            "must be; give one of them"
        )
    return asked


def _known(arguments: Mapping[str, Any]) -> dict[str, Any]:
    known = (*PER_CALL, *ALIASES, *FIXED)
    for name in arguments:
        if name not in known:
            names = (*PER_CALL, *ALIASES, *CHAT_FIELDS, *CHAT_ARGUMENTS)
            warnings.warn(
                f"{unknown_name('argument of a call', name, names)} It has no effect.",
                EnsembleWarning,
                stacklevel=2,
            )
    return {name: value for name, value in arguments.items() if name in known}


def check_chat_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check :data:`CHAT_FIELDS`.

    Args:
        given: Name → value.

    Returns:
        The same.

    Raises:
        ConfigError: A value that is not allowed.
    """
    allowed = {"thinking": ("off", "main", "each"), "tools_by": ("main", "fused")}
    for name, values in allowed.items():
        if name in given and given[name] not in values:
            raise ConfigError(unknown_name(name, given[name], values))
    tokens = given.get("thinking_tokens", 1)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise ConfigError(f"thinking_tokens is {tokens!r}; it must be at least 1")
    return dict(given)
