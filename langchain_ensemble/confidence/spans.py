"""How sure the members are of parts of an answer: its sentences, or any characters of it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_ensemble.confidence.features import Confidence, confidence_of
from langchain_ensemble.decoding.records import TokenRecord


@dataclass(frozen=True)
class Span:
    """How sure the members are of a part of an answer.

    Attributes:
        start: First character.
        end: Behind the last one.
        confidence: Of the tokens that stand in it, by the raw formula: a map knows whole answers.
    """

    start: int
    end: int
    confidence: Confidence


_SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s|$)|[。！？]+|(?=\n)|$)", re.M | re.S)


def sentences(text: str) -> list[tuple[int, int]]:
    """Find a text's sentences: up to ``.``, ``!`` or ``?`` before a space, or to a line's end.

    Args:
        text: Any text.

    Returns:
        (start, end) of each, in characters, without the space around them.
    """
    return [match.span() for match in _SENTENCE.finditer(text)]


def texts_of(tokens: Sequence[TokenRecord]) -> list[str]:
    """Give what each token adds to the text.

    Args:
        tokens: Decode steps.

    Returns:
        One text a token; a character belongs to the token that completes it, bytes that can never
        be text are U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(token.bytes) for token in tokens]


def span_confidence(
    text: str, tokens: Sequence[TokenRecord], spans: Sequence[tuple[int, int]]
) -> list[Span]:
    """Say how sure the members are of parts of an answer.

    Args:
        text: The answer.
        tokens: Its decode steps, as in :func:`confidence_features`.
        spans: (start, end) in characters of the text.

    Returns:
        One entry a span in which tokens stand; none at all where the text is not what the tokens
        spell, because calls were taken out of it.
    """
    texts = texts_of(tokens)
    shift = "".join(texts).find(text)
    if shift < 0:
        return []
    found, ranges, place = [], [], -shift
    for token, said in zip(tokens, texts, strict=True):
        part = bool(token.bytes) and not said  # of the character that comes next
        ranges.append((place, place + len(said) + part))
        place += len(said)
    for start, end in spans:
        pairs = zip(tokens, ranges, strict=True)
        inside = [token for token, (a, b) in pairs if max(a, start) < min(b, end)]
        if inside:
            found.append(Span(start, end, confidence_of(inside)))
    return found
