"""Scores of texts; what members said of the last text is kept for other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_ensemble.building import Built
from langchain_ensemble.decoding.gates import Gatekeeper
from langchain_ensemble.decoding.records import Score
from langchain_ensemble.decoding.score import Scorer
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.params import EnsembleParams


class Scores:
    """Scores texts one after another. Not thread-safe by itself."""

    def __init__(self) -> None:
        """Start with nothing kept."""
        self._last: tuple[tuple[Any, ...], Scorer] | None = None

    def run(
        self,
        built: Built,
        params: EnsembleParams,
        text: str,
        prompts: Sequence[MemberPrompt],
        places: tuple[int, ...],
        shares: tuple[float, ...],
        gate: str | Mapping[str, Any] = "always",
    ) -> Score:
        """Score a text.

        Args:
            built: What is loaded.
            params: What is fixed.
            text: What is scored.
            prompts: What each voice reads before it.
            places: The voices' places, main first.
            shares: Their weights.
            gate: Where members are fused, as in a request.

        Returns:
            The score.

        Raises:
            ConfigError: A text that main cannot spell, or a gate that cannot be had here.
        """
        key = (text, tuple(prompts), places)
        last, self._last = self._last, None
        voices = [built.voices[p] for p in places]
        if len(voices) == 1:  # alone it is main, and its own ids are walked
            voices = [replace(voices[0], verbatim=True)]
        scorer = last[1] if last and last[0] == key else Scorer(voices, prompts, text)
        fuser = None if len(places) == 1 else built.fuser
        weigh = params.open_boundaries == "discount"
        keeper = Gatekeeper(gate, voices, built.key_bytes)
        keeper.check(weigh)
        score = scorer.run(shares, fuser, places, len(built.members), weigh, keeper)
        if scorer.kept:
            self._last = (key, scorer)
        return score
