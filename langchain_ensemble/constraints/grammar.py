"""What a grammar is, and what a matcher of one does; the engines behind it are elsewhere.

A grammar constrains the *emitted bytes* of an answer. It is written once, as plain data, and
compiled for every distinct vocabulary of an ensemble; all matchers of one answer are advanced by
the same bytes, so their legal next bytes agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Literal:
    """Exactly this text."""

    text: str


@dataclass(frozen=True)
class JsonSchema:
    """JSON that a schema allows, spaced as ``json.dumps`` does it (``{"a": 1, "b": [2, 3]}``).

    What is enforced: :mod:`~langchain_ensemble.constraints.json_schema`.

    Attributes:
        schema: The JSON schema as JSON text.
    """

    schema: str


@dataclass(frozen=True)
class Regex:
    """A regular expression over the whole text.

    What is read of the syntax: :mod:`~langchain_ensemble.constraints.regex`.
    """

    pattern: str


@dataclass(frozen=True)
class Ebnf:
    """A GBNF grammar (llama.cpp's form of EBNF); its rule ``root`` is the start."""

    source: str


@dataclass(frozen=True)
class Lark:
    """A Lark grammar in llguidance's dialect; its rule ``start`` is the start.

    Its terminals are greedy, one by one: what is joined after it must not begin with something
    that its last terminal could go on with.
    """

    source: str


@dataclass(frozen=True)
class Joined:
    """Some grammars one after the other."""

    parts: tuple[Grammar, ...]


@dataclass(frozen=True)
class OneOf:
    """Any one of some grammars."""

    options: tuple[Grammar, ...]


@dataclass(frozen=True)
class Repeated:
    """A grammar one or more times, with a text in between.

    Attributes:
        part: What is repeated.
        separator: Text between two of them.
        at_most: How often at most; None: any number.
    """

    part: Grammar
    separator: str = ""
    at_most: int | None = None


@dataclass(frozen=True)
class Triggered:
    """Any text; where ``trigger`` appears in it, ``body`` must follow, and after it the end.

    Attributes:
        trigger: A text.
        body: What must follow it.
    """

    trigger: str
    body: Grammar


Grammar: TypeAlias = (
    Literal | JsonSchema | Regex | Ebnf | Lark | Joined | OneOf | Repeated | Triggered
)


@dataclass(frozen=True)
class GrammarVocabulary:
    """What a grammar engine has to know of one vocabulary.

    Attributes:
        token_bytes: Bytes of every id up to the logits width; None: never legal (control ids).
        content_hash: Identity of the table, for caches.
    """

    token_bytes: Sequence[bytes | None]
    content_hash: str


class Matcher(Protocol):
    """One answer's place in one grammar, over one vocabulary. Not thread-safe."""

    def allowed(self) -> Tensor:
        """[V_i] bool on the CPU: ids whose bytes may come next. No END; see ``may_end``."""

    @property
    def may_end(self) -> bool:
        """Whether the answer may end here."""

    def advance(self, data: bytes) -> bool:
        """Read some bytes (possibly part of a character); False, and no change, if not legal."""

    def mark(self) -> Any:
        """Remember the place."""

    def rollback(self, mark: Any) -> None:
        """Return to a place."""


class CompiledGrammar(Protocol):
    """One grammar over one vocabulary; cheap to start matchers of."""

    def matcher(self) -> Matcher:
        """A matcher at the start."""
