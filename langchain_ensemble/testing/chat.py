"""The contract of a LangChain chat model, beside ``langchain-tests``: a mixin of tests.

The standard suites leave out what users trip over: cache keys, cancellation, threads, pickling,
stop strings across tokens, batches, unknown arguments, fragments of tool calls in v3 events,
truncated calls and objects. Run both.

    class TestMyChat(ChatContract):
        def make_chat(self, **settings):
            return MyChat(model="...", **settings)

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
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda

from langchain_ensemble.testing.chat_calls import CallsContract
from langchain_ensemble.testing.chat_tools import ChatRecorder, merged, reloaded, said, untimed, v3
from langchain_ensemble.testing.llm_tools import run, threads_inside


class ChatContract(CallsContract):
    """Tests that every LangChain chat model should pass; give ``make_chat``.

    Attributes:
        prompts: Three prompts whose greedy answers differ and have at least 8 characters.
        max_tokens: Length of the answers.
        package: Package whose code no thread may run after a cancelled call.
    """

    prompts = ("Hello, who are you?", "Tell me of France.", "Tell me a story of a dog.")
    max_tokens = 12
    package = "langchain_ensemble"

    @pytest.fixture
    def chat(self) -> BaseChatModel:
        """The chat model under test."""
        return self.make_chat(max_tokens=self.max_tokens)

    @pytest.fixture
    def answers(self, chat: BaseChatModel) -> list[str]:
        """The answers to ``prompts``, one by one."""
        found = [str(chat.invoke(prompt).text) for prompt in self.prompts]
        assert all(len(text) >= 8 for text in found), f"answers too short to test with: {found}"
        assert len(dict.fromkeys(found)) == len(found), f"answers do not differ: {found}"
        return found

    # one answer, however it is asked for

    def test_message_tells_usage_model_and_finish(self, chat: BaseChatModel) -> None:
        """Usage adds up; model, provider and finish reason are known; the prompt is no part."""
        message = chat.invoke(self.prompts[0])
        usage = message.usage_metadata
        assert usage is not None
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert 0 < usage["output_tokens"] <= 2 * self.max_tokens
        told = message.response_metadata
        assert told["model_name"]
        assert told["model_provider"] == chat._get_ls_params()["ls_provider"]
        assert told["finish_reason"] in ("stop", "length")
        assert not message.text.startswith(self.prompts[0])
        assert len(json.dumps(told)) < 4096

    @pytest.mark.parametrize("settings", [{}, {"output_version": "v1"}])
    def test_stream_is_invoke(self, settings: dict[str, Any]) -> None:
        """The merged stream is the message; the last chunk is marked and holds no text."""
        chat = self.make_chat(max_tokens=self.max_tokens, **settings)
        chunks = list(chat.stream(self.prompts[0]))
        message = chat.invoke(self.prompts[0])
        whole = merged(chunks)
        assert said(whole) == said(message)
        assert untimed(whole.response_metadata) == untimed(message.response_metadata)
        assert len(chunks) > 2
        assert chunks[-1].chunk_position == "last"
        assert not chunks[-1].text
        through = self.make_chat(max_tokens=self.max_tokens, streaming=True, **settings)
        assert said(through.invoke(self.prompts[0])) == said(message)

    def test_async_is_sync(self, chat: BaseChatModel, answers: list[str]) -> None:
        """``ainvoke``, ``astream``, ``abatch`` give what their twins give."""

        async def ask() -> tuple[AIMessage, AIMessage, list[str]]:
            chunks = [chunk async for chunk in chat.astream(self.prompts[1])]
            batch = await chat.abatch(list(self.prompts))
            return await chat.ainvoke(self.prompts[0]), merged(chunks), [m.text for m in batch]

        invoked, streamed, batch = run(ask())
        assert said(invoked) == said(chat.invoke(self.prompts[0]))
        assert said(streamed) == said(chat.invoke(self.prompts[1]))
        assert batch == answers

    def test_batch_is_one_by_one(self, chat: BaseChatModel, answers: list[str]) -> None:
        """A batch, whole or in parts, gives each prompt's own answer; an empty one gives none."""
        assert [m.text for m in chat.batch(list(self.prompts))] == answers
        few = chat.batch(list(self.prompts), config={"max_concurrency": 2})
        assert [m.text for m in few] == answers
        assert chat.batch([]) == []

    def test_events_are_the_stream(self, chat: BaseChatModel) -> None:
        """``stream_events(version="v3")`` and ``astream_events`` say what ``invoke`` says."""
        message = chat.invoke(self.prompts[0])
        _, assembled = v3(chat, self.prompts[0])
        assert assembled.text == message.text
        assert assembled.usage_metadata == message.usage_metadata

        async def ask() -> str:
            events = [e async for e in chat.astream_events(self.prompts[0], version="v2")]
            chunks = [e["data"]["chunk"] for e in events if e["event"] == "on_chat_model_stream"]
            return "".join(chunk.text for chunk in chunks)

        assert run(ask()) == message.text

    def test_max_tokens_in_field_and_call(self, chat: BaseChatModel, answers: list[str]) -> None:
        """A call's limit wins over the field's, and a cut answer says so."""
        short = chat.invoke(self.prompts[0], max_tokens=2)
        assert said(short) == said(self.make_chat(max_tokens=2).invoke(self.prompts[0]))
        assert short.response_metadata["finish_reason"] == "length"
        assert answers[0].startswith(short.text)
        assert len(short.text) < len(answers[0])

    # stop

    def test_stop_is_found_and_not_shown(self, chat: BaseChatModel, answers: list[str]) -> None:
        """A stop string anywhere in the answer ends it, in calls, fields, bindings and streams."""
        text = answers[0]
        for start in range(1, len(text) - 3, max(1, (len(text) - 4) // 4)):
            stop = text[start : start + 3]
            expected = text[: text.find(stop)]
            field = self.make_chat(max_tokens=self.max_tokens, stop=[stop])
            assert chat.invoke(self.prompts[0], stop=[stop]).text == expected
            assert merged(chat.stream(self.prompts[0], stop=[stop])).text == expected
            assert field.invoke(self.prompts[0]).text == expected
            assert chat.bind(stop=[stop]).invoke(self.prompts[0]).text == expected

    # callbacks

    def test_callbacks_see_the_stream(self, chat: BaseChatModel, answers: list[str]) -> None:
        """Each chunk is reported once; the end carries the whole."""
        seen = ChatRecorder()
        list(chat.stream(self.prompts[0], config={"callbacks": [seen]}))
        assert seen.starts == [self.prompts[0]]
        assert "".join(str(token) for token in seen.tokens) == answers[0]
        assert [result.generations[0][0].text for result in seen.ends] == [answers[0]]
        assert not seen.errors

    def test_unknown_arguments_are_told(self, chat: BaseChatModel) -> None:
        """A misspelt argument of a call is a warning (or an error) that names the right one."""
        asks: tuple[Callable[[], object], ...] = (
            lambda: chat.invoke(self.prompts[0], max_tokns=3),
            lambda: list(chat.stream(self.prompts[0], max_tokns=3)),
            lambda: chat.bind(max_tokns=3).invoke(self.prompts[0]),
            lambda: run(chat.ainvoke(self.prompts[0], max_tokns=3)),
        )
        for ask in asks:
            with pytest.warns(UserWarning, match=r"max_tokns.*max_tokens"):
                ask()
        with pytest.raises(ValueError, match=r"max_tokns.*max_tokens"):
            self.make_chat(max_tokns=3)
        seen = ChatRecorder()
        with pytest.raises(ValueError, match="max_tokens"):
            list(chat.stream(self.prompts[0], config={"callbacks": [seen]}, max_tokens=0))
        assert len(seen.errors) == 1

    # cache

    def test_cache_separates_settings(self, answers: list[str]) -> None:
        """A hit replays; a field, an argument, a stop string or tools that differ are no hit."""
        cache = InMemoryCache()
        chat = self.make_chat(max_tokens=self.max_tokens, cache=cache)
        assert [chat.invoke(self.prompts[0]).text for _ in range(2)] == [answers[0]] * 2
        short = chat.invoke(self.prompts[0], max_tokens=2).text
        assert len(short) < len(answers[0])
        assert self.make_chat(max_tokens=2, cache=cache).invoke(self.prompts[0]).text == short
        stop = answers[0][2:5]
        stopped = answers[0][: answers[0].find(stop)]
        assert chat.invoke(self.prompts[0], stop=[stop]).text == stopped
        field = self.make_chat(max_tokens=self.max_tokens, cache=cache, stop=[stop])
        assert field.invoke(self.prompts[0]).text == stopped
        called = [self.with_tools(cache=cache).invoke(self.prompts[0]) for _ in range(2)]
        assert called[0].tool_calls == called[1].tool_calls, "no hit: the ids are new"
        assert run(chat.ainvoke(self.prompts[0])).text == answers[0]
        cast("Any", chat).max_tokens = 2
        assert chat.invoke(self.prompts[0]).text == short

    # copies

    def test_copies_answer_alike(self, chat: BaseChatModel, answers: list[str]) -> None:
        """Pickle, deepcopy, ``model_copy`` and ``dumps``/``loads`` keep settings and answers."""
        for other in (
            pickle.loads(pickle.dumps(chat)),
            copy.deepcopy(chat),
            chat.model_copy(),
            reloaded(chat),
        ):
            assert type(other) is type(chat)
            assert other.asdict() == chat.asdict()
            assert other.invoke(self.prompts[0]).text == answers[0]

    def test_parameters_are_json(self, chat: BaseChatModel) -> None:
        """``asdict``, the identity and the tracing parameters can be written down."""
        assert json.loads(json.dumps(chat.asdict())) == chat.asdict()
        assert chat._identifying_params
        params = chat._get_ls_params(stop=["x"], model="other")
        assert params["ls_model_type"] == "chat"
        assert params["ls_model_name"] == "other"
        assert params["ls_max_tokens"] == self.max_tokens
        assert params["ls_stop"] == ["x"]

    def test_configurable_fields(self, chat: BaseChatModel, answers: list[str]) -> None:
        """A field may be left to the call's configuration."""
        chain = chat.configurable_fields(max_tokens=ConfigurableField(id="limit"))
        short = cast("Any", chain.with_config(configurable={"limit": 2})).invoke(self.prompts[0])
        assert short.text == chat.invoke(self.prompts[0], max_tokens=2).text
        assert cast("Any", chain).invoke(self.prompts[0]).text == answers[0]

    def test_retry_and_fallback(self, chat: BaseChatModel, answers: list[str]) -> None:
        """``with_retry`` and ``with_fallbacks`` wrap it."""
        assert chat.with_retry(stop_after_attempt=2).invoke(self.prompts[0]).text == answers[0]
        broken: Any = RunnableLambda(_fail).with_fallbacks([cast("Any", chat)])
        assert broken.invoke(self.prompts[0]).text == answers[0]

    def test_token_counts_need_no_network(self, chat: BaseChatModel) -> None:
        """Conversations are counted in the model's own template, tools included."""
        short, long = (
            [HumanMessage("one two")],
            [SystemMessage("one two"), HumanMessage("one " * 9)],
        )
        count = chat.get_num_tokens_from_messages
        assert 0 < count([*short]) < count([*long])
        with_tools = count([*short], tools=[reloaded])
        assert with_tools > count([*short])
        assert chat.get_num_tokens("one two three") == len(chat.get_token_ids("one two three")) > 0

    # stopping and sharing

    def test_stream_closed_early(self, chat: BaseChatModel, answers: list[str]) -> None:
        """A stream that nobody reads to its end disturbs nothing."""
        for _ in range(3):
            with closing(cast("Any", chat.stream(self.prompts[0]))) as stream:
                next(stream)
        assert chat.invoke(self.prompts[1]).text == answers[1]

    def test_async_stream_closed_or_cancelled(
        self, chat: BaseChatModel, answers: list[str]
    ) -> None:
        """Closing or cancelling stops the computation; the next call is right."""

        async def read(first: asyncio.Event) -> None:
            async for _ in chat.astream(self.prompts[0], max_tokens=200):
                first.set()

        async def cancel(task: asyncio.Task[Any]) -> None:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async def ask() -> str:
            stream = cast("Any", chat.astream(self.prompts[0], max_tokens=200))
            async with aclosing(stream):
                await anext(stream)
            first = asyncio.Event()
            streaming = asyncio.create_task(read(first))
            await first.wait()
            await cancel(streaming)
            whole = asyncio.create_task(chat.ainvoke(self.prompts[0], max_tokens=200))
            await asyncio.sleep(0)
            await cancel(whole)
            return (await chat.ainvoke(self.prompts[1])).text

        assert run(ask()) == answers[1]
        assert not threads_inside(self.package, seconds=5.0)

    def test_threads_do_not_mix(self, chat: BaseChatModel, answers: list[str]) -> None:
        """Calls from many threads, streamed and whole, give each its own answer."""
        wanted = dict(zip(self.prompts, answers, strict=True))

        def ask(number: int) -> bool:
            prompt = self.prompts[number % len(self.prompts)]
            message = merged(chat.stream(prompt)) if number % 2 else chat.invoke(prompt)
            return message.text == wanted[prompt]

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(ask, range(12)))

    def test_tasks_do_not_mix(self, chat: BaseChatModel, answers: list[str]) -> None:
        """Concurrent tasks of one loop give each its own answer."""

        async def ask() -> list[str]:
            asked = (chat.ainvoke(p) for p in self.prompts for _ in range(2))
            return [message.text for message in await asyncio.gather(*asked)]

        assert run(ask()) == [text for text in answers for _ in range(2)]


def _fail(_: Any) -> str:
    raise RuntimeError("the first choice is out of order")
