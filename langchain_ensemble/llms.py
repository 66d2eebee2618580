"""``EnsembleLLM``: LangChain sees one LLM, raw text in and raw text out.

This file knows LangChain's contract for an LLM, and nothing about models: everything it says comes
from one stream of pieces (:class:`~langchain_ensemble.adapter.running.Run`), which feeds
``invoke``, ``stream``, ``batch`` and their async forms alike. Importing it reads no torch.

Where it departs from ``BaseLLM``: a call's keyword arguments are folded into the object before
LangChain makes its cache key, which otherwise would not see them, and unknown ones are refused.
"""

from __future__ import annotations

import builtins
import logging
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import LangSmithParams
from langchain_core.load import dumpd
from langchain_core.outputs import GenerationChunk, LLMResult
from pydantic import model_validator

from langchain_ensemble._version import __version__
from langchain_ensemble.adapter.answers import Answers
from langchain_ensemble.adapter.batching import Batches
from langchain_ensemble.adapter.calibrating import Calibrates
from langchain_ensemble.adapter.settings import joined_stop
from langchain_ensemble.adapter.telling import Telling
from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.params import DEFAULT_MAX_TOKENS, RequestParams

if TYPE_CHECKING:
    from langchain_ensemble.decoding.engine import Decoding
    from langchain_ensemble.decoding.records import Score

logger = logging.getLogger(__name__)


