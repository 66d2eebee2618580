"""EnsembleLLM with real members keeps the whole contract of a LangChain LLM."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from langchain_ensemble import EnsembleLLM
from langchain_ensemble.decoding.engine import Decoding
from langchain_ensemble.members import registry
from langchain_ensemble.members.kv_cache import RaggedCache
from langchain_ensemble.testing import LLMContract

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def members(shared: Path) -> dict[str, str]:
    models = shared / "models"
    return {"stories": str(models / "stories260K"), "baby": str(models / "babyllama-361")}


class RealMembers(LLMContract):
    max_tokens = 8
    settings: ClassVar[dict[str, Any]]
    names = ("stories", "baby")

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _kept(cls, members: dict[str, str]) -> Iterator[None]:
        chosen = {name: members[name] for name in cls.names}
        cls.settings = {**cls.settings, "members": chosen}
        kept = EnsembleLLM(**cls.settings).load()  # one load for the class
        yield
        kept.unload()

    def make_llm(self, **settings: Any) -> EnsembleLLM:
        return EnsembleLLM(**self.settings, **settings)


class TestUnite(RealMembers):
    settings: ClassVar[dict[str, Any]] = {"fusion": "unite"}


class TestDeepen(RealMembers):
    settings: ClassVar[dict[str, Any]] = {
        "fusion": "deepen",
        "weights": {"stories": 0.75, "baby": 0.25},
    }


class TestOneMember(RealMembers):
    settings: ClassVar[dict[str, Any]] = {"fusion": "average"}
    names = ("stories",)


class TestStoppingFreesTheCaches:
    """Whoever stops reading stops the computation, and no KV cache is left."""

    @pytest.fixture
    def llm(self, members: dict[str, str]) -> EnsembleLLM:
        return EnsembleLLM(
            members=members, fusion="unite", max_tokens=120, prefix_cache_gb=0.0
        )  # else what was read of the prompt is kept, for the next that begins alike

    @pytest.fixture
    def decodings(self, llm: EnsembleLLM, monkeypatch: pytest.MonkeyPatch) -> list[Decoding]:
        seen: list[Decoding] = []
        engine = llm.engine
        admit = engine.open

        def watched(*args: Any, **kwargs: Any) -> Decoding:
            seen.append(admit(*args, **kwargs))
            return seen[-1]

        monkeypatch.setattr(engine, "open", watched)
        return seen

    def test_closed_stream(self, llm: EnsembleLLM, decodings: list[Decoding]) -> None:
        before = caches_alive()
        stream = cast("Any", llm.stream(PROMPT))
        next(stream)
        assert caches_alive() == before + 2  # one a member
        stream.close()
        assert caches_alive() == before
        assert decodings[0].done

    def test_dropped_stream(self, llm: EnsembleLLM, decodings: list[Decoding]) -> None:
        before = caches_alive()
        for text in llm.stream(PROMPT):
            assert text
            break
        assert caches_alive() == before
        assert decodings[0].done

    async def test_cancelled_call(self, llm: EnsembleLLM, decodings: list[Decoding]) -> None:
        before = caches_alive()
        task = asyncio.create_task(llm.ainvoke(PROMPT))
        while not (decodings and decodings[0].usage()[0].steps):
            assert not task.done()
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_done(decodings[0])
        steps = decodings[0].usage()[0].steps
        await asyncio.sleep(0.1)
        assert decodings[0].usage()[0].steps == steps < 120
        assert caches_alive() == before

    async def test_timed_out_stream(self, llm: EnsembleLLM, decodings: list[Decoding]) -> None:
        async def read() -> None:
            async with asyncio.timeout(None) as limit:
                async for _ in llm.astream(PROMPT):
                    if limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + 0.01)

        before = caches_alive()
        with pytest.raises(TimeoutError):
            await read()
        await until_done(decodings[0])
        assert caches_alive() == before


def caches_alive() -> int:
    gc.collect()
    return sum(type(found) is RaggedCache for found in gc.get_objects())


async def until_done(decoding: Decoding) -> None:
    deadline = time.monotonic() + 5
    while not decoding.done:
        assert time.monotonic() < deadline, "the decoding goes on"
        await asyncio.sleep(0.01)


class TestSharedWeights:
    def test_nothing_is_loaded_twice(self, pico: Callable[..., Path]) -> None:
        members = {kind: str(pico(kind, seed=41)) for kind in ("llama", "qwen2")}

        def held() -> list[str]:
            return sorted(str(key) for key in registry.held() if "-41" in str(key))

        llm = EnsembleLLM(members=members, fusion="unite", max_tokens=4).load()
        other = EnsembleLLM(members=list(members.values()), fusion="average", max_tokens=4)
        texts = [llm.solo(n).invoke(PROMPT) for n in members] + [other.invoke(PROMPT)]
        assert len(held()) == 2  # one entry a model, for four ensembles
        llm.unload()
        assert len(held()) == 2
        assert other.invoke(PROMPT) == texts[-1]
        other.unload()
        del llm, other
        gc.collect()
        deadline = time.monotonic() + 5
        while held() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert held() == []

    def test_solo_is_all_weight_on_one(self, members: dict[str, str]) -> None:
        llm = EnsembleLLM(members=members, fusion="unite", max_tokens=12).load()
        for name in members:
            alone = llm.solo(name).invoke(PROMPT)
            assert (
                llm.model_copy(update={"main": name}).invoke(
                    PROMPT, weights={n: float(n == name) for n in members}
                )
                == alone
            )
            by_name = llm.score(alone, PROMPT, member=name)
            assert by_name.logprob == pytest.approx(llm.solo(name).score(alone, PROMPT).logprob)
            assert by_name.is_greedy


def test_many_threads_many_settings(members: dict[str, str], acceptance_scale: int) -> None:
    """Calls with different settings at once: streams, batches, samples; nothing is mixed."""
    llm = EnsembleLLM(members=members, fusion="unite", max_tokens=8).load()
    jobs: list[dict[str, Any]] = [
        {"max_tokens": 5},
        {"temperature": 1.5, "seed": 7},
        {"temperature": 1.5, "seed": 8},
        {"weights": {"stories": 1.0, "baby": 0.0}},
        {"stop": ["a"]},
    ]
    prompts = [PROMPT, "The dog", "Lily and Tom"]
    wanted = [[llm.invoke(p, **job) for p in prompts] for job in jobs]
    assert len(dict.fromkeys(texts[0] for texts in wanted)) >= 4

    def ask(number: int) -> bool:
        which = number % len(jobs)
        if number % 3 == 0:
            return llm.batch(prompts, **jobs[which]) == wanted[which]
        p = number % len(prompts)
        if number % 3 == 1:
            return "".join(llm.stream(prompts[p], **jobs[which])) == wanted[which][p]
        return asyncio.run(llm.ainvoke(prompts[p], **jobs[which])) == wanted[which][p]

    with ThreadPoolExecutor(5) as pool:
        assert all(pool.map(ask, range(20 * acceptance_scale)))
