"""How sure the members are of an answer: one number, what it is made of, spans, refusal."""

from __future__ import annotations

from langchain_ensemble.confidence.features import (
    FEATURES,
    FLOOR,
    Confidence,
    ConfidenceMap,
    confidence_features,
    confidence_of,
    raw_confidence,
)
from langchain_ensemble.confidence.refusing import map_for, refuse, sure_enough
from langchain_ensemble.confidence.spans import Span, sentences, span_confidence, texts_of

__all__ = [
    "FEATURES",
    "FLOOR",
    "Confidence",
    "ConfidenceMap",
    "Span",
    "confidence_features",
    "confidence_of",
    "map_for",
    "raw_confidence",
    "refuse",
    "sentences",
    "span_confidence",
    "sure_enough",
    "texts_of",
]
