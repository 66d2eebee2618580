"""Which arrangement of a conversation a template shows completely. Found by asking the template.

For every structure (who speaks, with which calls) the template renders a skeleton in which each
piece of content is a word of its own. The first shape in which every word comes out once, in
order, is used for all conversations of that structure. So no template loses a turn silently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

from langchain_ensemble.chat.arrange import Calls, Shape, Turn, arrange, tool_schemas
from langchain_ensemble.chat.conversation import Call, Message, Tool
from langchain_ensemble.chat.template import Refused, Template
from langchain_ensemble.chat.tool_formats import CANONICAL, ToolFormat
from langchain_ensemble.errors import ConfigError

_REMEMBERED = 1024
_TURNS: tuple[tuple[Literal["turns", "first", "user"], bool], ...] = (
    *(("turns", False), ("first", False)),
    *(("turns", True), ("first", True)),
    *(("user", False), ("user", True)),
)
"""Where system text stands, and whether turns are merged."""


@dataclass(frozen=True)
class _Form:
    """What of a message decides whether a template can show it."""

    role: str
    text: bool
    name: bool
    thought: bool
    calls: tuple[int, ...]  # numbers of its calls in the conversation
    answers: int | None  # number of the call that it answers


@dataclass(frozen=True)
class _Verdict:
    """How well a shape shows a skeleton."""

    lost: tuple[str, ...]
    repeated: bool
    moved: bool

    @property
    def perfect(self) -> bool:
        return not (self.lost or self.repeated or self.moved)


class Fitter:
    """Chooses shapes for one template."""

    def __init__(self, name: str, template: Template) -> None:
        """Start with nothing known.

        Args:
            name: The member's name, for messages.
            template: Its template.
        """
        self._name, self._template = name, template
        self._choose = lru_cache(_REMEMBERED)(self._search)

    def shape(
        self, messages: Sequence[Message], style: ToolFormat, tools: Sequence[Tool] = ()
    ) -> Shape:
        """The shape in which the template shows all of a conversation.

        Args:
            messages: The turns; every call has an id, every result the id of its call.
            style: The format that calls are shown in.
            tools: Tools that the template shows itself.

        Returns:
            The least change that shows everything.

        Raises:
            ConfigError: The template cannot show it, however it is arranged.
        """
        long_ids = any(len(c.id) != 9 for m in messages for c in m.calls)
        long_ids |= any(len(m.call_id or "") != 9 for m in messages if m.role == "tool")
        return self._choose(_forms(messages), len(tools), long_ids, style)

    def _search(
        self, forms: tuple[_Form, ...], tools: int, long_ids: bool, style: ToolFormat
    ) -> Shape:
        messages = _skeleton(forms, long_ids)
        offered = [Tool(f"{_word(n)}tool", f"{_word(n)}what") for n in range(tools)]
        words = _words(messages)
        seen: list[object] = []
        best: Shape | None = None
        problems: list[str] = []
        for shape in self._shapes(forms, long_ids, style):
            turns = arrange(messages, shape, style)
            if turns in seen:
                continue
            seen.append(turns)
            try:
                text = self._template.render(turns, tool_schemas(offered))
            except Refused as error:
                problems.append(f"it says {str(error)!r}")
                continue
            verdict = _judge(text, words, turns, [t.name for t in offered])
            if verdict.perfect:
                return shape
            if verdict.lost:
                problems.append(f"it leaves out {', '.join(verdict.lost)}")
            elif best is None:
                best = shape
        if best is not None:
            return best
        said = "; ".join(dict.fromkeys(problems))
        raise ConfigError(
            f"the chat template of member {self._name!r} cannot show this conversation "
            f"({', '.join(f.role for f in forms)}), however it is arranged: {said}. Give the "
            "member another template, Member(chat_template=...)"
        )

    def _shapes(self, forms: Sequence[_Form], long_ids: bool, style: ToolFormat) -> Iterator[Shape]:
        """All shapes, those that change least first."""
        levels: tuple[Calls, ...] = ("native",)
        short: tuple[bool, ...] = (False,)
        quoted, none, names = short, short, short
        if any(f.calls or f.answers is not None for f in forms):
            levels = ("native", "apart", "single", "spelled", "text")
            if style.name == CANONICAL.name:
                levels = ("text",)
            short = (False, True) if long_ids else short
            quoted = (False, True)
            none = (True, False) if self._template.asks_for_none else (False, True)
        if any(f.name and f.role == "user" for f in forms):
            names = (False, True)
        kinds = product((False, True), levels, none, quoted, short, _TURNS, names)
        for parts, level, empty, text, ids, (system, merge), name in kinds:
            yield Shape(system, merge, level, empty, ids, text, name, parts)


def _forms(messages: Sequence[Message]) -> tuple[_Form, ...]:
    forms = []
    numbers: dict[str, int] = {}
    count = 0
    for m in messages:
        calls = []
        for call in m.calls:
            numbers[call.id] = count
            calls.append(count)
            count += 1
        answers = None
        if m.role == "tool":
            answers = numbers.get(m.call_id or "", -1)
        forms.append(
            _Form(m.role, bool(m.text), bool(m.name), bool(m.thought), tuple(calls), answers)
        )
    return tuple(forms)


def _word(*numbers: int) -> str:
    """A word that no template writes and that no filter changes."""
    return "qz" + "z".join(map(str, numbers)) + "q"


def _skeleton(forms: Sequence[_Form], long_ids: bool) -> list[Message]:
    def call_id(number: int) -> str:
        return f"{number:09d}" if not long_ids else f"call_{number:09d}"

    return [
        Message(
            role=f.role,  # type: ignore[arg-type]
            text=f"{_word(at)}text" if f.text else "",
            name=f"{_word(at)}name" if f.name else None,
            calls=tuple(
                Call(call_id(n), f"{_word(n)}call", {f"{_word(n)}key": f"{_word(n)}value"})
                for n in f.calls
            ),
            call_id=None if f.answers is None else call_id(f.answers),
            thought=f"{_word(at)}thought" if f.thought else None,
        )
        for at, f in enumerate(forms)
    ]


def _words(messages: Sequence[Message]) -> list[tuple[str, str, bool]]:
    """(word, what it is, whether it has its place in the order) of all that must come out."""
    found = []
    for at, m in enumerate(messages, 1):
        if m.text:
            found.append((m.text, f"the text of turn {at} ({m.role})", m.role != "system"))
        if m.name and m.role == "user":
            found.append((m.name, f"the user's name in turn {at}", False))
        for call in m.calls:
            key, value = next(iter(call.arguments.items()))
            found.append((call.name, f"the name of a call in turn {at}", True))
            found.append((key, f"an argument of a call in turn {at}", True))
            found.append((str(value), f"the value of an argument in turn {at}", True))
    return found


def _judge(
    text: str,
    words: Sequence[tuple[str, str, bool]],
    turns: Sequence[Turn],
    tools: Sequence[str],
) -> _Verdict:
    """Compare a rendering with the turns that it is made of."""
    lost = [what for word, what, _ in words if word not in text]
    lost += [] if all(name in text for name in tools) else ["tools on offer"]
    repeated = any(text.count(word) > 1 for word, _, _ in words)
    given = json.dumps(turns)
    in_order = sorted((word for word, _, ordered in words if ordered), key=given.find)
    places = [text.find(word) for word in in_order if word in text]
    return _Verdict(tuple(lost), repeated, places != sorted(places))
