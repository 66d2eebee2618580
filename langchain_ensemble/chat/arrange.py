"""A conversation in the turns that one template can show. Nothing is left out, some is merged.

What a template cannot show as it is, is shown as its makers advise: system text in front of the
user's, turns of one speaker as one turn, results of tools as the user's text. :mod:`fitting`
decides which of it a template needs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from langchain_ensemble.chat.conversation import Call, Message, Tool
from langchain_ensemble.chat.tool_formats import CANONICAL, ToolFormat

Turn = dict[str, Any]

Calls = Literal["native", "apart", "single", "spelled", "text"]


@dataclass(frozen=True)
class Shape:
    """How a conversation is arranged for a template. The defaults change nothing.

    Attributes:
        system: ``"turns"``: as given; ``"first"``: all of it in one turn at the beginning;
            ``"user"``: in front of the next user's text.
        merge: Whether turns of one speaker in a row are one turn, and the user speaks first.
        calls: ``"native"``: in the template's own fields; ``"apart"``: so, and a turn's text in a
            turn before its calls; ``"single"``: so, and one call a turn; ``"spelled"``: in the
            model's syntax, as text of the turn; ``"text"``: in the common syntax, results as the
            user's text.
        none: Whether a turn of calls without text has None for its content.
        short_ids: Whether calls have ids of nine letters and digits.
        quoted: Whether a call's arguments are given as JSON text, not as an object.
        names: Whether a user's name stands before the text.
        parts: Whether content is a list of parts, as templates for images and text may want it.
    """

    system: Literal["turns", "first", "user"] = "turns"
    merge: bool = False
    calls: Calls = "native"
    none: bool = False
    short_ids: bool = False
    quoted: bool = False
    names: bool = False
    parts: bool = False


def arrange(messages: Sequence[Message], shape: Shape, style: ToolFormat) -> list[Turn]:
    """Bring turns into transformers' form.

    Args:
        messages: The turns; every call has an id, every result the id of its call.
        shape: How.
        style: The member's format of calls.

    Returns:
        Turns for a template.
    """
    turns = list(messages)
    if shape.names:
        turns = [_with_name(m) for m in turns]
    if shape.short_ids:
        turns = _short_ids(turns)
    turns = _arrange_calls(turns, shape.calls, style)
    turns = _arrange_system(turns, shape.system)
    if shape.merge:
        turns = _merge(turns)
    return [_turn(m, shape) for m in turns]


def tool_schemas(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools in the form that templates read.

    Args:
        tools: The tools.

    Returns:
        One JSON schema each.
    """
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
            },
        }
        for tool in tools
    ]


def described(tools: Sequence[Tool], style: ToolFormat) -> str:
    """What a member is told of tools, for its system prompt, where its template says nothing.

    Args:
        tools: At least one.
        style: How they are to be called.

    Returns:
        The text; control tokens of the format count as such.
    """
    listed = "\n".join(
        json.dumps(schema["function"], ensure_ascii=False) for schema in tool_schemas(tools)
    )
    example = style.write([Call("", "tool", {"argument": "value"})])
    several = style.syntax.between is not None
    more = "; for several calls write several of them" if several else ""
    return (
        f"# Tools\n\nYou may call these tools:\n\n{listed}\n\n"
        "To call a tool, answer with nothing but its name and arguments in exactly this form"
        f"{more}:\n\n{example}"
    )


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """Add text to the system turns that a conversation begins with.

    Args:
        messages: The turns.
        text: What is added after them, by a blank line; empty: nothing.

    Returns:
        The turns.
    """
    if not text:
        return list(messages)
    leading = 0
    while leading < len(messages) and messages[leading].role == "system":
        leading += 1
    if leading == 0:
        return [Message("system", text), *messages]
    last = messages[leading - 1]
    joined = replace(last, text=_joined(last.text, text))
    return [*messages[: leading - 1], joined, *messages[leading:]]


def with_ids(messages: Sequence[Message]) -> list[Message]:
    """Give every call an id, and every result the id and the name of its call.

    Args:
        messages: The turns; a result without an id answers the first call that none has answered.

    Returns:
        The turns.
    """
    found: list[Message] = []
    waiting: dict[str, str] = {}  # id -> name of calls without a result
    number = 0
    for message in messages:
        calls = []
        for call in message.calls:
            number += 1
            calls.append(replace(call, id=call.id or f"call{number:05d}"))
        waiting |= {call.id: call.name for call in calls}
        if message.role == "tool":
            number += not (message.call_id or waiting)
            answers = message.call_id or next(iter(waiting), f"call{number:05d}")
            name = message.name or waiting.get(answers)
            waiting.pop(answers, None)
            message = replace(message, call_id=answers, name=name)
        found.append(replace(message, calls=tuple(calls)))
    return found


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _with_name(message: Message) -> Message:
    if message.role != "user" or not message.name:
        return message
    return replace(message, text=f"{message.name}: {message.text}", name=None)


