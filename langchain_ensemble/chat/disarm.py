"""Content is text: control tokens count only where a template writes them.

Two steps. Before a template is rendered, every control token's spelling inside a string that was
given is *broken* by a mark, a character that appears nowhere else (so a template that looks for
``</think>`` in a message does not find it there either). After rendering, the spellings that are
still whole are the template's own.

A text whose marks lie in no control token is tokenized by the tokenizer itself. Otherwise a copy
of the tokenizer is used whose control tokens have other names: the template's are renamed, the
content's are left to be plain text, in one pass over the whole, so that nothing else changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer

from langchain_ensemble.errors import ConfigError, VocabularyError
from langchain_ensemble.vocab.backend import Backend, read_backend, rebuild
from langchain_ensemble.vocab.roles import Role
from langchain_ensemble.vocab.vocabulary import Vocabulary

_MARKS = (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))
"""Characters without a meaning: Unicode's noncharacters first, then private ones."""


@dataclass(frozen=True)
class Marks:
    """Characters that no text of a request holds.

    Attributes:
        cut: Breaks spellings.
        letters: Spell the names of renamed control tokens: sixteen digits and a bracket. (Names of
            ordinary characters would not do: some vocabularies have ``0`` as an added token.)
    """

    cut: str
    letters: str


def free_marks(texts: Iterable[str]) -> Marks:
    """Choose marks for a request.

    Args:
        texts: All texts that are rendered.

    Returns:
        Characters that are in none of them.

    Raises:
        ConfigError: The texts hold every character that has no meaning.
    """
    taken: set[str] = set().union(*texts)
    free = (chr(code) for code in _MARKS if chr(code) not in taken)
    found = "".join(islice(free, 18))
    if len(found) < 18:
        raise ConfigError(
            f"the conversation holds nearly all of the {len(_MARKS)} private and noncharacters of "
            "Unicode; remove some: none is text"
        )
    return Marks(found[0], found[1:])


