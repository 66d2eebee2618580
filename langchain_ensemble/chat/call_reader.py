"""Reads tool calls out of text as it comes, character by character, and trusts nothing.

A call is *done* only when its arguments are strict JSON of an object and its syntax has closed;
what was cut or broken is never done, whatever was already handed on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from langchain_ensemble.decoding.records import CallDelta


@dataclass(frozen=True)
class CallSyntax:
    """The literals around the names and the arguments of calls.

    Attributes:
        begin: Before the first name.
        middle: Between a name and its arguments.
        tail: After the arguments.
        between: Between two calls, up to the next name; None: one call only.
        end: After the last call.
        quoted: Whether a name is a JSON string, whose opening quote ``begin`` and ``between``
            end with.
        ids: Whether ``, "id": "..."`` may stand before the tail.
    """

    begin: str
    middle: str
    tail: str
    between: str | None
    end: str
    quoted: bool = False
    ids: bool = False


class _State(Enum):
    BEGIN = "begin"
    NAME = "name"
    MIDDLE = "middle"
    ARGUMENTS = "arguments"
    TAIL = "tail"
    ENDED = "ended"
    BROKEN = "broken"


class CallReader:
    """Turns the text after an opening into fragments of calls. White space between words is free.

    However the text is cut, the fragments of a call join to the same name and arguments.
    """

    def __init__(self, syntax: CallSyntax) -> None:
        """Start before the first call.

        Args:
            syntax: What to read; ``syntax.begin`` without the opening.
        """
        self._syntax = syntax
        self._expected = [_solid(syntax.begin)]
        self._state = _State.BEGIN if self._expected[0] else _State.NAME
        self._index = 0
        self._at = 0  # characters of the expected literals that have come
        self._name = ""
        self._json = _JsonScanner()
        self._closed = False  # the arguments are strict JSON and their tail has come
        self._done = False  # and so has what closes the call for good

    def feed(self, text: str) -> list[CallDelta]:
        """Read some more.

        Args:
            text: Any piece of what follows the opening.

        Returns:
            New fragments, in order.
        """
        found: list[CallDelta] = []
        for character in text:
            for delta in self._step(character):
                last = found[-1] if found else None
                if last is not None and not delta.done and not last.done and delta.name is None:
                    found[-1] = CallDelta(last.index, last.name, last.arguments + delta.arguments)
                else:
                    found.append(delta)
        return found

    def finish(self, complete: bool) -> list[CallDelta]:
        """Say that nothing more comes.

        Args:
            complete: Whether the turn ended by itself, and was not cut.

        Returns:
            The last call's end, if only the end of the turn could show that it was complete.
        """
        ends = self._state is _State.TAIL and self._closed and not self._syntax.end
        done = complete and ends and self._at == 0 and not self._done
        self._state = _State.ENDED
        return [CallDelta(self._index, done=True)] if done else []

    def _step(self, character: str) -> list[CallDelta]:
        match self._state:
            case _State.NAME:
                return self._step_name(character)
            case _State.ARGUMENTS:
                return self._step_arguments(character)
            case _State.BEGIN | _State.MIDDLE | _State.TAIL:
                return self._step_literal(character)
        return []

    def _step_literal(self, character: str) -> list[CallDelta]:
        if character.isspace():
            if any(_inside_word(literal, self._at) for literal in self._expected):
                self._state = _State.BROKEN
            return []
        self._expected = [
            literal
            for literal in self._expected
            if literal[self._at : self._at + 1] in (character, _ANY)
        ]
        if not self._expected:
            self._state = _State.BROKEN
            return []
        if self._expected[0][self._at] == _ANY:  # inside an id: any character but its end
            return self._step_id(character)
        self._at += 1
        return self._arrive()

    def _step_id(self, character: str) -> list[CallDelta]:
        if character == '"':
            self._at += 2
            return self._arrive()
        if not character.isalnum():
            self._state = _State.BROKEN
        return []

    def _arrive(self) -> list[CallDelta]:
        """What the end of a literal leads to, if one has come."""
        whole = [literal for literal in self._expected if len(literal) == self._at]
        if not whole:
            return []
        if self._state is _State.BEGIN:
            self._state, self._name = _State.NAME, ""
            return []
        if self._state is _State.MIDDLE:
            self._state, self._json = _State.ARGUMENTS, _JsonScanner()
            return []
        return self._after_tail(whole[0])

    def _after_tail(self, literal: str) -> list[CallDelta]:
        if not self._closed:
            self._closed = True
            self._expect_more()
            return []
        found = [] if self._done else [CallDelta(self._index, done=True)]
        self._done = True
        if literal != _solid(self._syntax.end):
            self._index += 1
            self._closed = self._done = False
            self._state, self._name = _State.NAME, ""
        elif len(self._expected) == 1:
            self._state = _State.ENDED  # otherwise it may be the beginning of what is in between
        return found

    def _expect_more(self) -> None:
        """After a closed call comes another one, or the end."""
        more = [self._syntax.end] + ([] if self._syntax.between is None else [self._syntax.between])
        self._expected = [solid for literal in more if (solid := _solid(literal))]
        self._at = 0

    def _step_name(self, character: str) -> list[CallDelta]:
        syntax = self._syntax
        escaped = syntax.quoted and _open_escape(self._name)
        if escaped or character != syntax.middle[0]:
            self._name += character
            return []
        name = _unquoted(self._name) if syntax.quoted else self._name.strip()
        if not name:
            self._state = _State.BROKEN
            return []
        self._state, self._at = _State.MIDDLE, 0
        self._expected = [_solid(syntax.middle)]
        found = [CallDelta(self._index, name=name)]
        return found + self._step_literal(character)

    def _step_arguments(self, character: str) -> list[CallDelta]:
        verdict = self._json.feed(character)
        if verdict is _Verdict.SKIP:
            return []
        if verdict is _Verdict.BROKEN:
            self._state = _State.BROKEN
            return []
        found = [CallDelta(self._index, arguments=character)]
        if verdict is _Verdict.WHOLE:
            if not is_object(self._json.text):
                self._state = _State.BROKEN
            else:
                self._begin_tail()
        return found

    def _begin_tail(self) -> None:
        syntax = self._syntax
        self._state, self._at, self._closed = _State.TAIL, 0, False
        self._expected = [_solid(syntax.tail)]
        if syntax.ids:
            self._expected.append(f',"id":"{_ANY}"' + _solid(syntax.tail))
        if not syntax.tail:
            self._closed = True
            self._expect_more()


_ANY = "\0"  # stands for the characters of an id in an expected literal


class _Verdict(Enum):
    SKIP = "skip"
    MORE = "more"
    WHOLE = "whole"
    BROKEN = "broken"


class _JsonScanner:
    """Finds where one JSON object ends."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._depth = 0
        self._in_string = self._escaped = False

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def feed(self, character: str) -> _Verdict:
        if not self._parts:
            if character.isspace():
                return _Verdict.SKIP
            if character != "{":
                return _Verdict.BROKEN
        self._parts.append(character)
        if self._in_string:
            self._inside_string(character)
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            if self._depth == 0:
                return _Verdict.WHOLE
        return _Verdict.MORE

    def _inside_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False


def is_object(text: str) -> bool:
    """Whether a text is strict JSON of an object whose strings are valid Unicode.

    Args:
        text: Any text.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
        text_again = json.dumps(value, ensure_ascii=False)
        text_again.encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _solid(literal: str) -> str:
    """A literal without its white space, which a model may set as it likes."""
    return "".join(literal.split())


def _inside_word(literal: str, at: int) -> bool:
    """Whether a place in a literal lies between two letters."""
    around = literal[at - 1 : at + 1] if at else ""
    return len(around) == 2 and around.replace("_", "a").isalnum()


def _open_escape(text: str) -> bool:
    """Whether a string's last character is a backslash that escapes what follows."""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _unquoted(name: str) -> str:
    """A name out of a JSON string; empty where it is none."""
    try:
        value: Any = json.loads(f'"{name}"')
        value.encode()
    except ValueError:
        return ""
    return str(value)
