"""``create_agent`` over real decoding: what LangChain's agents touch of a chat model.

Two pico members of different tokenizers. Where a turn of the main member is the point (which tool,
which arguments) it is told what to say; grammars, fusion, caches and reading are the real ones.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Annotated, Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    SummarizationMiddleware,
    wrap_tool_call,
)
from langchain.agents.middleware.context_editing import ClearToolUsesEdit
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.demo.tools import calculator, country_fact
from langchain_ensemble.errors import ConfigError
from tests import actor
from tests.agent_stage import END, call, calls, pair

ASK = {"messages": [("user", "What is 2 and 3?")]}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def capital(country: str) -> str:
    """Look up a capital."""
    return {"Peru": "Lima"}.get(country, "unknown")


class Sum(BaseModel):
    """A sum."""

    total: int = Field(ge=0, le=999)
    sure: bool


@pytest.fixture(scope="module")
def stage() -> Iterator[actor.Stage]:
    with pytest.MonkeyPatch.context() as patch:
        yield actor.staged(patch)


@pytest.fixture(scope="module")
def chat(stage: actor.Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatEnsemble]:
    members = pair(tmp_path_factory.mktemp("agents"))
    with ChatEnsemble(members=members, fusion="average", max_tokens=240) as made:
        yield made


@pytest.fixture
def say(stage: actor.Stage, chat: ChatEnsemble) -> Callable[..., Any]:
    """``say("first turn", "second turn", ...)`` -> what each member read, by name."""
    return lambda *replies: stage.play(qwen=actor.lines(*replies))


def kinds(messages: list[BaseMessage]) -> list[str]:
    return [message.type for message in messages]


def merged(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    return reduce(operator.add, chunks)


class TestNoTools:
    def test_it_is_the_models_own_answer(self, chat: ChatEnsemble, say: Any) -> None:
        say(f"Five.{END}", f"Five.{END}")
        agent = create_agent(chat, [], system_prompt="Be brief.", name="bob")
        out = agent.invoke(ASK)["messages"]
        alone = chat.invoke([SystemMessage("Be brief."), HumanMessage("What is 2 and 3?")])
        assert out[-1].text == alone.text != ""
        assert out[-1].usage_metadata == alone.usage_metadata
        assert out[-1].name == "bob"

    async def test_async(self, chat: ChatEnsemble, say: Any) -> None:
        say(f"Five.{END}", f"Five.{END}")
        agent = create_agent(chat, [])
        assert (await agent.ainvoke(ASK))["messages"][-1].text == chat.invoke(ASK["messages"]).text

    def test_what_the_agent_was_named_is_read_back(self, chat: ChatEnsemble, say: Any) -> None:
        read = say(END)
        chat.invoke([HumanMessage("Hi"), AIMessage("Hello", name="bob"), HumanMessage("And?")])
        assert all("Hello" in prompt for prompts in read.values() for prompt in prompts)


class TestTools:
    def test_call_result_answer(self, chat: ChatEnsemble, say: Any) -> None:
        read = say(f"I look.{calls(call('add', a=2, b=3))}", f"It is 5.{END}")
        out = create_agent(chat, [add, capital], system_prompt="Use tools.").invoke(ASK)["messages"]
        assert kinds(out) == ["human", "ai", "tool", "ai"]
        first, result, last = out[1:]
        assert first.text == "I look."
        assert [(c["name"], c["args"]) for c in first.tool_calls] == [("add", {"a": 2, "b": 3})]
        assert first.response_metadata["finish_reason"] == "tool_calls"
        assert result.content == "5"
        assert result.tool_call_id == first.tool_calls[0]["id"]
        assert last.text == "It is 5."
        assert last.response_metadata["finish_reason"] == "stop"
        assert "<tool_response>\n5\n</tool_response>" in read["qwen"][-1]
        assert '"content": "5"' in read["zephyr"][-1]
        for name in read:
            assert "I look." in read[name][-1]
            assert '"arguments": {"a": 2, "b": 3}' in read[name][-1]

    async def test_async(self, chat: ChatEnsemble, say: Any) -> None:
        say(calls(call("add", a=2, b=3)), f"It is 5.{END}")
        out = (await create_agent(chat, [add]).ainvoke(ASK))["messages"]
        assert kinds(out) == ["human", "ai", "tool", "ai"]
        assert out[1].text == ""
        assert out[-1].text == "It is 5."

    def test_parallel_calls_and_their_results_in_order(self, chat: ChatEnsemble, say: Any) -> None:
        read = say(
            calls(call("add", a=2, b=3), call("capital", country="Peru"), call("add", a=4, b=4)),
            f"5, Lima, 8.{END}",
        )
        out = create_agent(chat, [add, capital]).invoke(ASK)["messages"]
        assert [m.content for m in out if m.type == "tool"] == ["5", "Lima", "8"]
        ids = [c["id"] for c in out[1].tool_calls]
        assert len(dict.fromkeys(ids)) == 3
        assert [m.tool_call_id for m in out if m.type == "tool"] == ids
        for prompts in read.values():
            places = [prompts[-1].rindex(said) for said in ("5", "Lima", "8")]
            assert places == sorted(places)

    def test_several_rounds(self, chat: ChatEnsemble, say: Any) -> None:
        rounds = [calls(call("add", a=n, b=1)) for n in range(4)]
        say(*rounds, f"Done.{END}")
        out = create_agent(chat, [add]).invoke(ASK)["messages"]
        assert [m.content for m in out if m.type == "tool"] == ["1", "2", "3", "4"]
        assert out[-1].text == "Done."

    def test_a_tool_that_fails_is_read_as_an_error(self, chat: ChatEnsemble, say: Any) -> None:
        @tool
        def broken(a: int) -> str:
            """Fail."""
            raise ValueError("no such thing")

        @wrap_tool_call
        def told(request: Any, handler: Any) -> Any:
            try:
                return handler(request)
            except ValueError as error:
                return ToolMessage(str(error), tool_call_id=request.tool_call["id"], status="error")

        read = say(calls(call("broken", a=1)), f"It failed.{END}")
        out = create_agent(chat, [broken], middleware=[told]).invoke(ASK)["messages"]
        assert out[2].status == "error"
        assert out[-1].text == "It failed."
        assert '{"name": "broken", "error": "no such thing"}' in read["zephyr"][-1]
        assert "no such thing" in read["qwen"][-1]

    def test_a_tool_without_arguments(self, chat: ChatEnsemble, say: Any) -> None:
        @tool
        def now() -> str:
            """Tell the time."""
            return "noon"

        say(calls(call("now")), f"Noon.{END}")
        out = create_agent(chat, [now]).invoke(ASK)["messages"]
        assert out[1].tool_calls[0]["args"] == {}
        assert out[2].content == "noon"

    def test_unicode_arguments_come_as_they_were_said(self, chat: ChatEnsemble, say: Any) -> None:
        said = 'Zürich "東京" 👩‍🚀 \\ \n'
        read = say(calls(call("capital", country=said)), f"?{END}")
        out = create_agent(chat, [capital]).invoke(ASK)["messages"]
        assert out[1].tool_calls[0]["args"] == {"country": said}
        assert all("東京" in prompts[-1] for prompts in read.values())


class TestCutCalls:
    @pytest.fixture
    def ran(self) -> list[dict[str, Any]]:
        return []

    @pytest.fixture
    def note(self, ran: list[dict[str, Any]]) -> BaseTool:
        @tool
        def note(text: str = "", far: bool = False) -> str:
            """Note something."""
            ran.append({"text": text, "far": far})
            return "noted"

        return note

    @pytest.mark.parametrize("way", ["invoke", "stream"])
    def test_a_cut_call_is_never_run_and_the_member_is_told(
        self, chat: ChatEnsemble, say: Any, ran: list[Any], note: BaseTool, way: str
    ) -> None:
        """However far it came; LangChain would run what its own reader completes."""
        long = calls(call("note", text="one two three", far=True))
        seen_broken = 0
        for budget in range(6, 40, 5):
            read = say(long, f"Ok.{END}")
            agent = create_agent(chat.model_copy(update={"max_tokens": budget}), [note])
            # the graph ends after a turn without calls: ask once more
            if way == "invoke":
                out = agent.invoke(ASK)["messages"]
            else:
                *_, state = agent.stream(ASK, stream_mode=["messages", "values"])
                out = state[1]["messages"]
            assert out[1].tool_calls == []
            assert out[1].response_metadata["finish_reason"] == "length"
            if out[1].invalid_tool_calls:
                seen_broken += 1
                again = agent.invoke({"messages": [*out, ("user", "And?")]})["messages"]
                assert again[-1].text == "Ok."
                assert all("malformed or truncated" in prompts[-1] for prompts in read.values())
        assert seen_broken
        assert ran == []

    def test_the_same_budget_runs_what_fits(
        self, chat: ChatEnsemble, say: Any, ran: list[Any], note: BaseTool
    ) -> None:
        say(calls(call("note", text="", far=False)), f"Ok.{END}")
        create_agent(chat, [note]).invoke(ASK)
        assert ran == [{"text": "", "far": False}]


class TestToolStrategy:
    def test_alone_the_grammar_makes_the_object(self, chat: ChatEnsemble, say: Any) -> None:
        """Nothing is said to the members: pico members talk nonsense, and obey."""
        say()
        out = create_agent(chat, [], response_format=ToolStrategy(Sum)).invoke(ASK)
        assert isinstance(out["structured_response"], Sum)
        assert kinds(out["messages"]) == ["human", "ai", "tool"]
        assert out["messages"][1].tool_calls[0]["name"] == "Sum"
        assert out["messages"][1].text == ""

    def test_another_tool_first(self, chat: ChatEnsemble, say: Any) -> None:
        say(calls(call("add", a=2, b=3)), calls(call("Sum", total=5, sure=True)))
        out = create_agent(chat, [add], response_format=ToolStrategy(Sum)).invoke(ASK)
        assert out["structured_response"] == Sum(total=5, sure=True)
        assert [m.content for m in out["messages"] if m.name == "add"] == ["5"]

    def test_a_call_must_be_made_even_where_the_member_wants_to_talk(
        self, chat: ChatEnsemble, say: Any
    ) -> None:
        say(f"I would rather talk.{END}")
        agent = create_agent(chat, [add], response_format=ToolStrategy(Sum))
        out = agent.invoke(ASK, {"recursion_limit": 4}, interrupt_after=["model"])["messages"][1]
        assert len(out.tool_calls) + len(out.invalid_tool_calls) >= 1
        assert out.text == ""

    def test_one_of_several_schemas(self, chat: ChatEnsemble, say: Any) -> None:
        class Place(BaseModel):
            """A place."""

            name: Literal["Lima", "Quito"]

        say(calls(call("Place", name="Quito")))
        out = create_agent(chat, [], response_format=ToolStrategy(Sum | Place)).invoke(ASK)
        assert out["structured_response"] == Place(name="Quito")

    def test_what_no_grammar_can_say_is_tried_again(self, chat: ChatEnsemble, say: Any) -> None:
        class Even(BaseModel):
            """An even number."""

            number: int

            @field_validator("number")
            @classmethod
            def _even(cls, value: int) -> int:
                if value % 2:
                    raise ValueError("must be even")
                return value

        read = say(calls(call("Even", number=3)), calls(call("Even", number=4)))
        out = create_agent(chat, [], response_format=ToolStrategy(Even)).invoke(ASK)
        assert out["structured_response"] == Even(number=4)
        assert "must be even" in read["qwen"][-1]

    def test_two_objects_are_too_many_and_are_tried_again(
        self, chat: ChatEnsemble, say: Any
    ) -> None:
        one, two = call("Sum", total=1, sure=True), call("Sum", total=2, sure=True)
        read = say(calls(one, two), calls(two))
        out = create_agent(chat, [], response_format=ToolStrategy(Sum)).invoke(ASK)
        assert out["structured_response"] == Sum(total=2, sure=True)
        assert "multiple structured responses" in read["qwen"][-1]


class Weather(TypedDict):
    """Weather."""

    degrees: Annotated[int, ..., "Celsius"]
    sky: Literal["blue", "grey"]


class TestProviderStrategy:
    def test_a_plain_schema_takes_this_way_by_the_profile(
        self, chat: ChatEnsemble, say: Any
    ) -> None:
        """No tools: ``bind_tools([])`` with a ``response_format``; content is the object alone."""
        assert chat.profile is not None
        assert chat.profile["structured_output"] is True
        read = say()
        out = create_agent(chat, [], response_format=Sum).invoke(ASK)
        assert isinstance(out["structured_response"], Sum)
        assert kinds(out["messages"]) == ["human", "ai"]
        assert Sum(**json.loads(out["messages"][-1].text)) == out["structured_response"]
        assert all('"total"' in prompts[-1] for prompts in read.values()), "they are told"

    @pytest.mark.parametrize(
        "schema",
        [Sum, Weather, Sum.model_json_schema()],
        ids=["pydantic", "typeddict", "json"],
    )
    def test_every_form_of_schema(self, chat: ChatEnsemble, say: Any, schema: Any) -> None:
        say()
        strategy = ProviderStrategy(schema, strict=True)
        out = create_agent(chat, [], response_format=strategy).invoke(ASK)
        said = json.loads(out["messages"][-1].text)
        assert list(said) in (["total", "sure"], ["degrees", "sky"])

    def test_tools_first_then_pure_json(self, chat: ChatEnsemble, say: Any) -> None:
        say(calls(call("add", a=2, b=3)), '{"total": 5, "sure": true}')
        out = create_agent(chat, [add], response_format=ProviderStrategy(Sum)).invoke(ASK)
        assert out["structured_response"] == Sum(total=5, sure=True)
        assert kinds(out["messages"]) == ["human", "ai", "tool", "ai"]
        assert out["messages"][1].text == ""

    @pytest.mark.parametrize("by", ["main", "fused"])
    @pytest.mark.parametrize("alone", [False, True])
    def test_with_tools_on_offer_no_prose_gets_in(
        self, chat: ChatEnsemble, say: Any, by: str, alone: bool
    ) -> None:
        asked = chat.solo("qwen") if alone else chat
        say("Well, I think that it is five." + END)
        agent = create_agent(
            asked.model_copy(update={"tools_by": by}), [add], response_format=ProviderStrategy(Sum)
        )
        said = agent.invoke(ASK, interrupt_after=["model"])["messages"][1]
        assert said.tool_calls or said.invalid_tool_calls or Sum(**json.loads(said.text))
        assert bool(said.text) != bool(said.tool_calls or said.invalid_tool_calls)

    @pytest.mark.parametrize("alone", [False, True])
    def test_a_call_stands_in_the_place_of_the_object_and_never_inside_it(
        self, chat: ChatEnsemble, say: Any, alone: bool
    ) -> None:
        asked = (chat.solo("qwen") if alone else chat).bind_tools([add], response_format=Sum)
        say(calls(call("add", a=2, b=3)), '{"total": 5, "su' + calls(call("add", a=2, b=3)))
        first, second = asked.invoke("Hi"), asked.invoke("Hi")
        assert first.tool_calls[0]["args"] == {"a": 2, "b": 3}
        assert first.text == ""
        assert second.tool_calls == second.invalid_tool_calls == []
        assert Sum(**json.loads(second.text)).total == 5

    def test_a_cut_object_is_an_error_and_no_half_object(
        self, chat: ChatEnsemble, say: Any
    ) -> None:
        say()
        short = chat.model_copy(update={"max_tokens": 3})
        with pytest.raises(Exception, match="Sum"):
            create_agent(short, [], response_format=ProviderStrategy(Sum)).invoke(ASK)


class TestStreams:
    SAID = (f"I look now.{calls(call('add', a=2, b=3))}", f"It is five.{END}")

    def test_messages(self, chat: ChatEnsemble, say: Any) -> None:
        agent = create_agent(chat, [add])
        say(*self.SAID)
        events = list(agent.stream(ASK, stream_mode="messages"))
        by_id: dict[str, list[Any]] = {}
        for message, _ in events:
            by_id.setdefault(message.id, []).append(message)
        first, result, last = by_id.values()
        assert len(first) > 5
        assert len(last) > 2, "text comes as it is decoded"
        whole = merged(first)
        assert whole.text == "I look now."
        assert [(c["name"], c["args"]) for c in whole.tool_calls] == [("add", {"a": 2, "b": 3})]
        assert [m.content for m in result] == ["5"]
        assert merged(last).text == "It is five."
        assert merged(last).usage_metadata is not None
        assert all(meta["langgraph_node"] in ("model", "tools") for _, meta in events)

    def test_updates_and_values_are_what_invoke_gives(self, chat: ChatEnsemble, say: Any) -> None:
        agent = create_agent(chat, [add])
        say(*self.SAID)
        wanted = [(m.type, m.text) for m in agent.invoke(ASK)["messages"]]
        say(*self.SAID)
        updates = [
            (m.type, m.text)
            for event in agent.stream(ASK, stream_mode="updates")
            for update in event.values()
            for m in update["messages"]
        ]
        assert updates == wanted[1:]
        say(*self.SAID)
        *_, values = agent.stream(ASK, stream_mode="values")
        assert [(m.type, m.text) for m in values["messages"]] == wanted

    async def test_async_messages(self, chat: ChatEnsemble, say: Any) -> None:
        say(*self.SAID)
        agent = create_agent(chat, [add])
        chunks = [m async for m, _ in agent.astream(ASK, stream_mode="messages")]
        first = [m for m in chunks if m.id == chunks[0].id]
        assert merged(first).tool_calls[0]["args"] == {"a": 2, "b": 3}
        assert "".join(m.text for m in chunks if m.id == chunks[-1].id) == "It is five."

    async def test_events(self, chat: ChatEnsemble, say: Any) -> None:
        say(*self.SAID)
        agent = create_agent(chat, [add])
        events = [e async for e in agent.astream_events(ASK, version="v2")]
        names = [e["event"] for e in events]
        assert names.count("on_chat_model_start") == names.count("on_chat_model_end") == 2
        assert names.count("on_tool_end") == 1
        streamed = [e["data"]["chunk"] for e in events if e["event"] == "on_chat_model_stream"]
        assert "".join(c.text for c in streamed) == "I look now.It is five."


class TestMemory:
    def test_a_thread_goes_on(self, chat: ChatEnsemble, say: Any) -> None:
        read = say(
            calls(call("add", a=2, b=3)), f"It is five.{END}", f"As I said.{END}", f"Who?{END}"
        )
        agent = create_agent(chat, [add], checkpointer=InMemorySaver())
        mine: Any = {"configurable": {"thread_id": "mine"}}
        agent.invoke(ASK, mine)
        out = agent.invoke({"messages": [("user", "Sure?")]}, mine)["messages"]
        assert kinds(out) == ["human", "ai", "tool", "ai", "human", "ai"]
        assert out[-1].text == "As I said."
        for prompts in read.values():
            assert "It is five." in prompts[-1]
            assert "What is 2 and 3?" in prompts[-1]
        agent.invoke({"messages": [("user", "Hello")]}, {"configurable": {"thread_id": "yours"}})
        assert all("five" not in prompts[-1] for prompts in read.values())

    def test_stopped_before_the_tools_and_resumed(self, chat: ChatEnsemble, say: Any) -> None:
        say(calls(call("add", a=2, b=3)), f"It is five.{END}")
        agent = create_agent(chat, [add], checkpointer=InMemorySaver(), interrupt_before=["tools"])
        mine: Any = {"configurable": {"thread_id": "1"}}
        assert kinds(agent.invoke(ASK, mine)["messages"]) == ["human", "ai"]
        out = agent.invoke(None, mine)["messages"]
        assert kinds(out) == ["human", "ai", "tool", "ai"]
        assert out[-1].text == "It is five."

    def test_a_tool_asks_back_and_is_answered(self, chat: ChatEnsemble, say: Any) -> None:
        @tool
        def ask_human(question: str) -> str:
            """Ask a human."""
            return str(interrupt(question))

        say(calls(call("ask_human", question="Which?")), f"Blue then.{END}")
        agent = create_agent(chat, [ask_human], checkpointer=InMemorySaver())
        mine: Any = {"configurable": {"thread_id": "1"}}
        (asked,) = agent.invoke(ASK, mine)["__interrupt__"]
        assert asked.value == "Which?"
        out = agent.invoke(Command(resume="blue"), mine)["messages"]
        assert out[2].content == "blue"
        assert out[-1].text == "Blue then."

    def test_a_human_changes_a_call(self, chat: ChatEnsemble, say: Any) -> None:
        read = say(calls(call("add", a=2, b=3)), f"It is nine.{END}")
        agent = create_agent(
            chat,
            [add],
            checkpointer=InMemorySaver(),
            middleware=[HumanInTheLoopMiddleware(interrupt_on={"add": True})],
        )
        mine: Any = {"configurable": {"thread_id": "1"}}
        assert agent.invoke(ASK, mine)["__interrupt__"]
        edited = {"name": "add", "args": {"a": 4, "b": 5}}
        decision = {"decisions": [{"type": "edit", "edited_action": edited}]}
        out = agent.invoke(Command(resume=decision), mine)["messages"]
        (result,) = [m.text for m in out if m.type == "tool"]
        assert result.endswith("9")
        assert all("a human reviewer" in prompts[-1] for prompts in read.values())

    def test_messages_survive_the_checkpoint(self, chat: ChatEnsemble, say: Any) -> None:
        say(calls(call("add", a=2, b=3)), f"It is five.{END}")
        saver = InMemorySaver()
        mine: Any = {"configurable": {"thread_id": "1"}}
        out = create_agent(chat, [add], checkpointer=saver).invoke(ASK, mine)["messages"]
        kept = create_agent(chat, [add], checkpointer=saver).get_state(mine).values["messages"]
        assert kept == out


class TestMiddleware:
    def test_summary_by_a_fraction_of_the_profile(self, chat: ChatEnsemble, say: Any) -> None:
        assert chat.profile is not None
        assert chat.profile["max_input_tokens"] == 4096
        read = say(f"They greeted.{END}", f"Fine.{END}")
        middleware = SummarizationMiddleware(
            chat,
            trigger=("fraction", 0.1),
            keep=("messages", 1),
            token_counter=chat.get_num_tokens_from_messages,
            summary_prompt="Sum up: {messages}",
        )
        agent = create_agent(chat, [], middleware=[middleware])
        long = [("user", "Hello " * 40), ("ai", "Hello " * 40), ("user", "How are you?")]
        out = agent.invoke({"messages": long})["messages"]
        assert out[-1].text == "Fine."
        assert "They greeted." in out[0].text
        assert len(out) == 3
        for prompts in read.values():
            assert "Hello Hello" in prompts[0]
            assert "Hello Hello" not in prompts[1]
            assert "They greeted." in prompts[1]

    def test_below_the_fraction_nothing_is_summed_up(self, chat: ChatEnsemble, say: Any) -> None:
        say(f"Fine.{END}")
        middleware = SummarizationMiddleware(
            chat, trigger=("fraction", 0.9), token_counter=chat.get_num_tokens_from_messages
        )
        out = create_agent(chat, [], middleware=[middleware]).invoke(ASK)["messages"]
        assert [m.text for m in out] == ["What is 2 and 3?", "Fine."]

    def test_counted_by_what_the_model_reported(self, chat: ChatEnsemble, say: Any) -> None:
        """``model_provider`` of messages is ``ls_provider``: reported usage may trigger."""
        say(f"Summed up.{END}", f"Fine.{END}")
        reported = {"input_tokens": 9000, "output_tokens": 9, "total_tokens": 9009}
        said = AIMessage(
            "Hi.",
            usage_metadata=reported,  # type: ignore[arg-type]
            response_metadata=chat.invoke("x", max_tokens=1).response_metadata,
        )
        say(f"Summed up.{END}", f"Fine.{END}")
        middleware = SummarizationMiddleware(chat, trigger=("tokens", 9000), keep=("messages", 1))
        agent = create_agent(chat, [], middleware=[middleware])
        out = agent.invoke({"messages": [("user", "Hello"), said, ("user", "And?")]})["messages"]
        assert "Summed up." in out[0].text

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_a_summary_prompt_that_does_not_fit_is_shortened(
        self, chat: ChatEnsemble, say: Any, asynchronous: bool
    ) -> None:
        """The typed error is what LangChain waits for: it cuts the middle and asks again."""
        read = say(f"Too long.{END}", f"Fine.{END}")
        middleware = SummarizationMiddleware(
            chat,
            trigger=("messages", 3),
            keep=("messages", 1),
            token_counter=chat.get_num_tokens_from_messages,
            summary_prompt="Sum up: {messages}",
            trim_tokens_to_summarize=None,
        )
        agent = create_agent(chat, [], middleware=[middleware])
        long = {"messages": [("user", "abc " * 3000), ("ai", "Hello"), ("user", "And?")]}
        out = (await agent.ainvoke(long) if asynchronous else agent.invoke(long))["messages"]
        assert "Too long." in out[0].text
        assert out[-1].text == "Fine."
        assert len(read["qwen"]) == 2, "the one that did not fit was never run"

    def test_what_does_not_fit_is_a_typed_error(self, chat: ChatEnsemble, say: Any) -> None:
        say()
        with pytest.raises(ContextOverflowError, match=r"'qwen'.* 4096 "):
            create_agent(chat, []).invoke({"messages": [("user", "abc " * 3000)]})
        with pytest.raises(ContextOverflowError):
            list(chat.stream("abc " * 3000))
        with pytest.raises(ConfigError):  # ours, too
            chat.invoke("abc " * 3000)

    def test_old_tool_results_are_cleared_by_the_models_count(
        self, chat: ChatEnsemble, say: Any
    ) -> None:
        history: list[Any] = [HumanMessage("Look up three.")]
        for number, country in enumerate(("Peru", "Chile", "Cuba")):
            asked = {"name": "capital", "args": {"country": country}, "id": f"c{number}"}
            history += [
                AIMessage("", tool_calls=[asked]),  # type: ignore[list-item]
                ToolMessage(f"result {country} " * 9, tool_call_id=f"c{number}"),
            ]
        total = chat.get_num_tokens_from_messages(history, [capital])
        edits = [ClearToolUsesEdit(trigger=total - 10, keep=1, placeholder="[gone]")]
        middleware = ContextEditingMiddleware(edits=edits, token_count_method="model")
        read = say(f"Done.{END}", f"Done.{END}")
        agent = create_agent(chat, [capital], middleware=[middleware])
        assert agent.invoke({"messages": history})["messages"][-1].text == "Done."
        for prompts in read.values():
            assert prompts[0].count("[gone]") == 2
            assert "result Cuba" in prompts[0]
        edits[0].trigger = total + 10
        agent.invoke({"messages": history})
        assert all("[gone]" not in prompts[1] for prompts in read.values())

    def test_a_model_that_selects_tools(self, chat: ChatEnsemble, say: Any) -> None:
        """The choice is structured output over an enum of names: it cannot name another tool."""
        read = say('{"tools": ["capital"]}', f"Lima.{END}")
        middleware = LLMToolSelectorMiddleware(model=chat, max_tools=1)
        agent = create_agent(chat, [add, capital], middleware=[middleware])
        assert agent.invoke(ASK)["messages"][-1].text == "Lima."
        assert '"name": "capital"' in read["qwen"][-1]
        assert '"name": "add"' not in read["qwen"][-1]

    def test_another_model_where_this_one_refuses(self, chat: ChatEnsemble, say: Any) -> None:
        say(f"Fine.{END}")
        refuses = chat.model_copy(update={"thinking": "each"}).solo("zephyr")
        agent = create_agent(refuses, [], middleware=[ModelFallbackMiddleware(chat)])
        assert agent.invoke(ASK)["messages"][-1].text == "Fine."


class TestToolChoice:
    @pytest.mark.parametrize("choice", ["any", "required", True])
    def test_some_tool(self, chat: ChatEnsemble, say: Any, choice: Any) -> None:
        say(f"No.{END}")
        bound = chat.bind_tools([flag, day], tool_choice=choice, parallel_tool_calls=False)
        message = bound.invoke("Hello!")
        assert [c["name"] in ("flag", "day") for c in message.tool_calls] == [True]
        assert message.text == ""

    @pytest.mark.parametrize(
        "choice",
        [
            "day",
            {"type": "function", "function": {"name": "day"}},
            {"type": "tool", "name": "day"},
        ],
        ids=["name", "openai", "anthropic"],
    )
    @pytest.mark.parametrize("by", ["main", "fused"])
    def test_this_tool(self, chat: ChatEnsemble, say: Any, choice: Any, by: str) -> None:
        say()
        bound = chat.bind_tools([flag, day], tool_choice=choice, parallel_tool_calls=False)
        (made,) = bound.invoke("Hello!", tools_by=by).tool_calls
        assert made["name"] == "day"
        assert made["args"]["of"] in ("mon", "tue")

    @pytest.mark.parametrize("choice", [None, "auto", False])
    def test_the_members_decide(self, chat: ChatEnsemble, say: Any, choice: Any) -> None:
        bound = chat.bind_tools([flag, day], tool_choice=choice)
        say(f"No.{END}", calls(call("day", of="mon")))
        assert bound.invoke("Hello!").text == "No."
        assert bound.invoke("Hello!").tool_calls[0]["args"] == {"of": "mon"}

    def test_none(self, chat: ChatEnsemble, say: Any) -> None:
        read = say(calls(call("day", of="mon")))
        message = chat.bind_tools([flag, day], tool_choice="none").invoke("Hello!", max_tokens=9)
        assert message.tool_calls == message.invalid_tool_calls == []
        assert '"name": "day"' not in read["qwen"][0]

    def test_no_tools_at_all(self, chat: ChatEnsemble, say: Any) -> None:
        say(f"Hi.{END}", f"Hi.{END}")
        plain = chat.invoke("Hello!")
        assert chat.bind_tools([]).invoke("Hello!").text == plain.text
        with pytest.raises(ConfigError, match="without tools"):
            chat.bind_tools([], tool_choice="any")


@tool
def flag(on: bool) -> str:
    """Set a flag."""
    return str(on)


@tool
def day(of: Literal["mon", "tue"]) -> str:
    """Name a day."""
    return of


class TestGrammars:
    @pytest.mark.parametrize(
        ("grammar", "form"),
        [
            ({"regex": "[0-9]{1,3} (cats|dogs)"}, r"[0-9]{1,3} (cats|dogs)"),
            ({"lark": 'start: "yes " | "no " WHY\nWHY: /[a-z]{2,5}/'}, r"yes |no [a-z]{2,5}"),
            ({"ebnf": 'root ::= "a" [0-9] | "b"'}, r"a[0-9]|b"),
            ({"json_schema": {"enum": ["red", "green"]}}, r'"red"|"green"'),
        ],
        ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
    )
    @pytest.mark.parametrize("temperature", [0.0, 2.0])
    def test_of_the_callers_own_hold_the_text(
        self, chat: ChatEnsemble, say: Any, grammar: Any, form: str, temperature: float
    ) -> None:
        say("Anything else.", "Anything else.")
        asked = {"grammar": grammar, "temperature": temperature, "seed": 5}
        whole = chat.invoke("Hi", **asked)
        assert re.fullmatch(form, whole.text)
        assert whole.response_metadata["finish_reason"] == "stop"
        assert "".join(c.text for c in chat.stream("Hi", **asked)) == whole.text


class TestLegacyReAct:
    """Agents of old bind a stop string over several tokens and read the text."""

    SAID = "Thought: I add.\nAction: add\nAction Input: 2, 3\nObservation: 99\nFinal Answer: 99"

    def test_the_answer_ends_before_the_observation(self, chat: ChatEnsemble, say: Any) -> None:
        bound = chat.bind(stop=["\nObservation"])
        wanted = self.SAID.split("\nObservation")[0]
        say(self.SAID, self.SAID)
        assert bound.invoke("What is 2 and 3?").text == wanted
        chunks = [chunk.text for chunk in bound.stream("What is 2 and 3?")]
        assert "".join(chunks) == wanted
        assert not any("\nO" in chunk for chunk in chunks)

    def test_two_rounds(self, chat: ChatEnsemble, say: Any) -> None:
        read = say(self.SAID, f"Final Answer: 5{END}")
        bound = chat.bind(stop=["\nObservation"])
        pad = ""
        for _ in range(2):
            said = bound.invoke(f"What is 2 and 3?\n{pad}").text
            if "Action Input: " in said:
                a, b = said.split("Action Input: ")[1].split(", ")
                pad += f"{said}\nObservation: {int(a) + int(b)}\n"
        assert said == "Final Answer: 5"
        assert all("Observation: 5" in prompts[-1] for prompts in read.values())


@pytest.fixture(scope="module")
def toys() -> Iterator[ChatEnsemble]:
    with ChatEnsemble.demo(max_tokens=100) as made:
        yield made


class TestMembersThatShip:
    """The toys of the demo: nothing is chosen for them, and everything is well-formed."""

    @pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
    def test_structured_answers(self, toys: ChatEnsemble, strategy: Any) -> None:
        out = create_agent(toys, [], response_format=strategy(Sum)).invoke(ASK)
        assert isinstance(out["structured_response"], Sum)

    @pytest.mark.parametrize("by", ["main", "fused"])
    def test_whatever_is_called_can_be_called(self, toys: ChatEnsemble, by: str) -> None:
        agent = create_agent(
            toys.model_copy(update={"tools_by": by}),
            [calculator, country_fact],
            middleware=[ModelCallLimitMiddleware(run_limit=2, exit_behavior="end")],
        )
        for asked in ("What is 12 * 34?", "What is the capital of Peru?", "Hello!"):
            out = agent.invoke({"messages": [("user", asked)]})["messages"]
            called = [c for m in out if isinstance(m, AIMessage) for c in m.tool_calls]
            results = [m for m in out if isinstance(m, ToolMessage) and m.status == "success"]
            assert [c["id"] for c in called] == [m.tool_call_id for m in results]
            for made in called:
                names = {"calculator": ["expression"], "country_fact": ["country", "field"]}
                assert sorted(made["args"]) == names[made["name"]]
