"""How a model writes a tool call: its syntax as plain data, its grammar, its spelling.

Every format here is one line of literals around the name and the arguments of a call, once or
several times::

    begin NAME middle ARGUMENTS tail (between NAME middle ARGUMENTS tail)* end

Which one a member uses is read off its chat template (:mod:`recognise`), never off its name.
``CANONICAL`` is the one that every member can read and write: a fenced block, plain text in every
vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from langchain_ensemble.chat.call_reader import CallReader, CallSyntax
from langchain_ensemble.chat.conversation import Call, Tool
from langchain_ensemble.constraints.grammar import (
    Grammar,
    Joined,
    JsonSchema,
    Literal,
    OneOf,
    Regex,
    Repeated,
)
from langchain_ensemble.errors import ConfigError

__all__ = ["CANONICAL", "FORMATS", "CallReader", "ToolFormat"]

_ID = Joined((Literal(', "id": "'), Regex("[a-zA-Z0-9]{9}"), Literal('"}')))


@dataclass(frozen=True, eq=False)
class ToolFormat:
    """The syntax of one model's tool calls.

    Attributes:
        name: How messages and tests call it.
        opening: The text that opens the calls of a turn.
        syntax: The literals around names and arguments; ``syntax.begin`` starts with ``opening``.
        signs: Literals of a chat template that show this format where the template writes no
            calls itself; empty: only a template that writes calls in it is recognised.
        opening_ids: The member's control id for ``opening``; empty where it is plain text.
        spelled: Control ids that are text inside the calls (closing tags), with their bytes.
    """

    name: str
    opening: str
    syntax: CallSyntax
    signs: tuple[str, ...] = ()
    opening_ids: tuple[int, ...] = ()
    spelled: Mapping[int, bytes] = field(default_factory=dict)

    def body(self, tools: Sequence[Tool], *, parallel: bool) -> Grammar:
        """What must follow the opening, up to the end of the turn.

        Args:
            tools: Tools that may be called, at least one.
            parallel: Whether several calls may be made.

        Returns:
            The grammar of one call, or of several where the format can hold them.

        Raises:
            ConfigError: There is no tool to call.
        """
        return self._grammar(tools, self.syntax.begin[len(self.opening) :], parallel)

    def whole(self, tools: Sequence[Tool], *, parallel: bool) -> Grammar:
        """What :meth:`body` gives, with the opening before it.

        Args:
            tools: Tools that may be called, at least one.
            parallel: Whether several calls may be made.

        Returns:
            The grammar of a turn that is nothing but calls.

        Raises:
            ConfigError: There is no tool to call.
        """
        return self._grammar(tools, self.syntax.begin, parallel)

    def reader(self) -> CallReader:
        """A reader of what follows the opening."""
        return CallReader(replace(self.syntax, begin=self.syntax.begin[len(self.opening) :]))

    def write(self, calls: Sequence[Call], *, ids: bool = False) -> str:
        """Spell finished calls, opening included.

        Args:
            calls: At least one; one at most where the format holds one.
            ids: Whether the calls' ids are written, where the format can.

        Returns:
            The text.
        """
        syntax = self.syntax
        if len(calls) > 1 and syntax.between is None:
            return "\n".join(self.write([call]) for call in calls)
        spelled = [
            self._spelled_name(call.name)
            + syntax.middle
            + json.dumps(call.arguments, ensure_ascii=False)
            + (f', "id": "{call.id}"' if ids and syntax.ids else "")
            + syntax.tail
            for call in calls
        ]
        return syntax.begin + (syntax.between or "").join(spelled) + syntax.end

    def bound(self, controls: Mapping[str, int]) -> ToolFormat:
        """This format with a member's control ids.

        Args:
            controls: Spelling -> id of the member's control tokens.

        Returns:
            A copy that knows the ids of its opening and of its inner markers.
        """
        text = self.syntax.begin + (self.syntax.between or "") + self.syntax.middle
        text += self.syntax.tail + self.syntax.end
        inside = {i: spelling.encode() for spelling, i in controls.items() if spelling in text}
        ids = (controls[self.opening],) if self.opening in controls else ()
        return replace(self, opening_ids=ids, spelled=inside)

    def _spelled_name(self, name: str) -> str:
        return json.dumps(name, ensure_ascii=False)[1:-1] if self.syntax.quoted else name

    def _grammar(self, tools: Sequence[Tool], begin: str, parallel: bool) -> Grammar:
        if not tools:
            raise ConfigError("a tool call is required, but there is no tool to call; give tools=")
        syntax = self.syntax
        options = tuple(self._call(tool) for tool in tools)
        calls: Grammar = options[0] if len(options) == 1 else OneOf(options)
        if parallel and syntax.between is not None:
            calls = Repeated(calls, separator=syntax.between)
        parts = (Literal(begin), calls, Literal(syntax.end))
        return Joined(tuple(p for p in parts if not (isinstance(p, Literal) and not p.text)))

    def _call(self, tool: Tool) -> Grammar:
        syntax = self.syntax
        schema = {"type": "object", **tool.parameters}
        parts: list[Grammar] = [
            Literal(self._spelled_name(tool.name) + syntax.middle),
            JsonSchema(json.dumps(schema, ensure_ascii=False)),
        ]
        if syntax.ids:
            parts.append(OneOf((Literal(syntax.tail), _ID)))
        elif syntax.tail:
            parts.append(Literal(syntax.tail))
        return Joined(tuple(parts))


def _json(begin: str, between: str | None, end: str, key: str, *, ids: bool = False) -> CallSyntax:
    """Calls that are JSON objects with a name and arguments."""
    head = '{"name": "'
    return CallSyntax(
        begin=begin + head,
        middle=f'", "{key}": ',
        tail="}",
        between=None if between is None else between + head,
        end=end,
        quoted=True,
        ids=ids,
    )


CANONICAL = ToolFormat(
    "canonical",
    "```tool_call",
    _json("```tool_call\n", "\n```\n```tool_call\n", "\n```", "arguments"),
)
"""Plain text in every vocabulary: no control token is spelled like it."""

_DEEPSEEK = "<｜tool▁call▁begin｜>"

FORMATS: tuple[ToolFormat, ...] = (
    ToolFormat(
        "hermes",
        "<tool_call>",
        _json("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "arguments"),
    ),
    *(
        ToolFormat("mistral", "[TOOL_CALLS]", _json(begin, ", ", "]", "arguments", ids=ids))
        for begin in ("[TOOL_CALLS] [", "[TOOL_CALLS][")
        for ids in (True, False)
    ),
    ToolFormat(
        "mistral-args",
        "[TOOL_CALLS]",
        CallSyntax(begin="[TOOL_CALLS]", middle="[ARGS]", tail="", between="[TOOL_CALLS]", end=""),
        signs=("[TOOL_CALLS]", "[ARGS]"),
    ),
    ToolFormat(
        "deepseek",
        "<｜tool▁calls▁begin｜>",
        CallSyntax(
            begin=f"<｜tool▁calls▁begin｜>{_DEEPSEEK}function<｜tool▁sep｜>",
            middle="\n```json\n",
            tail="\n```<｜tool▁call▁end｜>",
            between=f"\n{_DEEPSEEK}function<｜tool▁sep｜>",
            end="<｜tool▁calls▁end｜>",
        ),
    ),
    ToolFormat(
        "deepseek-3.1",
        "<｜tool▁calls▁begin｜>",
        CallSyntax(
            begin=f"<｜tool▁calls▁begin｜>{_DEEPSEEK}",
            middle="<｜tool▁sep｜>",
            tail="<｜tool▁call▁end｜>",
            between=_DEEPSEEK,
            end="<｜tool▁calls▁end｜>",
        ),
    ),
    ToolFormat("nemotron", "<TOOLCALL>", _json("<TOOLCALL>[", ", ", "]</TOOLCALL>", "arguments")),
    ToolFormat(
        "phi-4-repeated",
        "<|tool_call|>",
        _json("<|tool_call|>", "<|/tool_call|><|tool_call|>", "<|/tool_call|>", "arguments"),
    ),
    ToolFormat(
        "phi-4",
        "<|tool_call|>",
        _json("<|tool_call|>[", ", ", "]<|/tool_call|>", "arguments"),
        signs=("<|tool_call|>", "<|/tool_call|>"),
    ),
    ToolFormat(
        "granite",
        "<|tool_call|>",
        _json("<|tool_call|>[", ", ", "]", "arguments"),
        signs=("<|tool_call|>",),
    ),
    ToolFormat(
        "functionary",
        "<function=",
        CallSyntax(
            begin="<function=", middle=">", tail="</function>", between="<function=", end=""
        ),
    ),
    ToolFormat(
        "llama-python-tag",
        "<|python_tag|>",
        _json("<|python_tag|>", None, "", "parameters"),
    ),
    ToolFormat("llama", '{"name":', _json("", None, "", "parameters")),
)
"""Native formats, those that hold others as parts of their text first."""
