"""EnsembleLLM where LangChain users put an LLM: chains, caches, tracers, fallbacks, agents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.messages import HumanMessage, trim_messages
from langchain_core.output_parsers import CommaSeparatedListOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, FewShotPromptTemplate, PromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.schemas import Run

from langchain_ensemble import ConfigError, DeadlineError, EnsembleLLM, MemberError

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def members(shared: Path) -> dict[str, str]:
    models = shared / "models"
    return {"stories": str(models / "stories260K"), "baby": str(models / "babyllama-361")}


@pytest.fixture(scope="module")
def llm(members: dict[str, str]) -> Iterator[EnsembleLLM]:
    with EnsembleLLM(members=members, fusion="unite", max_tokens=10) as made:
        yield made.load()


@pytest.fixture(scope="module")
def answer(llm: EnsembleLLM) -> str:
    return llm.invoke(PROMPT)


class Told(BaseTracer):
    """Every run, with its parent."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


class TestChains:
    def test_prompt_llm_parser(self, llm: EnsembleLLM, answer: str) -> None:
        chain = PromptTemplate.from_template("Once upon {what}") | llm | StrOutputParser()
        assert chain.invoke({"what": "a time"}) == answer
        assert "".join(chain.stream({"what": "a time"})) == answer
        assert chain.batch([{"what": "a time"}] * 2) == [answer] * 2

    async def test_async_chain(self, llm: EnsembleLLM, answer: str) -> None:
        chain = PromptTemplate.from_template("Once upon {what}") | llm | StrOutputParser()
        assert await chain.ainvoke({"what": "a time"}) == answer
        pieces = [piece async for piece in chain.astream({"what": "a time"})]
        assert "".join(pieces) == answer
        assert len(pieces) > 1

    def test_parallel_branches(self, llm: EnsembleLLM, answer: str) -> None:
        both = RunnableParallel(
            together=llm, stories=llm.solo("stories"), baby=llm.solo("baby"),
            said=RunnablePassthrough(),
        )  # fmt: skip
        out = both.invoke(PROMPT)
        assert out == {
            "together": answer,
            "stories": llm.solo("stories").invoke(PROMPT),
            "baby": llm.solo("baby").invoke(PROMPT),
            "said": PROMPT,
        }

    def test_few_shots_and_a_list_parser(self, llm: EnsembleLLM) -> None:
        prompt = FewShotPromptTemplate(
            examples=[{"q": "dogs", "a": "big, small"}],
            example_prompt=PromptTemplate.from_template("{q}: {a}"),
            suffix="{q}:",
            input_variables=["q"],
        )
        parser = CommaSeparatedListOutputParser()
        raw = (prompt | llm.bind(stop=["."])).invoke({"q": "cats"})
        assert (prompt | llm.bind(stop=["."]) | parser).invoke({"q": "cats"}) == parser.parse(raw)

    def test_messages_become_text(self, llm: EnsembleLLM) -> None:
        chain = ChatPromptTemplate([("human", "{x}")]) | llm
        assert chain.invoke({"x": PROMPT}) == llm.invoke(f"Human: {PROMPT}")
        assert llm.invoke([HumanMessage(PROMPT)]) == llm.invoke(f"Human: {PROMPT}")

    def test_trim_messages_counts_with_main(self, llm: EnsembleLLM) -> None:
        messages: list[Any] = [HumanMessage(PROMPT) for _ in range(6)]
        one = llm.get_num_tokens_from_messages(messages[:1])
        trimmed = trim_messages(messages, max_tokens=2 * one, token_counter=cast("Any", llm))
        assert len(trimmed) == 2


class TestAroundTheLLM:
    def test_fallback_to_one_member(self, llm: EnsembleLLM) -> None:
        late = llm.bind(timeout=1e-9)
        with pytest.raises(DeadlineError):
            late.invoke(PROMPT)
        alone = llm.solo("stories")
        assert late.with_fallbacks([alone]).invoke(PROMPT) == alone.invoke(PROMPT)

    def test_retry_asks_again_for_what_may_pass(self, llm: EnsembleLLM, answer: str) -> None:
        tries: list[str] = []

        def flaky(prompt: str) -> str:
            tries.append(prompt)
            if len(tries) < 3:
                raise MemberError("not yet")
            return prompt

        chain = RunnableLambda(flaky) | llm
        retrying = chain.with_retry(
            retry_if_exception_type=(MemberError,), wait_exponential_jitter=False
        )
        assert retrying.invoke(PROMPT) == answer
        assert len(tries) == 3

    def test_configurable_weights_and_alternatives(self, llm: EnsembleLLM, answer: str) -> None:
        chosen = llm.configurable_fields(weights=ConfigurableField(id="weights"))
        alone = chosen.with_config(configurable={"weights": {"stories": 1.0, "baby": 0.0}})
        assert alone.invoke(PROMPT) == llm.solo("stories").invoke(PROMPT)
        with pytest.raises(ConfigError, match=r"sum to 0\.5"):
            chosen.with_config(configurable={"weights": (0.25, 0.25)}).invoke(PROMPT)
        either = llm.configurable_alternatives(
            ConfigurableField(id="who"), default_key="all", baby=llm.solo("baby")
        )
        assert either.invoke(PROMPT) == answer
        picked = either.with_config(configurable={"who": "baby"})
        assert picked.invoke(PROMPT) == llm.solo("baby").invoke(PROMPT)

    def test_batch_reports_errors_in_place(self, llm: EnsembleLLM) -> None:
        out = llm.batch([PROMPT, "word " * 3000], return_exceptions=True)
        assert all(isinstance(error, ConfigError) for error in out)
        done = dict(llm.batch_as_completed([PROMPT, "The dog"]))
        assert done == {0: llm.invoke(PROMPT), 1: llm.invoke("The dog")}

    def test_global_cache(self, members: dict[str, str], answer: str) -> None:
        llm = EnsembleLLM(members=members, fusion="unite", max_tokens=10)
        told = Told()
        set_llm_cache(InMemoryCache())
        try:
            texts = [llm.invoke(PROMPT, config={"callbacks": [told]}) for _ in range(3)]
            mixed = llm.batch([PROMPT, "The dog"], config={"callbacks": [told]})
            apart = llm.model_copy(update={"cache": False})
            assert apart.invoke(PROMPT, config={"callbacks": [told]}) == answer
        finally:
            set_llm_cache(None)
        assert texts == [answer] * 3
        assert mixed == [answer, llm.invoke("The dog")]
        assert len(told.runs) == 3  # a miss, the other prompt of the batch, the one without cache


