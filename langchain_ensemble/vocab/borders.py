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

import re
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from itertools import count, pairwise
from typing import Any

from langchain_ensemble.vocab.backend import steps

_PROBES = (
    "{c}",
    "{c} a{c}a {c}. {c}{c}.1{c}1\n.{c}.\n{c}\n a{c}s A{c}A aB{c}b 世{c}世   {c}  a\t{c}\t"
    + " e\u0301{c}\u0301 １{c}é 12{c}34 x'{c} x'{c}e x'{c}l x'r{c} \u3000{c}",
)
_BOTH = ("", "a", "Ab", " ", "  ", "\n", "\t", "1", "12", "123", ".", "..", "'", "世", "é", "_")
_LEFT = (*_BOTH, "\n ", "x'", "x-", "\u3000")
_RIGHT = (*_BOTH, "s ", "re", "e", "l", " b", "\n\n", "'s", "-x")
_GPT2_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_LITERAL = re.compile(r"[^\\\[\](){}|?*+.^$]{2,}")
_MEMORY = 200_000
Cuts = frozenset[int]
Split = Callable[[str], Cuts]


class Border(IntEnum):
    """What lies between two characters."""

    NONE = 0
    LOOSE = 1  # only unknown characters on both sides may become one id
    HARD = 2


class Borders:
    """Answers, for two neighbouring characters, whether a border lies between them."""

    def __init__(
        self,
        split: Split | None,
        tokens: Sequence[bytes],
        merges_only: bool,
        fixed: Sequence[str],
        fuses: Callable[[str, str], bool],
    ) -> None:
        """Prepare.

        Args:
            split: Gives the positions at which a text is split before its tokens are looked for;
                None where text is never split.
            tokens: Bytes of all tokens.
            merges_only: Whether what no token holds can never become one token; only then may the
                tokens make borders (not where whole words are looked up first).
            fixed: Texts that are matched as they stand before or while splitting.
            fuses: Whether two characters without a spelling become one unknown id; the place
                between them is then a loose border at best.
        """
        splits = split is not None and len(split(_PROBES[1])) > 0
        whole = all(_is_text(token) for token in tokens if len(token) > 1)
        self._split = split if splits else None
        self._by_character = whole
        self._inside: set[bytes] | set[str] | None = None
        if merges_only and whole:
            self._inside = _pairs(token.decode() for token in tokens if len(token) > 1)
        elif merges_only and not splits:
            self._inside = {token[at : at + 2] for token in tokens for at in range(len(token) - 1)}
        self._inside_fixed = _pairs(fixed)
        self._fuses = fuses
        self._known: dict[str, Border] = {}
        self._classes: dict[tuple[Cuts, ...], int] = {}
        self._numbers = count()  # never the same for two threads
        self._class_of: dict[str, int] = {}
        self._verdicts: dict[tuple[int, int], tuple[bool, bool]] = {}

    def between(self, a: str, b: str) -> Border:
        """Which border lies between two characters.

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

    def last(self, text: str, least: Border) -> int:
        """Position of the last border inside a text, 0 where there is none.

        Args:
            text: Any text.
            least: Which borders count.
        """
        for at in range(len(text) - 1, 0, -1):
            if self.between(text[at - 1], text[at]) >= least:
                return at
        return 0

    def pieces(self, text: str) -> list[str]:
        """The text, cut at all its hard borders.

        Args:
            text: Any text.
        """
        known, found, start = self._known, [], 0
        for at, (a, b) in enumerate(pairwise(text), 1):
            border = known.get(a + b)
            if (self.between(a, b) if border is None else border) is Border.HARD:
                found.append(text[start:at])
                start = at
        if start < len(text):
            found.append(text[start:])
        return found

    def _decide(self, a: str, b: str) -> Border:
        if a + b in self._inside_fixed:
            return Border.NONE
        together = self._inside is None or self._edge(a, b) in self._inside
        if self._split is None:
            cut = not together
        else:
            splits, indifferent = self._verdict(self._split, a, b)
            cut = splits or (indifferent and not together)
        if not cut:
            return Border.NONE
        return Border.LOOSE if self._fuses(a, b) else Border.HARD

    def _edge(self, a: str, b: str) -> Any:
        """What a token that reaches over the place must hold."""
        return a + b if self._by_character else a.encode()[-1:] + b.encode()[:1]

    def _verdict(self, split: Split, a: str, b: str) -> tuple[bool, bool]:
        """Whether it always splits between two characters, and whether it is indifferent."""
        kinds = (self._kind(split, a), self._kind(split, b))
        verdict = self._verdicts.get(kinds)
        if verdict is None:
            verdict = self._verdicts[kinds] = self._try(split, a, b)
        splits, indifferent = verdict
        if kinds[0] == kinds[1]:  # alike may still differ among themselves (scripts): ask for these
            splits = 1 in split(a + b) and self._try(split, a, b)[0]
        return splits, indifferent

    def _kind(self, split: Split, c: str) -> int:
        kind = self._class_of.get(c)
        if kind is None:
            probes = (probe.replace("{c}", c) for probe in _PROBES)
            found = tuple(split(probe) for probe in probes)
            kind = self._class_of[c] = self._classes.setdefault(found, next(self._numbers))
        return kind

    def _try(self, split: Split, a: str, b: str) -> tuple[bool, bool]:
        if self._inside is None and 1 not in split(a + b):
            return False, False
        rights = [(right, split(b + right)) for right in _RIGHT]
        splits = True
        for left in _LEFT:
            at = len(left) + 1
            before = split(left + a)
            for right, after in rights:
                whole = split(left + a + b + right)
                if whole - {at} != before | {at + cut for cut in after}:
                    return False, False
                splits = splits and at in whole
        return splits, True


def _pairs(texts: Iterable[str]) -> set[str]:
    return {text[at : at + 2] for text in texts for at in range(len(text) - 1)}


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def literals(pre_tokenizer: dict[str, Any] | None) -> list[str]:
    """Strings that a pre-tokenizer spells out (``'re``), in the cases it may meet them.

    Args:
        pre_tokenizer: Its JSON, or None.

    Returns:
        Strings of two and more characters; more than needed does no harm.
    """
    found: list[str] = []
    for step in steps(pre_tokenizer):
        pattern = step.get("pattern")
        if step["type"] == "ByteLevel" and step.get("use_regex", True):
            pattern = {"Regex": _GPT2_CONTRACTIONS}
        if isinstance(pattern, dict):
            found += [pattern.get("String", ""), *_LITERAL.findall(pattern.get("Regex", ""))]
    runs = [run[at : at + 2] for run in found for at in range(len(run) - 1)]
    return [
        first + second
        for run in runs
        for first in (run[0].lower(), run[0].upper())
        for second in (run[1].lower(), run[1].upper())
    ]
