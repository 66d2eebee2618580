"""Grammars by llguidance: the only file that knows it. Imported at first use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.constraints.bitmask import unpacked
from langchain_ensemble.constraints.grammar import Ebnf, GrammarVocabulary, Lark
from langchain_ensemble.constraints.language import UNICODE, Chars, Language, Text, repeat
from langchain_ensemble.constraints.lark import LarkText, expression
from langchain_ensemble.constraints.pieces import Chain, Choice, Loop, Piece, Watch
from langchain_ensemble.errors import ConfigError

_ANY_TEXT = expression(repeat(Chars(UNICODE), 0, None))
# where only one text can follow, all of its beginnings are legal, not only the engine's own tokens
_ALL_TOKENS = '\n%llguidance {"no_forcing": true}\n'


def is_installed() -> bool:
    """Whether llguidance can be imported.

    Returns:
        True where its package is found.
    """
    return find_spec("llguidance") is not None


class _Table:
    """A vocabulary as llguidance wants it: after its ids, one for every byte, and an end."""

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        size = len(vocabulary.token_bytes)
        tokens = [token or b"" for token in vocabulary.token_bytes]
        self.tokens = [*tokens, *(bytes([byte]) for byte in range(256)), b"\xff<end>"]
        self.special_token_ids = [size + 256]
        self.eos_token_id = size + 256
        self.bos_token_id = None
        self._first_byte = size

    def __call__(self, text: bytes | str) -> list[int]:
        data = text if isinstance(text, bytes) else text.encode()
        return [self._first_byte + byte for byte in data]


@dataclass(frozen=True)
class _Prepared:
    """A vocabulary in llguidance's form.

    Attributes:
        tokenizer: For its matchers.
        doubles: Ids whose bytes another id has, too; the engine allows one of them only.
        groups: Number of the bytes of each of them.
    """

    tokenizer: Any
    doubles: Tensor
    groups: Tensor


def read_vocabulary(vocabulary: GrammarVocabulary) -> _Prepared:
    """Prepare a vocabulary; it is shared by all its grammars.

    Args:
        vocabulary: Bytes of every id.

    Returns:
        What :func:`compile_piece` takes.
    """
    import llguidance

    table = _Table(vocabulary)
    tokenizer = llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(table), slices=llguidance.LLTokenizer.json_slices()
    )
    ids_of: dict[bytes, list[int]] = {}
    for token_id, token in enumerate(table.tokens):
        if token:
            ids_of.setdefault(token, []).append(token_id)
    several = [ids for ids in ids_of.values() if len(ids) > 1]
    doubles = torch.tensor([token_id for ids in several for token_id in ids], dtype=torch.long)
    groups = torch.tensor([group for group, ids in enumerate(several) for _ in ids]).long()
    return _Prepared(tokenizer, doubles, groups)


def compile_piece(
    piece: Piece, vocabulary: GrammarVocabulary, prepared: _Prepared
) -> LLGuidanceCompiled:
    """Compile a grammar for one vocabulary.

    Args:
        piece: What was read of the grammar; no GBNF.
        vocabulary: Bytes of every id.
        prepared: What :func:`read_vocabulary` gave.

    Returns:
        The compiled grammar.

    Raises:
        ConfigError: The engine refuses the grammar.
    """
    import llguidance

    source = _source(piece)
    matcher = llguidance.LLMatcher(prepared.tokenizer, source, log_level=0)
    if matcher.is_error():
        raise ConfigError(f"llguidance refuses the grammar: {_reason(matcher)}")
    return LLGuidanceCompiled(matcher, len(vocabulary.token_bytes), prepared)


class LLGuidanceCompiled:
    """A grammar over one vocabulary. Safe to share between threads."""

    def __init__(self, start: Any, size: int, prepared: _Prepared) -> None:
        self._start = start
        self._size = size
        self._prepared = prepared
        self._lock = Lock()

    def matcher(self) -> LLGuidanceMatcher:
        """A matcher at the start."""
        with self._lock:
            return LLGuidanceMatcher(self._start.deep_copy(), self._size, self._prepared)


class LLGuidanceMatcher:
    """One answer's place in a grammar."""

    def __init__(self, matcher: Any, size: int, prepared: _Prepared) -> None:
        self._matcher = matcher
        self._size = size
        self._doubles = prepared.doubles
        self._groups = prepared.groups
        self._read = 0

    def allowed(self) -> Tensor:
        """[V_i] bool on the CPU: ids whose bytes may come next."""
        mask = bytearray(self._checked(self._matcher.compute_bitmask))
        row = unpacked(torch.frombuffer(mask, dtype=torch.uint8), self._size + 257)
        hit = torch.zeros(len(self._groups), dtype=torch.bool)
        hit[self._groups[row[self._doubles]]] = True
        row[self._doubles] = hit[self._groups]
        return row[: self._size]

    @property
    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._checked(self._matcher.is_accepting))

    def advance(self, data: bytes) -> bool:
        """Read some bytes; False, and no change, if they are not legal."""
        ids = [self._size + byte for byte in data]
        if self._checked(lambda: self._matcher.validate_tokens(ids)) < len(ids):
            return False
        self._checked(lambda: self._matcher.consume_tokens(ids))
        self._read += len(ids)
        return True

    def mark(self) -> int:
        """Remember the place."""
        return self._read

    def rollback(self, mark: int) -> None:
        """Return to a place."""
        if self._read > mark:
            self._checked(lambda: self._matcher.rollback(self._read - mark))
            self._read = mark

    def _checked(self, ask: Callable[[], Any]) -> Any:
        result = ask()
        if self._matcher.is_error():
            raise ConfigError(
                f"llguidance gave up on the grammar: {_reason(self._matcher)}. If no text can "
                "obey it, mend it; else make it simpler, or take xgrammar."
            )
        return result