class TestTracing:
    def test_runs_tags_and_parameters(self, llm: EnsembleLLM, answer: str) -> None:
        told = Told()
        chain = PromptTemplate.from_template("{x}") | llm.with_config(tags=["mine"])
        list(chain.stream({"x": PROMPT}, config={"callbacks": [told], "metadata": {"who": "me"}}))
        (root,) = told.runs
        (run,) = [r for r in root.child_runs if r.run_type == "llm"]
        assert "mine" in (run.tags or [])
        metadata = cast("dict[str, Any]", run.extra)["metadata"]
        assert metadata["who"] == "me"
        assert metadata["ls_model_name"] == "unite(stories+baby)"
        assert metadata["ls_provider"] == "ensemble"
        assert metadata["ls_max_tokens"] == 10
        assert metadata["lc_versions"]["langchain-ensemble"]
        generation = cast("dict[str, Any]", run.outputs)["generations"][0][0]
        assert generation["text"] == answer
        assert generation["generation_info"]["usage"]["completion_tokens"] > 0
        assert [e["name"] for e in run.events].count("new_token") > 1

    def test_an_error_is_traced(self, llm: EnsembleLLM) -> None:
        told = Told()
        with pytest.raises(ConfigError) as caught:
            llm.invoke("word " * 3000, config={"callbacks": [told]})
        assert type(caught.value).__name__ in str(told.runs[0].error)
        assert "longer than the context" in str(told.runs[0].error)

    async def test_events_name_every_step(self, llm: EnsembleLLM, answer: str) -> None:
        chain = PromptTemplate.from_template("{x}") | llm | StrOutputParser()
        names = [
            (e["event"], e["name"]) async for e in chain.astream_events({"x": PROMPT}, version="v2")
        ]
        assert names.count(("on_llm_start", "EnsembleLLM")) == 1
        assert names.count(("on_llm_end", "EnsembleLLM")) == 1
        assert names.count(("on_llm_stream", "EnsembleLLM")) > 1

    async def test_concurrent_chains_keep_their_callbacks(self, llm: EnsembleLLM) -> None:
        prompts = [PROMPT, "The dog", "Tom"]

        class Tokens(BaseCallbackHandler):
            def __init__(self) -> None:
                self.text = ""

            def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
                self.text += token

        handlers = [Tokens() for _ in prompts]

        async def read(prompt: str, handler: Tokens) -> None:
            async for _ in llm.astream(prompt, config={"callbacks": [handler]}):
                pass

        await asyncio.gather(*map(read, prompts, handlers))
        assert [h.text for h in handlers] == llm.batch(prompts)

    def test_usage_handler_of_chat_models_does_not_break(self, llm: EnsembleLLM) -> None:
        with get_usage_metadata_callback() as usage:
            llm.invoke(PROMPT)
        assert usage.usage_metadata == {}  # that handler reads chat messages only


class TestAgentLoop:
    """The classic ReAct loop: text in, text out, stopped before the observation."""

    def test_react(self, llm: EnsembleLLM) -> None:
        template = PromptTemplate.from_template("Tools: look\n{question}\nThought:{scratchpad}")
        thinker = template | llm.bind(stop=["\nObservation", ".", ","]) | StrOutputParser()
        scratchpad, seen = "", []
        for turn in range(3):
            thought = thinker.invoke({"question": "Where is the dog?", "scratchpad": scratchpad})
            assert "." not in thought
            assert "," not in thought
            seen.append(thought)
            scratchpad += f"{thought}\nObservation: the dog is at place {turn}\nThought:"
        assert seen[0] == thinker.invoke({"question": "Where is the dog?", "scratchpad": ""})

    def test_loop_meets_a_full_context(self, llm: EnsembleLLM) -> None:
        history, turns = PROMPT, 0
        error: ConfigError | None = None
        while error is None and turns < 200:
            history += " and then the dog ran home."
            try:
                history += llm.invoke(history, max_tokens=2)
            except ConfigError as full:
                error = full
            turns += 1
        assert turns > 3
        assert "stories" in str(error) or "baby" in str(error)
        assert llm.invoke(PROMPT)
