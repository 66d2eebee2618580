"""The contract of a LangChain LLM (``BaseLLM``): a mixin of tests for a class of your own.

``langchain-tests`` has suites for chat models and none for plain LLMs; this one mirrors them, and
adds what they leave out: cache keys, cancellation, threads, pickling, unknown arguments.

    class TestMyLLM(LLMContract):
        def make_llm(self, **settings):
            return MyLLM(model="...", **settings)

Needs pytest only; async tests run their own loop. Decoding must be greedy by default
(``temperature`` 0) and honour ``max_tokens`` and ``stop`` as fields and in calls.
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from typing import Any, cast

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import GenerationChunk
from langchain_core.runnables import ConfigurableField, RunnableLambda

from langchain_ensemble.testing.llm_tools import (
    AsyncRecorder,
    Recorder,
    counting,
    info_of,
    reload,
    run,
    threads_inside,
)


class LLMContract:
    """Tests that every LangChain LLM should pass; give ``make_llm``.

    Attributes:
        prompts: Three prompts whose greedy answers differ and have at least 8 characters.
        max_tokens: Length of the answers.
        package: Package whose code no thread may run after a cancelled call.
    """

    prompts = ("Once upon a time", "The little dog", "One day, Tom")
    max_tokens = 12
    package = "langchain_ensemble"

    def make_llm(self, **settings: Any) -> BaseLLM:
        """Make the LLM under test; the same model every time, with some fields changed."""
        raise TypeError(f"{type(self).__name__} must define make_llm(self, **settings)")

    @pytest.fixture
    def llm(self) -> BaseLLM:
        """The LLM under test."""
        return self.make_llm(max_tokens=self.max_tokens)

    @pytest.fixture
    def answers(self, llm: BaseLLM) -> list[str]:
        """The answers to ``prompts``, one by one."""
        found = [llm.invoke(prompt) for prompt in self.prompts]
        assert all(len(text) >= 8 for text in found), f"answers too short to test with: {found}"
        assert len(dict.fromkeys(found)) == len(found), f"answers do not differ: {found}"
        return found

    # one answer, however it is asked for

    def test_invoke_gives_the_answer_alone(self, llm: BaseLLM) -> None:
        """The prompt is not echoed, and greedy answers are the same twice."""
        text = llm.invoke(self.prompts[0])
        assert isinstance(text, str)
        assert text
        assert not text.startswith(self.prompts[0])
        assert llm.invoke(self.prompts[0]) == text

    def test_stream_is_invoke(self, llm: BaseLLM, answers: list[str]) -> None:
        """The joined stream is the answer, in more than one chunk."""
        chunks = list(llm.stream(self.prompts[0]))
        assert "".join(chunks) == answers[0]
        assert len(chunks) > 1

    def test_async_is_sync(self, llm: BaseLLM, answers: list[str]) -> None:
        """``ainvoke``, ``astream``, ``abatch`` give what their twins give."""

        async def ask() -> tuple[str, list[str], list[str]]:
            streamed = [text async for text in llm.astream(self.prompts[1])]
            batch = await llm.abatch(list(self.prompts))
            return await llm.ainvoke(self.prompts[0]), streamed, batch

        invoked, streamed, batch = run(ask())
        assert invoked == answers[0]
        assert "".join(streamed) == answers[1]
        assert len(streamed) > 1
        assert batch == answers

    def test_batch_is_one_by_one(self, llm: BaseLLM, answers: list[str]) -> None:
        """A batch, whole or in parts, gives each prompt's own answer; an empty one gives none."""
        assert llm.batch(list(self.prompts)) == answers
        assert llm.batch(list(self.prompts), config={"max_concurrency": 2}) == answers
        assert llm.batch([]) == []
        assert llm.generate([]).generations == []

    def test_result_tells_usage_and_finish(self, llm: BaseLLM) -> None:
        """Usage adds up, and the finish reason is known, in batches and in streams."""
        result = llm.generate(list(self.prompts))
        usage = cast("dict[str, Any]", result.llm_output)["token_usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert 0 < usage["completion_tokens"] <= 2 * self.max_tokens * len(self.prompts)
        assert cast("dict[str, Any]", result.llm_output)["model_name"]
        one_by_one = [info_of(g[0]) for g in result.generations]
        assert (
            sum(i["usage"]["completion_tokens"] for i in one_by_one) == usage["completion_tokens"]
        )
        assert all(i["finish_reason"] in ("stop", "length") for i in one_by_one)
        seen = Recorder()
        list(llm.stream(self.prompts[0], config={"callbacks": [seen]}))
        assert info_of(seen.ends[0].generations[0][0]) == one_by_one[0]

    def test_max_tokens_in_field_and_call(self, llm: BaseLLM, answers: list[str]) -> None:
        """A call's limit wins over the field's; a shorter answer is the longer one's start."""
        short = llm.invoke(self.prompts[0], max_tokens=2)
        assert short == self.make_llm(max_tokens=2).invoke(self.prompts[0])
        assert answers[0].startswith(short)
        assert len(short) < len(answers[0])

    # stop

    def test_stop_is_found_and_not_shown(self, llm: BaseLLM, answers: list[str]) -> None:
        """A stop string anywhere in the answer ends it, in calls, fields and streams."""
        text = answers[0]
        for start in range(1, len(text) - 3, max(1, (len(text) - 4) // 4)):
            stop = text[start : start + 3]
            expected = text[: text.find(stop)]
            assert llm.invoke(self.prompts[0], stop=[stop]) == expected
            assert "".join(llm.stream(self.prompts[0], stop=[stop])) == expected
            assert (
                self.make_llm(max_tokens=self.max_tokens, stop=[stop]).invoke(self.prompts[0])
                == expected
            )

    def test_stop_of_field_and_call_are_joined(self, llm: BaseLLM, answers: list[str]) -> None:
        """Neither hides the other."""
        text = answers[0]
        early, late = text[2:5], text[-3:]
        expected = text[: min(text.find(early), text.find(late))]
        for field, call in ((early, late), (late, early)):
            made = self.make_llm(max_tokens=self.max_tokens, stop=[field])
            assert made.invoke(self.prompts[0], stop=[call]) == expected
            assert made.bind(stop=[call]).invoke(self.prompts[0]) == expected

    # callbacks

    def test_callbacks_see_the_stream(self, llm: BaseLLM, answers: list[str]) -> None:
        """Each chunk is reported once, as text and as chunk; the end carries the whole."""
        seen = Recorder()
        list(llm.stream(self.prompts[0], config={"callbacks": [seen]}))
        assert seen.starts == [self.prompts[0]]
        assert "".join(seen.tokens) == answers[0]
        assert all(isinstance(chunk, GenerationChunk) for chunk in seen.chunks)
        assert [result.generations[0][0].text for result in seen.ends] == [answers[0]]
        assert not seen.errors

    def test_async_callbacks_and_events(self, llm: BaseLLM, answers: list[str]) -> None:
        """Async handlers and ``astream_events`` see the same tokens."""

        async def ask() -> tuple[list[str], str]:
            seen = AsyncRecorder()
            async for _ in llm.astream(self.prompts[0], config={"callbacks": [seen]}):
                pass
            chain = RunnableLambda(str) | llm
            events = [event async for event in chain.astream_events(self.prompts[0], version="v2")]
            chunks = [e["data"]["chunk"] for e in events if e["event"] == "on_llm_stream"]
            return seen.tokens, "".join(getattr(c, "text", c) for c in chunks)

        tokens, events = run(ask())
        assert "".join(tokens) == answers[0]
        assert events == answers[0]

    def test_errors_reach_caller_and_callbacks(self, llm: BaseLLM) -> None:
        """An unknown argument is an error that names it, in every way of asking."""
        prompt, seen = self.prompts[0], Recorder()
        asks: tuple[Callable[[], object], ...] = (
            lambda: llm.invoke(prompt, max_tokns=3),
            lambda: list(llm.stream(prompt, max_tokns=3)),
            lambda: llm.batch([prompt], max_tokns=3),
            lambda: llm.bind(max_tokns=3).invoke(prompt),
            lambda: run(llm.ainvoke(prompt, max_tokns=3)),
            lambda: self.make_llm(max_tokns=3),
        )
        for ask in asks:
            with pytest.raises(ValueError, match=r"max_tokns.*max_tokens"):
                ask()
        with pytest.raises(ValueError, match="max_tokens"):
            list(llm.stream(prompt, config={"callbacks": [seen]}, max_tokens=0))
        assert [type(error) for error in seen.errors] == [type(seen.errors[0])]

    # cache

    def test_cache_separates_settings(self, answers: list[str]) -> None:
        """A hit replays; a field, a call's argument or a stop string that differs is no hit."""
        cache = InMemoryCache()
        llm = self.make_llm(max_tokens=self.max_tokens, cache=cache)
        with counting(llm) as calls:
            assert [llm.invoke(self.prompts[0]) for _ in range(2)] == [answers[0]] * 2
            assert len(calls) == 1
        short = llm.invoke(self.prompts[0], max_tokens=2)
        assert len(short) < len(answers[0])
        assert self.make_llm(max_tokens=2, cache=cache).invoke(self.prompts[0]) == short
        stopped = llm.invoke(self.prompts[0], stop=[answers[0][2:5]])
        assert stopped == answers[0][: answers[0].find(answers[0][2:5])]
        stop_field = self.make_llm(max_tokens=self.max_tokens, cache=cache, stop=[answers[0][2:5]])
        assert stop_field.invoke(self.prompts[0]) == stopped
        assert run(llm.ainvoke(self.prompts[0])) == answers[0]
        llm.max_tokens = 2  # type: ignore[attr-defined]
        assert llm.invoke(self.prompts[0]) == short

    # copies

    def test_copies_answer_alike(self, llm: BaseLLM, answers: list[str]) -> None:
        """Pickle, deepcopy, ``model_copy`` and ``dumps``/``loads`` keep settings and answers."""
        for other in (
            pickle.loads(pickle.dumps(llm)),
            copy.deepcopy(llm),
            llm.model_copy(),
            reload(llm),
        ):
            assert type(other) is type(llm)
            assert other.asdict() == llm.asdict()
            assert other.invoke(self.prompts[0]) == answers[0]
        short = llm.model_copy(update={"max_tokens": 2})
        assert short.invoke(self.prompts[0]) == llm.invoke(self.prompts[0], max_tokens=2)
        assert llm.invoke(self.prompts[0]) == answers[0]

    def test_parameters_are_json(self, llm: BaseLLM) -> None:
        """``asdict``, the identity and the tracing parameters can be written down."""
        assert json.loads(json.dumps(llm.asdict())) == llm.asdict()
        assert llm._identifying_params
        params = llm._get_ls_params(stop=["x"])
        assert params["ls_model_type"] == "llm"
        assert params["ls_provider"]
        assert params["ls_model_name"]
        assert params["ls_max_tokens"] == self.max_tokens
        assert params["ls_stop"] == ["x"]

    def test_configurable_fields(self, llm: BaseLLM, answers: list[str]) -> None:
        """A field may be left to the call's configuration."""
        chain = llm.configurable_fields(max_tokens=ConfigurableField(id="limit"))
        short = chain.with_config(configurable={"limit": 2}).invoke(self.prompts[0])
        assert short == llm.invoke(self.prompts[0], max_tokens=2)
        assert chain.invoke(self.prompts[0]) == answers[0]

    def test_retry_and_fallback(self, llm: BaseLLM, answers: list[str]) -> None:
        """``with_retry`` and ``with_fallbacks`` wrap it."""
        assert llm.with_retry(stop_after_attempt=2).invoke(self.prompts[0]) == answers[0]
        broken = RunnableLambda(_fail).with_fallbacks([llm])
        assert broken.invoke(self.prompts[0]) == answers[0]

    def test_token_counts_need_no_network(self, llm: BaseLLM) -> None:
        """Tokens are counted by a tokenizer of its own, and text without words has none."""
        assert llm.get_num_tokens("one two three") == len(llm.get_token_ids("one two three")) > 0
        assert llm.get_num_tokens("one two three " * 20) > llm.get_num_tokens("one two three")
        assert llm.get_num_tokens("") == 0

    # stopping and sharing

    def test_stream_closed_early(self, llm: BaseLLM, answers: list[str]) -> None:
        """A stream that nobody reads to its end disturbs nothing."""
        for _ in range(3):
            with closing(cast("Any", llm.stream(self.prompts[0]))) as stream:
                next(stream)
        assert llm.invoke(self.prompts[1]) == answers[1]

    def test_async_stream_closed_or_cancelled(self, llm: BaseLLM, answers: list[str]) -> None:
        """Closing or cancelling stops the computation; the next call is right."""

        async def read(first: asyncio.Event) -> None:
            async for _ in llm.astream(self.prompts[0], max_tokens=200):
                first.set()

        async def cancel(task: asyncio.Task[Any]) -> None:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async def ask() -> str:
            stream = cast("Any", llm.astream(self.prompts[0], max_tokens=200))
            async with aclosing(stream):
                await anext(stream)
            first = asyncio.Event()
            streaming = asyncio.create_task(read(first))
            await first.wait()
            await cancel(streaming)
            whole = asyncio.create_task(llm.ainvoke(self.prompts[0], max_tokens=200))
            await asyncio.sleep(0)
            await cancel(whole)
            return await llm.ainvoke(self.prompts[1])

        assert run(ask()) == answers[1]
        assert not threads_inside(self.package, seconds=5.0)

    def test_threads_do_not_mix(self, llm: BaseLLM, answers: list[str]) -> None:
        """Calls from many threads, streamed and whole, give each its own answer."""
        wanted = dict(zip(self.prompts, answers, strict=True))

        def ask(number: int) -> bool:
            prompt = self.prompts[number % len(self.prompts)]
            text = "".join(llm.stream(prompt)) if number % 2 else llm.invoke(prompt)
            return text == wanted[prompt]

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(ask, range(12)))

    def test_tasks_do_not_mix(self, llm: BaseLLM, answers: list[str]) -> None:
        """Concurrent tasks of one loop give each its own answer."""

        async def ask() -> list[str]:
            return await asyncio.gather(*(llm.ainvoke(p) for p in self.prompts for _ in range(2)))

        assert run(ask()) == [text for text in answers for _ in range(2)]


def _fail(_: Any) -> str:
    raise RuntimeError("the first choice is out of order")
