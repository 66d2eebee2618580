"""Grammars compiled for vocabularies, by one engine for all members, remembered in the process.

llguidance is taken first: on 150,000 ids it compiles a schema with long strings in a
millisecond where xgrammar needs seconds, and it knows intersections (a ``pattern`` and a
``maxLength``). xgrammar reads GBNF, and all else where llguidance is not installed.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from types import ModuleType
from typing import Generic, Literal, TypeVar

from langchain_ensemble.constraints import llguidance_engine, xgrammar_engine
from langchain_ensemble.constraints.grammar import (
    CompiledGrammar,
    Ebnf,
    Grammar,
    GrammarVocabulary,
    Lark,
)
from langchain_ensemble.constraints.pieces import Piece, has_sets, holds, notes_of, read
from langchain_ensemble.errors import ConfigError, EnsembleWarning, unknown_name

Engine = Literal["xgrammar", "llguidance"]
T = TypeVar("T")

_ENGINES: dict[str, ModuleType] = {
    "llguidance": llguidance_engine,
    "xgrammar": xgrammar_engine,
}
_INSTALL = 'pip install "langchain-ensemble[structured]"'


class _Remembered(Generic[T]):
    """The results used last, each made once, also by many threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = Lock()
        self._made: OrderedDict[Hashable, T] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
            making = self._making.setdefault(key, Lock())
        with making:
            with self._lock:
                if key in self._made:
                    return self._made[key]
            try:
                result = make()
            except BaseException:
                with self._lock:
                    self._making.pop(key, None)
                raise
            with self._lock:
                self._made[key] = result
                self._making.pop(key, None)
                while len(self._made) > self._size:
                    self._made.popitem(last=False)
            return result


_pieces: _Remembered[Piece] = _Remembered(256)
_tables: _Remembered[object] = _Remembered(32)
_compiled: _Remembered[CompiledGrammar] = _Remembered(256)


def compile_all(
    grammar: Grammar,
    vocabularies: Sequence[GrammarVocabulary],
    engine: Engine | None = None,
) -> tuple[CompiledGrammar, ...]:
    """Compile one grammar for the vocabularies of an ensemble, once per distinct table.

    What the grammar asks for and no engine enforces is warned about at every call.

    Args:
        grammar: Any grammar.
        vocabularies: One per member.
        engine: By which engine; None: the first that is installed and can read the grammar.

    Returns:
        One compiled grammar per vocabulary, all by the same engine, so that their next bytes
        agree.

    Raises:
        ConfigError: The grammar is broken, no text can obey it, or no engine that is installed
            reads it.
    """
    piece = _pieces.get(grammar, lambda: read(grammar))
    for note in notes_of(piece):
        warnings.warn(f"grammar: {note}.", EnsembleWarning, stacklevel=2)
    name = _choose(piece, engine)
    return tuple(_compile(grammar, piece, vocabulary, name) for vocabulary in vocabularies)


def compile_grammar(
    grammar: Grammar, vocabulary: GrammarVocabulary, engine: Engine | None = None
) -> CompiledGrammar:
    """Compile one grammar for one vocabulary.

    Args:
        grammar: Any grammar.
        vocabulary: Bytes of every id.
        engine: By which engine; None: the first that is installed and can read the grammar.

    Returns:
        The compiled grammar.

    Raises:
        ConfigError: As :func:`compile_all`.
    """
    return compile_all(grammar, (vocabulary,), engine)[0]


def _compile(
    grammar: Grammar, piece: Piece, vocabulary: GrammarVocabulary, name: str
) -> CompiledGrammar:
    module = _ENGINES[name]

    def make() -> CompiledGrammar:
        key = (name, vocabulary.content_hash)
        prepared = _tables.get(key, lambda: module.read_vocabulary(vocabulary))
        compiled: CompiledGrammar = module.compile_piece(piece, vocabulary, prepared)
        start = compiled.matcher()
        if not start.may_end and not bool(start.allowed().any()):
            raise ConfigError(
                f"no token can begin the grammar {str(grammar)[:200]}: either no text obeys it, "
                "or the vocabulary cannot spell one."
            )
        return compiled

    return _compiled.get((name, vocabulary.content_hash, grammar), make)


def _choose(piece: Piece, engine: Engine | None) -> str:
    if engine is not None and engine not in _ENGINES:
        raise ConfigError(unknown_name("grammar engine", engine, _ENGINES))
    able = {name: reason for name in _ENGINES if not (reason := _unable(name, piece))}
    if engine is not None:
        able = {name: reason for name, reason in able.items() if name == engine}
    for name in able:
        if _ENGINES[name].is_installed():
            return name
    if not able:
        reasons = "; ".join(f"{n}: {_unable(n, piece)}" for n in ([engine] if engine else _ENGINES))
        raise ConfigError(f"no engine can take this grammar: {reasons}.")
    wanted = " or ".join(able)
    raise ConfigError(f"grammars need {wanted}, which is not installed: {_INSTALL}")


def _unable(name: str, piece: Piece) -> str:
    """Why an engine cannot take a grammar; empty where it can."""
    if name == "llguidance":
        if holds(piece, lambda part: isinstance(part, Ebnf)):
            return "it does not read GBNF (Ebnf); write it as Lark or take xgrammar for all of it"
        return ""
    if holds(piece, lambda part: isinstance(part, Lark)):
        return "it does not read Lark; write it as Ebnf or take llguidance for all of it"
    if has_sets(piece):
        return "it cannot intersect (a 'pattern' with a length, names that are not declared)"
    return ""
