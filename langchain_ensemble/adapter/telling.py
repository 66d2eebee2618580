"""What is told of an answer's tokens: how sure the members are, a trace's summary, abstention.

One account an answer, of LLM and chat model alike. Nothing is kept where nobody asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from langchain_ensemble.adapter.running import Run
from langchain_ensemble.confidence import (
    Confidence,
    ConfidenceMap,
    confidence_of,
    map_for,
    refuse,
    sentences,
    span_confidence,
)
from langchain_ensemble.trace import Trace, keep, summary

if TYPE_CHECKING:
    from langchain_ensemble.choose.calibration_file import Calibration
    from langchain_ensemble.decoding.records import TokenRecord
    from langchain_ensemble.params import RequestParams

LEAST_SURE = 5
"""Sentences that the metadata name."""


@dataclass(frozen=True)
class Telling:
    """What a call wants to be told.

    Attributes:
        model_name: The ensemble's name.
        main: Main's name.
        logprobs: Whether each token's log-probabilities are told.
        trace: Whether traces are.
        abstain_below: Confidence below which an answer is refused; None: none is.
        learned: What makes a probability of being right; None: nobody has learned it.
    """

    model_name: str
    main: str
    logprobs: bool = False
    trace: bool = False
    abstain_below: float | None = None
    learned: ConfidenceMap | None = None

    @classmethod
    def of(
        cls,
        request: RequestParams,
        model_name: str,
        main: str,
        calibration: Calibration | None,
    ) -> Telling:
        """Read what a request asks for.

        Args:
            request: The call's settings.
            model_name: The ensemble's name.
            main: Main's name.
            calibration: What was learned for these members. Its map belongs to its weights: where
                others are asked for, confidence is raw.
        """
        learned = map_for(calibration, request.weights)
        asked = (request.logprobs, request.trace, request.abstain_below)
        return cls(model_name, main, *asked, learned)

    @property
    def watched(self) -> bool:
        """Whether anything is told of single tokens."""
        return self.logprobs or self.trace or self.abstain_below is not None


class Account:
    """The tokens of one answer while it grows."""

    def __init__(self, telling: Telling, prompt: str, run: Run) -> None:
        """Begin empty.

        Args:
            telling: What the call wants to be told.
            prompt: What was asked.
            run: Whose answer this is.
        """
        self._telling, self._prompt, self._run = telling, prompt, run
        self._tokens: list[TokenRecord] = []
        self._texts: list[str] = []
        self._sure: Confidence | None = None

    def add(self, text: str, tokens: Sequence[TokenRecord]) -> None:
        """Take some of the answer."""
        if self._telling.watched:
            self._texts.append(text)
            self._tokens.extend(tokens)

    def end(self, finish_reason: str) -> dict[str, Any]:
        """Say what is known now that the answer is complete; whoever traces gets the trace.

        Args:
            finish_reason: As in the metadata.

        Returns:
            Entries for ``ensemble``: ``confidence`` (a number, what it is made of, the least sure
            sentences), ``trace`` (a summary). None of them where nobody asked.
        """
        if not self._telling.watched:
            return {}
        tokens, text = self._timed(), "".join(self._texts)
        self._sure = sure = confidence_of(tokens, self._telling.learned)
        spans = span_confidence(text, tokens, sentences(text))
        least = sorted(spans, key=lambda span: span.confidence.confidence)[:LEAST_SURE]
        told: dict[str, Any] = {"confidence": sure.to_dict()}
        told["confidence"]["least_sure"] = [
            {
                "start": span.start,
                "end": span.end,
                "confidence": round(span.confidence.confidence, 6),
            }
            for span in sorted(least, key=lambda span: span.start)
        ]
        if self._telling.trace:
            name = self._telling.model_name
            voices = tuple(dict.fromkeys(name for token in tokens for name in token.members))
            trace = Trace(name, voices, self._prompt, text, tokens, finish_reason, sure)
            told["trace"] = summary(tokens, trace.seconds)
            keep(trace)
        return told

    def refuse(self) -> None:
        """Refuse the answer, which has ended, where its members are not sure enough.

        Raises:
            AbstainedError: They are not.
        """
        if self._sure is not None:
            limit = self._telling.abstain_below
            refuse(self._telling.model_name, "".join(self._texts), self._sure, limit)

    def _timed(self) -> tuple[TokenRecord, ...]:
        """The tokens, their clocks counted from the beginning."""
        return tuple(
            token
            if token.trace is None
            else replace(token, trace=replace(token.trace, at=token.trace.at - self._run.begun))
            for token in self._tokens
        )
