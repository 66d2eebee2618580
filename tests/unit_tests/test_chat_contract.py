"""The contract of a chat model catches what it is there for: models broken in one way fail it."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.adapter import engines, replies
from langchain_ensemble.params import RequestParams
from langchain_ensemble.testing import ChatContract
from tests.scripted_engine import ScriptedEnsemble


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "build_engine", lambda p, f: ScriptedEnsemble(p, fusion=f))
    monkeypatch.setattr(engines, "_handles", WeakValueDictionary())


class DropsFieldStop(ChatEnsemble):
    def request(self, stop: Any = None, **overrides: Any) -> RequestParams:
        request = super().request(stop, **overrides)
        return request.model_copy(update={"stop": tuple(stop or ())})


class OneKeyForAll(ChatEnsemble):
    def _get_llm_string(self, stop: Any = None, **kwargs: Any) -> str:
        return "me"


class NoUsage(ChatEnsemble):
    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        result = super()._generate(*args, **kwargs)
        result.generations[0].message.usage_metadata = None  # type: ignore[attr-defined]
        return result


class MetadataInEveryChunk(ChatEnsemble):
    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in super()._stream(*args, **kwargs):
            chunk.message.response_metadata["model_name"] = self.model_name
            yield chunk


class LastChunkHoldsArguments(ChatEnsemble):
    """The last fragment of a call rides on the chunk that is marked as the last."""

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        *chunks, before, last = super()._stream(*args, **kwargs)
        yield from chunks
        yield before + last


class SilentWarnings(ChatEnsemble):
    def _turn(self, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super()._turn(*args, **kwargs)


class ForgetsOnCopy(ChatEnsemble):
    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        state["__dict__"] = {**state["__dict__"], "max_tokens": 1}
        return state


class MixesCalls(ChatEnsemble):
    """Gives a caller the answer of whoever asked last."""

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        _last.append(messages)
        await asyncio.sleep(0.01)
        return await super()._agenerate(_last[-1], *args, **kwargs)


_last: list[Any] = []


class CompletesCutCalls(ChatEnsemble):
    """Closes the JSON of a cut call, as a lenient reader would."""

    def _turn(self, *args: Any, **kwargs: Any) -> Any:
        turn = super()._turn(*args, **kwargs)
        for reply in turn._replies:
            reply._calls.end = lambda: None
        return turn


class HalfObjects(ChatEnsemble):
    """Says of no answer that it was cut."""

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        result = super()._generate(*args, **kwargs)
        message = result.generations[0].message
        if message.response_metadata.pop("unfinished", None):
            message.content = json.dumps({"animal": "cat", "count": 1})
        return result


class Uncounted(ChatEnsemble):
    def get_num_tokens_from_messages(self, messages: Any, tools: Any = None) -> int:
        return super().get_num_tokens_from_messages(messages)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (DropsFieldStop, "test_stop_is_found_and_not_shown"),
        (OneKeyForAll, "test_cache_separates_settings"),
        (NoUsage, "test_message_tells_usage_model_and_finish"),
        (MetadataInEveryChunk, "test_stream_is_invoke"),
        (LastChunkHoldsArguments, "test_events_keep_every_fragment"),
        (SilentWarnings, "test_unknown_arguments_are_told"),
        (ForgetsOnCopy, "test_copies_answer_alike"),
        (MixesCalls, "test_tasks_do_not_mix"),
        (CompletesCutCalls, "test_cut_calls_are_never_executable"),
        (HalfObjects, "test_cut_object_is_an_error"),
        (Uncounted, "test_token_counts_need_no_network"),
    ],
)
def test_broken_models_are_caught(broken: type[ChatEnsemble], test: str) -> None:
    class Contract(ChatContract):
        def make_chat(self, **settings: Any) -> ChatEnsemble:
            return broken(members={"a": "x/a", "b": "x/b"}, **settings)

    contract = Contract()
    chat = contract.make_chat(max_tokens=contract.max_tokens)
    method = getattr(contract, test)
    wanted = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    given: dict[str, Any] = {"chat": chat, "settings": {}, "method": "json_schema"}
    if "answers" in wanted:
        given["answers"] = [str(chat.invoke(prompt).text) for prompt in contract.prompts]
    with pytest.raises((AssertionError, TypeError, pytest.fail.Exception)):
        method(**{name: given[name] for name in wanted})


def test_cut_arguments_end_in_what_no_reader_completes() -> None:
    whole = json.dumps({"a": ['x"y\\', {"b": None}], "c": "é\n"}, ensure_ascii=False)
    for end in range(len(whole) + 1):
        cut = whole[:end]
        chunk = AIMessageChunk(
            "",
            tool_call_chunks=[
                {"name": "f", "args": cut + replies.breaking(cut), "id": "1", "index": 0}
            ],
        )
        assert not chunk.tool_calls
        assert chunk.invalid_tool_calls
        with pytest.raises(ValueError, match=r"delimiter|Expecting|Extra|Invalid|Unterminated"):
            json.loads(cut + replies.breaking(cut))
