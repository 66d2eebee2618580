"""Which format of tool calls a template knows, read off what it writes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from langchain_ensemble.chat.arrange import Shape, arrange, tool_schemas
from langchain_ensemble.chat.conversation import Call, Message, Tool
from langchain_ensemble.chat.template import Refused, Template
from langchain_ensemble.chat.tool_formats import CANONICAL, FORMATS, ToolFormat

_CALLS = (
    Call("a00000001", "qztoola", {"qzkeya": "qzvaluea"}),
    Call("a00000002", "qztoolb", {"qzkeyb": "qzvalueb"}),
)
_TOOLS = tuple(Tool(call.name, f"What {call.name} does.") for call in _CALLS)


def tool_format(template: Template, controls: Mapping[str, int]) -> ToolFormat:
    """The format that a member calls tools in.

    Args:
        template: Its chat template.
        controls: Spelling -> id of its control tokens.

    Returns:
        The native format that the template writes calls in or tells the model to use, with the
        member's ids; ``CANONICAL`` where it does neither, or in a format that is not known here.
    """
    one, two = (_rendered(template, _CALLS[:n]) for n in (1, 2))
    for style in FORMATS:
        if any(style.write(_CALLS[:1], ids=True) in text for text in one):
            several = style.syntax.between is not None
            several &= any(style.write(_CALLS, ids=True) in text for text in two)
            return _bound(style, controls, parallel=several)
    for style in FORMATS if shows_tools(template) else ():
        if style.signs and all(sign in template.literals for sign in style.signs):
            return _bound(style, controls, parallel=True)
    return CANONICAL


def _bound(style: ToolFormat, controls: Mapping[str, int], *, parallel: bool) -> ToolFormat:
    between = style.syntax.between if parallel else None
    return replace(style, syntax=replace(style.syntax, between=between)).bound(controls)


def shows_tools(template: Template) -> bool:
    """Whether a template tells the model of the tools on offer.

    Args:
        template: A member's chat template.
    """
    if not template.knows_tools:
        return False
    asked = [{"role": "user", "content": "Hi"}]
    systems: tuple[list[dict[str, str]], ...] = ([], [{"role": "system", "content": "Be brief."}])
    for system in systems:
        try:
            text = template.render([*system, *asked], tool_schemas(_TOOLS))
        except Refused:
            continue
        if all(tool.name in text for tool in _TOOLS):
            return True
    return False


def _rendered(template: Template, calls: Sequence[Call]) -> list[str]:
    """Some calls as the template writes them, if it does."""
    messages = [Message("user", "Hi"), Message("assistant", calls=tuple(calls))]
    messages += [Message("tool", "done", name=c.name, call_id=c.id) for c in calls]
    found = []
    for none, quoted in product(
        (template.asks_for_none, not template.asks_for_none), (False, True)
    ):
        turns = arrange(messages, Shape(none=none, quoted=quoted), CANONICAL)
        for tools in (tool_schemas(_TOOLS), None):
            try:
                found.append(template.render(turns, tools))
            except Refused:
                continue
    return found
