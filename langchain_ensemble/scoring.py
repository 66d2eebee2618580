"""Scores of texts; what members said of the last text is kept for other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_ensemble.building import Built
from langchain_ensemble.decoding.byte_score import ByteScorer
from langchain_ensemble.decoding.gates import Gatekeeper
from langchain_ensemble.decoding.prefixes import PrefixCache
from langchain_ensemble.decoding.records import Score
from langchain_ensemble.decoding.score import Scorer
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.params import EnsembleParams
from langchain_ensemble.shares import Shares


class Scores:
    """Scores texts one after another. Not thread-safe by itself."""

    def __init__(self) -> None:
        """Start with nothing kept."""
        self._last: tuple[tuple[Any, ...], Scorer | ByteScorer] | None = None

    def run(
        self,
        built: Built,
        params: EnsembleParams,
        text: str,
        prompts: Sequence[MemberPrompt],
        heard: Shares,
        gate: str | Mapping[str, Any] = "always",
        prefixes: PrefixCache | None = None,
    ) -> Score:
        """Score a text.

        Args:
            built: What is loaded.
            params: What is fixed.
            text: What is scored.
            prompts: What each voice reads before it.
            heard: Who has a voice, and with which weights.
            gate: Where members are fused, as in a request.
            prefixes: What was read of prompts before; texts after one prompt read it once.

        Returns:
            The score.

        Raises:
            ConfigError: A text that main cannot spell, or a gate that cannot be had here.
        """
        places, shares, online = heard
        key = (text, tuple(prompts), places)
        last, self._last = self._last, None
        voices = [built.voices[p] for p in places]
        fuser, size = built.fuser, len(built.members)
        scorer = None if last is None or last[0] != key else last[1]
        weigh = params.open_boundaries == "discount"
        keeper = Gatekeeper(gate, voices, built.key_bytes)
        keeper.check(weigh)
        if fuser is not None and hasattr(fuser, "over_bytes"):  # one voice too: comparable
            keeper.refuse_bytes()
            if not isinstance(scorer, ByteScorer):
                scorer = ByteScorer(voices, prompts, text, prefixes)
            score = scorer.run(shares, fuser, places, size)
        else:
            if len(voices) == 1:  # alone it is main, and its own ids are walked
                voices, fuser = [voices[0].alone()], None
            if not isinstance(scorer, Scorer):
                scorer = Scorer(voices, prompts, text, prefixes)
            score = scorer.run(shares, fuser, places, size, weigh, keeper, online=online)
        if scorer.kept:
            self._last = (key, scorer)
        return score
