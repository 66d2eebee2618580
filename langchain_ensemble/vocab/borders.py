"""Where a text may be cut so that both sides are tokenized as they are in the whole.

A *border* lies between two characters ``a`` and ``b`` if, whatever stands around them, no token
reaches over it and what is cut on one side does not depend on the other. Then only the text after
the last border has to be tokenized again when an answer grows. Two reasons make one:

- the pre-tokenizer always splits there (``d| w`` in byte-level vocabularies), or
- it does not care, and no token holds ``ab`` (``d|▁`` in SentencePiece vocabularies).

Nobody can read that off a regular expression, so pre-tokenizers are asked: characters that behave
alike in a set of probes are one class; for a pair of classes all contexts are tried once, on first
sight, and remembered. Deciding pair by pair keeps the result independent of what is cut when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

_PROBES = (
    "{c}",
    "{c} a{c}a {c}. {c}{c}.1{c}1\n.{c}.\n{c}\n a{c}s A{c}A aB{c}b 世{c}世   {c}  a\t{c}\t"
    + " e\u0301{c}\u0301 １{c}é 12{c}34 x'{c} x'{c}e x'{c}l x'r{c} \u3000{c}",
)
_BOTH = ("", "a", "Ab", " ", "  ", "\n", "\t", "1", "12", "123", ".", "..", "'", "世", "é", "_")
_LEFT = (*_BOTH, "\n ", "x'", "x-", "\u3000")
_RIGHT = (*_BOTH, "s ", "re", "e", "l", " b", "\n\n", "'s", "-x")
_APOSTROPHES = "'’"  # contractions: the one place where scripts of patterns spell words out
_MEMORY = 200_000
Cuts = frozenset[int]


class Borders:
    """Answers, for two neighbouring characters, whether a border lies between them."""

    def __init__(
        self,
        pre_tokenizer: Any,
        texts: Iterable[str] | None,
        added_texts: Iterable[str],
        inseparable: Callable[[str], bool],
    ) -> None:
        """Prepare.

        Args:
            pre_tokenizer: A Rust pre-tokenizer, or None where text is never split.
            texts: Texts of all tokens, or None where tokens may hold parts of characters (then
                only the pre-tokenizer makes borders).
            added_texts: Added tokens that are text; they are matched before any split.
            inseparable: Whether a character sticks to the one before it.
        """
        splits = pre_tokenizer is not None and len(_split(pre_tokenizer, _PROBES[1])) > 0
        self._pre_tokenizer = pre_tokenizer if splits else None
        self._inside = None if texts is None else _pairs(texts)
        self._inside_added = _pairs(added_texts)
        self._inseparable = inseparable
        self._known: dict[str, bool] = {}
        self._classes: dict[tuple[Cuts, ...], int] = {}
        self._class_of: dict[str, int] = {}
        self._verdicts: dict[tuple[int, int], tuple[bool, bool]] = {}

    def between(self, a: str, b: str) -> bool:
        """Whether a border lies between two characters.

        Args:
            a: The character before.
            b: The character after.
        """
        known = self._known.get(a + b)
        if known is None:
            if len(self._known) > _MEMORY:
                self._known.clear()
            known = self._known[a + b] = self._decide(a, b)
        return known

    def last(self, text: str) -> int:
        """Position of the last border inside a text, 0 where there is none.

        Args:
            text: Any text.
        """
        for at in range(len(text) - 1, 0, -1):
            if self.between(text[at - 1], text[at]):
                return at
        return 0

    def pieces(self, text: str) -> list[str]:
        """The text, cut at all its borders.

        Args:
            text: Any text.
        """
        known, found, start = self._known, [], 0
        for at, (a, b) in enumerate(pairwise(text), 1):
            border = known.get(a + b)
            if self.between(a, b) if border is None else border:
                found.append(text[start:at])
                start = at
        if start < len(text):
            found.append(text[start:])
        return found

    def _decide(self, a: str, b: str) -> bool:
        if a + b in self._inside_added or self._inseparable(b):
            return False
        together = self._inside is None or a + b in self._inside
        if self._pre_tokenizer is None:
            return not together
        splits, indifferent = self._verdict(a, b)
        return splits or (indifferent and not together)

    def _verdict(self, a: str, b: str) -> tuple[bool, bool]:
        """Whether it always splits between two characters, and whether it is indifferent."""
        if a in _APOSTROPHES or b in _APOSTROPHES:
            return False, False
        kinds = (self._kind(a), self._kind(b))
        verdict = self._verdicts.get(kinds)
        if verdict is None:
            verdict = self._verdicts[kinds] = self._try(a, b)
        splits, indifferent = verdict
        if kinds[0] == kinds[1]:  # alike may still differ among themselves (scripts): ask for these
            splits = 1 in _split(self._pre_tokenizer, a + b) and self._try(a, b)[0]
        return splits, indifferent

    def _kind(self, c: str) -> int:
        kind = self._class_of.get(c)
        if kind is None:
            probes = (probe.replace("{c}", c) for probe in _PROBES)
            found = tuple(_split(self._pre_tokenizer, probe) for probe in probes)
            kind = self._class_of[c] = self._classes.setdefault(found, len(self._classes))
        return kind

    def _try(self, a: str, b: str) -> tuple[bool, bool]:
        pre_tokenizer = self._pre_tokenizer
        if self._inside is None and 1 not in _split(pre_tokenizer, a + b):
            return False, False
        rights = [(right, _split(pre_tokenizer, b + right)) for right in _RIGHT]
        splits = True
        for left in _LEFT:
            at = len(left) + 1
            before = _split(pre_tokenizer, left + a)
            for right, after in rights:
                whole = _split(pre_tokenizer, left + a + b + right)
                if whole - {at} != before | {at + cut for cut in after}:
                    return False, False
                splits = splits and at in whole
        return splits, True


def _split(pre_tokenizer: Any, text: str) -> Cuts:
    """Positions inside a text at which a pre-tokenizer splits it."""
    spans = [span for _, span in pre_tokenizer.pre_tokenize_str(text)]
    return frozenset(at for span in spans for at in span if 0 < at < len(text))


def _pairs(texts: Iterable[str]) -> set[str]:
    return {text[at : at + 2] for text in texts for at in range(len(text) - 1)}
