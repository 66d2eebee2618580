r"""Regular expressions, read into nodes: the part of the syntax that all dialects share.

JSON schemas are written for ECMAScript, their answers validated by Python or Rust; these disagree
about letters outside ASCII and about line ends. Where they do, a class is read as the smallest of
its meanings (and inside ``[^...]`` as the largest), so that an answer matches in every dialect.

Look-around, back-references, ``\b``, inline flags, ``\p`` and possessive quantifiers are refused,
never ignored. Lazy quantifiers say the same as greedy ones about a whole text.
"""

from __future__ import annotations

from dataclasses import dataclass

from langchain_ensemble.constraints.language import (
    UNICODE,
    Chars,
    Node,
    Ranges,
    Text,
    alt,
    chars,
    joined_ranges,
    outside,
    repeat,
    seq,
)
from langchain_ensemble.errors import ConfigError

ANY_TEXT = repeat(Chars(UNICODE), 0, None)

_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_DIGIT: Ranges = ((0x30, 0x39),)
_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
_MORE_SPACE: Ranges = joined_ranges(
    (
        *_SPACE,
        *((0x1C, 0x1F), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x180E, 0x180E)),
        *((0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F)),
        *((0x3000, 0x3000), (0xFEFF, 0xFEFF)),
    )
)
_BEYOND_ASCII = (0x80, 0x10FFFF)
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x85, 0x85), (0x2028, 0x2029))
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00, "a": 0x07}
_HEX_LENGTHS = {"x": 2, "u": 4, "U": 8}
_MOST_REPEATS = 10_000


@dataclass(frozen=True)
class _Set:
    """A class of characters: the least and the most that a dialect may mean by it."""

    least: Ranges
    most: Ranges

    def negated(self) -> _Set:
        return _Set(outside(self.most), outside(self.least))


_CLASSES = {
    "d": _Set(_DIGIT, joined_ranges((*_DIGIT, _BEYOND_ASCII))),
    "w": _Set(_WORD, joined_ranges((*_WORD, _BEYOND_ASCII))),
    "s": _Set(_SPACE, _MORE_SPACE),
}


def whole(pattern: str) -> Node:
    """Read an expression that the whole text must match.

    Args:
        pattern: A regular expression; ``^`` and ``$`` at its ends change nothing.

    Returns:
        The texts that it matches.

    Raises:
        ConfigError: The expression is broken, or beyond what can be enforced.
    """
    return alt(branch.node for branch in _Reader(pattern).read())


def search(pattern: str) -> Node:
    """Read an expression that must match somewhere in the text, as ``pattern`` in a schema.

    Args:
        pattern: A regular expression.

    Returns:
        The texts in which it matches.

    Raises:
        ConfigError: The expression is broken, or beyond what can be enforced.
    """
    return alt(
        seq(
            *(() if branch.from_start else (ANY_TEXT,)),
            branch.node,
            *(() if branch.to_end else (ANY_TEXT,)),
        )
        for branch in _Reader(pattern).read()
    )


@dataclass(frozen=True)
class _Branch:
    """One top-level alternative, and whether it is tied to the ends of the text."""

    node: Node
    from_start: bool
    to_end: bool


