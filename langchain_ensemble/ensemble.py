"""The one place that wires members, vocabularies, alignment, fusion and the decode loop.

Main is first everywhere below this file; users' orders (members, weights) end here. No LangChain.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from langchain_ensemble.building import Built, Progress, build
from langchain_ensemble.decoding.engine import Decoding, Engine
from langchain_ensemble.decoding.protocols import Sampling
from langchain_ensemble.decoding.records import Answer, Score
from langchain_ensemble.decoding.score import Scorer
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.errors import ConfigError, EnsembleWarning, unknown_name
from langchain_ensemble.fusion import get_fusion
from langchain_ensemble.fusion.base import Fusion
from langchain_ensemble.members.base import LoadedMember
from langchain_ensemble.members.loading import load_members, load_tokenizer
from langchain_ensemble.members.sampling import filters, penalty
from langchain_ensemble.members.sources import locate
from langchain_ensemble.params import EnsembleParams, RequestParams, resolve_weights
from langchain_ensemble.store import Store
from langchain_ensemble.vocab.vocabulary import Vocabulary, check_text

logger = logging.getLogger(__name__)


class Ensemble:
    """Several members that decode one answer together; weights load at first use."""

    def __init__(self, params: EnsembleParams, *, fusion: Fusion | None = None) -> None:
        """Check the settings.

        Args:
            params: What is fixed.
            fusion: A fusion object of the user's, instead of the one that ``params`` names.

        Raises:
            ConfigError: Unknown fusion or fusion setting.
        """
        self.params = params
        self.fusion: Fusion = fusion if fusion is not None else get_fusion(params.fusion)
        self.names = params.names
        self.main_name = params.main_name
        self._engine = Engine()
        self._store = Store()
        self._lock = threading.RLock()
        self._built: Built | None = None
        self._scorer: tuple[tuple[str, str, tuple[int, ...]], Scorer] | None = None
        self._main_vocabulary: Vocabulary | None = None

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._built is not None

    def load(self, on_progress: Progress | None = None) -> Self:
        """Load the weights and build the index tensors, once.

        Args:
            on_progress: Called with (stage, done, total) in long loops.

        Returns:
            The ensemble.

        Raises:
            MemberError: A member cannot be found, loaded or run.
            VocabularyError: The members share too few tokens for the fusion.
        """
        self._ready(on_progress)
        return self

    def _ready(self, on_progress: Progress | None = None) -> Built:
        with self._lock:
            if self._built is None:
                members = load_members(self.params.ordered)
                try:
                    self._built = self._build(members, on_progress)
                except BaseException:
                    for member in members:
                        member.close()
                    raise
                logger.info("loaded members %s, fusion %r", self.names, self.fusion.name)
            return self._built

    def unload(self) -> None:
        """Free the weights; the next use loads them again."""
        with self._lock, self._engine.lock:
            if self._built is not None:
                for member in self._built.members:
                    member.close()
                self._built = self._scorer = None

    def __enter__(self) -> Self:
        """Load, to be unloaded at the end of the block."""
        return self.load()

    def __exit__(self, *_: object) -> None:
        """Unload."""
        self.unload()

    def _build(self, members: Sequence[LoadedMember], on_progress: Progress | None) -> Built:
        how = self.params.open_boundaries
        return build(members, self.fusion, how, self._store, on_progress)

    # requests

    def open(self, prompts: Sequence[str], request: RequestParams) -> Decoding:
        """Begin to decode some prompts; nothing runs before the first ``step``.

        Args:
            prompts: Raw texts; each member parses them as Hugging Face does.
            request: What may change per request.

        Returns:
            The request, to be stepped and closed.

        Raises:
            ConfigError: Wrong weights, or a prompt that does not fit a member.
        """
        built = self._ready()
        places, weights = self._voices_with_weight(request.weights)
        voices = tuple(built.voices[p] for p in places)
        alone = len(voices) == 1
        task = Task(
            voices=voices,
            weights=weights,
            places=places,
            num_members=len(built.members),
            fuser=None if alone else built.fuser,
            key_bytes=() if alone else built.key_bytes,
            prompts=[[voice.member.prompt(text) for voice in voices] for text in prompts],
            request=request,
            sampling=_sampling(request),
            weigh_boundaries=self.params.open_boundaries == "discount",
            warn=_warn,
        )
        return self._engine.admit(task)

    def generate(self, prompts: Sequence[str], request: RequestParams) -> list[list[Answer]]:
        """Decode some prompts to the end.

        Args:
            prompts: Raw texts; none is an empty result.
            request: What may change per request.

        Returns:
            [prompt][n] answers.
        """
        with self.open(prompts, request) as decoding:
            return decoding.answers()

    def score(
        self,
        text: str,
        prompt: str = "",
        *,
        weights: Any = "uniform",
        member: str | None = None,
    ) -> Score:
        """Fused log-likelihood of a text after a prompt, teacher-forced along main's ids.

        Args:
            text: What is scored.
            prompt: Raw text before it.
            weights: As in a request.
            member: Score one member alone, by its own ids.

        Returns:
            The score.

        Raises:
            ConfigError: Unknown member, wrong weights, or a text that main cannot spell.
        """
        check_text(text)
        built = self._ready()
        places, shares = self._voices_with_weight(weights)
        if member is not None:
            names = [m.name for m in built.members]
            if member not in names:
                raise ConfigError(unknown_name("member", member, names))
            places, shares = (names.index(member),), (1.0,)
        key = (text, prompt, places)
        with self._engine.lock:
            last, self._scorer = self._scorer, None
            scorer = last[1] if last and last[0] == key else self._new_scorer(built, *key)
            fuser = None if len(places) == 1 else built.fuser
            weigh = self.params.open_boundaries == "discount"
            score = scorer.run(shares, fuser, places, len(built.members), weigh)
            if scorer.kept:
                self._scorer = (key, scorer)
            return score

    def _new_scorer(self, built: Built, text: str, prompt: str, places: Sequence[int]) -> Scorer:
        voices = [built.voices[p] for p in places]
        if len(voices) == 1:  # alone it is main, and its own ids are walked
            voices = [replace(voices[0], verbatim=True)]
        return Scorer(voices, [voice.member.prompt(prompt) for voice in voices], text)

    def _voices_with_weight(self, weights: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Places (main first) of the members that have a voice, and their weights."""
        by_name = dict(zip(self.names, resolve_weights(weights, self.names), strict=True))
        shares = [by_name[m.name or ""] for m in self.params.ordered]
        places = tuple(p for p, share in enumerate(shares) if share > 0 or p == 0)
        return places, tuple(shares[p] for p in places)

    # facts

    def token_ids(self, text: str) -> list[int]:
        """Main's ids of a text, without control ids; needs the tokenizer only.

        Args:
            text: Any text.

        Returns:
            The ids.
        """
        with self._lock:
            if self._main_vocabulary is None:
                main = self.params.ordered[0]
                self._main_vocabulary = Vocabulary(load_tokenizer(main, locate(main)))
            return self._main_vocabulary.encode(text).ids

    def contexts(self) -> dict[str, int | None]:
        """Positions of each member, by name; loads the weights."""
        return {m.name: m.context for m in self._ready().members}

    def chat_templates(self) -> list[str]:
        """Names of the members that have a chat template; loads the weights."""
        return [m.name for m in self._ready().members if m.chat_template]

    def identity(self) -> Mapping[str, Any]:
        """What determines answers, as JSON, without secrets."""
        return {
            "members": [m.model_dump(mode="json", exclude_none=True) for m in self.params.members],
            "main": self.main_name,
            "fusion": {"name": self.fusion.name, **self.fusion.settings()},
            "open_boundaries": self.params.open_boundaries,
        }


def _sampling(request: RequestParams) -> Sampling:
    made = penalty(request.repetition_penalty)
    kept = filters(request.temperature, request.top_k, request.top_p, request.min_p)
    return Sampling(made[0] if made else None, tuple(kept))


def _warn(message: str) -> None:
    warnings.warn(message, EnsembleWarning, stacklevel=2)
