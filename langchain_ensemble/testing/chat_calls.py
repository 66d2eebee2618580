"""Tool calls and structured output: the half of a chat model's contract about what is decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pydantic import BaseModel, Field

from langchain_ensemble.testing.chat_tools import CUT, completable, merged, said, v3


class Sighting(BaseModel):
    """An animal that was seen."""

    animal: Literal["cat", "owl", "fox"]
    count: Annotated[int, Field(ge=1, le=9)]


def note_sighting(animal: Literal["cat", "owl", "fox"], far: bool) -> str:
    """Write down that an animal was seen."""
    return f"{animal} {far}"


class CallsContract:
    """Tests of tool calls; give ``make_chat``. Part of :class:`ChatContract`.

    Attributes:
        call_prompt: A request that both tools fit; calls are demanded all the same.
        call_tokens: Enough tokens for one call of a tool with two short arguments.
        budget_step: Every how many-th budget a call is cut at; more is faster.
    """

    call_prompt = "Note a call: I saw a cat."
    call_tokens = 120
    budget_step = 1

    def make_chat(self, **settings: Any) -> BaseChatModel:
        """Make the chat model under test; the same every time, with some fields changed."""
        raise TypeError(f"{type(self).__name__} must define make_chat(self, **settings)")

    def with_tools(self, choice: str | None = "note_sighting", **settings: Any) -> Any:
        """Make the chat model with both tools bound, one call a turn."""
        chat = self.make_chat(**{"max_tokens": self.call_tokens, **settings})
        tools: list[Any] = [note_sighting, Sighting]
        return chat.bind_tools(tools, tool_choice=choice, parallel_tool_calls=False)

    # whole calls

    def test_demanded_call_is_made(self) -> None:
        """A named tool is called with arguments of its schema, and each call has its own id."""
        chat = self.with_tools()
        first, second = chat.invoke(self.call_prompt), chat.invoke(self.call_prompt)
        (call,) = first.tool_calls
        assert call["name"] == "note_sighting"
        assert call["args"]["animal"] in ("cat", "owl", "fox")
        assert isinstance(call["args"]["far"], bool)
        assert call["id"]
        assert call["id"] != second.tool_calls[0]["id"]
        assert first.response_metadata["finish_reason"] == "tool_calls"
        assert not first.invalid_tool_calls

    def test_any_tool_or_none(self) -> None:
        """``"any"`` calls one of the tools; ``"none"`` calls nothing."""
        assert self.with_tools("any").invoke(self.call_prompt).tool_calls[0]["name"] in (
            "note_sighting",
            "Sighting",
        )
        silent = self.with_tools("none", max_tokens=16).invoke(self.call_prompt)
        assert not silent.tool_calls
        assert not silent.invalid_tool_calls

    def test_unknown_choice_is_an_error(self) -> None:
        """The error names the nearest tool."""
        with pytest.raises(ValueError, match=r"note_sigthing.*Did you mean 'note_sighting'"):
            self.with_tools("note_sigthing")

    def test_results_are_read_back(self) -> None:
        """A turn after a tool's result, whole or failed, text or blocks, is answered."""
        chat = self.with_tools(None, max_tokens=8)
        asked = HumanMessage(self.call_prompt)
        called = self.with_tools().invoke([asked])
        call_id = called.tool_calls[0]["id"]
        for result in (
            ToolMessage("noted", tool_call_id=call_id),
            ToolMessage([{"type": "text", "text": "noted"}], tool_call_id=call_id),
            ToolMessage("no pencil", tool_call_id=call_id, status="error"),
        ):
            assert isinstance(chat.invoke([asked, called, result]), AIMessage)

    # streams

    def test_streamed_call_is_the_invoked_one(self) -> None:
        """Fragments add up: name and id once, one integer index, the last chunk holds none."""
        chat = self.with_tools()
        chunks = list(chat.stream(self.call_prompt))
        assert said(merged(chunks)) == said(chat.invoke(self.call_prompt))
        fragments = [f for chunk in chunks for f in chunk.tool_call_chunks]
        assert len(fragments) > 1, "the arguments came in one piece"
        assert [f["name"] for f in fragments if f["name"]] == ["note_sighting"]
        assert len([f["id"] for f in fragments if f["id"]]) == 1
        assert all(isinstance(f["index"], int) for f in fragments)
        assert chunks[-1].chunk_position == "last"
        assert not chunks[-1].tool_call_chunks

    def test_async_calls_are_the_same(self) -> None:
        """``ainvoke`` and ``astream`` give the same call."""
        chat = self.with_tools()

        async def ask() -> tuple[AIMessage, AIMessage]:
            chunks = [chunk async for chunk in chat.astream(self.call_prompt)]
            return await chat.ainvoke(self.call_prompt), merged(chunks)

        invoked, streamed = asyncio.run(ask())
        assert said(invoked) == said(streamed) == said(chat.invoke(self.call_prompt))

    def test_events_keep_every_fragment(self) -> None:
        """``stream_events(version="v3")`` puts the same call together, in more than one delta."""
        chat = self.with_tools()
        events, message = v3(chat, self.call_prompt)
        whole = said(chat.invoke(self.call_prompt))
        assert said(message)["calls"] == whole["calls"]
        assert not message.invalid_tool_calls
        assert message.usage_metadata == whole["usage"]
        deltas = [e for e in events if e.get("event") == "content-block-delta"]
        assert len(deltas) > 1
        assert message.response_metadata["finish_reason"] == "tool_calls"

    # budgets

    def test_cut_calls_are_never_executable(self) -> None:
        """However far a turn got, a cut call is not in ``tool_calls``, nor can it be completed."""
        seen_broken = 0
        whole = said(self.with_tools().invoke(self.call_prompt))["calls"]
        for message in self._cut_messages():
            assert said(message)["calls"] in ([], whole)  # whole calls of a cut turn are whole
            for _, arguments in said(message)["broken"]:
                assert not completable(arguments)
                seen_broken += 1
            assert message.response_metadata["finish_reason"] == CUT
        assert whole
        assert seen_broken, "no budget cut the call inside its arguments"

    def _cut_messages(self) -> Iterator[AIMessage]:
        for place, budget in enumerate(range(1, self.call_tokens, self.budget_step)):
            chat = self.with_tools(max_tokens=budget)
            message = chat.invoke(self.call_prompt)
            if message.response_metadata["finish_reason"] != CUT:
                break
            yield message
            if place % 3 == 1:  # every third budget by the other ways too
                yield merged(chat.stream(self.call_prompt))
                yield v3(chat, self.call_prompt)[1]

    # structured output

    @pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
    def test_structured_output_is_an_object(self, method: str) -> None:
        """Every method gives an instance of the class, streamed once, and a dict for a schema."""
        chat = self.make_chat(max_tokens=self.call_tokens)
        found = chat.with_structured_output(Sighting, method=method).invoke(self.call_prompt)
        assert isinstance(found, Sighting)
        assert list(
            chat.with_structured_output(Sighting, method=method).stream(self.call_prompt)
        ) == [found]
        schema = Sighting.model_json_schema()
        plain: Any = chat.with_structured_output(schema, method=method)
        assert Sighting(**plain.invoke(self.call_prompt)) == Sighting(
            **plain.invoke(self.call_prompt)
        )
        *_, last = plain.stream(self.call_prompt)
        assert last == plain.invoke(self.call_prompt)

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_cut_object_is_an_error(self, method: str) -> None:
        """An object that did not fit the budget raises, in ``invoke`` and ``stream``."""
        cut = 0
        for budget in (1, 2, 3, 5, 8):
            chat = self.make_chat(max_tokens=budget)
            held = chat.with_structured_output(Sighting, method=method)
            raw = chat.with_structured_output(Sighting, method=method, include_raw=True)
            told: Any = raw.invoke(self.call_prompt)
            if told["raw"].response_metadata["finish_reason"] != CUT:
                break
            cut += 1
            assert told["parsed"] is None
            assert isinstance(told["parsing_error"], ValueError)
            with pytest.raises(ValueError, match="cut"):
                held.invoke(self.call_prompt)
            with pytest.raises(ValueError, match="cut"):
                list(held.stream(self.call_prompt))
        assert cut, "one token was enough for an object"
