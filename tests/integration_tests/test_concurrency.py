"""Many conversations over one ensemble at once: each gets the answer it would get alone."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END as GRAPH_END
from langgraph.graph import START, MessagesState, StateGraph

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.testing.chat_tools import said
from tests import actor
from tests.agent_stage import END, call, calls, pair

MANY = 50


@tool
def f(n: int) -> str:
    """Twice."""
    return f"R{2 * n}!"


def conduct(prompt: str) -> str | None:
    """Main calls the tool with the number of the conversation, then answers with it."""
    asked = re.findall(r"N(\d+)\.", prompt)[-1]
    if "tool_response" in prompt:
        return f"Got [{asked}]{END}"
    return calls(call("f", n=int(asked))) if "<tools>" in prompt else None


@pytest.fixture(scope="module")
def stage() -> Iterator[actor.Stage]:
    with pytest.MonkeyPatch.context() as patch:
        yield actor.staged(patch)


@pytest.fixture(scope="module")
def chat(stage: actor.Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatEnsemble]:
    members = pair(tmp_path_factory.mktemp("many"), positions=1024)
    with ChatEnsemble(members=members, fusion="average", max_tokens=60) as made:
        stage.play(qwen=conduct)
        yield made


@pytest.fixture(scope="module")
def agent(chat: ChatEnsemble) -> Any:
    return create_agent(chat, [f], checkpointer=InMemorySaver())


def asked(number: int) -> Any:
    return {"messages": [("user", f"N{number}.")]}


def thread(way: str, number: int) -> Any:
    return {"configurable": {"thread_id": f"{way}{number}"}}


def told(state: Any) -> list[Any]:
    """Everything that was said, without ids; and how far each member agreed with every word."""
    return [
        said(m) | {"agreement": m.response_metadata["ensemble"]["agreement"]}
        if isinstance(m, AIMessage)
        else (m.type, m.text)
        for m in state["messages"]
    ]


@pytest.fixture(scope="module")
def wanted(agent: Any) -> list[Any]:
    """One conversation after the other, and all differ."""
    found = [told(agent.invoke(asked(n), thread("alone", n))) for n in range(MANY)]
    for number, (human, first, result, last) in enumerate(found):
        assert human == ("human", f"N{number}.")
        assert first["calls"] == [("f", {"n": number})]
        assert result == ("tool", f"R{2 * number}!")
        assert last["text"] == f"Got [{number}]"
    assert len({last["agreement"]["zephyr"] for *_, last in found}) > MANY // 2, "they differ"
    return found


async def test_fifty_agents_as_tasks(agent: Any, wanted: list[Any]) -> None:
    states = await asyncio.gather(
        *(agent.ainvoke(asked(n), thread("task", n)) for n in range(MANY))
    )
    assert [told(state) for state in states] == wanted


def test_fifty_agents_in_threads_some_streamed(agent: Any, wanted: list[Any]) -> None:
    def run(number: int) -> list[Any]:
        if number % 2:
            return told(agent.invoke(asked(number), thread("thread", number)))
        *_, (_, state) = agent.stream(
            asked(number), thread("thread", number), stream_mode=["messages", "values"]
        )
        return told(state)

    with ThreadPoolExecutor(MANY) as pool:
        assert list(pool.map(run, range(MANY))) == wanted


async def test_a_graph_of_ones_own(chat: ChatEnsemble) -> None:
    """Its own words only: every member's caches decide what is said."""

    async def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await chat.ainvoke(state["messages"], max_tokens=6)]}

    graph = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_edge(START, "speak")
    graph.add_edge("speak", GRAPH_END)
    app = graph.compile(checkpointer=InMemorySaver())
    words = ("fox", "king", "Paris", "stars", "spring", "forest", "ball", "daughter")
    asks = [[SystemMessage(w), HumanMessage(f"{v} N{n}.")] for n, (w, v) in enumerate(
        (w, v) for w in words[:5] for v in words[:5]
    )]  # fmt: skip
    alone = [(await chat.ainvoke(messages, max_tokens=6)).text for messages in asks]
    assert len(dict.fromkeys(alone)) > 5, "they differ"
    together = await asyncio.gather(
        *(app.ainvoke({"messages": m}, thread("own", n)) for n, m in enumerate(asks))  # type: ignore[arg-type]
    )
    assert [state["messages"][-1].text for state in together] == alone


async def test_cancelling_some_does_not_disturb_the_others(
    agent: Any, chat: ChatEnsemble, wanted: list[Any]
) -> None:
    """Cancelled in the middle, closed in the middle, left alone: side by side."""
    count = 15
    kept = [n for n in range(count) if n % 3 == 0]

    async def cancelled(number: int) -> None:
        started = asyncio.Event()

        async def read() -> None:
            async for _ in agent.astream(
                asked(number), thread("cancelled", number), stream_mode="messages"
            ):
                started.set()

        reading = asyncio.create_task(read())
        await started.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    async def closed(number: int) -> None:
        async with aclosing(chat.astream(f"N{number}.")) as chunks:  # type: ignore[type-var]
            async for _ in chunks:
                break

    async def whole(number: int) -> list[Any]:
        return told(await agent.ainvoke(asked(number), thread("kept", number)))

    ways = {0: whole, 1: cancelled, 2: closed}
    done = await asyncio.gather(*(ways[n % 3](n) for n in range(count)))
    assert [done[n] for n in kept] == [wanted[n] for n in kept]
    assert told(agent.invoke(asked(7), thread("after", 7))) == wanted[7]


def test_closing_streams_in_threads_does_not_disturb_the_others(
    agent: Any, chat: ChatEnsemble, wanted: list[Any]
) -> None:
    stop = threading.Event()

    def disturb(number: int) -> int:
        read = 0
        while not stop.is_set():
            with closing(chat.stream(f"N{number}.", max_tokens=9)) as chunks:  # type: ignore[type-var]
                read += next(chunks) is not None
        return read

    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(disturb, n) for n in range(3)]
        states = list(pool.map(lambda n: agent.invoke(asked(n), thread("disturbed", n)), range(5)))
        stop.set()
        assert all(other.result() for other in others)
    assert [told(state) for state in states] == wanted[:5]


def test_nothing_stays_open(stage: actor.Stage, chat: ChatEnsemble) -> None:
    """All caches of the tests above are freed."""
    import gc

    from langchain_ensemble.members.session import HFSession

    gc.collect()
    open_rows = [s.lengths for s in gc.get_objects() if type(s) is HFSession and s.lengths]
    assert open_rows == []
