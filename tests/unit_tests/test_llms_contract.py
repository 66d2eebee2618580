"""The contract of an LLM catches what it is there for: LLMs broken in one way fail its tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import pytest
from langchain_core.outputs import GenerationChunk, LLMResult

from langchain_ensemble import EnsembleLLM
from langchain_ensemble.adapter import engines
from langchain_ensemble.params import RequestParams
from langchain_ensemble.testing import LLMContract
from tests.scripted_engine import ScriptedEnsemble


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "build_engine", lambda p, f: ScriptedEnsemble(p, fusion=f))
    monkeypatch.setattr(engines, "_handles", WeakValueDictionary())


class Echoes(EnsembleLLM):
    def _generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        result = super()._generate(prompts, *args, **kwargs)
        for prompt, row in zip(prompts, result.generations, strict=True):
            row[0].text = prompt + row[0].text
        return result


class DropsFieldStop(EnsembleLLM):
    def request(self, stop: Any = None, **overrides: Any) -> RequestParams:
        request = super().request(stop, **overrides)
        return request.model_copy(update={"stop": tuple(stop or ())})


class DropsCallStop(EnsembleLLM):
    def request(self, stop: Any = None, **overrides: Any) -> RequestParams:
        return super().request(None, **overrides)


class OneKeyForAll(EnsembleLLM):
    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": "me"}


class SilentStream(EnsembleLLM):
    def _stream(self, prompt: str, *args: Any, **kwargs: Any) -> Iterator[GenerationChunk]:
        kwargs["run_manager"] = None
        yield from super()._stream(prompt, *args, **kwargs)


class EndsBatchesEarly(EnsembleLLM):
    def _generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        result = super()._generate(prompts, *args, **kwargs)
        if len(prompts) > 1:
            result.generations[-1][0].text = result.generations[-1][0].text[:-1]
        return result


class NoUsage(EnsembleLLM):
    def _generate(self, *args: Any, **kwargs: Any) -> LLMResult:
        return super()._generate(*args, **kwargs).model_copy(update={"llm_output": None})


class ForgetsOnCopy(EnsembleLLM):
    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        state["__dict__"] = {**state["__dict__"], "max_tokens": 1}
        return state


class MixesCalls(EnsembleLLM):
    """Gives a caller the answer of whoever asked last."""

    async def _agenerate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        _last.append(prompts)
        await asyncio.sleep(0.01)
        return await super()._agenerate(_last[-1], *args, **kwargs)


_last: list[list[str]] = []


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Echoes, "test_invoke_gives_the_answer_alone"),
        (Echoes, "test_stream_is_invoke"),
        (DropsFieldStop, "test_stop_is_found_and_not_shown"),
        (DropsFieldStop, "test_stop_of_field_and_call_are_joined"),
        (DropsCallStop, "test_stop_of_field_and_call_are_joined"),
        (OneKeyForAll, "test_cache_separates_settings"),
        (SilentStream, "test_callbacks_see_the_stream"),
        (EndsBatchesEarly, "test_batch_is_one_by_one"),
        (NoUsage, "test_result_tells_usage_and_finish"),
        (ForgetsOnCopy, "test_copies_answer_alike"),
        (MixesCalls, "test_tasks_do_not_mix"),
    ],
)
def test_broken_llms_are_caught(broken: type[EnsembleLLM], test: str) -> None:
    class Contract(LLMContract):
        def make_llm(self, **settings: Any) -> EnsembleLLM:
            return broken(members={"a": "x/a"}, **settings)

    contract = Contract()
    llm = contract.make_llm(max_tokens=contract.max_tokens)
    answers = [llm.invoke(prompt) for prompt in contract.prompts]
    method = getattr(contract, test)
    wanted = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    given = {"llm": llm, "answers": answers}
    with pytest.raises((AssertionError, TypeError)):
        method(**{name: given[name] for name in wanted})
