"""What users of other local chat models complain about (P1-P20), where a chat model can have it.

Members are told what to say where that is the point. P2, P17 and P20 of members that say what they
want: ``tests/unit_tests/test_chat_pitfalls.py``; P19 concerns the package as a whole.
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ContextOverflowError, OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from pydantic import BaseModel, Field, field_validator

from langchain_ensemble import ChatEnsemble, ConfigError, EnsembleWarning, MemberError
from langchain_ensemble.members import registry
from langchain_ensemble.testing.chat_tools import said
from tests import actor, chat_pico
from tests.agent_stage import END, call, calls, pair

ASK = "What is the capital of France?"


@pytest.fixture(scope="module")
def stage() -> Iterator[actor.Stage]:
    with pytest.MonkeyPatch.context() as patch:
        yield actor.staged(patch)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return dict(pair(tmp_path_factory.mktemp("pitfalls"), positions=1024))


@pytest.fixture(scope="module")
def chat(stage: actor.Stage, members: dict[str, str]) -> Iterator[ChatEnsemble]:
    with ChatEnsemble(members=members, fusion="unite", max_tokens=8) as made:
        yield made


@pytest.fixture(autouse=True)
def _own_words(stage: actor.Stage) -> None:
    stage.play()


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def test_p01_prompt_is_not_echoed(chat: ChatEnsemble) -> None:
    text = chat.invoke(ASK).text
    assert ASK not in text
    assert "".join(chunk.text for chunk in chat.stream(ASK)) == text != ""


@pytest.mark.parametrize("alone", [False, True])
def test_p02_an_answer_ends_where_the_template_ends_a_turn(
    stage: actor.Stage, tmp_path: Path, alone: bool
) -> None:
    """Configs leave that END out at times; ``generate`` would ramble on."""
    folder = chat_pico.build(
        "qwen2", tmp_path / "q", chat_pico.QWEN, chat_pico.QWEN_MARKERS, seed=2
    )
    other = chat_pico.build("llama", tmp_path / "z", chat_pico.ZEPHYR, chat_pico.ZEPHYR_MARKERS)
    both = {"qwen": str(folder)} if alone else {"qwen": str(folder), "zephyr": str(other)}
    with ChatEnsemble(members=both, fusion="average", max_tokens=90) as chat:
        stage.play(qwen=actor.lines(f"Paris.{END}", call("add", a=1, b=2) + END))
        message = chat.invoke(ASK)
        assert message.text == "Paris."
        assert message.response_metadata["finish_reason"] == "stop"
        made = chat.bind_tools([add]).invoke(ASK)
        assert [c["args"] for c in made.tool_calls] == [{"a": 1, "b": 2}]
        assert made.response_metadata["finish_reason"] == "tool_calls"


def test_p03_stop_over_token_borders_field_and_call(chat: ChatEnsemble, stage: actor.Stage) -> None:
    for field, given in (("lo wo", "rld"), ("rld", "lo wo"), ("lo wo", None), (None, "lo wo")):
        stage.play(qwen=actor.lines("Hello world", "Hello world"))
        asked = chat.model_copy(update={"stop": [field] if field else [], "max_tokens": 40})
        stop = [given] if given else None
        message = asked.invoke("Hi", stop=stop)
        assert message.text == "Hel"
        assert message.response_metadata["finish_reason"] == "stop"
        assert "".join(c.text for c in asked.stream("Hi", stop=stop)) == "Hel"


def test_p04_call_arguments_count_and_typos_are_told(chat: ChatEnsemble) -> None:
    short = chat.invoke(ASK, max_tokens=2)
    assert short.usage_metadata is not None
    assert short.usage_metadata["output_tokens"] <= 3
    hot = [chat.invoke(ASK, temperature=3.0, seed=seed).text for seed in range(3)]
    assert len(dict.fromkeys([*hot, chat.invoke(ASK).text])) == 4
    assert chat.invoke(ASK, temperature=3.0, seed=1).text == hot[1]
    with pytest.warns(EnsembleWarning, match=r"'temprature'.*'temperature'"):
        chat.invoke(ASK, temprature=0.5)
    with pytest.raises(ConfigError, match=r"'temprature'.*'temperature'"):
        ChatEnsemble(members=["x"], temprature=0.5)


async def test_p05_async_is_native(chat: ChatEnsemble) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.002)
            ticks += 1

    ticking = asyncio.create_task(tick())
    whole = (await chat.ainvoke(ASK)).text
    streamed = [chunk.text async for chunk in chat.astream(ASK)]
    ticking.cancel()
    assert "".join(streamed) == whole == chat.invoke(ASK).text
    assert ticks > 3  # the event loop was free meanwhile


def test_p06_errors_in_a_stream_surface_at_once(
    chat: ChatEnsemble, stage: actor.Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(3))
    collect = actor._Session.collect

    def breaks(self: Any, pending: Any) -> Any:
        if next(steps, None) is None:
            raise ArithmeticError("third step")
        return collect(self, pending)

    monkeypatch.setattr(actor._Session, "collect", breaks)
    start = time.monotonic()
    with pytest.raises(ArithmeticError, match="third step"):
        list(chat.stream(ASK))
    monkeypatch.undo()
    assert time.monotonic() - start < 5
    assert chat.invoke(ASK).text, "the next call is right"


def test_p06_nothing_is_computed_after_the_reader_left(
    chat: ChatEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    collect = actor._Session.collect
    monkeypatch.setattr(actor._Session, "collect", lambda s, p: steps.append(1) or collect(s, p))
    for _ in chat.stream(ASK, max_tokens=200):
        break
    taken = len(steps)
    time.sleep(0.1)
    assert len(steps) == taken < 20


def test_p07_tools_reach_every_member_and_calls_are_read(
    chat: ChatEnsemble, stage: actor.Stage
) -> None:
    read = stage.play(qwen=actor.lines(calls(call("add", a=2, b=3))))
    message = chat.bind_tools([add]).invoke(ASK, max_tokens=90)
    assert all('"name": "add"' in prompts[0] for prompts in read.values())
    assert message.text == ""
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [("add", {"a": 2, "b": 3})]


def test_p07_any_message_may_be_the_last(chat: ChatEnsemble) -> None:
    asked = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 1}, "id": "abc123"}])  # type: ignore[list-item]
    for last in (
        [asked, ToolMessage("2", tool_call_id="abc123")],
        [AIMessage("Well, ")],
        [SystemMessage("Be brief.")],
    ):
        assert chat.bind_tools([add], tool_choice="none").invoke([HumanMessage(ASK), *last]).text


class Found(BaseModel):
    """What was found."""

    city: str = Field(max_length=6)
    sure: bool

    @field_validator("city")
    @classmethod
    def _known(cls, city: str) -> str:
        if city == "Nowhere"[:6]:
            raise ValueError("no such city")
        return city


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_p08_structured_output_is_an_object_or_an_error(
    chat: ChatEnsemble, stage: actor.Stage, method: Any
) -> None:
    asked = chat.model_copy(update={"max_tokens": 120})
    held = asked.with_structured_output(Found, method=method)
    stage.play(qwen=actor.lines("I would rather tell a story."))
    assert isinstance(held.invoke(ASK), Found), "whatever it wants to say"
    given = {"city": "Nowher", "sure": True}
    spelled = calls(call("Found", **given)) if "func" in method else json.dumps(given)
    stage.play(qwen=actor.lines(spelled, spelled))
    with pytest.raises(OutputParserException, match="no such city"):
        held.invoke(ASK)
    raw: Any = asked.with_structured_output(Found, method=method, include_raw=True).invoke(ASK)
    assert raw["parsed"] is None
    assert "no such city" in str(raw["parsing_error"])


def test_p09_cache_never_gives_another_models_answer(
    chat: ChatEnsemble, members: dict[str, str]
) -> None:
    cache = InMemoryCache()
    made: list[dict[str, Any]] = [
        {},
        {"fusion": "average"},
        {"main": "zephyr"},
        {"weights": {"qwen": 0.9, "zephyr": 0.1}},
        {"max_tokens": 3},
        {"stop": ["e"]},
        {"temperature": 2.0, "seed": 1},
        {"thinking": "main"},
        {"tools_by": "fused"},
        {"members": {"qwen": members["qwen"]}},
        {"open_boundaries": "vote"},
    ]
    strings = []
    for settings in made:
        other = ChatEnsemble(**{"members": members, "fusion": "unite", **settings})
        strings.append(other._get_llm_string())
    schema = {"title": "x", "type": "object", "properties": {}}
    bound: list[dict[str, Any]] = [
        {"temperature": 0.5},
        {"model": "qwen"},
        {"tools": [{"name": "add", "description": "", "parameters": {}}]},
        {"response_format": schema},
        {"grammar": {"regex": "a"}},
        {"n": 2},
    ]
    strings += [chat._get_llm_string(**given) for given in bound]
    strings.append(chat._get_llm_string(stop=["x"]))
    assert len(dict.fromkeys(strings)) == len(strings)
    cached = chat.model_copy(update={"cache": cache})
    calls_made: list[dict[str, Any]] = [{}, {"max_tokens": 2}, {"model": "zephyr"}, {"stop": ["a"]}]
    fresh = [chat.invoke(ASK, **given).text for given in calls_made]
    for _ in range(2):
        assert [cached.invoke(ASK, **given).text for given in calls_made] == fresh


def test_p10_tokens_are_counted_as_they_are_read(chat: ChatEnsemble, stage: actor.Stage) -> None:
    """Tools, calls and results included; and nothing is downloaded (sockets are off)."""
    asked = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 1}, "id": "1"}])  # type: ignore[list-item]
    history = [SystemMessage("x"), HumanMessage(ASK), asked, ToolMessage("2", tool_call_id="1")]
    stage.play(qwen=lambda _: f"Two.{END}")
    for messages, tools in ((history[:1], []), (history[:2], []), (history, [add])):
        told = chat.bind_tools(tools).invoke(messages).usage_metadata
        assert told is not None
        assert told["input_tokens"] == chat.get_num_tokens_from_messages(messages, tools)
    assert chat.get_num_tokens("Hello world") == len(chat.get_token_ids("Hello world")) > 0


def test_p11_folders_need_no_network(members: dict[str, str]) -> None:
    """Sockets are off in these tests; and an id that is not in the cache says what to do."""
    chat = ChatEnsemble(members={"x": "nobody/nothing"}, local_files_only=True)
    with pytest.raises(MemberError, match="'x'"):
        chat.invoke(ASK)


def test_p12_many_threads(chat: ChatEnsemble) -> None:
    asked = [ASK, "Hello!", "One day"]
    wanted = [said(chat.invoke(text)) for text in asked]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda text: said(chat.invoke(text)), asked * 3))
    assert found == wanted * 3


def test_p13_a_model_is_loaded_once(chat: ChatEnsemble, members: dict[str, str]) -> None:
    wanted = chat.invoke(ASK).text
    before = len(registry.held())
    chain = chat.configurable_fields(temperature=ConfigurableField(id="t"))
    others = [
        chat.model_copy(),
        chat.bind_tools([add], tool_choice="none"),
        chain.with_config(configurable={"t": 0.0}),
        ChatEnsemble(members=members, fusion="unite", max_tokens=8),
    ]
    assert [other.invoke(ASK).text for other in others] == [wanted] * 4
    chat.invoke(ASK, model="qwen")
    chat.solo("zephyr").invoke(ASK)
    assert len(registry.held()) == before


def test_p14_pickle_and_deepcopy(chat: ChatEnsemble) -> None:
    text = chat.invoke(ASK).text  # loaded: locks, modules and caches exist
    for other in (pickle.loads(pickle.dumps(chat)), copy.deepcopy(chat)):
        assert other == chat
        assert other.invoke(ASK).text == text


def test_p15_a_batch_is_the_loop(chat: ChatEnsemble) -> None:
    asked: list[Any] = ["A", ASK, [("system", "x"), ("user", "The dog and the cat")]]
    wanted = [said(chat.invoke(text)) for text in asked]
    assert [said(message) for message in chat.batch(asked)] == wanted


def test_p16_context_is_never_cut_silently(chat: ChatEnsemble, stage: actor.Stage) -> None:
    long = "abc " * 600
    with pytest.raises(ContextOverflowError, match=r"'(qwen|zephyr)'.* 1024 ") as caught:
        chat.invoke(long)
    assert caught.value.limit == 1024  # type: ignore[attr-defined]
    assert caught.value.length > 1024  # type: ignore[attr-defined]
    read = stage.play()
    nearly = "abc " * 150
    chat.invoke(nearly)
    assert all(nearly.strip() in prompts[0] for prompts in read.values())


def test_p18_no_two_settings_of_devices_fight(members: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        ChatEnsemble(members=members, device="cpu", device_map="auto")
    with pytest.raises((ConfigError, MemberError), match="cuda:7"):
        ChatEnsemble(members=members, device="cuda:7").invoke(ASK)
