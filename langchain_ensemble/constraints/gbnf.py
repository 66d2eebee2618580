"""Languages in GBNF, written so that xgrammar is quick with them.

It keeps masks for the places inside a rule that are reached again; where a repeated part may start
in several ways, ``(a | b)*`` makes it walk the whole vocabulary at every step (40 ms for 150,000
ids), the same as a rule that calls itself at its end takes 20 us.
"""

from __future__ import annotations

import re

from langchain_ensemble.constraints.language import (
    EMPTY,
    Alt,
    Chars,
    Language,
    Node,
    Ranges,
    Ref,
    Repeat,
    Seq,
    Text,
)

# xgrammar 0.2 writes grammars down and reads them again; it writes ß as \xdf and then reads the
# letters after it, if they are hexadecimal digits, as part of that: "ße" becomes U+0DFE.
MISREAD = re.compile(
    r"(?:[\x80-\xff]|\\x[89a-f][0-9a-f]|\\(?:u|U0000)00[89a-f][0-9a-f])[0-9a-f]", re.IGNORECASE
)


def gbnf(language: Language) -> str:
    """Write down a language.

    Args:
        language: Its start and rules, without intersections and differences.

    Returns:
        A grammar whose rule ``root`` is the start.
    """
    return _Writer(language).text()


class _Writer:
    """Collects the rules of one grammar."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._names = {name: f"r{number}" for number, name in enumerate(language.rules)}
        self._loops: dict[Repeat, str] = {}
        self._lines: list[str] = []

    def text(self) -> str:
        start = self._body(self._language.start)
        for name, node in self._language.rules.items():
            self._lines.append(f"{self._names[name]} ::= {self._body(node)}")
        return "\n".join([f"root ::= {start}", *self._lines]) + "\n"

    def _body(self, node: Node) -> str:
        match node:
            case Text(text):
                return _string(text)
            case Chars(ranges):
                return _class(ranges)
            case Ref(name):
                return self._names[name]
            case Seq(parts):
                return " ".join(self._inner(part) for part in parts)
            case Alt(options):
                return " | ".join(self._body(option) for option in options)
            case Repeat():
                return self._repeat(node)
        raise AssertionError(f"{node} cannot be said in GBNF")

    def _inner(self, node: Node) -> str:
        body = self._body(node)
        return f"({body})" if isinstance(node, Alt) else body

    def _repeat(self, node: Repeat) -> str:
        part, least, most = node.part, node.least, node.most
        if _one_way(part) or least == most or (least, most) == (0, 1):
            if most is None:
                count = "*" if least == 0 else f"{{{least},}}"
            else:
                count = f"{{{least},{most}}}"
            return f"({self._body(part)}){count}"
        if node not in self._loops:
            name = f"l{len(self._loops)}"
            self._loops[node] = name
            self._loop(name, part, least, most)
        return self._loops[node]

    def _loop(self, name: str, part: Node, least: int, most: int | None) -> None:
        """One rule per number of parts read so far; the last one calls itself if need be."""
        options = part.options if isinstance(part, Alt) else (part,)
        bodies = [self._body(option) for option in options]
        last = least if most is None else most
        for count in range(last + 1):
            after = f"{name}-{count + 1}" if count < last else f"{name}-{count}"
            lines = [f"{body} {after}" for body in bodies] if count < last or most is None else []
            stop = [_EMPTY] if count >= least else []
            self._lines.append(f"{name}-{count} ::= {' | '.join(stop + lines)}")
        self._lines.append(f"{name} ::= {name}-0")


def _one_way(part: Node) -> bool:
    """Whether a part starts with a text, so that at most one byte can begin it."""
    match part:
        case Text():
            return part != EMPTY
        case Seq(parts):
            return _one_way(parts[0])
        case _:
            return False


_EMPTY = '""'


def _string(text: str) -> str:
    """A text; after a character that may be misread a new string starts."""
    parts = [""]
    for character in text:
        parts[-1] += _character(ord(character), False)
        if _is_misread(ord(character)):
            parts.append("")
    return " ".join(f'"{part}"' for part in parts if part) or _EMPTY


def _class(ranges: Ranges) -> str:
    """A set of characters; those that may be misread stand alone."""
    alone = [pair for pair in ranges if any(map(_is_misread, pair))]
    others = [pair for pair in ranges if pair not in alone]
    classes = [f"[{_range(*pair)}]" for pair in alone]
    if others:
        classes.insert(0, f"[{''.join(_range(*pair) for pair in others)}]")
    return classes[0] if len(classes) == 1 else f"({' | '.join(classes)})"


def _is_misread(code: int) -> bool:
    return code < 0x20 or 0x7F <= code <= 0xFF


def _range(low: int, high: int) -> str:
    first = _character(low, True)
    return first if low == high else f"{first}-{_character(high, True)}"


def _character(code: int, in_class: bool) -> str:
    if chr(code) in ('"', "\\", *("[]^-" if in_class else "")):
        return f"\\{chr(code)}"
    if 0x20 <= code < 0x7F:
        return chr(code)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
