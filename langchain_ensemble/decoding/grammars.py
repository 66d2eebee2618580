"""One answer's place in its grammar: one matcher a distinct vocabulary, all advanced alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_ensemble.constraints.grammar import CompiledGrammar, Matcher
from langchain_ensemble.errors import ConfigError


class GrammarState:
    """Matchers of one row; transactional like everything a row knows.

    Attributes:
        which: Number of each voice's matcher; voices that share a compiled grammar share it.
        matchers: One a distinct compiled grammar.
    """

    def __init__(self, grammars: Sequence[CompiledGrammar]) -> None:
        """Start at the grammar's beginning.

        Args:
            grammars: One a voice.
        """
        distinct = list({id(grammar): grammar for grammar in grammars}.values())
        numbers = {id(grammar): number for number, grammar in enumerate(distinct)}
        self.which = [numbers[id(grammar)] for grammar in grammars]
        self._first = distinct[0]
        self.matchers: list[Matcher] = [grammar.matcher() for grammar in distinct]

    @property
    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return self.matchers[0].may_end

    def advance(self, data: bytes, answer: bytes | bytearray) -> None:
        """Read the chosen bytes with every matcher.

        Args:
            data: The bytes.
            answer: What came before, for the message.

        Raises:
            ConfigError: A matcher refuses what another one allowed.
        """
        if not data:
            return
        for number, matcher in enumerate(self.matchers):
            if not matcher.advance(data):
                raise ConfigError(
                    f"the grammar refuses {data!r} after {bytes(answer[-40:])!r} in vocabulary "
                    f"{number} of {len(self.matchers)}, though it was allowed in another; all "
                    "voices need the same grammar"
                )

    def completed_by(self, answer: bytes | bytearray) -> bool:
        """Whether some bytes from the start are a whole text of the grammar."""
        matcher = self._first.matcher()
        return (not answer or matcher.advance(bytes(answer))) and matcher.may_end

    def next_bytes(self) -> bytes:
        """Every byte that may come next, whoever can spell it."""
        matcher = self.matchers[0]
        return bytes(byte for byte in range(256) if accepts(matcher, bytes([byte])))

    def mark(self) -> Any:
        """Remember the place."""
        return [matcher.mark() for matcher in self.matchers]

    def rollback(self, mark: Any) -> None:
        """Return to a place."""
        for matcher, place in zip(self.matchers, mark, strict=True):
            matcher.rollback(place)


def accepts(matcher: Matcher, data: bytes) -> bool:
    """Whether some bytes may come next; the matcher stays where it is.

    Args:
        matcher: Any matcher.
        data: What might follow.

    Returns:
        Whether the grammar allows it.
    """
    if not data:
        return True
    place = matcher.mark()
    if not matcher.advance(data):
        return False
    matcher.rollback(place)
    return True