class EnsembleLLM(Batches, Calibrates):
    r"""Several language models that decode one answer together, as one LangChain LLM.

    Setup:
        ``pip install langchain-ensemble``; members are Hub ids or local folders. Nothing is
        downloaded or loaded before the first call or :meth:`load`.

    Instantiate:
        .. code-block:: python

            from langchain_ensemble import EnsembleLLM, Member

            llm = EnsembleLLM(
                members={"gpt2": "gpt2",
                         "pythia": Member("EleutherAI/pythia-1b", dtype="bfloat16")},
                fusion="unite",                        # or "deepen", "gac", "average", an object
                weights={"gpt2": 0.4, "pythia": 0.6},  # or "uniform", the default
                main="pythia",                         # default: the first
                max_tokens=64,
            )

    Invoke:
        .. code-block:: python

            llm.invoke("Once upon a time")
            llm.invoke("Q: 2+2?\nA:", stop=["\n"], temperature=0.7, seed=1)  # any per-call field
            llm.batch(["one", "two"])                                        # one padded batch

    Stream:
        .. code-block:: python

            for text in llm.stream("Once upon a time"):
                print(text, end="", flush=True)

        Stopping early stops the computation and frees the cache.

    Async:
        .. code-block:: python

            await llm.ainvoke("Once upon a time")
            async for text in llm.astream("Once upon a time"): ...

    Result metadata:
        .. code-block:: python

            result = llm.generate(["Once upon a time"], n=2, logprobs=True)
            result.llm_output                               # token_usage, model_name
            result.generations[0][1].generation_info        # finish_reason, usage, logprobs, …

        Tokens are reported to callbacks while streaming only: LangChain hands ``generate`` the
        callback manager of the first prompt alone, so a batch's tokens would all be counted to it.

    Score:
        .. code-block:: python

            llm.score(" there was a fox", "Once upon a time").bits_per_byte

    One member alone:
        .. code-block:: python

            llm.solo("gpt2").invoke("Once upon a time")     # the same loaded weights

    Free:
        .. code-block:: python

            with EnsembleLLM(members=["gpt2"]) as llm: ...  # or llm.unload()

    Caching: the key holds members, fusion and every per-call setting. With ``temperature`` above 0
    and no ``seed`` a cache replays the first sample for ever.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    """Decode steps at most."""

    # --- one stream of pieces -----------------------------------------------------------------

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        answers = self._answers(prompts, self.request(stop, **kwargs))
        with answers.run:
            while answers.step():
                pass
        return answers.result()

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        answers = self._answers(prompts, self.request(stop, **kwargs))
        async with answers.run:
            while await answers.astep():
                pass
        return answers.result()

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        answers = self._answers([prompt], self._stream_request(stop, kwargs))
        with answers.run:
            while answers.step():
                if chunk := answers.chunk():
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        answers = self._answers([prompt], self._stream_request(stop, kwargs))
        async with answers.run:
            while await answers.astep():
                if chunk := answers.chunk():
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def _answers(self, prompts: Sequence[str], request: RequestParams) -> Answers:
        def start() -> Decoding:
            logger.info(
                "%s: %d prompts, n=%d, at most %d tokens",
                self.model_name,
                len(prompts),
                request.n,
                request.max_tokens,
            )
            engine = self._ready()
            self._lease.warn_of_chat_templates()
            return engine.open(prompts, request)

        params = self.params
        known = self._calibration(params)
        telling = Telling.of(request, self.model_name, params.main_name, known)
        return Answers(start, telling, prompts, n=request.n)

    def _stream_request(
        self, stop: Sequence[str] | None, overrides: builtins.dict[str, Any]
    ) -> RequestParams:
        if overrides.get("n", 1) != 1:
            raise ConfigError(
                f"n={overrides['n']!r} in a stream, which is one answer; use generate or batch"
            )
        return self.request(stop, **{**overrides, "n": 1})

    # --- a call's settings belong to the cache key --------------------------------------------

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        *,
        tags: list[str] | list[list[str]] | None = None,
        metadata: builtins.dict[str, Any] | list[builtins.dict[str, Any]] | None = None,
        run_name: str | list[str] | None = None,
        run_id: uuid.UUID | list[uuid.UUID | None] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer a batch of prompts, as ``BaseLLM.generate``; the rest are per-call fields.

        Raises:
            ConfigError: An unknown argument, or one that is fixed for an ensemble.
        """
        return super(EnsembleLLM, self._with_overrides(kwargs)).generate(
            prompts,
            stop,
            callbacks or None,  # BaseLLM.agenerate reads the first of an empty list
            tags=tags,
            metadata=metadata,
            run_name=run_name,
            run_id=run_id,
        )

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        *,
        tags: list[str] | list[list[str]] | None = None,
        metadata: builtins.dict[str, Any] | list[builtins.dict[str, Any]] | None = None,
        run_name: str | list[str] | None = None,
        run_id: uuid.UUID | list[uuid.UUID | None] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer a batch of prompts, as ``BaseLLM.agenerate``; the rest are per-call fields.

        Raises:
            ConfigError: An unknown argument, or one that is fixed for an ensemble.
        """
        return await super(EnsembleLLM, self._with_overrides(kwargs)).agenerate(
            prompts,
            stop,
            callbacks or None,  # BaseLLM.agenerate reads the first of an empty list
            tags=tags,
            metadata=metadata,
            run_name=run_name,
            run_id=run_id,
        )

    # --- what LangChain asks about an LLM -----------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "langchain-ensemble"

    @property
    def _identifying_params(self) -> builtins.dict[str, Any]:
        return self.identity

    @property
    def _serialized(self) -> builtins.dict[str, Any]:  # live: a memo goes stale
        return cast("builtins.dict[str, Any]", dumpd(self))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        if "max_new_tokens" in kwargs:
            kwargs.setdefault("max_tokens", kwargs["max_new_tokens"])
        stops = list(joined_stop(self.stop, stop))
        return super()._get_ls_params(stop=stops or None, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Give main's token ids of a text, without control ids; no weights are loaded."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        counted = self._lease.attach(self.params, self._fusion_object)  # no user of the weights
        return counted.engine().token_ids(text)

    def score(
        self,
        text: str,
        prompt: str = "",
        *,
        member: str | None = None,
        weights: Any = None,
        contexts: Mapping[str, str] | None = None,
        gate: str | Mapping[str, Any] | None = None,
    ) -> Score:
        """Give a text's log-likelihood, teacher-forced along main's tokens.

        Args:
            text: What is scored.
            prompt: What stands before it, not scored.
            member: Score by this member alone.
            weights: In place of the field.
            contexts: In place of the field.
            gate: In place of the field.

        Returns:
            Log-probability in nats, bits per byte, number of tokens, whether greedy decoding
            would have said it.

        Raises:
            ConfigError: An unknown member, weights that do not sum to 1.
        """
        asked = self._scored_with(member, weights, contexts, gate)
        return self._ready().score(text, prompt, **asked)

    def as_chat(self, **changes: Any) -> ChatEnsemble:
        """Give the same ensemble as a chat model, over the same loaded weights.

        Args:
            **changes: Any field of ``ChatEnsemble``, in place of this one's.

        Returns:
            A chat model with the settings that this object was given; what was left to its default
            has the chat model's (``max_tokens``: what the context leaves).
        """
        shared = [name for name in ChatEnsemble.model_fields if name in self.model_fields_set]
        return ChatEnsemble(**{**{name: getattr(self, name) for name in shared}, **changes})

    @model_validator(mode="after")
    def _stamp_ensemble_version(self) -> Self:
        self._add_version("langchain-ensemble", __version__)
        return self