def _short_ids(turns: Sequence[Message]) -> list[Message]:
    """Ids of nine characters, the same for a call and its result."""
    short: dict[str, str] = {}

    def remap(given: str) -> str:
        return short.setdefault(given, f"call{len(short) + 1:05d}")

    return [
        replace(
            m,
            calls=tuple(replace(c, id=remap(c.id)) for c in m.calls),
            call_id=None if m.call_id is None else remap(m.call_id),
        )
        for m in turns
    ]


def _arrange_calls(turns: Sequence[Message], calls: Calls, style: ToolFormat) -> list[Message]:
    if calls == "text":
        return _as_text(turns)
    if calls == "spelled":
        return [
            replace(m, text=m.text + style.write(m.calls, ids=True), calls=()) if m.calls else m
            for m in turns
        ]
    if calls == "native":
        return list(turns)
    apart: list[Message] = []
    for m in turns:
        if m.calls and m.text:
            apart += [replace(m, calls=()), replace(m, text="", thought=None)]
        else:
            apart.append(m)
    return _single(apart) if calls == "single" else apart


def _single(turns: Sequence[Message]) -> list[Message]:
    """One call a turn, each followed by its result."""
    found: list[Message] = []
    taken: set[int] = set()
    for at, m in enumerate(turns):
        if at in taken:
            continue
        if len(m.calls) < 2:
            found.append(m)
            continue
        for number, call in enumerate(m.calls):
            found.append(replace(m, calls=(call,), thought=None if number else m.thought))
            later = range(at + 1, len(turns))
            answers = [k for k in later if turns[k].call_id == call.id and k not in taken]
            found += [turns[k] for k in answers[:1]]
            taken.update(answers[:1])
    return found


def _as_text(turns: Sequence[Message]) -> list[Message]:
    """Calls and results in the common syntax, results of one turn together."""
    found: list[Message] = []
    results = False  # whether the last turn is made of results
    for m in turns:
        if m.role == "tool":
            text = _result(m)
            if results:
                found[-1] = replace(found[-1], text=f"{found[-1].text}\n{text}")
            else:
                found.append(Message("user", text))
        elif m.calls:
            found.append(replace(m, text=_joined(m.text, CANONICAL.write(m.calls)), calls=()))
        else:
            found.append(m)
        results = m.role == "tool"
    return found


def _result(message: Message) -> str:
    key = "error" if message.failed else "content"
    value = {"name": message.name, key: message.text}
    return f"```tool_result\n{json.dumps(value, ensure_ascii=False)}\n```"


def _arrange_system(turns: Sequence[Message], system: str) -> list[Message]:
    texts = [m.text for m in turns if m.role == "system"]
    if system == "turns" or not texts:
        return list(turns)
    others = [m for m in turns if m.role != "system"]
    if system == "first":
        return [Message("system", _joined(*texts)), *others]
    found: list[Message] = []
    waiting: list[str] = []
    for m in turns:
        if m.role == "system":
            waiting.append(m.text)
        elif m.role == "user":
            found.append(replace(m, text=_joined(*waiting, m.text)))
            waiting = []
        elif waiting and not found:
            found += [Message("user", _joined(*waiting)), m]
            waiting = []
        else:
            found.append(m)
    if waiting:
        found.append(Message("user", _joined(*waiting)))
    return found


def _merge(turns: Sequence[Message]) -> list[Message]:
    """One turn for several of one speaker; the user speaks first (after the system)."""
    found: list[Message] = []
    for m in turns:
        last = found[-1] if found else None
        if last is not None and _one_turn(last, m):
            found[-1] = replace(
                last,
                name=m.name if m.name == last.name else None,
                text=_joined(last.text, m.text),
                calls=m.calls,
                thought=_joined(last.thought or "", m.thought or "") or None,
            )
        else:
            if m.role == "assistant" and (last is None or last.role == "system"):
                found.append(Message("user", ""))
            found.append(m)
    return found


def _one_turn(a: Message, b: Message) -> bool:
    one_voice = a.name == b.name or a.role == "assistant"
    return a.role == b.role != "tool" and one_voice and not a.calls


def _turn(message: Message, shape: Shape) -> Turn:
    turn: Turn = {"role": message.role, "content": message.text}
    if message.name is not None:
        turn["name"] = message.name
    if message.thought:
        turn["reasoning_content"] = message.thought
    if message.role == "tool":
        turn["tool_call_id"] = message.call_id
    if message.calls:
        turn["tool_calls"] = [_call(call, shape.quoted) for call in message.calls]
        if shape.none and not message.text:
            turn["content"] = None
    if shape.parts and turn["content"] is not None:
        turn["content"] = [{"type": "text", "text": message.text}]
    return turn


def _call(call: Call, quoted: bool) -> Turn:
    arguments: Any = dict(call.arguments)
    if quoted:
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"type": "function", "id": call.id, "function": function}
