"""The one place that wires members, vocabularies, alignment, fusion and the decode loop.

Main is first everywhere below this file; users' orders (members, weights) end here. No LangChain.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

from langchain_ensemble.building import Built, Progress, build, small_model
from langchain_ensemble.chat.conversation import ChatRequest, Conversation
from langchain_ensemble.choose.belonging import Calibrated, Reads
from langchain_ensemble.confidence import sure_enough
from langchain_ensemble.contexts import Contexts, context_of
from langchain_ensemble.decoding.admission import kv_bytes
from langchain_ensemble.decoding.engine import Decoding, Engine
from langchain_ensemble.decoding.prefixes import PrefixCache
from langchain_ensemble.decoding.records import Answer, Score
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.fusion import get_fusion
from langchain_ensemble.fusion.base import Fusion
from langchain_ensemble.members.base import LoadedMember, MemberPrompt
from langchain_ensemble.members.loading import load_member, load_members
from langchain_ensemble.params import EnsembleParams, Gate, RequestParams, check_gate
from langchain_ensemble.readers import DRAFT, Readers
from langchain_ensemble.requests import check, limits_of, plain_task, rated, scored_by
from langchain_ensemble.scoring import Scores
from langchain_ensemble.shares import Shares
from langchain_ensemble.store import Store
from langchain_ensemble.turn.tasks import TurnTasks
from langchain_ensemble.turn.turn import Turn
from langchain_ensemble.unloaded import Unloaded
from langchain_ensemble.vocab.vocabulary import check_text

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
        self._engine = Engine(limits_of(params))
        self._store, self._unloaded = Store(), Unloaded(params)
        self._lock = threading.RLock()
        self._built: Built | None = None
        self._scores = Scores()
        self._prefixes = self._no_prefixes()
        self._readers = Readers()
        self._calibrated = Calibrated(params, self.fusion)

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
                members: list[LoadedMember] = list(load_members(self.params.ordered))
                try:
                    built = self._build(members, on_progress)
                    if self.params.draft is not None:
                        members.append(load_member(self.params.draft))
                        built = replace(built, draft=small_model(members[-1]))
                    self._calibrated.of(built)  # is it these members'?
                    self._built = built
                except BaseException:
                    for member in members:
                        member.close()
                    raise
                logger.info("loaded members %s, fusion %r", self.names, self.fusion.name)
            return self._built

    def unload(self) -> None:
        """Free the weights; the next use loads them again."""
        with self._lock, self._engine.alone():
            if self._built is not None:
                for member in (*self._built.members, *(self._built.draft or ())[:1]):
                    member.close()
                self._built, self._scores = None, Scores()
                self._prefixes.close()  # requests that still run keep nothing any more
                self._prefixes = self._no_prefixes()
                self._readers.forget()

    def __enter__(self) -> Self:
        """Load, to be unloaded at the end of the block."""
        return self.load()

    def __exit__(self, *_: object) -> None:
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
        task = rated(self._task(built, request, "texts"), prompts)
        return self._engine.admit(self._readers.task(built, task, prompts, request.contexts))

    def open_chat(
        self, conversation: Conversation, request: RequestParams, chat: ChatRequest
    ) -> Turn:
        """Begin to answer a conversation; nothing runs before the first ``step``.

        Args:
            conversation: Read by each member in its own chat template.
            request: What may change per request.
            chat: How this turn is to be answered.

        Returns:
            The turn, to be stepped and closed; ``request.n`` answers.

        Raises:
            ConfigError: Wrong weights, or thinking that a member cannot do.
        """
        built = self._ready()
        task = rated(self._task(built, request, "conversations"), [conversation])
        read, own = self._readers.view, request.contexts
        views = [read(built, place, own) for place in task.places]
        vocabularies = [built.vocabularies[place] for place in task.places]
        small = None if task.draft is None else read(built, DRAFT, own)
        tasks = TurnTasks(task, views, vocabularies, conversation, chat, small)
        return Turn(tasks, self._engine.visit(lambda: kv_bytes(tasks.whole())))

    def _task(self, built: Built, request: RequestParams, reads: Reads) -> Task:
        check(self.fusion, self.params, request.weights, request.contexts, reads)
        learned = self._calibrated.weights(built, request.weights, reads)
        return replace(plain_task(built, self.params, request, learned), prefixes=self._prefixes)

    def _no_prefixes(self) -> PrefixCache:
        made = PrefixCache(int(self.params.prefix_cache_gb * 1e9))
        self._engine.keep(made)
        return made

    def generate(self, prompts: Sequence[str], request: RequestParams) -> list[list[Answer]]:
        """Decode some prompts to the end.

        Args:
            prompts: Raw texts; none is an empty result.
            request: What may change per request.

        Returns:
            [prompt][n] answers.

        Raises:
            AbstainedError: One has less confidence than ``abstain_below``.
        """
        with self.open(prompts, request) as decoding:
            known = self._calibrated.of(self._ready())
            return sure_enough("+".join(self.names), decoding.answers(), request, known)

    def score(
        self,
        text: str,
        prompt: str = "",
        *,
        weights: Any = None,
        member: str | None = None,
        contexts: Contexts = None,
        gate: Gate = "always",
    ) -> Score:
        """Fused log-likelihood of a text after a prompt, teacher-forced along main's ids.

        Args:
            text: What is scored.
            prompt: Raw text before it.
            weights: As in a request.
            member: Score one member alone, by its own ids.
            contexts: As in a request.
            gate: As in a request.

        Returns:
            The score.

        Raises:
            ConfigError: Unknown member, wrong weights, or a text that main cannot spell.
        """
        check_text(text)
        built, heard = self._scored_by(weights, member, prompt, contexts)
        prompts = self._readers.raw(built, heard.places, prompt, contexts)
        return self._score(built, text, prompts, heard, gate)

    def score_chat(
        self,
        conversation: Conversation,
        answer: str,
        *,
        weights: Any = None,
        member: str | None = None,
        contexts: Contexts = None,
        gate: Gate = "always",
    ) -> Score:
        """Fused log-likelihood of an answer to a conversation, teacher-forced along main's ids.

        Args:
            conversation: Read by each member in its own chat template.
            answer: What is scored.
            weights: As in a request.
            member: Score one member alone, by its own ids.
            contexts: As in a request.
            gate: As in a request.

        Returns:
            The score.

        Raises:
            ConfigError: As :meth:`score`.
        """
        check_text(answer)
        built, heard = self._scored_by(weights, member, conversation, contexts)
        views = [self._readers.view(built, place, contexts) for place in heard.places]
        prompts = [view.prompt(conversation, ChatRequest()) for view in views]
        return self._score(built, answer, prompts, heard, gate)

    @contextmanager
    def alone(self) -> Iterator[tuple[Built, Readers]]:
        """Have the members for oneself, between two rounds, and how they read."""
        built = self._ready()
        with self._engine.alone():
            yield built, self._readers

    def _scored_by(
        self, weights: Any, member: str | None, before: str | Conversation, contexts: Contexts
    ) -> tuple[Built, Shares]:
        asked = weights if member is None else "uniform"
        reads: Reads = "texts" if isinstance(before, str) else "conversations"
        fusion = self.fusion if member is None else None
        check(fusion, self.params, asked, contexts, reads)
        built = self._ready()
        learned = self._calibrated.weights(built, asked, reads)
        with self._engine.alone():
            return built, scored_by(built, self.params, weights, member, before, learned)

    def _score(
        self, built: Built, text: str, prompts: Sequence[MemberPrompt], heard: Shares, gate: Gate
    ) -> Score:
        check_gate(gate)
        with self._engine.alone(), self._prefixes.giving_way():
            return self._scores.run(built, self.params, text, prompts, heard, gate, self._prefixes)

    # facts

    def token_ids(self, text: str) -> list[int]:
        """Main's ids of a text, without control ids; needs the tokenizer only.

        Args:
            text: Any text.

        Returns:
            The ids.
        """
        return self._unloaded.token_ids(text)

    def count_chat(
        self,
        conversation: Conversation,
        chat: ChatRequest | None = None,
        contexts: Contexts = None,
    ) -> int:
        """Main's ids of a conversation in its template; needs the tokenizer only.

        Args:
            conversation: The turns and the tools on offer.
            chat: How the turn would be answered.
            contexts: As in a request.

        Returns:
            How many ids main would read before its answer.
        """
        own = context_of(contexts, self.main_name)
        return self._unloaded.count_chat(conversation, chat or ChatRequest(), own)

    def chat_limits(self) -> dict[str, int | None]:
        """Positions of each member, by name, from its config; no weights are read."""
        return self._unloaded.limits()

    def fingerprint(self) -> str:
        """Identify weights, commits and fixed settings: equal ones give equal answers."""
        weights = [[m.name, m.weights_hash] for m in self._ready().members]
        whole = json.dumps([weights, self.identity()], sort_keys=True, default=repr).encode()
        return "fp_" + hashlib.sha256(whole).hexdigest()[:16]

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
            "calibration": self._calibrated.digest,
        }