def _reason(matcher: Any) -> str:
    """What the engine says, without the dump of its state."""
    return str(matcher.get_error()).partition("<state>")[0].strip()


def _source(piece: Piece) -> str:
    """The grammar as llguidance reads it: one of our own, and one more for each Lark grammar."""
    text, others = LarkText(), dict[str, str]()
    if isinstance(piece, Lark):
        return json.dumps({"grammars": [{"lark_grammar": piece.source + _ALL_TOKENS}]})
    start = _part(piece, text, others)
    named = [{"name": name, "lark_grammar": source} for name, source in others.items()]
    return json.dumps({"grammars": [{"lark_grammar": text.text(start) + _ALL_TOKENS}, *named]})


def _part(piece: Piece, text: LarkText, others: dict[str, str]) -> str:
    match piece:
        case Language():
            return text.language(piece)
        case Lark(source):
            name = f"g{len(others)}"
            others[name] = source
            return f"@{name}"
        case Chain(parts):
            return text.add(text.new_name(), " ".join(_part(p, text, others) for p in parts))
        case Choice(options):
            return text.add(text.new_name(), " | ".join(_part(p, text, others) for p in options))
        case Loop(part, separator, at_most):
            inner = text.add(text.new_name(), _part(part, text, others))
            between = text.language(Language(Text(separator)))
            count = "*" if at_most is None else f"{{0,{at_most - 1}}}"
            return text.add(text.new_name(), f"{inner} ({between} {inner}){count}")
        case Watch(trigger, body):
            found = f"{_ANY_TEXT} {expression(Text(trigger))}"
            opening = text.add(text.new_name(), text.terminal(found), "[lazy]")
            without = text.terminal(f"{_ANY_TEXT} & ~({found} {_ANY_TEXT})")
            after = _part(body, text, others)
            return text.add(text.new_name(), f"{without} | {opening} {after}")
        case Ebnf():
            raise ConfigError("llguidance does not read GBNF.")