class _Reader:
    """Reads one expression from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def read(self) -> list[_Branch]:
        branches = [self._branch()]
        while self._take("|"):
            branches.append(self._branch())
        if self._at < len(self._pattern):
            raise self._error("a ')' closes nothing")
        return branches

    def _branch(self) -> _Branch:
        from_start = self._take("^") or self._take(r"\A")
        node = self._sequence()
        to_end = self._take("$") or self._take(r"\Z") or self._take(r"\z")
        if self._peek() not in ("", "|", ")"):
            raise self._error("'$' can only be read at the end of a top-level alternative")
        return _Branch(node, from_start, to_end)

    def _alternatives(self) -> Node:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return alt(options)

    def _sequence(self) -> Node:
        parts = []
        while self._peek() not in ("", "|", ")", "$"):
            if self._pattern.startswith((r"\Z", r"\z"), self._at):
                break
            parts.append(self._quantified(self._atom()))
        return seq(*parts)

    def _quantified(self, atom: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return atom
        if not self._take("?") and self._peek() == "+":
            raise self._error("possessive quantifiers cannot be enforced")
        least, most = bounds
        if most is not None and most < least:
            raise self._error(f"{{{least},{most}}} counts backwards")
        if max(least, most or 0) > _MOST_REPEATS:
            raise self._error(f"more than {_MOST_REPEATS} repeats cannot be enforced")
        if self._peek() in ("*", "+", "?") and self._peek():
            raise self._error("a quantifier follows a quantifier")
        return repeat(atom, least, most)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        close = self._pattern.find("}", self._at)
        if self._peek() != "{" or close < 0:
            return None
        least, comma, most = self._pattern[self._at + 1 : close].partition(",")
        if not (least + most).isdecimal() or not (least + most).isascii():
            return None  # a literal brace
        self._at = close + 1
        return int(least or 0), int(most) if most else (None if comma else int(least))

    def _atom(self) -> Node:
        if self._take("("):
            return self._group()
        if self._take("["):
            return chars(*self._bracket())
        if self._take("."):
            return Chars(outside(_LINE_ENDS))
        if self._peek() == "\\":
            found = self._escape()
            return chars(*found.least) if isinstance(found, _Set) else Text(chr(found))
        if self._peek() in ("*", "+", "?"):
            raise self._error("there is nothing to repeat")
        if self._peek() == "^":
            raise self._error("'^' can only be read at the start of a top-level alternative")
        self._at += 1
        return Text(self._pattern[self._at - 1])

    def _group(self) -> Node:
        if self._take("?"):
            named = self._take("P<") or (self._peek() == "<" and self._after(1) not in ("=", "!"))
            if named:
                close = self._pattern.find(">", self._at)
                if close < 0:
                    raise self._error("the name of a group does not end")
                self._at = close + 1
            elif not self._take(":"):
                raise self._error("look-around and inline flags cannot be enforced")
        node = self._alternatives()
        if self._peek() == "$":
            raise self._error("'$' can only be read at the end of a top-level alternative")
        if not self._take(")"):
            raise self._error("a '(' is not closed")
        return node

    def _bracket(self) -> Ranges:
        negated = self._take("^")
        least: list[tuple[int, int]] = []
        most: list[tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            item = self._bracket_item()
            first = False
            least.extend(item.least)
            most.extend(item.most)
        self._at += 1
        return outside(most) if negated else joined_ranges(least)

    def _bracket_item(self) -> _Set:
        low = self._bracket_char()
        if isinstance(low, _Set):
            return low
        if self._peek() != "-" or self._after(1) in ("]", ""):
            return _Set(((low, low),), ((low, low),))
        self._at += 1
        high = self._bracket_char()
        if isinstance(high, _Set) or high < low:
            raise self._error("a range in '[...]' goes backwards")
        return _Set(((low, high),), ((low, high),))

    def _bracket_char(self) -> int | _Set:
        if self._peek() == "":
            raise self._error("a '[' is not closed")
        if self._peek() == "\\":
            return 0x08 if self._take(r"\b") else self._escape()
        self._at += 1
        return ord(self._pattern[self._at - 1])

    def _escape(self) -> int | _Set:
        self._at += 1
        name = self._peek()
        self._at += 1
        if name.lower() in _CLASSES:
            found = _CLASSES[name.lower()]
            return found if name.islower() else found.negated()
        if name in _HEX_LENGTHS:
            return self._hex(_HEX_LENGTHS[name])
        if name in _CONTROLS and not (name == "0" and self._peek().isdecimal()):
            return _CONTROLS[name]
        if name == "" or (name.isascii() and name.isalnum()):
            raise self._error(f"'\\{name}' cannot be enforced")
        return ord(name)

    def _hex(self, length: int) -> int:
        digits = self._pattern[self._at : self._at + length]
        self._at += length
        if digits.startswith("{"):  # \u{1F600}
            close = self._pattern.find("}", self._at - length)
            digits = self._pattern[self._at - length + 1 : close]
            self._at = close + 1
        try:
            code = int(digits, 16)
            chr(code).encode()
        except (ValueError, OverflowError):  # surrogates, too: UnicodeEncodeError is a ValueError
            raise self._error(f"{digits!r} is the code of no character") from None
        return code

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _after(self, distance: int) -> str:
        return self._pattern[self._at + distance : self._at + distance + 1]

    def _take(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _error(self, reason: str) -> ConfigError:
        return ConfigError(
            f"the regular expression {self._pattern!r} cannot be used at position {self._at}: "
            f"{reason}."
        )