class Disarmer:
    """One tokenizer's control tokens, and text that must not become any of them."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, literals: Iterable[str]) -> None:
        """Read the control tokens.

        Args:
            tokenizer: The member's transformers tokenizer.
            vocabulary: Its vocabulary: which ids have a role.
            literals: Further spellings that a template looks for in content.
        """
        self._tokenizer = tokenizer
        self._backend: Backend = read_backend(tokenizer)
        self._roles = vocabulary.token_roles
        added = self._backend.added
        control = {i: token for i, token in added.items() if self._is_control(i) and token.content}
        self.controls: dict[str, int] = {token.content: i for i, token in control.items()}
        self._rewrites = self._backend.normalizer is not None and any(
            token.normalized for token in control.values()
        )
        spellings = dict.fromkeys([*self.controls, *(t for t in literals if len(t) > 1)])
        self._to_break = _overlapping(spellings)
        self._heads = {s[:n] for s in self.controls for n in range(1, len(s))}
        self._tails = {s[n:] for s in self.controls for n in range(1, len(s))}
        self._longest = max(map(len, self.controls), default=0)
        self._renamed = lru_cache(4)(self._rename)

    def break_text(self, text: str, marks: Marks, *, edges: bool = True) -> str:
        """Break every spelling in a content string.

        Args:
            text: A string that was given.
            marks: The request's marks.
            edges: Whether a part of a spelling at either end is kept apart from what follows.

        Returns:
            The string with marks in it; the same string where nothing has to be broken.
        """
        if self._to_break is None or not text:
            return text
        found = list(self._to_break.finditer(text))
        cuts = {m.start() + 1 for m in found} | {m.start() for m in found if len(m[1]) == 1}
        if self._rewrites:  # a normalizer may make spellings of other text
            cuts |= {(start + end) // 2 for start, end, _ in self._spans(text) if end - start > 1}
        if edges:
            cuts |= self._edges(text)
        if not cuts:
            return text
        points = [0, *sorted(cuts), len(text)]
        return marks.cut.join(text[a:b] for a, b in pairwise(points))

    def encode(self, text: str, marks: Marks) -> list[int]:
        """Tokenize a rendered text.

        Args:
            text: What a template made of strings that :meth:`break_text` gave.
            marks: The request's marks.

        Returns:
            Its ids: what the tokenizer gives where content holds no control token, and the
            template's control ids only where it does.

        Raises:
            VocabularyError: The tokenizer makes control ids of plain text.
        """
        plain = text.replace(marks.cut, "")
        if plain == text:
            return self._by_tokenizer(plain)
        spans = [span for span in self._spans(text) if not _is_broken(text, span, marks)]
        wanted = [token for _, _, token in spans]
        if [token for _, _, token in self._spans(plain)] == wanted:
            return self._by_tokenizer(plain)
        for keep in (False, True):
            ids = self._by_copy(text, spans, marks, keep)
            if [i for i in ids if self._is_control(i) and self._roles[i] is not Role.UNK] == [
                i for i in wanted if self._roles[i] is not Role.UNK
            ]:
                return ids
        raise VocabularyError(
            f"tokenizer {self._backend.name!r} makes control tokens of plain text; content that "
            "holds their spellings cannot be given to it. Remove them from the conversation"
        )

    def _is_control(self, token: int) -> bool:
        return token >= len(self._roles) or self._roles[token] is not None

    def _edges(self, text: str) -> set[int]:
        """Where parts of a spelling at the ends of a string are kept from growing."""
        start = len(text) - len(text.lstrip())
        core = text.strip()
        reach = range(1, min(len(core), self._longest) + 1)
        ends = {start + len(core)} if any(core[-n:] in self._heads for n in reach) else set()
        return ends | ({start} if any(core[:n] in self._tails for n in reach) else set())

    def _by_tokenizer(self, text: str) -> list[int]:
        found = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [int(i) for i in found]

    def _spans(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, id) of the control tokens that the tokenizer finds in a text."""
        found = self._tokenizer(
            text, add_special_tokens=False, verbose=False, return_offsets_mapping=True
        )
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [
            (start, end, i)
            for i, (start, end) in pairs
            if self._is_control(i) and (self._spelled(i, text[start:end]))
        ]

    def _spelled(self, token: int, text: str) -> bool:
        """Whether a control id is there by its spelling, not for text that has no id."""
        if token < len(self._roles) and self._roles[token] is not Role.UNK:
            return True
        return token in self._backend.added and self._backend.added[token].content in text

    def _by_copy(
        self, text: str, spans: Sequence[tuple[int, int, int]], marks: Marks, keep: bool
    ) -> list[int]:
        """Tokenize with renamed control tokens; ``keep`` leaves the marks in, as borders."""
        copy, original, cut = self._renamed(marks)
        parts: list[str] = []
        at = 0
        for start, end, token in spans:
            inner = text[start:end]  # with the white space that the token swallows
            named = inner.replace(inner.strip(), _new_name(token, marks), 1)
            parts += [text[at:start], named if inner.strip() else _new_name(token, marks)]
            at = end
        text = "".join([*parts, text[at:]])
        if not keep:
            text = text.replace(marks.cut, "")
        ids = copy.encode(text, add_special_tokens=False).ids
        return [original.get(i, i) for i in ids if i != cut]

    def _rename(self, marks: Marks) -> tuple[Tokenizer, Mapping[int, int], int]:
        """A copy with other names for control tokens; its ids -> the tokenizer's; the mark's id."""
        backend = self._backend
        copy = rebuild(backend.rust, backend.normalizer, backend.pre_tokenizer)
        highest = max((i for i, piece in enumerate(backend.pieces) if piece is not None), default=0)
        filler = range(max(0, highest + 1 - copy.get_vocab_size()))  # new ids must be new
        copy.add_tokens([AddedToken(_new_name(-1 - n, marks), normalized=False) for n in filler])
        names = {
            i: _new_name(i, marks) if self._is_control(i) else token.content
            for i, token in backend.added.items()
        }
        renamed = [_renamed_token(token, names[i]) for i, token in backend.added.items()]
        copy.add_tokens([*renamed, AddedToken(marks.cut, normalized=False)])
        original = {_id_of(copy, name): i for i, name in names.items()}
        return copy, original, _id_of(copy, marks.cut)


def map_strings(value: Any, change: Callable[[str], str], key: Callable[[str], str]) -> Any:
    """Change every string of a JSON value.

    Args:
        value: Any JSON value.
        change: What becomes of a string.
        key: What becomes of an object's key.

    Returns:
        A copy.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key(str(k)): map_strings(v, change, key) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(v, change, key) for v in value]
    return value


def _overlapping(spellings: Iterable[str]) -> re.Pattern[str] | None:
    """Finds every place where a spelling starts, also inside another one."""
    longest_first = sorted(spellings, key=len, reverse=True)
    if not longest_first:
        return None
    return re.compile("(?=(" + "|".join(map(re.escape, longest_first)) + "))")


def all_strings(value: Any) -> list[str]:
    """Every string of a JSON value, keys included.

    Args:
        value: Any JSON value.

    Returns:
        The strings.
    """
    found: list[str] = []

    def keep(text: str) -> str:
        found.append(text)
        return text

    map_strings(value, keep, keep)
    return found


def _id_of(tokenizer: Tokenizer, content: str) -> int:
    found = tokenizer.token_to_id(content)
    if found is None:
        raise VocabularyError(f"a tokenizer does not take the added token {content!r}")
    return int(found)


def _new_name(token: int, marks: Marks) -> str:
    digits = "".join(marks.letters[int(digit, 16)] for digit in f"{abs(token):x}")
    return marks.letters[-1] * (1 if token >= 0 else 2) + digits + marks.letters[-1]


def _renamed_token(token: AddedToken, name: str) -> AddedToken:
    return AddedToken(
        name,
        single_word=token.single_word and name == token.content,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _is_broken(text: str, span: tuple[int, int, int], marks: Marks) -> bool:
    """Whether a control token of one character is content: it cannot be broken from inside."""
    start, end, _ = span
    return end - start == 1 and text[start - 1 : start] == text[end : end + 1] == marks.cut
