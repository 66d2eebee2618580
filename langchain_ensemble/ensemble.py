"""The one place that wires members, vocabularies, alignment, fusion and the decode loop.

Main is first everywhere below this file; users' orders (members, weights) end here. No LangChain.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from langchain_ensemble.constraints.utf8 import REJECT, START, next_states
from langchain_ensemble.decoding.engine import Decoding, Engine
from langchain_ensemble.decoding.protocols import Sampling, Voice
from langchain_ensemble.decoding.records import Answer, Score
from langchain_ensemble.decoding.score import Scorer
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.errors import ConfigError, EnsembleWarning, unknown_name
from langchain_ensemble.fusion import get_fusion, prepare
from langchain_ensemble.fusion.base import Fuser, Fusion, FusionContext, MemberKeys
from langchain_ensemble.members.base import LoadedMember
from langchain_ensemble.members.loading import load_members, load_tokenizer
from langchain_ensemble.members.sampling import filters, penalty
from langchain_ensemble.members.sources import locate
from langchain_ensemble.params import EnsembleParams, RequestParams, resolve_weights
from langchain_ensemble.store import Store
from langchain_ensemble.vocab.alignment import Aligned, align, check_common
from langchain_ensemble.vocab.pair_table import pair_table
from langchain_ensemble.vocab.sorted_keys import SortedKeys
from langchain_ensemble.vocab.vocabulary import Vocabulary, check_text

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Built:
    """Everything that exists once weights are loaded. Tuples have main first."""

    members: tuple[LoadedMember, ...]
    voices: tuple[Voice, ...]
    fuser: Fuser | None
    key_bytes: Sequence[bytes | None]

    @property
    def device(self) -> torch.device:
        return self.members[0].device


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
        self._built: _Built | None = None
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

    def _ready(self, on_progress: Progress | None = None) -> _Built:
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

    def _build(self, members: Sequence[LoadedMember], on_progress: Progress | None) -> _Built:
        vocabularies = [
            Vocabulary(
                m.tokenizer, width=m.logits_width, end_ids=m.end_ids, chat_template=m.chat_template
            )
            for m in members
        ]
        if len(members) == 1:
            voice = Voice(members[0], vocabularies[0], None, None, None, None, verbatim=True)
            return _Built(tuple(members), (voice,), None, ())
        self._check_needs(members)
        device = members[0].device
        named = [(m.name, v) for m, v in zip(members, vocabularies, strict=True)]
        aligned = align(named, device=device)
        check_common(aligned, self.fusion.needs.min_common, self.fusion.name)
        voices = tuple(
            self._voice(m, v, keys, vocabularies[0], aligned)
            for m, v, keys in zip(members, vocabularies, aligned.alignment.members, strict=True)
        )
        fuser = self._prepare(members, aligned, device, on_progress)
        return _Built(tuple(members), voices, fuser, aligned.key_bytes)

    def _check_needs(self, members: Sequence[LoadedMember]) -> None:
        needs = self.fusion.needs
        for member in members:
            if needs.logprobs == "dense" and member.gives != "dense":
                raise ConfigError(
                    f"fusion={self.fusion.name!r} needs every logit of every member; member "
                    f"{member.name!r} gives only its best ones. Use fusion='unite'"
                )

    def _voice(
        self,
        member: LoadedMember,
        vocabulary: Vocabulary,
        keys: MemberKeys,
        main: Vocabulary,
        aligned: Aligned,
    ) -> Voice:
        verbatim = vocabulary.content_hash == main.content_hash
        states = next_states(vocabulary.token_bytes).to(member.device)  # [8, V_i]
        allowed = states != REJECT
        allowed[START, keys.end_ids.to(member.device)] = True
        allowed[1:, keys.end_ids.to(member.device)] = False  # no END inside a character
        if (
            not verbatim
        ):  # a key that main lacks cannot be held by main unless it is whole characters
            foreign = keys.to_union.to(member.device) >= main.width
            allowed[START] &= ~foreign | (states[START] == START)
        weigh = self.params.open_boundaries == "discount" and not verbatim
        return Voice(
            member=member,
            vocabulary=vocabulary,
            keys=keys.to(member.device),
            allowed=allowed,
            sorted_keys=SortedKeys(vocabulary) if weigh else None,
            pairs=None if verbatim else pair_table(aligned, vocabulary, self._store.remember),
            verbatim=verbatim,
        )

    def _prepare(
        self,
        members: Sequence[LoadedMember],
        aligned: Aligned,
        device: torch.device,
        on_progress: Progress | None,
    ) -> Fuser:
        context = FusionContext(
            alignment=aligned.alignment,
            embeddings=lambda i: members[i].embeddings(),
            embedding_hashes=lambda i: members[i].weights_hash,
            device=device,
            remember=self._store.remember,
            on_progress=on_progress,
        )
        return prepare(self.fusion, context)

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

    def _new_scorer(self, built: _Built, text: str, prompt: str, places: Sequence[int]) -> Scorer:
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
