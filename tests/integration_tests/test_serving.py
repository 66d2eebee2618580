"""Calls at the same time, by both LangChain classes: the same answers, in shared forwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import pytest
from langchain_core.exceptions import ModelRateLimitError

from langchain_ensemble import (
    ChatEnsemble,
    DeadlineError,
    EnsembleLLM,
    MemoryLimitError,
    OverloadedError,
)
from langchain_ensemble.adapter.faults import TooManyRequestsError

TOPICS = ("a fox", "the sea", "Rome", "an old king", "rain", "the moon", "bread", "a door")

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.9, "seed": 4},
    {"max_tokens": 9},
    {"repetition_penalty": 1.2},
    {"stop": ["e"]},
    {"temperature": 0.7, "seed": 1, "top_k": 30},
    {"weights": [0.25, 0.75]},
    {"weights": [1.0, 0.0]},
)


@pytest.fixture(scope="module")
def llm() -> Iterator[EnsembleLLM]:
    with EnsembleLLM.demo(fusion="unite", max_tokens=16) as made:
        yield made


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatEnsemble]:
    with ChatEnsemble.demo(fusion="unite", max_tokens=16) as made:
        yield made


def forwards(model: EnsembleLLM | ChatEnsemble) -> Callable[[], int]:
    """Forwards of all members since it was last asked."""
    pools = {id(m._lease.value.pool): m._lease.value.pool for m in model.engine._ready().members}
    seen = 0

    def count() -> int:
        nonlocal seen
        before, seen = seen, sum(pool.forwards for pool in pools.values())
        return seen - before

    count()
    return count


def asks(model: EnsembleLLM | ChatEnsemble) -> list[tuple[str, dict[str, Any]]]:
    form = "Tell me about {}." if isinstance(model, ChatEnsemble) else "Once there was {}"
    return [(form.format(topic), s) for topic, s in zip(TOPICS, SETTINGS, strict=True)]


def said(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.text)


@pytest.mark.parametrize("kind", ["llm", "chat"])
def test_threads_tasks_and_streams_say_what_each_says_alone(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    count = forwards(model)
    alone = [said(model.invoke(text, **settings)) for text, settings in asks(model)]
    assert len(set(alone)) > 4, "they differ"
    apart = count()

    def in_thread(number: int) -> str:
        text, settings = asks(model)[number]
        if number % 2:
            return said(model.invoke(text, **settings))
        return "".join(said(chunk) for chunk in model.stream(text, **settings))

    with ThreadPoolExecutor(len(alone)) as pool:
        assert list(pool.map(in_thread, range(len(alone)))) == alone
    assert count() < 0.7 * apart

    async def in_task(number: int) -> str:
        text, settings = asks(model)[number]
        if number % 2:
            return said(await model.ainvoke(text, **settings))
        return "".join([said(chunk) async for chunk in model.astream(text, **settings)])

    async def together() -> list[str]:
        return await asyncio.gather(*(in_task(n) for n in range(len(alone))))

    assert asyncio.run(together()) == alone
    assert count() < 0.7 * apart


@pytest.mark.parametrize("kind", ["llm", "chat"])
def test_a_batch_is_one_call_or_many(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    texts = [text for text, _ in asks(model)]
    alone = [said(model.invoke(text)) for text in texts]
    assert [said(a) for a in model.batch(texts)] == alone
    assert [said(a) for a in model.batch(texts, {"max_concurrency": 3})] == alone


@pytest.mark.parametrize("make", [EnsembleLLM.demo, ChatEnsemble.demo])
def test_more_calls_than_places(make: Callable[..., Any]) -> None:
    """Few places, more callers than an executor has threads: all are served."""
    model = make(fusion="unite", max_tokens=6, max_concurrent=2)
    text = asks(model)[0][0]

    async def together() -> list[Any]:
        return await asyncio.gather(*(model.ainvoke(text) for _ in range(40)))

    with model:
        assert len({said(a) for a in asyncio.run(together())}) == 1


@pytest.mark.parametrize("make", [EnsembleLLM.demo, ChatEnsemble.demo])
def test_a_full_queue_is_a_rate_limit_to_langchain(make: Callable[..., Any]) -> None:
    with make(fusion="unite", max_tokens=12, max_concurrent=1, max_queue=0) as model:
        text = asks(model)[0][0]
        stream = model.stream(text)
        next(stream)
        with pytest.raises(TooManyRequestsError, match="max_queue=0") as told:
            model.invoke(text)
        assert isinstance(told.value, OverloadedError)
        assert isinstance(told.value, ModelRateLimitError)
        assert told.value.is_retryable
        stream.close()
        assert said(model.invoke(text))


@pytest.mark.parametrize("make", [EnsembleLLM.demo, ChatEnsemble.demo])
def test_a_call_that_never_fits_is_refused_with_the_numbers(make: Callable[..., Any]) -> None:
    told = r"GB of KV caches.*kv_cache_gb=1e-06; lower"
    with (
        make(fusion="unite", max_tokens=50, kv_cache_gb=1e-6) as model,
        pytest.raises(MemoryLimitError, match=told),
    ):
        model.invoke(asks(model)[0][0])
    with make(fusion="unite", max_tokens=4, kv_cache_gb=1.0) as model:
        assert said(model.invoke(asks(model)[0][0]))


@pytest.mark.parametrize("make", [EnsembleLLM.demo, ChatEnsemble.demo])
def test_a_timeout_runs_out_in_the_queue(make: Callable[..., Any]) -> None:
    with make(fusion="unite", max_tokens=200, max_concurrent=1) as model:
        text = asks(model)[0][0]
        stream = model.stream(text)
        next(stream)
        with pytest.raises(DeadlineError, match=r"timeout of 0\.02 s passed"):
            model.invoke(text, timeout=0.02)
        stream.close()


@pytest.mark.parametrize("kind", ["llm", "chat"])
async def test_cancelling_some_leaves_the_others_alone(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    texts = [text for text, _ in asks(model)]
    alone = [said(await model.ainvoke(text)) for text in texts[:4]]

    async def left(text: str) -> None:
        async with aclosing(model.astream(text)) as chunks:
            async for _ in chunks:
                break

    kept = [asyncio.create_task(model.ainvoke(text)) for text in texts[:4]]
    cancelled = [asyncio.create_task(model.ainvoke(text)) for text in texts[4:6]]
    closed = [asyncio.create_task(left(text)) for text in texts[6:]]
    await asyncio.sleep(0.02)
    for task in cancelled:
        task.cancel()
    assert [said(answer) for answer in await asyncio.gather(*kept)] == alone
    await asyncio.gather(*closed)
    for task in cancelled:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(model.engine._engine._line) == 0
