"""Grammars by xgrammar: the only file that knows it. Imported at first use."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.constraints.bitmask import unpacked
from langchain_ensemble.constraints.gbnf import MISREAD, gbnf
from langchain_ensemble.constraints.grammar import Ebnf, GrammarVocabulary, Lark
from langchain_ensemble.constraints.language import Language
from langchain_ensemble.constraints.pieces import Chain, Choice, Loop, Piece, Watch
from langchain_ensemble.errors import ConfigError

_THREADS = 4  # that compile one grammar


def is_installed() -> bool:
    """Whether xgrammar can be imported.

    Returns:
        True where its package is found.
    """
    return find_spec("xgrammar") is not None


def read_vocabulary(vocabulary: GrammarVocabulary) -> Any:
    """Prepare a vocabulary; it is shared by all its grammars.

    Args:
        vocabulary: Bytes of every id.

    Returns:
        What :func:`compile_piece` takes.
    """
    import xgrammar

    size = len(vocabulary.token_bytes)
    # an id without bytes is never legal; one more of them stands for "the end", which is not ours
    table = [token or b"" for token in vocabulary.token_bytes] + [b""]
    info = xgrammar.TokenizerInfo(
        table, xgrammar.VocabType.RAW, vocab_size=size + 1, stop_token_ids=[size]
    )
    return xgrammar.GrammarCompiler(info, max_threads=_THREADS, cache_limit_bytes=0)


def compile_piece(piece: Piece, vocabulary: GrammarVocabulary, prepared: Any) -> XGrammarCompiled:
    """Compile a grammar for one vocabulary.

    Args:
        piece: What was read of the grammar; no Lark, no intersections.
        vocabulary: Bytes of every id.
        prepared: What :func:`read_vocabulary` gave.

    Returns:
        The compiled grammar.

    Raises:
        ConfigError: The engine refuses the grammar.
    """
    import xgrammar

    try:
        if isinstance(piece, Language):
            grammar = xgrammar.Grammar.from_ebnf(gbnf(piece))
        elif isinstance(piece, Ebnf):
            grammar = xgrammar.Grammar.from_ebnf(_readable(piece.source))
        else:
            tag = {"type": "structural_tag", "format": _format(piece)}
            grammar = xgrammar.Grammar.from_structural_tag(json.dumps(tag))
        compiled = prepared.compile_grammar(grammar)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"xgrammar refuses the grammar: {_reason(error)}") from error
    return XGrammarCompiled(compiled, len(vocabulary.token_bytes))


class XGrammarCompiled:
    """A grammar over one vocabulary. Safe to share between threads."""

    def __init__(self, compiled: Any, size: int) -> None:
        self._compiled = compiled
        self._size = size

    def matcher(self) -> XGrammarMatcher:
        """A matcher at the start."""
        return XGrammarMatcher(self._compiled, self._size)


class XGrammarMatcher:
    """One answer's place in a grammar."""

    def __init__(self, compiled: Any, size: int) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._size = size
        self._words = torch.empty((size + 32) // 32, dtype=torch.int32)
        self._steps = 0

    def allowed(self) -> Tensor:
        """[V_i] bool on the CPU: ids whose bytes may come next."""
        self._matcher.fill_next_token_bitmask(self._words)
        return unpacked(self._words, self._size)

    @property
    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_completed())

    def advance(self, data: bytes) -> bool:
        """Read some bytes; False, and no change, if they are not legal."""
        if not data:
            return True
        accepted = bool(self._matcher.accept_string(data))
        self._steps += accepted
        return accepted

    def mark(self) -> int:
        """Remember the place."""
        return self._steps

    def rollback(self, mark: int) -> None:
        """Return to a place."""
        if self._steps > mark:
            self._matcher.rollback(self._steps - mark)
            self._steps = mark


def _format(piece: Piece) -> dict[str, Any]:
    match piece:
        case Language():
            return {"type": "grammar", "grammar": gbnf(piece)}
        case Ebnf(source):
            return {"type": "grammar", "grammar": _readable(source)}
        case Chain(parts):
            return {"type": "sequence", "elements": [_format(part) for part in parts]}
        case Choice(options):
            return {"type": "or", "elements": [_format(option) for option in options]}
        case Loop(part, separator, at_most):
            more = [{"type": "const_string", "value": separator}] if separator else []
            again = {"type": "sequence", "elements": [*more, _format(part)]}
            most = -1 if at_most is None else at_most - 1
            loop = {"type": "repeat", "min": 0, "max": most, "content": again}
            return {"type": "sequence", "elements": [_format(part), loop]}
        case Watch(trigger, body):
            return {"type": "dispatch", "rules": [[trigger, _format(body)]], "loop": False}
        case Lark():
            raise ConfigError("xgrammar does not read Lark grammars of llguidance's dialect.")


def _readable(source: str) -> str:
    if found := MISREAD.search(source):
        raise ConfigError(
            f"xgrammar misreads {found.group()!r} in a grammar: it takes the last letter for a "
            'part of a number. Begin a new string before it: "ß" "e" for "ße".'
        )
    return source


def _reason(error: Exception) -> str:
    """What the engine says, without its time stamp and source line."""
    return str(error).partition("] ")[2].partition(": ")[2].strip() or str(error)
