"""Agents and graphs over ChatEnsemble: what they ask of a chat model, row by row, no weights."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakValueDictionary

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    LLMToolSelectorMiddleware,
    SummarizationMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.adapter import engines
from langchain_ensemble.chat.conversation import ChatRequest, Conversation
from tests.scripted_engine import (
    Said,
    ScriptedEnsemble,
    default_chat_script,
    spelled_call,
)


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "build_engine", lambda p, f: ScriptedEnsemble(p, fusion=f))
    monkeypatch.setattr(engines, "_handles", WeakValueDictionary())


def make(**settings: Any) -> ChatEnsemble:
    return ChatEnsemble(**{"members": {"a": "hub/a", "b": "hub/b"}, **settings})


def scripted(chat: ChatEnsemble) -> ScriptedEnsemble:
    return cast("ScriptedEnsemble", chat.engine)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    added.append((a, b))
    return a + b


added: list[tuple[int, int]] = []


class Weather(BaseModel):
    """The weather."""

    sunny: bool
    degrees: int


def calls_then_answers(
    conversation: Conversation, chat: ChatRequest, answer: int
) -> Sequence[Said]:
    """Call ``add`` once after a user's turn, then say what it gave."""
    last = conversation.messages[-1]
    if last.role == "user" and any(tool.name == "add" for tool in conversation.tools):
        return spelled_call(0, "add", {"a": 2, "b": 3})
    if last.role == "tool" and chat.grammar is None and chat.call == "auto":
        return ["it ", "is ", last.text]
    return default_chat_script(conversation, chat, answer)


def agent_of(chat: ChatEnsemble, **settings: Any) -> Any:
    scripted(chat).chat_script = calls_then_answers
    added.clear()
    return create_agent(chat, **settings)


ASK = {"messages": [("user", "2 + 3?")]}


