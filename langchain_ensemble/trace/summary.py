"""A trace in a few numbers, small enough for metadata and run traces whatever the answer's length.

Strings are cut and lists are short, so that the JSON stays under :data:`LIMIT` bytes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from langchain_ensemble.confidence import texts_of
from langchain_ensemble.decoding.records import TokenRecord

LIMIT = 4000
"""Bytes of the JSON at most."""

SHOWN = 5
"""Tokens that are named."""

NAMED = 8
"""Members that are named; of more, those that decided most."""

LONGEST = 30
"""Characters of a name or a token at most."""


def decider(token: TokenRecord) -> str | None:
    """Say who decided a token: the voice whose weight times probability of it was largest.

    Args:
        token: A decode step.

    Returns:
        The voice's name; None where no voice said it.
    """
    said = {name: value for name, value in token.members.items() if value is not None}
    if not said:
        return None
    weights = {} if token.trace is None else token.trace.weights

    def share(name: str) -> float:
        weight = weights.get(name, 1.0)
        return math.log(weight) + said[name] if weight > 0 else -math.inf

    return max(said, key=share)


def summary(tokens: Sequence[TokenRecord], seconds: Sequence[float]) -> dict[str, Any]:
    """Tell a trace in a few numbers.

    Args:
        tokens: The answer's decode steps.
        seconds: How long each of them took.

    Returns:
        JSON of at most :data:`LIMIT` bytes: ``tokens``; ``share_fused``; ``share_overruled``
        (main's favourite lost); ``decided`` (name → share of the tokens); ``gate`` (reason → how
        many tokens main spoke alone for); ``drafted`` (how many were drafted before they were
        chosen); ``first_milliseconds`` (until the first token, prompts too) and ``milliseconds``
        (the others' mean); ``least_sure`` (the tokens that the members
        together gave the least, in their order: place, text, probability, disagreement).
    """
    count = len(tokens)
    decided = Counter(_cut(name) for name in map(decider, tokens) if name is not None)
    gates = Counter(token.gate for token in tokens if token.gate is not None)
    told: dict[str, Any] = {
        "tokens": count,
        "share_fused": _share(sum(token.fused for token in tokens), count),
        "share_overruled": _share(sum(token.overruled is True for token in tokens), count),
        "decided": {name: _share(n, count) for name, n in sorted(decided.most_common(NAMED))},
        "gate": {_cut(reason): n for reason, n in sorted(gates.most_common(NAMED))},
        "drafted": sum(token.drafted for token in tokens),
        "first_milliseconds": round(1000 * sum(seconds[:1]), 3),
        "milliseconds": round(milliseconds(seconds), 3),
        "least_sure": _least_sure(tokens),
    }
    while told["least_sure"] and len(json.dumps(told)) > LIMIT:  # names that hold no ASCII
        told["least_sure"] = told["least_sure"][:-1]
    return told


def milliseconds(seconds: Sequence[float]) -> float:
    """Give the mean time of a token, the first left out: it waits for the prompts.

    Args:
        seconds: How long each token took.
    """
    return 1000 * sum(seconds[1:]) / max(1, len(seconds) - 1)


def _least_sure(tokens: Sequence[TokenRecord]) -> list[dict[str, Any]]:
    known = [(t.logprob, place) for place, t in enumerate(tokens) if t.logprob is not None]
    texts = texts_of(tokens)
    return [
        {
            "at": place,
            "token": _cut(texts[place]),
            "probability": round(math.exp(min(logprob, 0.0)), 6),
            "disagreement": _rounded(tokens[place].disagreement),
        }
        for place, logprob in sorted((place, logprob) for logprob, place in sorted(known)[:SHOWN])
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _share(part: int, count: int) -> float:
    return round(part / count, 6) if count else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
