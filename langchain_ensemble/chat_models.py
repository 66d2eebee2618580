"""``ChatEnsemble``: LangChain sees one chat model; each member reads its own chat template.

This file knows LangChain's contract for a chat model, and nothing about models: everything it says
comes from one stream of pieces (:class:`~langchain_ensemble.adapter.running.Run`), which feeds
``invoke``, ``stream``, their async forms and events alike. Importing it reads no torch.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import model_validator

from langchain_ensemble._version import __version__
from langchain_ensemble.adapter import blocks
from langchain_ensemble.adapter.asks import read_ask
from langchain_ensemble.adapter.chat_fields import ChatFields
from langchain_ensemble.adapter.faults import translated
from langchain_ensemble.adapter.messages import read_conversation
from langchain_ensemble.adapter.replies import combined
from langchain_ensemble.adapter.settings import joined_stop
from langchain_ensemble.adapter.structured import structured_output
from langchain_ensemble.adapter.tools import openai_tools, read_choice, tool_names

if TYPE_CHECKING:
    from langchain_ensemble.decoding.records import Score
    from langchain_ensemble.ensemble import Ensemble

blocks.register()


class ChatEnsemble(BaseChatModel, ChatFields):
    r"""Several chat models that decode one answer together, as one LangChain chat model.

    Setup:
        ``pip install "langchain-ensemble[structured]"``; members are Hub ids or folders of instruct
        models. Nothing is downloaded or loaded before the first call or :meth:`load`.

    Instantiate:
        .. code-block:: python

            from langchain_ensemble import ChatEnsemble, Member

            chat = ChatEnsemble(
                members={"qwen": "Qwen/Qwen2.5-7B-Instruct",
                         "llama": Member("meta-llama/Llama-3.1-8B-Instruct")},
                fusion="deepen",                     # or "unite", "gac", "average", an object
                weights={"qwen": 0.6, "llama": 0.4},  # or "uniform", the default
                main="qwen",                         # default: the first
            )

    Invoke, stream, async:
        .. code-block:: python

            chat.invoke([("system", "Be brief."), ("user", "Hi")], temperature=0.7, seed=1).text
            for chunk in chat.stream("Tell me a story"): print(chunk.text, end="")
            await chat.ainvoke("Hi")

        A call may change any per-call field; ``model="qwen"`` asks that member alone.

    Tools:
        .. code-block:: python

            chat.bind_tools([multiply], tool_choice="any").invoke("What is 3 * 4?").tool_calls

        A call that was cut (``max_tokens``, context) is in ``invalid_tool_calls``; its arguments
        are never completed for it.

    Structured output:
        .. code-block:: python

            chat.with_structured_output(Person).invoke("Ada was born in 1815.")
            chat.invoke("A number?", grammar={"regex": "[0-9]{1,3}"}).text  # also lark, ebnf

        Enforced while decoding. What was cut before it was whole is an ``UnfinishedError``.

    Result metadata:
        ``usage_metadata`` (main's tokens); ``response_metadata``: ``model_name``,
        ``model_provider``, ``finish_reason`` (``"stop"``, ``"length"``, ``"tool_calls"``),
        ``system_fingerprint``, ``ensemble`` (steps, share of them that was fused; by
        member tokens, milliseconds, agreement), ``logprobs`` where asked for, ``unfinished`` where
        a call or grammar was cut. In a stream all of it comes with the last chunk.

    Thinking:
        ``thinking="main"`` or ``"each"``: reasoning blocks in ``content_blocks``; main's is
        ``additional_kwargs["reasoning_content"]``, the others' ``additional_kwargs["thoughts"]``.

    Caching: the key holds everything that a call asks for. With ``temperature`` above 0 and no
    ``seed`` a cache replays the first sample for ever.
    """

    # --- one stream of pieces -----------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn = self._turn(messages, stop, kwargs)
        with turn.run:
            while turn.step():
                pass
        return turn.result()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn = self._turn(messages, stop, kwargs)
        async with turn.run:
            while await turn.astep():
                pass
        return turn.result()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        turn = self._turn(messages, stop, kwargs, one=True)
        with turn.run:
            while turn.step():
                for chunk in turn.chunks():
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        turn = self._turn(messages, stop, kwargs, one=True)
        async with turn.run:
            while await turn.astep():
                for chunk in turn.chunks():
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    # --- tools and structured output ----------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[builtins.dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: builtins.dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools.

        Args:
            tools: Functions, Pydantic classes, TypedDicts, LangChain tools, or dicts in the forms
                of OpenAI, Anthropic or JSON schema.
            tool_choice: None or ``"auto"``: the members decide; ``"none"``; ``"any"``,
                ``"required"`` or True: some tool; a tool's name, or a dict that names it.
            strict: Close every object of the arguments' schemas and require every property.
            parallel_tool_calls: False: one call a turn at most.
            response_format: What the answer must be where no tool is called; as in a call.
            **kwargs: Any other argument of a call.

        Returns:
            The model with the tools bound.

        Raises:
            ConfigError: Something that is no tool, or a choice that names none of them.
        """
        written = openai_tools(tools, strict)
        read_choice(tool_choice, tool_names(written))
        given = {
            "tool_choice": tool_choice,
            "parallel_tool_calls": parallel_tool_calls,
            "response_format": response_format,
        }
        set_here = {name: value for name, value in given.items() if value is not None}
        return self.bind(tools=written, **set_here, **kwargs)

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Give objects in place of messages; the schema is enforced while decoding.

        Args:
            schema: A Pydantic class (of v1 too), a TypedDict, or a JSON schema; may be left out
                with ``json_mode`` (any JSON object).
            method: ``"json_schema"``: the answer's text, members are told the schema;
                ``"function_calling"``: the arguments of a tool call; ``"json_mode"``: the
                answer's text, and your prompt says what is wanted.
            include_raw: Give ``{"raw", "parsed", "parsing_error"}``.
            strict: Close every object of the schema and require every property.
            **kwargs: Any other argument of a call.

        Returns:
            A runnable that gives an instance of the class, or a dict.

        Raises:
            ConfigError: An unknown method, no schema, or one that cannot be read.
        """
        return structured_output(
            self,
            schema,
            method=method,
            include_raw=include_raw,
            strict=strict,
            arguments=kwargs,
        )

    # --- what LangChain asks about a chat model -----------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "langchain-ensemble-chat"

    @property
    def _identifying_params(self) -> builtins.dict[str, Any]:
        return self.identity

    @property
    def _serialized(self) -> builtins.dict[str, Any]:
        return cast("builtins.dict[str, Any]", dumpd(self))  # live: a memo goes stale

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        ask = read_ask(self._chat_fields, kwargs)
        owner, name = self._owner(ask.model)
        request = owner._request(ask, stop).model_dump(mode="json")
        said = {"chat": repr(ask.chat), "tools": ask.tools, "told": ask.told, "answers": name}
        key = {**self.identity, **said, "request": request}
        return json.dumps(key, sort_keys=True, default=repr)

    def _combine_llm_outputs(
        self, outputs: list[builtins.dict[str, Any] | None], /
    ) -> builtins.dict[str, Any]:
        return combined(outputs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        if "max_new_tokens" in kwargs:
            kwargs.setdefault("max_tokens", kwargs["max_new_tokens"])
        stops = list(joined_stop(self.stop, stop))
        params = super()._get_ls_params(stop=stops or None, **kwargs)
        params["ls_provider"] = blocks.PROVIDER
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        return self._profile()

    def _learn(self, engine: Ensemble) -> None:
        known = self.profile is None or "max_input_tokens" in self.profile
        if not known and self.profile == self._profile():  # not one of the user's own
            self.profile = self._profile(engine.chat_limits().values())

    def get_token_ids(self, text: str) -> list[int]:
        """Give main's token ids of a text, without control ids; no weights are loaded."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._counting().token_ids(text)

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[builtins.dict[str, Any] | type | Callable[..., Any] | BaseTool]
        | None = None,
    ) -> int:
        """Count main's tokens of a conversation in its template; ``tools`` as in ``bind_tools``."""
        ask = read_ask(self._chat_fields, {"tools": tools})
        conversation = read_conversation(messages, ask.tools)
        return self._counting().count_chat(conversation, ask.chat, self.contexts)

    # --- beside LangChain ---------------------------------------------------------------------

    def score(
        self,
        messages: LanguageModelInput,
        answer: str,
        *,
        member: str | None = None,
        weights: Any = None,
        contexts: Mapping[str, str] | None = None,
        gate: str | Mapping[str, Any] | None = None,
    ) -> Score:
        """Give an answer's log-likelihood after a conversation, along main's tokens.

        Args:
            messages: The conversation, in any form that ``invoke`` takes.
            answer: What is scored.
            member: Score by this member alone.
            weights: In place of the field.
            contexts: In place of the field.
            gate: In place of the field.

        Returns:
            Log-probability in nats, bits per byte, number of tokens.

        Raises:
            ConfigError: An unknown member, weights that do not sum to 1.
        """
        asked = self._scored_with(member, weights, contexts, gate)
        conversation = read_conversation(self._convert_input(messages).to_messages())
        with translated():
            return self._ready().score_chat(conversation, answer, **asked)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy, with some settings changed; weights are shared, never loaded again.

        Args:
            update: Settings to change.
            deep: Whether fields are copied too.

        Raises:
            ConfigError: An unknown name.
        """
        copied = super().model_copy(update=update, deep=deep)
        copied.check()
        if "profile" not in (update or {}) and self.profile == self._profile():
            copied.profile = copied._profile()
        return copied

    @model_validator(mode="after")
    def _stamp_ensemble_version(self) -> Self:
        self._add_version("langchain-ensemble", __version__)
        return self