class TestAgents:
    def test_without_tools(self) -> None:
        state = agent_of(make(), system_prompt="be brief").invoke(ASK)
        assert state["messages"][-1].text.startswith("you said '2 + 3?'")
        assert state["messages"][-1].response_metadata["model_provider"] == "ensemble"

    def test_tool_is_called_and_read_back(self) -> None:
        chat = make()
        state = agent_of(chat, tools=[add], name="adder", system_prompt="be brief").invoke(ASK)
        kinds = [type(m) for m in state["messages"]]
        assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]
        assert added == [(2, 3)]
        assert state["messages"][-1].text == "it is 5"
        conversation = scripted(chat).asked[-1][0]
        assert [turn.role for turn in conversation.messages] == [
            "system",
            "user",
            "assistant",
            "tool",
        ]
        assert conversation.messages[2].calls[0].id == conversation.messages[3].call_id

    def test_async(self) -> None:
        state = asyncio.run(agent_of(make(), tools=[add]).ainvoke(ASK))
        assert state["messages"][-1].text == "it is 5"

    def test_cut_call_is_never_executed(self) -> None:
        chat = make(max_tokens=2)
        agent = agent_of(chat, tools=[add])
        for way in (
            lambda: agent.invoke(ASK)["messages"],
            lambda: [m for m, _ in agent.stream(ASK, stream_mode="messages")],
        ):
            messages = way()
            assert added == []
            assert not any(isinstance(m, ToolMessage) and m.status == "success" for m in messages)
        last = agent.invoke(ASK)["messages"][-1]
        assert last.invalid_tool_calls[0]["name"] == "add"
        assert last.response_metadata["finish_reason"] == "length"

    def test_cut_call_is_answered_in_the_next_turn(self) -> None:
        chat = make(max_tokens=2)
        agent = agent_of(chat, tools=[add])
        state = agent.invoke(ASK)
        agent.invoke({"messages": [*state["messages"], ("user", "again")]})
        turns = scripted(chat).asked[-1][0].messages
        assert [turn.role for turn in turns] == ["user", "assistant", "tool", "user"]
        assert turns[1].calls[0].id == turns[2].call_id
        assert turns[2].failed

    def test_tool_strategy_with_tools(self) -> None:
        """Both the agent's tools and the schema are offered, and a call is demanded."""
        chat = make()
        agent = agent_of(chat, tools=[add], response_format=ToolStrategy(Weather))

        def script(conversation: Conversation, chat: ChatRequest, answer: int) -> Sequence[Said]:
            if conversation.messages[-1].role == "user":
                return spelled_call(0, "add", {"a": 2, "b": 3})
            return spelled_call(0, "Weather", {"sunny": True, "degrees": 3})

        scripted(chat).chat_script = script
        state = agent.invoke(ASK)
        assert state["structured_response"] == Weather(sunny=True, degrees=3)
        assert added == [(2, 3)]
        conversation, _, request = scripted(chat).asked[0]
        assert request.call == "required"
        assert [tool.name for tool in conversation.tools] == ["add", "Weather"]

    @pytest.mark.parametrize("how", [Weather, ProviderStrategy(Weather)])
    def test_provider_strategy_without_tools(self, how: Any) -> None:
        """The profile says that structured output is native, so a schema alone chooses it."""
        chat = make()
        state = agent_of(chat, tools=[], response_format=how).invoke(ASK)
        assert state["structured_response"] == Weather(sunny=True, degrees=3)
        request = scripted(chat).asked[-1][2]
        assert request.grammar is not None
        assert request.call == "auto"

    def test_provider_strategy_with_tools(self) -> None:
        chat = make()
        agent = agent_of(chat, tools=[add], response_format=ProviderStrategy(Weather, strict=True))
        state = agent.invoke(ASK)
        assert added == [(2, 3)]
        assert state["structured_response"] == Weather(sunny=True, degrees=3)

    def test_messages_are_streamed(self) -> None:
        agent = agent_of(make(), tools=[add])
        chunks = [m for m, _ in agent.stream(ASK, stream_mode="messages")]
        said = [m.text for m in chunks if m.type == "AIMessageChunk" and m.text]
        assert said == ["it ", "is ", "5"]
        fragments = [f for m in chunks for f in getattr(m, "tool_call_chunks", [])]
        assert "".join(f["args"] or "" for f in fragments) == '{"a": 2, "b": 3}'
        assert added == [(2, 3)]

    def test_messages_are_streamed_async(self) -> None:
        agent = agent_of(make(), tools=[add])

        async def ask() -> list[str]:
            stream = agent.astream(ASK, stream_mode="messages")
            return [m.text async for m, _ in stream if m.type == "AIMessageChunk" and m.text]

        assert asyncio.run(ask()) == ["it ", "is ", "5"]

    def test_checkpointer_and_resume(self) -> None:
        saver = InMemorySaver()
        config: Any = {"configurable": {"thread_id": "1"}}
        first = agent_of(make(), tools=[add], checkpointer=saver, interrupt_before=["tools"])
        state = first.invoke(ASK, config)
        assert added == []
        assert state["messages"][-1].tool_calls
        again = agent_of(make(), tools=[add], checkpointer=saver, interrupt_before=["tools"])
        state = again.invoke(None, config)
        assert added == [(2, 3)]
        assert state["messages"][-1].text == "it is 5"


class TestMiddleware:
    def test_summarisation_where_the_context_is_full(self) -> None:
        """The middleware catches ContextOverflowError of its own call, and asks again, shorter."""
        chat = make()
        engine = scripted(chat)
        middleware = SummarizationMiddleware(
            model=chat, trigger=("messages", 3), keep=("messages", 1)
        )
        agent = create_agent(chat, middleware=[middleware])
        history: list[Any] = [
            HumanMessage("word " * 900),
            AIMessage("yes"),
            HumanMessage("and now?"),
        ]
        engine.context = 900
        engine.chat_script = lambda *_: ["a summary"]
        state = agent.invoke({"messages": history})
        asked = [engine.count_chat(conversation) for conversation, _, _ in engine.asked]
        assert len(asked) == 3
        assert asked[0] > 900 > asked[1] > asked[2]
        assert "a summary" in state["messages"][0].text
        assert state["messages"][1].text == "and now?"

    def test_fraction_trigger_needs_the_profile(self) -> None:
        chat = make(profile={"max_input_tokens": 40})
        middleware = SummarizationMiddleware(
            model=chat, trigger=("fraction", 0.5), keep=("messages", 1)
        )
        scripted(chat).chat_script = lambda *_: ["short"]
        agent = create_agent(chat, middleware=[middleware])
        long = [HumanMessage("word " * 60), AIMessage("yes"), HumanMessage("and now?")]
        state = agent.invoke({"messages": long})
        assert "word word" not in state["messages"][0].text

    def test_context_editing_counts_with_the_model(self) -> None:
        chat = make()
        edit = ClearToolUsesEdit(trigger=5, keep=0)
        middleware = ContextEditingMiddleware(edits=[edit], token_count_method="model")
        state = agent_of(chat, tools=[add], middleware=[middleware]).invoke(ASK)
        assert state["messages"][-1].text.startswith("it is")
        assert "[cleared]" in scripted(chat).asked[-1][0].messages[-1].text

    def test_tool_selection(self) -> None:
        chat = make()

        def other(x: str) -> str:
            """Something else."""
            return x

        middleware = LLMToolSelectorMiddleware(model=chat, max_tools=1)
        agent = agent_of(chat, tools=[add, other], middleware=[middleware])

        def script(conversation: Conversation, chat: ChatRequest, answer: int) -> Sequence[Said]:
            if chat.grammar is not None:
                return ['{"tools": ["add"]}']
            return calls_then_answers(conversation, chat, answer)

        scripted(chat).chat_script = script
        state = agent.invoke(ASK)
        assert state["messages"][-1].text == "it is 5"


class TestGraphs:
    def test_fifty_conversations_do_not_mix(self) -> None:
        """Threads and tasks over one ensemble: every conversation has its own answers."""
        chat = make()
        scripted(chat).chat_script = lambda conversation, *_: [
            word for turn in conversation.messages for word in (turn.text, " ")
        ]

        async def answer(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await chat.ainvoke(state["messages"])]}

        graph: Any = StateGraph(MessagesState)
        graph.add_node("chat", answer)
        graph.add_edge(START, "chat")
        app = graph.compile(checkpointer=InMemorySaver())

        async def talk(number: int) -> list[str]:
            config = {"configurable": {"thread_id": str(number)}}
            said = []
            for turn in range(3):
                state = await app.ainvoke({"messages": [("user", f"{number}:{turn}")]}, config)
                said.append(state["messages"][-1].text.strip())
            return said

        async def all_of_them() -> list[list[str]]:
            return await asyncio.gather(*(talk(number) for number in range(50)))

        talks = asyncio.run(all_of_them())
        for number, said in enumerate(talks):
            assert said[0] == f"{number}:0"
            assert said[-1].endswith(f"{number}:2")
            assert {word.split(":")[0] for word in said[-1].split()} == {str(number)}
        assert threading.active_count() < 60
        assert scripted(chat).running == 0


class TestChains:
    def test_prompt_chat_parser(self) -> None:
        prompt = ChatPromptTemplate.from_messages([("system", "be {how}"), ("user", "{ask}")])
        chain = prompt | make() | StrOutputParser()
        given = {"how": "brief", "ask": "hi"}
        whole = chain.invoke(given)
        assert whole.startswith("you said 'hi'")
        assert "".join(chain.stream(given)) == whole
        v1 = prompt | make(output_version="v1") | StrOutputParser()
        assert v1.invoke(given) == whole
        assert "".join(v1.stream(given)) == whole

    def test_stop_of_a_legacy_agent(self) -> None:
        bound = make().bind(stop=["\nObservation", "answer"])
        assert bound.invoke("hi").text == "you said 'hi', and this is "

    def test_no_warning_in_the_common_ways(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make().bind_tools([add]).invoke([SystemMessage("x"), HumanMessage("hi")])
            list(make().with_structured_output(Weather).stream("hi"))
